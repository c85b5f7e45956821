"""Sentences about a table: warnings above it; notes below it on protocol, seeds, settings, origin and choices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import Any

from mar_bench.config.experiment import Experiment
from mar_bench.config.spec import SamplingSpec
from mar_bench.records.comparable import conditions, differences, instrument_differences
from mar_bench.records.metrics import GENERATION_METRICS, LIKELIHOOD_METRICS, METRICS, REAL_METRICS
from mar_bench.records.record import Record
from mar_bench.report import format as fmt
from mar_bench.report.frames import values
from mar_bench.report.paper_agreement import is_comparable
from mar_bench.report.show_record import weaknesses
from mar_bench.report.stats import design
from mar_bench.report.table.grid import Measured
from mar_bench.utils.console import printable

ERROR_LENGTH = 160
Placed = tuple[str, Record]  # a row, and a record of it
UNLIKE = "**Warning: measured differently, do not compare.**"
SHORT = ("brackets", "features", "speed", "seeds")  # the notes that every caption needs
WHY_NONE = (
    "No verdict against the paper's numbers: they are from 50,000 ImageNet images at paper scale, measured with the "
    "2015 Inception network."
)
PAPER_RFID = (
    "The paper's reconstruction FID is against ImageNet's training images. Against the validation images, as others "
    "report it, its KL-16 (ImageNet) has 0.53 instead of 1.22 (LTH14/mar, issue 3; hustvl/LightningDiT, issue 7)."
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
        texts["brackets"] = f"In brackets: the paper's {', '.join(names)} on ImageNet 256x256{where}.{source}"
    if published and not any(is_comparable(experiment, row) for row in published):
        texts["verdicts"] = WHY_NONE
    if extractors := " / ".join(fmt.extractors(experiment)):
        texts["features"] = (
            f"FD and IS: Fréchet distance on the features of {extractors} and inception-style score on its classes; "
            "not comparable with the paper's FID and IS."
        )
    if "rfd" in shown and fmt.in_paper(experiment, "rfd"):
        texts["reconstruction"] = PAPER_RFID
    texts |= {"protocol": _protocol(found), "real": _real(found)}
    if "seconds_per_image" in shown and found.speed_setting is not None:
        words = fmt.column_words(experiment, fmt.lines_and_columns(experiment)[1][-1]), found.speed_setting
        texts["speed"] = f"Seconds per image: {', '.join(filter(None, words))}."
    texts["seeds"] = _seeds(found, shown[0])
    texts |= {"settings": _settings(experiment), "origin": _origin(found), **_choices(experiment)}
    return {subject: text for subject, text in texts.items() if text}


def _seeds(found: Measured, metric: str) -> str:
    """The seeds that ± covers, for each group of cells with the same seeds, and the variance that it excludes."""
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
    done = _records(found, "generation") or _records(found, "reconstruction")
    real = f"{_each(done, 'reference.kind')} images ({_each(done, 'reference.name')})"
    generated, features = _each(done, "num_generated"), f"{_each(done, 'reference.num_features')} {real}"
    subsets, size = (_each(done, f"settings.kid_{key}") for key in ("subsets", "subset_size"))
    texts = {
        "fd": f"{fmt.column_title(found.experiment, 'fd')}: {generated} generated images (labels "
        f"{_each(done, 'label_mode')}) against {_each(done, 'num_reference')} {real}.",
        "fd:heldout": f"Held-out: against {_each(done, 'num_heldout')} images never trained on.",
        "rfd": f"Reconstruction: the row's tokenizer alone on held-out images, against the same {real} or (vs "
        "held-out) against those images themselves.",
        "latent_noise": "Latent noise: standard deviation of the encoder's own noise relative to that of the tokens.",
        "kid": f"KID: mean over {subsets} subsets of {size} images each of the generated and of {features}.",
        "mind": f"MIND: sliced Wasserstein distance over {_each(done, 'settings.mind_projections')} projections, of "
        f"{_each(done, 'settings.mind_images')} generated images and as many of {features}.",
        "precision": f"Precision and Recall: {generated} generated images against {features}, with the radius of "
        f"{_each(done, 'settings.neighbours')} neighbours.",
        "copied": "Copied: percentage of generated images at least as close to a training image as the nearest "
        "different training image is; compare with the percentage of held-out real images.",
    }
    measured = found.measured()
    return " ".join([*(text for metric, text in texts.items() if metric in measured), *_likelihoods(found)])


def _likelihoods(found: Measured) -> list[str]:
    """What a likelihood is; empty without one."""
    if not (done := _records(found, "likelihood")):
        return []
    bounds = " of a diffusion head an upper bound;" * any(r.protocol.get("likelihood") == "bound" for r in done)
    return [
        f"NLL: bits per token of {_each(done, 'scored.heldout')} held-out and {_each(done, 'scored.train')} training "
        f"images by the chain rule, one token per step, averaged over {_each(done, 'orders')} orders of each image;"
        f"{bounds} of continuous tokens for a density, so that it may be negative. Guidance, temperature and AR steps "
        "play no role; numbers of different tokenizers do not compare."
    ]


def _real(found: Measured) -> str:
    """The same metrics for held-out real images, which a perfect generator would reach."""
    experiment, words = found.experiment, []
    for metric in REAL_METRICS:
        base = METRICS[metric].base
        name = found.reconstruction_distance() if base == "fd" else METRICS[base].label
        numbers = dict.fromkeys(
            fmt.metric_number(experiment, base, value) for value in values(found.frame, metric).values()
        )
        if numbers:
            words.append(f"{fmt.with_unit(experiment, name, base)} = {' / '.join(numbers)}")
    return f"Held-out real images against the training images: {', '.join(words)}." if words else ""


def _records(found: Measured, *tasks: str) -> list[Record]:
    """The done records behind the table, each once even if rows share it."""
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
        "denoising steps": [_denoising(s) for s in sampling],
        "weights": [s.weights for s in sampling],
        "training": [f"{t.steps} steps of {t.batch_size} images" for t in training],
    }
    settings = "; ".join(f"{name} {' / '.join(dict.fromkeys(values))}" for name, values in found.items())
    return f"Settings of the rows: {settings}. `mar-bench show {experiment.id}/ROW` prints all of one." * bool(specs)


def _denoising(sampling: SamplingSpec) -> str:
    last = f" to {sampling.last_diffusion_steps}" * (sampling.last_diffusion_steps is not None)
    sampler = f" {sampling.sampler}" * (sampling.sampler != "ddpm")
    return f"{sampling.num_diffusion_steps or 'none'}{last}{sampler}"


def _origin(found: Measured) -> str:
    """Commits and devices of the records."""
    used = _records(found, "generation", "reconstruction", "likelihood", "speed")
    commits, devices = set(), set()
    for made in (record.provenance for record in used):
        git = made.get("git") or {}
        dirty = " with uncommitted changes" if git.get("dirty") else ""
        commits.add(f"commit {(git.get('commit') or 'unknown')[:10]}{dirty}")
        devices.add(str(made.get("device") or "unknown device"))
    return f"Records: {len(used)}, from {'; '.join(sorted(commits))}; on {'; '.join(sorted(devices))}." if used else ""


def _choices(experiment: Experiment) -> dict[str, str]:
    """The sweep point selected for each row, and its alternatives."""
    texts = {}
    for row, sweep in experiment.sweeps.items():
        if (choice := experiment.choices.get(row)) is None:
            run = f"`mar-bench run {experiment.id} --scale {experiment.scale}`"
            texts[row] = f"{row}: {fmt.NOT_CHOSEN}; {run} measures the {len(sweep.points)} candidates."
            continue
        number = partial(fmt.metric_number, experiment, choice["metric"])
        by = f"{'lowest' if choice['minimise'] else 'highest'} {fmt.column_title(experiment, choice['metric'])}"
        among = "; ".join(f"{_setting(point['values'])}: {number(point['value'])}" for point in choice["points"])
        seed = f" on sampling seed {choice['sampling_seed']}"
        texts[row] = f"{row}: {_setting(choice['chosen'])}, chosen by the {by}{seed}, among {among}."
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


def warnings(found: Measured) -> list[str]:
    """One line for each reason to trust numbers of the table less."""
    unlike: dict[str, list[str]] = {}  # where and how -> metrics
    known = {record.id: conditions(record) for _, record in found.done("generation", "reconstruction", "likelihood")}
    layout, likelihoods = found.experiment.layout, LIKELIHOOD_METRICS
    if found.over_training:  # there is no table of further metrics
        shown = {*layout.get("metrics", ()), *layout.get("beside", ()), *found.experiment.figure.get("y", ())}
        likelihoods = tuple(metric for metric in LIKELIHOOD_METRICS if metric in shown)
    every = {"generation": GENERATION_METRICS, "reconstruction": ("fd",), "likelihood": likelihoods}
    for task, metrics in every.items():
        for metric in metrics:
            name = task if task == "reconstruction" else fmt.metric_title(found.experiment, metric, named=False)
            for words in _minorities(found.done(task, metric=metric), metric, known):
                unlike.setdefault(words, []).append(name)
    floors: dict[str, list[str]] = {}  # how -> rows
    placed = found.done("generation", metric="fd")
    for row, floor in found.done("reconstruction", metric="fd"):
        reasons = (reason for of, run in placed if of == row for reason in instrument_differences(run, floor, "fd"))
        for reason in dict.fromkeys(reasons):
            floors.setdefault(reason, []).append(row)
    lines = [f"{UNLIKE} {', '.join(metrics)} of {words}." for words, metrics in unlike.items()]
    lines += [f"{UNLIKE} Samples against reconstruction of {', '.join(rows)}: {how}." for how, rows in floors.items()]
    if " / " in (names := fmt.metric_title(found.experiment, "fd")):
        lines.append(f"**Warning: the rows have different distances**: {names}.")
    weak: dict[str, list[Placed]] = {}
    for row, record in placed:
        for weakness in weaknesses(record.protocol).values():
            weak.setdefault(weakness, []).append((row, record))
    lines += [f"**Warning: {weakness}.** In {_where(some, placed)}." for weakness, some in weak.items()]
    return lines


def _minorities(placed: list[Placed], metric: str, known: dict[str, dict[str, Any]]) -> list[str]:
    """The runs measured differently from the largest group of runs measured alike, and the differences.

    ``known``: the conditions of every record, by its id."""
    alike: dict[tuple[Any, ...], list[Placed]] = {}
    for one in placed:
        alike.setdefault(tuple(known[one[1].id][name] for name in METRICS[metric].conditions), []).append(one)
    groups = sorted(alike.values(), key=len, reverse=True)
    reasons = ["; ".join(differences(group[0][1], groups[0][0][1], metric)) for group in groups]
    return [f"{_where(group, placed)}: {why}" for group, why in zip(groups[1:], reasons[1:])]


def _where(some: list[Placed], every: list[Placed]) -> str:
    """``mar/ce/guided, mar/diff/guided (1 of 3 runs)``."""
    named, total = (Counter(row for row, _ in placed) for placed in (some, every))
    return ", ".join(row if n == total[row] else f"{row} ({n} of {total[row]} runs)" for row, n in named.items())


def failures(found: Measured) -> list[str]:
    """One line per failed generation or likelihood: row, seeds and the first line of the error, as Markdown code."""
    lines: list[str] = []
    for row, tasks in found.selection.items():
        for record in [*tasks["generation"], *tasks["likelihood"]]:
            if record.status != "failed":
                continue
            error = (record.error or "no error was recorded").strip().partition("\n")[0].replace("`", "'")
            train, sampling = record.seeds
            code = printable(error[:ERROR_LENGTH])  # in code nothing else is active
            lines.append(fmt.Block(f"{fmt.inline(row)}, training seed {train}, sampling seed {sampling}: `{code}`"))
    return lines
