"""Advisory locks between processes, and claims by which a newer start of a job takes over from an older one.

The kernel frees a lock when its process dies, so locks are never stale."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import pwd
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mar_bench.utils.errors import DiskError, Superseded
from mar_bench.utils.files import atomic_write, path_variable, writing

POLL_SECONDS = 0.2
CLAIM_SECONDS = 1.0
FOLDER_VARIABLE = "MAR_BENCH_LOCKS"
BOOT = Path("/proc/sys/kernel/random/boot_id")  # equal in all containers of a machine, and of no other machine


@contextlib.contextmanager
def held(path: Path, waiting: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Hold the lock file ``path``. While another process has it, ``waiting()`` is called repeatedly; it may raise to
    give up. Raises DiskError if the folder does not exist or the disk has no locks."""
    with writing(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        while not _taken(handle, path):
            waiting()
            time.sleep(POLL_SECONDS)
        yield
    finally:
        os.close(handle)


def _taken(handle: int, path: Path) -> bool:
    """Whether this process now has the lock."""
    with writing(path):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@contextlib.contextmanager
def machine(shared: bool, waiting: Callable[[], object] = lambda: None) -> Iterator[None]:
    """The lock between work (shared) and speed measurements (exclusive) of one user on this machine, first come, first
    served: a measurement waits for what came before it, and what comes after waits for the measurement.

    A process in the queue or at work keeps its ticket locked: a numbered file. The ticket of a killed process is free,
    so it counts no more."""
    folder, name = private_folder(), machine_name()
    with contextlib.ExitStack() as stack:
        with held(folder / "gate", waiting):  # one at a time, so that later tickets have higher numbers
            last = max((int(path.name.split(".")[-2]) for path in folder.glob(f"{name}.*")), default=0)
            # by the clock, so that no number is given twice
            ticket = folder / f"{name}.{max(time.time_ns(), last + 1):020d}.{'shared' if shared else 'alone'}"
            stack.enter_context(held(ticket))
            stack.callback(ticket.unlink, missing_ok=True)
        while any(map(_is_live, _before(ticket, shared))):
            waiting()
            time.sleep(POLL_SECONDS)
        yield


def _before(ticket: Path, shared: bool) -> list[Path]:
    """The tickets that one waits for: all with lower numbers, or those of measurements only."""
    name, kind = ticket.name.rsplit(".", 2)[0], "alone" if shared else "*"
    return sorted(path for path in ticket.parent.glob(f"{name}.*.{kind}") if path.name < ticket.name)


def _is_live(ticket: Path) -> bool:
    """Whether a process has this ticket; deletes it if not."""
    try:
        handle = os.open(ticket, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        if not _taken(handle, ticket):
            return True
        ticket.unlink(missing_ok=True)
        return False
    finally:
        os.close(handle)


def machine_name() -> str:
    """Distinguishes machines that share a home folder."""
    return BOOT.read_text().strip() if BOOT.is_file() else platform.node()


def private_folder() -> Path:
    """The folder of the machine lock. Raises DiskError unless it belongs to this user and nobody else can enter it.

    It is ``.cache/mar_bench-locks`` in the home folder of the system's user database, so that login sessions and batch
    jobs agree on it, whatever TMPDIR, HOME and XDG_* say. Without a home that can be written, it is
    ``/tmp/mar_bench-locks-<uid>``; jobs with a /tmp of their own then do not see each other. ``$MAR_BENCH_LOCKS`` names
    another folder, for a home on a disk without file locks."""
    uid = os.geteuid()
    if chosen := path_variable(FOLDER_VARIABLE):
        choices = [Path(chosen)]
    else:
        choices = [Path(f"/tmp/mar_bench-locks-{uid}")]
        with contextlib.suppress(KeyError):  # a uid without a name
            choices.insert(0, Path(pwd.getpwuid(uid).pw_dir, ".cache/mar_bench-locks"))
    for folder in choices:
        with contextlib.suppress(OSError):
            folder.mkdir(0o700, parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):  # absent, or its disk is read-only
            continue
        about = folder.lstat()
        if stat.S_ISDIR(about.st_mode) and about.st_uid == uid and not about.st_mode & 0o077:
            return folder
        raise DiskError(f"{folder}: not a folder of this user with mode 0700: delete it, or set {FOLDER_VARIABLE}")
    raise DiskError(f"{choices[-1]}: cannot be made; set {FOLDER_VARIABLE} to a folder that only you can enter")


class Claim:
    """Which start of which job may write a stage's output: a file beside the stage's lock.

    Slurm may requeue a job whose node is unreachable while the old processes are still running and hold the lock. The
    new start claims the stage; the old one sees the claim at its next step and exits."""

    def __init__(self, path: Path, job: str, restart: int):
        self.path, self.mine = path, (job, restart)
        self._next_read = 0.0

    def fence(self) -> None:
        """Take over the stage from earlier starts of this job. Raises Superseded if a newer start has."""
        if self._is_ours():
            self.take()

    def take(self) -> None:
        atomic_write(self.path, json.dumps(self.mine))

    def check(self) -> None:
        """Raises Superseded if a newer start has taken over; reads the file once per second at most."""
        if time.monotonic() < self._next_read:
            return
        self._next_read = time.monotonic() + CLAIM_SECONDS
        self._is_ours()

    def _is_ours(self) -> bool:
        """Whether a start of this job has made the claim. Raises Superseded if it is newer than this start."""
        try:
            job, restart = json.loads(self.path.read_text())
            job, restart = str(job), int(restart)
        except (OSError, ValueError, TypeError):
            return False
        if job == self.mine[0] and restart > self.mine[1]:
            raise Superseded
        return job == self.mine[0]
