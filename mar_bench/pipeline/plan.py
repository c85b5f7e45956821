"""A plan as numbers and as text: what running experiments would do and what they share."""

from __future__ import annotations

from collections import Counter
from typing import Any

from mar_bench.config.experiment import Experiment
from mar_bench.config.ids import Run
from mar_bench.config.stages import SHARED, STAGES
from mar_bench.pipeline.cost import gpu_hours
from mar_bench.pipeline.graph import jobs_for
from mar_bench.pipeline.store import Places, is_sound, status
from mar_bench.records.record import Record
from mar_bench.utils.console import console_table


def make_plan(
    experiments: list[Experiment],
    planned: dict[str, list[Run]],
    runs: list[Run],
    waiting: int,
    scale: str,
    places: Places,
    records: dict[str, Record],
) -> dict:
    """The plan as a JSON object.

    ``planned``: the runs of each experiment by its id; ``runs``: all of them, each once; ``waiting``: the number of
    evaluations whose sweep point is not chosen yet. In the result, ``evaluations`` includes waiting ones; ``done``,
    ``missing`` and ``failed`` count entries of ``runs``; ``companions`` are the reconstruction and speed records;
    ``stages`` gives the number of distinct stages needed, of evaluations sharing them, and of those done;
    ``recorded_only`` counts runs that have a record but no output in ``places.runs``."""

    def entry(run: Run) -> dict:
        seeds = {"train_seed": run.spec.train.seed, "sampling_seed": run.spec.sampling.seed}
        return {"task": run.task, "row": run.row, **seeds, "status": status(run, places, records), "ids": run.ids}

    evaluations = [run for run in runs if run.task == "generation"]
    entries = [entry(run) for run in evaluations]
    counts = Counter(e["status"] for e in entries)
    return {
        "experiment": ", ".join(planned),
        "experiments": list(planned),
        "scale": scale,
        "evaluations": sum(not run.sweep for run in evaluations) + waiting,
        "sweep": sum(run.sweep for run in evaluations),
        "not_chosen": waiting,
        "trainings": len({run.ids["train_id"] for run in evaluations}),
        "reuse": _reuse(experiments, planned),
        **{state: counts[state] for state in ("done", "missing", "failed")},
        "recorded_only": sum(
            e["status"] == "done" and not is_sound(places.folder(run.task, run.id))
            for e, run in zip(entries, evaluations)
        ),
        "jobs": len(jobs_for(runs, places)),
        "stages": {kind: _stage(kind, evaluations, places) for kind in SHARED},
        "runs": entries,
        "companions": [entry(run) for run in runs if run.task != "generation"],
    }


def _reuse(experiments: list[Experiment], planned: dict[str, list[Run]]) -> dict[str, Any]:
    """Trainings and GPU hours with all tables sharing, with each table alone, and with each cell alone."""
    ways: dict[str, dict] = {"shared": {}, "each_table_alone": {}, "each_cell_alone": {}}
    for experiment in experiments:
        for run in planned.get(experiment.id, ()):
            if run.task != "generation":
                continue
            train_id, hours = run.ids["train_id"], gpu_hours("train", run.spec)
            ways["shared"][train_id] = ways["each_table_alone"][experiment.id, train_id] = hours
            if not run.sweep or run.row in experiment.sweeps:  # the trainings of a search belong to no cell
                ways["each_cell_alone"][experiment.id, run.row, train_id] = hours
    return {name: {"trainings": len(hours), "gpu_hours": round(sum(hours.values()), 1)} for name, hours in ways.items()}


def _stage(kind: str, runs: list[Run], places: Places) -> dict[str, int]:
    ids = {run.ids[STAGES[kind].id_key] for run in runs}
    done = sum(is_sound(places.folder(kind, i)) for i in ids)
    return {"needed": len(ids), "without_reuse": len(runs), "done_here": done}


def plan_text(plan: dict) -> str:
    shown = ("train_id", "eval_id")
    cells = [
        [*(str(e[k]) for k in ("row", "train_seed", "sampling_seed")), *(e["ids"][k] for k in shown), e["status"]]
        for e in plan["runs"]
    ]
    lines = [
        console_table(["row", "training seed", "sampling seed", *shown, "status"], cells),
        f"{plan['evaluations']} evaluations over {plan['trainings']} trainings; stages: "
        + ", ".join(f"{s['needed']} {kind}" for kind, s in plan["stages"].items()),
    ]
    if plan["sweep"]:
        waiting = f"; {plan['not_chosen']} evaluations wait for theirs" if plan["not_chosen"] else ""
        lines += [f"also {plan['sweep']} sweep points, from which cells are chosen{waiting}"]
    if len(plan["experiments"]) > 1:
        shared, table, cell = (plan["reuse"][k] for k in ("shared", "each_table_alone", "each_cell_alone"))
        lines += [
            f"trainings: {shared['trainings']}; {table['trainings']} without sharing between tables, "
            f"{cell['trainings']} without any sharing"
        ]
        if plan["scale"] == "paper":
            lines += [
                f"GPU hours of training (H100, estimated): {shared['gpu_hours']:,.0f}; "
                f"{table['gpu_hours']:,.0f} and {cell['gpu_hours']:,.0f} without this sharing"
            ]
    beside = Counter((e["task"], e["status"]) for e in plan["companions"])
    elsewhere = f" ({plan['recorded_only']} done by their records alone: run --reuse-records skips them)"
    return "\n".join(
        [
            *lines,
            f"{plan['done']} done, {plan['missing']} missing, {plan['failed']} failed; also "
            + ", ".join(f"{n} {task} {state}" for (task, state), n in beside.items()),
            f"jobs to do: {plan['jobs']}" + (elsewhere if plan["recorded_only"] else ""),
        ]
    )
