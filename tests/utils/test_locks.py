"""Locks (exclusive, shared, freed when the holder dies) and claims between starts of a job."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from mar_bench.utils import locks
from mar_bench.utils.errors import DiskError, Superseded
from mar_bench.utils.locks import Claim, held

HOLD = """
import sys
from pathlib import Path
from mar_bench.utils import locks
locks.POLL_SECONDS = 0.005
kind = sys.argv[1]
lock = locks.machine(kind == "shared") if kind in ("shared", "alone") else locks.held(Path(kind))
with lock:
    print("held", flush=True)
    sys.stdin.readline()
"""


class Busy(Exception):
    pass


def give_up() -> None:
    raise Busy


@pytest.fixture(autouse=True)
def impatient(monkeypatch, tmp_path):
    monkeypatch.setattr(locks, "POLL_SECONDS", 0.005)
    monkeypatch.setenv(locks.FOLDER_VARIABLE, str(tmp_path / "machine"))


@pytest.fixture
def start():
    """Starts processes that hold a lock, or wait for it, until they are told to end."""
    started = []

    def hold(what: object) -> subprocess.Popen:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen([sys.executable, "-c", HOLD, str(what)], **pipes))
        return started[-1]

    yield hold
    for process in started:
        process.kill()
        process.communicate()


def is_free(lock: AbstractContextManager) -> bool:
    try:
        with lock:
            return True
    except Busy:
        return False


def test_a_lock_has_one_holder(tmp_path):
    mine, other = tmp_path / "a.lock", tmp_path / "other.lock"
    with pytest.raises(Busy), held(mine):
        assert not is_free(held(mine, give_up)) and is_free(held(other, give_up))
        raise Busy
    assert is_free(held(mine, give_up)), "freed by an exception too"


def test_a_killed_holder_frees_the_lock(tmp_path, start):
    process = start(lock := tmp_path / "a.lock")
    assert process.stdout.readline() == "held\n" and not is_free(held(lock, give_up))
    process.kill()
    process.wait()
    assert is_free(held(lock, give_up))


def test_waiting_ends_when_the_holder_is_done(tmp_path):
    holder, waits = ExitStack(), []
    holder.enter_context(held(tmp_path / "a.lock"))
    with held(tmp_path / "a.lock", waiting=lambda: waits.append(len(waits) == 2 and holder.close())):
        assert len(waits) == 3


def test_a_lock_follows_no_link_and_makes_no_folder(tmp_path):
    (tmp_path / "link.lock").symlink_to(tmp_path / "target")
    with pytest.raises(OSError), held(tmp_path / "link.lock"):
        pass
    with pytest.raises(DiskError, match="gone/a.lock"), held(tmp_path / "gone/a.lock"):
        pass
    assert not (tmp_path / "target").exists() and not (tmp_path / "gone").exists()


# --- the machine ----------------------------------------------------------------------------------------


def test_a_speed_measurement_has_the_machine_to_itself(tmp_path):
    work, speed = True, False
    for mine, other, free in ((work, work, True), (work, speed, False), (speed, work, False), (speed, speed, False)):
        with locks.machine(mine):
            assert is_free(locks.machine(other, give_up)) == free
    assert [path.name for path in (tmp_path / "machine").iterdir()] == ["gate"]


def tickets(tmp_path: Path, count: int) -> list[Path]:
    while len(found := sorted((tmp_path / "machine").glob("*.[sa]*"))) != count:
        time.sleep(0.01)
    return found


def test_who_asks_first_comes_first_and_the_killed_lose_their_place(tmp_path, start):
    """A measurement waits for one stage; another one, killed, and new stages wait behind it."""
    queue = []
    for kind in ("shared", "alone", "alone", "shared", "shared", "alone"):
        queue.append(start(kind))
        tickets(tmp_path, len(queue))  # it has asked
    work, first, killed, new, newer, last = queue
    killed.kill()
    killed.wait()

    def has_it(process: subprocess.Popen) -> bool:
        return bool(select.select([process.stdout], [], [], 0.2)[0])

    def end(process: subprocess.Popen) -> None:
        assert process.communicate("\n")[0] == "held\n"

    assert has_it(work) and not has_it(first) and not is_free(locks.machine(True, give_up)), "new work waits"
    end(work)
    assert has_it(first) and not has_it(new)
    first.kill()  # while it measures
    assert has_it(new) and has_it(newer) and not has_it(last)
    end(new)
    end(newer)
    assert has_it(last)
    end(last)
    assert is_free(locks.machine(False, give_up)) and not tickets(tmp_path, 0)


def test_the_folder_of_the_machine_lock_depends_on_the_user_alone(tmp_path, monkeypatch):
    monkeypatch.delenv(locks.FOLDER_VARIABLE)
    user = SimpleNamespace(pw_dir=str(tmp_path / "home"))
    monkeypatch.setattr(locks.pwd, "getpwuid", lambda uid: user)
    for name in ("TMPDIR", "HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    folder = locks.private_folder()
    assert folder == tmp_path / "home/.cache/mar_bench-locks" and folder.stat().st_mode & 0o777 == 0o700
    user.pw_dir = "/dev/null"  # as good as no home
    assert locks.private_folder() == Path(f"/tmp/mar_bench-locks-{os.geteuid()}")


@pytest.mark.parametrize("make", [
    lambda folder: folder.mkdir(mode=0o755),
    lambda folder: folder.symlink_to(folder.parent),
    lambda folder: folder.write_text(""),
    pytest.param(lambda folder: (folder.mkdir(0o700), os.chown(folder, 12345, -1)),
                 marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")),
])  # fmt: skip
def test_a_folder_that_others_may_have_made_is_refused(make, tmp_path):
    make(tmp_path / "machine")
    with pytest.raises(DiskError, match="machine: not a folder of this user with mode 0700: delete it, or set MAR_"):
        locks.private_folder()


def test_the_variable_of_the_machine_lock_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(locks.FOLDER_VARIABLE, "~/locks")
    assert locks.private_folder() == tmp_path / "locks"


# --- claims ---------------------------------------------------------------------------------------------


@pytest.fixture
def claim(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "CLAIM_SECONDS", 0.0)
    return lambda job="a job", restart=0: Claim(tmp_path / "stage.claim", job, restart)


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
    (tmp_path / "stage.claim").write_text(text)
    assert not leaves(claim().check) and not leaves(claim().fence)
    claim(restart=1).take()
    assert leaves(claim().check)
