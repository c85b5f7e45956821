"""Decide which stages of a request to send: not those done, queued or running in other jobs, or failed before."""

from __future__ import annotations

from dataclasses import dataclass

from mar_bench.cluster.jobs import ClusterJob, build_graph
from mar_bench.cluster.ledger import Row, Submission
from mar_bench.cluster.profile import Profile
from mar_bench.cluster.slurm import JobState, job_states
from mar_bench.config.ids import Run
from mar_bench.pipeline.graph import Job, jobs_for
from mar_bench.pipeline.store import Places
from mar_bench.records.record import Records

NOT_SENT = "not sent"  # not one of Slurm's states
GIVEN_UP = ("CANCELLED", "PREEMPTED")  # not failed: sent again without --retry


class Queue:
    """The state of every job in a ledger when the Queue is made, and the job that is to run each stage."""

    def __init__(self, ledger: list[Submission]):
        jobs = [(s, job) for s in ledger for job in s.jobs.values()]
        sent = {job.slurm_id: (s, job) for s, job in jobs if job.slurm_id}
        found = job_states({slurm_id: s.name for slurm_id, (s, _) in sent.items()})
        self.states = {(s.id, job.key): found[slurm_id] for slurm_id, (s, job) in sent.items()}
        # stage -> the newest job that is to finish it
        whole = [(s, job) for s, job in jobs if job.shard is None]
        self.holders = {ref.id: (s, job) for s, job in whole for ref in job.stages if ref.id not in s.cancelled}
        self.cancelled = {i for s in ledger for i in s.cancelled} - self.holders.keys()

    def state(self, submission: Submission, job: ClusterJob) -> JobState:
        return self.states.get((submission.id, job.key), JobState(NOT_SENT))

    def failure(self, submission: Submission, job: ClusterJob, stage_id: str) -> str | None:
        """Why a stage is not done although its job has ended; None if it was not sent or was cancelled."""
        state = self.state(submission, job)
        if state.live or state.state == NOT_SENT:
            return None
        if state.state in GIVEN_UP:  # by the user, or by Slurm because a shard of its images has failed
            found = (self.failure(submission, shard, stage_id) for shard in shards_of(submission, job))
            return next((why for why in found if why), None)
        if job.shard is not None and state.state == "COMPLETED":
            return None
        own = submission.status(job).get("failed", {}).get(stage_id)
        return own or f"job {job.slurm_id} {state.state} {state.nodes}; its logs: {submission.folder / 'logs'}"


def shards_of(submission: Submission, job: ClusterJob) -> list[ClusterJob]:
    """The shards that ``job`` waits for."""
    needed = [submission.jobs[key] for key in job.needs if key in submission.jobs]
    return [shard for shard in needed if shard.shard is not None]


@dataclass(frozen=True)
class Plan:
    """What a submission would do."""

    graph: list[ClusterJob]
    stages: list[Job]  # all that are not done, including those that other submissions run
    new: list[Job]  # those that this submission runs
    elsewhere: dict[str, str]  # stage -> Slurm's id of another submission's job
    failed: dict[str, str]  # stage or record -> why it is not sent again
    done: int  # records that exist


def make_plan(
    runs: list[Run], places: Places, records: Records, profile: Profile, queue: Queue, retry: bool, last: bool
) -> Plan:
    """Which stages of ``runs`` to send now; ``queue`` holds the submissions whose jobs may already run some of them.

    ``retry``: include stages that failed before. ``last``: the caller is the last job of a submission, not the user,
    so cancelled stages are left out."""
    needed = {stage.id: stage for stage in jobs_for(runs, places)}  # each follows the stages it needs
    elsewhere: dict[str, str] = {}
    failed: dict[str, str] = {}
    for stage_id in needed:
        holder = queue.holders.get(stage_id)
        if holder is None:
            if last and stage_id in queue.cancelled:
                failed[stage_id] = "cancelled"
        elif (state := queue.state(*holder)).live:
            elsewhere[stage_id] = str(holder[1].slurm_id)
        elif not retry and (why := queue.failure(*holder, stage_id)):
            failed[stage_id] = why
        elif last and state.state in GIVEN_UP:
            failed[stage_id] = state.state
    for run in runs:
        record = records.get(run.id)
        if not retry and run.id in needed and run.id not in elsewhere and record and record.status == "failed":
            failed.setdefault(run.id, (record.error or "no reason given").splitlines()[0])
    lost = set(failed)
    for stage in needed.values():
        if lost & set(stage.needs):
            lost.add(stage.id)
    stages = jobs_for([run for run in runs if run.id not in lost], places)
    elsewhere = {stage.id: elsewhere[stage.id] for stage in stages if stage.id in elsewhere}
    new = [stage for stage in stages if stage.id not in elsewhere]
    graph = build_graph(new, profile.pack, profile.sample_shards, elsewhere)
    return Plan(graph, stages, new, elsewhere, failed, sum(run.id not in needed for run in runs))


def rows_of(planned: dict[str, list[Run]], stages: list[Job]) -> tuple[Row, ...]:
    """The records of each experiment that ``stages`` (each after the stages it needs) lead to."""
    chains: dict[str, dict[str, str]] = {}
    for stage in stages:
        before = {i: kind for need in stage.needs for i, kind in chains.get(need, {}).items()}
        chains[stage.id] = {**before, stage.id: stage.kind}

    def row(experiment: str, run: Run) -> Row:
        title = run.row + (f" seed {run.spec.train.seed}" if run.spec.train.seed else "")
        title += f" images {run.spec.sampling.seed}" if run.spec.sampling.seed else ""
        title += f" ({run.task})" if run.task != "generation" else " (sweep point)" if run.sweep else ""
        return Row(experiment, run.row, title, run.task, run.id, chains[run.id])

    return tuple(row(experiment, run) for experiment, runs in planned.items() for run in runs if run.id in chains)
