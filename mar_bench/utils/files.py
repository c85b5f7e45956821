"""Files: written whole or not at all, hashed, and those that ship with the package."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mar_bench


def atomic_write(path: Path, content: str | bytes) -> None:
    """Readers see the old file or the new one, whole."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def sha256_of(path: Path) -> str:
    """Of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A hidden temporary file beside ``path`` to write to; on disk and renamed at the end, gone on any error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        yield temporary
        os.fsync(handle)  # of the file, whoever wrote to it: after a power cut there is no empty new one
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink()
        raise
    finally:
        os.close(handle)


def shipped(in_checkout: str, in_package: str, variable: str) -> Path:
    """A folder that ships with the code: ``$variable``, else the checkout's, else the copy inside the wheel."""
    if chosen := os.environ.get(variable):
        return Path(chosen)
    package = Path(mar_bench.__file__).parent
    checkout = package.parent / in_checkout
    return checkout if checkout.is_dir() else package / in_package
