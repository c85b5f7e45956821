"""The claims report: each claim judged by the records of every scale, in detail at the largest that has its evidence.

The claims and the evidence for each are in experiments/claims/paper.yaml."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mar_bench.config.choices import with_choices
from mar_bench.config.experiment import Experiment, load_experiment
from mar_bench.config.parse import KeyPathError, parse
from mar_bench.config.yaml_layers import SCALES, experiment_files, experiments_dir, load_yaml, scales
from mar_bench.report.claims.evidence import OUTSIDE, Evidence
from mar_bench.report.claims.orderings import runs_judged
from mar_bench.report.format import MISSING, Block, inline
from mar_bench.report.frames import Records, Selection, select
from mar_bench.report.render import render
from mar_bench.report.stats import UNDECIDED
from mar_bench.utils.errors import UserError, did_you_mean

NO_EVIDENCE = "smoke"  # its numbers mean nothing
BY_SIZE = [name for name in reversed(SCALES) if name != NO_EVIDENCE]  # largest first


@dataclass(frozen=True)
class Claim:
    number: int
    text: str
    evidence: tuple[Evidence, ...]
    limits: str = ""  # why some scales cannot answer it

    @property
    def words(self) -> str:
        return f"{self.text} ({self.limits})" if self.limits else self.text


@dataclass(frozen=True)
class Finding:
    """What one piece of evidence says about a claim at one scale; ``text`` is Markdown."""

    verdict: str
    text: str = "No row of its experiment has a record here."
    part: str = ""  # how many of the rows are measured, unless all are

    @property
    def summary(self) -> str:
        return f"{self.verdict}; {self.part}" if self.part else self.verdict


@dataclass(frozen=True)
class Claims:
    claims: tuple[Claim, ...]
    beyond: tuple[Claim, ...] = ()  # possible explanations where the paper's claims fail


NOTHING = Finding(f"{UNDECIDED} (no records)")


def claims_file() -> Path:
    return experiments_dir() / "claims/paper.yaml"


def read_claims(path: Path) -> Claims:
    """Raises UserError, with file and key, for a file that does not parse, repeats a number or lists nothing."""
    try:
        file = parse(Claims, load_yaml(path))
        numbers = set()
        for key, claims in {"claims": file.claims, "beyond": file.beyond}.items():
            for i, claim in enumerate(claims):
                if claim.number in numbers:
                    raise KeyPathError(f"{key}[{i}].number", f"{claim.number} is used twice")
                if not claim.evidence:
                    raise KeyPathError(f"{key}[{i}].evidence", "expected at least one piece of evidence")
                numbers.add(claim.number)
    except KeyPathError as error:
        raise UserError(f"{path}: {error.path}: {error.message}") from None
    return file


@dataclass(frozen=True)
class Judged:
    """The claims with each piece of their evidence: findings by scale, largest scale first."""

    claims: Claims
    found: dict[tuple[int, Evidence], dict[str, Finding]]
    scale: str | None

    @property
    def columns(self) -> list[str]:
        """The scales with a finding."""
        return [at for at in dict.fromkeys((*BY_SIZE, self.scale)) if any(at in of for of in self.found.values())]

    def main(self, claim: Claim, evidence: Evidence) -> Finding:
        """The finding at the largest scale that has all rows of the evidence, else at the largest that counts."""
        findings = self.found[claim.number, evidence]
        return next((one for one in findings.values() if not one.part), next(iter(findings.values()), NOTHING))


def judge(path: Path, records: Records, scale: str | None = None) -> Judged:
    """Every claim of a file with its evidence, at ``scale`` or at all scales.

    Raises UserError for a malformed file and for an experiment, ordering, axis or label that does not exist."""

    @cache
    def selected(name: str, at: str) -> tuple[Experiment, Selection]:
        experiment = with_choices(load_experiment(name, at), records)
        return experiment, select(experiment, records)

    file = read_claims(path)
    found = {
        (claim.number, evidence): _findings(f"{path}: claim {claim.number}", evidence, selected, scale)
        for claim in file.claims + file.beyond
        for evidence in claim.evidence
    }
    return Judged(file, found, scale)


def markdown(judged: Judged) -> str:
    """The claims report: a table of all verdicts, then the details of each piece of evidence."""
    columns = judged.columns
    summaries: list[list[list[str]]] = []
    details = []
    for claims in (judged.claims.claims, judged.claims.beyond):
        summaries.append([])
        for claim in claims:
            details.append(f"## {claim.number}. {inline(claim.text)}")
            name = [str(claim.number), claim.words]
            for evidence in claim.evidence:
                findings, main = judged.found[claim.number, evidence], judged.main(claim, evidence)
                cells = [findings[at].summary if at in findings else MISSING for at in columns]
                summaries[-1].append([*name, evidence.title, *cells])
                name = ["", ""]  # once for all of its evidence
                details.append(f"### {inline(evidence.title)}: {inline(main.verdict)}\n\n{main.text}")
    parts = {"scale": judged.scale, "columns": columns, "outside": OUTSIDE, "summaries": summaries, "trends": True}
    return render("claims.md.j2", **parts, details=Block("\n\n".join(details)))


def as_dict(judged: Judged) -> dict[str, list[dict[str, object]]]:
    """The verdicts by scale of each piece of evidence, as plain data."""
    return {
        key: [
            {
                "number": claim.number,
                "text": claim.text,
                "evidence": [
                    {
                        "title": evidence.title,
                        "experiment": evidence.experiment,
                        "verdicts": {at: one.summary for at, one in judged.found[claim.number, evidence].items()},
                    }
                    for evidence in claim.evidence
                ],
            }
            for claim in claims
        ]
        for key, claims in {"claims": judged.claims.claims, "beyond": judged.claims.beyond}.items()
    }


def _findings(
    where: str, evidence: Evidence, selected: Callable[[str, str], tuple[Experiment, Selection]], wanted: str | None
) -> dict[str, Finding]:
    """What the evidence says at each scale that has records of a whole comparison, or at the scale ``wanted``, largest
    scale first.

    Raises UserError, which begins with ``where``, if no scale has the evidence, and for a scale that does not exist."""
    name = evidence.experiment
    if name not in experiment_files():
        raise UserError(f"{where}: no experiment '{name}', {did_you_mean(name, experiment_files())}")
    there = [at for at in BY_SIZE if at in scales()]
    known = {at: selected(name, at) for at in ([wanted] if wanted else there)}
    unknown = {at: evidence.unknown(experiment) for at, (experiment, _) in known.items()}
    if known and all(unknown.values()):
        every = {at: evidence.unknown(selected(name, at)[0]) for at in there}
        if all(every.values()):
            raise UserError(f"{where}: {name} has {every[there[0]][0]}; see {selected(name, there[0])[0].file}")
    found = {}
    for at, (experiment, selection) in known.items():
        comparisons = evidence.comparisons(experiment)
        rows = list(dict.fromkeys(itertools.chain(*comparisons)))
        measured = {row for row in rows if runs_judged(selection, row, getattr(evidence, "metric", "fd"))}
        done = len(measured)
        # tables share rows: those of another table alone are no evidence here
        if any(measured.issuperset(compared) for compared in comparisons):
            verdict, text = evidence.judge(experiment, selection)
            part = f"{done} of its {len(rows)} rows are measured" if done < len(rows) else ""
            place = [f"Experiment {name}, {at} scale", *(f"this scale has {lacking}" for lacking in unknown[at]), part]
            found[at] = Finding(verdict, f"{inline('; '.join(filter(None, place)))}.\n\n{text}", part)
        elif at == wanted and not rows:
            found[at] = Finding(f"{UNDECIDED} (not at this scale)")
    return found
