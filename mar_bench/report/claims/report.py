"""The paper's claims against the records there are: each judged at the largest scale that has its evidence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mar_bench.config.choices import with_choices
from mar_bench.config.experiment import Experiment, load_experiment
from mar_bench.config.layers import SCALES, experiment_files, scales
from mar_bench.records.record import Record
from mar_bench.report.claims.evidence import OUTSIDE, Judged, judge, missing, rows_of, tolerance
from mar_bench.report.claims.file import Claim, Evidence, read_claims
from mar_bench.report.claims.orderings import MIN_EFFECT, UNDECIDED
from mar_bench.report.format import MISSING, markdown_table
from mar_bench.report.frame import runs_with, select
from mar_bench.report.stats import CONFIDENCE
from mar_bench.utils.errors import UserError, did_you_mean

NO_EVIDENCE = "smoke"  # the scale whose numbers mean nothing
WHOLE = "paper"  # the scale that leaves nothing out
NO_RECORDS, NOT_THERE = "no records", "not at this scale"


@dataclass(frozen=True)
class _Finding:
    claim: Claim
    evidence: Evidence
    scale: str | None  # at which it was judged; None where no scale has records
    judged: Judged
    measured: tuple[int, int] = (0, 0)  # rows that have a distance, of how many
    missing: tuple[str, ...] = ()  # what this scale has not of it
    tolerance: str = ""  # by how much the verdict lets one row be worse
    why: str = NO_RECORDS  # there is no verdict, where there is none


def markdown(path: Path, records: dict[str, Record], scale: str | None = None) -> str:
    """Every claim of a file with its evidence, at ``scale`` or at the largest one that has the records.

    Raises UserError for a file that is not as it should be and for an experiment, ordering, axis or label that is not
    there."""
    claims = read_claims(path)
    for name in (evidence.experiment for claim in claims for evidence in claim.evidence):
        if name not in experiment_files():
            raise UserError(f"{path}: no experiment '{name}', {did_you_mean(name, experiment_files())}")
    loaded: dict[tuple[str, str], Experiment] = {}
    found = [_finding(path, claim, evidence, records, scale, loaded) for claim in claims for evidence in claim.evidence]
    summary = markdown_table(
        ["claim", "", "evidence", "scale", "verdict"],
        [[str(f.claim.number), f.claim.text, f.evidence.title, f.scale or MISSING, _verdict(f)] for f in found],
    )
    below = any(finding.evidence.kind == "below" for finding in found)
    parts = ["# What the paper claims, and what the records say", _how_to_read(scale, below), summary]
    for claim in claims:
        parts.append(f"## {claim.number}. {claim.text}")
        for finding in (f for f in found if f.claim is claim):
            parts += _section(finding)
    return "\n\n".join(parts) + "\n"


def _finding(
    path: Path,
    claim: Claim,
    evidence: Evidence,
    records: dict[str, Record],
    scale: str | None,
    loaded: dict[tuple[str, str], Experiment],
) -> _Finding:
    """Judged at ``scale``, else at the largest scale where all its rows are measured, else where any is."""

    def at(name: str) -> Experiment:
        key = evidence.experiment, name
        if key not in loaded:
            loaded[key] = with_choices(load_experiment(*key), records)
        return loaded[key]

    def measured(name: str) -> tuple[int, int]:
        rows, selection = rows_of(at(name), evidence), select(at(name), records)
        return sum(bool(runs_with(selection[row]["generation"], "fd")) for row in rows), len(rows)

    candidates = [scale] if scale else [s for s in reversed(SCALES) if s in scales() and s != NO_EVIDENCE]
    lacking = {name: missing(at(name), evidence) for name in candidates}
    if all(lacking.values()) and (wrong := missing(at(WHOLE), evidence)):  # which a smaller scale may leave out
        raise UserError(f"{path}: claim {claim.number}: {evidence.experiment} has {', '.join(wrong[0])}")
    counts = {name: measured(name) for name in candidates}
    whole = (name for name, (done, rows) in counts.items() if rows and done == rows)
    some = (name for name, (done, _) in counts.items() if done)
    chosen = next(whole, None) or next(some, None)
    if chosen is None:
        there = {name: rows for name, (_, rows) in counts.items()}
        gone = {name: _has_not(lacking[name]) for name, rows in there.items() if not rows}
        records_of = [] if not any(there.values()) else [f"There are no records of it at {scale or 'any'} scale."]
        sentences = [f"{name[:1].upper()}{name[1:]} scale has {what}." for name, what in gone.items()]
        nothing = Judged(UNDECIDED, " ".join(records_of + sentences))
        return _Finding(claim, evidence, None, nothing, why=NO_RECORDS if records_of else NOT_THERE)
    return _Finding(
        claim,
        evidence,
        chosen,
        judge(at(chosen), evidence, records),
        counts[chosen],
        tuple(what for what, _ in lacking[chosen]),
        tolerance(at(chosen), evidence),
    )


def _has_not(lacking: list[tuple[str, str]]) -> str:
    return " and ".join(what for what, _ in lacking) or "none of its rows"


def _verdict(finding: _Finding) -> str:
    if finding.scale is None:
        return f"{UNDECIDED} ({finding.why})"
    return f"{finding.judged.verdict} ({finding.tolerance})" if finding.tolerance else finding.judged.verdict


def _section(finding: _Finding) -> list[str]:
    evidence, (done, rows) = finding.evidence, finding.measured
    parts = [f"### {evidence.title}: {_verdict(finding)}"]
    if finding.scale:
        rows_done = "" if done == rows else f"; {done} of its {rows} rows are measured"
        lacks = "".join(f"; this scale has {what}" for what in finding.missing)
        parts.append(f"Experiment {evidence.experiment}, {finding.scale} scale{rows_done}{lacks}.")
    return [*parts, finding.judged.text]


def _how_to_read(scale: str | None, below: bool) -> str:
    """``below``: whether a claim is of one system below others."""
    order = ", ".join(name for name in reversed(SCALES) if name != NO_EVIDENCE)
    at = f"All at {scale} scale." if scale else (
        f"Each evidence is judged at the largest scale ({order}) that has records of all its rows, else at the largest "
        f"that has any; {NO_EVIDENCE} scale is no evidence."
    )  # fmt: skip
    lines = [at]
    if scale == NO_EVIDENCE:
        lines.append(f"**{NO_EVIDENCE} scale only shows that everything runs: its numbers mean nothing.**")
    if scale != "paper":
        lines.append("What holds at a scale below the paper's holds there, on other data and smaller models.")
    lines += [
        "Evidence holds if it does on every pair; not if a single pair speaks against it; else it is undecided.",
        f"Differences are of distances, paired on common seeds, in percent of the second; the {100 * CONFIDENCE:g} % "
        f"interval is over training seeds, else over samplings. A difference below {MIN_EFFECT} %, an interval that "
        "contains 0 and a single run decide nothing.",
        "A claim that allows a cost ('at most 25 % worse') holds where the whole interval lies below that cost, and "
        "does not where it lies above.",
    ]
    if below:
        lines.append(
            "A curve below others: each of the others' points is held against the best point of the better system that "
            f"takes at most as long. A point faster than all of these is '{OUTSIDE}' and left out of the verdict, "
            "unless it is better than the fastest of them, beyond the interval: then the claim does not hold."
        )
    return "\n".join(f"- {line}" for line in lines)
