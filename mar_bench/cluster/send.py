"""Send the jobs of a submission to Slurm, and cancel them."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cache
from typing import Any

from mar_bench.cluster.jobs import TABLE, ClusterJob, arrays
from mar_bench.cluster.ledger import Row, Submission, find_rows, read_ledger
from mar_bench.cluster.pending import Queue
from mar_bench.cluster.profile import Profile
from mar_bench.cluster.slurm import ask, executor_for, send
from mar_bench.cluster.work import Work
from mar_bench.pipeline.store import Places, is_sound
from mar_bench.utils import locks
from mar_bench.utils.errors import UserError

Last = Callable[[Submission], None]  # called by the last job after its stages
MAX_ARRAY = 1000  # elements; Slurm's own default limit is 1001


def submit_lock(places: Places) -> AbstractContextManager[None]:
    """The lock on a run root's submissions: two at a time would send the same work twice."""
    said = cache(lambda: print("waiting for another submission in this run root", file=sys.stderr, flush=True))
    return locks.held(places.runs / "locks/submit.lock", waiting=said)


def _calls(submission: Submission, profile: Profile) -> Iterator[tuple[list[ClusterJob], Any]]:
    """The jobs and the executor of each call of sbatch. Save the jobs' ids before the next call: it may need them."""
    groups = arrays(list(submission.jobs.values()), MAX_ARRAY)
    for group in groups:
        yield group, executor_for(profile, submission, group[0].kind, dependency(group[0], submission.jobs, groups))


def dependency(job: ClusterJob, jobs: dict[str, ClusterJob], groups: list[list[ClusterJob]]) -> str:
    """The value of sbatch's --dependency; a whole array becomes its one id."""
    parts = []
    for word, keys in (("afterok", job.needs), ("afterany", job.follows)):
        left = dict.fromkeys(keys)
        for group in groups:
            members = {other.key for other in group}
            if len(group) > 1 and left.keys() >= members:
                left = {key: None for key in left if key not in members}
                left[f"@{str(jobs[group[0].key].slurm_id).partition('_')[0]}"] = None
        ids = [key[1:] if key.startswith("@") else str(jobs[key].slurm_id) for key in left]
        parts += [":".join([word, *ids])] if ids else []
    return ",".join(parts)


def send_all(submission: Submission, profile: Profile, last: Last) -> None:
    """Send every job. If Slurm refuses one or the user interrupts, undo the whole submission and re-raise."""
    try:
        for group, executor in _calls(submission, profile):
            work = [Work(str(submission.folder), job.key, last, profile.signal_seconds) for job in group]
            submission.sent(zip([job.key for job in group], send(executor, work)))
    except BaseException as error:
        unsent = not any(job.slurm_id for job in submission.jobs.values())
        withdraw(submission, none_sent=isinstance(error, UserError) and unsent)
        raise


def batch_scripts(submission: Submission, profile: Profile) -> Iterator[tuple[list[ClusterJob], str]]:
    """For a dry run: the jobs of each sbatch call and its script, with ``<key>`` in place of Slurm's ids."""
    for group, executor in _calls(submission, profile):
        for i, job in enumerate(group):
            submission.jobs[job.key] = replace(job, slurm_id=f"<{group[0].key}>" + (f"_{i}" if len(group) > 1 else ""))
        executor.parameters |= {"map_count": len(group)} if len(group) > 1 else {}
        yield group, executor._make_submission_file_text(executor._submitit_command_str, "")


def withdraw(submission: Submission, none_sent: bool = False) -> None:
    """Undo an incomplete submission: cancel its jobs, including those whose ids were never saved, and delete it."""
    if not none_sent:
        try:
            ask(["scancel", "-u", str(os.getuid()), "--name", submission.name])
        except UserError as error:  # keep the folder, so that its jobs can be found
            print(f"submission {submission.id} is not undone yet ({error}); submit tries again", file=sys.stderr)
            return
    (submission.folder / "submission.json").unlink(missing_ok=True)  # first: without it the folder does not count
    shutil.rmtree(submission.folder, ignore_errors=True)


def without_incomplete(ledger: list[Submission]) -> list[Submission]:
    """Undo submissions interrupted by a kill, and return the others. Hold the submit lock during the call."""
    cut = [s for s in ledger if not all(job.slurm_id for job in s.jobs.values())]
    for submission in cut:
        print(f"undoing submission {submission.id}, which was cut short", file=sys.stderr)
        withdraw(submission)
    return [submission for submission in ledger if submission not in cut]


def cancel_rows(places: Places, name: str) -> tuple[int, list[str]]:
    """``cancel`` for the rows that match ``name``. Raises UserError if none match."""
    with submit_lock(places):
        ledger = without_incomplete(read_ledger(places.runs))
        rows = find_rows(ledger, name)
        names = {row.name for row in rows}.union(*(s.cancelled for s in ledger))
        # Rows share the reconstruction of their tokenizer, which is listed under the first of them.
        others = {r.experiment for s in ledger for r in s.rows if r.task == "generation" and r.name not in names}
        rows = [row for row in rows if row.task != "reconstruction" or row.experiment not in others] or rows
        return cancel(ledger, rows)


def cancel(ledger: list[Submission], unwanted: list[Row]) -> tuple[int, list[str]]:
    """Cancel the jobs that no other record, or the same one of another experiment, needs.

    Returns how many records a job was still to make, and the ids of the jobs."""
    queue = Queue(ledger)
    live = [(s, job) for s in ledger for job in s.jobs.values() if queue.state(s, job).live]
    gone = {row.name for row in unwanted}
    to_come = {stage.id for _, job in live for stage in job.stages}
    unfinished = {row.id for row in unwanted if not is_sound(ledger[0].places.folder(row.task, row.id))}
    unfinished &= {stage.id for s, job in live for stage in job.stages if stage.id not in s.cancelled}
    for submission in ledger:
        submission.cancel(gone & {row.name for row in submission.rows})
    still_wanted = {
        s.id: [row for row in s.rows if row.id in to_come - s.cancelled and row.name not in s.cancelled] for s in ledger
    }
    kept_stages = {stage for rows in still_wanted.values() for row in rows for stage in row.stages}
    gone_stages = {stage for row in unwanted for stage in row.stages}
    ids: list[str] = []
    for submission, job in live:
        own = {stage.id for stage in job.stages}
        going = (own & gone_stages) - kept_stages
        submission.cancel(going)
        if job == submission.last:
            ends = not still_wanted[submission.id] and any(row.name in gone for row in submission.rows)
            submission.cancel([TABLE] if ends else [])  # if it is running already, it must not send more
        else:
            ends = bool(going) and not own & kept_stages
        ids += [str(job.slurm_id)] if ends else []
    for i in range(0, len(ids), 200):
        ask(["scancel", *ids[i : i + 200]])
    return len(unfinished - kept_stages), ids
