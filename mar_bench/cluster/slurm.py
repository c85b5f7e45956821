"""Talking to Slurm: jobs are sent through submitit, their states asked for with squeue and sacct."""

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
LOST = "LOST"  # Slurm knows no such job
SILENT = "UNKNOWN"  # Slurm does not answer
NO_SLURM = "{}: not found; is this a machine of the cluster, is Slurm on the PATH?"
COMPLAINT = r"\s*(sbatch|squeue|sacct|scancel|scontrol|slurm)\w*[: ]"
SECONDS = 30  # for squeue and the like to answer
FIELDS = "%i|%j|%T|%N|%r|%M"  # of squeue: id, name, state, nodes, reason, time used


@dataclass(frozen=True)
class JobState:
    """What Slurm says of a job: ``state`` is its own word, or LOST or UNKNOWN."""

    state: str
    nodes: str = ""
    reason: str = ""
    elapsed: str = ""

    @property
    def live(self) -> bool:
        return self.state in LIVE or self.state == SILENT


def job_states(named: dict[str, str]) -> dict[str, JobState]:
    """Of jobs by their ids, as ``12`` or ``12_3``; ``named`` has the name of each.

    An id that bears another name is another cluster's, or of one that began anew: LOST, as is one that nobody knows.
    While the controller does not answer, what accounting does not know either is UNKNOWN."""
    if not named:
        return {}
    found: dict[str, tuple[str, JobState]] = {}
    silent = False
    try:
        words = ["squeue", "-h", "-r", "-t", "all", "-u", str(os.getuid()), "-o", FIELDS]
        try:
            lines = _run(words)
        except UserError:  # a busy controller drops a question now and then
            time.sleep(1)
            lines = _run(words)
        for line in lines.splitlines():
            job, name, state, nodes, reason, elapsed = line.split("|", 5)
            found[job] = (name, JobState(state, nodes, "" if reason == "None" else reason, elapsed))
    except UserError:
        silent = True
    if missing := [job for job in named if job not in found or found[job][0] != named[job]]:
        try:
            whole = ",".join(dict.fromkeys(job.partition("_")[0] for job in missing))
            words = ["sacct", "-n", "-X", "-P", "-o", "JobID,JobName,State,NodeList,Elapsed", "-j", whole]
            for line in _run(words).splitlines():
                jobs, name, state, nodes, elapsed = line.split("|", 4)
                for job in _elements(jobs):
                    if job in named and name == named[job]:
                        found[job] = (name, JobState(state.split()[0], nodes.replace("None assigned", ""), "", elapsed))
        except UserError:
            pass  # a site without accounting: what squeue has forgotten has ended, in whatever way
    unknown = JobState(SILENT if silent else LOST)
    return {job: found[job][1] if found.get(job, ("",))[0] == name else unknown for job, name in named.items()}


def _elements(job: str) -> list[str]:
    """``12_[0-2,5%4]``, elements of an array that have not started, one by one."""
    array, bracket, elements = job.partition("_[")
    if not bracket:
        return [job]
    found = []
    for part in elements.rstrip("]").partition("%")[0].split(","):
        first, _, last = part.partition("-")
        if first.isdigit() and (last or first).isdigit():  # sacct cuts long lists
            found += [f"{array}_{i}" for i in range(int(first), int(last or first) + 1)]
    return found


def cancel_jobs(ids: Sequence[str]) -> None:
    """Raises UserError where Slurm refuses."""
    for i in range(0, len(ids), 200):
        _run(["scancel", *ids[i : i + 200]])


def cancel_named(name: str) -> None:
    """All jobs of a name, also those whose ids nobody has noted. Raises UserError where Slurm refuses."""
    _run(["scancel", "-u", str(os.getuid()), "--name", name])


def requeue_job(slurm_id: str) -> None:
    """Have a running job queued again. Raises UserError where Slurm refuses."""
    _run(["scontrol", "requeue", slurm_id])


def _run(words: list[str]) -> str:
    """A command's output. Raises UserError with the first line of its complaint."""
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
    """The line of Slurm's complaint that says why."""
    lines = [line.strip() for line in text.splitlines() if re.match(COMPLAINT, line)]
    lines = [line for line in lines if "error" in line] or lines
    return " ".join(lines[-1].split()) if lines else ""


# --- sending --------------------------------------------------------------------------------------------


