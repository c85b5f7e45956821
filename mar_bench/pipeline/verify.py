"""Checks that a record still holds: scores it again from kept features, and draws its images again."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from mar_bench.config.ids import Run, stage_ids
from mar_bench.config.parse import KeyPathError, parse
from mar_bench.config.spec import MetricsSpec, RunSpec
from mar_bench.data.datasets import batches, to_images
from mar_bench.data.image_sets import Digest
from mar_bench.metrics.functions import frechet_distance
from mar_bench.metrics.references import Reference, read_reference
from mar_bench.metrics.score import Measure, load_features
from mar_bench.models.build import pick_device
from mar_bench.pipeline.eval_images import TASK, finished
from mar_bench.pipeline.sample import batch_file, draw_batch, read_batch
from mar_bench.pipeline.stages import HELDOUT, REFERENCE, SEEN, STATISTICS, load_generator, load_tokenizer
from mar_bench.pipeline.store import Places
from mar_bench.records.metrics import metric_name
from mar_bench.records.provenance import device_name, git_state
from mar_bench.records.record import Record
from mar_bench.utils.errors import UserError
from mar_bench.utils.files import reading
from mar_bench.utils.noise import NoiseSource

TOLERANCE = 1e-6  # relative; another number of threads adds in another order
EQUAL, CLOSE, DIFFERENT, NOT_KEPT = "equal", "close", "DIFFERENT", "not kept"
Spec = TypeVar("Spec", MetricsSpec, RunSpec)


@dataclass
class Findings:
    """``lines`` of (what, recorded, now, verdict), and ``notes`` for the reader."""

    lines: list[tuple[str, str, str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        return all(verdict != DIFFERENT for *_, verdict in self.lines)

    def number(self, name: str, recorded: float, now: float) -> None:
        close = math.isclose(recorded, now, rel_tol=TOLERANCE, abs_tol=1e-12)
        verdict = EQUAL if recorded == now else CLOSE if close else DIFFERENT
        self.lines.append((name, f"{recorded:.10g}", f"{now:.10g}", verdict))

    def text(self, name: str, recorded: str, now: str) -> None:
        self.lines.append((name, recorded[:12], now[:12], EQUAL if recorded == now else DIFFERENT))


def verify(record: Record, places: Places, again: int | None = None) -> Findings:
    """Score a record again; with ``again``, also draw at least so many of its images again.

    Raises UserError if what is needed was not kept, is damaged or was made by another version."""
    findings = Findings(notes=circumstances(record))
    what = "record, or a file that it needs is damaged"
    with reading(f"record {record.id}", what, "restore it, or repeat it with the command of mar-bench show"):
        _rescore(record, places, findings)
        if again is not None:
            _resample(record, again, places, findings)
    return findings


def circumstances(record: Record) -> list[str]:
    """How this code differs from the code that made the record."""
    made, now = record.provenance.get("git") or {}, git_state()
    notes = ["the record was made with uncommitted changes"] if made.get("dirty") else []
    if made.get("commit") and now.get("commit") not in (None, made["commit"]):
        notes.append(f"the record was made at commit {made['commit'][:10]}, this is {now['commit'][:10]}")
    return notes


# --- scores ---------------------------------------------------------------------------------------------


def _rescore(record: Record, places: Places, findings: Findings) -> None:
    """Compare all metrics with those of the kept features, or the distances with those of the kept statistics."""
    if record.status != "done" or record.task not in ("generation", "reconstruction", TASK):
        raise UserError(f"record {record.id}: a {record.status} {record.task} record has no images to score again")
    folder = finished(places, record.task, record.id, f"record {record.id}")
    real = folder
    if record.task != TASK:
        real = finished(places, "extractor", record.ids["extractor_id"], f"record {record.id}")
    if not {"extractor", "reference", "samples"} <= record.protocol.keys():
        raise UserError(f"record {record.id}: its protocol is incomplete; measure it again with mar-bench run")
    threads = (record.spec.get("compute") or {}).get("threads") or record.provenance.get("threads")
    if isinstance(threads, int) and threads > 0:
        torch.set_num_threads(threads)
    reference = read_reference(real / REFERENCE)
    heldout = read_reference(real / HELDOUT) if (real / HELDOUT).is_file() else None
    findings.text("extractor", record.protocol["extractor"]["sha256"], reference.extractor["sha256"])
    findings.text("reference", record.protocol["reference"]["sha256"], reference.about["sha256"])
    if (folder / SEEN).is_file():
        metrics = _from_features(record, folder / SEEN, reference, heldout, findings)
    else:
        with np.load(folder / STATISTICS) as kept:
            statistics = dict(kept)
        metrics = {}
        for metric, other in {"fd": reference, "fd:heldout": heldout}.items():
            if other:
                name = metric_name(metric, record.protocol["extractor"])
                metrics[name] = frechet_distance(statistics, other.statistics)
        findings.notes.append("only statistics were kept; metrics.keep_features=true keeps what all metrics need")
    for name, recorded in record.metrics.items():
        if name in metrics:
            findings.number(name, recorded, metrics[name])
        else:
            findings.lines.append((name, f"{recorded:.10g}", "", NOT_KEPT))


def _from_features(
    record: Record, path: Path, reference: Reference, heldout: Reference | None, findings: Findings
) -> dict[str, float]:
    """All metrics; compares standard errors and protocol."""
    images = load_features(path)
    findings.text("images, as kept", record.protocol["samples"]["sha256"], images.about["sha256"])
    measure = Measure(_settings_of(record), reference, heldout)
    scores = measure(images)
    metrics = scores.metrics | (measure.real() if record.task == "reconstruction" else {})
    for name, uncertainty in scores.uncertainty.items():
        if "standard_error" in uncertainty:
            recorded = record.uncertainty.get(name, {}).get("standard_error", math.nan)
            findings.number(f"± {name}", recorded, uncertainty["standard_error"])
    for name in metrics.keys() - record.metrics.keys():
        findings.lines.append((name, "not recorded", f"{metrics[name]:.10g}", DIFFERENT))
    recorded_protocol = {key: value for key, value in record.protocol.items() if key != "tokenizer"}  # the run's
    _compare(recorded_protocol, scores.protocol, findings)
    return metrics


def _compare(recorded: dict[str, Any], now: dict[str, Any], findings: Findings, path: str = "") -> None:
    """Add a line for each field of a protocol that has changed."""
    for name in sorted(now.keys() | recorded.keys()):
        one, other = recorded.get(name), now.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            _compare(one, other, findings, f"{path}{name}.")
        elif one != other:
            findings.lines.append((f"{path}{name}", str(one)[:20], str(other)[:20], DIFFERENT))


def _settings_of(record: Record) -> MetricsSpec:
    if record.task != TASK:
        return run_of(record).spec.metrics
    return _parsed(record, MetricsSpec, {k: v for k, v in record.spec["metrics"].items() if k != "extractor"})


def run_of(record: Record) -> Run:
    """The run that made a record. Raises UserError if this version would not make the same one."""
    spec = _parsed(record, RunSpec, record.spec)
    ids = stage_ids(spec)
    for name, value in record.ids.items():
        if name in ids and name not in ("eval_id", "cell_id") and ids[name] != value:
            raise UserError(
                f"record {record.id}: its {name} is {value} but this version gives {ids[name]} for the same spec: a "
                f"stage has changed; check out commit {(record.provenance.get('git') or {}).get('commit')}"
            )
    return Run(record.task, record.id, spec, record.ids)


def _parsed(record: Record, kind: type[Spec], tree: dict[str, Any]) -> Spec:
    try:
        return parse(kind, tree)
    except KeyPathError as error:
        raise UserError(f"record {record.id}: {error.path}: {error.message}; another version made it") from None


# --- images ---------------------------------------------------------------------------------------------


@torch.inference_mode()
def _resample(record: Record, count: int, places: Places, findings: Findings) -> None:
    """Draw the batches of at least ``count`` images of a generation record again and compare them bit for bit.

    They are compared with kept tokens and with the record's digests of the first batch and of all images."""
    if record.task != "generation":
        raise UserError(f"record {record.id}: a {record.task} record has no samples to draw again")
    run = run_of(record)
    for kind in ("train", "tokenizer"):
        finished(places, kind, run.ids[f"{kind}_id"], f"record {record.id}")
    spec = run.spec
    torch.set_num_threads(spec.compute.threads)
    device, here = pick_device(spec.compute.device), device_name(spec.compute.device)
    if here != record.provenance.get("device"):
        findings.notes.append(f"drawn on {record.provenance.get('device')}, this is {here}: bits may differ")
    model, tokenizer = load_generator(run, places, device), load_tokenizer(run, places, device)
    kept = places.folder("sample", run.ids["sample_id"])
    digest, first = Digest(), Digest()
    equal = compared = 0
    for indices in batches(spec.sampling.num_images, spec.sampling.batch_size):
        if indices.start >= count:
            break
        tokens = draw_batch(spec, model, indices, device)
        if not tokens.isfinite().all():
            raise UserError(f"record {record.id}: the generator's weights now draw tokens that are not finite")
        if batch_file(kept, indices).is_file():
            compared += len(indices)
            equal += int((tokens == read_batch(kept, indices)).flatten(1).all(1).sum())
        images = to_images(tokenizer.decode(tokens.to(device), NoiseSource(spec.sampling.seed, indices)), spec.data)
        digest.update(images)
        if not first.count:
            first.update(images)
    if compared:
        verdict = EQUAL if equal == compared else DIFFERENT
        findings.lines.append((f"tokens of {compared} images", f"{compared} kept", f"{equal} equal", verdict))
    about = record.protocol["samples"]
    findings.text(f"first {first.count} images", about["first_batch"]["sha256"], first.sha256)
    if digest.count == spec.sampling.num_images:
        findings.text(f"all {digest.count} images", about["sha256"], digest.sha256)
