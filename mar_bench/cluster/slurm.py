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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mar_bench.cluster.profile import SlurmProfile, minutes
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
COMPLAINT = r"\s*(sbatch|squeue|sacct|scancel|scontrol|slurm)\w*[: ]"
SECONDS = 30  # how long squeue and the like may take to answer
RETRY_SECONDS = 1
FIELDS = "%i|%j|%T|%N|%r"  # of squeue: id, name, state, nodes, reason


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
    found: dict[str, tuple[str, JobState]] = {}
    silent = False
    try:
        words = ["squeue", "-h", "-r", "-t", "all", "-u", str(os.getuid()), "-o", FIELDS]
        try:
            lines = _run(words)
        except UserError:  # a busy controller drops a request now and then
            time.sleep(RETRY_SECONDS)
            lines = _run(words)
        for line in lines.splitlines():
            job, name, state, nodes, reason = line.split("|", 4)
            found[job] = (name, JobState(state, nodes, "" if reason == "None" else reason))
    except UserError:
        silent = True
    if missing := [job for job in named if job not in found or found[job][0] != named[job]]:
        whole = ",".join(dict.fromkeys(job.partition("_")[0] for job in missing))
        words = ["sacct", "-n", "-X", "-P", "-o", "JobID,JobName,State,NodeList", "-j", whole]
        # Without accounting, jobs that squeue has forgotten have ended with unknown status.
        with contextlib.suppress(UserError):
            for line in _run(words).splitlines():
                jobs, name, state, nodes = line.split("|", 3)
                for job in _elements(jobs):
                    if job in named and name == named[job]:
                        found[job] = (name, JobState(state.split()[0], nodes.replace("None assigned", "")))
    unknown = JobState(SILENT if silent else LOST)
    return {job: found[job][1] if found.get(job, ("",))[0] == name else unknown for job, name in named.items()}


def _elements(job: str) -> list[str]:
    """The ids in ``12_[0-2,5%4]``, as sacct writes array elements that have not started."""
    array, bracket, elements = job.partition("_[")
    if not bracket:
        return [job]
    found = []
    for part in elements.rstrip("]").partition("%")[0].split(","):
        first, _, last = part.partition("-")
        if first.isdigit() and (last or first).isdigit():  # sacct truncates long lists
            found += [f"{array}_{i}" for i in range(int(first), int(last or first) + 1)]
    return found


def cancel_jobs(ids: Sequence[str]) -> None:
    """Raises UserError if Slurm refuses."""
    for i in range(0, len(ids), 200):
        _run(["scancel", *ids[i : i + 200]])


def cancel_named(name: str) -> None:
    """Cancel all jobs with a name, including those whose ids were never noted. Raises UserError if Slurm refuses."""
    _run(["scancel", "-u", str(os.getuid()), "--name", name])


def requeue_job(slurm_id: str) -> None:
    """Raises UserError if Slurm refuses."""
    _run(["scontrol", "requeue", slurm_id])


def _run(words: list[str]) -> str:
    """A command's output. Raises UserError with the line of its error message that says why."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=False)
    except FileNotFoundError:
        raise UserError(NO_SLURM.format(words[0])) from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{words[0]}: no answer within {SECONDS} seconds") from None
    if done.returncode:
        raise UserError(complaint(done.stderr) or f"{words[0]} failed with exit code {done.returncode}")
    return done.stdout


def complaint(text: str) -> str:
    """The line of Slurm's error output that says why."""
    lines = [line.strip() for line in text.splitlines() if re.match(COMPLAINT, line)]
    lines = [line for line in lines if "error" in line] or lines
    return " ".join(lines[-1].split()) if lines else ""


# --- sending --------------------------------------------------------------------------------------------


