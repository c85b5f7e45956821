"""A plan as numbers and as text: what a run of an experiment would do and what its parts share."""

from __future__ import annotations

from collections import Counter

from mar_bench.console import console_table
from mar_bench.ids import Run
from mar_bench.jobs import Places, is_sound, jobs_for, status
from mar_bench.records import Record

SHARED_STAGES = ("tokenizer", "latents", "extractor", "train", "sample")


def make_plan(name: str, scale: str, runs: list[Run], places: Places, records: dict[str, Record]) -> dict:
    """A JSON object. ``done``, ``missing`` and ``failed`` count evaluations, the entries of ``runs``;
    ``companions`` are the reconstruction and speed records that the table shows beside them, and ``stages``
    says for each kind of stage how many different ones are needed, for how many evaluations, and how many are done;
    ``recorded_only`` are done by a record whose run is not in ``places.runs``.
    """

    def entry(run: Run) -> dict:
        seeds = {"train_seed": run.spec.train.seed, "sampling_seed": run.spec.sampling.seed}
        return {"task": run.task, "row": run.row, **seeds, "status": status(run, places, records), "ids": run.ids}

    evaluations = [run for run in runs if run.task == "generation"]
    entries = [entry(run) for run in evaluations]
    counts = Counter(e["status"] for e in entries)
    return {
        "experiment": name,
        "scale": scale,
        "evaluations": len(evaluations),
        "sweep": 0,
        "trainings": len({run.ids["train_id"] for run in evaluations}),
        **{state: counts[state] for state in ("done", "missing", "failed")},
        "recorded_only": sum(
            e["status"] == "done" and not is_sound(places.folder(run.task, run.id))
            for e, run in zip(entries, evaluations)
        ),
        "jobs": len(jobs_for(runs, places)),
        "stages": {kind: _stage(kind, evaluations, places) for kind in SHARED_STAGES},
        "runs": entries,
        "companions": [entry(run) for run in runs if run.task != "generation"],
    }


def _stage(kind: str, runs: list[Run], places: Places) -> dict[str, int]:
    ids = {run.ids[f"{kind}_id"] for run in runs}
    done = sum(is_sound(places.folder(kind, i)) for i in ids)
    return {"needed": len(ids), "without_reuse": len(runs), "done_here": done}


def plan_text(plan: dict) -> str:
    shown = ("train_id", "eval_id")
    lines = [
        [*(str(e[k]) for k in ("row", "train_seed", "sampling_seed")), *(e["ids"][k] for k in shown), e["status"]]
        for e in plan["runs"]
    ]
    beside = Counter((e["task"], e["status"]) for e in plan["companions"])
    elsewhere = f" ({plan['recorded_only']} done by their records alone: run --reuse-records skips them)"
    stages = ", ".join(f"{s['needed']} {kind}" for kind, s in plan["stages"].items())
    return "\n".join(
        [
            console_table(["row", "training seed", "sampling seed", *shown, "status"], lines),
            f"{plan['evaluations']} evaluations over {plan['trainings']} trainings "
            f"(sharing saves {plan['evaluations'] - plan['trainings']}); stages: {stages}",
            f"{plan['done']} done, {plan['missing']} missing, {plan['failed']} failed; beside them "
            + ", ".join(f"{n} {task} {state}" for (task, state), n in beside.items()),
            f"jobs to do: {plan['jobs']}" + (elsewhere if plan["recorded_only"] else ""),
        ]
    )
