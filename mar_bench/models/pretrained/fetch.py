"""Public weight files: the catalogue, getting them, and checking that they have not changed since."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import urllib.request
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from http.client import HTTPException
from pathlib import Path
from typing import Any

import mar_bench
from mar_bench.config.parse import KeyPathError, parse
from mar_bench.config.yaml_layers import load_yaml
from mar_bench.utils.errors import UserError, did_you_mean
from mar_bench.utils.files import atomic_write, reading, replacing, sha256_of
from mar_bench.utils.locks import held

CATALOGUE = Path(__file__).with_name("public_files.yaml")
MIB = 2**20
TOLERANCE = 0.02  # relative, of the sizes in the catalogue, which are rounded
TIMEOUT = 60  # seconds without a byte


@dataclass(frozen=True)
class PublicFile:
    """An entry of the catalogue, which documents its fields."""

    name: str
    what: str
    project: str
    published: str
    file: str
    mib: float | None = None
    address: str | None = None
    next: str | None = None

    def then(self, folder: Path) -> str:
        """The command to run once the file is in ``folder``; empty if there is none."""
        quoted = {"path": shlex.quote(str(folder / self.file)), "folder": shlex.quote(str(folder))}
        return self.next.format(**quoted) if self.next else ""


def public_files() -> dict[str, PublicFile]:
    """The catalogue by name."""
    try:
        return {name: parse(PublicFile, {"name": name, **block}) for name, block in load_yaml(CATALOGUE).items()}
    except (KeyPathError, TypeError) as error:
        raise UserError(f"{CATALOGUE}: {error}") from None


def listing(folder: Path) -> list[list[str]]:
    """One row per public file: name, what it is, MiB, whether it has an address, whether it is in ``folder``."""
    rows = []
    for entry in public_files().values():
        size = f"{entry.mib:,.0f}" if entry.mib else ""
        here = (folder / entry.file).is_file()
        rows.append([entry.name, entry.what, size, "yes" if entry.address else "no", "yes" if here else "no"])
    return rows


def fetch(name: str, folder: Path) -> str:
    """Make sure that a public file is in ``folder``, downloading it if it has an address; returns a report.

    Its SHA-256 is recorded beside it the first time and compared from then on. Raises UserError for an unknown name,
    and for a file that cannot be had or is not what it should be."""
    files = public_files()
    if name not in files:
        raise UserError(f"no public file '{name}', {did_you_mean(name, files)}")
    entry = files[name]
    path = folder / entry.file
    if entry.address is None and not path.is_file():
        raise UserError(f"{name} has no address here: {_by_hand(entry, folder)}")

    @cache
    def say_once() -> None:
        print(f"another process is fetching {name}: waiting for it", file=sys.stderr, flush=True)

    with held(folder / f".{entry.file}.lock", waiting=say_once):
        done = _verify(entry, path, path, None) if path.is_file() else _download(entry, entry.address or "", path)
    then = entry.then(folder)
    return f"{path}: {done}" + (f"\nnext: {then}" if then else "")


def located(name: str, given: str | None, key: str, folder: Path | None = None) -> Path:
    """Path of a public file: ``given`` under the key ``key``, else in the weights folder or torch's download cache.

    Raises UserError if it is in none of them; nothing is downloaded unless asked for."""
    if given is not None:
        if Path(given).is_file():
            return Path(given)
        raise UserError(f"{key} {given}: no such file")
    folder = folder or Path(os.environ.get("MAR_BENCH_WEIGHTS", "weights"))
    entry = public_files().get(name)
    if entry is None:
        raise UserError(f"'{name}' is not a public file: set {key} to its path")
    cached = Path(os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "torch")
    for place in (folder, cached.expanduser() / "hub" / "checkpoints"):
        if (place / entry.file).is_file():
            return place / entry.file
    raise UserError(f"{entry.file} ({entry.what}; {entry.project}) is not in {folder}: put it there or set {key} to it")


def not_weights(path: Path) -> str | None:
    """What a file is that was saved in place of weights, judged by its first bytes; None if it may be weights."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        return "an empty file"
    if head.lstrip()[:1] == b"<":
        return "an HTML page; open its address in a browser and save the file behind it"
    if head.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer; get the file itself with git lfs pull"
    return None


