"""What a table's reader must know: how it was measured, over which seeds, where from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

import pandas as pd

from mar_bench.config.experiment import Experiment
from mar_bench.config.spec import RunSpec
from mar_bench.records.record import Record
from mar_bench.report.format import (
    NAMES,
    PAPER_NAMES,
    by_axes,
    column_words,
    extractors,
    in_paper,
    listed,
    metric_number,
    metric_of,
    metric_short,
    unit_in_brackets,
)
from mar_bench.report.frame import REAL_ROLES, Selection, Spread, metric_value
from mar_bench.report.table.data import Measured
from mar_bench.report.verdict import RULES, WHY_NONE, is_comparable

Records = dict[str, Record]  # by id
PUBLISHED_NAMES = {
    **PAPER_NAMES,
    **NAMES,
    "head_parameters": "parameters of the head",
    "rfd": "reconstruction FID",
    "seconds_per_image": "seconds per image (one A100)",
}

OF_ONE_RUN = "The chance of training and of sampling is not in the ± of one run; a number without ± has none recorded."


def caption(table: Measured, spreads: dict[str, Spread]) -> list[str]:
    """The lines under a table; ``spreads`` is the first metric of every row that has a number."""
    experiment, floors = table.experiment, table.floors
    done = _done(table.selection, "generation")
    lines = [_brackets(experiment), _no_verdict(experiment), _features(experiment), _samples(experiment, done, floors)]
    lines += [_further(done), _speed(table), _real(experiment, floors), _seeds(spreads, done), _left_out(table)]
    lines += [_knobs(experiment), _origin(table.selection)]
    return [line for line in lines if line]


def short(table: Measured, spreads: dict[str, Spread]) -> list[str]:
    """The sentences that no table may go without."""
    done = _done(table.selection, "generation")
    lines = [_brackets(table.experiment), _features(table.experiment), _speed(table), _seeds(spreads, done)]
    return [line for line in lines if line]


def _brackets(experiment: Experiment) -> str:
    shown = [*experiment.layout.get("metrics", ["fd"]), *experiment.layout.get("beside", [])]
    names = [PUBLISHED_NAMES.get(m, m) for m in shown if in_paper(experiment, m)]
    if not names:
        return ""
    where = "" if experiment.scale == "paper" else ", another data set at another scale"
    source = f" Source: {experiment.source}." if experiment.source else ""
    return f"In brackets: the paper's {listed(names)} on ImageNet 256x256{where}.{source}"


def _no_verdict(experiment: Experiment) -> str:
    """Why no number is judged against the paper's, where there are any."""
    judged = [row for row in experiment.rows if RULES.keys() & experiment.paper.get(row, {}).keys()]
    return WHY_NONE if judged and not any(is_comparable(experiment, row) for row in judged) else ""


def _speed(table: Measured) -> str:
    """In which setting the seconds of a line were taken, and of which of its cells."""
    experiment = table.experiment
    if "seconds_per_image" not in experiment.layout.get("beside", []) or table.speed_setting is None:
        return ""
    words = column_words(experiment, table.speed_column or ())
    return f"Seconds per image: {', '.join(w for w in (words, table.speed_setting) if w)}."


def _left_out(table: Measured) -> str:
    if not table.left_out:
        return ""
    were = f"{table.left_out} {'record is' if table.left_out == 1 else 'records are'}"
    return f"{were} left out, on seeds that other tables use and not all rows here have."


def _features(experiment: Experiment) -> str:
    """That a number without the 2015 Inception network is neither FID nor IS as the paper has them."""
    if not (names := extractors(experiment)):
        return ""
    return (
        f"FD and IS: Fréchet distance on the features of {' / '.join(names)} and inception-style score on "
        "its classes; neither can be set beside the paper's FID and IS."
    )


