"""The table and its caption: every cell, every warning, Markdown and CSV from the same records."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import pandas as pd
import pytest

from mar_bench.config.experiment import Experiment, load_experiment
from mar_bench.records.record import Record
from mar_bench.report import format as wording
from mar_bench.report.table.build import build
from tests.made_up import EXTRACTOR, as_before, base, by_id, everything, generation, generations, reconstruction, speed

ROW = "mar/diff/guided"


@pytest.fixture(scope="module")
def table1() -> Experiment:
    return load_experiment("table1", "tiny")


def first_table(text: str) -> list[list[str]]:
    """Heading and lines of the first Markdown table of a text, without the rule between them."""
    block = text[text.index("|") :].split("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block]
    return [rows[0], *rows[2:]]


def cell(experiment: Experiment, text: str, row: str, metric: str = "fd") -> str:
    """What the first table of ``text`` says of a row."""
    lines, columns = wording.lines_and_columns(experiment)
    metrics = experiment.layout["metrics"]
    printed = first_table(text)
    for i, line in enumerate(lines):
        for j, column in enumerate(columns):
            if wording.row_at(experiment, line, column) == row:
                labels = len(printed[0]) - len(columns) * len(metrics)
                return printed[1 + i][labels + j * len(metrics) + metrics.index(metric)]
    raise AssertionError(row)


def markdown(experiment: Experiment, *records: dict[str, Record]) -> str:
    return build(experiment, {k: v for made in records for k, v in made.items()}).markdown()


# --- the grid -------------------------------------------------------------------------------------------


def test_every_row_stands_beside_the_paper_s_number(table1):
    text = markdown(table1, everything(table1))
    assert len(first_table(text)) == 1 + len(table1.rows) / 2
    for row in table1.rows:
        paper = table1.paper[row]
        assert cell(table1, text, row) == f"{base(row) + 0.1:.2f} ± 0.10 ({paper['fd']:.2f})"
        ours = 9 - (base(row) + 0.1) / 10
        assert cell(table1, text, row, "is") == f"{ours:.2f} ± 0.01 ({paper['is']:.1f})"


def test_the_title_names_experiment_and_scale(table1):
    title = markdown(table1, {}).splitlines()[0]
    assert title == f"# {table1.title} (table1, tiny scale, not comparable with the paper's FID)"


def test_headings_are_narrow_and_never_call_our_distance_fid(table1):
    text = markdown(table1, everything(table1))
    headings = [line for line in text.splitlines() if line.startswith("| ") and "without CFG" in line]
    assert len(headings) == 1
    for heading in headings:
        assert "FID" not in heading
        assert all(len(word.strip()) <= 28 for word in heading.split("|"))
    assert "| FD-1k, without CFG (paper) | IS-1k, without CFG (paper) | FD-1k, with CFG (paper) |" in " ".join(
        headings[0].split()
    )


def test_paper_scale_is_headed_fid():
    paper = replace(load_experiment("table1", "paper"), sweeps={})
    text = markdown(paper, generations(paper))
    assert "FID, with CFG (paper)" in first_table(text)[0] and "(table1, paper scale)" in text
    assert "another data set" not in text and "FD and IS:" not in text


def test_a_cell_that_failed_says_so_and_a_missing_one_is_a_dash(table1):
    failed, missing = "mar/ce/guided", "mar/ce/unguided"
    rows = [row for row in table1.rows if row != missing]
    text = markdown(table1, generations(table1, lambda row, t, s: None if row == failed else 5.0, rows=rows))
    assert cell(table1, text, failed) == "FAILED (3.69)"
    assert cell(table1, text, missing) == "– (8.79)"
    assert cell(table1, text, ROW) == "5.00 ± 0.00 (1.98)"


def test_a_cell_with_some_failed_runs_is_marked(table1):
    made = generations(table1, lambda row, t, s: None if (row, t) == (ROW, 1) else 5.0 + t)
    text = markdown(table1, made)
    assert cell(table1, text, ROW) == "6.00 ± 1.41 † (1.98)"
    assert cell(table1, text, "mar/ce/guided") == "6.00 ± 1.00 (3.69)"
    assert text.count(f"- {ROW}, training seed 1, sampling seed 0: `ValueError: loss is not finite`\n") == 1
    assert "a second line" not in text


def test_errors_cannot_break_the_markdown(table1):
    failed = replace(generation(table1, ROW, 0, 0, None), error="`int` <class 'x'>" + "y" * 500)
    line = next(line for line in markdown(table1, by_id(failed)).splitlines() if line.startswith(f"- {ROW}"))
    assert line.count("`") == 2 and line.endswith("y`") and len(line) < 250


def test_no_records_at_all_still_give_a_table(table1):
    text = markdown(table1, {})
    assert all(cell(table1, text, row).startswith("– (") for row in table1.rows)
    assert "Records:" not in text and "The same rows" not in text


def further(text: str) -> dict[str, list[list[str]]]:
    """What stands above each of the tables beside the main one -> that table."""
    parts = text.split("\nThe same rows")[1:]
    return {part.split(":\n")[0]: first_table(part) for part in parts}


def test_each_column_has_a_table_of_what_else_was_measured(table1):
    tables = further(markdown(table1, everything(table1)))
    assert list(tables) == [", without CFG, beside the columns above", ", with CFG, beside the columns above"]
    heading = [
        "row", "reconstruction FD-1k", "held-out FD-1k", "KID", "Precision", "Recall", "copied %", "accuracy",
    ]  # fmt: skip
    for guidance, table in zip(("unguided", "guided"), tables.values()):
        assert table[0] == heading and len(table) == 1 + len(table1.rows) / 2
        for line in table[1:]:
            mean = base(f"{line[0]}/{guidance}") + 0.1
            kid, deviation = line.pop(3).split(" ± ")
            assert float(kid) == pytest.approx(mean / 1000, rel=0.05) and deviation.endswith("e-4")
            assert line[1:] == [
                "4.20" if line[0].endswith("/ce") else "2.60", f"{mean + 0.4:.2f} ± 0.10",
                "0.80 ± 0.00", "0.60 ± 0.00", "2.00 ± 0.00", "0.90 ± 0.00",
            ]  # fmt: skip


def test_the_further_tables_have_columns_for_what_there_is(table1):
    old = {i: as_before(r) for i, r in generations(table1, rows=["mar/ce/guided", ROW]).items()}
    (words, table), *rest = further(markdown(table1, old)).items()
    assert "with CFG" in words and "without" not in words and not rest
    assert table[0] == ["row", "held-out FD-1k", "accuracy"] and table[1] == ["raster_causal/ce", "–", "–"]
    assert further(markdown(table1, by_id(generation(table1, ROW, 0, 0, None)))) == {}


def test_a_metric_of_the_layout_stands_in_the_main_table_alone(table1):
    chosen = replace(table1, layout={**table1.layout, "metrics": ["fd", "kid"]}, paper={ROW: {"kid": 0.002}})
    text = markdown(chosen, everything(chosen))
    assert cell(chosen, text, ROW, "kid") == "6.60e-3 ± 1.00e-4 (0.002)"
    assert "KID, with CFG (paper)" in first_table(text)[0]
    assert all("KID" not in table[0] for table in further(text).values())


def test_the_reconstruction_of_a_column_s_own_tokenizer_is_shown(table1):
    across = replace(table1, layout={"rows": ["variant", "guidance"], "columns": ["loss"], "metrics": ["fd"]})
    tables = further(markdown(across, everything(across)))
    lines = [next(line for line in table if line[0] == "mar/guided") for table in tables.values()]
    assert [line[1] for line in lines] == ["4.20", "2.60"]


def test_a_reconstruction_says_of_how_many_images_it_is(table1):
    floors = by_id(*(reconstruction(table1, row) for row in table1.rows))
    fewer = {i: replace(r, protocol={**r.protocol, "num_generated": 300}) for i, r in floors.items()}
    text = markdown(table1, everything(table1), fewer)
    assert all(table[0][1] == "reconstruction FD-300" for table in further(text).values())
    assert "Real held-out images against the training images: FD-300 0.45, KID 3.00e-4," in text


def test_the_inception_network_shows_no_accuracy_and_no_copies():
    paper = replace(load_experiment("table1", "paper"), sweeps={})
    text = markdown(paper, everything(paper))
    assert "copied" not in text.lower() and "accuracy" not in text
    heading = next(iter(further(text).values()))[0]
    assert heading == ["row", "reconstruction FID-1k", "held-out FID", "KID x 1000", "Precision", "Recall"]


def test_a_metric_that_the_paper_lacks_has_no_brackets(table1):
    unpublished = replace(table1, paper={}, layout={**table1.layout, "metrics": ["fd", "accuracy"]})
    text = markdown(unpublished, generations(table1))
    assert cell(unpublished, text, ROW, "accuracy") == "0.90 ± 0.00"
    assert cell(unpublished, text, ROW) == f"{base(ROW) + 0.1:.2f} ± 0.10"
    assert "(paper)" not in text and "In brackets" not in text


def test_an_experiment_of_one_axis_has_a_table(tmp_path):
    file = tmp_path / "scales.yaml"
    file.write_text(
        "id: scales\nbase: imagenet256\n"
        "run: {tokenizer: '${parts.tokenizer.continuous}',"
        " model: {head: '${parts.head.diffusion}', backbone: '${parts.backbone.masked}'},"
        " sampling: {num_ar_steps: 6}}\n"
        "axes:\n  guidance:\n    free: {}\n"
        "    strong: {label: {guidance: '3'}, set: {sampling: '${parts.guided}'}}\n"
        "layout: {rows: [guidance]}\n"
    )
    experiment = load_experiment(str(file), "tiny")
    printed = first_table(markdown(experiment, everything(experiment, lambda row, t, s: 5.0 + t)))
    assert printed == [["guidance", "FD-1k"], ["free", "6.00 ± 1.00"], ["3", "6.00 ± 1.00"]]


# --- the caption ----------------------------------------------------------------------------------------


def test_the_caption_says_how_it_was_measured(table1):
    text = markdown(table1, everything(table1))
    for words in (
        "In brackets: the paper's FID and IS on ImageNet 256x256, another data set at another scale.",
        table1.source,
        "Fréchet distance on the features of mnist5k",
        "FD-1k: 1000 generated images (labels balanced) against 4000 training images (held-out: against 1000 images",
        "KID: mean over 100 subsets of 500 images each of the generated and of 3000 training images.",
        "Precision and Recall: 1000 generated images against 3000 training images, with the radius of 3 neighbours.",
        "Copied: percent of the generated images that lie at most as far from a training image as the nearest",
        "alone on 1000 held-out images",
        "Real held-out images against the training images: FD-1k 0.45, KID 3.00e-4, Precision 0.90, "
        "Recall 0.88, copied 1.50 (%).",
        "Guidance off (unguided), 3 linear (guided); temperature 1;",
        "6 (mar)",
        "denoising steps none (ce), 25 (diff)",
        "weights ema",
        f"Records: {3 * len(table1.rows) + 2 + len(table1.rows)}, from commit 0123456789; on Example CPU.",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("seeds", "sampling_seeds", "words"),
    [
        ((0, 1, 2), (0,), "over 3 training runs (training seeds 0, 1, 2; sampling seed 0)."),
        ((0, 1), (3, 4), "over 2 training runs (training seeds 0, 1), each averaged over its samplings "
                         "(sampling seeds 3, 4)."),
        ((5,), (0, 1, 2), "over 3 samplings (sampling seeds 0, 1, 2) of one training (training seed 5)."),
        ((5,), (0,), "± is the jackknife's standard error (10 groups of the images) of one run (training seed 5, "
                     "sampling seed 0). The chance of training and of sampling is not in the ± of one run;"),
    ],
)  # fmt: skip
def test_the_caption_says_over_which_seeds(table1, seeds, sampling_seeds, words):
    text = markdown(table1, generations(table1, seeds=seeds, sampling_seeds=sampling_seeds))
    assert words in text
    assert ("so ± leaves out their chance" in text) == (len(seeds) * len(sampling_seeds) > 1)


def test_a_single_run_shows_the_standard_error_of_its_images(table1):
    text = markdown(table1, generations(table1, lambda *_: 5.0, seeds=(0,)))
    assert cell(table1, text, ROW) == "5.00 ± 0.10 (1.98)"
    table = next(iter(further(text).values()))
    assert table[1][1:] == ["5.40 ± 0.11", "5.00e-3 ± 1.00e-4", "0.80 ± 0.02", "0.60 ± 0.01", "2.00", "0.90"]


def test_a_single_run_without_a_standard_error_shows_none(table1):
    text = markdown(table1, by_id(as_before(generation(table1, ROW, 5, 0, 5.0))))
    assert cell(table1, text, ROW) == "5.00 (1.98)"
    assert "One run (training seed 5, sampling seed 0), no ±." in text


def test_cells_of_one_run_and_of_several_are_told_apart(table1):
    rows = [row for row in table1.rows if row != ROW]
    text = markdown(table1, generations(table1, rows=rows), by_id(generation(table1, ROW, 0, 0, 5.0)))
    assert "; ± is the jackknife's standard error (10 groups of the images) of one run (training seed 0, " in text
    assert f"sampling seed 0) in {ROW}. The chance of training" in text and "so ± leaves out their chance" in text


def test_another_reference_and_unbalanced_labels_are_told(table1):
    made = generation(table1, ROW, 0, 0, 5.0)
    made.protocol["reference"] |= {"kind": "file", "name": "adm-imagenet256"}
    made.protocol.update(label_mode="unbalanced", class_balance={"classes": 10, "least": 90, "most": 110})
    text = markdown(table1, by_id(made))
    assert "(labels unbalanced, 90 to 110 images in each of 10 classes)" in text
    assert "against 4000 reference images (adm-imagenet256)" in text


def test_cells_with_other_seeds_are_named(table1):
    undeclared = replace(table1, seeds={})  # else a seed that one row alone has is left out
    text = markdown(undeclared, generations(table1), by_id(generation(table1, ROW, 0, 1, 5.0)))
    assert "The cells differ in their seeds: ± is the standard deviation over 3 training runs" in text
    assert f"(training seeds 0, 1, 2; sampling seed 0) in {len(table1.rows) - 1} cells;" in text
    assert f"(sampling seeds 0, 1, not all of them for each) in {ROW}." in text


def test_uncommitted_changes_and_unknown_commits_are_told(table1):
    made = [generation(table1, ROW, seed, 0, 5.0) for seed in (0, 1)]
    made[0] = replace(made[0], provenance={"git": {"commit": "abcdef" * 6, "dirty": True}, "device": "A"})
    made[1] = replace(made[1], provenance={"git": None, "mar_bench": "0.9", "device": "B"})
    text = markdown(table1, by_id(*made))
    assert "commit abcdefabcd with uncommitted changes; mar_bench 0.9 without a commit; on A; B." in text


# --- warnings -------------------------------------------------------------------------------------------


def test_records_that_were_measured_alike_give_no_warning(table1):
    assert "Warning" not in markdown(table1, everything(table1))


def warned(experiment: Experiment, *records: dict[str, Record]) -> list[str]:
    return [line for line in markdown(experiment, *records).splitlines() if line.startswith("**Warning")]


def test_another_extractor_is_warned_of(table1):
    made = generation(table1, ROW, 0, 0, 5.0)
    made.protocol["extractor"] = {**EXTRACTOR, "sha256": "a" * 64}
    text = markdown(table1, everything(table1), by_id(made))
    assert text.index("**Warning: not measured alike") < text.index("|")
    samples, floor = warned(table1, everything(table1), by_id(made))
    reason = "another feature extractor (sha256 {} against {})."
    assert f" of {ROW} (1 of 3 runs): {reason.format('a' * 8, 'f' * 8)}" in samples
    assert f"Samples against reconstruction of {ROW}: {reason.format('a' * 8, 'f' * 8)}" in floor


def test_a_reconstruction_by_another_extractor_is_warned_of(table1):
    floor = reconstruction(table1, ROW)
    floor.protocol["extractor"] = {**EXTRACTOR, "sha256": "a" * 64}
    lines = warned(table1, everything(table1), by_id(floor))
    assert len(lines) == 2 and all("another feature extractor" in line for line in lines)
    assert all(row in lines[1] for row in table1.rows if "/diff/" in row) and "/ce/" not in lines[1]


def test_a_reconstruction_of_another_number_of_images_is_none_by_another_instrument(table1):
    """All floors are of the held-out images, of which there may be any number."""
    floors = by_id(*(reconstruction(table1, row) for row in table1.rows))
    fewer = {i: replace(r, protocol={**r.protocol, "num_generated": 300}) for i, r in floors.items()}
    assert warned(table1, everything(table1), fewer) == []


@pytest.mark.parametrize(
    ("key", "metrics", "reason"),
    [
        ("num_generated", "FD-1k, held-out FD-1k, IS-1k, KID, Precision, Recall, copied, accuracy",
         "17 against 1000 generated images"),
        ("num_reference", "FD-1k", "17 against 4000 reference images"),
        ("num_heldout", "held-out FD-1k", "17 against 1000 held-out images"),
        ("label_mode", "FD-1k, held-out FD-1k, IS-1k, KID, Precision, Recall, copied, accuracy",
         "labels 17 against balanced"),
        ("dtype", "FD-1k, held-out FD-1k, IS-1k, KID, Precision, Recall, copied, accuracy",
         "features in 17 against float32"),
    ],
)  # fmt: skip
def test_another_protocol_is_warned_of_once_and_for_what_depends_on_it(table1, key, metrics, reason):
    made = generation(table1, ROW, 0, 0, 5.0)
    made.protocol[key] = 17
    lines = [line for line in warned(table1, everything(table1), by_id(made)) if "reconstruction" not in line]
    assert lines == [f"**Warning: not measured alike, do not compare.** {metrics} of {ROW} (1 of 3 runs): {reason}."]


def test_the_rows_are_told_apart_from_the_usual_ones_whichever_come_first(table1):
    first = list(table1.rows)[:3]
    made = [generation(table1, row, seed, 0, 5.0) for row in first for seed in (0, 1, 2)]
    for record in made:
        record.protocol["num_reference"] = 17
    (line, *_) = warned(table1, everything(table1), by_id(*made))
    assert f"FD-1k of {', '.join(first)}: 17 against 4000 reference images." in line


def test_old_records_are_alike_among_themselves_and_lack_only_what_they_lack(table1):
    old = {i: as_before(r) for i, r in everything(table1).items() if r.task != "speed"}
    assert warned(table1, old) == []
    text = markdown(table1, old)
    assert "KID" not in text and "Precision" not in text and "copied" not in text.lower()
    assert "(labels balanced) against 4000 training images" in text


def test_copies_are_warned_of_with_the_worst_run(table1):
    made = [generation(table1, ROW, seed, 0, 5.0) for seed in (0, 1)]
    other = generation(table1, "mar/ce/guided", 0, 0, 5.0)
    for record, duplicates in zip((*made, other), (12, 3, 1)):
        record.protocol["samples"]["duplicates"] = duplicates
    assert warned(table1, by_id(*made, other)) == [
        "**Warning: repeated images.** 1 of 1000 images of mar/ce/guided; 12 of 1000 images of mar/diff/guided "
        "(the worst of 2 runs) are copies of another one."
    ]


def test_fewer_images_than_features_are_warned_of(table1):
    made = [generation(table1, ROW, seed, 0, 5.0) for seed in (0, 1, 2)]
    made[1].protocol["singular"] = True
    assert warned(table1, everything(table1), by_id(*made)) == [
        "**Warning: fewer images than features**: the covariance is singular and FD-1k says little in "
        f"{ROW} (1 of 3 runs)."
    ]


def test_failed_records_are_not_warned_of(table1):
    failed = generation(table1, ROW, 0, 0, None)
    assert "Warning" not in markdown(table1, everything(table1), by_id(failed))


def test_rows_with_different_distances_are_warned_of(table1):
    paper = replace(load_experiment("table1", "paper"), sweeps={})
    mixed = replace(table1, rows={**table1.rows, ROW: paper.rows[ROW]})
    assert "**Warning: the rows have different distances**: fd_mnist5k/fid." in markdown(mixed, {})


# --- CSV ------------------------------------------------------------------------------------------------


def read(experiment: Experiment, records: dict[str, Record]) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(build(experiment, records).csv()))


def test_csv_agrees_with_the_records(table1):
    made = everything(table1)
    frame = read(table1, made)
    assert set(frame["metric"]) == {
        "fd_mnist5k", "fd_mnist5k_heldout", "is_mnist5k", "kid_mnist5k", "precision_mnist5k", "recall_mnist5k",
        "copied_mnist5k", "accuracy_mnist5k",
    }  # fmt: skip
    distances = frame[frame["metric"] == "fd_mnist5k"].set_index("row")
    assert list(distances.index) == list(table1.rows)
    for row, line in distances.iterrows():
        assert line["mean"] == pytest.approx(base(row) + 0.1) and line["sd"] == pytest.approx(0.1)
        assert (line["n_train_seeds"], line["n_sampling_seeds"], line["status"]) == (3, 1, "done")
        assert line["num_generated"] == 1000 and line["se"] == pytest.approx(0.02 * line["mean"], rel=1e-5)
        assert line["variant"] == row.split("/")[0] and line["paper"] == table1.paper[row]["fd"]
        assert {made[i].metrics["fd_mnist5k"] for i in line["records"].split()} == {
            base(row) + 0.1 * seed for seed in (0, 1, 2)
        }
        assert line["floor_fd"] == (4.2 if "/ce/" in row else 2.6)
        seconds = speed(table1, row).metrics["seconds_per_image"]
        assert line["seconds_per_image"] == pytest.approx(seconds, rel=1e-5)


def test_csv_and_markdown_show_the_same_numbers(table1):
    result = build(table1, everything(table1))
    frame, text = pd.read_csv(io.StringIO(result.csv())), result.markdown()
    for metric, key in (("fd", "fd_mnist5k"), ("is", "is_mnist5k")):
        for line in frame[frame["metric"] == key].to_dict("records"):
            ours, paper = (
                wording.plus_minus(line["mean"], line["sd"]),
                wording.paper_number(metric, line["paper"]),
            )
            assert cell(table1, text, line["row"], metric) == f"{ours} ({paper})"


def test_csv_keeps_the_units_of_the_records_and_the_deviation_over_seeds(table1):
    frame = read(table1, generations(table1, lambda *_: 5.0, seeds=(0,)))
    kid = frame[(frame["metric"] == "kid_mnist5k") & (frame["row"] == ROW)].iloc[0]
    assert (kid["mean"], kid["se"]) == (0.005, 0.0001) and math.isnan(kid["sd"])
    copied = frame[(frame["metric"] == "copied_mnist5k") & (frame["row"] == ROW)].iloc[0]
    assert copied["mean"] == 0.02 and math.isnan(copied["se"])


def test_csv_names_every_number_of_images_of_a_cell(table1):
    made = [generation(table1, ROW, seed, 0, 5.0) for seed in (0, 1)]
    made[1].protocol["num_generated"] = 500
    frame = read(table1, by_id(*made)).drop_duplicates("row").set_index("row")
    assert frame.loc[ROW, "num_generated"] == "500/1000" and pd.isna(frame.loc["mar/ce/guided", "num_generated"])


def test_csv_keeps_failed_and_missing_cells(table1):
    frame = read(table1, by_id(generation(table1, ROW, 0, 0, None))).drop_duplicates("row").set_index("row")
    assert frame.loc[ROW, "status"] == "failed" and math.isnan(frame.loc[ROW, "mean"])
    assert set(frame.drop(ROW)["status"]) == {"missing"} and len(frame) == len(table1.rows)
    assert frame.loc[ROW, "records"] == generation(table1, ROW, 0, 0, None).id


def test_csv_gives_the_seconds_of_one_setting(table1):
    rows = list(table1.rows)
    made = by_id(*(speed(table1, row) for row in rows), *(speed(table1, row, "GPU", 0.1) for row in rows[:3]))
    frame = read(table1, made)
    assert set(frame["speed_setting"]) == {"Example CPU, 1 thread, float32, batch 64"}
    assert frame["seconds_per_image"].min() >= 0.001


def test_csv_names_the_inception_metrics_as_the_paper_does():
    paper = replace(load_experiment("table1", "paper"), sweeps={})
    assert list(read(paper, {})["metric"].unique()) == ["fid", "fid_heldout", "is", "kid", "precision", "recall"]


def test_both_spreads_stand_in_the_csv_and_in_the_caption(table1):
    def value(row: str, train: int, sampling: int) -> float:
        return base(row) + 0.5 * train + 0.1 * sampling

    records = everything(table1, value, seeds=(0, 1), sampling_seeds=(0, 1, 2))
    line = read(table1, records).query(f"row == '{ROW}' and metric == 'fd_mnist5k'").iloc[0]
    assert line["sd_training"] == line["sd"] == pytest.approx(0.5 / math.sqrt(2), rel=1e-4)
    assert line["sd_sampling"] == pytest.approx(0.1, rel=1e-4)
    assert "The samplings of one training deviate by" in markdown(table1, records)
    assert "The samplings of one training" not in markdown(table1, everything(table1))
