"""Sending the jobs of a submission to Slurm, and cancelling them."""

from __future__ import annotations

import contextlib
import functools
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from mar_bench.cluster.jobs import TABLE, ClusterJob, arrays
from mar_bench.cluster.ledger import Row, Submission, find_rows, read_ledger
from mar_bench.cluster.plan import Queue
from mar_bench.cluster.profile import SlurmProfile
from mar_bench.cluster.slurm import cancel_jobs, cancel_named, dependency, sbatch_parameters, script, send
from mar_bench.cluster.work import Work
from mar_bench.pipeline.store import Places
from mar_bench.utils import locks
from mar_bench.utils.errors import UserError

Last = Callable[[Submission], None]  # what the last job does after its stages
MAX_ARRAY = 1000  # elements; Slurm's own default limit is 1001


@contextlib.contextmanager
def one_at_a_time(places: Places) -> Iterator[None]:
    """Hold the lock on a run root's submissions: two concurrent ones would send the same work twice."""
    said = functools.cache(lambda: print("waiting for another submission in this run root", file=sys.stderr))
    with locks.held(places.runs / "locks" / "submit.lock", waiting=said):
        yield


def work_of(submission: Submission, job: ClusterJob, last: Last, signal_seconds: int = 0) -> Work:
    return Work(str(submission.folder), job.key, signal_seconds, last if job.key == submission.last.key else None)


def send_all(submission: Submission, profile: SlurmProfile, last: Last) -> int:
    """Send every job and return the number of sbatch calls.

    If Slurm refuses one or the user interrupts, undo the whole submission and re-raise."""
    ids: dict[str, str] = {}
    code, logs = Path(submission.code), submission.folder / "logs"
    groups = arrays(list(submission.jobs.values()), MAX_ARRAY)
    try:
        for group in groups:
            after = _dependency(group[0], ids, groups)
            command = submission.request.command
            parameters = sbatch_parameters(profile, group[0].kind, submission.name, after, code, command)
            work = [work_of(submission, job, last, profile.signal_seconds) for job in group]
            pairs = [(job.key, i) for job, i in zip(group, send(profile, logs, code, parameters, work))]
            submission.sent(pairs)
            ids |= pairs
    except BaseException as error:
        withdraw(submission, none_sent=isinstance(error, UserError) and not ids)
        raise
    return len(groups)


def batch_scripts(
    jobs: list[ClusterJob], profile: SlurmProfile, runs: Path, command: str, name: str
) -> Iterator[tuple[list[ClusterJob], str]]:
    """For a dry run: the jobs of each sbatch call and its script, with ``<key>`` in place of Slurm's ids."""
    code, logs = runs.absolute() / "code" / "<snapshot>", runs.absolute() / "submissions" / "<new>" / "logs"
    groups = arrays(jobs, MAX_ARRAY)
    ids: dict[str, str] = {}
    for group in groups:
        ids |= {job.key: f"<{group[0].key}>" + (f"_{i}" if len(group) > 1 else "") for i, job in enumerate(group)}
    for group in groups:
        parameters = sbatch_parameters(profile, group[0].kind, name, _dependency(group[0], ids, groups), code, command)
        yield group, script(profile, logs, code, parameters, len(group))


def _dependency(job: ClusterJob, ids: dict[str, str], groups: list[list[ClusterJob]]) -> str:
    return dependency(slurm_ids(job.needs, ids, groups), slurm_ids(job.follows, ids, groups))


def slurm_ids(keys: Iterable[str], ids: dict[str, str], groups: list[list[ClusterJob]]) -> list[str]:
    """Slurm's ids of jobs; a whole array becomes its one id."""
    found = dict.fromkeys(keys)
    for group in groups:
        members = {job.key for job in group}
        if len(group) > 1 and members <= found.keys():
            found = {key: None for key in found if key not in members}
            found[f"@{ids[group[0].key].partition('_')[0]}"] = None
    return [key[1:] if key.startswith("@") else ids[key] for key in found]


def withdraw(submission: Submission, none_sent: bool = False) -> None:
    """Undo an incomplete submission: cancel its jobs, including those whose ids were never noted, and delete it."""
    if not none_sent:
        try:
            cancel_named(submission.name)
        except UserError as error:  # keep the folder, so that its jobs can be found
            print(f"submission {submission.id} is not undone yet ({error}); submit tries again", file=sys.stderr)
            return
    (submission.folder / "submission.json").unlink(missing_ok=True)  # first: without it the folder does not count
    shutil.rmtree(submission.folder, ignore_errors=True)


def without_incomplete(ledger: list[Submission]) -> list[Submission]:
    """Undo submissions that a kill has cut short, and return the others. Call it under ``one_at_a_time``."""
    for submission in ledger:
        if not submission.complete:
            print(f"undoing submission {submission.id}, which was cut short", file=sys.stderr)
            withdraw(submission)
    return [submission for submission in ledger if submission.complete]


def cancel_rows(places: Places, name: str) -> tuple[int, list[str], list[str]]:
    """Cancel the rows that ``name`` means: how many, and what ``cancel`` returns. Raises UserError if there is none."""
    with one_at_a_time(places):
        ledger = without_incomplete(read_ledger(places.runs))
        slurm = [s for s in ledger if s.kind == "slurm"]
        if ledger and not slurm:
            raise UserError(f"no Slurm jobs in {places.runs}: stop what submit runs on this machine with Ctrl-C")
        rows = find_rows(slurm, name)
        names = {row.name for row in rows} | {name for s in slurm for name in s.cancelled}
        # Rows share the reconstruction of their tokenizer, which is listed under the first of them.
        others = {row.experiment for s in slurm for row in s.rows if row.task == "generation" and row.name not in names}
        rows = [row for row in rows if row.task != "reconstruction" or row.experiment not in others] or rows
        return len(rows), *cancel(slurm, rows)


def cancel(ledger: list[Submission], unwanted: list[Row]) -> tuple[list[str], list[str]]:
    """Cancel the jobs that no other record needs; a record that two experiments share counts for each.

    Returns the ids of the cancelled jobs, and the titles of stages that stay because others need them."""
    queue = Queue(ledger)
    live = [(s, job) for s in ledger for job in s.jobs.values() if queue.live(s, job)]
    gone = {row.name for row in unwanted}
    for submission in ledger:
        submission.cancel(gone & {row.name for row in submission.rows})
    to_come = {stage.id for _, job in live for stage in job.stages}
    still_wanted = {
        s.id: [row for row in s.rows if row.id in to_come - s.cancelled and row.name not in s.cancelled] for s in ledger
    }
    kept_stages = {stage for rows in still_wanted.values() for row in rows for stage in row.stages}
    gone_stages = {stage for row in unwanted for stage in row.stages}
    ids, kept = [], []
    for submission, job in live:
        own = {stage.id for stage in job.stages}
        kept += [stage.title for stage in job.stages if stage.id in gone_stages & kept_stages]
        going = (own & gone_stages) - kept_stages
        submission.cancel(going)
        if job == submission.last:
            ends = not still_wanted[submission.id] and any(row.name in gone for row in submission.rows)
            if ends:
                submission.cancel([TABLE])  # if it is running already, it must not send more
        else:
            ends = bool(going) and not own & kept_stages
        if ends:
            ids.append(str(job.slurm_id))
    if ids:
        cancel_jobs(ids)
    return ids, list(dict.fromkeys(kept))
