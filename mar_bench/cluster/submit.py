"""Submissions to Slurm: sent, taken back where they are refused, settled when they end, cancelled."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mar_bench.cluster.jobs import TABLE, ClusterJob, arrays
from mar_bench.cluster.ledger import Row, Submission, new_submission, read_ledger
from mar_bench.cluster.plan import Plan, failure_of, holders, rows_of, states_of
from mar_bench.cluster.profile import SlurmProfile
from mar_bench.cluster.slurm import cancel_jobs, cancel_named, dependency, sbatch_parameters, script, send
from mar_bench.cluster.snapshot import take_snapshot
from mar_bench.cluster.work import Work
from mar_bench.config.ids import Run
from mar_bench.pipeline.store import Places, is_sound, record_failure
from mar_bench.records.record import read_record
from mar_bench.utils import locks
from mar_bench.utils.errors import UserError

Last = Callable[[Submission], None]  # what is done when all jobs have ended
MOST_ELEMENTS = 1000  # of an array; Slurm's own default limit is 1001


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


def keep_experiments(words: list[str], folder: Path) -> None:
    """Copy the user's own experiment files, with the layers beside them: editing them is not to change what has been
    submitted."""
    for word in words:
        file = Path(word)
        if file.suffix in (".yaml", ".yml") and file.is_file():
            (folder / "experiments").mkdir(parents=True, exist_ok=True)
            for name in ("base", "scale"):
                if (file.parent / name).is_dir():
                    shutil.copytree(file.parent / name, folder / "experiments" / name, dirs_exist_ok=True)
            shutil.copy(file, folder / "experiments" / file.name)


def kept_words(submission: Submission) -> list[str]:
    """The words of a submission with its copies of experiment files."""
    copies = {path.name: str(path) for path in (submission.folder / "experiments").glob("*.y*ml")}
    return [
        copies.get(Path(word).name, word) if word.endswith((".yaml", ".yml")) else word for word in submission.words
    ]


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
    submission = new_submission(
        absolute,
        plan.graph,
        plan.stages,
        rows_of(planned, plan.stages),
        profile_text,
        label,
        code=str(code),
        **about,
    )
    keep_experiments(submission.words, submission.folder)
    return submission


def send_all(
    submission: Submission, graph: list[ClusterJob], profile: SlurmProfile, last: Last, say: Callable[[str], None]
) -> None:
    """Send every job, of which the final one also does ``last``.

    Raises UserError where Slurm refuses one, with what it says: then those before it are cancelled and nothing is
    left."""
    ids: dict[str, str] = {}
    groups = arrays(graph, MOST_ELEMENTS)
    try:
        for n, group in enumerate(groups):
            job = group[0]
            words = dependency(_ids(job.needs, ids, groups), _ids(job.follows, ids, groups))
            name = submission.jobs[job.key].name
            parameters = sbatch_parameters(profile, job.kind, name, words, Path(submission.code), submission.command)
            work = [work_of(submission, one.key, last, profile.signal_seconds) for one in group]
            sent = send(profile, submission.folder / "logs", Path(submission.code), parameters, work)
            pairs = [(one.key, slurm_id) for one, slurm_id in zip(group, sent)]
            submission.sent(pairs)
            ids |= dict(pairs)
            if n % 20 == 19:
                say(f"sent {n + 1} of {len(groups)}")
    except BaseException as error:
        withdraw(submission, none_sent=isinstance(error, UserError) and not ids)
        raise


def work_of(submission: Submission, key: str, last: Last, signal_seconds: int = 0) -> Work:
    """A job as it is pickled."""
    return Work(str(submission.folder), key, signal_seconds, last if key == submission.last else None)


def _ids(keys: tuple[str, ...], ids: dict[str, str], groups: list[list[ClusterJob]]) -> list[str]:
    """Slurm's ids; an array that is meant whole by its one id."""
    found = dict.fromkeys(keys)
    for group in groups:
        members = {job.key for job in group}
        if len(group) > 1 and members <= found.keys():
            found = {key: None for key in found if key not in members}
            found[f"@{ids[group[0].key].partition('_')[0]}"] = None
    return [key[1:] if key.startswith("@") else ids[key] for key in found]


def withdraw(submission: Submission, none_sent: bool = False) -> None:
    """Take back a submission that was not sent to its end, with the jobs that have been sent, noted or not."""
    if not none_sent:
        try:
            cancel_named(submission.jobs[submission.last].name)
        except UserError as error:  # its folder stays, so that its jobs can be found
            print(f"submission {submission.id} is not taken back yet ({error}); submit tries again", file=sys.stderr)
            return
    (submission.folder / "submission.json").unlink(missing_ok=True)  # what makes it one, first
    shutil.rmtree(submission.folder, ignore_errors=True)


def without_cut(ledger: list[Submission]) -> list[Submission]:
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
    ids = {}
    for group in groups:
        for i, job in enumerate(group):
            ids[job.key] = f"<{group[0].key}>_{i}" if len(group) > 1 else f"<{job.key}>"
    for group in groups:
        job = group[0]
        words = dependency(_ids(job.needs, ids, groups), _ids(job.follows, ids, groups))
        parameters = sbatch_parameters(profile, job.kind, label, words, code, command)
        yield group, words, script(profile, submission_folder / "logs", code, parameters, len(group))


# --- the end of a submission ----------------------------------------------------------------------------


def settle(submission: Submission) -> list[str]:
    """Write a failed record for every cell that no job of the submission can do any more; the cells' titles.

    A job that was killed could not do so itself."""
    ledger = read_ledger(submission.places.runs)
    states, owners = states_of(ledger), holders(ledger)
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
        if why is None and entry is not None:
            why = failure_of(submission, entry, stage.id, states)
        elif why is None and stage.id in owners:  # another submission was to do it
            why = failure_of(*owners[stage.id], stage.id, states)
            why = why and f"{stage.title}, of another submission: {why}"
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


def cancel(ledger: list[Submission], unwanted: list[Row]) -> tuple[list[str], list[str]]:
    """End the jobs that no other record needs; an experiment's record counts for that experiment alone.

    Ids of jobs that were cancelled, and titles of stages that stay since others wait for them."""
    states = states_of(ledger)
    live = [
        (submission, entry)
        for submission in ledger
        for entry in submission.jobs.values()
        if (state := states.get((submission.id, entry.key))) is not None and state.live
    ]
    gone = {row.name for row in unwanted}
    for submission in ledger:
        submission.cancel(gone & {row.name for row in submission.rows})
    to_come = {stage.id for submission, entry in live for stage in entry.stages}
    waiting = {  # rows that somebody still wants, by submission
        s.id: [row for row in s.rows if row.id in to_come - s.cancelled and row.name not in s.cancelled] for s in ledger
    }
    kept_stages = {stage for rows in waiting.values() for row in rows for stage in row.stages}
    gone_stages = {stage for row in unwanted for stage in row.stages}
    ids, kept = [], []
    for submission, entry in live:
        own = {stage.id for stage in entry.stages}
        kept += [stage.title for stage in entry.stages if stage.id in own & gone_stages & kept_stages]
        going = (own & gone_stages) - kept_stages
        submission.cancel(going)
        last = entry.key == submission.last
        asked = any(row.name in gone for row in submission.rows)
        if (last and asked and not waiting[submission.id]) or (not last and going and not own & kept_stages):
            ids.append(entry.slurm_id)
            if last:
                submission.cancel([TABLE])  # should it have begun: it is not to go on
    if ids:
        cancel_jobs(ids)
    return ids, list(dict.fromkeys(kept))
