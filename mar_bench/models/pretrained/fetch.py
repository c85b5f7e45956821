"""Public files: which there are, how to get them, and whether they are still what they were at first."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shlex
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from http.client import HTTPException
from pathlib import Path
from typing import Any

import mar_bench
from mar_bench.config.layers import load_yaml
from mar_bench.config.parse import KeyPathError, parse
from mar_bench.utils.errors import UserError, did_you_mean
from mar_bench.utils.files import atomic_write, replacing, sha256_of
from mar_bench.utils.locks import held

CATALOGUE = Path(__file__).with_name("public_files.yaml")
MIB = 2**20
CHUNK = 2**20
TOLERANCE = 0.02  # of the size that a project states, which is rounded
TIMEOUT = 60  # seconds without a byte


@dataclass(frozen=True)
class PublicFile:
    """An entry of the catalogue, which says what its fields are."""

    name: str
    what: str
    project: str
    published: str
    file: str
    mib: float | None = None
    address: str | None = None
    next: str | None = None

    def then(self, folder: Path) -> str:
        """The command that comes after the file is there; empty where nothing reads it."""
        quoted = {"path": shlex.quote(str(folder / self.file)), "folder": shlex.quote(str(folder))}
        return self.next.format(**quoted) if self.next else ""


def public_files() -> dict[str, PublicFile]:
    """The catalogue by name."""
    try:
        return {name: parse(PublicFile, {"name": name, **block}) for name, block in load_yaml(CATALOGUE).items()}
    except (KeyPathError, TypeError) as error:
        raise UserError(f"{CATALOGUE}: {error}") from None


def listing(folder: Path) -> list[list[str]]:
    """A line for each public file: name, what, MiB, whether there is an address, whether it is in ``folder``."""
    lines = []
    for entry in public_files().values():
        size = f"{entry.mib:,.0f}" if entry.mib else ""
        here = (folder / entry.file).is_file()
        lines.append([entry.name, entry.what, size, "yes" if entry.address else "no", "yes" if here else "no"])
    return lines


def fetch(name: str, folder: Path) -> str:
    """Have the file in ``folder``, downloaded where it has an address; what was done and what comes next, as text.

    Its SHA-256 is kept beside it and compared every time. Raises UserError for an unknown name, for a file that is
    not there and cannot be had, and for one that is not what it should be."""
    files = public_files()
    if name not in files:
        raise UserError(f"no public file '{name}', {did_you_mean(name, files)}")
    entry = files[name]
    path = folder / entry.file
    if entry.address is None and not path.is_file():
        raise UserError(f"{name} has no address here: {_by_hand(entry, folder)}")

    @functools.cache
    def say_once() -> None:
        print(f"another process is fetching {name}: waiting for it", file=sys.stderr, flush=True)

    with held(folder / f".{entry.file}.lock", waiting=say_once):
        done = _check_present(entry, path) if path.is_file() else _download(entry, path)
    then = entry.then(folder)
    return f"{path}: {done}" + (f"\nnext: {then}" if then else "")


def located(name: str, given: str | None, key: str, folder: Path | None = None) -> Path:
    """Where a public file is: as ``given`` under ``key``, in the folder of weights, or in torch's cache of downloads.

    Raises UserError where it is in none of them: nothing is downloaded unasked."""
    if given is not None:
        if Path(given).is_file():
            return Path(given)
        raise UserError(f"{key} {given}: no such file")
    folder = folder or Path(os.environ.get("MAR_BENCH_WEIGHTS", "weights"))
    entry = public_files().get(name)
    if entry is None:
        raise UserError(f"'{name}' is none of the public files: set {key} to its file")
    cache = Path(os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "torch")
    for place in (folder, cache.expanduser() / "hub" / "checkpoints"):
        if (place / entry.file).is_file():
            return place / entry.file
    raise UserError(f"{entry.file} ({entry.what}; {entry.project}) is not in {folder}: put it there or set {key} to it")


def not_data(head: bytes) -> str | None:
    """What a file is that was saved in place of weights, from its first bytes; None where it may be weights."""
    if not head:
        return "an empty file"
    if head.lstrip()[:1] == b"<":
        return "an HTML page; open its address in a browser and save the file behind it"
    if head.startswith(b"version https://git-lfs"):
        return "a pointer of git-lfs; get the file itself with git lfs pull"
    return None


# --- a file that is there -------------------------------------------------------------------------------


def _check_present(entry: PublicFile, path: Path) -> str:
    with path.open("rb") as file:
        if what := not_data(file.read(512)):
            raise UserError(f"{path}: {what}; delete this one first")
    size = path.stat().st_size
    if wrong := _wrong_size(entry, size):
        raise UserError(f"{path}: {wrong}; delete it and fetch again")
    sha256 = sha256_of(path)
    if recorded := _recorded(path):
        _compare(sha256, recorded, str(path), path)
        return f"already there, sha256 {sha256} as on {recorded.get('date')}"
    _record(path, None, sha256, size)
    return f"placed by hand, sha256 {sha256} recorded"


def _wrong_size(entry: PublicFile, size: int) -> str | None:
    if entry.mib is None or abs(size / MIB / entry.mib - 1) <= TOLERANCE:
        return None
    return f"{size / MIB:,.1f} MB, but {entry.published} has {entry.mib:,.1f}"


def _record_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256.json")


def _recorded(path: Path) -> dict[str, Any] | None:
    """What was written down when the file was first seen; None where nothing was."""
    try:
        content = json.loads(_record_of(path).read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("sha256"), str):
        raise UserError(f"{_record_of(path)}: not a record of a sha256; delete it, the next fetch writes it anew")
    return content


def _record(path: Path, address: str | None, sha256: str, size: int) -> None:
    content = {
        "url": address,
        "origin": "download" if address else "placed by hand",
        "sha256": sha256,
        "bytes": size,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    atomic_write(_record_of(path), json.dumps(content, indent=1) + "\n")


def _compare(sha256: str, recorded: dict[str, Any], subject: str, path: Path) -> None:
    if sha256 != recorded["sha256"]:
        raise UserError(
            f"{subject} has sha256 {sha256}, but {recorded['sha256']} was recorded on {recorded.get('date')}: delete "
            f"{_record_of(path)} if this is right, else the file (if there is one), and fetch again"
        )


# --- a file that is not ---------------------------------------------------------------------------------


def _download(entry: PublicFile, path: Path) -> str:
    for left in path.parent.glob(f".{path.name}.*"):  # by a fetch that was killed: whoever lives has the lock
        if left.suffix != ".lock":
            left.unlink()
    recorded = _recorded(path)
    digest, size, tell = hashlib.sha256(), 0, _Progress(entry)
    with replacing(path) as temporary:
        with temporary.open("wb") as file, tell:
            for chunk in _chunks(entry, path.parent):
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
                tell(size)
        if recorded:
            _compare(digest.hexdigest(), recorded, f"{entry.name}: what {entry.address} gives now", path)
        else:  # before the file appears, so that no file downloaded here ever passes for one placed by hand
            _record(path, entry.address, digest.hexdigest(), size)
    return f"downloaded, {size / MIB:,.1f} MB, sha256 {digest.hexdigest()}"


def _chunks(entry: PublicFile, folder: Path) -> Iterator[bytes]:
    """The bytes behind the address. Raises UserError where they cannot be had whole or are not what was asked for."""
    request = urllib.request.Request(entry.address, headers={"User-Agent": f"mar-bench/{mar_bench.__version__}"})

    def refused(why: str) -> UserError:
        return UserError(f"{entry.name}: {entry.address} gives {why}: {_by_hand(entry, folder)}")

    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            length = answer.headers.get("Content-Length", "")
            if answer.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
                raise refused("an HTML page")
            if length.isdigit() and (wrong := _wrong_size(entry, int(length))):
                raise refused(wrong)
            received = 0
            while chunk := answer.read(CHUNK):
                if not received and (wrong := not_data(chunk[:512])):
                    raise refused(wrong)
                received += len(chunk)
                yield chunk
            if not received or (length.isdigit() and received != int(length)):
                raise refused(f"{received} bytes of {length or 'an unknown number'}")
            if wrong := _wrong_size(entry, received):
                raise refused(wrong)
    except UserError:
        raise
    except (OSError, HTTPException, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{entry.name} was not downloaded ({reason}): {_by_hand(entry, folder)}") from None


def _by_hand(entry: PublicFile, folder: Path) -> str:
    source = f"from {entry.address} " if entry.address else ""
    again = f"mar-bench fetch {entry.name} --weights {shlex.quote(str(folder))}"
    then = entry.then(folder)
    return (
        f"get {entry.published} ({entry.project}) {source}by other means, save it as {folder / entry.file}, then run: "
        f"{again}" + (f", and after it: {then}" if then else "")
    )


# --- what the user sees meanwhile -----------------------------------------------------------------------


class _Progress:
    """Counts the megabytes on stderr: in place on a terminal, a line now and then in a log."""

    def __init__(self, entry: PublicFile):
        self.of = f"{entry.mib:,.0f} MB" if entry.mib else "unknown size"
        self.name, self.terminal = entry.name, sys.stderr.isatty()
        self.every, self.told = 0.5 if self.terminal else 30.0, time.monotonic()

    def __enter__(self) -> _Progress:
        return self

    def __call__(self, size: int) -> None:
        if time.monotonic() - self.told < self.every:
            return
        self.told = time.monotonic()
        start, end = ("\r", "") if self.terminal else ("", "\n")
        print(f"{start}{self.name}: {size / MIB:,.0f} MB of {self.of}", end=end, file=sys.stderr, flush=True)

    def __exit__(self, *_) -> None:
        if self.terminal:  # the line makes room for what comes
            print("\r\033[K", end="", file=sys.stderr, flush=True)
