"""What a record may contain: types, finite numbers and, by the metric table, their ranges. The same for all readers and
writers, so that nothing else has to doubt a record."""

from __future__ import annotations

import re
from typing import Any

from mar_bench.records.metrics import LARGEST, METRICS, range_of

MOST_LEVELS = 20  # of nesting; runs write about 7
_ID = re.compile(r"[\w-]{1,100}\Z")
_WORDS = {dict: "block", str: "text", int: "whole number"}
_IMAGES: dict[str, type] = {"kind": str, "name": str, "sha256": str}
_BLOCKS = ("ids", "spec", "metrics", "protocol", "parameters", "training", "uncertainty", "selection", "provenance")
# what the code relies on: block -> the types of its values; null counts as missing, except at the top
_TYPES: dict[str, dict[str, Any]] = {
    "": {"task": str, "status": str, "schema_version": int, **dict.fromkeys(_BLOCKS, dict)},
    "spec": dict.fromkeys(("metrics", "train", "sampling", "compute"), dict),
    "spec.metrics": {"extractor": dict},
    "spec.metrics.extractor": {"kind": str, "name": str},
    "spec.train": {"seed": int, "batch_size": int, "steps": int},
    "spec.sampling": {"seed": int, "snapshot": int},
    "spec.compute": {"threads": int},
    "protocol": {
        **dict.fromkeys(("samples", "reference", "heldout", "extractor", "settings", "class_balance"), dict),
        **dict.fromkeys(("tokenizer", "weights", "tokens", "overlaps", "scored"), dict),
        **dict.fromkeys(("num_generated", "num_reference", "num_heldout", "threads", "batch_size"), int),
        **dict.fromkeys(("label_mode", "device", "dtype"), str),
    },
    "protocol.samples": {**_IMAGES, "duplicates": int},
    "protocol.reference": _IMAGES,
    "protocol.heldout": _IMAGES,
    "protocol.extractor": _IMAGES,
    "protocol.scored": {"heldout": int, "train": int, "latents": str},
    "training": {"steps": int},
    "provenance": {"git": dict, **dict.fromkeys(("device", "host", "command", "finished"), str)},
    "provenance.git": {"commit": str},
}


def check(content: Any) -> None:
    """Raises ValueError, naming the field, for content that the rest of the code cannot use or print."""
    if not (isinstance(content, dict) and {"task", "status", "ids", "spec"} <= content.keys()):
        raise ValueError("task, status, ids and spec are needed")
    if fault := _fault(content):
        raise ValueError(fault)
    for path, types in _TYPES.items():
        block: Any = content
        for key in filter(None, path.split(".")):
            block = block.get(key) or {}
        for key, kind in types.items():
            value = block.get(key)
            if (value is not None or not path and key in block) and type(value) is not kind:
                raise ValueError(f"{path}{'.' * bool(path)}{key} {value!r:.60} must be a {_WORDS[kind]}")
    ids, metrics = content["ids"], content.get("metrics", {})
    if not ("eval_id" in ids and all(isinstance(i, str) and _ID.match(i) for i in ids.values())):
        raise ValueError("ids must be texts of letters and digits, with an eval_id")
    if content["status"] not in ("done", "failed"):
        raise ValueError(f"status {content['status']!r:.60} is neither done nor failed")
    if not isinstance(content.get("error"), (str, type(None))):
        raise ValueError("error must be a text or null")
    extractor = (content["spec"].get("metrics") or {}).get("extractor") or {}
    if metrics and not extractor.keys() >= {"kind", "name"}:
        raise ValueError("spec.metrics.extractor needs kind and name")
    for key, value in metrics.items():
        _number(f"metrics.{key}", value, *range_of(key, extractor["kind"], extractor["name"]))
    for key, about in content.get("uncertainty", {}).items():
        if not isinstance(about, dict):
            raise ValueError(f"uncertainty.{key} {about!r:.60} must be a block")
        for name, value in about.items():
            if name != "method":
                _number(f"uncertainty.{key}.{name}", value, 0, LARGEST)
    for key, value in content.get("parameters", {}).items():
        trained = key == "total" and content["task"] == "generation"
        _number(f"parameters.{key}", value, METRICS["parameters"].low if trained else 0, LARGEST)
    training = content.get("training", {})
    for key, low in {"loss_train": -LARGEST, "loss_heldout": -LARGEST, "seconds": 0, "epochs": 0}.items():
        if (number := training.get(key)) is not None:
            _number(f"training.{key}", number, low, LARGEST)
    trained, sampled = (content["spec"].get(block) or {} for block in ("train", "sampling"))
    steps, wanted = training.get("steps"), sampled.get("snapshot") or trained.get("steps")
    if trained.get("published") is None and None not in (steps, wanted) and steps != wanted:
        raise ValueError(f"training.steps {steps} must be {wanted}, as its spec says")


def _number(path: str, value: Any, low: float, high: float) -> None:
    if not (isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high):
        raise ValueError(f"{path} {value!r:.60} must be a number between {low:g} and {high:g}")


def _fault(content: dict[str, Any]) -> str | None:
    """The path to a value that no record can have, and why; None if there is none."""
    blocks: list[tuple[str, Any, int]] = [("", content, 0)]
    for path, block, level in blocks:
        if level > MOST_LEVELS:
            return f"{path[1:]:.100} has more than {MOST_LEVELS} levels"
        for key, value in block.items() if isinstance(block, dict) else enumerate(block):
            kind = type(value)
            if kind is dict or kind is list or kind is tuple:
                blocks.append((f"{path}.{key}", value, level + 1))
            elif kind is not str and isinstance(value, (int, float)) and not abs(value) < 2**63:
                return f"{path[1:]}{'.' * bool(path)}{key} {value!r:.60} is not a finite number of this size"
    return None
