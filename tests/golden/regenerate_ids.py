"""Write ids.json, the ids of every experiment at every scale: ``python -m tests.golden.regenerate_ids``.

Table 1 with all its stages, the others with the ids of trainings and records. A row with a sweep stands at its first
point.

Right after a change that was meant to move ids: an experiment or an overlay says something else, a default of
spec.py was wrong, a revision in config/stages.py was raised because a stage's output changed. Read the diff of the
file: the ids that moved are the runs that have to be made again, and records under the old ids are left behind.
Wrong to quiet a test after a refactoring or after adding a field: then ids must stay, and the code is at fault.
"""

from __future__ import annotations

import json
from pathlib import Path

from mar_bench.config.experiment import load_experiment
from mar_bench.config.ids import generation_run, reconstruction_run, speed_run
from mar_bench.config.yaml_layers import experiment_files

FILE = Path(__file__).with_name("ids.json")
SCALES = ("smoke", "tiny", "desk", "paper")


def table1_ids() -> dict[str, dict[str, dict[str, str]]]:
    """Scale -> row -> ids of its stages and of its three records."""
    return {
        scale: {
            row: {
                **{k: v for k, v in generation_run(row, spec).ids.items() if k != "cell_id"},
                "reconstruction_id": reconstruction_run(row, spec).id,
                "speed_id": speed_run(row, spec, "Example CPU").id,
            }
            for row, spec in load_experiment("table1", scale).rows.items()
        }
        for scale in SCALES
    }


def every_id() -> dict[str, dict]:
    """Experiment -> scale -> row -> ids."""

    def short(name: str, scale: str) -> dict[str, list[str]]:
        rows = load_experiment(name, scale).rows
        runs = {row: generation_run(row, spec) for row, spec in rows.items()}
        return {row: [run.ids["train_id"], run.id] for row, run in runs.items()}

    others = [name for name in experiment_files() if name != "table1"]
    return {"table1": table1_ids()} | {name: {scale: short(name, scale) for scale in SCALES} for name in others}


if __name__ == "__main__":
    FILE.write_text(json.dumps(every_id(), indent=1) + "\n")
    print(f"wrote {FILE}")
