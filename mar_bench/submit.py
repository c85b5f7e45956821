"""From a plan to jobs of a cluster: what is new is sent, what others do is waited for, what has failed is left."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mar_bench import locks
from mar_bench.cluster_profile import Profile, SlurmProfile
from mar_bench.cluster_work import Work
from mar_bench.errors import UserError
from mar_bench.graph import ClusterJob, arrays, build_graph
from mar_bench.ids import Run
from mar_bench.jobs import Job, Places, is_sound, jobs_for, record_failure
from mar_bench.launch import STOP_SECONDS, Interrupts, Outcome, ignoring_interrupts
from mar_bench.ledger import Entry, Row, Submission, new_submission
from mar_bench.provenance import COMMAND_VARIABLE
from mar_bench.records import Record, read_record
from mar_bench.slurm import JobState, cancel_jobs, cancel_named, dependency, job_states, sbatch_parameters, script, send
from mar_bench.snapshot import START, take_snapshot

Last = Callable[[Submission], None]  # what is done when all jobs have ended
GIVEN_UP = ("CANCELLED", "PREEMPTED")
NO_LIMIT = 60 * 24 * 365  # minutes of a job on this machine
MOST_ELEMENTS = 1000  # of an array; Slurm's own default limit is 1001


@dataclass
class Plan:
    """What a submission would do."""

    graph: list[ClusterJob]
    stages: list[Job]  # those that are not done, wherever they are to be done
    elsewhere: dict[str, str] = field(default_factory=dict)  # stage -> Slurm's id of another submission's job
    failed: dict[str, str] = field(default_factory=dict)  # stage or record -> why it is not tried again
    behind: set[str] = field(default_factory=set)  # stages that need what has failed
    done: int = 0  # records that are there

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
    """(submission id, key) -> what Slurm says of the job."""
    sent = {
        entry.slurm_id: (submission, entry)
        for submission in ledger
        if submission.kind == "slurm"
        for entry in submission.jobs.values()
        if entry.slurm_id
    }
    states = job_states({slurm_id: entry.name for slurm_id, (_, entry) in sent.items()})
    return {(sent[i][0].id, sent[i][1].key): state for i, state in states.items()}


def make_plan(
    runs: list[Run],
    places: Places,
    records: dict[str, Record],
    profile: Profile,
    ledger: list[Submission],
    retry: bool,
) -> Plan:
    """What of ``runs`` is to be sent now. ``retry``: also what has failed before."""
    held = holders([s for s in ledger if s.kind == "slurm"]) if isinstance(profile, SlurmProfile) else {}
    needed = {job.id for job in jobs_for(runs, places)}
    about = [s for s in ledger if any(held.get(i, (None,))[0] is s for i in needed)]
    states = states_of(about)
    elsewhere, failed = {}, {}
    for stage_id in needed & held.keys():
        submission, entry = held[stage_id]
        state = states.get((submission.id, entry.key))
        if state is not None and state.live:
            elsewhere[stage_id] = entry.slurm_id
        elif not retry and (why := failure_of(submission, entry, stage_id, states)):
            failed[stage_id] = why
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
    return Plan(graph, stages, elsewhere, failed, behind, done)


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
    said = submission.progress(entry.key)
    own = said.get("failed", {}).get(stage_id) if said.get("job") == entry.slurm_id else None
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


@contextlib.contextmanager
def one_at_a_time(places: Places) -> Iterator[None]:
    """Two submissions at once would send the same twice."""
    said = False

    def waiting() -> None:
        nonlocal said
        if not said:
            print("another submission is under way in these runs: waiting", file=sys.stderr)
            said = True

    with locks.held(places.runs / "locks" / "submit.lock", waiting=waiting):
        yield


def prepare(
    plan: Plan,
    planned: dict[str, list[Run]],
    places: Places,
    profile_text: str,
    label: str,
    **about: Any,
) -> Submission:
    """Write down a submission before anything of it is sent."""
    absolute = Places(places.runs.absolute(), places.records.absolute())
    code = take_snapshot(absolute.runs)
    return new_submission(
        absolute,
        plan.graph,
        plan.stages,
        rows_of(planned, plan.stages),
        profile_text,
        label,
        code=str(code),
        **about,
    )


def send_all(
    submission: Submission, graph: list[ClusterJob], profile: SlurmProfile, last: Last, say: Callable[[str], None]
) -> None:
    """Send every job, of which the final one also does ``last``.

    Raises UserError where Slurm refuses one, with what it says: then those before it are cancelled and nothing is
    left."""
    ids: dict[str, str] = {}
    groups = arrays(graph, MOST_ELEMENTS)
    whole = {group[0].key: group for group in groups if len(group) > 1}
    try:
        for n, group in enumerate(groups):
            job = group[0]
            words = dependency(_ids(job.needs, ids, whole), _ids(job.follows, ids, whole))
            name = submission.jobs[job.key].name
            parameters = sbatch_parameters(profile, job.kind, name, words, Path(submission.code), submission.command)
            work = [_work(submission, one.key, last, profile.signal_seconds) for one in group]
            sent = send(profile, submission.folder / "logs", Path(submission.code), parameters, work)
            pairs = [(one.key, slurm_id) for one, slurm_id in zip(group, sent)]
            submission.sent(pairs)
            ids |= dict(pairs)
            if n % 20 == 19:
                say(f"sent {n + 1} of {len(groups)}")
    except BaseException:
        withdraw(submission)
        raise


def _work(submission: Submission, key: str, last: Last, signal_seconds: int = 0) -> Work:
    return Work(str(submission.folder), key, signal_seconds, last if key == submission.last else None)


def _ids(keys: tuple[str, ...], ids: dict[str, str], whole: dict[str, list[ClusterJob]]) -> list[str]:
    """Slurm's ids; an array that is meant whole by its one id."""
    found = list(keys)
    for group in whole.values():
        if all(job.key in keys for job in group):
            found = [k for k in found if k not in {job.key for job in group}]
            found.append(f"@{ids[group[0].key].partition('_')[0]}")
    return [key[1:] if key.startswith("@") else ids[key] for key in found]


