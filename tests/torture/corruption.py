"""Damage to files of a run root: the next run must mend it or refuse it by name, never publish another number."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import torch

from mar_bench.config.stages import STAGES
from mar_bench.pipeline import execute
from mar_bench.pipeline.graph import jobs_for
from mar_bench.pipeline.request import select
from mar_bench.pipeline.store import MARKER
from mar_bench.utils.errors import Stopped
from tests.torture import workshop
from tests.torture.workshop import (
    EXPERIMENT,
    SCALE,
    Figure,
    Workshop,
    before,
    copied,
    difference,
    forked,
    places_in,
    records,
)

CASES, PAGE = 200, 4096
ROW = ("--only", "diffusion", "--seeds", "0,1")  # two trainings of equal shape
HALF = ("tokenizer", "latents", "extractor", "train", "sample")  # stages that leave something when interrupted
Draw = random.Random


# --- kinds of damage: each changes something in the folder of a stage and says what -----------------------


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and path.stat().st_size)


def rewritten(change: Callable[[Draw, bytes], bytes], marker: str | None = None) -> Callable[[Draw, Path], str]:
    """The content of a file is changed; ``marker``: of any but stage.json, which becomes this text."""

    def damage(draw: Draw, folder: Path) -> str:
        path = draw.choice([path for path in files(folder) if marker is None or path.name != MARKER])
        path.write_bytes(change(draw, path.read_bytes()))
        if marker is not None:
            (folder / MARKER).write_text(marker)
        return path.name

    return damage


def flipped(draw: Draw, content: bytes) -> bytes:
    at = draw.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]


def zeroed(draw: Draw, content: bytes) -> bytes:
    at = draw.randrange(0, len(content), PAGE)
    return content[:at] + bytes(len(content[at : at + PAGE])) + content[at + PAGE :]


def deleted(draw: Draw, folder: Path) -> str:
    (path := draw.choice(files(folder))).unlink()
    return path.name


def mixed_up(both: bool) -> Callable[[Draw, Path], str]:
    """A file takes the content of another of its kind (raw weights for EMA, tokens of other images), or both do."""

    def damage(draw: Draw, folder: Path) -> str:
        pairs = [(a, b) for a in files(folder) for b in folder.parent.glob(f"*/*{a.suffix}") if a != b]
        one, other = draw.choice(sorted(pairs) or [(files(folder)[0], files(folder)[-1])])
        mine, theirs = one.read_bytes(), other.read_bytes()
        one.write_bytes(theirs)
        if both:
            other.write_bytes(mine)
        return f"{one.name} and {other.parent.name}/{other.name}"

    return damage


def exchanged(draw: Draw, folder: Path) -> str:
    """Two folders of this stage, else of two stages; the only folder there is gets lost."""
    every = sorted(path for path in folder.parent.parent.glob("*/*") if path.is_dir() and path != folder)
    others = [path for path in every if path.parent == folder.parent] or every
    folder.rename(aside := folder.parent.parent / "aside")
    if others:
        (other := draw.choice(others)).rename(folder)
        aside.rename(other)
    return f"with {other.parent.name}/{other.name}" if others else "with nothing"


def other_weights(draw: Draw, folder: Path) -> str:
    """A file that is whole but holds another number."""
    path = draw.choice([path for path in files(folder) if path.suffix in (".pt", ".safetensors")] or files(folder))
    if path.suffix == ".pt":
        content = torch.load(path, weights_only=True)
        next(iter(content["model"].values())).mul_(1.01)
        torch.save(content, path)
    else:
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # the exponent of the last float32
    return path.name


DAMAGE: dict[str, Callable[[Draw, Path], str]] = {
    "flip a bit": rewritten(flipped),
    "truncate": rewritten(lambda draw, content: content[: draw.randrange(len(content))]),
    "append": rewritten(lambda draw, content: content + draw.randbytes(draw.randint(1, PAGE))),
    "zero a page": rewritten(zeroed),
    "flip a bit under {}": rewritten(flipped, "{}"),
    'flip a bit under {"files": {}}': rewritten(flipped, '{"files": {}}'),
    "delete": deleted,
    "replace": mixed_up(both=False),
    "swap": mixed_up(both=True),
    "exchange folders": exchanged,
    "change a weight": other_weights,
}


# --- cases ----------------------------------------------------------------------------------------------


def interrupt(folder: Path, stage: str) -> None:
    """Do this stage of every run half-way."""
    places = places_in(folder)

    def progress(step: int, total: int, loss: float | None = None) -> None:
        if 2 * step >= total:
            raise Stopped

    for job in jobs_for(select([str(EXPERIMENT)], False, SCALE, {}, "0,1", only=ROW[1]).runs, places):
        if job.kind == stage:
            with suppress(Stopped):
                execute.execute(job, places, progress)


def corruptions(lab: Workshop) -> Iterator[Figure]:
    done = lab.undisturbed(*ROW)
    truth = records(done)
    halves = {stage: copied(done, lab.folder / f"half-{stage}", before(stage)) for stage in HALF}
    for stage, half in halves.items():
        forked(interrupt, half, stage)
    starts = [(stage, done) for stage in STAGES if (done / "runs" / stage).is_dir()] + [*halves.items()]

    def case(number: int) -> str:
        draw, what = Draw(number), list(DAMAGE)[number % len(DAMAGE)]
        stage, source = starts[number // len(DAMAGE) % len(starts)]
        with lab.bench() as folder:
            copied(source, folder, [*before(stage), stage])  # not those that have read this one already
            told = DAMAGE[what](draw, draw.choice(sorted((folder / "runs" / stage).iterdir())))
            verdict = judged(truth, folder, *workshop.run(folder, *ROW))
        where = f"case {number}: {what} {told} of {stage}{', half done' * (source != done)}"
        return verdict if verdict in ("equal", "refused") else f"{where}: {verdict}"

    found = lab.each(case, lab.cases(CASES, 10))
    yield Figure(
        "corruptions",
        "files of finished and half-finished stages with a bit flipped, also under an empty `stage.json`, truncated, "
        "appended to, zeroed in part, deleted, replaced by or swapped with another of their kind, holding another "
        "weight, or in exchanged folders, then the same `run`: records equal to the undisturbed ones, or an error that "
        "names the file or its folder",
        len(found),
        [told for told in found if told not in ("equal", "refused")],
        f"{found.count('equal')} gave equal records, {found.count('refused')} were refused by name",
    )


def judged(truth: dict[str, dict], folder: Path, code: int, text: str) -> str:
    """``equal``, ``refused`` or what is wrong with a run's records and messages."""
    found = records(folder)
    for name, record in found.items():
        if record["status"] == "done" and (told := difference(truth.get(name, {}), record)):
            return f"silently another record: {told}"
    errors = [str(record["error"]) for record in found.values() if record.get("error")]
    errors += [line for line in text.splitlines() if line.startswith("error:")]
    if "Traceback" in text + "".join(errors):
        return f"traceback: {next((e for e in errors if 'Traceback' in e), text).splitlines()[0][:200]}"
    if code == 0:
        return "equal" if found.keys() == truth.keys() else "records are missing, exit code 0"
    places = {str(path.parent) for path in (folder / "runs").rglob("*")}
    named = errors and all(any(place in error for place in places) for error in errors)
    return "refused" if named else f"exit code {code}, naming no file: {(errors or [text.strip()])[-1][-300:]}"
