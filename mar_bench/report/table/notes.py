"""Notes below a table: protocol, seeds, settings, origin, and the sweep point or tokenizer selected for each row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

from mar_bench.config.experiment import Experiment
from mar_bench.config.spec import RunSpec
from mar_bench.config.sweeps import Search
from mar_bench.records.metrics import METRICS, REAL_METRICS
from mar_bench.records.record import Record
from mar_bench.report.format import (
    NOT_CHOSEN,
    by_axes,
    column_words,
    extractors,
    in_paper,
    listed,
    metric_number,
    metric_of,
    metric_short,
    number,
    with_unit,
)
from mar_bench.report.spread import Spread, design
from mar_bench.report.table.measured import Measured
from mar_bench.report.verdict import WHY_NONE, is_comparable

Records = list[Record]


def notes(found: Measured) -> list[str]:
    """All notes, one sentence or a few each."""
    done = _records(found, "generation")
    lines = [_brackets(found.experiment), _no_verdict(found.experiment), _features(found.experiment)]
    lines += [*_protocol(found, done), _real(found), _speed(found), _seeds(found, done), _left_out(found)]
    lines += [_settings(found.experiment), _origin(found), *_footnotes(found.experiment)]
    return [line for line in lines if line]


def short_notes(found: Measured) -> list[str]:
    """What a caption cannot do without."""
    experiment, done = found.experiment, _records(found, "generation")
    return list(filter(None, (_brackets(experiment), _features(experiment), _speed(found), _seeds(found, done))))


def _records(found: Measured, *tasks: str, metric: str | None = None) -> Records:
    """The done records behind the table; rows may share one."""
    return list({record.id: record for _, record in found.done(*tasks, metric=metric)}.values())


# --- how it was measured --------------------------------------------------------------------------------


def _brackets(experiment: Experiment) -> str:
    shown = [METRICS[m] for m in (*experiment.layout.get("metrics", ["fd"]), *experiment.layout.get("beside", []))]
    names = [metric.paper_label or metric.label for metric in shown if in_paper(experiment, metric.name)]
    if not names:
        return ""
    where = "" if experiment.scale == "paper" else ", another data set at another scale"
    source = f" Source: {experiment.source}." if experiment.source else ""
    return f"In brackets: the paper's {listed(names)} on ImageNet 256x256{where}.{source}"


def _no_verdict(experiment: Experiment) -> str:
    judged = {name for name, metric in METRICS.items() if metric.tolerance}
    rows = [row for row in experiment.rows if judged & experiment.paper.get(row, {}).keys()]
    return WHY_NONE if rows and not any(is_comparable(experiment, row) for row in rows) else ""


def _features(experiment: Experiment) -> str:
    if not (names := " / ".join(extractors(experiment))):
        return ""
    return (
        f"FD and IS: Fréchet distance on the features of {names} and inception-style score on its classes; not "
        "comparable with the paper's FID and IS."
    )


def _protocol(found: Measured, done: Records) -> Iterator[str]:
    """The images, references and parameters behind each metric that was measured."""
    if not done:
        return
    generated, reference = _each(done, "num_generated"), _reference(done)
    text = f"{metric_short(found.experiment, 'fd')}: {generated} generated images ({_labels(done)}) against "
    text += f"{_each(done, 'num_reference')} {reference}"
    if any("num_heldout" in record.protocol for record in done):
        text += f"; held-out: against {_each(done, 'num_heldout')} images never trained on"
    if reconstructions := _records(found, "reconstruction"):
        text += f". Reconstruction: the row's tokenizer alone on {_each(reconstructions, 'num_generated')} held-out "
        text += f"images, against the same {reference}"
    yield f"{text}."
    features = f"{_each(done, 'reference.num_features')} {reference}"
    subsets, size = (_each(done, f"settings.kid_{key}") for key in ("subsets", "subset_size"))
    texts = {
        "kid": f"KID: mean over {subsets} subsets of {size} images each of the generated and of {features}.",
        "precision": f"Precision and Recall: {generated} generated images against {features}, with the radius of "
        f"{_each(done, 'settings.neighbours')} neighbours.",
        "copied": "Copied: percentage of generated images at least as close to a training image as the nearest "
        "different training image is; compare with the percentage of held-out real images.",
    }
    if further := " ".join(text for metric, text in texts.items() if _records(found, "generation", metric=metric)):
        yield further


def _labels(done: Records) -> str:
    """``labels balanced``; otherwise also the number of images per class."""

    def words(protocol: dict[str, Any]) -> str:
        mode, classes = protocol.get("label_mode", "not recorded"), protocol.get("class_balance")
        if mode == "balanced" or not classes:
            return f"labels {mode}"
        return f"labels {mode}, {classes['least']} to {classes['most']} images in each of {classes['classes']} classes"

    return " / ".join(dict.fromkeys(words(record.protocol) for record in done))


def _reference(done: Records) -> str:
    """``training images``, or the reference used instead."""
    blocks = [record.protocol.get("reference") or {"kind": "training"} for record in done]
    return " / ".join(
        dict.fromkeys(
            "training images" if block.get("kind") == "training" else f"reference images ({block.get('name')})"
            for block in blocks
        )
    )


def _real(found: Measured) -> str:
    """The same metrics for held-out real images, which are what a perfect generator would reach."""
    words = []
    for metric in REAL_METRICS:
        base = METRICS[metric].base
        shown = dict.fromkeys(metric_number(found.experiment, base, v) for v in found.once(metric).values())
        name = found.reconstruction_distance if base == "fd" else metric_of(found.experiment, base, None)
        words += [f"{with_unit(found.experiment, name, base)} = {' / '.join(shown)}"] * bool(shown)
    return f"Held-out real images against the training images: {', '.join(words)}." if words else ""


def _speed(found: Measured) -> str:
    """The device and the columns of the seconds."""
    if "seconds_per_image" not in found.experiment.layout.get("beside", []) or found.speed_setting is None:
        return ""
    words = column_words(found.experiment, found.speed_column)
    return f"Seconds per image: {', '.join(filter(None, (words, found.speed_setting)))}."


# --- seeds ----------------------------------------------------------------------------------------------


def _seeds(found: Measured, done: Records) -> str:
    """What ± is over; if the cells differ, each design with its cells."""
    metric = found.experiment.layout.get("metrics", ["fd"])[0]
    spreads = {row: s for row in found.experiment.rows if (s := found.spread(row, metric)).n}
    designs: dict[tuple, list[str]] = {}
    for row, spread in spreads.items():
        designs.setdefault(spread.design, []).append(row)
    if not designs:
        return ""
    groups = jackknife_groups(done)
    words = [design(spreads[rows[0]], groups) for rows in designs.values()]
    if len(designs) > 1:
        largest = max(designs.values(), key=len)
        named = [f"{len(rows)} cells" if rows is largest else ", ".join(rows) for rows in designs.values()]
        text = "Seeds differ between cells: " + "; ".join(f"{w} in {rows}" for w, rows in zip(words, named)) + "."
    else:
        text = f"{words[0][:1].upper()}{words[0][1:]}."
    return f"{text}{_sampling_share(list(spreads.values()))}{_excluded({s.over for s in spreads.values()})}"


def _sampling_share(spreads: list[Spread]) -> str:
    shares = [abs(s.sd_sampling / s.mean) for s in spreads if s.over == "training" and s.sd_sampling and s.mean]
    if not shares:
        return ""
    return f" The std over samplings of one training is {100 * median(shares):.1f} % of a cell's first number (median)."


def _excluded(over: set[str | None]) -> str:
    """The variance that ± leaves out."""
    text = ""
    if "images" in over:
        text += " The ± of a single run excludes the variance of training and sampling; no ± means none was recorded."
    if over & {"training", "sampling"}:
        text += " All seeds share tokenizer and feature extractor, so ± excludes their variance."
    return text


def jackknife_groups(records: Records) -> str:
    """``10 groups``; several numbers are joined by a slash."""
    found = (_get(record.protocol, "settings.jackknife_groups") for record in records)
    return f"{'/'.join(dict.fromkeys(str(n) for n in found if n))} groups".strip()


def _left_out(found: Measured) -> str:
    if not (n := found.left_out):
        return ""
    return f"{n} {'record is' if n == 1 else 'records are'} left out: on seeds of other tables that not all rows have."


# --- settings and origin --------------------------------------------------------------------------------


def _settings(experiment: Experiment) -> str:
    """Training and sampling settings, each with the bundles that change it."""
    swept = [(experiment.rows[row], sweep.points[0][0]) for row, sweep in experiment.sweeps.items()]

    def unless_chosen(knob: str, value_of: Callable[[RunSpec], str]) -> Callable[[RunSpec], str]:
        def value(spec: RunSpec) -> str:
            chosen = any(spec is other and f"sampling.{knob}" in values for other, values in swept)
            return "chosen for each cell" if chosen else value_of(spec)

        return value

    def guidance(spec: RunSpec) -> str:
        s = spec.sampling
        channels = "" if s.guided_channels is None else f" on {s.guided_channels} channels"
        return "off" if s.guidance_scale == 1 else f"{s.guidance_scale:g} {s.guidance_schedule}{channels}"

    def denoising(spec: RunSpec) -> str:
        steps = str(spec.sampling.num_diffusion_steps).lower()
        return f"{steps} of DDIM" if spec.sampling.sampler == "ddim" else steps

    knobs: dict[str, Callable[[RunSpec], str]] = {
        "Guidance": unless_chosen("guidance_scale", guidance),
        "temperature": unless_chosen("temperature", lambda spec: f"{spec.sampling.temperature:g}"),
        "AR steps": lambda spec: str(spec.sampling.num_ar_steps).lower(),
        "denoising steps": denoising,
        "training": lambda spec: f"{spec.train.steps} steps of {spec.train.batch_size} images",
        "weights": lambda spec: spec.sampling.weights,
    }
    return "; ".join(f"{name} {by_axes(experiment, knob)}" for name, knob in knobs.items()) + "."


def _origin(found: Measured) -> str:
    """Commits and devices of the records."""
    if not (used := _records(found, "generation", "reconstruction", "speed")):
        return ""
    commits = sorted({_commit(record) for record in used})
    devices = sorted({str(record.provenance.get("device") or "unknown device") for record in used})
    return f"Records: {len(used)}, from {'; '.join(commits)}; on {'; '.join(devices)}."


def _commit(record: Record) -> str:
    git = record.provenance.get("git") or {}
    if not git.get("commit"):
        return f"mar_bench {record.provenance.get('mar_bench', 'of unknown version')} without a commit"
    return f"commit {git['commit'][:10]}{' with uncommitted changes' if git.get('dirty') else ''}"


def _each(records: Records, path: str) -> str:
    """A number in the protocols, ``?`` if it was not recorded; several are joined by a slash."""
    found = (_get(record.protocol, path) for record in records)
    return "/".join(dict.fromkeys("?" if value is None else str(value) for value in found))


def _get(block: dict[str, Any], path: str) -> Any:
    found: Any = block
    for key in path.split("."):
        found = (found or {}).get(key)
    return found


# --- sweep points and tokenizers ------------------------------------------------------------------------


def _footnotes(experiment: Experiment) -> Iterator[str]:
    """The sweep point or tokenizer selected for each row, and its alternatives."""
    run = f"`mar-bench run {experiment.id} --scale {experiment.scale}`"
    for search in experiment.searches:
        if search.judge in experiment.choices:
            yield _tokenizer(experiment, search)
        else:
            waiting = f"{len(search.points)} tokenizers of their search"
            yield f"{', '.join(search.rows)}: {NOT_CHOSEN}; {run} measures the {waiting}."
    for row, sweep in experiment.sweeps.items():
        if row in experiment.choices:
            yield _sweep_point(experiment, row)
        else:
            yield f"{row}: {NOT_CHOSEN}; {run} measures the {len(sweep.points)} points of its sweep."


def _tokenizer(experiment: Experiment, search: Search) -> str:
    choice = experiment.choices[search.judge]
    points = "; ".join(
        f"{_setting(point['values'])}: {number(point['reconstruction'])} and {number(point['loss'])}, "
        f"score {number(point['value'])}"
        for point in choice["points"]
    )
    distance, steps = metric_of(experiment, "fd", images=None), search.points[0][1].train.steps
    return (
        f"{', '.join(search.rows)}: tokenizer with {_setting(choice['chosen'])}, chosen among {points} (reconstruction "
        f"{distance} and held-out loss after {steps} training steps of {search.judge}). The score, lower is better, is "
        "the sum of both, each divided by the best."
    )


def _sweep_point(experiment: Experiment, row: str) -> str:
    choice, metric = experiment.choices[row], experiment.choices[row]["metric"]
    name = with_unit(experiment, metric_short(experiment, metric), metric)
    points = "; ".join(
        f"{_setting(point['values'])}: {metric_number(experiment, metric, point['value'])}"
        for point in choice["points"]
    )
    return (
        f"{row}: {_setting(choice['chosen'])}, chosen by the {'lowest' if choice['minimise'] else 'highest'} {name} on "
        f"sampling seed {choice['sampling_seed']} among {points}."
    )


def _setting(values: dict[str, Any]) -> str:
    """``guidance_scale 3, temperature 1``."""
    return ", ".join(f"{knob} {value}" for knob, value in _knobs(values))


def _knobs(values: dict[str, Any]) -> list[tuple[str, str]]:
    return [(p.rpartition(".")[2], f"{v:g}" if isinstance(v, float) else str(v)) for p, v in values.items()]


def chosen_words(experiment: Experiment, row: str) -> str:
    """``guidance_scale=3;temperature=1``; empty for a row without a choice."""
    if row in experiment.choices:
        return ";".join(f"{knob}={value}" for knob, value in _knobs(experiment.choices[row]["chosen"]))
    return NOT_CHOSEN if experiment.is_open(row) else ""
