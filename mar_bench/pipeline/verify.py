"""Is a record still what this code measures? Scores it again from what was kept, and draws images again."""

from __future__ import annotations

import functools
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from mar_bench.config.ids import Run, stage_ids
from mar_bench.config.parse import KeyPathError, parse
from mar_bench.config.spec import MetricsSpec, RunSpec
from mar_bench.data.datasets import batches, to_images
from mar_bench.data.image_sets import Digest
from mar_bench.metrics.functions import frechet_distance
from mar_bench.metrics.references import read_reference
from mar_bench.metrics.score import Measure, load_seen
from mar_bench.models.build import pick_device
from mar_bench.pipeline.eval_images import TASK
from mar_bench.pipeline.sample import batch_file, draw_batch, read_batch
from mar_bench.pipeline.stages import HELDOUT, REFERENCE, SEEN, STATISTICS, load_generator, load_tokenizer
from mar_bench.pipeline.store import Places, is_sound
from mar_bench.records.provenance import device_name, git_state
from mar_bench.records.record import Record, metric_name
from mar_bench.utils.errors import UserError
from mar_bench.utils.noise import NoiseSource

TOLERANCE = 1e-6  # relative; another number of threads adds in another order
DAMAGE = (LookupError, TypeError, ValueError, OSError, RuntimeError, SafetensorError, zipfile.BadZipFile)
EQUAL, CLOSE, DIFFERENT, NOT_KEPT = "equal", "close", "DIFFERENT", "not kept"