def sbatch_parameters(
    profile: SlurmProfile, stage: str, name: str, dependency: str, code: Path, command: str
) -> dict[str, Any]:
    """What submitit's Slurm executor is told about a stage's jobs."""
    wants = profile.resources(stage)
    own = {option.lstrip("-"): value for option, value in wants.sbatch.items() if value not in (None, False)}
    extra: dict[str, Any] = {"requeue": True, "kill-on-invalid-dep": "yes", **own}
    parameters = {
        "job_name": name,
        "partition": wants.partition,
        "account": wants.account,
        "qos": wants.qos,
        "constraint": wants.constraint,
        "nodes": wants.nodes,
        "ntasks_per_node": wants.tasks_per_node,
        "cpus_per_task": wants.cpus_per_task,
        "time": minutes(wants.time),
        "exclusive": wants.exclusive or None,
        "mem": None if wants.memory_gb is None else f"{max(1, round(wants.memory_gb * wants.tasks_per_node * 1024))}M",
        "signal_delay_s": profile.signal_seconds,
        "array_parallelism": profile.array_parallelism,
        "dependency": dependency or None,
        "wckey": None,  # not every site has them
        # without it the others of a job wait for one that has died
        "srun_args": ["--kill-on-bad-exit=1"],
        "setup": [
            *profile.setup,
            f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}",
            f"export {COMMAND_VARIABLE}={shlex.quote(command)}",
        ],
        "additional_parameters": extra,
    }
    if wants.gpus_per_node:
        if wants.gpu_type:
            parameters["gres"] = f"gpu:{wants.gpu_type}:{wants.gpus_per_node}"
        else:
            parameters["gpus_per_node"] = wants.gpus_per_node
    return {key: value for key, value in parameters.items() if value is not None or key == "wckey"}


def _executor(profile: SlurmProfile, folder: Path, code: Path, parameters: dict[str, Any]):
    from submitit.slurm.slurm import SlurmExecutor

    class Sender(SlurmExecutor):
        """Also where there is no Slurm, to print what would be sent."""

        @classmethod
        def affinity(cls) -> int:
            return 2

    python = profile.python or shlex.quote(sys.executable)
    executor = Sender(folder, profile.max_timeouts, python=f"{python} -u {shlex.quote(str(code / START))}")
    executor.update_parameters(**parameters)
    return executor


def script(profile: SlurmProfile, folder: Path, code: Path, parameters: dict[str, Any], elements: int) -> str:
    """The batch script of a job, or of an array of ``elements``."""
    executor = _executor(profile, folder, code, parameters)
    if elements > 1:
        executor.parameters["map_count"] = elements
    return executor._make_submission_file_text(executor._submitit_command_str, "")


def send(
    profile: SlurmProfile, folder: Path, code: Path, parameters: dict[str, Any], work: Sequence[Callable]
) -> list[str]:
    """Send one job for each of ``work``, several as an array; their ids. Raises UserError where sbatch refuses."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise UserError(NO_SLURM.format("sbatch"))
    executor = _executor(profile, folder, code, parameters)
    try:
        with outside_a_job():
            if len(work) == 1:
                return [executor.submit(work[0]).job_id]
            with executor.batch():
                jobs = [executor.submit(one) for one in work]
            return [job.job_id for job in jobs]
    except (FailedJobError, FailedSubmissionError) as error:
        raise UserError(f"sbatch refuses: {complaint(str(error)) or ' '.join(str(error).split())}") from None


@contextlib.contextmanager
def outside_a_job() -> Iterator[None]:
    """Without the variables that a job has about itself, which jobs sent from it would inherit."""
    ours = (
        "MASTER_ADDR",
        "MASTER_PORT",
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "CUDA_VISIBLE_DEVICES",
    )
    prefixes = ("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_")
    inside = "SLURM_JOB_ID" in os.environ
    gone = {
        key: os.environ.pop(key)
        for key in list(os.environ)
        if inside and key != "SLURM_CONF" and (key in ours or key.startswith(prefixes))
    }
    try:
        yield
    finally:
        os.environ.update(gone)


def dependency(needs: Iterable[str], follows: Iterable[str]) -> str:
    """sbatch's word for ids that must have ended well and ids that must have ended."""
    parts = [("afterok", list(needs)), ("afterany", list(follows))]
    return ",".join(":".join([word, *ids]) for word, ids in parts if ids)
