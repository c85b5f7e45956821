"""A user of the private cluster: the command line in a folder, and what the tests read there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import yaml

from mar_bench.cluster.status import look
from mar_bench.pipeline.store import Places
from tests.slurm.conftest import Cluster

RUN = """
model: {order: random, backbone: "${parts.backbone.masked}", head: "${parts.head.diffusion}"}
tokenizer: ${parts.tokenizer.default}
train: {lr_schedule: "${parts.lr_schedule.diffusion}"}
sampling: {num_ar_steps: "${parts.few_steps}"}
"""
TABLE1 = ["table1", "--scale", "smoke"]


@dataclass
class Lab:
    """``folder`` holds runs, records and reports."""

    cluster: Cluster
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        places = {f"MAR_BENCH_{name.upper()}": str(self.folder / name) for name in ("runs", "records", "reports")}
        self.environment = {**self.cluster.environment, **places, **self.environment, "OMP_NUM_THREADS": "1"}
        # speed waits for other work of this user on this machine, but must not wait for other tests
        self.environment["MAR_BENCH_LOCKS"] = str(self.folder / "locks")

    def __call__(self, *words: str, code: int = 0) -> str:
        """What ``mar-bench`` prints; both streams if it is expected to fail."""
        command = [sys.executable, "-m", "mar_bench", *words]
        done = subprocess.run(
            command, env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == code, f"{' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + (done.stderr if code else "")

    def submit(self, *words: str, cluster: str | Path = "local", code: int = 0) -> str:
        return self("submit", *words, "--cluster", str(cluster), code=code)

    def profile(self, **changes: object) -> Path:
        """The local profile with changes, as a file; ``stages`` and ``job`` are merged."""
        tree = yaml.safe_load((Path(__file__).parents[2] / "slurm/clusters/local.yaml").read_text())
        for key, value in changes.items():
            tree[key] = {**tree[key], **value} if isinstance(value, dict) else value
        path = self.folder / f"profile{len(list(self.folder.glob('profile*')))}.yaml"
        path.write_text(yaml.safe_dump(tree))
        return path

    def experiment(self, name: str, rows: dict[str, dict]) -> Path:
        """A file with a row for each of these changes of the spec."""
        tree = {
            "id": name,
            "base": "imagenet256",
            "run": yaml.safe_load(RUN),
            "axes": {"change": {row: {"label": {"change": row}, "set": change} for row, change in rows.items()}},
            "layout": {"rows": ["change"], "columns": [], "metrics": ["fd"]},
        }
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(tree, sort_keys=False))
        return path

    def status(self) -> list[dict]:
        """What ``mar-bench status --json`` prints; read in this process, since starting one per look slows the jobs."""
        with mock.patch.dict(os.environ, self.environment, clear=True):
            return [vars(line) for line in look(Places(self.folder / "runs", self.folder / "records"), [])]

    def lines(self) -> dict[str, dict]:
        """Lines of generation rows by name."""
        return {line["row"]: line for line in self.status() if line["task"] == "generation"}

    def until(self, what: Callable[[], object], seconds: float) -> object:
        """Wait until ``what`` is true, and return it."""
        end = time.monotonic() + seconds
        while not (found := what()):
            assert time.monotonic() < end, f"not within {seconds} s:\n{self('status')}\n{self.cluster.run('squeue')}"
            time.sleep(0.3)
        return found

    def wait(self, seconds: float = 180) -> None:
        """Wait until nothing is queued or running."""
        self.until(lambda: not any(line["live"] for line in self.status()), seconds)

    def records(self) -> dict[str, dict]:
        return {path.stem: json.loads(path.read_text()) for path in (self.folder / "records").glob("*.json")}

    def notes(self) -> list[dict]:
        """The status files of all jobs."""
        return [json.loads(path.read_text()) for path in (self.folder / "runs").glob("submissions/*/jobs/*.json")]

    def process(self, job: str) -> int:
        """The pid of a job's first process."""
        return next(note["pid"] for note in self.notes() if note["job"] == job)

    def history(self) -> list[dict]:
        """The stage events of all jobs."""
        return [event for note in self.notes() for event in note["history"]]


def measured(records: dict[str, dict]) -> dict[str, tuple]:
    """Records without when, where and how fast they were made."""
    return {
        i: (r["status"], r["metrics"], r["uncertainty"], r["protocol"], {**r["training"], "seconds": None})
        for i, r in records.items()
        if r["task"] != "speed"
    }
