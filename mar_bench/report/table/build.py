"""The table of an experiment in Markdown, LaTeX and CSV, laid out as in the paper.

``table`` collects the measurements; the templates in ``report/templates`` lay out the parts of ``Table``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from mar_bench.config.experiment import Experiment
from mar_bench.records.metrics import GENERATION_METRICS, LIKELIHOOD_METRICS, METRICS, metric_name
from mar_bench.report import format as fmt
from mar_bench.report.claims import orderings, trends
from mar_bench.report.frames import Records, is_shown, loaded, values
from mar_bench.report.paper_agreement import CLOSE, DIFFERS, MATCH, agreement
from mar_bench.report.render import render
from mar_bench.report.table import notes
from mar_bench.report.table.grid import Measured, agreement_grid, further_grid, literature_grid, main_grid, quoted_grid
from mar_bench.utils.errors import UserError
from mar_bench.utils.files import atomic_write, with_folder


class Table(Measured):
    """The results of an experiment, rendered by ``markdown``, ``tex`` and ``csv``."""

    def markdown(self) -> str:
        """Warnings, table, quoted and further numbers, notes, failed runs, the paper's numbers and its claims."""
        return render("table.md.j2", **self.parts())

    def parts(self) -> dict[str, Any]:
        """What the templates of a table lay out."""
        against_paper = agreement_grid(self)
        verdicts = [line[-1] for line in against_paper.lines] if against_paper else []
        return {
            "experiment": self.experiment,
            "warnings": notes.warnings(self),
            "main": main_grid(self),
            "quoted": quoted_grid(self.experiment),
            "further": None if self.over_training else further_grid(self),  # a row for every step
            "notes": notes.notes(self),
            "failures": notes.failures(self),
            "against_paper": against_paper,
            "verdicts": {word: verdicts.count(word) for word in (MATCH, CLOSE, DIFFERS)},
            "metrics": METRICS,
            "literature": literature_grid(self.experiment),
            "claims": list(self._claims()),
            "trends": self.over_training,
        }

    def _claims(self) -> Iterator[tuple[str, str, str, str]]:
        if self.over_training:
            return trends.claims(self.experiment, self.selection)
        return orderings.claims(orderings.compare(self.experiment, self.selection))

    def tex(self) -> str:
        """The main table and quoted numbers in LaTeX, no wider than the text; needs booktabs and graphicx."""
        experiment, texts = self.experiment, notes.notes(self)
        short = [texts[subject] for subject in notes.SHORT if subject in texts]
        grids = {"main": main_grid(self), "quoted": quoted_grid(experiment)}
        return render("table.tex.j2", experiment=experiment, short_notes=short, **grids)

    def csv(self) -> str:
        """One line per row and metric, under the records' own metric names.

        ``se`` is the mean standard error of a single run, ``seconds_per_image`` is in one setting throughout
        (``speed_setting``); ``difference`` and ``verdict`` are against the paper, ``chosen`` is the sweep point."""
        experiment, lines, floors = self.experiment, [], values(self.frame, "rfd")
        measured = self.frame[self.frame["task"].isin(["generation", "likelihood"])]
        nothing, of_rows = measured[:0], dict(iter(measured.groupby(["row", "task"])))
        errors = measured[measured["status"] == "done"].groupby(["row", "metric"])["se"].mean().to_dict()
        metrics = [*GENERATION_METRICS, *(LIKELIHOOD_METRICS if experiment.shows_likelihood else ())]
        shown = {metric for _, metric in self.spreads}
        for row, spec in experiment.rows.items():
            seconds, extractor = self.seconds.get(row, math.nan), vars(spec.metrics.extractor)
            for metric in (metric for metric in metrics if is_shown(metric, extractor)):
                if METRICS[metric].optional and metric not in shown:
                    continue
                task = METRICS[metric].task
                mine = of_rows.get((row, task), nothing)
                mine = mine[mine["metric"] == metric] if task == "likelihood" else mine
                done = mine[mine["status"] == "done"]
                images = "/".join(f"{n:.0f}" for n in sorted(set(mine["num_images"].dropna())))
                records = " ".join((done if len(done) else mine)["record"].unique())
                found = self.spread(row, metric)
                lines.append([
                    experiment.id, experiment.scale, row, *experiment.bundles(row).values(),
                    metric_name(metric, extractor), self.status(row, task), found.mean,
                    math.nan if found.over == "images" else found.sd,
                    found.sd if found.over == "training" else math.nan, found.sd_sampling,
                    errors.get((row, metric), math.nan), len(found.train_seeds), len(found.sampling_seeds), images,
                    *agreement(experiment, row, metric, found.mean), notes.chosen_words(experiment, row),
                    floors.get(row, math.nan), seconds, None if math.isnan(seconds) else self.speed_setting, records,
                ])  # fmt: skip
        columns = ["experiment", "scale", "row", *experiment.labels, "metric", "status", "mean", "sd", "sd_training"]
        columns += ["sd_sampling", "se", "n_train_seeds", "n_sampling_seeds", "num_generated", "paper", "difference"]
        columns += ["verdict", "chosen", "floor_fd", "seconds_per_image", "speed_setting", "records"]
        return fmt.csv_text(pd.DataFrame(lines, columns=columns))


def table(experiment: Experiment | str, records: Records | None = None, scale: str = "tiny") -> Table:
    """The table of an experiment from whatever records exist; arguments as in ``report.frames.frame``.

    Raises UserError for an unknown experiment, a bad ordering or a broken record."""
    return Table(*loaded(experiment, records, scale))


def save_formats(made: Table, folder: Path) -> list[Path]:
    """Write a table as Markdown, CSV and LaTeX to ``folder``; return the paths. Raises UserError without records."""
    experiment = made.experiment
    if not any(tasks["generation"] for tasks in made.selection.values()):
        raise UserError(f"no records of {experiment.id} at scale {experiment.scale}; `mar-bench run` makes them")
    texts = {"md": made.markdown(), "csv": made.csv(), "tex": made.tex()}
    paths = {folder / f"{experiment.stem}.{ending}": text for ending, text in texts.items()}
    for path, text in paths.items():
        atomic_write(with_folder(path), text)
    return list(paths)
