"""Which records belong to a row, the tidy frame of them, and means over seeds."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from statistics import stdev

import pytest

from mar_bench.config.experiment import load_experiment
from mar_bench.config.ids import CHOICE_SEED, IdCheck
from mar_bench.records.record import RecordFolder, write_record
from mar_bench.report import frames
from mar_bench.report.stats import Spread, design, spread
from mar_bench.utils.errors import UserError
from tests.made_up import as_before, by_id, everything, generation, generations, made_up, reconstruction, speed

ROW = "mar/diff/guided"
NAN = math.nan


# --- which records belong to a row ----------------------------------------------------------------------


def test_a_row_has_its_records_on_every_seed_in_order(table1):
    made = list(generations(table1, seeds=(0, 1, 2), sampling_seeds=(0, 1)).values())
    random.Random(0).shuffle(made)
    reseeded = load_experiment("table1", "tiny", ["train.seed=5", "sampling.seed=6"])
    for experiment in (table1, reseeded):
        selection = frames.select(experiment, by_id(*made))
        for row in table1.rows:
            expected = [(t, s) for t in (0, 1, 2) for s in (0, 1)]
            assert [r.seeds for r in selection[row]["generation"]] == expected
        chosen = [r.id for tasks in selection.values() for r in tasks["generation"]]
        assert sorted(chosen) == sorted(r.id for r in made)


def test_the_seed_of_choices_belongs_to_no_table(tmp_path):
    swept = made_up("swept")
    made = by_id(*(generation(swept, "fixed", 0, s, 5.0) for s in (0, CHOICE_SEED)))
    assert pairs(swept, made, "fixed") == [(0, 0)] and pairs(swept, made, "best") == []


@pytest.mark.parametrize("task", ["generation", "reconstruction", "speed"])
def test_a_record_with_another_cell_is_refused_and_not_left_out(task, table1, tmp_path):
    rows = [ROW, "mar/ce/guided"]
    made = [*generations(table1, lambda *_: 5.0, seeds=(0, 7), rows=rows).values()]
    made += [reconstruction(table1, ROW), *(speed(table1, row) for row in rows)]
    made.sort(key=lambda record: (record.task == task, record.seeds))
    *others, wrong = made
    for record in (*others, replace(wrong, ids={**wrong.ids, "cell_id": "0" * 12})):
        path = write_record(tmp_path, record)
    with pytest.raises(UserError, match=f"{path}: its cell_id 000000000000 is not that of its spec"):
        frames.select(table1, RecordFolder(tmp_path, IdCheck()))


def pairs(experiment, made, row: str = ROW) -> list[tuple[int, int]]:
    return [record.seeds for record in frames.select(experiment, made)[row]["generation"]]


def test_undeclared_seeds_count_only_if_all_rows_with_results_have_them(table1):
    declared = replace(table1, seeds={"training": [0]})
    of_two = generations(table1, lambda *_: 5.0, seeds=(0, 7), rows=[ROW, "mar/ce/guided"])
    assert pairs(declared, of_two) == [(0, 0), (7, 0)]
    failed = by_id(generation(table1, "mar/ce/unguided", 0, 0, None))
    assert pairs(declared, {**of_two, **failed}) == [(0, 0), (7, 0)]
    third = by_id(generation(table1, "mar/ce/unguided", 0, 0, 5.0))
    assert pairs(declared, {**of_two, **third}) == [(0, 0)]
    assert pairs(replace(table1, seeds={}), {**of_two, **third}) == [(0, 0), (7, 0)]
    alone = by_id(generation(table1, ROW, 3, 0, None))
    assert pairs(declared, {**of_two, **third, **alone}) == [(0, 0)]


# --- the frame ------------------------------------------------------------------------------------------


def test_every_number_is_a_line(table1):
    made = everything(table1)
    frame = frames.frame(table1, made)
    mine = frame[frame["row"] == ROW]
    (fd,) = mine[(mine["metric"] == "fd") & (mine["train_seed"] == 1)].to_dict("records")
    record = generation(table1, ROW, 1, 0, 6.6)
    assert (fd["record"], fd["key"], fd["value"]) == (record.id, "fd_mnist5k", pytest.approx(6.6))
    assert fd["se"] == pytest.approx(0.02 * fd["value"])
    expected = {"experiment": "table1", "scale": "tiny", "variant": "mar", "loss": "diff", "guidance": "guided"}
    expected |= {"task": "generation", "setting": "", "sampling_seed": 0, "num_images": 1000, "paper": 1.98}
    assert {key: fd[key] for key in expected} == expected and (fd["status"], fd["warnings"]) == ("done", "")
    once = mine.drop_duplicates("metric").set_index("metric")["value"]
    expected = {"rfd": 2.6, "fd:real": 0.45, "psnr": 18.0, "parameters": 300_000, "loss_heldout": 2.7, "copied": 0.02}
    assert {metric: once[metric] for metric in expected} == expected
    assert once["seconds_per_image"] == speed(table1, ROW).metrics["seconds_per_image"]
    assert mine.groupby("metric").size()[["fd", "kid", "rfd", "seconds_per_image"]].tolist() == [3, 3, 1, 1]


def test_an_id_loads_the_experiment_and_the_default_records(monkeypatch, tmp_path):
    from mar_bench import frame, table
    from mar_bench.records.record import write_record

    monkeypatch.setenv("MAR_BENCH_RECORDS", str(tmp_path))
    smoke = load_experiment("table1", "smoke")
    write_record(tmp_path, generation(smoke, ROW, 0, 0, 5.0))
    found = frame("table1", scale="smoke")
    assert set(found["row"]) == {ROW} and set(found["scale"]) == {"smoke"}
    assert table("table1", scale="smoke").status(ROW) == "done"


def test_every_public_name_resolves():
    import mar_bench

    assert all(callable(getattr(mar_bench, name)) for name in mar_bench._PUBLIC)


def test_the_frame_keeps_failures_and_warnings(table1):
    odd = generation(table1, ROW, 0, 0, 5.0)
    odd.protocol.update(singular=True, label_mode="unbalanced")
    odd.protocol["samples"]["duplicates"] = 3
    frame = frames.frame(table1, by_id(odd, generation(table1, ROW, 1, 0, None)))
    done, failed = (frame[(frame["metric"] == "fd") & (frame["train_seed"] == t)].iloc[0] for t in (0, 1))
    assert done["warnings"] == "singular, 3 repeated images, labels unbalanced"
    assert failed["status"] == "failed" and math.isnan(failed["value"]) and "not finite" in failed["error"]
    assert frames.spreads(frame)[ROW, "fd"].n == 1


def test_spreads_are_over_the_done_runs_with_a_number(table1):
    made = generations(table1, lambda row, t, s: 10.0 * t + s, sampling_seeds=(0, 1))
    made = {k: replace(r, status="failed") if r.seeds[0] == 1 else r for k, r in made.items()}
    found = frames.spreads(frames.frame(table1, made))[ROW, "fd"]
    assert found == spread({(0, 0): 0.0, (0, 1): 1.0, (2, 0): 20.0, (2, 1): 21.0})
    old = by_id(generation(table1, ROW, 0, 0, 5.0), as_before(generation(table1, ROW, 1, 0, 5.0)))
    kid = frames.spreads(frames.frame(table1, old))[ROW, "kid"]
    assert (kid.mean, kid.sd, kid.over) == (pytest.approx(0.005), pytest.approx(0.0001), "images")


# --- means over seeds -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (  # sampling seeds are averaged within trainings first
            {(0, 0): 1.0, (0, 1): 3.0, (1, 0): 4.0, (1, 1): 6.0},
            Spread(3.5, stdev([2, 5]), 2, "training", (0, 1), (0, 1), math.sqrt(2)),
        ),
        (  # trainings have equal weight; the std of samplings is pooled
            {(0, 0): 1.0, (0, 1): 3.0, (0, 2): 5.0, (1, 0): 10.0, (1, 1): 14.0, (2, 0): 7.0},
            Spread(22 / 3, stdev([3, 12, 7]), 3, "training", (0, 1, 2), (0, 1, 2), math.sqrt((2 * 4 + 8) / 3)),
        ),
        (
            {(7, 0): 1.0, (7, 1): 2.0, (7, 2): 6.0},
            Spread(3.0, stdev([1, 2, 6]), 3, "sampling", (7,), (0, 1, 2), stdev([1, 2, 6])),
        ),
        ({(0, 0): 1.0, (1, 0): 3.0}, Spread(2.0, stdev([1, 3]), 2, "training", (0, 1), (0,), None)),
        ({(0, 3): 5.0, (1, 3): NAN}, Spread(5.0, None, 1, None, (0,), (3,))),
    ],
)
def test_spread(values, expected):
    found = spread(values)
    assert found == replace(
        expected,
        mean=pytest.approx(expected.mean),
        sd=expected.sd and pytest.approx(expected.sd),
        sd_sampling=expected.sd_sampling and pytest.approx(expected.sd_sampling),
    )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({(0, 0): 1, (1, 0): 2}, "over 2 training runs (training seeds 0, 1; sampling seed 0)"),
        ({(0, 3): 1, (0, 4): 2, (1, 3): 3}, "(training seeds 0, 1; sampling seeds 3, 4, averaged)"),
        ({(5, 0): 1, (5, 1): 2}, "over 2 samplings of one training run (training seed 5; sampling seeds 0, 1)"),
    ],
)
def test_the_design_names_what_the_std_is_over(values, words):
    assert words in design(spread(values, dict.fromkeys(values, 0.1)))
