"""Fetching a public data set: from Debian's package, from an address, or not at all."""

from __future__ import annotations

import gzip
import hashlib
import os
from pathlib import Path

import pytest

from mar_bench.data import public_sets
from mar_bench.data.public_sets import PUBLIC_SETS, PublicSet, fetch_set
from tests.measuring import refusal, says

CONTENT = {"a.gz": b"images" * 999, "b.gz": b"labels"}
APT = '#!/bin/sh\n[ -e "{folder}" ] || {{ echo "E: Unable to locate package sets" >&2; exit 100; }}\n: > sets_1.deb\n'
DPKG = '#!/bin/sh\nmkdir -p usr/share && cp -r "{folder}" usr/share/sets\n'


@pytest.fixture
def published(tmp_path, monkeypatch) -> tuple[Path, Path]:
    """Folders that stand for Debian's package and for the address; the programs are found in an own PATH."""
    debian, web, programs = (tmp_path / name for name in ("debian", "web", "programs"))
    programs.mkdir()
    for name, script in (("apt-get", APT), ("dpkg-deb", DPKG)):
        (programs / name).write_text(script.format(folder=debian))
        (programs / name).chmod(0o755)
    files = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}
    one = PublicSet("sets", "sets", 1, "sets", "usr/share/sets", f"{web.as_uri()}/", files, "mar-bench run x")
    monkeypatch.setattr(public_sets, "PUBLIC_SETS", {"sets": one})
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return debian, web


def filled(folder: Path, level: int) -> None:
    folder.mkdir()
    for name, content in CONTENT.items():
        (folder / name).write_bytes(gzip.compress(content, level))


def test_any_packing_of_the_content_is_taken_and_damage_is_not(published, tmp_path):
    debian, web = published
    target = tmp_path / "w/sets"
    message = refusal(fetch_set, "sets", tmp_path / "w")
    assert says(message, "Unable to locate package sets", f"put a.gz, b.gz into {target}", web)
    assert not list(target.iterdir())
    filled(debian, 1)
    report = fetch_set("sets", tmp_path / "w")
    assert says(report, "from sets_1.deb", f"mar-bench run x data.root={target}")
    assert "already there" in fetch_set("sets", tmp_path / "w")
    for path in debian.iterdir():
        path.unlink()
    debian.rmdir()
    (target / "a.gz").unlink()
    filled(web, 9)
    assert f"from {web.as_uri()}" in fetch_set("sets", tmp_path / "w")
    (target / "b.gz").write_bytes(gzip.compress(b"others"))
    assert says(refusal(fetch_set, "sets", tmp_path / "w"), target / "b.gz", "delete it", "mar-bench fetch sets")
    (target / "b.gz").unlink()
    (web / "b.gz").write_bytes(gzip.compress(CONTENT["b.gz"])[:-9])
    assert says(refusal(fetch_set, "sets", tmp_path / "w"), "b.gz", "not the published one", web.as_uri())
    assert sorted(path.name for path in target.iterdir()) == ["a.gz"]


def test_the_shipped_set_has_the_names_that_are_read():
    assert PUBLIC_SETS["fashion-mnist"].files.keys() == {
        f"{part}-{what}-ubyte.gz" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1")
    }
