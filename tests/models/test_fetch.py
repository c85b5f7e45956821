"""Public files: downloaded whole or not at all, never taken for what they are not. All from a server made here."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from mar_bench.cli import app
from mar_bench.models.pretrained import fetch as module
from mar_bench.models.pretrained.fetch import fetch, listing, public_files
from mar_bench.utils.errors import UserError

CONTENT = bytes(range(256)) * 2048  # half a MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Answers every request with ``content``, in the way that the path asks for."""

    daemon_threads = True
    content = CONTENT
    requests = 0
    pause = 0.0  # seconds between two pieces

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_) -> None:
        """Nothing: stderr belongs to the test."""

    def do_GET(self) -> None:
        server, content = self.server, self.server.content
        server.requests += 1
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/file?dl=1")
            self.end_headers()
            return
        if self.path == "/gone":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/html" if self.path == "/page" else "application/binary")
        if self.path != "/unsized":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        for start in range(0, len(content) // 2 if self.path == "/cut" else len(content), 2**16):
            try:
                self.wfile.write(content[start : start + 2**16])
            except OSError:  # whoever asked has gone
                return
            time.sleep(server.pause)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(module, "CHUNK", 2**16)
    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "weights"


@pytest.fixture
def catalogue(tmp_path, monkeypatch) -> Callable[..., Path]:
    """Writes a catalogue of one file, ``net``, with these fields changed."""

    def write(**fields) -> Path:
        entry = {
            "what": "a network",
            "project": "someone/net",
            "published": "net.ckpt",
            "file": "net.ckpt",
            "mib": 0.5,
            "next": "mar-bench convert kl16 {path} {folder}/net.safetensors",
        }
        path = tmp_path / "files.yaml"
        path.write_text(yaml.safe_dump({"net": {k: v for k, v in {**entry, **fields}.items() if v is not None}}))
        monkeypatch.setattr(module, "CATALOGUE", path)
        return path

    return write


def mistake(*args) -> str:
    with pytest.raises(UserError) as caught:
        fetch(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def left(folder: Path) -> list[str]:
    """All but the lock, which is empty."""
    return [name for name in visible(folder) if name != ".net.ckpt.lock"]


def record(folder: Path) -> dict:
    return json.loads((folder / "net.ckpt.sha256.json").read_text())


# --- the catalogue --------------------------------------------------------------------------------------


def test_the_shipped_catalogue():
    files = public_files()
    assert len({entry.file for entry in files.values()}) == len(files)
    sizes = {name: entry.mib for name, entry in files.items() if entry.address}
    assert sizes == {"kl16": 254, "mar-b": 1587, "mar-l": 3650, "mar-h": 7191}
    for entry in files.values():
        assert entry.address is None or entry.address.startswith("https://www.dropbox.com/scl/fi/")
        assert "{" not in entry.then(Path("weights")) and str(Path("weights", entry.file)) != entry.then(
            Path("weights")
        )
    assert "unverified" in module.CATALOGUE.read_text().splitlines()[0].lower()
    assert files["kl16"].then(Path("a b")) == "mar-bench convert kl16 'a b/kl16.ckpt' 'a b'/kl16.safetensors"


def test_what_comes_next_is_something_that_there_is():
    from mar_bench.models.pretrained.convert import KINDS

    for entry in public_files().values():
        words = entry.then(Path("w")).split()
        assert not words or words[:2] == ["mar-bench", "run"] or words[:2] == ["mar-bench", "convert"]
        if "convert" in words:
            assert words[2] in KINDS and words[3] == f"w/{entry.file}" != words[4]


def test_listing(catalogue, folder):
    catalogue(address="http://127.0.0.1/net")
    assert listing(folder) == [["net", "a network", "0", "yes", "no"]]
    folder.mkdir()
    (folder / "net.ckpt").touch()
    catalogue(mib=None)
    assert listing(folder) == [["net", "a network", "", "no", "yes"]]


@pytest.mark.parametrize("fields", [{"adress": "x"}, {"mib": "big"}])
def test_a_catalogue_is_read_strictly(catalogue, folder, fields):
    catalogue(**fields)
    assert "files.yaml" in mistake("net", folder)


# --- downloads ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ("/file", "/moved", "/unsized"))
def test_a_download_is_whole_and_recorded(server, catalogue, folder, path):
    catalogue(address=server.address + path)
    text = fetch("net", folder)
    assert (folder / "net.ckpt").read_bytes() == CONTENT
    found = record(folder)
    assert found["date"] and (found["origin"], found["url"]) == ("download", server.address + path)
    assert (found["sha256"], found["bytes"]) == (SHA256, len(CONTENT))
    assert left(folder) == ["net.ckpt", "net.ckpt.sha256.json"]
    assert f"next: mar-bench convert kl16 {folder}/net.ckpt {folder}/net.safetensors" in text


def test_a_file_that_is_there_is_compared_and_not_fetched(server, catalogue, folder):
    catalogue(address=f"{server.address}/file")
    fetch("net", folder)
    before = server.requests
    assert "already there" in fetch("net", folder) and server.requests == before
    (folder / "net.ckpt").write_bytes(CONTENT[:-1] + b"x")
    message = mistake("net", folder)
    assert SHA256 in message and "net.ckpt.sha256.json" in message and server.requests == before


def test_a_later_download_is_compared_with_the_first(server, catalogue, folder):
    catalogue(address=f"{server.address}/file")
    fetch("net", folder)
    (folder / "net.ckpt").unlink()
    server.content = CONTENT[::-1]
    message = mistake("net", folder)
    assert "gives now" in message and SHA256 in message and left(folder) == ["net.ckpt.sha256.json"]
    server.content = CONTENT
    assert "downloaded" in fetch("net", folder)


@pytest.mark.parametrize(
    ("path", "content", "hint"),
    [
        ("/page", CONTENT, "an HTML page"),
        ("/file", b"<!doctype html>" + CONTENT, "an HTML page"),
        ("/unsized", b"\n<html>" + CONTENT, "an HTML page"),
        ("/file", CONTENT[: len(CONTENT) * 9 // 10], "0.4 MB, but net.ckpt has 0.5"),
        ("/unsized", CONTENT * 2, "1.0 MB, but net.ckpt has 0.5"),
        ("/unsized", b"", "0 bytes of an unknown number"),
        ("/cut", CONTENT, "262144 bytes of 524288"),
        ("/gone", CONTENT, "404"),
    ],
)
def test_what_is_not_the_file_is_refused(server, catalogue, folder, path, content, hint):
    catalogue(address=server.address + path)
    server.content = content
    message = mistake("net", folder)
    assert hint in message and left(folder) == []
    for way in (server.address + path, f"save it as {folder / 'net.ckpt'}", "mar-bench fetch net --weights", "convert"):
        assert way in message


def test_a_size_within_two_percent_will_do(server, catalogue, folder):
    catalogue(address=f"{server.address}/file", mib=0.507)
    fetch("net", folder)


def test_offline(catalogue, folder):
    catalogue(address="http://127.0.0.1:9/net")  # the port that discards
    message = mistake("net", folder)
    assert "was not downloaded" in message and "refused" in message.lower()
    assert f"get net.ckpt (someone/net) from http://127.0.0.1:9/net by other means, save it as {folder}" in message


def test_two_at_a_time_download_once(server, catalogue, folder, capfd):
    catalogue(address=f"{server.address}/file")
    server.pause = 0.1
    with ThreadPoolExecutor(2) as pool:
        texts = list(pool.map(lambda _: fetch("net", folder), range(2)))
    assert server.requests == 1 and sum("already there" in text for text in texts) == 1
    assert (folder / "net.ckpt").read_bytes() == CONTENT
    assert "another process is fetching net" in capfd.readouterr().err


def test_progress_is_told(server, catalogue, folder, capfd, monkeypatch):
    catalogue(address=f"{server.address}/file")
    clock = iter(range(0, 10**6, 20))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    fetch("net", folder)
    assert "net: 0 MB of 0 MB\n" in capfd.readouterr().err


START = """
import sys, pathlib
from mar_bench import cli
from mar_bench.models.pretrained import fetch
fetch.CATALOGUE, fetch.CHUNK = pathlib.Path(sys.argv.pop(1)), 2**16
cli.main()
"""


@pytest.mark.parametrize("how", (signal.SIGINT, signal.SIGKILL))
def test_a_stop_leaves_no_file(server, catalogue, folder, how):
    file = catalogue(address=f"{server.address}/file")
    server.pause = 1.0
    words = [sys.executable, "-c", START, file, "fetch", "net"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "MAR_BENCH_WEIGHTS": str(folder)}
    process = subprocess.Popen(words, env=env, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 20
    while not any(path.stat().st_size for path in folder.glob(".net.ckpt.*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(how)
    _, error = process.communicate(timeout=20)
    assert process.returncode == (130 if how == signal.SIGINT else -how), error
    assert [name for name in left(folder) if how == signal.SIGINT or not name.startswith(".")] == []
    server.pause = 0.0
    fetch("net", folder)
    assert left(folder) == ["net.ckpt", "net.ckpt.sha256.json"], "what was left is cleared away"


def test_a_full_disk_is_not_called_a_bad_connection(server, catalogue, folder, monkeypatch):
    class Full(module._Progress):
        def __call__(self, size: int) -> None:
            raise OSError(28, "No space left on device", "net.ckpt")

    catalogue(address=f"{server.address}/file")
    monkeypatch.setattr(module, "_Progress", Full)
    with pytest.raises(OSError, match="No space left"):
        fetch("net", folder)
    assert left(folder) == []


# --- files placed by hand -------------------------------------------------------------------------------


def test_without_an_address_it_says_what_to_put_where(catalogue, folder):
    catalogue()
    message = mistake("net", folder)
    for hint in ("no address", "net.ckpt (someone/net)", f"save it as {folder / 'net.ckpt'}", "mar-bench convert kl16"):
        assert hint in message
    assert not folder.exists(), "a mistake leaves nothing behind"


@pytest.mark.parametrize("address", (None, "http://127.0.0.1:9/net"))
def test_a_file_placed_by_hand_is_recorded(catalogue, folder, address):
    catalogue(address=address, next=None)
    folder.mkdir()
    (folder / "net.ckpt").write_bytes(CONTENT)
    assert fetch("net", folder).endswith(f"placed by hand, sha256 {SHA256} recorded")
    assert (record(folder)["origin"], record(folder)["url"], record(folder)["sha256"]) == (
        "placed by hand",
        None,
        SHA256,
    )
    assert "already there" in fetch("net", folder)
    (folder / "net.ckpt").write_bytes(CONTENT[::-1])
    assert "was recorded on" in mistake("net", folder)


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"", "an empty file"),
        (b"<html>" + CONTENT, "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (CONTENT[:-100000], "0.4 MB, but net.ckpt has 0.5"),
    ],
)
def test_a_wrong_file_placed_by_hand_is_not_recorded(catalogue, folder, content, hint):
    catalogue()
    folder.mkdir()
    (folder / "net.ckpt").write_bytes(content)
    assert hint in mistake("net", folder) and left(folder) == ["net.ckpt"]


@pytest.mark.parametrize("text", ("{", "[]", "{}"))
def test_a_broken_record(catalogue, folder, text):
    catalogue()
    folder.mkdir()
    (folder / "net.ckpt").write_bytes(CONTENT)
    (folder / "net.ckpt.sha256.json").write_text(text)
    assert "not a record of a sha256" in mistake("net", folder)


# --- the verb -------------------------------------------------------------------------------------------


def test_the_verb_lists_and_fetches(server, catalogue, folder, monkeypatch):
    catalogue(address=f"{server.address}/file")

    def call(*words: str) -> str:
        result = CliRunner().invoke(app, ["fetch", *words], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    assert "unverified" in call("--weights", str(folder)) and not folder.exists()
    monkeypatch.setenv("MAR_BENCH_WEIGHTS", str(folder))
    assert "downloaded" in call("net") and "next: mar-bench convert" in call("net")
    assert "MAR_BENCH_WEIGHTS" in call("--help")


def test_names(folder):
    assert "did you mean 'mar-l'" in mistake("mar_l", folder)
    assert "did you mean 'kl16'" in mistake("kl16.ckpt", folder)
    assert not folder.exists()
