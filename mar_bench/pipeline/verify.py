"""Check that a record can be reproduced: score it again from kept features, and draw its images again."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
import torch

from mar_bench.config.ids import Run, recorded_ids
from mar_bench.config.parse import KeyPathError, parse
from mar_bench.config.spec import MetricsSpec, RunSpec
from mar_bench.data.datasets import batches, to_images
from mar_bench.data.image_sets import Digest
from mar_bench.metrics.functions import frechet_distance
from mar_bench.metrics.references import read_reference
from mar_bench.metrics.score import Measure, load_features
from mar_bench.models.build import pick_device
from mar_bench.pipeline.eval_images import TASK
from mar_bench.pipeline.outputs import generator_file, load_generator, load_tokenizer
from mar_bench.pipeline.sample import batch_file, decoded, draw_batch, read_batch
from mar_bench.pipeline.store import HELDOUT, REFERENCE, SEEN, STATISTICS, Places
from mar_bench.records.metrics import metric_name
from mar_bench.records.provenance import device_name, git_state
from mar_bench.records.record import Record
from mar_bench.utils.errors import UserError
from mar_bench.utils.files import reading, sha256_of
from mar_bench.utils.noise import NoiseSource

TOLERANCE = 1e-6  # relative; the number of threads changes the order of additions
EQUAL, CLOSE, DIFFERENT, NOT_KEPT = "equal", "close", "DIFFERENT", "not kept"
OF_RUN = ("tokenizer", "weights", "tokens")  # blocks of a protocol that are not about the score
OF_MIND = re.compile(r"(±\.|settings\.)?mind(_|\.|$)")  # dotted names that older records lack
Spec = TypeVar("Spec", MetricsSpec, RunSpec)
Line = list[str]  # name, recorded, now, verdict


def verify(record: Record, places: Places, again: int | None = None) -> tuple[list[Line], list[str]]:
    """Score a record again; with ``again``, also draw at least that many of its images again.

    Returns the comparisons and notes for the user. Raises UserError if a file that it needs was not kept, is damaged
    or was made by another version."""
    made, here, notes = record.provenance.get("git") or {}, git_state(), []
    if made.get("dirty"):
        notes.append("the record was made with uncommitted changes")
    if made.get("commit") and here.get("commit") not in (None, made["commit"]):
        notes.append(f"the record was made at commit {made['commit'][:10]}, this is {here['commit'][:10]}")
    what = "record, or a file that it needs is damaged"
    with reading(f"record {record.id}", what, "restore it, or repeat it with the command of mar-bench show"):
        recorded, now = _scores(record, places, notes)
        lines = [_line(name, recorded.get(name), now.get(name), name in record.metrics) for name in recorded | now]
        lines = [line for line in lines if line[-1] != EQUAL or line[0] in record.metrics or "sha256" in line[0]]
        if again is not None:
            lines += [_line(name, *values) for name, *values in _drawn_again(record, again, places, notes)]
    return lines, notes


def _line(name: str, recorded: Any, now: Any, may_lack: bool = False) -> Line:
    verdict = EQUAL if recorded == now else DIFFERENT
    if isinstance(recorded, float) and isinstance(now, float) and recorded != now:
        verdict = CLOSE if math.isclose(recorded, now, rel_tol=TOLERANCE, abs_tol=1e-12) else DIFFERENT
    if now is None and may_lack:
        verdict = NOT_KEPT
    shown = [f"{v:.10g}" if isinstance(v, float) else "" if v is None else str(v)[:20] for v in (recorded, now)]
    return [name, *shown, verdict]


def _scores(record: Record, places: Places, notes: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metrics, uncertainty and protocol by dotted names, as recorded and as computed from the kept features.

    If only statistics were kept: the distances and the values they depend on."""
    if record.status != "done" or record.task not in ("generation", "reconstruction", TASK):
        raise UserError(f"record {record.id}: a {record.status} {record.task} record has no images to score again")
    folder = real = places.finished(record.task, record.id, f"record {record.id}")
    if record.task != TASK:
        real = places.finished("extractor", record.ids["extractor_id"], f"record {record.id}")
    if not {"extractor", "reference", "samples"} <= record.protocol.keys():
        raise UserError(f"record {record.id}: its protocol is incomplete; measure it again with mar-bench run")
    threads = (record.spec.get("compute") or {}).get("threads") or record.provenance.get("threads")
    if isinstance(threads, int) and threads > 0:
        torch.set_num_threads(threads)
    reference = read_reference(real / REFERENCE)
    heldout = read_reference(real / HELDOUT) if (real / HELDOUT).is_file() else None
    if (folder / SEEN).is_file():
        measure = Measure(_settings_of(record), reference, heldout)
        scores = measure(load_features(folder / SEEN))
        metrics = scores.metrics | (measure.real() if record.task == "reconstruction" else {})
        protocol = {
            key: value for key, value in record.protocol.items() if key not in ("tokenizer", "weights", "tokens")
        }
        recorded = dict(_flat({**record.metrics, "±": record.uncertainty, **protocol}))
        now = dict(_flat({**metrics, "±": scores.uncertainty, **scores.protocol}))
        if "settings.mind_projections" in now and "settings.mind_projections" not in recorded:
            notes.append("the record is older than MIND, which is left out")
            now = {name: value for name, value in now.items() if not OF_MIND.match(name)}
        return recorded, now
    notes.append("only statistics were kept; metrics.keep_features=true keeps what all metrics need")
    with np.load(folder / STATISTICS) as kept:
        statistics = dict(kept)
    protocol = {"extractor": reference.extractor, "reference": reference.about}
    now = dict(_flat(protocol))
    for metric, other in {"fd": reference, "fd:heldout": heldout}.items():
        if other and (name := metric_name(metric, record.protocol["extractor"])) in record.metrics:
            now[name] = frechet_distance(statistics, other.statistics)
    return dict(_flat({**record.metrics, **{key: record.protocol[key] for key in protocol}})), now


