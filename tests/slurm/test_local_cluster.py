"""The private cluster does what slurm/README.md says: states, accounting, fake GPUs, broken nodes, no traces."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import SCRIPTS, Cluster


def wait_for(what: Callable[[], object], seconds: float = 20) -> object:
    """What `what` returns, as soon as it is true. The database, for one, lags the controller by seconds."""
    end = time.monotonic() + seconds
    while not (seen := what()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
    return seen


def states(slurm: Cluster, node: str = "") -> set[str]:
    """Of one node or all. Not by sinfo, which goes on saying "mixed" for half a minute after some jobs' end."""
    words = slurm.run("scontrol", "show", "node", "--oneliner", *([node] if node else [])).split()
    return {word.removeprefix("State=") for word in words if word.startswith("State=")}


def alive(pid: int) -> bool:
    """Whether a process runs: init may be slow to bury a dead one, which then is a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def sleeper(slurm: Cluster, node: str, folder: Path) -> tuple[str, int]:
    """A job on `node`, its id and the pid of its one process."""
    file = folder / "pid"
    job = slurm.run("sbatch", "--parsable", "-o/dev/null", f"-w{node}", f"--wrap=echo $$ >{file}; exec sleep 600")
    wait_for(lambda: file.exists() and file.read_text().strip())
    return job, int(file.read_text())


def test_fresh_nodes_have_names_and_gpus(slurm):
    wait_for(lambda: states(slurm) == {"IDLE"})  # jobs of other tests may still be ending
    assert slurm.run("sinfo", "--noheader", "-o", "%P %D").split("\n") == ["main* 4", "prio 4"]
    assert slurm.run("getent", "hosts", "n4").split()[0].startswith(("127.0.0.1", "::1"))
    two = slurm.run("srun", "-n2", "--gpus-per-task=1", "printenv", "CUDA_VISIBLE_DEVICES")
    assert sorted(two.split()) == ["0", "1"]


def test_jobs_are_in_the_accounting(slurm):
    jobs = [slurm.run("sbatch", "--parsable", "-o/dev/null", f"--wrap=exit {code}") for code in (0, 3)]
    words = ("sacct", "-nXj", ",".join(jobs), "-o", "State%30")
    wait_for(lambda: slurm.run(*words).split() == ["COMPLETED", "FAILED"])


@pytest.mark.parametrize(("action", "state"), [("down", "DOWN"), ("drain", "IDLE+DRAIN")])
def test_down_drain_and_resume(slurm, action, state):
    slurm.node(action, "n4")
    assert states(slurm, "n4") == {state}
    slurm.node("resume", "n4")
    assert states(slurm, "n4") == {"IDLE"}


def test_kill_leaves_the_job_alive(slurm, tmp_path):
    job, pid = sleeper(slurm, "n1", tmp_path)
    slurm.node("kill", "n1")
    assert alive(pid)
    slurm.node("start", "n1")
    assert slurm.squeue("-j", job, "-o", "%T") == ["RUNNING"]
    slurm.run("scancel", job)
    wait_for(lambda: not alive(pid))
    wait_for(lambda: states(slurm, "n1") == {"IDLE"})


def test_crash_takes_the_jobs_of_that_node_only(slurm, tmp_path):
    folders = [tmp_path / "n2", tmp_path / "n3"]
    for folder in folders:
        folder.mkdir()
    lost, lost_pid = sleeper(slurm, "n2", folders[0])
    other, other_pid = sleeper(slurm, "n3", folders[1])
    slurm.node("crash", "n2")
    assert not alive(lost_pid) and alive(other_pid)
    slurm.node("down", "n2")  # as Slurm itself does when it has missed the node for long enough
    # requeued, with the reason that it waits until its credential has run out
    assert slurm.squeue("-j", lost, "-o", "%T") == ["PENDING"]
    slurm.run("scancel", lost, other)
    slurm.node("start", "n2")
    slurm.node("resume", "n2")
    wait_for(lambda: not alive(other_pid))
    wait_for(lambda: states(slurm) == {"IDLE"})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("break", "explode", "n1"), "no action 'explode'"),
        (("break", "down", "n99"), "there are: n1 n2 n3 n4"),
        (("start",), "already"),
        (("start", "/var/tmp/" + "x" * 70), "long"),
        (("start", "/etc"), "neither an empty folder"),
        (("stop", "--purge", "/etc"), "not a cluster's folder"),
    ],
)
def test_a_mistake_is_one_line(slurm, words, said):
    done = slurm.script(*words, *([str(slurm.dir)] if words == ("start",) else []))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and said in done.stderr
    assert states(slurm) == {"IDLE"}


def traces(folder: Path) -> list[str]:
    """What a cluster in `folder` has left: itself, its line in /etc/hosts, processes that name it in their command."""
    left = [str(folder)] if folder.exists() else []
    left += [line for line in Path("/etc/hosts").read_text().splitlines() if line.endswith(f" {folder}")]
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = file.read_bytes().decode(errors="replace").replace("\0", " ")
        except OSError:
            continue
        if f"{folder}/" in command:
            left.append(command)
    return left


def hosts() -> str:
    """/etc/hosts without the lines of other clusters: another process of pytest may start or stop one meanwhile."""
    return "".join(line for line in Path("/etc/hosts").read_text().splitlines(True) if "mar_bench-slurm" not in line)


def test_stop_cleans_up_after_a_start_that_was_killed(slurm):
    before = hosts()
    other = Cluster(slurm.dir.with_name(f"{slurm.dir.name}-c"))
    starting = subprocess.Popen([SCRIPTS / "start", other.dir], env=other.environment, stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: (other.dir / "log" / "mariadbd.out").exists() or starting.poll() is not None)
    finally:
        starting.kill()
        assert starting.wait() == -signal.SIGKILL
        assert len(traces(other.dir)) > 2
        other.stop()
    assert traces(other.dir) == [] and hosts() == before
