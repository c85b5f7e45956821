"""Advisory locks between processes, and claims by which a newer start of a job takes over from an older one.

The kernel frees a lock when its process dies, so locks are never stale."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mar_bench.utils.errors import Superseded
from mar_bench.utils.files import atomic_write

POLL_SECONDS = 0.2
CLAIM_SECONDS = 1.0


@contextlib.contextmanager
def held(path: Path, shared: bool = False, waiting: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Hold the lock file ``path``. While another process has it, ``waiting()`` is called repeatedly; it may raise to
    give up."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        mode = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
        while True:
            try:
                fcntl.flock(handle, mode)
                break
            except BlockingIOError:
                waiting()
                time.sleep(POLL_SECONDS)
        yield
    finally:
        os.close(handle)


def machine(shared: bool, waiting: Callable[[], object] = lambda: None):
    """The lock between work (shared) and speed measurements (exclusive) of one user on this machine."""
    return held(Path(tempfile.gettempdir()) / f"mar_bench-{os.getuid()}.lock", shared, waiting)


class Claim:
    """Which start of which job may write a stage's output: a file beside the stage's lock.

    Slurm may requeue a job whose node is unreachable while the old processes are still running and hold the lock. The
    new start claims the stage; the old one sees the claim at its next step and exits."""

    def __init__(self, path: Path, job: str, restart: int):
        self.path, self.mine = path, (job, restart)
        self._next_read = 0.0

    def fence(self) -> None:
        """Take over the stage from earlier starts of this job. Raises Superseded if a newer start has."""
        if self._is_ours():
            self.take()

    def take(self) -> None:
        atomic_write(self.path, json.dumps(self.mine))

    def check(self) -> None:
        """Raises Superseded if a newer start has taken over; reads the file once per second at most."""
        if time.monotonic() < self._next_read:
            return
        self._next_read = time.monotonic() + CLAIM_SECONDS
        self._is_ours()

    def _is_ours(self) -> bool:
        """Whether a start of this job has made the claim. Raises Superseded if it is newer than this start."""
        try:
            job, restart = json.loads(self.path.read_text())
            job, restart = str(job), int(restart)
        except (OSError, ValueError, TypeError):
            return False
        if job == self.mine[0] and restart > self.mine[1]:
            raise Superseded
        return job == self.mine[0]
