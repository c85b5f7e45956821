"""Kill a command at one of its write points: before and after every call that replaces, syncs or deletes a file.

    python -m tests.torture.killed N -- run table1 --scale smoke

runs ``mar-bench run table1 --scale smoke`` and kills it, workers included, at the N-th point."""

from __future__ import annotations

import mmap
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

CALLS = [(owner, name) for owner in (os, Path) for name in ("replace", "rename", "unlink")] + [(os, "fsync")]


def counter() -> mmap.mmap:
    """Counts points over all processes that are forked from here."""
    return mmap.mmap(-1, 8)


def count(points: mmap.mmap) -> int:
    return int.from_bytes(points[:8], "little")


def arm(points: mmap.mmap, last: int) -> None:
    """From now on count the points of this process and of those forked from it; kill the group at ``last``."""
    inside = False

    def point() -> None:
        points[:8] = (count(points) + 1).to_bytes(8, "little")
        if count(points) == last:
            os.killpg(0, signal.SIGKILL)

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            nonlocal inside
            if inside:  # Path.replace calls os.replace
                return call(*arguments, **options)
            point()
            inside = True
            try:
                result = call(*arguments, **options)
            finally:
                inside = False
            point()
            return result

        return wrapper

    for owner, name in CALLS:
        setattr(owner, name, watched(getattr(owner, name)))


if __name__ == "__main__":
    from tests.torture import workshop

    last, _, *words = sys.argv[1:]
    points = counter()
    with tempfile.TemporaryDirectory() as name:
        child = workshop.start(Path(name), words, partial(arm, points, int(last)))
        code, text = workshop.end(Path(name), child)
    print(f"{text}ended with {code} at point {count(points)}")