def withdraw(submission: Submission) -> None:
    """Take back a submission that was not sent to its end, with the jobs that have been sent."""
    with contextlib.suppress(UserError):
        cancel_named(submission.jobs[submission.last].name)
    (submission.folder / "submission.json").unlink(missing_ok=True)  # what makes it one, first
    shutil.rmtree(submission.folder, ignore_errors=True)


def whole(ledger: list[Submission]) -> list[Submission]:
    """The submissions that were sent to their end; what a killed command has left of others is taken back.

    To be called by one process at a time."""
    cut = [s for s in ledger if s.kind == "slurm" and any(entry.slurm_id is None for entry in s.jobs.values())]
    for submission in cut:
        print(f"taking back submission {submission.id}, which was cut short", file=sys.stderr)
        withdraw(submission)
    return [submission for submission in ledger if submission not in cut]


def scripts(
    submission_folder: Path, code: Path, graph: list[ClusterJob], profile: SlurmProfile, command: str, label: str
):
    """For a dry run: (jobs of an array, its batch script) in the order of sending; ids that Slurm would give are named
    after the jobs' keys."""
    groups = arrays(graph, MOST_ELEMENTS)
    whole = {group[0].key: group for group in groups if len(group) > 1}
    ids = {}
    for group in groups:
        for i, job in enumerate(group):
            ids[job.key] = f"<{group[0].key}>_{i}" if len(group) > 1 else f"<{job.key}>"
    for group in groups:
        job = group[0]
        words = dependency(_ids(job.needs, ids, whole), _ids(job.follows, ids, whole))
        parameters = sbatch_parameters(profile, job.kind, label, words, code, command)
        yield group, words, script(profile, submission_folder / "logs", code, parameters, len(group))


# --- the end of a submission ----------------------------------------------------------------------------


def settle(submission: Submission) -> list[str]:
    """Write a failed record for every cell that no job of the submission can do any more; the cells' titles.

    A job that was killed could not do so itself."""
    states = states_of([submission]) if submission.kind == "slurm" else {}
    planned = submission.planned()
    lost: dict[str, str] = {}
    held = {s.id: entry for entry in submission.jobs.values() if entry.shard is None for s in entry.stages}
    titles = []
    for stage in planned.values():  # they stand behind what they need
        entry = held.get(stage.id)
        if stage.id in submission.cancelled or is_sound(submission.places.folder(stage.kind, stage.id)):
            continue
        if entry is not None and entry.key == submission.last:
            continue  # the job that is at this now
        why = next((lost[need] for need in stage.needs if need in lost), None)
        if why is None and entry is None:
            why = f"{stage.title} was left to another submission, whose job has not done it"
        why = why or failure_of(submission, entry, stage.id, states)
        if why is None:
            continue
        lost[stage.id] = why
        if entry is not None and stage.id == stage.run.id:
            path = submission.places.records / f"{stage.id}.json"
            known = read_record(path) if path.is_file() else None
            if known is None or (
                known.status == "failed" and known.provenance.get("finished", "") < submission.created
            ):
                record_failure(stage.run, submission.places, why, 0.0)
                titles.append(stage.title)
    return titles


# --- taking back ----------------------------------------------------------------------------------------


