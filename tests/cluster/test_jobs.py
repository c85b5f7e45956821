"""From stages to jobs of a cluster: which share a job, what waits for what, what is sent as one array."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from mar_bench.cluster.jobs import ClusterJob, arrays, build_graph, leaves_alone, resource_stage
from mar_bench.cluster.slurm import dependency
from mar_bench.cluster.submit import _ids, scripts
from mar_bench.config.ids import plan_runs
from mar_bench.pipeline.graph import Job, jobs_for
from mar_bench.pipeline.store import Places
from tests.made_up_cluster import EXPERIMENT, PROFILE, runs_of

NOWHERE = Places(Path("/nowhere"), Path("/nowhere"))
ALL = jobs_for(plan_runs(EXPERIMENT), NOWHERE)
ROW = jobs_for(runs_of(), NOWHERE)
WAYS = pytest.mark.parametrize(("pack", "shards"), [(True, 1), (False, 1), (False, 3)])


def waits_for(graph: list[ClusterJob], key: str) -> set[str]:
    """All that has ended when a job starts."""
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


# --- the graph ------------------------------------------------------------------------------------------


@WAYS
def test_every_stage_is_in_one_job_and_its_shards_beside_it(pack, shards):
    graph = build_graph(ALL, pack, shards, {})
    whole = Counter(i for job in graph if job.shard is None for i in ids(job))
    assert whole == {stage.id: 1 for stage in ALL}
    parts = Counter((job.shard, i) for job in graph if job.shard is not None for i in ids(job))
    samples = [stage.id for stage in ALL if stage.kind == "sample"]
    if not pack:
        assert parts == ({((j, shards), i): 1 for j in range(shards) for i in samples} if shards > 1 else {})
    assert [job.key for job in graph] == [str(i) for i in range(len(graph))]


@pytest.mark.parametrize(("pack", "shards"), [(True, 1), (False, 1), (False, 3)])
def test_what_a_stage_needs_is_done_before_it(pack, shards):
    graph = build_graph(ALL, pack, shards, {})
    home = {i: job.key for job in graph if job.shard is None for i in ids(job)}
    for job in graph:
        before = waits_for(graph, job.key)
        for n, stage in enumerate(job.stages):
            for need in stage.needs:
                assert home[need] in before or need in ids(job)[:n], f"{stage.title} starts before what it needs"


@WAYS
def test_nothing_waits_for_itself_or_for_what_is_sent_later(pack, shards):
    for job in build_graph(ALL, pack, shards, {}):
        assert all(int(key) < int(job.key) for key in (*job.needs, *job.follows))
        assert len(set(job.needs)) == len(job.needs)


@WAYS
def test_the_last_job_follows_all_others_and_needs_none(pack, shards):
    graph = build_graph(ALL, pack, shards, {})
    assert graph[-1].follows == tuple(job.key for job in graph[:-1]) and graph[-1].needs == ()
    assert all(not job.follows for job in graph[:-1])


def test_an_evaluation_waits_for_all_its_shards():
    graph = build_graph(ROW, False, 3, {})
    shards = {job.key for job in graph if job.shard}
    (finish,) = [job for job in graph if [stage.kind for stage in job.stages] == ["sample", "generation"]]
    assert len(shards) == 3 and shards <= set(finish.needs) and finish.kind == "measure"
    assert {job.shard for job in graph if job.shard} == {(0, 3), (1, 3), (2, 3)}


def test_what_shares_a_job():
    kinds = [[stage.kind for stage in job.stages] for job in build_graph(ROW, True, 1, {})]
    assert sorted(kinds) == [
        ["extractor"], ["reconstruction", "speed"], ["tokenizer", "latents"], ["train", "sample", "generation"]
    ]  # fmt: skip
    assert all(len(job.stages) <= 1 for job in build_graph(ALL, False, 1, {}))


@pytest.mark.parametrize(("pack", "last"), [(True, "speed"), (False, "table")])
def test_a_job_asks_for_the_resources_of_its_heaviest_stage(pack, last):
    graph = build_graph(ROW, pack, 1, {})
    assert graph[-1].kind == last
    for job in graph[:-1]:
        kinds = [resource_stage(stage.kind) for stage in job.stages]
        assert job.kind == next(kind for kind in ("train", "latents", "tokenizer", *kinds) if kind in kinds)
    assert resource_stage("generation") == resource_stage("reconstruction") == "measure"


def test_the_table_alone_asks_for_its_own():
    stages = [stage for stage in ROW if stage.kind not in ("speed", "reconstruction")]
    assert build_graph(stages, True, 1, {})[-1].kind == "table"
    assert [job.kind for job in build_graph([], True, 1, {})] == ["table"]


@pytest.mark.parametrize("pack", [True, False])
def test_stages_of_another_submission_are_waited_for_by_its_ids(pack):
    train = next(stage for stage in ROW if stage.kind == "train")
    theirs = {stage.id: f"{n}_0" for n, stage in enumerate(ROW) if stage.kind in ("tokenizer", "latents", "extractor")}
    theirs[train.id] = "77_1"
    mine = [stage for stage in ROW if stage.id not in theirs]
    graph = build_graph(mine, pack, 1, theirs)
    assert {i for job in graph for i in ids(job)} == {stage.id for stage in mine}
    for job in graph[:-1]:
        outside = {f"@{theirs[need]}" for stage in job.stages for need in stage.needs if need in theirs}
        assert outside == {key for key in job.needs if key.startswith("@")}
    sample = next(job for job in graph if job.stages[0].kind == "sample")
    assert "@77_1" in sample.needs
    assert {f"@{i}" for i in theirs.values()} <= set(graph[-1].follows)


def test_two_stages_of_one_job_elsewhere_are_waited_for_once():
    theirs = {stage.id: "7" for stage in ROW if stage.kind in ("tokenizer", "latents", "extractor", "train")}
    for job in build_graph([stage for stage in ROW if stage.id not in theirs], True, 1, theirs):
        assert max(Counter((*job.needs, *job.follows)).values()) == 1


def test_titles_say_what_a_job_does():
    titles = [job.title for job in build_graph(ROW, False, 3, {})]
    assert {"tokenizer kl", "sample mar/diff/guided seed 0 2/3", "generation mar/diff/guided seed 0"} <= set(titles)
    assert titles[-1] == "table" and len(set(titles)) == len(titles)
    assert "train mar/diff seed 0 +2" in [job.title for job in build_graph(ROW, True, 1, {})]


def test_only_records_are_waited_for_by_nobody():
    kinds = {stage.kind: leaves_alone([stage]) for stage in ALL}
    assert {kind for kind, alone in kinds.items() if alone} == {"generation", "reconstruction", "speed"}
    assert not leaves_alone(ROW)


# --- arrays ---------------------------------------------------------------------------------------------


@WAYS
@pytest.mark.parametrize("most", [1, 2, 1000])
def test_arrays_hold_every_job_once_alike_and_behind_what_they_wait_for(pack, shards, most):
    graph = build_graph(ALL, pack, shards, {})
    groups = arrays(graph, most)
    assert sorted(int(job.key) for group in groups for job in group) == list(range(len(graph)))
    sent: set[str] = set()
    for group in groups:
        assert len(group) <= most
        assert len({(job.kind, job.needs, job.follows) for job in group}) == 1
        assert {key for job in group for key in (*job.needs, *job.follows)} <= sent
        sent |= {job.key for job in group}
    assert groups[-1] == [graph[-1]], "the table comes last"


def test_jobs_that_are_alike_are_one_array_as_far_as_it_may_go():
    jobs = [ClusterJob(str(i), "sample") for i in range(5)]
    assert [len(group) for group in arrays(jobs, 2)] == [2, 2, 1]
    other = [*jobs, ClusterJob("5", "train"), ClusterJob("6", "sample", needs=("5",)), ClusterJob("7", "sample")]
    assert [[job.key for job in group] for group in arrays(other, 10)] == [["0", "1", "2", "3", "4", "7"], ["5"], ["6"]]


def test_a_table_of_sixteen_rows_takes_few_calls_of_sbatch():
    assert len(arrays(build_graph(ALL, True, 1, {}), 1000)) == 5


# --- dependencies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("needs", "follows", "word"),
    [
        ([], [], ""),
        (["1"], [], "afterok:1"),
        (["1", "2_3"], [], "afterok:1:2_3"),
        ([], ["4"], "afterany:4"),
        (["1"], ["4", "5"], "afterok:1,afterany:4:5"),
    ],
)
def test_dependency(needs, follows, word):
    assert dependency(needs, follows) == word


def test_an_array_that_is_meant_whole_is_one_id():
    array = [ClusterJob(str(i), "sample") for i in range(3)]
    known = {"0": "10_0", "1": "10_1", "2": "10_2", "3": "11"}
    assert sorted(_ids(("0", "1", "2", "3"), known, [array])) == ["10", "11"]
    assert sorted(_ids(("0", "2", "3", "@9_1"), known, [array])) == ["10_0", "10_2", "11", "9_1"]
    assert _ids((), known, [array]) == []


def test_scripts_name_the_jobs_that_they_wait_for():
    found = list(scripts(Path("/s"), Path("/c"), build_graph(ROW, False, 3, {}), PROFILE, "me", "x"))
    words = {group[0].title: words for group, words, _ in found}
    assert words["tokenizer kl"] == "" and words["latents kl"] == "afterok:<0>"
    assert words["table"].startswith("afterany:<")
    for _, words, text in found:
        assert (f"#SBATCH --dependency='{words}'" in text) == bool(words)


def test_a_stage_that_nobody_knows_is_not_waited_for():
    """It is done: jobs_for leaves it out of the needs, but another row's plan may still have it."""
    train = next(stage for stage in ROW if stage.kind == "train")
    alone = Job(train.kind, train.id, train.run, ("0" * 12,), 1.0)
    assert build_graph([alone], False, 1, {})[0].needs == ()
