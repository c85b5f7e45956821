"""Public weight files: the catalogue, the download, and a check that files have not changed since."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import urllib.request
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache, partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

from mar_bench.config.yaml_layers import load_yaml
from mar_bench.utils.errors import UserError, did_you_mean
from mar_bench.utils.files import (
    atomic_write,
    expanded,
    path_variable,
    reading,
    replacing,
    sha256_of,
    with_folder,
)
from mar_bench.utils.locks import held

CATALOGUE = Path(__file__).with_name("public_files.yaml")
MIB = 2**20
TOLERANCE = 0.02  # relative: sizes in the catalogue are rounded
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

    def by_hand(self, folder: Path) -> str:
        """Instructions, for messages, to get the file without a download."""
        source = f"{self.published} ({self.project}){f' from {self.address}' if self.address else ''}"
        again = f"mar-bench fetch {self.name} --weights {shlex.quote(str(folder))}"
        return f"save {source} as {folder / self.file}, then run: {again}"


def public_files() -> dict[str, PublicFile]:
    """The catalogue by name."""
    return {name: PublicFile(name, **block) for name, block in load_yaml(CATALOGUE).items()}


def listing(folder: Path) -> list[list[str]]:
    """One row per public file: name, description, MiB, whether it has an address, whether it is in ``folder``."""
    yes = {True: "yes", False: "no"}
    return [
        [e.name, e.what, f"{e.mib:,.0f}" if e.mib else "", yes[e.address is not None], yes[(folder / e.file).is_file()]]
        for e in public_files().values()
    ]


def fetch(name: str, folder: Path) -> str:
    """Make sure that a public file is in ``folder``, downloading it if it has an address; returns a report.

    Its SHA-256 is recorded beside it the first time and compared from then on. Raises UserError for an unknown name,
    a failed download, and a file of the wrong content."""
    files = public_files()
    if name not in files:
        raise UserError(f"no public file '{name}', {did_you_mean(name, files)}")
    entry, path = files[name], folder / files[name].file
    if entry.address is None and not path.is_file():
        raise UserError(f"{name} has no address here: {entry.by_hand(folder)}")
    say_once = cache(partial(print, f"another process is fetching {name}: waiting for it", file=sys.stderr, flush=True))
    with held(with_folder(folder / f".{entry.file}.lock"), waiting=say_once):
        if path.is_file():
            done = _verify(entry, path, path)
        else:
            for left in folder.glob(f".{path.name}.*"):  # left by a killed fetch: a live one holds the lock
                if left.suffix != ".lock":
                    left.unlink()
            with replacing(path) as temporary:
                _download(entry, temporary, folder)
                done = _verify(entry, temporary, path)  # first: without a record it counts as placed by hand
    return f"{path}: {done}" + (f"\nnext: {entry.then(folder)}" if entry.next else "")


def weights_folder() -> Path:
    """The folder of public files where no command names another."""
    return Path(path_variable("MAR_BENCH_WEIGHTS") or "weights")


def located(name: str, given: str | None, key: str, folder: Path | None = None) -> Path:
    """Path of a public file: ``given`` under the key ``key``, else in the weights folder or torch's download cache.

    Raises UserError if it is in none of them; nothing is downloaded here."""
    if given is not None and not Path(given).is_file():
        raise UserError(f"{key} {given}: no such file")
    if given is not None:
        return Path(given)
    folder = folder or weights_folder()
    entry = public_files().get(name)
    if entry is None:
        raise UserError(f"'{name}' is not a public file: set {key} to its path")
    caches = path_variable("XDG_CACHE_HOME") or expanded("~/.cache", "HOME")
    for place in (folder, Path(path_variable("TORCH_HOME") or f"{caches}/torch", "hub/checkpoints")):
        if (place / entry.file).is_file():
            return place / entry.file
    raise UserError(f"{entry.file} ({entry.what}; {entry.project}) is not in {folder}: put it there or set {key} to it")


def converted(weights: Path) -> dict[str, Any]:
    """The manifest that mar-bench convert wrote beside a file of weights; empty without one.

    Raises UserError if the file is not the one that it describes."""
    if not (path := weights.with_suffix(".json")).is_file():
        return {}
    with reading(path, "manifest of mar-bench convert", "move it elsewhere"):
        manifest = json.loads(path.read_text())
        written = manifest["target"]["sha256"]
    if sha256_of(weights) != written:
        raise UserError(f"{weights}: damaged: its sha256 is not the one in {path}; convert the published file again")
    return manifest


def _download(entry: PublicFile, target: Path, folder: Path) -> None:
    from rich.console import Console
    from rich.progress import wrap_file

    request = urllib.request.Request(entry.address or "", headers={"User-Agent": "mar-bench"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer, target.open("wb") as file:
            length = int(answer.headers.get("Content-Length") or 0)
            with wrap_file(answer, length, description=entry.name, console=Console(stderr=True)) as counted:
                shutil.copyfileobj(counted, file, MIB)
            if length and file.tell() != length:
                raise ValueError(f"{file.tell()} bytes of {length} arrived")
    except (OSError, HTTPException, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{entry.name} was not downloaded ({reason}): {entry.by_hand(folder)}") from None


def _verify(entry: PublicFile, file: Path, path: Path) -> str:
    """Check ``file``, which is or becomes ``path``, by the catalogue and the recorded SHA-256; record a new one."""
    origin, size, sha256 = "placed by hand" if file == path else "download", file.stat().st_size, sha256_of(file)
    wrong = None
    if not size or (entry.mib is not None and abs(size / MIB / entry.mib - 1) > TOLERANCE):
        wrong = f"{size / MIB:,.1f} MiB, but {entry.published} has {entry.mib or 'more'}"
    with file.open("rb") as opened:
        if opened.read(64).lstrip().startswith((b"<", b"version https://git-lfs")):
            wrong = "an HTML page or a git-lfs pointer"
    if wrong:
        raise UserError(f"{path} ({origin}): {wrong}; {entry.by_hand(path.parent)}")
    record = path.with_name(f"{path.name}.sha256.json")
    if not record.exists():
        url, now = entry.address if file != path else None, datetime.now(timezone.utc).isoformat(timespec="seconds")
        content = {"url": url, "origin": origin, "sha256": sha256, "bytes": size, "date": now}
        atomic_write(record, json.dumps(content, indent=1) + "\n")
        return f"{origin}, {size / MIB:,.1f} MiB, sha256 {sha256} recorded"
    with reading(record, "record of a sha256", "delete it, and the next fetch writes a new one"):
        first, date = (json.loads(record.read_text())[key] for key in ("sha256", "date"))
    if sha256 != first:
        advice = f"delete {record} if the new file is right, otherwise the file (if it is there), and fetch again"
        raise UserError(f"{path} ({origin}) has sha256 {sha256}, but {first} was recorded on {date}: {advice}")
    return f"{origin if file != path else 'already there'}, sha256 {sha256} as on {date}"
