"""The file of the paper's claims and the evidence for each: experiments/claims/paper.yaml."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mar_bench.config.parse import KeyPathError, parse
from mar_bench.config.yaml_layers import experiments_dir, load_yaml
from mar_bench.report.claims.evidence import Evidence
from mar_bench.utils.errors import UserError


@dataclass(frozen=True)
class Claim:
    number: int
    text: str
    evidence: tuple[Evidence, ...]


@dataclass(frozen=True)
class _File:
    claims: tuple[Claim, ...]


def claims_file() -> Path:
    return experiments_dir() / "claims/paper.yaml"


def read_claims(path: Path) -> tuple[Claim, ...]:
    """Raises UserError, with file and key, for a file that does not parse, repeats a number or lists nothing."""
    try:
        claims = parse(_File, load_yaml(path)).claims
        for i, claim in enumerate(claims):
            if claim.number in [other.number for other in claims[:i]]:
                raise KeyPathError(f"claims[{i}].number", f"{claim.number} is used twice")
            if not claim.evidence:
                raise KeyPathError(f"claims[{i}].evidence", "expected at least one piece of evidence")
    except KeyPathError as error:
        raise UserError(f"{path}: {error.path}: {error.message}") from None
    return claims
