"""The private cluster does what docs/clusters.md says: states, accounting, fake GPUs, broken nodes, no traces."""

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


def test_fresh_nodes_have_names_and_gpus(slurm):
    wait_for(lambda: states(slurm) == {"IDLE"})  # jobs of other tests may still be ending
    assert slurm.run("sinfo", "--noheader", "-o", "%P %D").split("\n") == ["main* 4", "prio 4"]
    assert slurm.run("getent", "hosts", "n4").split()[0].startswith(("127.0.0.1", "::1"))
    two = slurm.run("srun", "-n2", "--gpus-per-task=1", "printenv", "CUDA_VISIBLE_DEVICES")
    assert sorted(two.split()) == ["0", "1"]


def test_down_and_resume(slurm):
    slurm.node("down", "n4")
    assert states(slurm, "n4") == {"DOWN"}
    slurm.node("resume", "n4")
    assert states(slurm, "n4") == {"IDLE"}


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


def test_stop_cleans_up_after_a_start_that_was_killed(slurm):
    other = Cluster(slurm.dir.with_name(f"{slurm.dir.name}-c"))
    starting = subprocess.Popen([SCRIPTS / "start", other.dir], env=other.environment, stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: (other.dir / "log" / "mariadbd.out").exists() or starting.poll() is not None)
    finally:
        starting.kill()
        assert starting.wait() == -signal.SIGKILL
        assert len(traces(other.dir)) > 2
        other.stop()
    assert traces(other.dir) == []
