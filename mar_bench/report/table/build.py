"""The table of an experiment in Markdown, LaTeX and CSV, laid out as in the paper.

``build`` collects what was measured; the templates in ``report/templates`` lay out the parts of ``Table``."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jinja2
import pandas as pd

from mar_bench.config.experiment import Experiment
from mar_bench.records.metrics import GENERATION_METRICS, METRICS, metric_name
from mar_bench.records.record import Record
from mar_bench.report.claims import orderings
from mar_bench.report.claims.orderings import Comparison, compare
from mar_bench.report.format import extractor_block, scale_title
from mar_bench.report.frames import left_out, select, values
from mar_bench.report.table import caveats, notes
from mar_bench.report.table.grid import Grid, agreement_grid, further_grids, main_grid, quoted_grid
from mar_bench.report.table.measured import Measured
from mar_bench.report.verdict import CLOSE, DIFFERS, MATCH, agreement

TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "|": "$|$", "±": r"$\pm$",
    "–": "--", "†": r"$^\dagger$", "‡": r"$^\ddagger$", "×": r"$\times$", "≤": r"$\leq$", "≥": r"$\geq$",
    '"': "''", "\n": " ", "[": "{[}", "*": "{*}",  # the last two would be arguments of the \\ before them
}  # fmt: skip


@dataclass(frozen=True)
class Table(Measured):
    """All that a rendered table shows."""

    comparisons: list[Comparison] = field(default_factory=list)

    @property
    def scale_title(self) -> str:
        return scale_title(self.experiment)

    @cached_property
    def main(self) -> Grid:
        return main_grid(self)

    @cached_property
    def further(self) -> list[Grid]:
        return list(further_grids(self))

    @property
    def quoted(self) -> Grid | None:
        return quoted_grid(self.experiment)

    @cached_property
    def against_paper(self) -> Grid | None:
        return agreement_grid(self)

    @property
    def warnings(self) -> list[str]:
        return caveats.warnings(self)

    @property
    def notes(self) -> list[str]:
        return notes.notes(self)

    @property
    def caption(self) -> str:
        """Title, scale and the notes that a caption cannot do without."""
        scale = self.scale_title
        return " ".join([f"{self.experiment.title}. {scale[:1].upper()}{scale[1:]}.", *notes.short_notes(self)])

    @property
    def failures(self) -> list[str]:
        return caveats.failures(self)

    @property
    def verdict_counts(self) -> str:
        """``match: 1, close: 0, differs: 1``."""
        found = [cells[-1].text for _, cells in self.against_paper.lines] if self.against_paper else []
        return ", ".join(f"{word}: {found.count(word)}" for word in (MATCH, CLOSE, DIFFERS))

    @property
    def orderings(self) -> str:
        return orderings.markdown(self.experiment, self.comparisons)

    def markdown(self) -> str:
        """Warnings, table, quoted and further numbers, notes, failed runs, the paper's numbers and its claims."""
        return render("table.md.j2", self)

    def tex(self) -> str:
        """The main table and quoted numbers in LaTeX, for the package booktabs; the best numbers are bold."""
        return render("table.tex.j2", self)

    def csv(self) -> str:
        """``wide_frame`` as CSV."""
        return wide_frame(self).to_csv(index=False, lineterminator="\n", float_format="%.6g")


def build(experiment: Experiment, records: dict[str, Record]) -> Table:
    """The table of an experiment from whatever records exist. Raises UserError for a bad ordering."""
    selection, comparisons = select(experiment, records), compare(experiment, records)
    return Table(experiment, selection, left_out(experiment, records), comparisons)


def render(template: str, table: Table) -> str:
    loader = jinja2.PackageLoader("mar_bench.report")
    options: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    if ".tex" in template:  # braces are LaTeX's own
        options |= {"variable_start_string": "<<", "variable_end_string": ">>", "block_start_string": "<%"}
        options |= {"block_end_string": "%>", "comment_start_string": "<#", "comment_end_string": "#>"}
    environment = jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, **options)
    environment.filters["tex"] = escape_tex
    return environment.get_template(template).render(
        table=table, tolerances={n: m.tolerance for n, m in METRICS.items()}
    )


def escape_tex(text: object) -> str:
    """Any text as LaTeX prints it."""
    return "".join(TEX.get(character, character) for character in str(text))


def wide_frame(table: Table) -> pd.DataFrame:
    """One line per row and metric, under the records' own metric names.

    ``se`` is the mean standard error of a single run, ``seconds_per_image`` is in one setting throughout
    (``speed_setting``); ``difference`` and ``verdict`` are against the paper; ``chosen`` is the row's sweep point."""
    experiment = table.experiment
    generated = table.frame[table.frame["task"] == "generation"]
    errors = generated[generated["status"] == "done"].groupby(["row", "metric"])["se"].mean().to_dict()
    rfd, lines = values(table.frame, "rfd"), []
    for row, spec in experiment.rows.items():
        mine = generated[generated["row"] == row]
        images = sorted(set(mine["num_images"].dropna()))
        done = mine[mine["status"] == "done"]
        seconds = table.seconds.get(row, math.nan)
        for metric in GENERATION_METRICS:
            extractor = extractor_block(spec)
            if extractor["kind"] == "inception" and not METRICS[metric].with_inception:
                continue
            found = table.spread(row, metric)
            against = agreement(experiment, row, metric, found.mean)
            lines.append(
                {
                    "experiment": experiment.id,
                    "scale": experiment.scale,
                    "row": row,
                    **experiment.bundles(row),
                    "metric": metric_name(metric, extractor),
                    "status": table.status(row),
                    "mean": found.mean,
                    "sd": found.sd if found.over in ("training", "sampling") else math.nan,
                    "sd_training": found.sd_training,
                    "sd_sampling": found.sd_sampling,
                    "se": errors.get((row, metric), math.nan),
                    "n_train_seeds": len(found.train_seeds),
                    "n_sampling_seeds": len(found.sampling_seeds),
                    "num_generated": "/".join(f"{n:.0f}" for n in images),
                    "paper": against.published,
                    "difference": against.difference,
                    "verdict": against.verdict,
                    "chosen": notes.chosen_words(experiment, row),
                    "floor_fd": rfd.get(row, math.nan),
                    "seconds_per_image": seconds,
                    "speed_setting": None if math.isnan(seconds) else table.speed_setting,
                    "records": " ".join((done if len(done) else mine)["record"].unique()),
                }
            )
    return pd.DataFrame(lines)
