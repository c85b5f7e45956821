"""A copy of the code for queued jobs: editing the checkout does not change what they will run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import mar_bench
from mar_bench.config.yaml_layers import experiments_dir
from mar_bench.records.paper import paper_dir
from mar_bench.records.provenance import SNAPSHOT, git_state

START = "start_job.py"
# A script in the snapshot's top folder: Python puts that folder first on the path, before the working directory.
START_TEXT = '''"""Entry point of a job: run the submitit job in the folder that is the last argument."""

import signal
import sys

# Block SIGUSR2 until the job installs its handler: the default action would kill the process.
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})

from submitit.core.submission import process_job

process_job(sys.argv[-1])
'''


def take_snapshot(runs: Path) -> Path:
    """Copy the package, the experiments and the paper's numbers to ``runs/code/<hash of the content>``, once.

    Returns the absolute path of the copy."""
    package = Path(mar_bench.__file__).parent
    sources = {"mar_bench": package, "experiments": experiments_dir(), "results/paper": paper_dir()}
    files = {
        f"{name}/{path.relative_to(folder)}": path.read_bytes()
        for name, folder in sources.items()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    files[START] = START_TEXT.encode()
    files[SNAPSHOT] = json.dumps({"git": git_state()}, sort_keys=True).encode()
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    target = (runs / "code" / digest.hexdigest()[:12]).absolute()
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=".new-"))
    try:
        for name, content in files.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_bytes(content)
        temporary.chmod(0o755)
        os.rename(temporary, target)
    except OSError:
        shutil.rmtree(temporary)
        if not target.is_dir():  # another submission may have made the same copy meanwhile
            raise
    return target