def sbatch_parameters(
    profile: SlurmProfile, stage: str, name: str, dependency: str, code: Path, command: str
) -> dict[str, Any]:
    """Parameters of submitit's Slurm executor for the jobs of a stage."""
    wants = profile.resources(stage)
    tasks = wants.tasks_per_node or 1
    own = {option.lstrip("-"): value for option, value in wants.sbatch.items() if value not in (None, False)}
    same = ("partition", "account", "qos", "constraint", "nodes", "cpus_per_task")
    parameters: dict[str, Any] = {
        **{key: getattr(wants, key) for key in same},
        "job_name": name,
        "ntasks_per_node": tasks,
        "time": minutes(wants.time or ""),
        "exclusive": wants.exclusive or None,
        "mem": None if wants.memory_gb is None else f"{max(1, round(wants.memory_gb * tasks * 1024))}M",
        "signal_delay_s": profile.signal_seconds,
        "array_parallelism": profile.array_parallelism,
        "dependency": dependency or None,
        "wckey": None,  # submitit's default fails on sites without them
        "srun_args": ["--kill-on-bad-exit=1"],  # else the other tasks of a job wait for one that has died
        "setup": [
            *profile.setup,
            f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}",
            f"export {COMMAND_VARIABLE}={shlex.quote(command)}",
        ],
        "additional_parameters": {"requeue": True, "kill-on-invalid-dep": "yes", **own},
    }
    if wants.gpus_per_node and wants.gpu_type:
        parameters["gres"] = f"gpu:{wants.gpu_type}:{wants.gpus_per_node}"
    elif wants.gpus_per_node:
        parameters["gpus_per_node"] = wants.gpus_per_node
    return {key: value for key, value in parameters.items() if value is not None or key == "wckey"}


def _executor(profile: SlurmProfile, folder: Path, code: Path, parameters: dict[str, Any]):
    from submitit.slurm.slurm import SlurmExecutor

    class Sender(SlurmExecutor):
        """Works without Slurm too, to print what would be sent."""

        @classmethod
        def affinity(cls) -> int:
            return 2

    python = profile.python or shlex.quote(sys.executable)
    executor = Sender(folder, profile.max_timeouts, python=f"{python} -u {shlex.quote(str(code / START))}")
    executor.update_parameters(**parameters)
    return executor


def script(profile: SlurmProfile, folder: Path, code: Path, parameters: dict[str, Any], elements: int) -> str:
    """The batch script of a job, or of an array with ``elements`` jobs."""
    executor = _executor(profile, folder, code, parameters)
    if elements > 1:
        executor.parameters["map_count"] = elements
    return executor._make_submission_file_text(executor._submitit_command_str, "")


def send(
    profile: SlurmProfile, folder: Path, code: Path, parameters: dict[str, Any], work: Sequence[Callable]
) -> list[str]:
    """Send one job per item of ``work``, several as an array; returns their ids. Raises UserError if sbatch refuses."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise UserError(NO_SLURM.format("sbatch"))
    executor = _executor(profile, folder, code, parameters)
    try:
        with outside_a_job():
            with executor.batch() if len(work) > 1 else contextlib.nullcontext():
                jobs = [executor.submit(one) for one in work]
            return [job.job_id for job in jobs]
    except (FailedJobError, FailedSubmissionError) as error:
        raise UserError(f"sbatch refuses: {complaint(str(error)) or ' '.join(str(error).split())}") from None


@contextlib.contextmanager
def outside_a_job() -> Iterator[None]:
    """Hide the variables that Slurm and torch set in a job, which jobs sent from it would inherit."""
    torch_sets = {"MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"}
    names = {key for key in os.environ if key.startswith(("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_"))} - {"SLURM_CONF"}
    names |= os.environ.keys() & {*torch_sets, "CUDA_VISIBLE_DEVICES"}
    hidden = {key: os.environ.pop(key) for key in names} if "SLURM_JOB_ID" in os.environ else {}
    try:
        yield
    finally:
        os.environ.update(hidden)


def dependency(needs: Iterable[str], follows: Iterable[str]) -> str:
    """The value of sbatch's --dependency: ids that must have succeeded, and ids that must have ended."""
    parts = [("afterok", list(needs)), ("afterany", list(follows))]
    return ",".join(":".join([word, *ids]) for word, ids in parts if ids)
