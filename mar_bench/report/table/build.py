"""The table of an experiment in Markdown, LaTeX and CSV, laid out as in the paper.

``table`` collects what was measured; the templates in ``report/templates`` lay out the parts of ``Table``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from mar_bench.config.experiment import Experiment
from mar_bench.records.metrics import GENERATION_METRICS, METRICS, metric_name
from mar_bench.records.record import Record
from mar_bench.report.claims import orderings
from mar_bench.report.format import scale_title
from mar_bench.report.frames import is_shown, loaded, values
from mar_bench.report.paper_agreement import CLOSE, DIFFERS, MATCH, agreement
from mar_bench.report.table import notes
from mar_bench.report.table.grid import Measured, agreement_grid, further_grid, main_grid, quoted_grid
from mar_bench.utils.errors import UserError
from mar_bench.utils.files import atomic_write

TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "|": "$|$", "±": r"$\pm$",
    "–": "--", "†": r"$^\dagger$", "‡": r"$^\ddagger$", "×": r"$\times$", "≤": r"$\leq$", "≥": r"$\geq$",
    '"': "''", "\n": " ", "[": "{[}", "*": "{*}",  # the last two would be arguments of the \\ before them
}  # fmt: skip


class Table(Measured):
    """The results of an experiment, rendered by ``markdown``, ``tex`` and ``csv``."""

    def __init__(self, experiment: Experiment, records: dict[str, Record]):
        super().__init__(experiment, records)
        self.comparisons = orderings.compare(experiment, records)

    def markdown(self) -> str:
        """Warnings, table, quoted and further numbers, notes, failed runs, the paper's numbers and its claims."""
        return self._render("table.md.j2")

    def tex(self) -> str:
        """The main table and quoted numbers in LaTeX, for the package booktabs."""
        return self._render("table.tex.j2")

    def csv(self) -> str:
        """``wide_frame`` as CSV."""
        return wide_frame(self).to_csv(index=False, lineterminator="\n", float_format="%.6g")

    def _render(self, template: str) -> str:
        experiment, against_paper = self.experiment, agreement_grid(self)
        verdicts = [line[-1] for line in against_paper.lines] if against_paper else []
        texts = notes.notes(self)
        options: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
        if ".tex" in template:  # braces are LaTeX's own
            options |= {"variable_start_string": "<<", "variable_end_string": ">>"}
            options |= {"block_start_string": "<%", "block_end_string": "%>"}
        loader = jinja2.PackageLoader("mar_bench.report")
        environment = jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, **options)
        environment.filters["tex"] = escape_tex
        return environment.get_template(template).render(
            experiment=experiment,
            scale=scale_title(experiment),
            warnings=notes.warnings(self),
            main=main_grid(self),
            quoted=quoted_grid(experiment),
            further=further_grid(self),
            notes=list(texts.values()),
            short_notes=[texts[subject] for subject in notes.SHORT if subject in texts],
            failures=notes.failures(self),
            against_paper=against_paper,
            verdicts={word: verdicts.count(word) for word in (MATCH, CLOSE, DIFFERS)},
            metrics=METRICS,
            orderings=orderings.markdown(experiment, self.comparisons),
        )


def table(experiment: Experiment | str, records: dict[str, Record] | None = None, scale: str = "tiny") -> Table:
    """The table of an experiment from whatever records exist; arguments as in ``report.frames.frame``.

    Raises UserError for an unknown experiment, a bad ordering or a broken record."""
    return Table(*loaded(experiment, records, scale))


def save_formats(made: Table, folder: Path) -> list[Path]:
    """Write a table as Markdown, CSV and LaTeX to ``folder``; return the paths. Raises UserError without records."""
    experiment = made.experiment
    if made.is_empty:
        raise UserError(f"no records of {experiment.id} at scale {experiment.scale}; `mar-bench run` makes them")
    texts = {"md": made.markdown(), "csv": made.csv(), "tex": made.tex()}
    for ending, text in texts.items():
        atomic_write(folder / f"{experiment.id}.{ending}", text)
    return [folder / f"{experiment.id}.{ending}" for ending in texts]


def escape_tex(text: object) -> str:
    """Any text as LaTeX prints it."""
    return "".join(TEX.get(character, character) for character in str(text))


def wide_frame(made: Table) -> pd.DataFrame:
    """One line per row and metric, under the records' own metric names.

    ``se`` is the mean standard error of a single run, ``seconds_per_image`` is in one setting throughout
    (``speed_setting``); ``difference`` and ``verdict`` are against the paper; ``chosen`` is the row's sweep point."""
    experiment, lines, floors = made.experiment, [], values(made.frame, "rfd")
    generated = made.frame[made.frame["task"] == "generation"]
    errors = generated[generated["status"] == "done"].groupby(["row", "metric"])["se"].mean().to_dict()
    for row, spec in experiment.rows.items():
        mine = generated[generated["row"] == row]
        done = mine[mine["status"] == "done"]
        images = "/".join(f"{n:.0f}" for n in sorted(set(mine["num_images"].dropna())))
        records = " ".join((done if len(done) else mine)["record"].unique())
        seconds, extractor = made.seconds.get(row, math.nan), vars(spec.metrics.extractor)
        for metric in (metric for metric in GENERATION_METRICS if is_shown(metric, extractor)):
            found = made.spread(row, metric)
            lines.append([
                experiment.id, experiment.scale, row, *experiment.bundles(row).values(), metric_name(metric, extractor),
                made.status(row), found.mean, math.nan if found.over == "images" else found.sd,
                found.sd if found.over == "training" else math.nan, found.sd_sampling,
                errors.get((row, metric), math.nan), len(found.train_seeds), len(found.sampling_seeds), images,
                *agreement(experiment, row, metric, found.mean), notes.chosen_words(experiment, row),
                floors.get(row, math.nan), seconds, None if math.isnan(seconds) else made.speed_setting, records,
            ])  # fmt: skip
    columns = ["experiment", "scale", "row", *experiment.labels, "metric", "status", "mean", "sd", "sd_training"]
    columns += ["sd_sampling", "se", "n_train_seeds", "n_sampling_seeds", "num_generated", "paper", "difference"]
    columns += ["verdict", "chosen", "floor_fd", "seconds_per_image", "speed_setting", "records"]
    return pd.DataFrame(lines, columns=columns)
