"""Notes below a table: protocol, seeds, settings, origin, and the sweep point or tokenizer selected for each row."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from mar_bench.config.experiment import Experiment
from mar_bench.records.metrics import METRICS, REAL_METRICS
from mar_bench.records.record import Record
from mar_bench.report import format as fmt
from mar_bench.report.paper_agreement import is_comparable
from mar_bench.report.stats import design
from mar_bench.report.table.measured import Measured

SHORT = ("brackets", "features", "speed", "seeds")  # what a caption cannot do without
WHY_NONE = (
    "No verdict against the paper's numbers: they are from 50,000 ImageNet images at paper scale, measured with the "
    "2015 Inception network."
)


def notes(found: Measured) -> dict[str, str]:
    """Subject -> one or a few sentences; subjects that do not apply are left out."""
    experiment, layout = found.experiment, found.experiment.layout
    shown = [*layout.get("metrics", ["fd"]), *layout.get("beside", [])]
    names = [fmt.paper_name(metric) for metric in shown if fmt.in_paper(experiment, metric)]
    with_verdict = {name for name, metric in METRICS.items() if metric.tolerance}
    published = [row for row in experiment.rows if experiment.paper.get(row, {}).keys() & with_verdict]
    texts = {}
    if names:
        where = "" if experiment.scale == "paper" else ", another data set at another scale"
        source = f" Source: {experiment.source}." if experiment.source else ""
        texts["brackets"] = f"In brackets: the paper's {fmt.listed(names)} on ImageNet 256x256{where}.{source}"
    if published and not any(is_comparable(experiment, row) for row in published):
        texts["verdicts"] = WHY_NONE
    if extractors := " / ".join(fmt.extractors(experiment)):
        texts["features"] = (
            f"FD and IS: Fréchet distance on the features of {extractors} and inception-style score on its classes; "
            "not comparable with the paper's FID and IS."
        )
    texts |= {"protocol": _protocol(found), "real": _real(found)}
    if "seconds_per_image" in shown and found.speed_setting is not None:
        words = fmt.column_words(experiment, found.speed_column), found.speed_setting
        texts["speed"] = f"Seconds per image: {', '.join(filter(None, words))}."
    texts["seeds"] = _seeds(found, shown[0])
    if found.left_out:
        texts["left out"] = f"Records left out, on seeds of other tables that not all rows have: {found.left_out}."
    texts |= {"settings": _settings(experiment), "origin": _origin(found), **_choices(experiment)}
    return {subject: text for subject, text in texts.items() if text}


def _seeds(found: Measured, metric: str) -> str:
    """What ± is over, for each group of cells with the same seeds, and what variance it excludes."""
    spreads = {row: s for row in found.experiment.rows if (s := found.spread(row, metric)).n}
    designs: dict[str, list[str]] = {}
    for row, spread in spreads.items():
        designs.setdefault(design(spread), []).append(row)
    if not designs:
        return ""
    text = "; ".join(f"{text} in {', '.join(rows)}" if len(designs) > 1 else text for text, rows in designs.items())
    over = {spread.over for spread in spreads.values()}
    if "images" in over:
        text += ". The ± of a single run excludes the variance of training and sampling; no ± means none was recorded"
    if over & {"training", "sampling"}:
        text += ". All seeds share tokenizer and feature extractor, so ± excludes their variance"
    return f"{text[0].upper()}{text[1:]}."


def _protocol(found: Measured) -> str:
    """The images, references and parameters behind each metric that was measured."""
    done = _records(found, "generation")
    blocks = [record.protocol.get("reference") or {} for record in done]
    kinds = ("training" if b.get("kind", "training") == "training" else f"reference ({b.get('name')})" for b in blocks)
    real = f"{' / '.join(dict.fromkeys(kinds))} images"
    generated, features = _each(done, "num_generated"), f"{_each(done, 'reference.num_features')} {real}"
    subsets, size = (_each(done, f"settings.kid_{key}") for key in ("subsets", "subset_size"))
    texts = {
        "fd": f"{fmt.column_title(found.experiment, 'fd')}: {generated} generated images (labels "
        f"{_each(done, 'label_mode')}) against {_each(done, 'num_reference')} {real}.",
        "fd:heldout": f"Held-out: against {_each(done, 'num_heldout')} images never trained on.",
        "rfd": f"Reconstruction: the row's tokenizer alone on held-out images, against the same {real}.",
        "kid": f"KID: mean over {subsets} subsets of {size} images each of the generated and of {features}.",
        "precision": f"Precision and Recall: {generated} generated images against {features}, with the radius of "
        f"{_each(done, 'settings.neighbours')} neighbours.",
        "copied": "Copied: percentage of generated images at least as close to a training image as the nearest "
        "different training image is; compare with the percentage of held-out real images.",
    }
    measured = {metric for _, metric in found.spreads} | {"rfd" for _ in found.once("rfd")}
    return " ".join(text for metric, text in texts.items() if metric in measured)


def _real(found: Measured) -> str:
    """The same metrics for held-out real images: what a perfect generator would reach."""
    experiment, words = found.experiment, []
    for metric in REAL_METRICS:
        base = METRICS[metric].base
        name = found.reconstruction_distance() if base == "fd" else METRICS[base].label
        numbers = dict.fromkeys(fmt.metric_number(experiment, base, value) for value in found.once(metric).values())
        if numbers:
            words.append(f"{fmt.with_unit(experiment, name, base)} = {' / '.join(numbers)}")
    return f"Held-out real images against the training images: {', '.join(words)}." if words else ""


def _records(found: Measured, *tasks: str) -> list[Record]:
    """The done records behind the table, each once though rows may share it."""
    return list({record.id: record for _, record in found.done(*tasks)}.values())


def _each(records: Iterable[Record], path: str) -> str:
    """A value in the protocols, ``?`` if it was not recorded; several are joined by a slash."""
    found: dict[str, None] = {}
    for record in records:
        value: Any = record.protocol
        for key in path.split("."):
            value = (value or {}).get(key)
        found["?" if value is None else str(value)] = None
    return "/".join(found)


def _settings(experiment: Experiment) -> str:
    """The values of training and sampling settings among the rows."""
    specs = [spec for row, spec in experiment.rows.items() if not experiment.is_open(row)]
    sampling, training = [spec.sampling for spec in specs], [spec.train for spec in specs]
    found: dict[str, list[str]] = {
        "guidance": [f"{s.guidance_scale:g} {s.guidance_schedule}" for s in sampling],
        "temperature": [f"{s.temperature:g}" for s in sampling],
        "AR steps": [str(s.num_ar_steps or "none") for s in sampling],
        "denoising steps": [str(s.num_diffusion_steps or "none") for s in sampling],
        "weights": [s.weights for s in sampling],
        "training": [f"{t.steps} steps of {t.batch_size} images" for t in training],
    }
    settings = "; ".join(f"{name} {' / '.join(dict.fromkeys(values))}" for name, values in found.items())
    return f"Settings of the rows: {settings}. `mar-bench show {experiment.id}/ROW` prints all of one." * bool(specs)


def _origin(found: Measured) -> str:
    """Commits and devices of the records."""
    used = _records(found, "generation", "reconstruction", "speed")
    commits, devices = set(), set()
    for made in (record.provenance for record in used):
        git = made.get("git") or {}
        dirty = " with uncommitted changes" if git.get("dirty") else ""
        commits.add(f"commit {(git.get('commit') or 'unknown')[:10]}{dirty}")
        devices.add(str(made.get("device") or "unknown device"))
    return f"Records: {len(used)}, from {'; '.join(sorted(commits))}; on {'; '.join(sorted(devices))}." if used else ""


def _choices(experiment: Experiment) -> dict[str, str]:
    """The sweep point or tokenizer selected for each row, and its alternatives."""
    searches = {search.judge: (", ".join(search.rows), search.points) for search in experiment.searches}
    sweeps = {row: (row, sweep.points) for row, sweep in experiment.sweeps.items()}
    texts = {}
    for row, (rows, candidates) in {**searches, **sweeps}.items():
        if (choice := experiment.choices.get(row)) is None:
            run = f"`mar-bench run {experiment.id} --scale {experiment.scale}`"
            texts[row] = f"{rows}: {fmt.NOT_CHOSEN}; {run} measures the {len(candidates)} candidates."
            continue
        if row in searches:
            number: Callable[[float], str] = fmt.number
            by = f"lowest sum of reconstruction distance and loss of a short training of {row}, each over the best"
        else:
            number = partial(fmt.metric_number, experiment, choice["metric"])
            by = f"{'lowest' if choice['minimise'] else 'highest'} {fmt.column_title(experiment, choice['metric'])}"
        among = "; ".join(f"{_setting(point['values'])}: {number(point['value'])}" for point in choice["points"])
        seed = f" on sampling seed {choice['sampling_seed']}"
        texts[row] = f"{rows}: {_setting(choice['chosen'])}, chosen by the {by}{seed}, among {among}."
    return texts


def _setting(values: dict[str, Any], sign: str = " ", separator: str = ", ") -> str:
    """``guidance_scale 3, temperature 1``."""
    words = {path.rpartition(".")[2]: f"{v:g}" if isinstance(v, float) else str(v) for path, v in values.items()}
    return separator.join(f"{name}{sign}{value}" for name, value in words.items())


def chosen_words(experiment: Experiment, row: str) -> str:
    """``guidance_scale=3;temperature=1``; empty for a row without a choice."""
    if row in experiment.choices:
        return _setting(experiment.choices[row]["chosen"], "=", ";")
    return fmt.NOT_CHOSEN if experiment.is_open(row) else ""