def _samples(experiment: Experiment, done: Records, floors: pd.DataFrame) -> str:
    """How many images of which kind the distances are of."""
    if not done:
        return ""
    text = f"{metric_short(experiment, 'fd')}: {_counts(done, 'num_generated')} generated images ({_labels(done)}) "
    text += f"against {_counts(done, 'num_reference')} {_reference(done)}"
    if any("num_heldout" in r.protocol for r in done.values()):
        text += f" (held-out: against {_counts(done, 'num_heldout')} images never trained on)"
    if not len(floors):
        return f"{text}."
    images = "/".join(dict.fromkeys(f"{n:.0f}" for n in floors["num_images"].dropna())) or "the"
    return (
        f"{text}. Reconstruction: the row's tokenizer alone on {images} held-out images, against the same "
        f"{_reference(done)}."
    )


def _labels(done: Records) -> str:
    """``labels balanced``; where they are not, how many images the classes have."""

    def words(protocol: dict[str, Any]) -> str:
        mode, classes = protocol.get("label_mode", "not recorded"), protocol.get("class_balance")
        if mode == "balanced" or not classes:
            return f"labels {mode}"
        return f"labels {mode}, {classes['least']} to {classes['most']} images in each of {classes['classes']} classes"

    return " / ".join(dict.fromkeys(words(record.protocol) for record in done.values()))


def _reference(done: Records) -> str:
    """``training images``, or where else the reference comes from."""
    blocks = [r.protocol.get("reference") or {"kind": "training"} for r in done.values()]
    kinds = (
        "training images" if b.get("kind") == "training" else f"reference images ({b.get('name', 'unnamed')})"
        for b in blocks
    )
    return " / ".join(dict.fromkeys(kinds))


def _further(done: Records) -> str:
    """How KID, precision, recall and the share of copied images were measured, where they were."""
    generated, against = _counts(done, "num_generated"), f"{_counts(done, 'reference', 'num_features')} "
    against += _reference(done)
    subsets, size, neighbours = (
        _counts(done, "settings", key) for key in ("kid_subsets", "kid_subset_size", "neighbours")
    )
    texts = {
        "kid": f"KID: mean over {subsets} subsets of {size} images each of the generated and of {against}.",
        "precision": f"Precision and Recall: {generated} generated images against {against}, with the radius of "
        f"{neighbours} neighbours.",
        "copied": "Copied: percent of the generated images that lie at most as far from a training image as the "
        "nearest training image that differs from it does; held-out real images tell how many are usual.",
    }
    return " ".join(text for metric, text in texts.items() if _has(done, metric))


def _has(done: Records, metric: str) -> bool:
    return any(not math.isnan(metric_value(record, metric)) for record in done.values())


def _seeds(spreads: dict[str, Spread], done: Records) -> str:
    """Over which seeds the ± is; where the cells differ, each design with its cells."""
    designs: dict[tuple, list[str]] = {}
    for row, spread in spreads.items():
        designs.setdefault(spread.design, []).append(row)
    if not designs:
        return ""
    words = [design(spreads[rows[0]], jackknife_groups(done.values())) for rows in designs.values()]
    if len(designs) > 1:
        largest = max(designs.values(), key=len)
        named = [f"{len(rows)} cells" if rows is largest else ", ".join(rows) for rows in designs.values()]
        words = [f"{word} in {rows}" for word, rows in zip(words, named)]
        text = f"The cells differ in their seeds: {'; '.join(words)}."
    else:
        text = f"{words[0][:1].upper()}{words[0][1:]}."
    over = {spread.over for spread in spreads.values()}
    shares = [
        abs(s.sd_sampling / s.mean) for s in spreads.values() if s.over == "training" and s.sd_sampling and s.mean
    ]
    if shares:
        text += (
            f" The samplings of one training deviate by {100 * median(shares):.1f} % of a cell's first number (median)."
        )
    if "images" in over:
        text += f" {OF_ONE_RUN}"
    if over & {"training", "sampling"}:
        text += " Tokenizer and feature extractor are the same for all seeds, so ± leaves out their chance."
    return text


