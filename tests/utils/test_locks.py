"""Locks (exclusive, shared, freed when the holder dies) and claims between starts of a job."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from mar_bench.utils import locks
from mar_bench.utils.errors import Superseded
from mar_bench.utils.locks import Claim, held

HOLD = """
import sys
from pathlib import Path
from mar_bench.utils.locks import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


class Busy(Exception):
    pass


def give_up() -> None:
    raise Busy


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(locks, "POLL_SECONDS", 0.005)


def is_free(lock: Path, shared: bool = False) -> bool:
    try:
        with held(lock, shared, waiting=give_up):
            return True
    except Busy:
        return False


def test_shared_and_exclusive_holders(tmp_path):
    lock = tmp_path / "deep/a.lock"
    for theirs, ours, free in ((False, False, False), (False, True, False), (True, False, False), (True, True, True)):
        with pytest.raises(Busy), held(lock, theirs):
            assert is_free(lock, ours) is free and is_free(tmp_path / "deep/other.lock")
            raise Busy
        assert is_free(lock), "freed by an exception too"


def test_a_killed_holder_frees_the_lock(tmp_path):
    words = [sys.executable, "-c", HOLD, str(tmp_path / "a.lock")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n" and not is_free(tmp_path / "a.lock")
        process.kill()
    assert is_free(tmp_path / "a.lock")


def test_waiting_ends_when_the_holder_is_done(tmp_path):
    holder, waits = ExitStack(), []
    holder.enter_context(held(tmp_path / "a.lock"))
    with held(tmp_path / "a.lock", waiting=lambda: waits.append(len(waits) == 2 and holder.close())):
        assert len(waits) == 3


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
    old.take()
    assert not leaves(old.check)
    new.fence()  # before it has the lock, which the old one still holds
    assert leaves(old.check) and leaves(old.fence)
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
