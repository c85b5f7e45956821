"""One record in full: its numbers, their uncertainty, and how to reproduce them."""

from __future__ import annotations

from typing import Any

from mar_bench.records.metrics import PAPER_SAMPLES, metrics_by_key
from mar_bench.records.record import Record
from mar_bench.report.format import MISSING
from mar_bench.utils.console import console_table, to_yaml

BLOCKS = ("ids", "protocol", "uncertainty", "training", "parameters", "provenance", "spec")


def scores_text(record: Record) -> str:
    """One line per metric: value, standard error, and the std over the splits or subsets it is a mean of."""
    extractor = record.protocol.get("extractor") or {}
    known = metrics_by_key(extractor) if "kind" in extractor else {}
    lines = []
    for key in [*(key for key in known if key in record.metrics), *(key for key in record.metrics if key not in known)]:
        name = known[key].title(extractor, record.protocol.get("num_generated")) if key in known else key
        doubt = record.uncertainty.get(key, {})
        parts = next((f"{doubt[k]:.4g} over {k[3:]}" for k in ("sd_splits", "sd_subsets") if k in doubt), MISSING)
        error = f"{doubt['standard_error']:.4g}" if "standard_error" in doubt else MISSING
        lines.append([name, f"{record.metrics[key]:.6g}", error, parts])
    return console_table(["metric", "value", "± jackknife", "std"], lines)


def how_measured(record: Record) -> list[str]:
    """The protocol in plain lines."""
    p = record.protocol
    samples, reference, extractor, settings = p["samples"], p["reference"], p["extractor"], p["settings"]
    real = "an unknown number of" if reference["num_images"] is None else reference["num_images"]
    return [
        f"samples    {samples['num_images']} images, {_shape(samples)}, labels {p['label_mode']}, "
        f"order by {samples.get('index', 'unknown')}, sha256 {samples['sha256'][:12]}",
        f"reference  {reference['name']}: {real} images, {_shape(reference)}, sha256 {reference['sha256'][:12]}",
        f"extractor  {extractor['name']} ({extractor['kind']}), sha256 {extractor['sha256'][:12]}",
        f"settings   IS in {settings['is_splits']} splits; KID over {settings['kid_subsets']} subsets of "
        f"{settings['kid_subset_size']}; precision and recall with {settings['neighbours']} neighbours against "
        f"{reference['num_features']} images; jackknife of {settings['jackknife_groups']} groups",
    ]


def _shape(images: dict[str, Any]) -> str:
    if not images.get("size"):
        return "of unknown size"
    return f"{images['size'][1]}x{images['size'][0]} {'RGB' if images['channels'] == 3 else 'grey'}"


def warnings(record: Record) -> list[str]:
    """What makes the numbers weaker than they look."""
    p, images = record.protocol, record.protocol["num_generated"]
    doubles = p["samples"].get("duplicates")
    found = {
        "fewer images than features: the covariance is singular and the distance biased upwards": p.get("singular"),
        f"{doubles} of {images} images are copies of another one": doubles,
        "classes are not equally frequent, as the usual protocol requires": p["label_mode"] == "unbalanced",
        f"{images} images: distances depend on their number, the custom is {PAPER_SAMPLES}": images != PAPER_SAMPLES,
    }
    notes = [f"reference: {note}" for note in p["reference"].get("notes", [])]
    return [text for text, applies in found.items() if applies] + notes


def record_text(record: Record) -> str:
    """The whole record: numbers, protocol, and what reproduces them."""
    made = record.provenance
    git = made.get("git") or {}
    dirty = " with uncommitted changes, which are in no repository" if git.get("dirty") else ""
    parts = [f"record {record.id}: {record.task}, {record.status}"]
    if record.error:
        parts.append(record.error.rstrip())
    if record.metrics:
        parts.append(scores_text(record))
    if {"samples", "reference", "settings"} <= record.protocol.keys():
        parts.append("\n".join([*how_measured(record), *(f"note: {warning}" for warning in warnings(record))]))
    blocks = {name: record.spec.get(name) or {} for name in ("train", "sampling", "tokenizer")}
    seeds = [f"{name} {block['seed']}" for name, block in blocks.items() if block.get("seed") is not None]
    parts.append(
        "to reproduce it:\n"
        f"  command   {made.get('command') or 'unknown: it was not run by mar-bench'}\n"
        f"  commit    {git.get('commit', 'unknown: it was not run from a checkout')}{dirty}\n"
        f"  device    {made.get('device', 'unknown')}, {made.get('threads', '?')} threads per process\n"
        f"  time      {made.get('seconds', '?')} s for this stage, finished {made.get('finished', '?')}\n"
        f"  seeds     {', '.join(seeds) or 'none'}"
    )
    return "\n\n".join([*parts, to_yaml({name: block for name in BLOCKS if (block := getattr(record, name))})])
