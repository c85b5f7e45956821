"""The paper's claims as they are written down: which comparison of which experiment is evidence for each."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mar_bench.config.layers import experiments_dir, load_yaml
from mar_bench.config.parse import KeyPathError, check_keys
from mar_bench.utils.errors import UserError, did_you_mean

KINDS = {"ordering": ("claim",), "optimum": ("axis",), "below": ("label", "better", "worse")}  # kind -> its own keys
CLAIM_KEYS = ("number", "text", "evidence")
EVIDENCE_KEYS = ("title", "experiment", "kind")


@dataclass(frozen=True)
class Evidence:
    """``claim`` is of an ordering, ``axis`` of an optimum, ``label``, ``better`` and ``worse`` of below."""

    title: str
    experiment: str
    kind: str
    claim: str = ""
    axis: str = ""
    label: str = ""
    better: str = ""
    worse: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Claim:
    number: int
    text: str
    evidence: list[Evidence]


def claims_file() -> Path:
    return experiments_dir() / "claims/paper.yaml"


def read_claims(path: Path) -> list[Claim]:
    """Raises UserError, with file and key, for anything that is not as it should be."""
    tree = load_yaml(path)
    try:
        check_keys("", tree, ("claims",))
        found = tree.get("claims")
        _need(isinstance(found, list) and found, "claims", "expected a list of claims")
        claims = [_claim(item, f"claims[{i}]") for i, item in enumerate(found)]
        numbers = [claim.number for claim in claims]
        for number in numbers:
            _need(numbers.count(number) == 1, "claims", f"number {number} is there twice")
    except KeyPathError as error:
        raise UserError(f"{path}: {error.path}: {error.message}") from None
    return claims


def _claim(item: Any, path: str) -> Claim:
    _block(item, path, CLAIM_KEYS)
    number = item["number"]
    _need(isinstance(number, int) and not isinstance(number, bool), f"{path}.number", f"{number!r} is no whole number")
    _text(item, "text", path)
    evidence = item["evidence"]
    _need(isinstance(evidence, list) and evidence, f"{path}.evidence", "expected a list")
    return Claim(number, item["text"], [_evidence(e, f"{path}.evidence[{i}]") for i, e in enumerate(evidence)])


def _evidence(item: Any, path: str) -> Evidence:
    kind = item.get("kind") if isinstance(item, dict) else None
    if isinstance(item, dict) and kind not in KINDS:
        raise KeyPathError(f"{path}.kind", f"no kind of evidence '{kind}', {did_you_mean(str(kind), KINDS)}")
    _block(item, path, (*EVIDENCE_KEYS, *KINDS.get(kind, ())))
    for key in item.keys() - {"worse"}:
        _text(item, key, path)
    worse = item.get("worse", [])
    _need(
        isinstance(worse, list) and all(isinstance(w, str) for w in worse), f"{path}.worse", "expected a list of texts"
    )
    _need(worse or kind != "below", f"{path}.worse", "names no system")
    return Evidence(**item)


def _block(item: Any, path: str, keys: tuple[str, ...]) -> None:
    """Exactly these keys."""
    check_keys(path, item, keys)
    for key in keys:
        _need(key in item, path, f"key '{key}' is missing")


def _text(item: dict, key: str, path: str) -> None:
    _need(isinstance(item[key], str) and item[key], f"{path}.{key}", f"expected a text, found {item[key]!r}")


def _need(holds: Any, path: str, message: str) -> None:
    if not holds:
        raise KeyPathError(path, message)
