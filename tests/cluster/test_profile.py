"""Cluster profiles: what is read, what a stage requests, and how mistakes are reported."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml

from mar_bench.cluster.jobs import build_graph
from mar_bench.cluster.ledger import Request, Submission, new_submission
from mar_bench.cluster.profile import BLOCKS, MULTIPROCESS, Profile, Resources, load_profile
from mar_bench.cluster.send import batch_scripts
from mar_bench.cluster.slurm import executor_for
from mar_bench.pipeline.graph import jobs_for
from mar_bench.pipeline.store import Places
from mar_bench.utils.errors import UserError
from tests.made_up_cluster import runs_of

CLUSTERS = Path(__file__).parents[2] / "slurm/clusters"
REQUEST = Request("me", ("table1",), False, "smoke", None, None, None, "/runs", "/records", "/reports")
CODE = "/runs/submissions/abc/code"
STAGES = jobs_for(runs_of(), Places(Path("/nowhere"), Path("/nowhere")))


def written(folder: Path, **tree: object) -> str:
    """A profile as a file."""
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({"kind": "slurm", **tree}))
    return str(path)


def mistake(file: str) -> str:
    with pytest.raises(UserError) as caught:
        load_profile(file)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def script_of(profile: Profile, stage: str = "train", elements: int = 1, dependency: str = "") -> str:
    submission = Submission("abc", "name", REQUEST, {}, (), 0)
    executor = executor_for(profile, submission, stage, dependency)
    executor.parameters |= {"map_count": elements} if elements > 1 else {}
    return executor._make_submission_file_text(executor._submitit_command_str, "")


@pytest.mark.parametrize("name", ["gpu", "local"])
def test_profiles_load_by_name_and_by_file(name):
    assert load_profile(str(CLUSTERS / f"{name}.yaml")) == load_profile(name)


def test_setup_keeps_shell_variables(tmp_path):
    lines = ["module load cuda", "export A=${B:-c}:$HOME", "source $(which it)"]
    text = script_of(load_profile(written(tmp_path, setup=lines))).splitlines()
    assert text[text.index("# setup") + 1 :][:3] == lines


def test_runs_may_name_home_and_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    monkeypatch.setenv("HOME", "/elsewhere/me")
    assert load_profile(written(tmp_path, runs="${SCRATCH}/runs")).runs == "/scratch/me/runs"
    assert load_profile(written(tmp_path, runs="~/runs")).runs == "/elsewhere/me/runs"
    assert "not set" in mistake(written(tmp_path, runs="$NO_SUCH_VARIABLE/runs"))


def test_stages_that_ranks_share_have_a_process_per_gpu():
    assert {"latents", "train", "sample"} == MULTIPROCESS and set(BLOCKS) > MULTIPROCESS
    for stage in BLOCKS:
        tasks = Profile(job=Resources(gpus_per_node=4)).resources(stage).tasks_per_node
        assert tasks == (4 if stage in MULTIPROCESS else 1)
    assert {job.kind for job in build_graph(STAGES, False, 1, {})} == set(BLOCKS)


MISTAKES = [
    ({"sample_shard": 2}, "sample_shard", "did you mean 'sample_shards'?"),
    ({"stages": {"trian": {}}}, "stages.trian", "did you mean 'train'?"),
    ({"pack": True, "sample_shards": 2}, "sample_shards", "pack: false"),
    ({"kind": "pbs"}, "kind", "not one of slurm"),
    ({"job": {"time": 14400}}, "job.time", "expected a text"),
    ({"stages": {"train": {"time": "0"}}}, "signal_seconds", "not below the time of stage train"),
    ({"job": {"time": "10:00"}}, "job.time", "write minutes"),
    ({"job": {"time": "1:2:3"}}, "job.time", "write minutes"),
    ({"job": {"gpu_type": "a100"}}, "stages.tokenizer.gpu_type", "gpus_per_node"),
    ({"signal_seconds": 3600}, "signal_seconds", "not below the time of stage"),
    ({"job": {"nodes": 2}}, "stages.tokenizer", "set nodes and tasks_per_node to 1 here"),
    ({"stages": {"train": {"sbatch": {"--job_name": "8G"}}}}, "stages.train.sbatch.--job_name", "is set by"),
    ({"job": {"sbatch": {"dependency": 1}}}, "job.sbatch.dependency", "is set by mar-bench submit"),
    *(({"job": {"sbatch": {name: "1"}}}, f"job.sbatch.{name}", "is no option of sbatch, or is set by mar-bench submit")
      for name in ("-p", "p", "-A", "-a", "-d", "--depen", "arr", "partition", "nodes", "-N", "-y", "mem x", "")),
    *(({"job": {"sbatch": {"comment": value}}}, "job.sbatch.comment", "put it in quotes")
      for value in (True, False, 1.5, None, ["a"], {"a": 1}, "two\nlines")),
    ({"job": {"time": "9" * 6000}}, "job.time", "is no time limit"),
    ({"job": {"nodes": 10**9}}, "job.nodes", "between 1 and 10,000"),
]  # fmt: skip


@pytest.mark.parametrize(("tree", "key", "way_out"), MISTAKES, ids=lambda value: value if type(value) is str else "")
def test_a_mistake_names_the_file_the_key_and_the_way_out(tree, key, way_out, tmp_path):
    file = written(tmp_path, **tree)
    message = mistake(file)
    assert message.startswith(f"{file}: {key}: ") and way_out in message


YAML11 = ["time-min: 1:30:00", "begin: 16:00", "deadline: 12:30:00", "nice: 0100"]


@pytest.mark.parametrize("option", YAML11)
def test_values_of_sbatch_that_yaml_may_read_differently_are_refused(option, tmp_path):
    (file := tmp_path / "mine.yml").write_text(f"kind: slurm\njob: {{sbatch: {{{option}}}}}\n")
    value = option.partition(" ")[2]
    assert f"YAML readers disagree on '{value}'" in mistake(str(file)) and "in quotes" in mistake(str(file))
    file.write_text(f"kind: slurm\njob: {{sbatch: {{{option.replace(value, repr(value))}}}}}\n")
    assert f"#SBATCH --{option.partition(':')[0]}={value}" in script_of(load_profile(str(file)))


def test_values_of_sbatch_arrive_as_they_are_written(tmp_path):
    (file := tmp_path / "mine.yml").write_text("""kind: slurm
