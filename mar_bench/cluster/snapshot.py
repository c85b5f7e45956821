"""A copy of the code in a submission's folder: editing the checkout does not affect its jobs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mar_bench
from mar_bench.config.yaml_layers import experiments_dir
from mar_bench.records.paper import paper_dir
from mar_bench.records.provenance import SNAPSHOT, git_state

START = "start_job.py"
# A script in the copy's top folder: Python puts that folder first on the path, before the working directory.
START_TEXT = '''"""Entry point of a job: run the submitit job in the folder that is the last argument."""

import signal
import sys

# Block SIGUSR2 until the job installs its handler: the default action would kill the process.
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})

from submitit.core.submission import process_job

process_job(sys.argv[-1])
'''


def take_snapshot(folder: Path) -> None:
    """Copy the package, the experiments and the paper's numbers to a new folder, with the commit that records name."""
    sources = {"mar_bench": Path(mar_bench.__file__).parent, "experiments": experiments_dir()}
    for name, source in {**sources, "results/paper": paper_dir()}.items():
        shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / START).write_text(START_TEXT)
    (folder / SNAPSHOT).write_text(json.dumps({"git": git_state()}))
