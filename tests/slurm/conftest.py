"""A private Slurm of this machine for the tests in this folder; they are skipped where none can run."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "slurm" / "local"
DAEMONS = ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd")
OF_ANOTHER_SLURM = ("SLURM_", "SLURMD_", "SBATCH_", "SALLOC_", "SCANCEL_", "SINFO_", "SQUEUE_", "SACCT_")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("slurm")


def clean_environment() -> dict[str, str]:
    """This process's environment without what a Slurm around it (the tests may run as a job) has set."""
    sbin = os.pathsep.join(("/usr/local/sbin", "/usr/sbin", "/sbin"))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OF_ANOTHER_SLURM)}
    return {**kept, "PATH": f"{os.environ.get('PATH', os.defpath)}{os.pathsep}{sbin}"}


def why_not() -> str:
    """Why no cluster can be started here, or nothing."""
    path = clean_environment()["PATH"]
    missing = [name for name in DAEMONS if shutil.which(name, path=path) is None]
    if missing:
        return f"no {', '.join(missing)}: slurm/local/install installs them"
    if os.geteuid() != 0:
        return "not root: slurmd starts each job as the job's own user"
    return ""


@dataclass
class Cluster:
    """A cluster that slurm/local/start starts in `dir`.

    `environment` is what its users have: SLURM_CONF is set, nothing else of Slurm's.
    """

    dir: Path
    environment: dict[str, str] = field(default_factory=clean_environment)

    def __post_init__(self) -> None:
        self.environment["SLURM_CONF"] = str(self.dir / "slurm.conf")

    def script(self, name: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run one of the scripts in slurm/local, whatever its exit code."""
        command = [SCRIPTS / name, *words]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=300)

    def start(self) -> None:
        done = self.script("start", str(self.dir))
        assert done.returncode == 0, done.stdout + done.stderr

    def stop(self) -> None:
        done = self.script("stop", "--purge", str(self.dir))
        assert done.returncode == 0, done.stdout + done.stderr

    def node(self, action: str, name: str) -> str:
        """`slurm/local/break ACTION NODE`: kill, crash, start, down, drain or resume."""
        done = self.script("break", action, name, str(self.dir))
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run(self, *words: str) -> str:
        """What a command of Slurm's prints, without the white space around it."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def squeue(self, *words: str) -> list[str]:
        """The lines of `squeue`, without the heading."""
        return self.run("squeue", "--noheader", *words).splitlines()


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    """Four nodes n1..n4 of 4 CPUs and 2 GPUs each, accounting on; a cluster for each process of pytest."""
    if reason := why_not():
        pytest.skip(reason)
    # not pytest's own folder: unix sockets have short paths, and every user's jobs must get in
    cluster = Cluster(Path(tempfile.mkdtemp(prefix="mar_bench-", dir="/var/tmp")))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
