"""Trainings through submit while nodes die and jobs are preempted, requeued, cancelled and told to stop."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

from tests.slurm.conftest import Cluster
from tests.slurm.lab import TABLE1, Lab, measured

ROWS = [*TABLE1, "--only", "random_*/diff/guided", "train.steps=100"]  # two trainings
SLOW = ["compute.step_pause=0.4", "compute.checkpoint_every=10"]
CAUSAL, BOTH = "random_causal/diff/guided", "random_bidirectional/diff/guided"


def test_disturbed_jobs_give_the_records_of_a_quiet_run(slurm: Cluster, tmp_path: Path):
    lab, quiet = Lab(slurm, tmp_path), Lab(slurm, tmp_path / "quiet")
    quiet("run", *ROWS)
    for kind in ("tokenizer", "latents", "extractor", "reconstruction", "speed"):  # done before the disturbance
        shutil.copytree(quiet.folder / "runs" / kind, lab.folder / "runs" / kind)
    disturb(slurm, lab)

    ours = lab.records()
    assert {record["status"] for record in ours.values()} == {"done"}
    assert measured(ours) == measured(quiet.records())
    history = lab.history()
    assert set(Counter(e["stage"] for e in history if e["event"] == "done").values()) == {1}, "done twice"
    resumed = Counter(e["stage"] for e in history if e["event"] == "start" and e.get("first_step"))
    assert len(resumed) == 2 and sum(resumed.values()) >= 5, "not from their own checkpoints"


def disturb(slurm: Cluster, lab: Lab) -> None:
    """Submit two trainings, break in on both, and wait until they have ended."""
    # two GPUs: each training has a node for itself, and what happens to the node happens to that one
    profile = lab.profile(stages={"train": {"gpus_per_node": 2, "tasks_per_node": 1}})

    def training(row: str, least: int, not_on: str = "") -> dict:
        """Wait until it has reached a step, on another node."""

        def there() -> dict | None:
            line = lab.lines()[row]
            runs = line["stage"] == "train" and line["state"] == "RUNNING" and (line["step"] or 0) >= least
            return line if runs and line["node"] != not_on else None

        return lab.until(there, 240)

    lab.submit(*ROWS, *SLOW, cluster=profile)
    causal, both = training(CAUSAL, 3), training(BOTH, 3)

    # one is preempted, the other gets the signal of a time limit; then an operator requeues it
    slurm.run("sbatch", "-p", "prio", "-w", causal["node"], "--exclusive", "-o", "/dev/null", "--wrap", "sleep 2")
    slurm.run("scancel", "--signal=USR2", both["job"])
    both = training(BOTH, both["step"] + 1)
    slurm.run("scontrol", "requeue", both["job"])

    # a slurmd dies while its task lives on: once Slurm has given up the node, two copies run
    both = training(BOTH, both["step"] + 1)
    old = lab.process(both["job"])
    slurm.node("kill", both["node"])
    slurm.node("down", both["node"])

    # a row is cancelled and sent again, and its node crashes
    causal = training(CAUSAL, causal["step"] + 1)
    assert "cancelled" in lab("cancel", f"table1/{CAUSAL}")
    lab.until(lambda: not lab.lines()[CAUSAL]["live"], 60)
    lab.submit(*ROWS, *SLOW, cluster=profile)
    again = training(CAUSAL, causal["step"] + 1)
    assert causal["job"] != again["job"]
    slurm.node("crash", again["node"])
    slurm.node("down", again["node"])

    training(BOTH, both["step"] + 1, both["node"])
    lab.until(lambda: not Path(f"/proc/{old}").exists(), 20)  # else two copies of one training
    for node in (both["node"], again["node"]):
        slurm.node("start", node)
        slurm.node("resume", node)
    lab.wait(400)
