"""Resolve a command's arguments and options to experiments and runs, and check that the runs can start here."""

from __future__ import annotations

import fnmatch
import glob
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import entry_points
from itertools import chain
from pathlib import Path

from mar_bench.config.checks import check_counts
from mar_bench.config.choices import with_choices
from mar_bench.config.experiment import Experiment, load_experiment
from mar_bench.config.ids import Run, chosen_rows, plan_runs
from mar_bench.config.spec import CHOICE_SEED, RUN_KEYS
from mar_bench.config.yaml_layers import experiment_files, parse_overrides, split_row
from mar_bench.models.pretrained.fetch import located
from mar_bench.pipeline.room import check_room
from mar_bench.records.provenance import device_name
from mar_bench.records.record import Records
from mar_bench.utils.errors import UserError, did_you_mean, shortened
from mar_bench.utils.yaml_text import Typed


@dataclass(frozen=True)
class Selection:
    """Experiments, and the runs of each by its id.

    ``waiting`` gives the number of evaluations of each row (``table1/mar/diff/guided``) whose sweep is not measured."""

    experiments: list[Experiment]
    planned: dict[str, list[Run]]
    waiting: dict[str, int]

    @property
    def runs(self) -> list[Run]:
        """All runs, each id once; a cell takes precedence over a sweep point with its id."""
        found: dict[str, Run] = {}
        for run in chain(*self.planned.values()):
            if run.id not in found or (run.choice and not found[run.id].choice):
                found[run.id] = run
        return list(found.values())


def select(
    words: list[str] | None,
    every: bool,
    scale: str,
    records: Records,
    seeds: str | None = None,
    sampling_seeds: str | None = None,
    only: str | None = None,
    device: str | None = None,
) -> Selection:
    """The runs that a command asks for. ``device`` is the device whose speed is measured; default: this machine's.

    Raises UserError for an unknown name, seed, override or pattern, and for runs that no machine can hold."""
    found = Selection(load_all(words, every, scale, records, only), {}, {})
    files: dict[str, object] = {}
    for experiment in found.experiments:
        if (file := files.setdefault(experiment.id, experiment.file)) != experiment.file:
            raise UserError(f"{experiment.file}: its id '{experiment.id}' is already the id of {file}; give it another")
        if every and only is not None and not fnmatch.filter(experiment.rows, only):
            continue
        training = _seeds("--seeds", seeds, experiment.seeds.get("training"), every)
        sampling = _seeds("--sampling-seeds", sampling_seeds, experiment.seeds.get("sampling"), every)
        if CHOICE_SEED in (sampling or ()):
            raise UserError(
                f"--sampling-seeds {sampling_seeds}: sweeps are compared on seed {CHOICE_SEED}; leave it out"
            )
        chosen_rows(experiment, only)  # there is one
        here = device or device_name(next(iter(experiment.rows.values())).compute.device)
        found.planned[experiment.id] = plan_runs(experiment, training, sampling, only, here)
        open_rows = filter(experiment.is_open, chosen_rows(experiment, only))
        evaluations = len(training or [0]) * len(sampling or [0])
        found.waiting.update({f"{experiment.id}/{row}": evaluations for row in open_rows})
    if not found.planned:
        raise UserError(f"--only '{only}' matches no row of any experiment")
    check_room(found.runs)
    return found


def load_all(
    words: list[str] | None, every: bool, scale: str, records: Records, only: str | None = None
) -> list[Experiment]:
    """The experiments named by a command's words, or all with a row at the scale, with overrides applied and sweep
    points chosen; overrides need to fit only the rows that match ``only``."""
    names, overrides = names_and_overrides(words)
    if every and names:
        raise UserError(f"--all means every experiment; leave out {' '.join(names)}")
    if not (names or every):
        raise UserError("this needs an experiment (mar-bench list shows them), or --all")
    found = [load(name, scale, overrides, records, only) for name in (experiment_files() if every else names)]
    return [experiment for experiment in found if experiment.rows or not every]  # some exist at small scales only


