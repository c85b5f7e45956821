"""One record in full, for ``mar-bench show`` and ``eval``: numbers, uncertainty, and how to reproduce them."""

from __future__ import annotations

from typing import Any

from mar_bench.records.metrics import PAPER_SAMPLES, metrics_by_key
from mar_bench.records.record import Record
from mar_bench.report.format import MISSING
from mar_bench.utils.console import console_table, printable
from mar_bench.utils.yaml_text import to_yaml

BLOCKS = ("ids", "protocol", "uncertainty", "training", "parameters", "provenance", "spec")
HIDDEN = ("first_batch", "set_sha256", "acceptance")  # parts of the protocol that only its YAML shows


def scores_text(record: Record) -> str:
    """One line per metric: value, standard error, and the std over the splits or subsets that it averages."""
    extractor, settings = (record.protocol.get(block) or {} for block in ("extractor", "settings"))
    known = metrics_by_key(extractor) if extractor.keys() >= {"kind", "name"} else {}
    lines = []
    for key in [*(key for key in known if key in record.metrics), *sorted(record.metrics.keys() - known.keys())]:
        name = key
        if key in known:
            images = settings.get(f"{known[key].base}_images", record.protocol.get("num_generated"))
            name = known[key].title(extractor, images)
        doubt = record.uncertainty.get(key, {})
        parts = next((f"{doubt[k]:.4g} over {k[3:]}" for k in ("sd_splits", "sd_subsets") if k in doubt), MISSING)
        error = f"{doubt['standard_error']:.4g}" if "standard_error" in doubt else MISSING
        lines.append([name, f"{record.metrics[key]:.6g}", error, parts])
    return console_table(["metric", "value", "± jackknife", "std"], lines)


def how_measured(record: Record) -> list[str]:
    """The protocol in plain lines: samples, reference, network and settings."""
    lines = []
    for name in ("samples", "reference", "extractor", "settings"):
        block = {key: value for key, value in record.protocol[name].items() if key not in HIDDEN}
        words = [f"{key} {str(value)[:12] if key == 'sha256' else value}" for key, value in block.items()]
        lines.append(printable(f"{name:11}{', '.join(words)}"))
    return [f"{lines[0]}, labels {record.protocol['label_mode']}", *lines[1:]]


def weaknesses(protocol: dict[str, Any]) -> dict[str, str]:
    """Weaknesses of a run's numbers: a short label -> an explanation, the same for all runs with the same weakness."""
    copies, labels = (protocol.get("samples") or {}).get("duplicates"), protocol.get("label_mode", "balanced")
    found = {}
    if protocol.get("singular"):
        found["singular"] = "fewer images than features, so the covariance is singular and the distance biased upwards"
    if copies:
        found[f"{copies} repeated images"] = "some images are copies of another one"
    for pair, count in (protocol.get("overlaps") or {}).items():
        if count:
            one, _, other = pair.partition(" in ")
            total = protocol.get("num_generated" if one == "samples" else "num_heldout")
            found[f"{count} {pair}"] = f"{count} of the {total} {one} are also in the {other}, pixel by pixel"
    if labels != "balanced":
        found[f"labels {labels}"] = "classes are not known to be equally frequent, as the usual protocol requires"
    return found


def warnings(record: Record) -> list[str]:
    """All reasons to trust the numbers less."""
    images = record.protocol["num_generated"]
    found = [f"{word}: {text}" for word, text in weaknesses(record.protocol).items()]
    if images != PAPER_SAMPLES:
        found.append(f"{images} images: distances depend on their number, the custom is {PAPER_SAMPLES}")
    return found


def record_text(record: Record) -> str:
    """The whole record: numbers, protocol, and how to reproduce them."""
    parts = [f"record {record.id}: {record.task}, {record.status}", *([record.error.rstrip()] if record.error else [])]
    if record.metrics:
        parts.append(scores_text(record))
    if all(map(record.protocol.get, ("samples", "reference", "extractor", "settings", "label_mode", "num_generated"))):
        parts.append("\n".join([*how_measured(record), *(f"note: {warning}" for warning in warnings(record))]))
    command = record.provenance.get("command") or "unknown: it was not run by mar-bench"
    parts.append(f"to reproduce it, on the commit, device and seeds below: {command}")
    parts.append(to_yaml({name: block for name in BLOCKS if (block := getattr(record, name))}))
    return printable("\n\n".join(parts), keep="\n")
