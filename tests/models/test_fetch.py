"""Public files: downloaded whole or not at all, verified, recorded. The server runs in the test."""

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
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from mar_bench.cli import app
from mar_bench.models.pretrained import fetch as module
from mar_bench.models.pretrained.convert import KINDS
from mar_bench.models.pretrained.fetch import fetch, listing, public_files
from mar_bench.utils.errors import UserError

CONTENT = bytes(range(256)) * 2048  # half a MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()
RECORD = "net.ckpt.sha256.json"


class Server(ThreadingHTTPServer):
    """Answers every request with ``content``, in the way that the path asks for."""

    daemon_threads = True
    content = CONTENT
    requests = 0
    pause = 0.0  # seconds between two pieces


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_) -> None:
        """Keep stderr for the test."""

    def do_GET(self) -> None:
        server, content = self.server, self.server.content
        server.requests += 1
        if self.path == "/gone":
            self.send_error(404)
            return
        self.send_response(200)
        if self.path != "/unsized":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        for start in range(0, len(content) // 2 if self.path == "/cut" else len(content), 2**16):
            try:
                self.wfile.write(content[start : start + 2**16])
            except OSError:  # the client has gone
                return
            time.sleep(server.pause)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "weights"


@pytest.fixture
def catalogue(tmp_path, monkeypatch, request) -> Callable[..., Path]:
    """Writes a catalogue of one file, ``net``, at ``path`` of the server, with these fields changed."""

    def write(path: str | None = None, **fields) -> Path:
        if path is not None:
            fields["address"] = f"http://127.0.0.1:{request.getfixturevalue('server').server_port}{path}"
        entry = {
            "what": "a network",
            **{"project": "someone/net", "published": "net.ckpt", "file": "net.ckpt", "mib": 0.5},
            "next": "mar-bench convert kl16 {path} {folder}/net.safetensors",
        }
        file = tmp_path / "files.yaml"
        file.write_text(yaml.safe_dump({"net": {k: v for k, v in {**entry, **fields}.items() if v is not None}}))
        monkeypatch.setattr(module, "CATALOGUE", file)
        return file

    return write


def mistake(*args) -> str:
    with pytest.raises(UserError) as caught:
        fetch(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def left(folder: Path) -> list[str]:
    """Everything in the folder but the lock, which is empty."""
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    return [name for name in names if name != ".net.ckpt.lock"]


def placed(folder: Path, content: bytes) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "net.ckpt").write_bytes(content)


def recorded(folder: Path) -> dict:
    return json.loads((folder / RECORD).read_text())


# --- the catalogue --------------------------------------------------------------------------------------


def test_shipped_catalogue():
    files, weights = public_files(), Path("a b")
    assert len({entry.file for entry in files.values()}) == len(files)
    assert {name for name, entry in files.items() if entry.address} == {"kl16", "mar-b", "mar-l", "mar-h"}
    for entry in files.values():
        assert entry.address is None or entry.address.startswith("https://www.dropbox.com/scl/fi/")
        words = entry.then(Path("w")).split()
        assert not words or words[:2] in (["mar-bench", "run"], ["mar-bench", "convert"])
        assert "convert" not in words or (words[2] in KINDS and words[3] == f"w/{entry.file}" != words[4])
    assert files["kl16"].then(weights) == "mar-bench convert kl16 'a b/kl16.ckpt' 'a b'/kl16.safetensors"


def test_unknown_names_get_a_hint(folder):
    assert "did you mean 'mar-l'" in mistake("mar_l", folder)
    assert not folder.exists()


# --- downloads ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ("/file", "/unsized"))
def test_download_is_whole_and_recorded(catalogue, folder, path):
    catalogue(path, mib=0.507)  # sizes of the catalogue are rounded
    text = fetch("net", folder)
    assert (folder / "net.ckpt").read_bytes() == CONTENT and left(folder) == ["net.ckpt", RECORD]
    found = recorded(folder)
    assert found["date"] and found["origin"] == "download" and found["url"].endswith(path)
    assert (found["sha256"], found["bytes"]) == (SHA256, len(CONTENT))
    assert f"next: mar-bench convert kl16 {folder}/net.ckpt {folder}/net.safetensors" in text


def test_later_files_are_compared_with_the_first(server, catalogue, folder):
    catalogue("/file")
    fetch("net", folder)
    assert "already there" in fetch("net", folder) and server.requests == 1
    placed(folder, CONTENT[:-1] + b"x")
    message = mistake("net", folder)
    assert SHA256 in message and RECORD in message and server.requests == 1
    (folder / "net.ckpt").unlink()
    server.content = CONTENT[::-1]
    assert SHA256 in mistake("net", folder) and left(folder) == [RECORD]
    server.content = CONTENT
    assert "download" in fetch("net", folder)


@pytest.mark.parametrize(
    ("path", "content", "hint"),
    [
        ("/file", b"<!doctype html>" + CONTENT, "an HTML page"),
        ("/file", CONTENT[: len(CONTENT) * 9 // 10], "0.4 MiB, but net.ckpt has 0.5"),
        ("/unsized", b"", "0.0 MiB, but net.ckpt has 0.5"),
        ("/cut", CONTENT, "262144 bytes of 524288"),
        ("/gone", CONTENT, "404"),
    ],
)
def test_wrong_download_is_refused(server, catalogue, folder, path, content, hint):
    catalogue(path)
    server.content = content
    message = mistake("net", folder)
    assert left(folder) == []
    for word in (hint, path, f"as {folder / 'net.ckpt'}", "mar-bench fetch net --weights"):
        assert word in message


def test_two_processes_download_once(server, catalogue, folder, capfd):
    catalogue("/file")
    server.pause = 0.1
    with ThreadPoolExecutor(2) as pool:
        texts = list(pool.map(lambda _: fetch("net", folder), range(2)))
    assert server.requests == 1 and sum("already there" in text for text in texts) == 1
    assert "another process is fetching net" in capfd.readouterr().err


START = """
import sys, pathlib
from mar_bench import cli
from mar_bench.models.pretrained import fetch
fetch.CATALOGUE, fetch.MIB = pathlib.Path(sys.argv.pop(1)), 2**16
cli.main()
"""


@pytest.mark.parametrize("how", (signal.SIGINT, signal.SIGKILL))
def test_interrupted_download_leaves_no_file(server, catalogue, folder, how):
    file = catalogue("/file", mib=None)
    server.pause = 1.0
    words = [sys.executable, "-c", START, file, "fetch", "net"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "MAR_BENCH_WEIGHTS": str(folder)}
    # a shell's background jobs, and so these tests, may ignore SIGINT
    default = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(words, env=env, stderr=subprocess.PIPE, preexec_fn=default)
    deadline = time.monotonic() + 20
    while not any(path.stat().st_size for path in folder.glob(".net.ckpt.*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(how)
    _, error = process.communicate(timeout=20)
    assert process.returncode == (130 if how == signal.SIGINT else -how), error
    assert not [name for name in left(folder) if how == signal.SIGINT or not name.startswith(".")]
    server.pause = 0.0
    fetch("net", folder)
    assert left(folder) == ["net.ckpt", RECORD], "the partial file of the killed process is removed"
    assert (folder / ".net.ckpt.lock").exists()


# --- files placed by hand -------------------------------------------------------------------------------


def test_without_an_address_the_message_says_what_to_put_where(catalogue, folder):
    catalogue()
    message = mistake("net", folder)
    for hint in ("no address", "net.ckpt (someone/net)", f"as {folder / 'net.ckpt'}", "mar-bench fetch net"):
        assert hint in message
    assert not folder.exists()


@pytest.mark.parametrize("address", (None, "http://127.0.0.1:9/net"))
def test_file_placed_by_hand_is_recorded(catalogue, folder, address):
    catalogue(address=address, next=None)
    placed(folder, CONTENT)
    fetch("net", folder)
    found = recorded(folder)
    assert (found["origin"], found["url"], found["sha256"]) == ("placed by hand", None, SHA256)
    assert "already there" in fetch("net", folder)
    placed(folder, CONTENT[::-1])
    assert "was recorded on" in mistake("net", folder)
    for text in ("{", "[]", "{}"):
        (folder / RECORD).write_text(text)
        assert str(folder / RECORD) in mistake("net", folder)


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"", "0.0 MiB, but"),
        (b"<html>" + CONTENT, "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1", "a git-lfs pointer"),
    ],
)
def test_wrong_file_placed_by_hand_is_not_recorded(catalogue, folder, content, hint):
    catalogue(mib=None)
    placed(folder, content)
    assert hint in mistake("net", folder) and left(folder) == ["net.ckpt"]


def test_command_lists_and_fetches(catalogue, folder, monkeypatch):
    catalogue("/file")

    def call(*words: str) -> str:
        result = CliRunner().invoke(app, ["fetch", *words], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    assert listing(folder) == [["net", "a network", "0", "yes", "no"]]
    assert "unverified" in call("--weights", str(folder)) and not folder.exists()
    monkeypatch.setenv("MAR_BENCH_WEIGHTS", str(folder))
    assert "download" in call("net")
