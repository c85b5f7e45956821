"""From stages to cluster jobs: which share a job, what waits for what, what is sent as one array."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from mar_bench.cluster.jobs import ClusterJob, arrays, build_graph
from mar_bench.cluster.ledger import new_submission
from mar_bench.cluster.send import batch_scripts, dependency
from mar_bench.config.ids import plan_runs
from mar_bench.pipeline.graph import jobs_for
from mar_bench.pipeline.store import Places
from tests.made_up_cluster import EXPERIMENT, PROFILE, Lab, runs_of

NOWHERE = Places(Path("/nowhere"), Path("/nowhere"))
ALL = jobs_for(plan_runs(EXPERIMENT), NOWHERE)
ROW = jobs_for(runs_of(), NOWHERE)
WAYS = pytest.mark.parametrize(("pack", "shards"), [(True, 1), (False, 1), (False, 3)])


def before(graph: list[ClusterJob], key: str) -> set[str]:
    """Keys of all jobs that have ended when a job starts."""
    jobs = {job.key: job for job in graph}
    found: set[str] = set()
    todo = [key]
    while todo:
        job = jobs[todo.pop()]
        new = {k for k in (*job.needs, *job.follows) if not k.startswith("@")} - found
        found |= new
        todo += new
    return found


def ids(job: ClusterJob) -> list[str]:
    return [stage.id for stage in job.stages]


@WAYS
def test_every_stage_is_in_one_job_that_waits_for_its_needs(pack, shards):
    graph = build_graph(ALL, pack, shards, {})
    assert [job.key for job in graph] == [str(i) for i in range(len(graph))]
    assert Counter(i for job in graph if job.shard is None for i in ids(job)) == {stage.id: 1 for stage in ALL}
    parts = Counter((job.shard, i) for job in graph if job.shard is not None for i in ids(job))
    samples = [stage.id for stage in ALL if stage.kind == "sample"]
    assert parts == ({((j, shards), i): 1 for j in range(shards) for i in samples} if shards > 1 else {})
    home = {i: job.key for job in graph if job.shard is None for i in ids(job)}
    needs = {stage.id: stage.needs for stage in ALL}
    for job in graph:
        for n, stage_id in enumerate(ids(job)):
            for need in needs[stage_id]:
                assert home[need] in before(graph, job.key) or need in ids(job)[:n]
    assert graph[-1].follows == tuple(job.key for job in graph[:-1]) and graph[-1].needs == ()
    for job in graph[:-1]:
        assert not job.follows and len(set(job.needs)) == len(job.needs)
        assert all(int(key) < int(job.key) for key in job.needs)


def test_an_evaluation_waits_for_all_its_shards():
    graph = build_graph(ROW, False, 3, {})
    shards = {job.key for job in graph if job.shard}
    (finish,) = [job for job in graph if [stage.kind for stage in job.stages] == ["sample", "generation"]]
    assert len(shards) == 3 and shards <= set(finish.needs) and finish.kind == "measure"
    titles = [job.title for job in graph]
    assert {"tokenizer kl", "sample mar/diff/guided seed 0 2/3", "sample mar/diff/guided seed 0 +1"} <= set(titles)
    assert titles[-1] == "table" and len(set(titles)) == len(titles)


def test_what_shares_a_job_and_whose_resources_it_requests():
    packed = {job.kind: [stage.kind for stage in job.stages] for job in build_graph(ROW, True, 1, {})}
    assert packed == {
        "extractor": ["extractor"], "latents": ["tokenizer", "latents"], "train": ["train", "sample", "generation"],
        "speed": ["reconstruction", "speed"],
    }  # fmt: skip
    single = [(job.kind, [stage.kind for stage in job.stages]) for job in build_graph(ROW, False, 1, {})]
    assert sorted(single) == [
        ("extractor", ["extractor"]), ("latents", ["latents"]), ("measure", ["generation"]),
        ("measure", ["reconstruction"]), ("sample", ["sample"]), ("speed", ["speed"]), ("table", []),
        ("tokenizer", ["tokenizer"]), ("train", ["train"]),
    ]  # fmt: skip
    assert [job.kind for job in build_graph([], True, 1, {})] == ["table"]


@pytest.mark.parametrize("pack", [True, False])
def test_stages_of_another_submission_are_waited_for_by_its_ids(pack):
    theirs = {stage.id: f"{n}_0" for n, stage in enumerate(ROW) if stage.kind in ("tokenizer", "latents", "extractor")}
    theirs[next(stage.id for stage in ROW if stage.kind == "train")] = "77_1"
    mine = {stage.id: stage for stage in ROW if stage.id not in theirs}
    graph = build_graph(list(mine.values()), pack, 1, theirs)
    assert {i for job in graph for i in ids(job)} == mine.keys()
    for job in graph[:-1]:
        outside = {f"@{theirs[need]}" for i in ids(job) for need in mine[i].needs if need in theirs}
        assert outside == {key for key in job.needs if key.startswith("@")}
    assert {f"@{i}" for i in theirs.values()} <= set(graph[-1].follows)


@WAYS
@pytest.mark.parametrize("most", [2, 1000])
def test_arrays_hold_every_job_once_after_its_dependencies(pack, shards, most):
    graph = build_graph(ALL, pack, shards, {})
    groups = arrays(graph, most)
    assert sorted(int(job.key) for group in groups for job in group) == list(range(len(graph)))
    sent: set[str] = set()
    for group in groups:
        assert len(group) <= most and len({(job.kind, job.needs, job.follows) for job in group}) == 1
        assert {key for job in group for key in (*job.needs, *job.follows)} <= sent
        sent |= {job.key for job in group}
    assert groups[-1] == [graph[-1]]
    assert len(groups) == 5 or not pack or most < 1000, "sixteen rows take few calls of sbatch"


def test_a_dependency_names_a_whole_array_by_its_one_id():
    array = [ClusterJob(str(i), "sample", slurm_id=f"10_{i}") for i in range(3)]
    jobs = {job.key: job for job in [*array, ClusterJob("3", "train", slurm_id="11")]}

    def after(needs: tuple[str, ...], follows: tuple[str, ...] = ()) -> str:
        return dependency(ClusterJob("4", "table", (), needs, follows), jobs, [array])

    assert after(()) == "" and after(("0", "1", "2", "3")) == "afterok:11:10"
    assert after(("0", "2", "@9_1"), ("3",)) == "afterok:10_0:10_2:9_1,afterany:11"


def test_scripts_of_a_dry_run_name_the_jobs_that_they_wait_for(lab: Lab):
    submission = new_submission("x", lab.request(), build_graph(ROW, False, 3, {}), (), 0)
    texts = {group[0].title: text for group, text in batch_scripts(submission, PROFILE)}
    assert "--dependency" not in texts["tokenizer kl"]
    assert "#SBATCH --dependency='afterok:<0>'" in texts["latents kl"]
    assert "#SBATCH --dependency='afterany:<" in texts["table"]
