"""Locks between processes (exclusive, shared, freed when the holder dies) and claims between starts of a job."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from mar_bench.utils import locks
from mar_bench.utils.errors import Superseded
from mar_bench.utils.locks import Claim, held

HOLD = """
import sys
from pathlib import Path
from mar_bench.utils.locks import held
with held(Path(sys.argv[1]), shared=sys.argv[2] == "shared"):
    print("held", flush=True)
    sys.stdin.read()
"""
COUNT = """
import sys
from pathlib import Path
from mar_bench.utils import locks
locks.POLL_SECONDS = 0.001
lock, counter = Path(sys.argv[1]), Path(sys.argv[2])
for _ in range(200):
    with locks.held(lock):
        counter.write_text(str(int(counter.read_text()) + 1))
"""


class Busy(Exception):
    pass


def give_up() -> None:
    raise Busy


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(locks, "POLL_SECONDS", 0.005)


@contextmanager
def another_process(lock: Path, mode: str = "exclusive"):
    """A process that holds the lock until its stdin is closed."""
    words = [sys.executable, "-c", HOLD, str(lock), mode]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def is_free(lock: Path, shared: bool = False) -> bool:
    try:
        with held(lock, shared, waiting=give_up):
            return True
    except Busy:
        return False


@pytest.mark.parametrize(
    ("theirs", "ours", "free"),
    [("exclusive", False, False), ("exclusive", True, False), ("shared", False, False), ("shared", True, True)],
)
def test_shared_and_exclusive_holders(theirs, ours, free, tmp_path):
    lock = tmp_path / "deep/a.lock"
    with another_process(lock, theirs):
        assert is_free(lock, shared=ours) is free
        assert is_free(tmp_path / "deep/other.lock")
    assert is_free(lock)


def test_a_killed_holder_frees_the_lock(tmp_path):
    with another_process(tmp_path / "a.lock") as process:
        process.kill()
        process.wait()
        assert is_free(tmp_path / "a.lock")


def test_waiting_ends_when_the_holder_is_done(tmp_path):
    waits = []
    with another_process(tmp_path / "a.lock") as process:

        def waiting() -> None:
            waits.append(time.monotonic())
            if len(waits) == 3:
                process.stdin.close()

        with held(tmp_path / "a.lock", waiting=waiting):
            assert process.wait(5) == 0
    assert len(waits) >= 3


def test_an_exception_inside_frees_the_lock(tmp_path):
    with pytest.raises(Busy), held(tmp_path / "a.lock"):
        raise Busy
    assert is_free(tmp_path / "a.lock")


def test_two_processes_never_hold_the_lock_together(tmp_path):
    (tmp_path / "count").write_text("0")
    words = [sys.executable, "-c", COUNT, str(tmp_path / "a.lock"), str(tmp_path / "count")]
    both = [subprocess.Popen(words) for _ in range(2)]
    assert [process.wait(30) for process in both] == [0, 0]
    assert (tmp_path / "count").read_text() == "400"


def test_a_speed_measurement_has_the_machine_to_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(locks.tempfile, "gettempdir", lambda: str(tmp_path))
    work, speed = True, False
    for mine, other, free in ((work, work, True), (work, speed, False), (speed, work, False), (speed, speed, False)):
        with locks.machine(mine):
            try:
                with locks.machine(other, waiting=give_up):
                    assert free
            except Busy:
                assert not free


# --- claims ---------------------------------------------------------------------------------------------


@pytest.fixture
def claim(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "CLAIM_SECONDS", 0.0)
    return lambda job="a job", restart=0: Claim(tmp_path / "deep/stage.claim", job, restart)


def leaves(act) -> bool:
    try:
        act()
    except Superseded:
        return True
    return False


def test_an_older_start_leaves_when_a_newer_one_takes_over(claim):
    old, new = claim(), claim(restart=1)
    old.fence()
    old.take()
    assert not leaves(old.check)
    new.fence()  # before it has the lock, which the old one still holds
    assert leaves(old.check) and leaves(old.fence)
    new.take()
    assert not leaves(new.check) and not leaves(new.fence)


def test_a_fence_concerns_starts_of_the_same_job_only(claim):
    claim("another").take()
    claim("a job", 5).fence()
    assert not leaves(claim("another").check), "it has the lock, and goes on"
    claim("a job", 5).take()
    assert not leaves(claim("another").check), "its count of starts is another"


@pytest.mark.parametrize("text", ["", "null", '["a job"]', '["a job", "x"]'])
def test_a_broken_claim_is_ignored(text, claim, tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/stage.claim").write_text(text)
    assert not leaves(claim().check) and not leaves(claim().fence)
    claim(restart=1).take()
    assert leaves(claim().check)


def test_a_claim_is_read_once_per_second(claim, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(locks, "CLAIM_SECONDS", 1.0)
    monkeypatch.setattr(locks.time, "monotonic", lambda: now[0])
    old = claim()
    old.check()
    claim(restart=1).take()
    now[0] = 0.9
    assert not leaves(old.check)
    now[0] = 1.0
    assert leaves(old.check)
