"""Write ids.json, the ids of Table 1 at every scale: ``python -m tests.golden.regenerate_ids``.

Right after a change that was meant to move ids: an experiment or an overlay says something else, a default of
spec.py was wrong, a number in ids.REVISIONS was raised because a stage's output changed. Read the diff of the
file: the ids that moved are the runs that have to be made again, and records under the old ids are left behind.
Wrong to quiet a test after a refactoring or after adding a field: then ids must stay, and the code is at fault.
"""

from __future__ import annotations

import json
from pathlib import Path

from mar_bench.config import load_experiment
from mar_bench.ids import generation_run, reconstruction_run, speed_run

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


if __name__ == "__main__":
    FILE.write_text(json.dumps(table1_ids(), indent=1) + "\n")
    print(f"wrote {FILE}")