@dataclass
class Findings:
    """``lines``: what was compared, recorded, found, verdict; ``notes``: what a reader must know of it."""

    lines: list[tuple[str, str, str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        return all(line[3] != DIFFERENT for line in self.lines)

    def number(self, name: str, recorded: float, found: float) -> None:
        same = math.isclose(recorded, found, rel_tol=TOLERANCE, abs_tol=1e-12)
        verdict = EQUAL if recorded == found else CLOSE if same else DIFFERENT
        self.lines.append((name, f"{recorded:.10g}", f"{found:.10g}", verdict))

    def text(self, name: str, recorded: str, found: str) -> None:
        self.lines.append((name, recorded[:12], found[:12], EQUAL if recorded == found else DIFFERENT))


def _or_error(work: Callable) -> Callable:
    """Of damaged records and files numpy, torch and safetensors say what they like; a user is told in a line."""

    @functools.wraps(work)
    def guarded(record: Record, *rest) -> Findings:
        try:
            return work(record, *rest)
        except UserError:
            raise
        except DAMAGE as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            raise UserError(
                f"record {record.id}: it or a file that it needs is damaged ({reason}); restore it, or make it again "
                "by the record's command (mar-bench show)"
            ) from None

    return guarded


@_or_error
def rescore(record: Record, places: Places) -> Findings:
    """All metrics from kept features, or the distances alone from kept statistics.

    Raises UserError where nothing was kept, or the record is none of images."""
    if record.status != "done" or record.task not in ("generation", "reconstruction", TASK):
        raise UserError(f"record {record.id}: a {record.status} {record.task} record has no images to score again")
    folder = places.folder(record.task, record.id)
    if not is_sound(folder):
        raise UserError(
            f"record {record.id}: what was kept of it is not whole in {places.runs} ({record.task}/{record.id}); "
            "--runs names another folder, and the record's command makes it again (mar-bench show)"
        )
    if not {"extractor", "reference", "samples"} <= record.protocol.keys():
        raise UserError(f"record {record.id}: it does not say what it was measured with; measure again (mar-bench run)")
    threads = (record.spec.get("compute") or {}).get("threads") or record.provenance.get("threads")
    if isinstance(threads, int) and threads > 0:
        torch.set_num_threads(threads)  # another number adds in another order
    findings = Findings()
    real = folder if record.task == TASK else places.folder("extractor", record.ids["extractor_id"])
    if not is_sound(real):
        raise UserError(
            f"record {record.id}: its reference (extractor/{real.name}) is not whole in {places.runs}; the record's "
            "command makes it again (mar-bench show)"
        )
    reference = read_reference(real / REFERENCE)
    findings.text("extractor", record.protocol["extractor"]["sha256"], reference.extractor["sha256"])
    findings.text("reference", record.protocol["reference"]["sha256"], reference.about["sha256"])
    heldout = read_reference(real / HELDOUT) if (real / HELDOUT).is_file() else None
    if (folder / SEEN).is_file():
        seen = load_seen(folder / SEEN)
        findings.text("images, as kept", record.protocol["samples"]["sha256"], seen.about["sha256"])
        measure = Measure(settings_of(record), reference, heldout)
        found = measure(seen)
        metrics = found.metrics | (measure.real() if record.task == "reconstruction" else {})
        for name, value in found.uncertainty.items():
            if "standard_error" in value:
                recorded = record.uncertainty.get(name, {}).get("standard_error", math.nan)
                findings.number(f"± {name}", recorded, value["standard_error"])
        for name in metrics.keys() - record.metrics.keys():
            findings.lines.append((name, "not recorded", f"{metrics[name]:.10g}", DIFFERENT))
        _compare_protocols(record.protocol, found.protocol, findings)
    else:
        with np.load(folder / STATISTICS) as kept:
            statistics = dict(kept)
        extractor = record.protocol["extractor"]
        parts = {"fd": reference, "fd:heldout": heldout}
        metrics = {metric_name(m, extractor): frechet_distance(statistics, r.statistics) for m, r in parts.items() if r}
        findings.notes.append("only statistics were kept: set metrics.keep_features=true to score everything again")
    for name, recorded in record.metrics.items():
        if name in metrics:
            findings.number(name, recorded, metrics[name])
        else:
            findings.lines.append((name, f"{recorded:.10g}", "", NOT_KEPT))
    return findings


def _compare_protocols(recorded: dict[str, Any], found: dict[str, Any], findings: Findings, path: str = "") -> None:
    """A line for each field that says something else now."""
    for name in sorted(found.keys() | recorded.keys()):
        where, pair = f"{path}{name}", (recorded.get(name), found.get(name))
        if where == "tokenizer":  # of the run, not of the measuring
            continue
        if all(isinstance(value, dict) for value in pair):
            _compare_protocols(*pair, findings, f"{where}.")
        elif pair[0] != pair[1]:
            findings.lines.append((where, *(str(value)[:20] for value in pair), DIFFERENT))


def settings_of(record: Record) -> MetricsSpec:
    """Raises UserError where this version does not know a setting."""
    try:
        if record.task == TASK:
            tree = {k: v for k, v in record.spec["metrics"].items() if k != "extractor"}
            return parse(MetricsSpec, tree)
        return run_of(record).spec.metrics
    except KeyPathError as error:
        raise UserError(f"record {record.id}: {error.path}: {error.message}; another version made it") from None


def run_of(record: Record) -> Run:
    """The run that made a record. Raises UserError where this version would not make the same one."""
    try:
        spec = parse(RunSpec, record.spec)
    except KeyPathError as error:
        raise UserError(f"record {record.id}: {error.path}: {error.message}; another version made it") from None
    ids = stage_ids(spec)
    for name, value in record.ids.items():
        if name in ids and name not in ("eval_id", "cell_id") and ids[name] != value:
            raise UserError(
                f"record {record.id}: its {name} is {value}, and of the same spec this version makes {ids[name]}: a "
                f"stage has changed since; check out commit {(record.provenance.get('git') or {}).get('commit')}"
            )
    return Run(record.task, record.id, spec, record.ids)


@_or_error
@torch.inference_mode()
def resample(record: Record, count: int, places: Places) -> Findings:
    """Draw at least ``count`` images of a generation record again, in whole batches, and compare them bit for bit.

    They are compared with the tokens that were kept, where they are, and with the record's own digests of the first
    batch and of all images. Raises UserError where the trained weights are not here."""
    if record.task != "generation" or record.status != "done":
        raise UserError(f"record {record.id}: a {record.status} {record.task} record; nothing was sampled for it")
    if "samples" not in record.protocol:
        raise UserError(f"record {record.id}: it does not say which images it is of; measure again (mar-bench run)")
    run = run_of(record)
    for kind, key in (("train", "train_id"), ("tokenizer", "tokenizer_id")):
        if not is_sound(places.folder(kind, run.ids[key])):
            raise UserError(
                f"record {record.id}: its {kind} ({run.ids[key]}) is not in {places.runs}; the record's command makes "
                "it again (mar-bench show)"
            )
    spec = run.spec
    torch.set_num_threads(spec.compute.threads)
    device, findings = pick_device(spec.compute.device), Findings()
    here = device_name(spec.compute.device)
    if here != record.provenance.get("device"):
        findings.notes.append(f"drawn on {record.provenance.get('device')}, here is {here}: other bits are no surprise")
    model, tokenizer = load_generator(run, places, device), load_tokenizer(run, places, device)
    kept = places.folder("sample", run.ids["sample_id"])
    everything = batches(spec.sampling.num_images, spec.sampling.batch_size)
    chosen = [indices for indices in everything if indices.start < count]
    digest, first = Digest(), Digest()
    equal = compared = 0
    for indices in chosen:
        tokens = draw_batch(spec, model, indices, device)
        if not tokens.isfinite().all():
            raise UserError(f"record {record.id}: the generator's weights draw tokens that are not finite now")
        if batch_file(kept, indices).is_file():
            compared += len(indices)
            equal += int((tokens == read_batch(kept, indices)).flatten(1).all(1).sum())
        images = to_images(tokenizer.decode(tokens.to(device), NoiseSource(spec.sampling.seed, indices)), spec.data)
        digest.update(images)
        if not first.count:
            first.update(images)
    drawn = digest.count
    if compared:
        verdict = EQUAL if equal == compared else DIFFERENT
        findings.lines.append((f"tokens of {compared} images", f"{compared} kept", f"{equal} equal", verdict))
    about = record.protocol["samples"]
    findings.text(f"first {first.count} images", about["first_batch"]["sha256"], first.sha256)
    if drawn == spec.sampling.num_images:
        findings.text(f"all {drawn} images", about["sha256"], digest.sha256)
    return findings


def circumstances(record: Record) -> list[str]:
    """In what this code is not the one that made the record."""
    made, now = record.provenance.get("git") or {}, git_state()
    notes = []
    if made.get("dirty"):
        notes.append("the record was made with uncommitted changes")
    if made.get("commit") and now.get("commit") not in (None, made["commit"]):
        notes.append(f"the record was made at commit {made['commit'][:10]}, this is {now['commit'][:10]}")
    return notes
