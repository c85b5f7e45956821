"""Collect the parts of a scale's page and fill its template."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from markupsafe import Markup
from plotly.offline import get_plotlyjs

from mar_bench.config.experiment import Experiment
from mar_bench.records.record import Record, RecordFolder
from mar_bench.report import format as fmt
from mar_bench.report.claims.report import Judged
from mar_bench.report.figures.draw import plot_of
from mar_bench.report.page import interactive, pictures
from mar_bench.report.page.pictures import Pictures
from mar_bench.report.render import render
from mar_bench.report.table.build import Table
from mar_bench.report.table.grid import Column
from mar_bench.utils.errors import UserError

LEADING = "learning_curves"  # the experiment whose figure is on the first screen, if it can be drawn
MOST_CURVES = 40  # in one figure of losses


@dataclass(frozen=True)
class Section:
    """One experiment on the page; ``copied`` are sheets of nearest neighbours in the reports folder."""

    table: Table
    pictures: Pictures
    copied: list[Path]

    @cached_property
    def parts(self) -> dict[str, Any]:
        """What the template of a table lays out."""
        return self.table.parts()

    @cached_property
    def drawn(self) -> tuple[interactive.Figure, str]:
        """The figure, or an empty one and the reason."""
        try:
            return interactive.figure(plot_of(self.experiment, self.table.frame), self.words, self.records), ""
        except UserError as error:
            return {}, str(error)

    @property
    def experiment(self) -> Experiment:
        return self.table.experiment

    @property
    def words(self) -> dict[str, str]:
        """Row -> its labels in one line."""
        return {row: fmt.row_words(self.experiment, row) for row in self.experiment.rows}

    @property
    def statuses(self) -> dict[str, list[str]]:
        """Status -> rows."""
        found: dict[str, list[str]] = {}
        for row in [*self.experiment.rows, *self.experiment.absent]:
            found.setdefault(self.table.status(row), []).append(row)
        return found

    @property
    def records(self) -> dict[str, list[str]]:
        """Row -> ids of its records."""
        of_rows = self.table.selection.items()
        return {row: [r.id for of_task in tasks.values() for r in of_task] for row, tasks in of_rows}

    def footnotes(self, column: Column) -> list[int]:
        """The numbers of the notes that explain a column, from 1."""
        timed = column.metric == "seconds_per_image"
        subjects = ["speed"] if timed else ["protocol"] * bool(column.metric)
        subjects += ["seeds"] * (column.metric in {*self.experiment.layout.get("metrics", ["fd"])})
        subjects += ["brackets"] * column.published + ["reconstruction"] * column.metric.startswith("rfd")
        order = list(self.parts["notes"])
        return sorted(order.index(subject) + 1 for subject in subjects if subject in order)


def section(experiment: Experiment, records: RecordFolder, found: Pictures, reports: Path) -> Section:
    """An experiment's part of the page. ``reports``: the scale's folder, where sheets of neighbours may lie."""
    sheets = sorted(reports.glob(f"{experiment.id}-neighbours-*.png"))
    return Section(Table(experiment, records), found, sheets)


def page(scale: str, sections: Sequence[Section], judged: Judged, records_at: str) -> str:
    """The page of a scale as HTML; ``records_at`` is the folder of its links to records."""
    leading = next((s for s in sections if s.experiment.id == LEADING and s.drawn[0]), None)
    leading = leading or next((s for s in sections if s.drawn[0]), None)
    images = {s.experiment.id: _images(s) for s in sections}
    sprites: dict[str, str] = {}
    for of_section in images.values():
        for group in of_section.values():
            for name, uri in group.items():
                group[name] = sprites.setdefault(uri, f"i{len(sprites)}")
    shown = {r.id: r for s in sections for tasks in s.table.selection.values() for of in tasks.values() for r in of}
    figures = {s.experiment.id: s.drawn[0] for s in sections if s.drawn[0]}
    figures |= {f"{s.experiment.id}-losses": curves for s in sections if (curves := _losses(s))}
    data = {
        "figures": figures,
        "sprites": {key: uri for uri, key in sprites.items()},
        "records": {key: _summary(record) for key, record in shown.items()},
        "recordsAt": records_at,
        "copies": {s.experiment.id: _copies(s) for s in sections},
    }
    return render(
        "page.html.j2",
        scale=scale,
        scale_title=fmt.scale_title(sections[0].experiment),
        leading=leading,
        sections=sections,
        judged=judged,
        images=images,
        rules=fmt.Block(render("rules.md.j2", trends=True)),
        records_at=records_at,
        count=len(shown),
        data=Markup(_inert(data)),
        plotly=Markup(get_plotlyjs()),
    )


def _inert(data: Any) -> str:
    """JSON that cannot end the script element that holds it."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _images(of: Section) -> dict[str, dict[str, str]]:
    """Kind of picture -> what it shows -> data URI."""
    found, words, invert = of.pictures, of.words, pictures.dark(of.pictures)
    classes = next(iter(of.experiment.rows.values())).data.num_classes
    return {
        "samples": {words[row]: uri for row, uri in pictures.sheets(found.samples, classes, invert).items()},
        "strips": {words[row]: pictures.strip(frames, invert) for row, frames in found.strips.items()},
        "reconstructions": {
            f"{of.experiment.rows[row].tokenizer.kind.upper()}: {words[row]}": pictures.pairs(*both, invert)
            for row, both in found.reconstructions.items()
        },
        "neighbours": {path.stem: pictures.file_uri(path) for path in of.copied},
    }


def _losses(of: Section) -> interactive.Figure | None:
    curves = dict(list(of.pictures.curves.items())[:MOST_CURVES])
    return interactive.losses(curves, of.words) if curves else None


def _copies(of: Section) -> dict[str, str]:
    """The texts that the buttons beside a table copy."""
    return {"Markdown": of.parts["main"].markdown(), "LaTeX": of.table.tex(), "CSV": of.table.csv()}


def _summary(record: Record) -> dict[str, Any]:
    """What the page says about a record, whose file has the rest."""
    git, errors = record.provenance.get("git") or {}, record.uncertainty
    numbers = {k: fmt.plus_minus(v, errors.get(k, {}).get("standard_error")) for k, v in record.metrics.items()}
    return {
        "task": record.task,
        "status": record.status,
        "seeds": list(record.seeds),
        "metrics": numbers,
        "commit": str(git.get("commit") or "unknown")[:10] + " with uncommitted changes" * bool(git.get("dirty")),
        "device": record.provenance.get("device"),
        "command": record.provenance.get("command"),
        **({"error": record.error} if record.error else {}),
    }
