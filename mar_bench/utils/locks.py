"""Advisory locks between processes, and claims between the starts of one job.

The kernel frees a lock when its process dies, so none is ever stale."""

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
def held(path: Path, shared: bool = False, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock file ``path``; ``waiting()`` is called again and again while somebody else has it, and
    may raise to give up."""
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


def machine(shared: bool, waiting: Callable[[], None] = lambda: None):
    """The lock between work (shared) and speed measurements (alone) of one user on this machine."""
    return held(Path(tempfile.gettempdir()) / f"mar_bench-{os.getuid()}.lock", shared, waiting)


class Claim:
    """Which start of which job may write a stage's output: a file beside its lock.

    Slurm starts a job again when it loses sight of its node, though the old processes may live on there. The new start
    claims the stage, and the old one finds that out and leaves. A lock alone would keep the new one waiting."""

    def __init__(self, path: Path, job: str, restart: int):
        self.path, self.mine = path, (job, restart)
        self.next_look = 0.0

    def fence(self) -> None:
        """Tell earlier starts of this job to leave. Raises Superseded where this one is to."""
        self._look()
        if (found := self._read()) is not None and found[0] == self.mine[0]:
            self.take()

    def take(self) -> None:
        atomic_write(self.path, json.dumps(self.mine))

    def check(self) -> None:
        """Raises Superseded where a newer start has taken over; looks once a second at most."""
        if time.monotonic() < self.next_look:
            return
        self.next_look = time.monotonic() + CLAIM_SECONDS
        self._look()

    def _look(self) -> None:
        found = self._read()
        if found is not None and found[0] == self.mine[0] and found[1] > self.mine[1]:
            raise Superseded

    def _read(self) -> tuple[str, int] | None:
        try:
            job, restart = json.loads(self.path.read_text())
            return str(job), int(restart)
        except (OSError, ValueError, TypeError):
            return None
