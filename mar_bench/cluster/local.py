"""The graph of a submission on this machine, for the profiles without Slurm: by submitit's other executors."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mar_bench.cluster.jobs import ClusterJob
from mar_bench.cluster.ledger import Submission
from mar_bench.cluster.profile import Profile
from mar_bench.cluster.snapshot import START
from mar_bench.cluster.submit import Last, work_of
from mar_bench.pipeline.run_local import STOP_SECONDS, Interrupts, Outcome, ignoring_interrupts
from mar_bench.records.provenance import COMMAND_VARIABLE

NO_LIMIT = 60 * 24 * 365  # minutes of a job


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
                        running[job.key] = executor.submit(work_of(submission, job.key, last))
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
