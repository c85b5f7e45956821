"""What of a plan is to be sent: what is done, under way in other jobs or has failed is left out."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from mar_bench.cluster.jobs import ClusterJob, build_graph
from mar_bench.cluster.ledger import Entry, Row, Submission
from mar_bench.cluster.profile import Profile, SlurmProfile
from mar_bench.cluster.slurm import JobState, job_states
from mar_bench.config.ids import Run
from mar_bench.pipeline.graph import Job, jobs_for
from mar_bench.pipeline.store import Places
from mar_bench.records.record import Record

INTERRUPTED = "INTERRUPTED"  # of a submission without Slurm: it was stopped
GIVEN_UP = ("CANCELLED", "PREEMPTED", INTERRUPTED)


@dataclass
class Plan:
    """What a submission would do."""

    graph: list[ClusterJob]
    stages: list[Job]  # those that are not done, wherever they are to be done
    elsewhere: dict[str, str] = field(default_factory=dict)  # stage -> Slurm's id of another submission's job
    failed: dict[str, str] = field(default_factory=dict)  # stage or record -> why it is not tried again
    behind: set[str] = field(default_factory=set)  # stages that need what has failed
    done: int = 0  # records that are there
    left: int = 0  # records that are not sent since something on their way has failed

    @property
    def sends(self) -> bool:
        return any(job.stages for job in self.graph)


def holders(ledger: list[Submission]) -> dict[str, tuple[Submission, Entry]]:
    """Stage id -> the newest job that was to do it."""
    found: dict[str, tuple[Submission, Entry]] = {}
    for submission in ledger:
        for entry in submission.jobs.values():
            for stage in entry.stages if entry.shard is None else ():
                if stage.id not in submission.cancelled:
                    found[stage.id] = (submission, entry)
    return found


def states_of(ledger: list[Submission]) -> dict[tuple[str, str], JobState]:
    """(submission id, key) -> what Slurm says of the job; without Slurm, whether its process is there."""
    here = {
        (s.id, key): _state_here(s, s.said(entry)) for s in ledger if s.kind != "slurm" for key, entry in s.jobs.items()
    }
    sent = {
        entry.slurm_id: (submission, entry)
        for submission in ledger
        if submission.kind == "slurm"
        for entry in submission.jobs.values()
        if entry.slurm_id
    }
    states = job_states({slurm_id: entry.name for slurm_id, (_, entry) in sent.items()})
    return here | {(sent[i][0].id, sent[i][1].key): state for i, state in states.items()}


def _state_here(submission: Submission, said: dict) -> JobState:
    if said.get("event") == "end":
        return JobState("FAILED" if said.get("failed") else "COMPLETED")
    if not _alive(submission.options.get("process")) or said.get("event") == "stopped":
        return JobState(INTERRUPTED)
    return JobState(("RUNNING" if _alive(said["pid"]) else "FAILED") if said else "PENDING")


def _alive(pid: int | None) -> bool:
    try:
        os.kill(pid or 0, 0)
    except OSError:
        return False
    return bool(pid)


def make_plan(
    runs: list[Run],
    places: Places,
    records: dict[str, Record],
    profile: Profile,
    ledger: list[Submission],
    retry: bool,
    follows: bool = False,
) -> Plan:
    """What of ``runs`` is to be sent now. ``retry``: also what has failed before; ``follows``: not what was cancelled,
    since it is the end of a submission that asks, and not the user."""
    held = holders([s for s in ledger if s.kind == "slurm"]) if isinstance(profile, SlurmProfile) else {}
    needed = {job.id: None for job in jobs_for(runs, places)}  # in the order of work
    about = [s for s in ledger if any(held.get(i, (None,))[0] is s for i in needed)]
    states = states_of(about)
    elsewhere, failed = {}, {}
    cancelled = {stage for s in ledger for stage in s.cancelled} - held.keys()
    for stage_id in needed:
        if follows and stage_id in cancelled:
            failed[stage_id] = "cancelled"
        if stage_id not in held:
            continue
        submission, entry = held[stage_id]
        state = states.get((submission.id, entry.key))
        if state is not None and state.live:
            elsewhere[stage_id] = entry.slurm_id
        elif not retry and (why := failure_of(submission, entry, stage_id, states)):
            failed[stage_id] = why
        elif follows and state is not None and state.state in GIVEN_UP:
            failed[stage_id] = state.state
    done = len([run for run in runs if run.id not in needed])
    for run in runs:
        if not retry and run.id in needed and run.id not in elsewhere:
            record = records.get(run.id)
            if record is not None and record.status == "failed":
                failed.setdefault(run.id, (record.error or "no reason given").splitlines()[0])
    stages = jobs_for([run for run in runs if run.id not in failed], places)
    behind: set[str] = set()
    for stage in stages:  # they stand behind what they need
        if stage.id not in failed and set(stage.needs) & (failed.keys() | behind):
            behind.add(stage.id)
    wanted: set[str] = set()
    leaves = {run.id for run in runs}
    for stage in reversed(stages):
        if stage.id not in behind and stage.id not in failed and (stage.id in leaves or stage.id in wanted):
            wanted |= {stage.id, *stage.needs}
    stages = [stage for stage in stages if stage.id in wanted]
    mine = [stage for stage in stages if stage.id not in elsewhere]
    others = {stage_id: job for stage_id, job in elsewhere.items() if stage_id in wanted}
    graph = build_graph(mine, profile.pack, profile.sample_shards, others)
    left = sum(run.id in needed and run.id not in wanted for run in runs)
    return Plan(graph, stages, elsewhere, failed, behind, done, left)


def followed(ledger: list[Submission]) -> set[str]:
    """Names of rows that a table to come will show: the last job of their submission is under way."""
    states = states_of([s for s in ledger if s.kind == "slurm"])
    live = [s for s in ledger if (state := states.get((s.id, s.last))) is not None and state.live]
    return {row.name for s in live for row in s.rows if row.name not in s.cancelled}


def failure_of(
    submission: Submission, entry: Entry, stage_id: str, states: dict[tuple[str, str], JobState]
) -> str | None:
    """Why a stage is not done though its job has ended; None where nobody has failed: it was not sent, or cancelled."""
    state = states.get((submission.id, entry.key))
    if state is None or state.live:
        return None
    if state.state in GIVEN_UP:  # by hand, or since a part of its images has failed
        parts = [one for key in entry.needs if (one := submission.jobs.get(key)) is not None and one.shard is not None]
        found = (failure_of(submission, one, stage_id, states) for one in parts)
        return next((why for why in found if why), None)
    if entry.shard is not None and state.state == "COMPLETED":
        return None
    own = submission.said(entry).get("failed", {}).get(stage_id)
    where = f" on {state.nodes}" if state.nodes else ""
    return own or f"job {entry.slurm_id} {state.state}{where}; its log: {submission.log(entry)}"


def rows_of(planned: dict[str, list[Run]], stages: list[Job]) -> list[Row]:
    """Lines of a status: the records of each experiment that ``stages`` lead to, which stand behind what they need."""
    chains: dict[str, list[str]] = {}
    for stage in stages:
        before = [i for need in stage.needs for i in chains.get(need, ())]
        chains[stage.id] = list(dict.fromkeys([*before, stage.id]))
    return [
        Row(experiment, run.row, run.task, run.spec.train.seed, run.spec.sampling.seed, run.id, tuple(chains[run.id]),
            run.sweep)
        for experiment, runs in planned.items()
        for run in runs
        if run.id in chains
    ]  # fmt: skip
