"""Serve the page of a scale to this machine's browser, made again when records arrive."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from mar_bench.pipeline.progress import states
from mar_bench.pipeline.store import Places
from mar_bench.utils.errors import UserError

LOOPBACK = "127.0.0.1"
LOOK_SECONDS = 5  # between two looks at the folder of records


class PageServer(ThreadingHTTPServer):
    """Serves ``/`` (the page), ``/state`` (its version and what runs) and ``/records/<id>.json`` on the loopback
    device.

    ``make`` returns the page; it is called in a thread when the folder of records has changed, and the last page is
    served meanwhile. Port 0 takes a free one."""

    daemon_threads = True

    def __init__(self, port: int, places: Places, make: Callable[[], str]):
        self.places, self.make = places, make
        self.seen, self.page, self.version = _names(places.records), make(), 0
        super().__init__((LOOPBACK, port), _Handler)
        threading.Thread(target=self._watch, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://{LOOPBACK}:{self.server_address[1]}/"

    def _watch(self) -> None:
        while True:
            time.sleep(LOOK_SECONDS)
            if (names := _names(self.places.records)) != self.seen:
                self.seen = names
                with suppress(UserError):  # a record may be damaged; the last page stays
                    self.page = self.make()
                    self.version += 1


class _Handler(BaseHTTPRequestHandler):
    server: PageServer

    def do_GET(self) -> None:
        port = self.server.server_address[1]
        if self.headers.get("Host") not in (f"{LOOPBACK}:{port}", f"localhost:{port}"):  # a name that another site owns
            self.send_error(403)
        elif self.path == "/":
            self._send("text/html", self.server.page)
        elif self.path == "/state":
            state = {"version": self.server.version, "runs": states(self.server.places.runs)}
            self._send("application/json", json.dumps(state))
        elif (file := self.server.places.records / Path(self.path).name).name in self.server.seen:
            self._send("application/json", file.read_text())
        else:
            self.send_error(404)

    def _send(self, kind: str, text: str) -> None:
        content = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        with suppress(ConnectionError):
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """Quiet: a page asks every few seconds."""


def _names(folder: Path) -> dict[str, int]:
    """The records of a folder with the time of their last change."""
    found = {}
    for path in folder.glob("*.json"):
        with suppress(OSError):
            found[path.name] = path.stat().st_mtime_ns
    return found
