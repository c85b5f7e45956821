"""Advisory locks between processes. The kernel frees them when a process dies, so none is ever stale."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

POLL_SECONDS = 0.2


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
