"""Write the pages that are made from the program and the records: docs/commands.md and docs/experiments/.

python -m tests.docs.regenerate"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import typer

from mar_bench.cli import app
from mar_bench.config.experiment import Experiment
from mar_bench.config.ids import IdCheck
from mar_bench.config.yaml_layers import SCALES, experiment_files
from mar_bench.pipeline.plan import make_plan
from mar_bench.pipeline.request import load_all, select
from mar_bench.pipeline.store import Places
from mar_bench.records.record import RecordFolder
from mar_bench.report import format as fmt
from mar_bench.report.claims.report import Judged, claims_file, judge
from mar_bench.report.table.build import Table

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "results/records"
SHOWN = ("tiny", "desk", "fashion")  # scales whose records are committed
NOTE = "<!-- made by python -m tests.docs.regenerate -->\n"


def commands_page() -> str:
    """Every command with its arguments and options."""
    group = typer.main.get_command(app)
    parts = [f"{NOTE}# Commands\n\n[Using mar_bench](usage.md) has examples."]
    for name, command in sorted(group.commands.items()):
        lines = []
        for parameter in command.params:
            if name_of := _name(parameter):
                is_text = isinstance(parameter.default, (str, int)) and not getattr(parameter, "is_flag", False)
                default = f"`{parameter.default}`" if is_text and parameter.default else ""
                lines.append([f"`{name_of}`", getattr(parameter, "help", None) or "", default])
        text = " ".join((command.help or "").split("\n\n")[0].split())
        more = "\n\n".join(" ".join(part.split()) for part in (command.help or "").split("\n\n")[1:])
        table = fmt.markdown_table(["", "", "default"], lines)
        parts.append("\n\n".join(filter(None, [f"## {name}", text, more, table])))
    return "\n\n".join(parts) + "\n"


def _name(parameter) -> str:
    """``--seeds 0,1,2`` or ``EXPERIMENT``; empty for help."""
    if not hasattr(parameter, "opts") or parameter.name == "help":
        return ""
    metavar = parameter.metavar or ""
    is_option = parameter.opts[0].startswith("-")
    return " ".join(filter(None, [parameter.opts[0], metavar])) if is_option else metavar


@cache
def judged(scale: str) -> Judged:
    return judge(claims_file(), RecordFolder(RECORDS, IdCheck()), scale)


def experiment_page(name: str) -> str:
    """What an experiment asks, how to run it, what it costs, what is expected, what was found."""
    found = RecordFolder(RECORDS, IdCheck())
    at = {
        scale: experiment for scale in SCALES for experiment in load_all([name], False, scale, found) if experiment.rows
    }
    first = next(iter(at.values()))
    header = list(_header(first.file))
    parts = [f"{NOTE}# {first.title} (`{first.id}`)", f"**{first.question}**", f"Source: {first.source}.", *header]
    kind = first.figure.get("kind", "speed")
    show = f"mar-bench {'sample' if kind == 'gallery' else 'plot'} {name} --scale tiny"
    lines = [f"mar-bench run {name} --scale tiny", f"mar-bench table {name} --scale tiny", show]
    parts += ["## Run", "```\n" + "\n".join(lines) + "\n```", _costs(name, list(at), found), "## Found"]
    for scale in SHOWN:
        if (ROOT / f"reports/{scale}/{name}.md").is_file() and scale in at:
            parts += _findings(at[scale], found)
    return "\n\n".join(parts) + "\n"


def experiments_page() -> str:
    """Every experiment with its question and what is committed of it."""
    lines: dict[bool, list[str]] = {True: [], False: []}
    for name in experiment_files():
        (experiment,) = load_all([name], False, "tiny", RecordFolder(RECORDS, IdCheck()))
        committed = [
            f"[{scale} {what}](../../{path})"
            for scale in SHOWN
            for what, ending in (("table", ".md"), ("figure", ".png"), ("samples", "-samples.png"))
            if (ROOT / (path := f"reports/{scale}/{name}{ending}")).is_file()
        ]
        lines[experiment.source.startswith("Li et al.")].append(
            f"| [{name}]({name}.md) | {experiment.question} | {', '.join(committed)} |"
        )
    heading = "|  | question | results |\n|---|---|---|"
    parts = [f"{NOTE}# Experiments\n", heading, *lines[True], "\n## Not in the paper\n", heading, *lines[False]]
    return "\n".join(parts) + "\n"


def _header(file: Path) -> Iterator[str]:
    """The paragraphs of the comment at the beginning of an experiment's file, without its commands."""
    lines = []
    for line in file.read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append("" if line.startswith("#   ") else line[1:].strip())
    for paragraph in re.split(r"\n{2,}", "\n".join(lines)):
        if paragraph.strip():
            yield " ".join(paragraph.split())


def _costs(name: str, scales: list[str], found: RecordFolder) -> str:
    """Trainings and estimated hours at every scale, for one training seed."""
    lines = []
    for scale in scales:
        plan = make_plan(select([name], False, scale, found), scale, Places(ROOT / "runs/none", RECORDS), found)
        cost = plan["cost"]
        hours = cost["train"] + cost["sample"]
        lines.append(
            [scale, str(plan["trainings"]), str(plan["evaluations"]), f"{_hours(hours)} of {cost['hours_of']}"]
        )
    heading = ["scale", "trainings", "evaluations", "hours of training and sampling (cost model)"]
    return fmt.markdown_table(heading, lines)


def _hours(hours: float) -> str:
    return "under 0.1" if hours < 0.1 else f"{hours:,.0f}" if hours >= 10 else f"{hours:.1f}"


def _findings(experiment: Experiment, found: RecordFolder) -> Iterator[str]:
    scale, name, table = experiment.scale, experiment.id, Table(experiment, found)
    yield f"### {scale} scale"
    if (ROOT / f"reports/{scale}/{name}.png").is_file():
        yield f"![{experiment.title}, {scale} scale](../../reports/{scale}/{name}.png)"
    if not table.over_training:  # its table has a column for every step
        yield table.parts()["main"].markdown()
    yield f"[The whole table with its notes](../../reports/{scale}/{name}.md)."
    said = judged(scale)
    lines = [
        [str(claim.number), claim.words, evidence.title, said.main(claim, evidence).summary]
        for claim in said.claims.claims + said.claims.beyond
        for evidence in claim.evidence
        if evidence.experiment == name and said.found[claim.number, evidence]
    ]
    if lines:
        yield fmt.markdown_table(["claim", "", "evidence", "verdict"], lines)


def main() -> None:
    (ROOT / "docs/experiments").mkdir(exist_ok=True)
    (ROOT / "docs/commands.md").write_text(commands_page())
    (ROOT / "docs/experiments/README.md").write_text(experiments_page())
    for name in experiment_files():
        (ROOT / f"docs/experiments/{name}.md").write_text(experiment_page(name))


if __name__ == "__main__":
    main()
