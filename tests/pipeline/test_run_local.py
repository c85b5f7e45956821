"""The scheduler's choices and the reports; with real workers in test_smoke.py."""

from __future__ import annotations

import re
from multiprocessing import Pipe
from types import SimpleNamespace

import pytest

from mar_bench.pipeline import progress, run_local
from mar_bench.pipeline.graph import Job
from mar_bench.pipeline.progress import Report, duration, states
from mar_bench.pipeline.run_local import _ready, _urgency, cause
from mar_bench.pipeline.store import Places
from mar_bench.utils.errors import DiskError


def job(name: str, *needs: str, kind: str = "train", cost: float = 1.0) -> Job:
    spec = SimpleNamespace(train=SimpleNamespace(seed=0, batch_size=2048), sampling=SimpleNamespace(seed=0))
    return Job(kind, name, SimpleNamespace(row=f"{name}/x", spec=spec), needs, cost)


def test_the_longest_chain_goes_first():
    jobs = [job("short", cost=3), job("long", cost=2), job("behind", "long", cost=9)]
    urgency = _urgency(jobs)
    assert urgency == {"short": 3, "long": 11, "behind": 9}
    assert [j.id for j in _ready({j.id: j for j in jobs}, [], urgency)] == ["long", "short"]


def test_jobs_wait_for_what_they_need_and_speed_is_measured_alone_and_last():
    before, behind, speed, next_speed = job("b"), job("a", "b"), job("s", kind="speed"), job("t", kind="speed")
    urgency = dict.fromkeys("abst", 1.0)
    assert _ready({"a": behind}, [before], urgency) == []
    assert _ready({"a": behind, "s": speed}, [], urgency) == [behind]
    assert _ready({"s": speed}, [behind], urgency) == []
    assert _ready({"s": speed, "t": next_speed}, [], urgency) == [speed]
    assert _ready({"t": next_speed}, [speed], urgency) == []


def test_a_worker_that_cannot_write_stops_the_run_and_fails_no_row(tmp_path, monkeypatch):
    def spawn(places, workers):
        mine, theirs = Pipe()
        theirs.send(("halted", "/runs/x: cannot be written"))
        workers[mine] = SimpleNamespace(is_alive=lambda: False, join=lambda *a: None, kill=lambda: None, pipe=theirs)
        return mine

    monkeypatch.setattr(run_local, "_spawn", spawn)
    report = Report(jobs := [job("a"), job("b")], Places(tmp_path, tmp_path), num_workers=1)
    with pytest.raises(DiskError, match="^/runs/x: cannot be written$"):
        run_local.run_jobs(jobs, report.places, 1, report)
    assert not report.outcome.failed and not list(tmp_path.iterdir())


def test_the_cause_of_death_has_a_name():
    assert cause(-9) == "SIGKILL: out of memory?" and cause(-11) == "SIGSEGV" and cause(1) == "exit code 1"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (200, "3 min 20 s"), (725, "12 min"), (7500, "2 h 05 min")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


@pytest.fixture
def clock(monkeypatch):
    """Sets the time."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, seconds)


def test_time_left_follows_the_clock(clock, tmp_path):
    a, b, c = jobs = [job("a", cost=100), job("b", cost=100), job("c", cost=50, kind="speed")]
    report = Report(jobs, Places(tmp_path, tmp_path), num_workers=2)
    assert report.seconds_left() == pytest.approx(150)  # two side by side, then the speed alone
    report.started(a)
    report.started(b)
    clock(1000)  # ten times slower than planned
    report.done(a)
    report.progress(b, 99, 100)
    assert 300 < report.seconds_left() < 900


def test_the_log_says_what_runs_how_far_and_how_long(clock, capsys, tmp_path):
    a, b, c = jobs = [job("a", cost=100), job("b"), job("c", "b")]
    report = Report(jobs, Places(tmp_path, tmp_path), num_workers=1)
    report.started(a)
    report.progress(a, 20, 100)
    for seconds in (5, 16, 17):
        clock(seconds)
        report.progress(a, 20 + seconds, 100, 0.123456)
        report.tick()
    report.done(a)
    report.started(b)
    report.failed(b, "ValueError: broken\nTraceback ...")
    lines = capsys.readouterr().out.splitlines()
    told = "train a seed 0 36/100, 73,728 images at 2,048/s, loss 0.1235"
    assert re.fullmatch(rf"\[  0:16\] 0/3, about .* left; {told}", lines[-3])
    assert states(tmp_path) == [[lines[-3][9:].split("; ")[0], told]]
    report.close()
    assert not states(tmp_path)
    assert lines[-2] == "[  0:17] done   train a seed 0, 17 s (1/3)"
    assert lines[-1] == "[  0:17] FAILED train b seed 0: ValueError: broken"
    assert not report.pending and report.outcome.done == 1 and report.outcome.failed.keys() == {"b"}
