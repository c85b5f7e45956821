"""The claims report: each claim judged by the records at the largest scale that has its evidence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mar_bench.config.choices import with_choices
from mar_bench.config.experiment import Experiment, load_experiment
from mar_bench.config.layers import SCALES, experiment_files, scales
from mar_bench.records.record import Record
from mar_bench.report.claims.evidence import OUTSIDE, Evidence
from mar_bench.report.claims.file import Claim, read_claims
from mar_bench.report.claims.orderings import RULES
from mar_bench.report.format import MISSING, markdown_table
from mar_bench.report.frames import runs_with, select
from mar_bench.report.stats import UNDECIDED
from mar_bench.utils.errors import UserError, did_you_mean

NO_EVIDENCE = "smoke"  # its numbers mean nothing
WHOLE = "paper"  # the scale that has every row


@dataclass(frozen=True)
class _Finding:
    """``scale`` is None where no scale has records; ``verdict`` includes the cost that the claim allows."""

    claim: Claim
    evidence: Evidence
    scale: str | None
    verdict: str
    text: str


def markdown(path: Path, records: dict[str, Record], scale: str | None = None) -> str:
    """Every claim of a file with its evidence, at ``scale`` or at the largest one that has the records.

    Raises UserError for a malformed file and for an experiment, ordering, axis or label that does not exist."""
    claims = read_claims(path)
    for name in (evidence.experiment for claim in claims for evidence in claim.evidence):
        if name not in experiment_files():
            raise UserError(f"{path}: no experiment '{name}', {did_you_mean(name, experiment_files())}")
    report = _Report(path, records, scale)
    found = [report.finding(claim, evidence) for claim in claims for evidence in claim.evidence]
    summary = markdown_table(
        ["claim", "", "evidence", "scale", "verdict"],
        [[str(f.claim.number), f.claim.text, f.evidence.title, f.scale or MISSING, f.verdict] for f in found],
    )
    parts = ["# The paper's claims and what the records say", _how_to_read(scale, found), summary]
    for claim in claims:
        parts.append(f"## {claim.number}. {claim.text}")
        parts += [f"### {f.evidence.title}: {f.verdict}\n\n{f.text}" for f in found if f.claim is claim]
    return "\n\n".join(parts) + "\n"


class _Report:
    def __init__(self, path: Path, records: dict[str, Record], scale: str | None):
        self.path, self.records, self.scale = path, records, scale
        self._loaded: dict[tuple[str, str], Experiment] = {}

    def _load(self, name: str, scale: str) -> Experiment:
        if (name, scale) not in self._loaded:
            self._loaded[name, scale] = with_choices(load_experiment(name, scale), self.records)
        return self._loaded[name, scale]

    def _measured(self, experiment: Experiment, evidence: Evidence) -> tuple[int, int]:
        """How many rows of the evidence have a distance, and how many there are."""
        rows, selection = evidence.rows(experiment), select(experiment, self.records)
        return sum(bool(runs_with(selection[row]["generation"], "fd")) for row in rows), len(rows)

    def finding(self, claim: Claim, evidence: Evidence) -> _Finding:
        """Judged at ``self.scale``, else at the largest scale with all its rows measured, else with any."""
        candidates = [self.scale] if self.scale else [s for s in _by_size() if s in scales()]
        at = {name: self._load(evidence.experiment, name) for name in candidates}
        unknown = {name: evidence.unknown(experiment) for name, experiment in at.items()}
        if all(unknown.values()) and (wrong := evidence.unknown(self._load(evidence.experiment, WHOLE))):
            where = f"{self.path}: claim {claim.number}: {evidence.experiment}"
            raise UserError(f"{where} has {', '.join(wrong[0])}")  # a smaller scale may leave it out
        lacks = {name: " and ".join(what for what, _ in found) for name, found in unknown.items()}
        counts = {name: self._measured(experiment, evidence) for name, experiment in at.items()}
        complete = [name for name, (done, rows) in counts.items() if done == rows > 0]
        scale = next(iter(complete + [name for name, (done, _) in counts.items() if done]), None)
        if scale is None:
            has_rows = any(rows for _, rows in counts.values())
            sentences = [f"There are no records of it at {self.scale or 'any'} scale."] * has_rows
            for name in (name for name, (_, rows) in counts.items() if not rows):
                sentences.append(f"{name.capitalize()} scale has {lacks[name] or 'none of its rows'}.")
            why = "no records" if has_rows else "not at this scale"
            return _Finding(claim, evidence, None, f"{UNDECIDED} ({why})", " ".join(sentences))
        verdict, text = evidence.judge(at[scale], self.records)
        done, rows = counts[scale]
        place = f"Experiment {evidence.experiment}, {scale} scale"
        place += f"; {done} of its {rows} rows are measured" * (done < rows)
        place += f"; this scale has {lacks[scale]}" * bool(lacks[scale])
        cost = evidence.tolerance(at[scale])
        return _Finding(claim, evidence, scale, f"{verdict} ({cost})" if cost else verdict, f"{place}.\n\n{text}")


def _by_size() -> list[str]:
    """The scales that count as evidence, largest first."""
    return [name for name in reversed(SCALES) if name != NO_EVIDENCE]


def _how_to_read(scale: str | None, found: list[_Finding]) -> str:
    lines = [
        f"All at {scale} scale."
        if scale
        else f"Each piece of evidence is judged at the largest scale ({', '.join(_by_size())}) with records of all its "
        f"rows, else at the largest with any; {NO_EVIDENCE} scale is no evidence."
    ]
    if scale == NO_EVIDENCE:
        lines.append(f"**{NO_EVIDENCE} scale only shows that everything runs: its numbers mean nothing.**")
    if scale != WHOLE:
        lines.append("A verdict at a scale below the paper's is about other data and smaller models.")
    lines += [
        "Evidence holds if it holds on every pair, does not hold if a single pair speaks against it, and is undecided "
        "otherwise. Distances, lower is better.",
        *RULES,
    ]
    if any(f.evidence.kind == "below" for f in found):
        lines.append(
            "A curve below others: each point of the others is compared with the best point of the better system that "
            f"takes at most as long. A point faster than all of these is '{OUTSIDE}' and does not count, unless it is "
            "better than the fastest of them, beyond the interval: then the claim does not hold."
        )
    return "\n".join(f"- {line}" for line in lines)