def _flat(tree: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a tree by their dotted names."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def _settings_of(record: Record) -> MetricsSpec:
    if record.task != TASK:
        return run_of(record).spec.metrics
    return _parsed(record, MetricsSpec, {k: v for k, v in record.spec["metrics"].items() if k != "extractor"})


def run_of(record: Record) -> Run:
    """The run that made a record. Raises UserError if this version would not make the same one."""
    spec = _parsed(record, RunSpec, record.spec)
    for name, now in recorded_ids(record, spec).items():
        if (value := record.ids.get(name, now)) != now:
            raise UserError(
                f"record {record.id}: its {name} is {value} but this version gives {now} for the same spec: a stage "
                f"has changed, or the record; check out commit {(record.provenance.get('git') or {}).get('commit')}"
            )
    return Run(record.task, record.id, spec, record.ids)


def _parsed(record: Record, kind: type[Spec], tree: dict[str, Any]) -> Spec:
    try:
        return parse(kind, tree)
    except KeyPathError as error:
        raise UserError(f"record {record.id}: {error.path}: {error.message}; another version made it") from None


@torch.inference_mode()
def _drawn_again(record: Record, count: int, places: Places, notes: list[str]) -> Iterator[tuple[str, Any, Any]]:
    """Draw the batches of at least ``count`` images of a generation record again, to compare them bit for bit.

    Yields (name, recorded, now) of kept tokens, and of the digests of the first batch and of all images."""
    if record.task != "generation":
        raise UserError(f"record {record.id}: a {record.task} record has no samples to draw again")
    run = run_of(record)
    spec, about = run.spec, record.protocol["samples"]
    for kind in ("train", "tokenizer"):
        places.finished(kind, run.ids[f"{kind}_id"], f"record {record.id}")
    torch.set_num_threads(spec.compute.threads)
    device, here = pick_device(spec.compute.device), device_name(spec.compute.device)
    if here != record.provenance.get("device"):
        notes.append(f"drawn on {record.provenance.get('device')}, this is {here}: bits may differ")
    model, tokenizer = load_generator(run, places, device), load_tokenizer(run, places, device)
    if weights := record.protocol.get("weights"):
        yield "weights", weights["sha256"], sha256_of(generator_file(run, places))
    kept, digest = places.folder("sample", run.ids["sample_id"]), Digest()
    equal = compared = 0
    for indices in batches(spec.sampling.num_images, spec.sampling.batch_size):
        if indices.start >= count:
            break
        tokens = draw_batch(spec, model, indices, device)
        if batch_file(kept, indices).is_file():
            compared += len(indices)
            equal += int((tokens == read_batch(kept, indices)).flatten(1).all(1).sum())
        images = decoded(spec, tokenizer, tokens.to(device), NoiseSource(spec.sampling.seed, indices))
        digest.update(to_images(images, spec.data))
        if not indices.start:
            yield f"first {digest.count} images", about["first_batch"]["sha256"], digest.sha256
    if compared:
        yield "images with the kept tokens", compared, equal
    if digest.count == spec.sampling.num_images:
        yield f"all {digest.count} images", about["sha256"], digest.sha256
