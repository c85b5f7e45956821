"""Disks that are full, read-only or gone while a command writes: one line that names the path, exit code 2, nothing
written elsewhere, and nothing lost once the disk is back.

Each case runs in a folder that is a file system of its own, which only root can mount. Where it cannot, a full disk is
a limit on the size of files."""

from __future__ import annotations

import os
import random
import resource
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tests.torture import workshop
from tests.torture.kills import Command, commands
from tests.torture.workshop import Figure, Workshop, difference, state

PLENTY = 2**16  # KiB


def disks(lab: Workshop) -> Iterator[Figure]:
    every = [command for command in commands(lab) if ":" not in command.name]
    truths = dict(zip((command.name for command in every), lab.each(partial(undisturbed, lab), every)))
    cases = [(command, *truths[command.name]) for command in every]
    yield full_disk(lab, cases)
    if os.geteuid() == 0:
        yield read_only_disk(lab, cases)
        yield vanished_disk(lab, cases)


Case = tuple[Command, dict[str, Any], int, int, float]  # files left, KiB used before and after, seconds


def undisturbed(lab: Workshop, command: Command) -> tuple[dict[str, Any], int, int, float]:
    with lab.bench() as folder, disk(folder, PLENTY) as place:
        command.prepare(place)
        before, begin = used(place), time.monotonic()
        code, text = workshop.command(folder, *command.words(place))
        assert code in (0, 1) and "Traceback" not in text, text
        return state(place), before, used(place), time.monotonic() - begin


def full_disk(lab: Workshop, cases: list[Case]) -> Figure:
    """Each command on disks that end at a random place between what it starts with and what it needs."""

    def one(case: tuple[Case, int]) -> str | None:
        (command, truth, before, after, _), number = case
        size = random.Random(number).randrange(before, max(before + 1, after))
        with lab.bench() as folder, disk(folder, PLENTY) as place:
            command.prepare(place)
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            if os.path.ismount(place):
                resize(place, size + 8)
            else:
                limits = random.Random(number).randrange(2**10, 2**17), limits[1]
            hook = partial(resource.setrlimit, resource.RLIMIT_FSIZE, limits)
            code, text = workshop.end(folder, workshop.start(folder, command.words(place), hook))
            told = None if finished(code, place, truth) else refused(code, text, place)
            if os.path.ismount(place):
                resize(place, PLENTY)
            told = told or again(folder, place, command, truth)
            return told and f"{command.name} with {size} KiB of {after}: {told}"

    tried = [(case, number) for case in cases for number in range(2 if lab.quick else 12)]
    return Figure(
        "full disks",
        "`run`, `eval --save`, `convert`, `collect` and `table --save` on a disk that is full after a random number of "
        "bytes: exit code 2 and one line that names the file, and the same command, given room, leaves the files of an "
        "undisturbed one",
        len(tried),
        [told for told in lab.each(one, tried) if told],
    )


def read_only_disk(lab: Workshop, cases: list[Case]) -> Figure:
    """Each command on a disk that cannot be written from the start, or from a random moment on."""

    def one(case: tuple[Case, int]) -> str | None:
        (command, truth, _, _, seconds), number = case
        with lab.bench() as folder, disk(folder, PLENTY) as place:
            command.prepare(place)
            if number == 0:
                mount("-o", "remount,ro", place)
                process = workshop.start(folder, command.words(place))
            else:
                process = workshop.start(folder, command.words(place))
                time.sleep(random.Random(number).uniform(0, seconds))
                mount("--bind", place, place)  # the disk itself cannot change while a file is open for writing
                while not mount("-o", "remount,bind,ro", place, check=False):  # a file is open for writing right now
                    time.sleep(0.001)
            code, text = workshop.end(folder, process)
            if number == 0:
                mount("-o", "remount,rw", place)
            else:
                unmount(place)
            told = None if finished(code, place, truth) else refused(code, text, place)
            told = told or again(folder, place, command, truth)
            return told and f"{command.name}, read-only {'from a moment on' if number else 'at once'}: {told}"

    tried = [(case, number) for case in cases for number in range(2 if lab.quick else 8)]
    return Figure(
        "read-only disks",
        "the same commands on a disk that is read-only from the start or from a random moment on; as above",
        len(tried),
        [told for told in lab.each(one, tried) if told],
    )


def vanished_disk(lab: Workshop, cases: list[Case]) -> Figure:
    """``run`` on a disk that is unmounted at a random moment: nothing may be written to the folder underneath."""

    def one(number: int) -> str | None:
        command, truth, _, _, seconds = cases[0]
        with lab.bench() as folder, disk(folder, PLENTY) as store:
            (place := folder / "mounted").mkdir()
            mount("--bind", store, place)
            process = workshop.start(folder, command.words(place))
            while process.is_alive() and not (place / "runs/locks").is_dir():
                time.sleep(0.001)
            time.sleep(random.Random(number).uniform(0, seconds))
            unmount(place)
            code, text = workshop.end(folder, process)
            underneath = list(place.iterdir())
            mount("--bind", store, place)
            told = f"it made {underneath[0]} underneath" if underneath else None
            told = told or (None if finished(code, place, truth) else refused(code, text, place))
            told = told or again(folder, place, command, truth)
            unmount(place)
            return told and f"unmounted, case {number}: {told}"

    found = lab.each(one, range(4 if lab.quick else 24))
    return Figure(
        "vanished disks",
        "`run` on a disk that is unmounted at a random moment: exit code 2 and one line, nothing is written to the "
        "folder underneath, and once it is mounted again the same command leaves the files of an undisturbed one",
        len(found),
        [told for told in found if told],
    )


# --- what must hold -------------------------------------------------------------------------------------


def finished(code: int, place: Path, truth: dict[str, Any]) -> bool:
    return code in (0, 1) and difference(truth, state(place)) is None


def refused(code: int, text: str, place: Path) -> str | None:
    """What is wrong with the end of a command that could not write."""
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    if (
        code != 2
        or len(errors) != 1
        or "Traceback" in text
        or str(place) not in errors[0]
        or "cannot be" not in errors[0]
    ):
        return f"exit code {code}: {' / '.join(text.strip().splitlines()[-3:])[-400:]}"
    return None


def again(folder: Path, place: Path, command: Command, truth: dict[str, Any]) -> str | None:
    """Give the command once more unless it has finished; what is wrong with the outcome."""
    if finished(0, place, truth):
        return None
    code, text = workshop.command(folder, *command.words(place))
    if code not in (0, 1):
        return f"exit code {code} afterwards: {text.strip().splitlines()[-1][:300]}"
    return difference(truth, state(place))


# --- disks ----------------------------------------------------------------------------------------------


@contextmanager
def disk(folder: Path, size: int) -> Iterator[Path]:
    """``folder/disk``, a file system of ``size`` KiB; an ordinary folder for users who cannot mount."""
    (place := folder / "disk").mkdir()
    if os.geteuid() != 0:
        yield place
        return
    mount("-t", "tmpfs", "-o", f"size={size}k", "tmpfs", place)
    try:
        yield place
    finally:
        while os.path.ismount(place):
            unmount(place)


def mount(*words: object, check: bool = True) -> bool:
    return subprocess.run(["mount", *map(str, words)], check=check, capture_output=not check).returncode == 0


def unmount(place: Path) -> None:
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def resize(place: Path, size: int) -> None:
    mount("-o", f"remount,size={size}k", place)


def used(place: Path) -> int:
    """KiB."""
    about = os.statvfs(place)
    return (about.f_blocks - about.f_bfree) * about.f_frsize // 1024
