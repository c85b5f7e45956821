"""Profiles of clusters: what is read, what a stage asks for, and what a mistake is called."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml

from mar_bench.cli.cluster import _profile_text
from mar_bench.cluster.jobs import TABLE, build_graph
from mar_bench.cluster.profile import (
    OURS,
    STAGES,
    DebugProfile,
    ProcessesProfile,
    Resources,
    SlurmProfile,
    load_profile,
    minutes,
    profiles_dir,
)
from mar_bench.cluster.slurm import _executor, sbatch_parameters, script
from mar_bench.cluster.submit import scripts
from mar_bench.config.parse import KeyPathError
from mar_bench.pipeline.graph import jobs_for
from mar_bench.pipeline.store import Places
from mar_bench.utils.errors import UserError
from tests.made_up_cluster import runs_of

NAMES = sorted(path.stem for path in profiles_dir().glob("*.yaml"))
CODE, FOLDER = Path("/runs/code/abc"), Path("/runs/submissions/new")


def written(folder: Path, **tree: object) -> str:
    """A profile as a file."""
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({"kind": "slurm", **tree}))
    return str(path)


def mistake(file: str) -> str:
    with pytest.raises(UserError) as caught:
        load_profile(file)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    return message


def script_of(profile: SlurmProfile, stage: str = "train", elements: int = 1, dependency: str = "") -> str:
    return script(profile, FOLDER, CODE, sbatch_parameters(profile, stage, "name", dependency, CODE, "me"), elements)


# --- profiles that come along ---------------------------------------------------------------------------


def test_there_is_a_profile_of_each_kind():
    assert {type(load_profile(name)[1]) for name in NAMES} == {SlurmProfile, ProcessesProfile, DebugProfile}


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_loads_by_name_and_by_file(name):
    assert load_profile(name) == load_profile(str(profiles_dir() / f"{name}.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_is_the_same_after_it_was_written_down(name, tmp_path):
    _, profile = load_profile(name)
    (tmp_path / "profile.yaml").write_text(_profile_text(profile))
    assert load_profile(str(tmp_path / "profile.yaml")) == ("profile", profile)


def test_setup_keeps_what_the_shell_is_to_expand(tmp_path):
    lines = ("module load cuda", "export A=${B:-c}:$HOME", "source $(which it)")
    _, profile = load_profile(written(tmp_path, setup=list(lines)))
    (tmp_path / "again.yaml").write_text(_profile_text(profile))
    for text in (script_of(profile), script_of(load_profile(str(tmp_path / "again.yaml"))[1])):
        assert text.splitlines()[text.splitlines().index("# setup") + 1 :][:3] == list(lines)


def test_runs_may_name_home_and_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    monkeypatch.setenv("HOME", "/elsewhere/me")
    assert load_profile(written(tmp_path, runs="$SCRATCH/runs"))[1].runs == "/scratch/me/runs"
    assert load_profile(written(tmp_path, runs="${SCRATCH}/runs"))[1].runs == "/scratch/me/runs"
    assert load_profile(written(tmp_path, runs="~/runs"))[1].runs == "/elsewhere/me/runs"


# --- times ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [("30", 30), ("4:00:00", 240), ("1:30:01", 91), ("2-00:00:00", 2880), ("1-2", 1560), ("1-02:30", 1590),
     ("0:00:30", 1), ("100:00:00", 6000)],
)  # fmt: skip
def test_minutes_as_slurm_counts_them(text, expected):
    assert minutes(text) == expected


@pytest.mark.parametrize("text", ["0", "0:00:00", "10:00", "0:30", "", "an hour", "4h", "-5", "1:2:3", "1-", "1.5"])
def test_what_is_no_time(text):
    with pytest.raises(KeyPathError) as caught:
        minutes(text, "job.time")
    assert caught.value.path == "job.time" and repr(text) in caught.value.message


# --- what a stage asks for ------------------------------------------------------------------------------


def test_a_stage_asks_for_what_the_job_does_unless_it_says_otherwise():
    job = Resources(partition="a", gpus_per_node=2, exclusive=True, memory_gb=8, sbatch={"nice": 1, "comment": "x"})
    table = Resources(partition="b", gpus_per_node=0, exclusive=False, sbatch={"nice": 2})
    profile = SlurmProfile(job=job, stages={"table": table})
    merged = replace(table, memory_gb=8, sbatch={"nice": 2, "comment": "x"}, nodes=1, tasks_per_node=1, time="60")
    assert profile.resources("table") == merged
    assert profile.resources("measure") == replace(job, nodes=1, tasks_per_node=1, time="60")
    assert profile.stages["table"] == table, "the profile itself stays as it was read"


@pytest.mark.parametrize("stage", STAGES)
def test_stages_that_can_be_shared_have_a_process_for_each_gpu(stage):
    shared = stage in ("latents", "train", "sample")
    assert SlurmProfile(job=Resources(gpus_per_node=4)).resources(stage).tasks_per_node == (4 if shared else 1)
    assert SlurmProfile().resources(stage).tasks_per_node == 1
    if shared:
        profile = SlurmProfile(job=Resources(gpus_per_node=4), stages={stage: Resources(tasks_per_node=2)})
        assert profile.resources(stage).tasks_per_node == 2


# --- mistakes -------------------------------------------------------------------------------------------

MISTAKES = [
    ({"sample_shard": 2}, "sample_shard", "did you mean 'sample_shards'?"),
    ({"job": {"gpus": 2}}, "job.gpus", "unknown key"),
    ({"job": {"memory": 2}}, "job.memory", "did you mean 'memory_gb'?"),
    ({"stages": {"trian": {}}}, "stages.trian", "did you mean 'train'?"),
    ({"stages": {"xyz": {}}}, "stages.xyz", "known: "),
    ({"stages": {"train": {"node": 2}}}, "stages.train.node", "did you mean 'nodes'?"),
    ({"kind": "slrum"}, "kind", "did you mean 'slurm'?"),
    ({"pack": True, "sample_shards": 2}, "sample_shards", "pack: false"),
    ({"kind": "processes", "job": {}}, "job", "of kind 'processes'"),
    ({"kind": "debug", "parallel": 2}, "parallel", "of kind 'debug'"),
    ({"job": {"nodes": "two"}}, "job.nodes", "a whole number"),
    ({"job": {"nodes": 1.5}}, "job.nodes", "a whole number"),
    ({"job": {"exclusive": "yes"}}, "job.exclusive", "true or false"),
    ({"job": {"partition": 3}}, "job.partition", "a text"),
    ({"job": {"memory_gb": "64G"}}, "job.memory_gb", "a finite number"),
    ({"job": 3}, "job", "a block of keys"),
    ({"job": {"sbatch": ["a"]}}, "job.sbatch", "a block of keys"),
    ({"setup": "module load cuda"}, "setup", "expected a list"),
    ({"stages": ["train"]}, "stages", "a block of keys"),
    ({"job": {"time": 14400}}, "job.time", "write it in quotes, as in '4:00:00'"),
    ({"stages": {"train": {"time": 30}}}, "stages.train.time", "write it in quotes"),
    ({"job": {"time": "4h"}}, "job.time", "minutes, H:MM:SS or D-HH:MM:SS"),
    ({"stages": {"train": {"time": "0"}}}, "stages.train.time", "less than a minute"),
    ({"sample_shards": 0}, "sample_shards", "less than 1"),
    ({"array_parallelism": 0}, "array_parallelism", "less than 1"),
    ({"signal_seconds": 0}, "signal_seconds", "less than 1"),
    ({"max_timeouts": -1}, "max_timeouts", "less than 0"),
    ({"kind": "processes", "parallel": 0}, "parallel", "less than 1"),
    ({"job": {"nodes": 0}}, "job.nodes", "less than 1"),
    ({"stages": {"train": {"tasks_per_node": 0}}}, "stages.train.tasks_per_node", "less than 1"),
    ({"job": {"cpus_per_task": 0}}, "job.cpus_per_task", "less than 1"),
    ({"job": {"gpus_per_node": -1}}, "job.gpus_per_node", "less than 0"),
    ({"job": {"memory_gb": 0}}, "job.memory_gb", "not above 0"),
    ({"job": {"nodes": 2}}, "stages.tokenizer", "set nodes and tasks_per_node to 1 here"),
    ({"stages": {"measure": {"tasks_per_node": 2}}}, "stages.measure", "work for one process"),
    ({"stages": {"train": {"sbatch": {"mem": "8G"}}}}, "stages.train.sbatch.mem", "is set by memory_gb"),
    ({"job": {"sbatch": {"--gpus_per_node": 1}}}, "job.sbatch.--gpus_per_node", "is set by gpus_per_node"),
]  # fmt: skip


@pytest.mark.parametrize(("tree", "key", "way_out"), MISTAKES, ids=lambda value: value if type(value) is str else "")
def test_a_mistake_names_file_and_key_and_says_the_way_out(tree, key, way_out, tmp_path):
    file = written(tmp_path, **tree)
    message = mistake(file)
    assert message.startswith(f"{file}: {key}: ") and way_out in message


@pytest.mark.parametrize("option", OURS)
def test_an_option_that_another_key_sets_is_not_set_twice(option, tmp_path):
    assert f"is set by {OURS[option]}" in mistake(written(tmp_path, job={"sbatch": {option: 1}}))


def test_a_profile_that_is_not_there(tmp_path):
    assert "no such file" in mistake(str(tmp_path / "none.yaml"))
    assert "did you mean 'local'?" in mistake("locl") and "--cluster locl" in mistake("locl")


@pytest.mark.parametrize("text", ["", "- a\n", "job: {", "kind: slurm\njob: {time: 4:00:00}\n"])
def test_a_file_that_is_no_profile(text, tmp_path):
    (tmp_path / "mine.yaml").write_text(text)
    assert str(tmp_path / "mine.yaml") in mistake(str(tmp_path / "mine.yaml"))


# --- no dead keys ---------------------------------------------------------------------------------------

# under each of these values something that is sent must come out differently
OF_RESOURCES = {
    "partition": "long,short", "account": "grant7", "qos": "high", "constraint": "a100|h100", "nodes": 2,
    "tasks_per_node": 3, "gpus_per_node": 2, "gpu_type": "a100", "cpus_per_task": 7, "memory_gb": 12.5,
    "time": "7:00:00", "exclusive": True, "sbatch": {"nice": 5},
}  # fmt: skip
OF_SLURM = {
    "pack": True, "sample_shards": 3, "array_parallelism": 1, "signal_seconds": 77, "max_timeouts": 3,
    "python": "singularity exec image python", "setup": ("module load cuda",), "job": Resources(nodes=2),
    "stages": {"train": Resources(nodes=2)},
}  # fmt: skip
ELSEWHERE = {
    "kind": "chosen by it: the class", "runs": "test_submit.py", "device": "test_submit.py",
    "parallel": "test_submit.py",
}  # fmt: skip


def sent(profile) -> list:
    """The batch scripts of a row, and the times a job may come back."""
    stages = jobs_for(runs_of(), Places(Path("/nowhere"), Path("/nowhere")))
    graph = build_graph(stages, profile.pack, profile.sample_shards, {})
    if not isinstance(profile, SlurmProfile):
        return [(job.title, job.needs) for job in graph]
    texts = [text for _, _, text in scripts(FOLDER, CODE, graph, profile, "me", "name")]
    return [texts, _executor(profile, FOLDER, CODE, {}).max_num_timeout]


@pytest.mark.parametrize("name", [f.name for f in fields(SlurmProfile) if f.name not in ELSEWHERE])
def test_a_key_of_a_profile_changes_what_is_sent(name):
    base = SlurmProfile(sample_shards=1 if name == "pack" else 2)
    assert sent(base) != sent(replace(base, **{name: OF_SLURM[name]})), f"{name} is a dead key"


@pytest.mark.parametrize("kind", [ProcessesProfile, DebugProfile])
def test_a_key_of_a_profile_without_slurm_changes_the_graph(kind):
    for name in [f.name for f in fields(kind) if f.name not in ELSEWHERE]:
        base = kind(pack=False)
        assert sent(base) != sent(replace(base, **{name: OF_SLURM[name]})), f"{name} is a dead key"


@pytest.mark.parametrize("block", ["job", "train"])
@pytest.mark.parametrize("name", [f.name for f in fields(Resources)])
def test_a_resource_changes_the_script(name, block):
    def profile(wants: Resources) -> SlurmProfile:
        return SlurmProfile(job=wants) if block == "job" else SlurmProfile(stages={"train": wants})

    base = Resources(gpus_per_node=1)
    other = script_of(profile(replace(base, **{name: OF_RESOURCES[name]})))
    assert script_of(profile(base)) != other, f"{name} is a dead key"


@pytest.mark.parametrize(
    ("wants", "line"),
    [
        ({"partition": "long"}, "--partition=long"),
        ({"account": "grant7"}, "--account=grant7"),
        ({"qos": "high"}, "--qos=high"),
        ({"constraint": "a100|h100"}, "--constraint='a100|h100'"),
        ({"nodes": 2}, "--nodes=2"),
        ({"tasks_per_node": 3}, "--ntasks-per-node=3"),
        ({"gpus_per_node": 2}, "--gpus-per-node=2"),
        ({"gpus_per_node": 2, "gpu_type": "a100"}, "--gres=gpu:a100:2"),
        ({"cpus_per_task": 7}, "--cpus-per-task=7"),
        ({"memory_gb": 12.5}, "--mem=12800M"),
        ({"memory_gb": 4, "tasks_per_node": 3}, "--mem=12288M"),
        ({"time": "7:00:00"}, "--time=420"),
        ({"exclusive": True}, "--exclusive"),
        ({"sbatch": {"mail-type": "FAIL"}}, "--mail-type=FAIL"),
        ({"sbatch": {"hold": True}}, "--hold"),
        ({}, "--requeue"),
        ({}, "--kill-on-invalid-dep=yes"),
        ({}, "--signal=USR2@120"),
        ({}, "--dependency=afterok:7"),
        ({}, "--array=0-2%3"),
    ],
)
def test_what_a_resource_is_in_the_script(wants, line):
    text = script_of(SlurmProfile(job=Resources(**wants)), elements=3, dependency="afterok:7")
    assert f"#SBATCH {line}" in text.splitlines()


def test_what_nobody_has_asked_for_is_not_in_the_script():
    options = {line.partition("--")[2].partition("=")[0] for line in script_of(SlurmProfile()).splitlines()[3:]}
    for option in ("partition", "account", "qos", "mem", "gpus-per-node", "gres", "cpus-per-task", "exclusive", "wckey",
                   "dependency", "array"):  # fmt: skip
        assert option not in options


def test_the_code_and_the_command_go_along():
    lines = script_of(SlurmProfile(python="my python")).splitlines()
    assert "export PYTHONPATH=/runs/code/abc${PYTHONPATH:+:$PYTHONPATH}" in lines
    assert "export MAR_BENCH_COMMAND=me" in lines
    assert any("my python -u /runs/code/abc/start_job.py" in line for line in lines)


@pytest.mark.parametrize("value", [False, None])
def test_an_option_that_is_off_in_a_stage_is_left_out(value):
    profile = SlurmProfile(job=Resources(sbatch={"hold": True}), stages={"train": Resources(sbatch={"hold": value})})
    assert "--hold" not in script_of(profile) and "--hold" in script_of(profile, "table")


def test_an_option_with_its_dashes_is_refused_or_understood(tmp_path):
    try:
        _, profile = load_profile(written(tmp_path, job={"sbatch": {"--mail-type": "FAIL"}}))
    except UserError as error:
        assert "job.sbatch.--mail-type" in str(error)
    else:
        assert "#SBATCH --mail-type=FAIL" in script_of(profile).splitlines()


@pytest.mark.parametrize("option", ["parsable", "wait", "test-only", "ntasks"])
def test_an_option_that_would_break_the_submission_is_refused(option, tmp_path):
    assert f"job.sbatch.{option}" in mistake(written(tmp_path, job={"sbatch": {option: True}}))


def test_every_stage_has_resources_of_its_own_in_the_graph():
    assert TABLE in STAGES
    stages = jobs_for(runs_of(), Places(Path("/nowhere"), Path("/nowhere")))
    assert {job.kind for job in build_graph(stages, False, 1, {})} == set(STAGES)
