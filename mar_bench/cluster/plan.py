"""Which stages of a request to send: none that are done, queued or running in other jobs, or failed before."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from mar_bench.cluster.jobs import ClusterJob, build_graph
from mar_bench.cluster.ledger import Row, Submission
from mar_bench.cluster.profile import Profile
from mar_bench.cluster.slurm import JobState, job_states
from mar_bench.config.ids import Run
from mar_bench.pipeline.graph import Job, jobs_for
from mar_bench.pipeline.store import Places
from mar_bench.records.record import Record

INTERRUPTED = "INTERRUPTED"  # a submission without Slurm whose process is gone
GIVEN_UP = ("CANCELLED", "PREEMPTED", INTERRUPTED)  # not failed: sent again without --retry


class Queue:
    """The state of every job in a ledger, as of its creation, and which job is to run each stage."""

    def __init__(self, ledger: list[Submission]):
        self.ledger = ledger
        slurm, here = ([s for s in ledger if (s.kind == "slurm") is wanted] for wanted in (True, False))
        sent = {job.slurm_id: (s, job.key) for s in slurm for job in s.jobs.values() if job.slurm_id}
        found = job_states({slurm_id: s.name for slurm_id, (s, _) in sent.items()})
        self.states = {(s.id, key): _state_here(s, s.notes(key)) for s in here for key in s.jobs}
        self.states |= {(sent[i][0].id, sent[i][1]): state for i, state in found.items()}
        # stage -> the newest job that is to finish it
        self.holders: dict[str, tuple[Submission, ClusterJob]] = {
            stage.id: (s, job)
            for s in ledger
            for job in s.jobs.values()
            if job.shard is None
            for stage in job.stages
            if stage.id not in s.cancelled
        }
        self.cancelled = {i for s in ledger for i in s.cancelled} - self.holders.keys()

    def state(self, submission: Submission, job: ClusterJob) -> JobState | None:
        """None for a job that was never sent."""
        return self.states.get((submission.id, job.key))

    def live(self, submission: Submission, job: ClusterJob) -> bool:
        state = self.state(submission, job)
        return state is not None and state.live

    def failure(self, submission: Submission, job: ClusterJob, stage_id: str) -> str | None:
        """Why a stage is not done although its job has ended; None if it was not sent or was cancelled."""
        state = self.state(submission, job)
        if state is None or state.live:
            return None
        if state.state in GIVEN_UP:  # by the user, or by Slurm because a shard of its images has failed
            found = (self.failure(submission, shard, stage_id) for shard in shards_of(submission, job))
            return next((why for why in found if why), None)
        if job.shard is not None and state.state == "COMPLETED":
            return None
        where = f" on {state.nodes}" if state.nodes else ""
        own = submission.notes_of(job).get("failed", {}).get(stage_id)
        return own or f"job {job.slurm_id} {state.state}{where}; its log: {submission.log(job)}"

    def followed(self) -> set[str]:
        """Names of rows whose submission's last job has not ended and will still write a table."""
        live = [s for s in self.ledger if self.live(s, s.last)]
        return {row.name for s in live for row in s.rows if row.name not in s.cancelled}


def shards_of(submission: Submission, job: ClusterJob) -> list[ClusterJob]:
    """The shards that ``job`` waits for."""
    needed = [submission.jobs[key] for key in job.needs if key in submission.jobs]
    return [shard for shard in needed if shard.shard is not None]


def _state_here(submission: Submission, notes: dict[str, Any]) -> JobState:
    """The state of a job on this machine, by its process."""
    if notes.get("event") == "end":
        return JobState("FAILED" if notes.get("failed") else "COMPLETED")
    if not _alive(submission.process) or notes.get("event") == "stopped":
        return JobState(INTERRUPTED)
    return JobState(("RUNNING" if _alive(notes["pid"]) else "FAILED") if notes else "PENDING")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


@dataclass
class Plan:
    """What a submission would do."""

    graph: list[ClusterJob]
    stages: list[Job]  # all that are not done, also those that other submissions run
    elsewhere: dict[str, str] = field(default_factory=dict)  # stage -> Slurm's id of another submission's job
    failed: dict[str, str] = field(default_factory=dict)  # stage or record -> why it is not sent again
    done: int = 0  # records that exist
    left: int = 0  # records that are not sent because something they need has failed

    @property
    def sends(self) -> bool:
        return any(job.stages for job in self.graph)

    @property
    def new(self) -> list[Job]:
        """The stages that this submission runs."""
        return [stage for stage in self.stages if stage.id not in self.elsewhere]


def make_plan(
    runs: list[Run],
    places: Places,
    records: dict[str, Record],
    profile: Profile,
    queue: Queue,
    retry: bool,
    follows: bool = False,
) -> Plan:
    """Which stages of ``runs`` to send now; ``queue`` holds the submissions whose jobs may already run some of them.

    ``retry``: include stages that failed before. ``follows``: the last job of a submission asks, not the user, so
    leave out cancelled stages."""
    needed = {job.id: None for job in jobs_for(runs, places)}  # in the order of work
    elsewhere, failed = {}, {}
    for stage_id in needed:
        if follows and stage_id in queue.cancelled:
            failed[stage_id] = "cancelled"
        if stage_id not in queue.holders:
            continue
        submission, job = queue.holders[stage_id]
        state = queue.state(submission, job)
        if state is None:
            continue
        if state.live:
            elsewhere[stage_id] = str(job.slurm_id)
        elif not retry and (why := queue.failure(submission, job, stage_id)):
            failed[stage_id] = why
        elif follows and state.state in GIVEN_UP:
            failed[stage_id] = state.state
    for run in runs:
        record = records.get(run.id)
        unsent = run.id in needed and run.id not in elsewhere
        if not retry and unsent and record is not None and record.status == "failed":
            failed.setdefault(run.id, (record.error or "no reason given").splitlines()[0])
    stages = jobs_for([run for run in runs if run.id not in failed], places)
    behind: set[str] = set()
    for stage in stages:  # each is listed after what it needs
        if stage.id not in failed and set(stage.needs) & (failed.keys() | behind):
            behind.add(stage.id)
    wanted: set[str] = set()
    leaves = {run.id for run in runs}
    for stage in reversed(stages):
        if stage.id not in behind and stage.id not in failed and (stage.id in leaves or stage.id in wanted):
            wanted |= {stage.id, *stage.needs}
    left = sum(run.id in needed and run.id not in wanted for run in runs)
    done = sum(run.id not in needed for run in runs)
    plan = Plan([], [stage for stage in stages if stage.id in wanted], elsewhere, failed, done, left)
    others = {stage_id: job for stage_id, job in elsewhere.items() if stage_id in wanted}
    plan.graph = build_graph(plan.new, profile.pack, profile.sample_shards, others)
    return plan


def rows_of(planned: dict[str, list[Run]], stages: list[Job]) -> list[Row]:
    """The records of each experiment that ``stages`` (each listed after what it needs) lead to."""
    chains: dict[str, dict[str, str]] = {}
    for stage in stages:
        before = {i: kind for need in stage.needs for i, kind in chains.get(need, {}).items()}
        chains[stage.id] = {**before, stage.id: stage.kind}

    def row(experiment: str, run: Run) -> Row:
        seeds = run.spec.train.seed, run.spec.sampling.seed
        return Row(experiment, run.row, run.task, *seeds, run.id, chains[run.id], run.sweep)

    return [row(experiment, run) for experiment, runs in planned.items() for run in runs if run.id in chains]
