"""The claims report: each claim judged by the records at the largest scale that has its evidence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mar_bench.config.choices import with_choices
from mar_bench.config.experiment import Experiment, load_experiment
from mar_bench.config.layers import SCALES, experiment_files, scales
from mar_bench.records.record import Record
from mar_bench.report.claims.evidence import OUTSIDE, Evidence
from mar_bench.report.claims.file import read_claims
from mar_bench.report.claims.orderings import RULES
from mar_bench.report.format import MISSING, markdown_table
from mar_bench.report.frames import runs_with, select
from mar_bench.report.stats import UNDECIDED
from mar_bench.utils.errors import UserError, did_you_mean

NO_EVIDENCE = "smoke"  # its numbers mean nothing
WHOLE = "paper"  # the scale that has every row
BY_SIZE = [name for name in reversed(SCALES) if name != NO_EVIDENCE]  # largest first


@dataclass(frozen=True)
class _Finding:
    """``scale`` is None where no scale has records."""

    scale: str | None
    verdict: str
    text: str


def markdown(path: Path, records: dict[str, Record], scale: str | None = None) -> str:
    """Every claim of a file with its evidence, at ``scale`` or at the largest one that has the records.

    Raises UserError for a malformed file and for an experiment, ordering, axis or label that does not exist."""
    claims, report = read_claims(path), _Report(records, scale)
    summary, details = [], []
    for claim in claims:
        details.append(f"## {claim.number}. {claim.text}")
        for evidence in claim.evidence:
            name = evidence.experiment
            if name not in experiment_files():
                raise UserError(f"{path}: no experiment '{name}', {did_you_mean(name, experiment_files())}")
            whole = report.load(name, WHOLE)  # a smaller scale may leave rows out
            if wrong := evidence.unknown(whole):
                raise UserError(f"{path}: claim {claim.number}: {name} has {wrong[0]}; see {whole.file}")
            found = report.finding(evidence)
            details.append(f"### {evidence.title}: {found.verdict}\n\n{found.text}")
            summary.append([str(claim.number), claim.text, evidence.title, found.scale or MISSING, found.verdict])
    with_curves = any(evidence.kind == "below" for claim in claims for evidence in claim.evidence)
    table = markdown_table(["claim", "", "evidence", "scale", "verdict"], summary)
    title = "# The paper's claims and what the records say"
    return "\n\n".join([title, _how_to_read(scale, with_curves), table, *details]) + "\n"


class _Report:
    def __init__(self, records: dict[str, Record], scale: str | None):
        self.records, self.scale = records, scale
        self._loaded: dict[tuple[str, str], Experiment] = {}

    def load(self, name: str, scale: str) -> Experiment:
        if (name, scale) not in self._loaded:
            self._loaded[name, scale] = with_choices(load_experiment(name, scale), self.records)
        return self._loaded[name, scale]

    def _measured(self, experiment: Experiment, evidence: Evidence) -> tuple[int, int]:
        """How many rows of the evidence have a distance, and how many there are."""
        rows, selection = evidence.rows(experiment), select(experiment, self.records)
        return sum(bool(runs_with(selection[row]["generation"], "fd")) for row in rows), len(rows)

    def finding(self, evidence: Evidence) -> _Finding:
        """Judged at ``self.scale``, else at the largest scale with all its rows measured, else with any."""
        candidates = [self.scale] if self.scale else [name for name in BY_SIZE if name in scales()]
        counts = {name: self._measured(self.load(evidence.experiment, name), evidence) for name in candidates}
        complete = [name for name, (done, rows) in counts.items() if done == rows > 0]
        scale = next(iter(complete + [name for name, (done, _) in counts.items() if done]), None)
        if scale is None:
            why = "no records" if any(rows for _, rows in counts.values()) else "not at this scale"
            return _Finding(None, f"{UNDECIDED} ({why})", f"There are no records of it at {self.scale or 'any'} scale.")
        experiment, (done, rows) = self.load(evidence.experiment, scale), counts[scale]
        verdict, text = evidence.judge(experiment, self.records)
        place = f"Experiment {evidence.experiment}, {scale} scale"
        place += f"; {done} of its {rows} rows are measured" * (done < rows)
        if lacks := evidence.unknown(experiment):
            place += f"; this scale has {' and '.join(lacks)}"
        return _Finding(scale, verdict, f"{place}.\n\n{text}")


def _how_to_read(scale: str | None, with_curves: bool) -> str:
    lines = [
        f"All at {scale} scale."
        if scale
        else f"Each piece of evidence is judged at the largest scale ({', '.join(BY_SIZE)}) with records of all its "
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
    if with_curves:
        lines.append(
            "A curve below others: each point of the others is compared with the best point of the better system that "
            f"takes at most as long. A point faster than all of these is '{OUTSIDE}' and does not count, unless it is "
            "better than the fastest of them, beyond the interval: then the claim does not hold."
        )
    return "\n".join(f"- {line}" for line in lines)
