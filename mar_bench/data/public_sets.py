"""Public data sets that `mar-bench fetch` knows, from Debian's package or the official address, checked by SHA-256."""

from __future__ import annotations

import gzip
import hashlib
import shlex
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from mar_bench.models.pretrained.fetch import TIMEOUT
from mar_bench.utils.errors import UserError
from mar_bench.utils.files import replacing, with_folder
from mar_bench.utils.locks import held


@dataclass(frozen=True)
class PublicSet:
    """``files`` maps names to the SHA-256 of their content, unpacked: another packing of it is as good."""

    name: str
    what: str
    mib: float
    package: str  # of Debian
    inside: str  # where the package has the files
    address: str  # to which a file's name is added
    files: dict[str, str]
    next: str


FASHION = PublicSet(
    name="fashion-mnist",
    what="Fashion-MNIST, 70,000 images of 28 x 28 pixels",
    mib=29.5,
    package="dataset-fashion-mnist",
    inside="usr/share/datasets/fashion-mnist",
    address="https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",  # unverified
    # of Debian's package; with the headers that its packing left out, all four have the MD5 of the official README
    files={
        "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
    next="mar-bench run table1 --scale fashion",
)
PUBLIC_SETS = {FASHION.name: FASHION}


def listing(folder: Path) -> list[list[str]]:
    """One row per set, as the listing of public files."""

    def here(each: PublicSet) -> bool:
        return all((folder / each.name / file).is_file() for file in each.files)

    every = PUBLIC_SETS.values()
    return [[each.name, each.what, f"{each.mib:,.0f}", "yes", "yes" if here(each) else "no"] for each in every]


def fetch_set(name: str, folder: Path) -> str:
    """Make sure that a set's files are in ``folder/<name>``, and intact; returns a report with the command to use them.

    Debian's package is tried first where there is apt-get, then the address. Raises UserError if neither gives them,
    and for files of another content."""
    wanted, target = PUBLIC_SETS[name], folder / name
    with held(with_folder(folder / f".{name}.lock")):
        how = "already there"
        if not all((target / file).is_file() for file in wanted.files):
            failures = []
            for source in (_from_debian, _from_address):
                try:
                    how = source(wanted, target)
                    break
                except (OSError, HTTPException, ValueError) as error:
                    failures.append(" ".join(str(error).split()) or type(error).__name__)
            else:
                files = f"put {', '.join(wanted.files)} into {target}"
                raise UserError(f"{name} was not downloaded ({'; '.join(failures)}): {files}, from {wanted.address}")
        for file, sha256 in wanted.files.items():
            _check(
                target / file,
                sha256,
                f"delete it, then run: mar-bench fetch {name} --weights {shlex.quote(str(folder))}",
            )
    verified = f"{target}: {how}, {len(wanted.files)} files with the published SHA-256"
    return f"{verified}\nnext: {wanted.next} {shlex.quote(f'data.root={target}')}"


def _from_debian(wanted: PublicSet, target: Path) -> str:
    """Download and unpack Debian's package; nothing is installed, and root is not needed."""
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise ValueError(f"no {program} here for Debian's {wanted.package}")
    with tempfile.TemporaryDirectory() as scratch:
        _call(["apt-get", "download", wanted.package], scratch)
        (package,) = Path(scratch).glob("*.deb")
        _call(["dpkg-deb", "--extract", package.name, "."], scratch)
        return _place(
            wanted, target, lambda file, path: shutil.copy(Path(scratch, wanted.inside, file), path), package.name
        )


def _call(command: list[str], folder: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:] or ["no message"]
        raise ValueError(f"{' '.join(command)}: {last[0].strip()}")


def _from_address(wanted: PublicSet, target: Path) -> str:
    def download(file: str, path: Path) -> None:
        print(f"downloading {wanted.address}{file}", file=sys.stderr, flush=True)
        request = urllib.request.Request(wanted.address + file, headers={"User-Agent": "mar-bench"})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer, path.open("wb") as out:
            shutil.copyfileobj(answer, out)

    return _place(wanted, target, download, wanted.address)


def _place(wanted: PublicSet, target: Path, get: Callable[[str, Path], object], source: str) -> str:
    """Put each missing file into ``target`` once its content is checked."""
    target.mkdir(exist_ok=True)
    for file, sha256 in wanted.files.items():
        if not (target / file).is_file():
            with replacing(target / file) as temporary:
                get(file, temporary)
                _check(temporary, sha256, f"it came as {file} from {source}: get the files elsewhere")
    return f"from {source}"


def _check(path: Path, sha256: str, hint: str) -> None:
    digest = hashlib.sha256()
    try:
        with gzip.open(path) as file:
            while block := file.read(2**20):
                digest.update(block)
        wrong = digest.hexdigest() != sha256
    except (EOFError, zlib.error, gzip.BadGzipFile):
        wrong = True
    if wrong:
        raise UserError(f"{path}: its content is not the published one (sha256 {sha256}, unpacked); {hint}")
