"""The graph of a submission on this machine, for profiles without Slurm: every job is a process of submitit's."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from submitit import LocalExecutor

from mar_bench.cluster.ledger import Submission
from mar_bench.cluster.profile import ProcessesProfile
from mar_bench.cluster.send import Last
from mar_bench.cluster.snapshot import START
from mar_bench.cluster.work import Work
from mar_bench.pipeline.run_local import STOP_SECONDS, Interrupts, Outcome, ignoring_interrupts
from mar_bench.records.provenance import COMMAND_VARIABLE, cores

NO_LIMIT = 60 * 24 * 365  # minutes


def run_here(submission: Submission, profile: ProcessesProfile, threads: int, last: Last) -> Outcome:
    """Run all jobs; ``failed`` maps keys of jobs to errors. ``threads``: of each process.

    A job that needs a failed one is not run. Ctrl-C and SIGTERM stop the processes; trainings save first."""
    gpus = sorted(int(path.name.removeprefix("nvidia")) for path in Path("/dev").glob("nvidia[0-9]*"))
    parallel = profile.parallel or (1 if gpus else max(1, cores() // threads))
    start = shlex.join([sys.executable, "-u", str(submission.folder / "code" / START)])
    executor = LocalExecutor(submission.folder / "logs", python=start)
    executor.update_parameters(timeout_min=NO_LIMIT, gpus_per_node=len(gpus), visible_gpus=gpus)
    os.environ[COMMAND_VARIABLE] = submission.request.command
    outcome = Outcome()
    waiting = dict(submission.jobs)
    running: dict[str, Any] = {}
    ended: set[str] = set()
    with Interrupts() as interrupts:  # Ctrl-C reaches every process of a terminal, but only this one acts on it
        while (waiting or running) and not interrupts.count:
            for job in list(waiting.values()):
                if set(job.needs) & outcome.failed.keys():
                    outcome.failed[job.key] = "a job that it needs has failed"
                    ended.add(waiting.pop(job.key).key)
                elif {*job.needs, *job.follows} <= ended and len(running) < parallel:
                    del waiting[job.key]
                    print(f"start  {job.title}", flush=True)
                    with ignoring_interrupts():
                        running[job.key] = executor.submit(Work(str(submission.folder), job.key, last))
                    submission.sent([(job.key, running[job.key].job_id)])
            for key, process in list(running.items()):
                if process.done():
                    del running[key]
                    ended.add(key)
                    if error := process.exception():
                        outcome.failed[key] = str(error).strip().splitlines()[-1]
                    print(f"{'FAILED' if error else 'done  '} {submission.jobs[key].title}", flush=True)
            time.sleep(0.2)
        if waiting or running:
            outcome.stopped = True
            print("stopping: saving work in progress", flush=True)
            for process in running.values():
                process._process.terminate()  # submitit's controller passes it on; cancel() would kill
            for process in running.values():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process._process.wait(STOP_SECONDS)
    return outcome
