"""Notes below a table: protocol, seeds, settings, origin, and the sweep point or tokenizer selected for each row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from statistics import median
from typing import Any

from mar_bench.config.experiment import Experiment
from mar_bench.config.spec import RunSpec
from mar_bench.records.metrics import METRICS, REAL_METRICS
from mar_bench.records.record import Record
from mar_bench.report import format as fmt
from mar_bench.report.spread import design
from mar_bench.report.table.measured import Measured
from mar_bench.report.verdict import WHY_NONE, is_comparable


def notes(found: Measured) -> list[str]:
    """All notes, each of one or a few sentences."""
    experiment, done = found.experiment, _records(found, "generation")
    lines = [_brackets(experiment), _no_verdict(experiment), _features(experiment), *_protocol(found, done)]
    lines += [_real(found), _speed(found), _seeds(found, done)]
    if n := found.left_out:
        records = "1 record is" if n == 1 else f"{n} records are"
        lines.append(f"{records} left out: on seeds of other tables that not all rows have.")
    return list(filter(None, [*lines, _settings(experiment), _origin(found), *_footnotes(experiment)]))


def short_notes(found: Measured) -> list[str]:
    """What a caption cannot do without."""
    experiment, seeds = found.experiment, _seeds(found, _records(found, "generation"))
    return list(filter(None, (_brackets(experiment), _features(experiment), _speed(found), seeds)))


def _records(found: Measured, *tasks: str, metric: str | None = None) -> list[Record]:
    """The done records behind the table, each once though rows may share it."""
    return list({record.id: record for _, record in found.done(*tasks, metric=metric)}.values())


# --- how it was measured --------------------------------------------------------------------------------


def _brackets(experiment: Experiment) -> str:
    shown = [*experiment.layout.get("metrics", ["fd"]), *experiment.layout.get("beside", [])]
    names = [fmt.paper_name(metric) for metric in shown if fmt.in_paper(experiment, metric)]
    where = "" if experiment.scale == "paper" else ", another data set at another scale"
    source = f" Source: {experiment.source}." if experiment.source else ""
    return f"In brackets: the paper's {fmt.listed(names)} on ImageNet 256x256{where}.{source}" if names else ""


def _no_verdict(experiment: Experiment) -> str:
    judged = {name for name, metric in METRICS.items() if metric.tolerance}
    rows = [row for row in experiment.rows if judged & experiment.paper.get(row, {}).keys()]
    return WHY_NONE if rows and not any(is_comparable(experiment, row) for row in rows) else ""


def _features(experiment: Experiment) -> str:
    names = " / ".join(fmt.extractors(experiment))
    return names and (
        f"FD and IS: Fréchet distance on the features of {names} and inception-style score on its classes; not "
        "comparable with the paper's FID and IS."
    )


def _protocol(found: Measured, done: list[Record]) -> Iterator[str]:
    """The images, references and parameters behind each metric that was measured."""
    if not done:
        return
    reference = _joined(
        f"reference images ({block.get('name')})" if block.get("kind", "training") != "training" else "training images"
        for block in (record.protocol.get("reference") or {} for record in done)
    )
    generated, labels = _each(done, "num_generated"), _each(done, "label_mode", "not recorded")
    text = f"{fmt.column_title(found.experiment, 'fd')}: {generated} generated images (labels {labels}) "
    text += f"against {_each(done, 'num_reference')} {reference}"
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
    yield " ".join(text for metric, text in texts.items() if _records(found, "generation", metric=metric))


def _real(found: Measured) -> str:
    """The same metrics for held-out real images: what a perfect generator would reach."""
    words = []
    for metric in REAL_METRICS:
        base = METRICS[metric].base
        name = found.reconstruction_distance if base == "fd" else METRICS[base].label
        if shown := _joined(fmt.metric_number(found.experiment, base, v) for v in found.once(metric).values()):
            words.append(f"{fmt.with_unit(found.experiment, name, base)} = {shown}")
    return f"Held-out real images against the training images: {', '.join(words)}." if words else ""


def _speed(found: Measured) -> str:
    if "seconds_per_image" not in found.experiment.layout.get("beside", []) or found.speed_setting is None:
        return ""
    words = fmt.column_words(found.experiment, found.speed_column)
    return f"Seconds per image: {', '.join(filter(None, (words, found.speed_setting)))}."


def _seeds(found: Measured, done: list[Record]) -> str:
    """What ± is over, for each group of cells with the same seeds, and what variance it excludes."""
    metric = found.experiment.layout.get("metrics", ["fd"])[0]
    spreads = {row: s for row in found.experiment.rows if (s := found.spread(row, metric)).n}
    designs: dict[str, list[str]] = {}
    for row, spread in spreads.items():
        designs.setdefault(design(spread, jackknife_groups(done)), []).append(row)
    if not designs:
        return ""
    text = next(iter(designs))
    if len(designs) > 1:
        largest = max(designs.values(), key=len)
        named = (f"{w} in {f'{len(r)} cells' if r is largest else ', '.join(r)}" for w, r in designs.items())
        text = f"seeds differ between cells: {'; '.join(named)}"
    text = f"{text[:1].upper()}{text[1:]}."
    shares = [s.sd_sampling / abs(s.mean) for s in spreads.values() if s.sd_training and s.sd_sampling and s.mean]
    if shares:
        percent = f"{100 * median(shares):.1f} %"
        text += f" The std over samplings of one training is {percent} of a cell's first number (median)."
    over = {spread.over for spread in spreads.values()}
    if "images" in over:
        text += " The ± of a single run excludes the variance of training and sampling; no ± means none was recorded."
    if over & {"training", "sampling"}:
        text += " All seeds share tokenizer and feature extractor, so ± excludes their variance."
    return text


def jackknife_groups(records: Iterable[Record]) -> str:
    """``10 groups``; several numbers are joined by a slash."""
    return f"{_each(records, 'settings.jackknife_groups', '')} groups".strip()


def _each(records: Iterable[Record], path: str, unknown: str = "?") -> str:
    """A value in the protocols, ``unknown`` if it was not recorded; several are joined by a slash."""
    found = []
    for record in records:
        value: Any = record.protocol
        for key in path.split("."):
            value = (value or {}).get(key)
        found.append(unknown if value is None else str(value))
    return _joined(filter(None, found), "/")


def _joined(words: Iterable[str], separator: str = " / ") -> str:
    return separator.join(dict.fromkeys(words))


# --- settings and origin --------------------------------------------------------------------------------


def _settings(experiment: Experiment) -> str:
    """Training and sampling settings, each with the bundles that change it."""
    swept = {id(experiment.rows[row]): sweep.points[0][0] for row, sweep in experiment.sweeps.items()}

    def setting(name: str, spec: RunSpec) -> str:
        s = spec.sampling
        if f"sampling.{name}" in swept.get(id(spec), {}):
            return "chosen for each cell"
        if name == "training":
            return f"{spec.train.steps} steps of {spec.train.batch_size} images"
        if name == "guidance_scale":
            channels = "" if s.guided_channels is None else f" on {s.guided_channels} channels"
            return "off" if s.guidance_scale == 1 else f"{s.guidance_scale:g} {s.guidance_schedule}{channels}"
        value = getattr(s, name)
        text = "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
        return f"{text} of DDIM" if name == "num_diffusion_steps" and s.sampler == "ddim" else text

    names = {"guidance_scale": "Guidance", "temperature": "temperature", "num_ar_steps": "AR steps"}
    names |= {"num_diffusion_steps": "denoising steps", "training": "training", "weights": "weights"}
    return "; ".join(f"{text} {fmt.by_axes(experiment, partial(setting, name))}" for name, text in names.items()) + "."


def _origin(found: Measured) -> str:
    """Commits and devices of the records."""
    used = _records(found, "generation", "reconstruction", "speed")
    commits, devices = set(), set()
    for made in (record.provenance for record in used):
        git = made.get("git") or {}
        dirty = " with uncommitted changes" if git.get("dirty") else ""
        version = f"mar_bench {made.get('mar_bench', 'of unknown version')} without a commit"
        commits.add(f"commit {git['commit'][:10]}{dirty}" if git.get("commit") else version)
        devices.add(str(made.get("device") or "unknown device"))
    return f"Records: {len(used)}, from {'; '.join(sorted(commits))}; on {'; '.join(sorted(devices))}." if used else ""


# --- sweep points and tokenizers ------------------------------------------------------------------------


def _footnotes(experiment: Experiment) -> Iterator[str]:
    """The sweep point or tokenizer selected for each row, and its alternatives."""
    wait = f"{fmt.NOT_CHOSEN}; `mar-bench run {experiment.id} --scale {experiment.scale}` measures the"
    for search in experiment.searches:
        rows, choice = ", ".join(search.rows), experiment.choices.get(search.judge)
        if choice is None:
            yield f"{rows}: {wait} {len(search.points)} tokenizers of their search."
            continue
        points = "; ".join(
            f"{_setting(point['values'])}: {fmt.number(point['reconstruction'])} and {fmt.number(point['loss'])}, "
            f"score {fmt.number(point['value'])}"
            for point in choice["points"]
        )
        distance, steps = fmt.metric_title(experiment, "fd", False, images=None), search.points[0][1].train.steps
        yield (
            f"{rows}: tokenizer with {_setting(choice['chosen'])}, chosen among {points} (reconstruction {distance} "
            f"and held-out loss after {steps} training steps of {search.judge}). The score, lower is better, is the "
            "sum of both, each divided by the best."
        )
    for row, sweep in experiment.sweeps.items():
        if (choice := experiment.choices.get(row)) is None:
            yield f"{row}: {wait} {len(sweep.points)} points of its sweep."
            continue
        metric, best = choice["metric"], "lowest" if choice["minimise"] else "highest"
        name = fmt.column_title(experiment, metric)
        among = "; ".join(
            f"{_setting(p['values'])}: {fmt.metric_number(experiment, metric, p['value'])}" for p in choice["points"]
        )
        chosen = f"{_setting(choice['chosen'])}, chosen by the {best} {name} on sampling seed {choice['sampling_seed']}"
        yield f"{row}: {chosen} among {among}."


def _setting(values: dict[str, Any], sign: str = " ", separator: str = ", ") -> str:
    """``guidance_scale 3, temperature 1``."""
    words = {path.rpartition(".")[2]: f"{v:g}" if isinstance(v, float) else str(v) for path, v in values.items()}
    return separator.join(f"{name}{sign}{value}" for name, value in words.items())


def chosen_words(experiment: Experiment, row: str) -> str:
    """``guidance_scale=3;temperature=1``; empty for a row without a choice."""
    if row in experiment.choices:
        return _setting(experiment.choices[row]["chosen"], "=", ";")
    return fmt.NOT_CHOSEN if experiment.is_open(row) else ""
