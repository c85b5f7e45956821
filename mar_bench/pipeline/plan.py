"""A plan as numbers and as text: the work of running experiments, and the work that they share."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from mar_bench.config.ids import Run
from mar_bench.config.stages import SHARED, STAGES
from mar_bench.pipeline.cost import gpu_hours, seconds
from mar_bench.pipeline.graph import jobs_for
from mar_bench.pipeline.request import Selection
from mar_bench.pipeline.room import room_of
from mar_bench.pipeline.store import Places, is_sound, status
from mar_bench.records.record import Records
from mar_bench.utils.console import console_table


def make_plan(selection: Selection, scale: str, places: Places, records: Records) -> dict[str, Any]:
    """The plan as a JSON object.

    ``evaluations`` includes those whose sweep point is not chosen yet; ``done``, ``missing`` and ``failed`` count
    entries of ``runs``; ``companions`` are the reconstruction and speed records; ``stages`` gives the number of
    distinct stages needed, of evaluations sharing them, and of those done; ``recorded_only`` counts runs that have a
    record but no output in ``places.runs``; ``cost`` is estimated for all trainings and all sampling, done or not;
    ``images`` are lines about the files of data.root; ``room`` is the memory and disk that the jobs to do need, see
    room.py."""

    def entry(run: Run) -> dict:
        seeds = {"train_seed": run.spec.train.seed, "sampling_seed": run.spec.sampling.seed}
        return {"task": run.task, "row": run.row, **seeds, "status": status(run, places, records), "ids": run.ids}

    def stage(kind: str) -> dict[str, int]:
        ids = {run.ids[STAGES[kind].id_key] for run in evaluations}
        done = sum(is_sound(places.folder(kind, i)) for i in ids)
        return {"needed": len(ids), "without_reuse": len(evaluations), "done_here": done}

    runs, waiting = selection.runs, sum(selection.waiting.values())
    evaluations = [run for run in runs if run.task == "generation"]
    entries = [entry(run) for run in evaluations]
    counts = Counter(e["status"] for e in entries)
    jobs = jobs_for(runs, places)
    here = sum(is_sound(places.folder(run.task, run.id)) for run in evaluations)
    return {
        "experiments": list(selection.planned),
        "scale": scale,
        "evaluations": sum(not run.sweep for run in evaluations) + waiting,
        "sweep": sum(run.sweep for run in evaluations),
        "not_chosen": waiting,
        "trainings": len({run.ids["train_id"] for run in evaluations}),
        "reuse": _reuse(selection),
        "cost": _cost(evaluations),
        **{state: counts[state] for state in ("done", "missing", "failed")},
        "recorded_only": counts["done"] - here,
        "jobs": len(jobs),
        "room": room_of((job.kind, job.title, job.run.spec) for job in jobs),
        "images": images_of(runs),
        "stages": {kind: stage(kind) for kind in SHARED},
        "runs": entries,
        "companions": [entry(run) for run in runs if run.task != "generation"],
    }


def images_of(runs: list[Run]) -> list[str]:
    """For each part of each data.root that is here: how many files are images, and the names of the others.

    Folders are listed, files with a known suffix are not opened; files in MNIST's format are read. Raises UserError
    for those that are damaged, and for images that would be left out."""
    lines = []
    if sets := dict.fromkeys(data for run in runs if (data := run.spec.data).kind == "idx"):
        from mar_bench.data.idx import counts, root_of  # imports numpy

        lines = [counts(data) if root_of(data).is_dir() else f"{root_of(data)}: not here" for data in sets]
    found = {data.root: data for run in runs if (data := run.spec.data).kind == "imagefolder" and data.root}
    here = [data for root, data in found.items() if Path(root).is_dir()]
    lines += [f"{root}: not here" for root, data in found.items() if data not in here]
    if not here:
        return lines
    from mar_bench.data.datasets import folder_images  # imports torch

    return lines + [images.counts for data in here for images in folder_images(data, ("train", "val"))]


def _reuse(selection: Selection) -> dict[str, Any]:
    """Trainings and GPU hours with all tables sharing, with each table alone, and with each cell alone."""
    shared, table, cell = {}, {}, {}
    for experiment in selection.experiments:
        for run in selection.planned.get(experiment.id, ()):
            if run.task == "generation":
                train_id, hours = run.ids["train_id"], gpu_hours("train", run.spec)
                shared[train_id] = table[experiment.id, train_id] = hours
                cell[experiment.id, run.row, train_id] = hours
    ways: dict[str, dict] = {"shared": shared, "each_table_alone": table, "each_cell_alone": cell}
    return {name: {"trainings": len(hours), "gpu_hours": round(sum(hours.values()), 1)} for name, hours in ways.items()}


def _cost(evaluations: list[Run]) -> dict[str, Any]:
    """Hours of training and of sampling: of one core for experiments that ask for the CPU, else of one H100."""
    on_cpu = all(run.spec.compute.device == "cpu" for run in evaluations)
    total = {}
    for stage in ("train", "sample"):
        specs = {run.ids[STAGES[stage].id_key]: run.spec for run in evaluations}.values()
        total[stage] = sum(seconds(stage, spec) / 3600 if on_cpu else gpu_hours(stage, spec) for spec in specs)
    return {"hours_of": "one CPU core" if on_cpu else "one H100", **{k: round(v, 2) for k, v in total.items()}}


def plan_text(plan: dict[str, Any], rows: bool = True) -> str:
    """The plan in words; ``rows``: with a line for every evaluation."""
    heading = ["row", "training seed", "sampling seed", "train_id", "eval_id", "status"]
    cells = [
        [e["row"], str(e["train_seed"]), str(e["sampling_seed"]), *(e["ids"][k] for k in heading[3:5]), e["status"]]
        for e in plan["runs"]
    ]
    stages = ", ".join(f"{s['needed']} {kind}" for kind, s in plan["stages"].items())
    lines = [
        *([console_table(heading, cells)] if rows else []),
        f"{plan['evaluations']} evaluations over {plan['trainings']} trainings; stages: {stages}",
    ]
    if plan["sweep"]:
        waiting = f"; {plan['not_chosen']} evaluations wait for theirs" if plan["not_chosen"] else ""
        lines += [f"also {plan['sweep']} sweep points, from which cells are chosen{waiting}"]
    if len(plan["experiments"]) > 1:
        for key, what in (("trainings", "trainings"), ("gpu_hours", "GPU hours of training (H100, estimated)")):
            shared, table, cell = (f"{way[key]:,.0f}" for way in plan["reuse"].values())
            if key == "trainings" or plan["scale"] == "paper":
                lines += [f"{what}: {shared}; {table} without sharing between tables, {cell} without any sharing"]
    beside = Counter((e["task"], e["status"]) for e in plan["companions"])
    also = "".join(f", {n} {task} {state}" for (task, state), n in beside.items())
    unit, training, sampling = plan["cost"].values()
    lines += [f"estimated hours of {unit}: {training:,.1f} of training, {sampling:,.1f} of sampling"]
    lines += [f"{plan['done']} done, {plan['missing']} missing, {plan['failed']} failed{also}"]
    elsewhere = f" ({plan['recorded_only']} done by their records alone: run --reuse-records skips them)"
    lines += [*plan["images"], f"jobs to do: {plan['jobs']}" + (elsewhere if plan["recorded_only"] else "")]
    if plan["jobs"]:
        memory, largest, disk = plan["room"].values()
        shared = "; ranks and compute.micro_batch divide its batch" * largest.startswith("train ")
        needs = f"{memory / 1e9:,.1f} GB of memory in one process ({largest}{shared})"
        lines += [f"they need about {needs} and {disk / 1e9:,.1f} GB of disk"]
    return "\n".join(lines)
