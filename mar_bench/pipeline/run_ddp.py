"""Run jobs one after another on several ranks, started by torchrun or srun.

Training splits each batch, encoding and sampling split their files; rank 0 does everything else while the others
wait. Ranks agree before every training step whether to stop, so none waits for another."""

from __future__ import annotations

import time

from mar_bench.pipeline.distributed import World
from mar_bench.pipeline.execute import execute
from mar_bench.pipeline.graph import Job, give_up
from mar_bench.pipeline.progress import Report
from mar_bench.pipeline.run_local import Interrupts, Outcome
from mar_bench.pipeline.store import Places
from mar_bench.utils.errors import Stopped, described


def run_together(jobs: list[Job], places: Places, world: World, report: Report) -> Outcome:
    """Execute jobs that the ranks have agreed on, dependencies first, speed last.

    A failure ends the run: ranks waiting for this one are ended by their launcher."""
    outcome = Outcome()
    jobs = sorted(jobs, key=lambda job: job.kind == "speed")
    with Interrupts() as interrupts, report:
        for i, job in enumerate(jobs):
            begin = time.monotonic()
            report.started(job)

            def progress(step: int, total: int, job: Job = job, pending: list[Job] = jobs[i + 1 :]) -> None:
                stop = interrupts.count > 0
                if world.any(stop) if job.kind == "train" else stop:
                    raise Stopped
                report.progress(job, step, total)
                report.tick(pending)

            def waiting(why: str, job: Job = job) -> None:
                report.waiting(job, why)

            try:
                execute(job, places, progress, waiting, world)
            except Stopped:
                outcome.stopped = True
                break
            except Exception as error:
                if interrupts.count:  # another rank stopped and left this one waiting
                    outcome.stopped = True
                    break
                detail = described(error)
                give_up(job, jobs, detail, time.monotonic() - begin, places)
                report.failed(job, detail)
                outcome.failed[job.id] = detail
                break
            outcome.done += 1
            report.finished(job, time.monotonic() - begin)
    return outcome