def design(spread: Spread, groups: str) -> str:
    """What the ± of a number is over; ``groups`` is how many the jackknife has left out in turn."""
    training, sampling = _list("training", spread.train_seeds), _list("sampling", spread.sampling_seeds)
    deviation = f"± is the standard deviation over {spread.n}"
    if spread.over == "training" and len(spread.sampling_seeds) == 1:
        return f"{deviation} training runs ({training}; {sampling})"
    if spread.over == "training":
        gaps = "" if spread.complete else ", not all of them for each"
        return f"{deviation} training runs ({training}), each averaged over its samplings ({sampling}{gaps})"
    if spread.over == "sampling":
        return f"{deviation} samplings ({sampling}) of one training ({training})"
    if spread.over == "images":
        error = f"± is the jackknife's standard error ({groups} of the images)"
        return f"{error} of one run ({training}, {sampling})"
    return f"one run ({training}, {sampling}), no ±"


def jackknife_groups(records: Iterable[Record]) -> str:
    """``10 groups``; several numbers joined by a slash."""
    found = ((r.protocol.get("settings") or {}).get("jackknife_groups") for r in records)
    return f"{'/'.join(dict.fromkeys(str(n) for n in found if n))} groups".strip()


def _list(kind: str, seeds: tuple[int, ...]) -> str:
    return f"{kind} seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _knobs(experiment: Experiment) -> str:
    """Training and sampling settings, each with the bundles that change it."""
    swept = [(experiment.rows[row], sweep.points[0][0]) for row, sweep in experiment.sweeps.items()]

    def is_chosen(spec: RunSpec, knob: str) -> bool:
        return any(spec is other and f"sampling.{knob}" in values for other, values in swept)

    def guidance(spec: RunSpec) -> str:
        s = spec.sampling
        if is_chosen(spec, "guidance_scale"):
            return "chosen for each cell"
        channels = "" if s.guided_channels is None else f" on {s.guided_channels} channels"
        return "off" if s.guidance_scale == 1 else f"{s.guidance_scale:g} {s.guidance_schedule}{channels}"

    def denoising(spec: RunSpec) -> str:
        s = spec.sampling
        steps = "none" if s.num_diffusion_steps is None else str(s.num_diffusion_steps)
        return f"{steps} of DDIM" if s.sampler == "ddim" else steps

    def ar_steps(spec: RunSpec) -> str:
        return "none" if spec.sampling.num_ar_steps is None else str(spec.sampling.num_ar_steps)

    knobs: dict[str, Callable[[RunSpec], str]] = {
        "guidance": guidance,
        "temperature": lambda spec: (
            "chosen for each cell" if is_chosen(spec, "temperature") else f"{spec.sampling.temperature:g}"
        ),
        "AR steps": ar_steps,
        "denoising steps": denoising,
        "training": lambda spec: f"{spec.train.steps} steps of {spec.train.batch_size} images",
        "weights": lambda spec: spec.sampling.weights,
    }
    text = "; ".join(f"{name} {by_axes(experiment, knob)}" for name, knob in knobs.items())
    return f"{text[:1].upper()}{text[1:]}."


def _real(experiment: Experiment, floors: pd.DataFrame) -> str:
    """The yardstick: what real images that were never trained on come to."""
    words = []
    for role, metric in REAL_ROLES.items():
        base = metric.partition(":")[0]
        values = dict.fromkeys(metric_number(experiment, base, value) for value in floors[role].dropna())
        name = floor_name(experiment, floors) if base == "fd" else metric_of(experiment, base, None)
        words += [f"{name} {' / '.join(values)}{unit_in_brackets(experiment, base)}"] * bool(values)
    return f"Real held-out images against the training images: {', '.join(words)}." if words else ""


def floor_name(experiment: Experiment, floors: pd.DataFrame) -> str:
    """The distance of the held-out images, of which there may be more or fewer than of a row's samples."""
    counts = {int(n) for n in floors["num_images"].dropna()}
    return metric_of(experiment, "fd", counts.pop() if len(counts) == 1 else None)


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


def _done(selection: Selection, task: str) -> Records:
    return {r.id: r for tasks in selection.values() for r in tasks[task] if r.status == "done"}


def _counts(records: Records, *keys: str) -> str:
    """A number of the protocols, ``?`` where it was not recorded; several joined by a slash."""
    found: list[Any] = [record.protocol for record in records.values()]
    for key in keys:
        found = [(block or {}).get(key) for block in found]
    return "/".join(dict.fromkeys("?" if n is None else str(n) for n in found))
