"""One record in full: its numbers with what is known of their chance, and all that is needed to get them again."""

from __future__ import annotations

from typing import Any

from mar_bench.records.metrics import metric_name
from mar_bench.records.record import Record
from mar_bench.report.format import MISSING, PAPER_SAMPLES, thousands
from mar_bench.utils.console import console_table, to_yaml

TITLES = {
    "fd": "FD", "is": "IS", "kid": "KID", "precision": "precision", "recall": "recall", "copied": "copied",
    "accuracy": "accuracy",
}  # fmt: skip
SUFFIXES = ("", "heldout", "real")
COUNTED = ("fd", "is")  # metrics whose name tells of how many images they are


def scores_text(record: Record) -> str:
    """A line for each metric: its value, its standard error and the deviation over the parts that it is a mean of."""
    lines = []
    for key, value in record.metrics.items():
        doubt = record.uncertainty.get(key, {})
        parts = next((f"{doubt[k]:.4g} over {k[3:]}" for k in ("sd_splits", "sd_subsets") if k in doubt), MISSING)
        error = f"{doubt['standard_error']:.4g}" if "standard_error" in doubt else MISSING
        lines.append([title(key, record), f"{value:.6g}", error, parts])
    lines.sort(key=lambda line: _place(line[0]))
    return console_table(["metric", "value", "± jackknife", "sd"], lines)


def title(key: str, record: Record) -> str:
    """``FID-5k``, ``held-out FD-1k mnist5k``: the number of images where it is not 50,000, the extractor if not
    Inception."""
    extractor = record.protocol.get("extractor") or {}
    count = record.protocol.get("num_generated")
    if "kind" not in extractor:
        return key
    names = {metric_name(f"{m}:{s}" if s else m, extractor): (m, s) for m in TITLES for s in SUFFIXES}
    if key not in names:
        return key
    metric, suffix = names[key]
    inception = extractor["kind"] == "inception"
    text = {"fd": "FID"}.get(metric, TITLES[metric]) if inception else TITLES[metric]
    if metric in COUNTED and suffix != "real" and count not in (None, PAPER_SAMPLES):
        text += f"-{thousands(count)}"
    text = {"heldout": "held-out ", "real": "real held-out "}.get(suffix, "") + text
    return text if inception else f"{text} {extractor['name']}"


def _place(text: str) -> tuple[int, str]:
    order = ["FID", "FD", "IS", "KID", "precision", "recall", "copied", "accuracy"]
    return next((i for i, name in enumerate(order) if text.startswith(name)), len(order)), text


def how_measured(record: Record) -> list[str]:
    """What a reader must know beside the numbers, in plain lines."""
    p = record.protocol
    samples, reference, settings = p["samples"], p["reference"], p["settings"]
    balance = p.get("class_balance")
    classes = f"labels {p['label_mode']}"
    if balance:
        classes += f" ({balance['classes']} classes of {_range(balance['least'], balance['most'])})"
    real = "an unknown number of" if reference["num_images"] is None else reference["num_images"]
    lines = [
        f"samples    {samples['num_images']} images, {_shape(samples)}, {classes}, sha256 {samples['sha256'][:12]}",
        f"reference  {reference['name']}: {real} images, {_shape(reference)}, sha256 {reference['sha256'][:12]}",
        f"extractor  {p['extractor']['name']} ({p['extractor']['kind']}), sha256 {p['extractor']['sha256'][:12]}",
        f"settings   IS in {settings['is_splits']} splits; KID over {settings['kid_subsets']} subsets of "
        f"{settings['kid_subset_size']}; precision and recall with {settings['neighbours']} neighbours against "
        f"{reference['num_features']} images; jackknife of {settings['jackknife_groups']} groups",
    ]
    if "index" in samples:
        lines.append(f"order      by {samples['index']}")
    return lines


def warnings(record: Record) -> list[str]:
    """What makes the numbers weaker than they look."""
    p, out = record.protocol, []
    if p.get("singular"):
        out.append("fewer images than features: the covariance is singular, the distance is biased upwards")
    if doubles := p["samples"].get("duplicates"):
        out.append(f"{doubles} of {p['num_generated']} images are copies of another one")
    if p["label_mode"] == "unbalanced":
        out.append("the classes are not equally frequent, as the field's protocol wants them")
    if p["num_generated"] != PAPER_SAMPLES:
        out.append(f"{p['num_generated']} images: a distance falls with their number, {PAPER_SAMPLES} are the custom")
    return [*out, *(f"reference: {note}" for note in p["reference"].get("notes", []))]


def record_text(record: Record) -> str:
    """All of a record: numbers, how they were measured, and what to repeat them with."""
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
    repeat = [
        f"command   {made.get('command') or 'not known: it was not run by mar-bench'}",
        f"commit    {git.get('commit', 'not known: not run from a checkout')}{dirty}",
        f"device    {made.get('device', 'unknown')}, {made.get('threads', '?')} threads a process",
        f"time      {made.get('seconds', '?')} s for this stage, finished {made.get('finished', '?')}",
        f"seeds     {_seeds(record)}",
    ]
    parts.append("to repeat it:\n" + "\n".join(f"  {line}" for line in repeat))
    blocks: dict[str, Any] = {
        "ids": record.ids, "protocol": record.protocol, "uncertainty": record.uncertainty, "training": record.training,
        "parameters": record.parameters, "provenance": made,
        "spec": record.spec,
    }  # fmt: skip
    return "\n\n".join([*parts, to_yaml({name: block for name, block in blocks.items() if block})])


def _seeds(record: Record) -> str:
    blocks = {"training": "train", "sampling": "sampling", "tokenizer": "tokenizer"}
    found = {name: (record.spec.get(block) or {}).get("seed") for name, block in blocks.items()}
    found["extractor"] = ((record.spec.get("metrics") or {}).get("extractor") or {}).get("seed")
    return ", ".join(f"{name} {seed}" for name, seed in found.items() if seed is not None) or "none"


def _shape(about: dict[str, Any]) -> str:
    if not about.get("size"):
        return "of unknown size"
    return f"{about['size'][1]}x{about['size'][0]} {'RGB' if about['channels'] == 3 else 'grey'}"


def _range(least: int, most: int) -> str:
    return str(least) if least == most else f"{least} to {most}"