def cancel(ledger: list[Submission], unwanted: set[str]) -> tuple[list[str], list[str]]:
    """End the jobs that no record needs but those of ``unwanted``, by their ids.

    Ids of jobs that were cancelled, and titles of stages that stay since other records wait for them."""
    states = states_of(ledger)
    live = [
        (submission, entry)
        for submission in ledger
        for entry in submission.jobs.values()
        if (state := states.get((submission.id, entry.key))) is not None and state.live
    ]
    to_come = {stage.id for submission, entry in live for stage in entry.stages if stage.id not in submission.cancelled}
    rows = [row for submission in ledger for row in submission.rows]
    kept_stages = {s for row in rows if row.id in to_come and row.id not in unwanted for s in row.stages}
    gone_stages = {s for row in rows if row.id in unwanted for s in row.stages}
    ids, kept = [], []
    for submission, entry in live:
        own = {stage.id for stage in entry.stages}
        going = (own & gone_stages) - kept_stages
        kept += [stage.title for stage in entry.stages if stage.id in own & gone_stages & kept_stages]
        if going:
            submission.cancel(going)
            if not own & kept_stages:
                ids.append(entry.slurm_id)
    for submission in ledger:  # a table that nothing is left for
        last = submission.jobs[submission.last]
        state = states.get((submission.id, last.key))
        rest = [e for e in submission.jobs.values() if e is not last and e.slurm_id not in ids]
        busy = any((s := states.get((submission.id, e.key))) is not None and s.live for e in rest)
        asked = any(row.id in unwanted for row in submission.rows)
        if asked and not busy and state is not None and state.live and last.slurm_id not in ids and not last.stages:
            ids.append(last.slurm_id)
    if ids:
        cancel_jobs(ids)
    return ids, list(dict.fromkeys(kept))


# --- without Slurm --------------------------------------------------------------------------------------


def run_here(
    submission: Submission,
    graph: list[ClusterJob],
    profile: Profile,
    parallel: int,
    last: Last,
    say: Callable[[str], None],
) -> Outcome:
    """The same graph by submitit's local or debug executor; ``failed`` maps keys of jobs to errors.

    A job behind a failed one is not run. Ctrl-C and SIGTERM stop it, and trainings save first."""
    outcome = Outcome()
    os.environ[COMMAND_VARIABLE] = submission.command
    waiting = {job.key: job for job in graph}
    running: dict[str, Any] = {}
    ended: set[str] = set()
    executor = _local_executor(submission, profile)
    # Ctrl-C goes to all of a terminal; a debugger wants it itself
    with Interrupts() if profile.kind == "processes" else contextlib.nullcontext(Interrupts()) as interrupts:
        while (waiting or running) and not interrupts.count:
            for job in list(waiting.values()):
                if set(job.needs) & outcome.failed.keys():
                    outcome.failed[job.key] = "what it needs has failed"
                    ended.add(waiting.pop(job.key).key)
                elif {*job.needs, *job.follows} <= ended and len(running) < parallel:
                    del waiting[job.key]
                    say(f"start  {job.title}")
                    with ignoring_interrupts() if profile.kind == "processes" else contextlib.nullcontext():
                        running[job.key] = executor.submit(_work(submission, job.key, last))
                    submission.sent([(job.key, running[job.key].job_id)])
            for key, job in list(running.items()):
                if profile.kind == "debug" or job.done():
                    del running[key]
                    ended.add(key)
                    error = job.exception()
                    if error is not None:
                        outcome.failed[key] = str(error).strip().splitlines()[-1]
                    title = next(one.title for one in graph if one.key == key)
                    say(f"{'FAILED' if error is not None else 'done  '} {title}")
            if running:
                time.sleep(0.2)
        if waiting or running:
            outcome.stopped = True
            say("stopping: saving what is under way")
            for job in running.values():
                job._process.terminate()  # which its controller passes on; job.cancel() would kill
            for job in running.values():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    job._process.wait(STOP_SECONDS)
    return outcome


def _local_executor(submission: Submission, profile: Profile):
    from submitit import DebugExecutor, LocalExecutor

    folder = submission.folder / "logs"
    if profile.kind == "debug":
        return DebugExecutor(folder)
    start = shlex.join([sys.executable, "-u", str(Path(submission.code) / START)])
    executor = LocalExecutor(folder, python=start)
    gpus = gpus_here()
    executor.update_parameters(timeout_min=NO_LIMIT, gpus_per_node=len(gpus), visible_gpus=gpus)
    return executor


def gpus_here() -> list[int]:
    """The numbers of this machine's NVIDIA GPUs."""
    return sorted(int(path.name.removeprefix("nvidia")) for path in Path("/dev").glob("nvidia[0-9]*"))
