"""Files: atomic writes, hashes, errors for damaged files, and folders that ship with the package."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mar_bench
from mar_bench.utils.errors import UserError, shortened


def atomic_write(path: Path, content: str | bytes) -> None:
    """Replace a file atomically: readers see the old content or the new one."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a hidden temporary file beside ``path``; synced and renamed at the end, deleted on any error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        yield temporary
        os.fsync(handle)  # so that a power cut does not leave the file empty, whoever wrote to it
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink()
        if type(error).__name__ == "SafetensorError":  # of a full disk, for one
            raise OSError(errno.EIO, f"cannot be written ({error})", str(path)) from None
        raise
    finally:
        os.close(handle)


@contextmanager
def reading(path: Path | str, what: str = "file", hint: str = "delete it and make it again") -> Iterator[None]:
    """Convert whatever a library raises on a damaged file into one UserError naming the file and the fix.

    numpy, torch, safetensors, zipfile and json raise almost anything, so everything but UserError and MemoryError is
    caught: the block should only read and check the file. In it, raise ValueError for bad content."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {hint}") from None
    except Exception as error:
        reason = " ".join((getattr(error, "strerror", None) or str(error)).split()) or type(error).__name__
        raise UserError(f"{path}: not a valid {what} ({reason}); {hint}") from None


def expanded(path: str, key: str) -> str:
    """A path that the user gave under ``key``, with ``~`` and variables expanded, as shells do for a bare word only.

    Raises UserError for a variable that is not set, an unknown user, and text that cannot be a path."""
    named = [name.strip("{}") for name in re.findall(r"\$(\w+|\{[^}]*\})", path, re.ASCII)]
    unset = [name for name in named if name not in os.environ]
    found = os.path.expanduser(os.path.expandvars(path))
    what = f"{key}: '{shortened(path, 200)}'"
    if unset:
        raise UserError(f"{what} names the variable {unset[0]}, which is not set: set it, or write the path out")
    if found.startswith("~"):
        raise UserError(f"{what} names a user that this machine does not know; for a file of this name write ./~...")
    if not found.strip() or len(found) > 4000 or any(ord(letter) < 32 or letter == "\x7f" for letter in found):
        raise UserError(f"{what} is no path: it is empty, too long or has control characters")
    return found


def path_variable(name: str) -> str | None:
    """The path in an environment variable, expanded; None if it is not set or empty."""
    return expanded(path, name) if (path := os.environ.get(name)) else None


def shipped(in_checkout: str, in_package: str, variable: str) -> Path:
    """A folder that ships with the code: ``$variable``, else the checkout's, else the copy inside the wheel."""
    if chosen := path_variable(variable):
        return Path(chosen)
    package = Path(mar_bench.__file__).parent
    checkout = package.parent / in_checkout
    return checkout if checkout.is_dir() else package / in_package