def load(name: str, scale: str, overrides: list[str] | None, records: Records, only: str | None = None) -> Experiment:
    """An experiment, with each row at the sweep point that the records choose. Seeds cannot be overridden."""
    asked = (lambda row: True) if only is None else partial(fnmatch.fnmatch, pat=only)
    experiment = load_experiment(name, scale, overrides or (), asked)
    given = parse_overrides(overrides or ())
    for block, option in (("train", "--seeds"), ("sampling", "--sampling-seeds")):
        keys = given.get(block)
        if "seed" in (keys.as_yaml() if isinstance(keys, Typed) else keys or ()):
            raise UserError(
                f"{block}.seed is chosen by {option} of run and plan; a table shows every seed that has records"
            )
    return with_choices(experiment, records)


def load_row(name: str, scale: str, overrides: list[str] | None, records: Records) -> tuple[Experiment, str | None]:
    """``table1/mar/diff/guided`` as experiment and row, ``table1`` as experiment and None.

    Raises UserError for an unknown row."""
    file, row = split_row(name)
    experiment = load(file, scale, overrides, records, glob.escape(row) if row else None)
    if row and row not in experiment.rows:
        raise UserError(f"{experiment.file}: no row '{row}', {did_you_mean(row, experiment.rows)}")
    return experiment, row or None


def names_and_overrides(words: list[str] | None) -> tuple[list[str], list[str]]:
    """Split words into experiments and overrides; a key without a value counts as a (bad) override."""

    def is_override(word: str) -> bool:
        block, dot, _ = word.partition(".")
        return "=" in word or bool(dot) and block in (*RUN_KEYS, "parts")

    return [w for w in words or () if not is_override(w)], [w for w in words or () if is_override(w)]


def _seeds(option: str, text: str | None, own: list[int] | None, every: bool) -> list[int] | None:
    """The seeds of an option; "own", implied by --all, means the experiment file's."""
    if text == "own" or (text is None and every):
        return own
    return None if text is None else parse_seeds(option, text)


def parse_seeds(option: str, text: str) -> list[int]:
    """``0,1,2`` as whole numbers."""
    words = [word.strip() for word in text.split(",")]
    if not all(re.fullmatch("0|[1-9][0-9]{0,18}", word) for word in words) or max(map(int, words)) >= 2**63:
        wanted = "expected whole numbers below 2^63 separated by commas, as in 0,1,2"
        raise UserError(f"{option} {shortened(text)}: {wanted}")
    return list(dict.fromkeys(map(int, words)))


def preflight(runs: list[Run]) -> None:
    """Raises UserError naming the key to set if a run needs a file that is not on this machine."""
    for data in dict.fromkeys(run.spec.data for run in runs if run.spec.data.kind == "idx"):
        from mar_bench.data.idx import read_idx  # imports numpy

        train_part, test_part = read_idx(data)
        for spec in {run.spec for run in runs if run.spec.data == data}:
            check_counts(spec, len(train_part.labels), len(test_part.labels))
    for run in runs:
        data, tokenizer, train = run.spec.data, run.spec.tokenizer, run.spec.train
        if data.kind == "imagefolder":
            what = f"you must provide the images of '{data.name}': set data.root to a folder with"
            _need(data.root, Path.is_dir, f"{what} train/<class>/* and val/<class>/*")
        if hasattr(tokenizer, "weights"):
            name = getattr(tokenizer, "name", tokenizer.kind)
            what = f"tokenizer '{name}' needs its published weights (mar-bench fetch, convert): set tokenizer.weights"
            _need(tokenizer.weights, Path.is_file, f"{what} to a local file, or parts.tokenizer.<part>.weights")
        if (cache := getattr(tokenizer, "official_cache", None)) is not None:
            _need(cache, Path.is_dir, "set tokenizer.official_cache to a folder with <class>/<image>.npz")
        if train.published is not None:
            what = f"train.published is '{train.published}': set train.weights to the file that mar-bench convert wrote"
            _need(train.weights, Path.is_file, what)
        if run.task in ("likelihood", "speed"):
            continue
        extractor, reference = run.spec.metrics.extractor, run.spec.metrics.reference
        if extractor.kind == "inception":
            located("inception", extractor.weights, "metrics.extractor.weights")
        if extractor.kind == "plugin" and not entry_points(group="mar_bench.extractors", name=extractor.name):
            raise UserError(f"metrics.extractor.name '{extractor.name}': no installed package has this extractor")
        if reference.kind == "file":
            located(reference.name, reference.file, "metrics.reference.file")


def _need(path: str | None, exists: Callable[[Path], bool], what: str) -> None:
    if path is None or not exists(Path(path)):
        raise UserError(f"{what} (found {path or 'none'})")
