"""Files: atomic writes, hashes, errors for damaged files, and folders that ship with the package."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import mar_bench
from mar_bench.utils.errors import DiskError, UserError, shortened

DISK_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE,
    errno.ENODEV, errno.ENOTCONN, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP,
}  # fmt: skip


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


def with_folder(path: Path) -> Path:
    """``path``, its folder made: for outputs that the user names. Nothing else makes a run root or a records folder
    again, so that a disk which is not mounted any more is noticed."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Convert the OSError of a disk that is full, read-only or gone into one DiskError naming ``path``."""
    try:
        yield
    except DiskError:
        raise
    except OSError as error:
        copying = isinstance(error, shutil.Error)  # of copytree: (source, target, reason) of each file
        if not (copying or error.errno in DISK_ERRORS or not path.parent.is_dir()):
            raise
        reason = error.args[0][0][-1] if copying else error.strerror
        raise DiskError(
            f"{path}: cannot be written ({reason}); finished work is safe: free space, or mount the disk again, then "
            "repeat the command"
        ) from None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a hidden temporary file beside ``path``; synced and renamed at the end, deleted on any error.

    The folder must exist. Raises DiskError if the disk takes no more, whatever a library makes of that."""
    with writing(path):
        try:
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        except OSError as error:
            error.filename = str(path)  # not a name that nobody has given
            raise
        temporary = Path(name)
        try:
            yield temporary
            os.fsync(handle)  # so that a power cut does not leave the file empty, whoever wrote to it
            temporary.chmod(0o644)
            temporary.replace(path)
        except BaseException as error:
            with suppress(OSError):
                temporary.unlink()
            if isinstance(error, Exception) and getattr(error, "errno", None) is None:
                _try_to_write(handle)  # torch, numpy and safetensors raise errors of their own
            raise
        finally:
            os.close(handle)


def _try_to_write(handle: int) -> None:
    """Raises OSError if a file cannot grow by a megabyte."""
    size, block = os.fstat(handle).st_size, bytes(2**20)
    while block:  # the disk may take a part
        written = os.pwrite(handle, block, size)
        size, block = size + written, block[written:]
    os.fsync(handle)


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