def _download(entry: PublicFile, address: str, path: Path) -> str:
    from rich.console import Console
    from rich.progress import wrap_file

    for left in path.parent.glob(f".{path.name}.*"):  # by a fetch that was killed: a live one holds the lock
        if left.suffix != ".lock":
            left.unlink()
    request = urllib.request.Request(address, headers={"User-Agent": f"mar-bench/{mar_bench.__version__}"})
    with replacing(path) as temporary:
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer, temporary.open("wb") as file:
                length = int(answer.headers.get("Content-Length") or 0)
                with wrap_file(answer, length, description=entry.name, console=Console(stderr=True)) as counted:
                    shutil.copyfileobj(counted, file, MIB)
        except (OSError, HTTPException, ValueError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{entry.name} was not downloaded ({reason}): {_by_hand(entry, path.parent)}") from None
        size = temporary.stat().st_size
        if length and size != length:
            raise UserError(f"{entry.name}: {size} bytes of {length} arrived: {_by_hand(entry, path.parent)}")
        return _verify(entry, temporary, path, address)


def _verify(entry: PublicFile, file: Path, path: Path, address: str | None) -> str:
    """Check ``file``, which is or becomes ``path``, against the catalogue and the recorded SHA-256; record it if new.

    The record of a download is written before the file appears, which could pass for one placed by hand otherwise."""
    size = file.stat().st_size
    wrong = not_weights(file)
    if not wrong and entry.mib is not None and abs(size / MIB / entry.mib - 1) > TOLERANCE:
        wrong = f"{size / MIB:,.1f} MiB, but {entry.published} has {entry.mib:,.1f}"
    if wrong and address:
        raise UserError(f"{entry.name}: {address} returned {wrong}: {_by_hand(entry, path.parent)}")
    if wrong:
        raise UserError(f"{path}: {wrong}; delete it and fetch again")
    sha256, record = sha256_of(file), path.with_name(f"{path.name}.sha256.json")
    recorded = _read_record(record)
    if recorded and sha256 != recorded["sha256"]:
        raise UserError(
            f"{address or path} has sha256 {sha256}, but {recorded['sha256']} was recorded on {recorded.get('date')}: "
            f"delete {record} if the new one is right, else the file if there is one, and fetch again"
        )
    if recorded:
        return f"{'downloaded' if address else 'already there'}, sha256 {sha256} as on {recorded.get('date')}"
    origin = "download" if address else "placed by hand"
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    content = {"url": address, "origin": origin, "sha256": sha256, "bytes": size, "date": now}
    atomic_write(record, json.dumps(content, indent=1) + "\n")
    return f"{'downloaded' if address else origin}, {size / MIB:,.1f} MiB, sha256 {sha256} recorded"


def _read_record(record: Path) -> dict[str, Any] | None:
    """What was recorded when the file was first seen; None if it is new."""
    if not record.exists():
        return None
    with reading(record, "record of a sha256", "delete it, and the next fetch writes a new one"):
        content = json.loads(record.read_text())
        if not isinstance(content["sha256"], str):
            raise ValueError("no sha256")
    return content


def _by_hand(entry: PublicFile, folder: Path) -> str:
    source = f" from {entry.address}" if entry.address else ""
    again = f"mar-bench fetch {entry.name} --weights {shlex.quote(str(folder))}"
    then = entry.then(folder)
    return (
        f"get {entry.published} ({entry.project}){source} by other means, save it as {folder / entry.file}, then run: "
        f"{again}" + (f", and after it: {then}" if then else "")
    )
