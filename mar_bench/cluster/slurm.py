"""Calls to Slurm: jobs are sent through submitit; squeue and sacct report their states."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mar_bench.cluster.ledger import Submission
from mar_bench.cluster.profile import Profile, minutes
from mar_bench.cluster.snapshot import START
from mar_bench.records.provenance import COMMAND_VARIABLE
from mar_bench.utils.errors import UserError

LIVE = {
    "PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT",
    "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING", "RESV_DEL_HOLD",
}  # fmt: skip
LOST = "LOST"  # Slurm does not know the job
SILENT = "UNKNOWN"  # Slurm does not answer
NO_SLURM = "{}: not found; is this a machine of the cluster, and is Slurm on the PATH?"
SECONDS = 30  # timeout of squeue and similar commands
RETRY_SECONDS = 1
KEPT = {"SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT"}  # which cluster, and the user's token
OF_SLURM = ("SLURM", "SBATCH_", "SALLOC_", "SRUN_", "SQUEUE_", "SACCT_", "SCANCEL_", "PMI", "SUBMITIT_")
OF_TORCHRUN = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@dataclass(frozen=True)
class JobState:
    """A job as Slurm reports it: ``state`` is Slurm's own word, or LOST or UNKNOWN."""

    state: str
    nodes: str = ""
    reason: str = ""

    @property
    def live(self) -> bool:
        return self.state in LIVE or self.state == SILENT


def job_states(named: dict[str, str]) -> dict[str, JobState]:
    """The states of jobs; ``named`` maps their ids, as ``12`` or ``12_3``, to their names.

    An id whose job has another name belongs to another cluster, or to one that counts from 1 again: it is LOST, as is
    an id that Slurm does not know. While the controller does not answer, jobs missing from accounting are UNKNOWN."""
    if not named:
        return {}
    found: dict[str, JobState] = {}
    unknown = LOST
    try:
        words = ["squeue", "-h", "-r", "-t", "all", "-u", str(os.getuid()), "-o", "%i|%j|%T|%N|%r"]
        for line in ask(words).splitlines():
            job, name, state, nodes, reason = line.split("|", 4)
            if named.get(job) == name:
                found[job] = JobState(state, nodes, "" if reason == "None" else reason)
    except UserError:
        unknown = SILENT
    if missing := named.keys() - found.keys():
        ids = ",".join(sorted({job.partition("_")[0] for job in missing}))
        # Without accounting, jobs that squeue has forgotten have ended with unknown status.
        with contextlib.suppress(UserError):
            for line in ask(["sacct", "-n", "-X", "-P", "-o", "JobID,JobName,State,NodeList", "-j", ids]).splitlines():
                jobs, name, state, nodes = line.split("|", 3)
                for job in _elements(jobs):
                    if job in missing and named[job] == name:
                        found[job] = JobState(state.split()[0], nodes.replace("None assigned", ""))
    return {job: found.get(job, JobState(unknown)) for job in named}


def _elements(job: str) -> list[str]:
    """The ids in ``12_[0-2,5%4]``, as sacct writes array elements that have not started."""
    array, _, elements = job.partition("_[")
    ranges = re.findall(r"(\d+)(?:-(\d+))?", elements.partition("%")[0])
    return [f"{array}_{i}" for first, last in ranges for i in range(int(first), int(last or first) + 1)] or [job]


def ask(words: list[str]) -> str:
    """A command's output, after a second try if the controller is busy. Raises UserError with the reason."""
    for again in (True, False):
        try:
            with clean_environment():
                done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=False)
        except FileNotFoundError:
            raise UserError(NO_SLURM.format(words[0])) from None
        except subprocess.TimeoutExpired:
            raise UserError(f"{words[0]}: no answer within {SECONDS} seconds") from None
        if done.returncode == 0:
            return done.stdout
        if again:
            time.sleep(RETRY_SECONDS)
    raise UserError(_complaint(done.stderr) or f"{words[0]} failed with exit code {done.returncode}")


def _complaint(text: str) -> str:
    """The last error in Slurm's output, as one line."""
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "error: " in line), lines[-1] if lines else "")


@contextlib.contextmanager
def clean_environment() -> Iterator[None]:
    """Hide the variables that would override a profile or filter an answer (SBATCH_PARTITION, SQUEUE_PARTITION), and
    those of a job around this process: sbatch would pass them on, and srun in the job reads them."""
    hidden = {key for key in os.environ if key.startswith(OF_SLURM) or key in OF_TORCHRUN} - KEPT
    hidden |= {"CUDA_VISIBLE_DEVICES"} & os.environ.keys() if "SLURM_JOB_ID" in os.environ else set()
    before = {key: os.environ.pop(key) for key in hidden}
    try:
        yield
    finally:
        os.environ.update(before)


def overruled() -> list[str]:
    """The user's variables for sbatch, which do not count: the profile decides."""
    return sorted(key for key in os.environ if key.startswith("SBATCH_"))


def executor_for(profile: Profile, submission: Submission, stage: str, dependency: str) -> Any:
    """submitit's executor for the jobs of a stage. It works without Slurm too, to print scripts."""
    from submitit.slurm.slurm import SlurmExecutor

    Sender = type("Sender", (SlurmExecutor,), {"affinity": classmethod(lambda cls: 2)})
    wants, code = profile.resources(stage), shlex.quote(str(submission.folder / "code"))
    tasks = wants.tasks_per_node or 1
    own = {option.lstrip("-"): value for option, value in wants.sbatch.items() if value not in (None, False)}
    parameters: dict[str, Any] = {
        **{key: getattr(wants, key) for key in ("partition", "account", "qos", "constraint", "nodes", "cpus_per_task")},
        "job_name": submission.name,
        "ntasks_per_node": tasks,
        "time": minutes(wants.time or ""),
        "exclusive": wants.exclusive or None,
        "mem": None if wants.memory_gb is None else f"{max(1, round(wants.memory_gb * tasks * 1024))}M",
        "signal_delay_s": profile.signal_seconds,
        "array_parallelism": profile.array_parallelism,
        "dependency": dependency or None,
        "srun_args": ["--kill-on-bad-exit=1"],  # else the other tasks of a job wait for one that has died
        "setup": [
            *profile.setup,
            f"export PYTHONPATH={code}${{PYTHONPATH:+:$PYTHONPATH}}",
            f"export {COMMAND_VARIABLE}={shlex.quote(submission.request.command)}",
        ],
        "additional_parameters": {"requeue": True, "kill-on-invalid-dep": "yes", **own},
    }
    if gpus := wants.gpus_per_node:
        parameters |= {"gres": f"gpu:{wants.gpu_type}:{gpus}"} if wants.gpu_type else {"gpus_per_node": gpus}
    parameters = {key: value for key, value in parameters.items() if value is not None}
    python = f"{profile.python or shlex.quote(sys.executable)} -u {code}/{START}"
    executor = Sender(submission.folder / "logs", profile.max_timeouts, python=python)
    executor.update_parameters(**parameters, wckey=None)  # submitit's default wckey fails on sites without them
    return executor


def send(executor: Any, work: Sequence[Callable]) -> list[str]:
    """Send one job per item of ``work``, several as an array; returns their ids. Raises UserError if sbatch refuses."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise UserError(NO_SLURM.format("sbatch"))
    try:
        with clean_environment():
            with executor.batch() if len(work) > 1 else contextlib.nullcontext():
                jobs = [executor.submit(one) for one in work]
            return [job.job_id for job in jobs]
    except (FailedJobError, FailedSubmissionError) as error:
        raise UserError(f"sbatch refuses: {_complaint(str(error))}") from None
