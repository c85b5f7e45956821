"""What a table's reader must know: how it was measured, over which seeds, where from, what differs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from mar_bench.config import Experiment
from mar_bench.records import Record
from mar_bench.report.cells import Selection, Spread, seeds
from mar_bench.report.wording import (
    PAPER_NAMES,
    by_axes,
    extractors,
    in_paper,
    metric_key,
    metric_short,
    number,
)
from mar_bench.spec import RunSpec

# protocol keys that must agree between the generation records of one table
PROTOCOL = ("num_generated", "num_reference", "num_heldout", "label_mode", "dtype")
ERROR_LENGTH = 160


def caption(
    experiment: Experiment, selection: Selection, floors: pd.DataFrame, spreads: dict[str, Spread]
) -> list[str]:
    """The lines under a table; ``spreads`` is the first metric of every row that has a number."""
    lines = [_brackets(experiment), _features(experiment), _samples(experiment, selection, floors)]
    lines += [_real(experiment, floors), _seeds(spreads), _knobs(experiment), _origin(selection)]
    return [line for line in lines if line]


def _brackets(experiment: Experiment) -> str:
    metrics = [m for m in experiment.layout.get("metrics", ["fd"]) if in_paper(experiment, m)]
    if not metrics:
        return ""
    names = " and ".join(PAPER_NAMES.get(m, m) for m in metrics)
    where = "" if experiment.scale == "paper" else ", another data set at another scale"
    return f"In brackets: the paper's {names} on ImageNet 256x256{where}. Source: {experiment.source}."


def _features(experiment: Experiment) -> str:
    """That a number without the 2015 Inception network is neither FID nor IS as the paper has them."""
    if not (names := extractors(experiment)):
        return ""
    return (
        f"FD and IS: Fréchet distance on the features of {' / '.join(names)} and inception-style score on "
        "its classes; neither can be set beside the paper's FID and IS."
    )


def _samples(experiment: Experiment, selection: Selection, floors: pd.DataFrame) -> str:
    done = _done(selection, "generation")
    if not done:
        return ""
    generated, reference, heldout = (_counts(done, k) for k in ("num_generated", "num_reference", "num_heldout"))
    text = f"{metric_short(experiment, 'fd')}: {generated} generated images against {reference} training "
    text += f"images (held-out: against {heldout} images never trained on)."
    if len(floors):
        images = "/".join(dict.fromkeys(f"{n:.0f}" for n in floors["num_images"].dropna())) or "the"
        text += f" Reconstruction: the row's tokenizer alone on {images} held-out images, "
        text += "against the same training images."
    return text


def _seeds(spreads: dict[str, Spread]) -> str:
    """Over which seeds the ± is; where the cells differ, each design with its cells."""
    designs: dict[tuple, list[str]] = {}
    for row, spread in spreads.items():
        designs.setdefault(spread.design, []).append(row)
    if not designs:
        return ""
    words = [_design(spreads[rows[0]]) for rows in designs.values()]
    if len(designs) > 1:
        largest = max(designs.values(), key=len)
        named = [f"{len(rows)} cells" if rows is largest else ", ".join(rows) for rows in designs.values()]
        words = [f"{word} in {rows}" for word, rows in zip(words, named)]
        text = f"The cells differ in their seeds: {'; '.join(words)}."
    else:
        text = f"{words[0][:1].upper()}{words[0][1:]}."
    if all(spread.over is None for spread in spreads.values()):
        return text
    return f"{text} Tokenizer and feature extractor are the same for all seeds, so ± leaves out their chance."


def _design(spread: Spread) -> str:
    training, sampling = _list("training", spread.train_seeds), _list("sampling", spread.sampling_seeds)
    deviation = f"± is the standard deviation over {spread.n}"
    if spread.over == "training" and len(spread.sampling_seeds) == 1:
        return f"{deviation} training runs ({training}; {sampling})"
    if spread.over == "training":
        gaps = "" if spread.complete else ", not all of them for each"
        return f"{deviation} training runs ({training}), each averaged over its samplings ({sampling}{gaps})"
    if spread.over == "sampling":
        return f"{deviation} samplings ({sampling}) of one training ({training})"
    return f"one run ({training}, {sampling}), no ±"


def _list(kind: str, seeds: tuple[int, ...]) -> str:
    return f"{kind} seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _knobs(experiment: Experiment) -> str:
    """Training and sampling settings, each with the bundles that change it."""

    def guidance(spec: RunSpec) -> str:
        s = spec.sampling
        return "off" if s.guidance_scale == 1 else f"{s.guidance_scale:g} {s.guidance_schedule}"

    def denoising(spec: RunSpec) -> str:
        return "none" if spec.sampling.num_diffusion_steps is None else str(spec.sampling.num_diffusion_steps)

    knobs: dict[str, Callable[[RunSpec], str]] = {
        "guidance": guidance,
        "temperature": lambda spec: f"{spec.sampling.temperature:g}",
        "AR steps": lambda spec: str(spec.sampling.num_ar_steps),
        "denoising steps": denoising,
        "training": lambda spec: f"{spec.train.steps} steps of {spec.train.batch_size} images",
        "weights": lambda spec: spec.sampling.weights,
    }
    text = "; ".join(f"{name} {by_axes(experiment, knob)}" for name, knob in knobs.items())
    return f"{text[:1].upper()}{text[1:]}."


def _real(experiment: Experiment, floors: pd.DataFrame) -> str:
    values = list(dict.fromkeys(number(v) for v in floors["fd_real"].dropna()))
    if not values:
        return ""
    title = metric_short(experiment, "fd")
    return f"Real held-out images against the training images: {title} {' / '.join(values)}."


def _origin(selection: Selection) -> str:
    """Commits and devices of the records that the table used."""
    used = [r for task in ("generation", "reconstruction", "speed") for r in _done(selection, task).values()]
    if not used:
        return ""
    commits = sorted({_commit(r) for r in used})
    devices = sorted({str(r.provenance.get("device") or "unknown device") for r in used})
    return f"Records: {len(used)}, from {'; '.join(commits)}; on {'; '.join(devices)}."


def _commit(record: Record) -> str:
    git = record.provenance.get("git") or {}
    if not git.get("commit"):
        return f"mar_bench {record.provenance.get('mar_bench', 'of unknown version')} without a commit"
    return f"commit {git['commit'][:10]}{' with uncommitted changes' if git.get('dirty') else ''}"


def _done(selection: Selection, task: str) -> dict[str, Record]:
    return {r.id: r for tasks in selection.values() for r in tasks[task] if r.status == "done"}


def _counts(records: dict[str, Record], key: str) -> str:
    return "/".join(dict.fromkeys(str(r.protocol.get(key, "?")) for r in records.values()))


# --- what a reader must be warned of --------------------------------------------------------------------


def warnings(experiment: Experiment, selection: Selection) -> list[str]:
    """One line for each thing in which the records were not measured alike."""
    lines = []
    networks: dict[Any, list[str]] = {}
    protocols: dict[str, dict[Any, list[str]]] = {key: {} for key in PROTOCOL}
    for row, tasks in selection.items():
        for record in tasks["generation"] + tasks["reconstruction"]:
            if record.status == "done":
                sha = (record.protocol.get("extractor") or {}).get("sha256")
                networks.setdefault(sha and sha[:10], []).append(row)
        for record in tasks["generation"]:
            for key in PROTOCOL:
                if record.status == "done":
                    protocols[key].setdefault(record.protocol.get(key), []).append(row)
    for key, values in {"the feature extractor's sha256": networks, **protocols}.items():
        if len(values) > 1:
            said = "; ".join(f"{value} in {_rows(rows)}" for value, rows in values.items())
            lines.append(f"**Warning: not measured alike, do not compare these rows.** {key} is {said}.")
    if "/" in (name := metric_key(experiment, "fd")):
        lines.append(f"**Warning: the rows have different distances**: {name}.")
    return lines


def _rows(rows: list[str]) -> str:
    return ", ".join(dict.fromkeys(rows))


def failures(selection: Selection) -> list[str]:
    """One line for each failed generation run: row, seeds and the error's first line, as code for GitHub."""
    lines = []
    for row, tasks in selection.items():
        for record in tasks["generation"]:
            if record.status == "failed":
                error = next(iter((record.error or "").strip().splitlines()), "no error was recorded")
                error = error[:ERROR_LENGTH].replace("`", "'")
                train, sampling = seeds(record)
                lines.append(f"{row}, training seed {train}, sampling seed {sampling}: `{error}`")
    return lines