job: {sbatch: {comment: yes, reservation: off, -w: n1, --mail_type: FAIL, gpus: 2, hold: "", nice: 5}}
stages: {train: {sbatch: {nodelist: n2}}}
""")
    lines = script_of(load_profile(str(file))).splitlines()
    for option in ("comment=yes", "reservation=off", "nodelist=n2", "mail-type=FAIL", "gpus=2", "hold", "nice=5"):
        assert f"#SBATCH --{option}" in lines


@pytest.mark.parametrize("text", ["slurm", "job: {", "kind: slurm\njob: {time: 4:00:00}\n"])
def test_a_file_that_is_not_a_profile(text, tmp_path):
    assert "no such file" in mistake(str(tmp_path / "mine.yaml")) and "did you mean 'local'?" in mistake("locl")
    (tmp_path / "mine.yaml").write_text(text)
    assert str(tmp_path / "mine.yaml") in mistake(str(tmp_path / "mine.yaml"))


# each of these values changes what is sent
OF_RESOURCES = {
    "partition": "long,short", "account": "grant7", "qos": "high", "constraint": "a100|h100", "nodes": 2,
    "tasks_per_node": 3, "gpus_per_node": 2, "gpu_type": "a100", "cpus_per_task": 7, "memory_gb": 12.5,
    "time": "7:00:00", "exclusive": True, "sbatch": {"nice": 5},
}  # fmt: skip
OF_SLURM = {
    "pack": True, "sample_shards": 3, "array_parallelism": 1, "signal_seconds": 77, "python": "singularity exec python",
    "setup": ("module load cuda",), "job": Resources(nodes=2), "stages": {"train": Resources(nodes=2)},
}  # fmt: skip
ELSEWHERE = {"kind", "runs", "device", "max_timeouts"}  # test_submit.py, and the tests on a real Slurm


def sent(profile: Profile) -> list[str]:
    graph = build_graph(STAGES, profile.pack, profile.sample_shards, {})
    submission = replace(new_submission("x", REQUEST, graph, (), 0), id="abc", name="name")
    return [text for _, text in batch_scripts(submission, profile)]


@pytest.mark.parametrize("name", [f.name for f in fields(Profile) if f.name not in ELSEWHERE])
def test_a_key_of_a_profile_changes_what_is_sent(name):
    base = Profile(sample_shards=1 if name == "pack" else 2)
    assert sent(base) != sent(replace(base, **{name: OF_SLURM[name]})), f"{name} is a dead key"


@pytest.mark.parametrize("name", [f.name for f in fields(Resources)])
def test_a_resource_changes_the_script(name):
    base = Resources(gpus_per_node=1)
    other = replace(base, **{name: OF_RESOURCES[name]})
    plain = script_of(Profile(job=base))
    assert script_of(Profile(job=other)) != plain != script_of(Profile(stages={"train": other}))


WANTS = [
    ({"constraint": "a100|h100"}, "--constraint='a100|h100'"), ({"gpus_per_node": 2}, "--gpus-per-node=2"),
    ({"gpus_per_node": 2, "gpu_type": "a100"}, "--gres=gpu:a100:2"), ({"time": "7:00:00"}, "--time=420"),
    ({"memory_gb": 4, "tasks_per_node": 3}, "--mem=12288M"), ({"sbatch": {"--hold": True}}, "--hold"),
    ({"time": "1-00:30:01"}, "--time=1471"), ({}, "--requeue"), ({}, "--kill-on-invalid-dep=yes"),
    ({}, "--signal=USR2@120"), ({}, "--dependency=afterok:7"), ({}, "--array=0-2%3"),
]  # fmt: skip


@pytest.mark.parametrize(("wants", "line"), WANTS)
def test_resources_become_sbatch_options(wants, line):
    text = script_of(Profile(job=Resources(**wants)), elements=3, dependency="afterok:7")
    assert f"#SBATCH {line}" in text.splitlines()


def test_the_script_has_the_code_the_command_and_nothing_unrequested():
    text = script_of(Profile(python="my python"))
    assert f"export PYTHONPATH={CODE}${{PYTHONPATH:+:$PYTHONPATH}}" in text.splitlines()
    assert "export MAR_BENCH_COMMAND=me" in text and f"my python -u {CODE}/start_job.py" in text
    options = {line.partition("--")[2].partition("=")[0] for line in text.splitlines() if line.startswith("#SBATCH")}
    assert not options & {"partition", "account", "qos", "mem", "gpus-per-node", "gres", "exclusive", "wckey", "array"}
    profile = Profile(job=Resources(sbatch={"hold": True}), stages={"train": Resources(sbatch={"hold": False})})
    assert "--hold" not in script_of(profile) and "--hold" in script_of(profile, "table")
