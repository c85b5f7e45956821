"""The claims report: each claim judged by the records at the largest scale that has its evidence.

The claims and the evidence for each are in experiments/claims/paper.yaml."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mar_bench.config.choices import with_choices
from mar_bench.config.experiment import Experiment, load_experiment
from mar_bench.config.parse import KeyPathError, parse
from mar_bench.config.yaml_layers import SCALES, experiment_files, experiments_dir, load_yaml, scales
from mar_bench.report.claims.evidence import OUTSIDE, Evidence
from mar_bench.report.format import MISSING, Block, inline
from mar_bench.report.frames import Records, Selection, runs_with, select
from mar_bench.report.render import render
from mar_bench.report.stats import UNDECIDED
from mar_bench.utils.errors import UserError, did_you_mean

NO_EVIDENCE = "smoke"  # its numbers mean nothing
WHOLE = "paper"  # the scale that has every row
BY_SIZE = [name for name in reversed(SCALES) if name != NO_EVIDENCE]  # largest first


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


def markdown(path: Path, records: Records, scale: str | None = None) -> str:
    """Every claim of a file with its evidence, at ``scale`` or at the largest one that has the records.

    Raises UserError for a malformed file and for an experiment, ordering, axis or label that does not exist."""

    @cache
    def load(name: str, at: str) -> Experiment:
        return with_choices(load_experiment(name, at), records)

    @cache
    def selected(name: str, at: str) -> tuple[Experiment, Selection]:
        return load(name, at), select(load(name, at), records)

    summary, details = [], []
    for claim in read_claims(path):
        details.append(f"## {claim.number}. {inline(claim.text)}")
        for evidence in claim.evidence:
            name = evidence.experiment
            if name not in experiment_files():
                raise UserError(f"{path}: no experiment '{name}', {did_you_mean(name, experiment_files())}")
            whole = load(name, WHOLE)  # a smaller scale may leave rows out
            if wrong := evidence.unknown(whole):
                raise UserError(f"{path}: claim {claim.number}: {name} has {wrong[0]}; see {whole.file}")
            place, verdict, text = _finding(evidence, selected, scale)
            details.append(f"### {inline(evidence.title)}: {inline(verdict)}\n\n{text}")
            summary.append([str(claim.number), claim.text, evidence.title, place or MISSING, verdict])
    parts = {"scale": scale, "by_size": BY_SIZE, "outside": OUTSIDE, "summary": summary}
    return render("claims.md.j2", **parts, details=Block("\n\n".join(details)))


def _finding(
    evidence: Evidence, selected: Callable[[str, str], tuple[Experiment, Selection]], wanted: str | None
) -> tuple[str | None, str, str]:
    """Scale, verdict and text, at the scale ``wanted``, else at the largest with all rows measured, else with any.

    The scale is None if no scale has records."""
    counts: dict[str, tuple[int, int]] = {}  # scale -> rows with a distance, and all rows that the evidence needs
    for name in [wanted] if wanted else [name for name in BY_SIZE if name in scales()]:
        experiment, selection = selected(evidence.experiment, name)
        rows = evidence.rows(experiment)
        counts[name] = sum(bool(runs_with(selection[row]["generation"], "fd")) for row in rows), len(rows)
    some = [name for name, (done, _) in counts.items() if done]
    if not some:
        lacks = "no records" if any(total for _, total in counts.values()) else "not at this scale"
        return None, f"{UNDECIDED} ({lacks})", f"No row of experiment {evidence.experiment} has a record here."
    scale = next((name for name in some if counts[name][0] == counts[name][1]), some[0])
    (experiment, selection), (done, total) = selected(evidence.experiment, scale), counts[scale]
    verdict, text = evidence.judge(experiment, selection)
    place = f"Experiment {evidence.experiment}, {scale} scale"
    place += "".join(f"; this scale has {lacking}" for lacking in evidence.unknown(experiment))
    place += f"; {done} of its {total} rows are measured" * (done < total)
    return scale, verdict, f"{inline(place)}.\n\n{text}"
