"""The claims report: each claim judged by the records at the largest scale that has its evidence."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

from mar_bench.config.choices import with_choices
from mar_bench.config.experiment import Experiment, load_experiment
from mar_bench.config.yaml_layers import SCALES, experiment_files, scales
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


def markdown(path: Path, records: dict[str, Record], scale: str | None = None) -> str:
    """Every claim of a file with its evidence, at ``scale`` or at the largest one that has the records.

    Raises UserError for a malformed file and for an experiment, ordering, axis or label that does not exist."""

    @cache
    def load(name: str, at: str) -> Experiment:
        return with_choices(load_experiment(name, at), records)

    claims = read_claims(path)
    summary, details = [], []
    for claim in claims:
        details.append(f"## {claim.number}. {claim.text}")
        for evidence in claim.evidence:
            name = evidence.experiment
            if name not in experiment_files():
                raise UserError(f"{path}: no experiment '{name}', {did_you_mean(name, experiment_files())}")
            whole = load(name, WHOLE)  # a smaller scale may leave rows out
            if wrong := evidence.unknown(whole):
                raise UserError(f"{path}: claim {claim.number}: {name} has {wrong[0]}; see {whole.file}")
            place, verdict, text = _finding(evidence, load, records, scale)
            details.append(f"### {evidence.title}: {verdict}\n\n{text}")
            summary.append([str(claim.number), claim.text, evidence.title, place or MISSING, verdict])
    with_curves = any(evidence.kind == "below" for claim in claims for evidence in claim.evidence)
    table = markdown_table(["claim", "", "evidence", "scale", "verdict"], summary)
    title = "# The paper's claims and what the records say"
    return "\n\n".join([title, _how_to_read(scale, with_curves), table, *details]) + "\n"


def _finding(
    evidence: Evidence, load: Callable[[str, str], Experiment], records: dict[str, Record], wanted: str | None
) -> tuple[str | None, str, str]:
    """Scale, verdict and text, at the scale ``wanted``, else at the largest with all rows measured, else with any.

    The scale is None where none has records."""
    counts: dict[str, tuple[int, int]] = {}  # scale -> rows with a distance, and all rows that the evidence needs
    for name in [wanted] if wanted else [name for name in BY_SIZE if name in scales()]:
        experiment = load(evidence.experiment, name)
        rows, selection = evidence.rows(experiment), select(experiment, records)
        counts[name] = sum(bool(runs_with(selection[row]["generation"], "fd")) for row in rows), len(rows)
    complete = [name for name, (done, total) in counts.items() if done == total > 0]
    scale = next(iter(complete + [name for name, (done, _) in counts.items() if done]), None)
    if scale is None:
        where = f"at {wanted or 'any'} scale"
        if any(total for _, total in counts.values()):
            return None, f"{UNDECIDED} (no records)", f"There are no records of it {where}."
        return None, f"{UNDECIDED} (not at this scale)", f"The experiment does not have its rows {where}."
    experiment, (done, total) = load(evidence.experiment, scale), counts[scale]
    verdict, text = evidence.judge(experiment, records)
    place = f"Experiment {evidence.experiment}, {scale} scale"
    place += f"; {done} of its {total} rows are measured" * (done < total)
    if lacks := evidence.unknown(experiment):
        place += f"; this scale has {' and '.join(lacks)}"
    return scale, verdict, f"{place}.\n\n{text}"


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
