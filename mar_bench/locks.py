"""Advisory locks between processes. The kernel frees them when a process dies, so none is ever stale."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def held(path: Path, shared: bool = False, waiting=lambda: None) -> Iterator[None]:
    """Hold the lock file ``path``; ``waiting()`` is called once when somebody else has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(handle, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(handle, mode)
        yield
    finally:
        os.close(handle)


def machine(shared: bool, waiting=lambda: None):
    """The lock between work (shared) and speed measurements (alone) of one user on this machine."""
    return held(Path(tempfile.gettempdir()) / f"mar_bench-{os.getuid()}.lock", shared, waiting)
