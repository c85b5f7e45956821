"""The table and its caption: every cell, every warning, Markdown and CSV from the same records."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import pandas as pd
import pytest

from mar_bench.config import Experiment, load_experiment
from mar_bench.records import Record
from mar_bench.report import wording
from mar_bench.report.tables import build
from tests.made_up import EXTRACTOR, base, by_id, everything, generation, generations, reconstruction, speed

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
    assert len(headings) == 2
    for heading in headings:
        assert "FID" not in heading
        assert all(len(word.strip()) <= 28 for word in heading.split("|"))
    assert "| FD, without CFG (paper) | IS, without CFG (paper) | FD, with CFG (paper) |" in " ".join(
        headings[0].split()
    )


def test_paper_scale_is_headed_fid():
    paper = load_experiment("table1", "paper")
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


def test_reconstruction_of_every_tokenizer_along_a_line_is_shown(table1):
    across = replace(table1, layout={"rows": ["variant", "guidance"], "columns": ["loss"], "metrics": ["fd"]})
    beside = markdown(across, everything(across)).split("The same rows")[1]
    assert next(line for line in beside.splitlines() if line.startswith("| mar/guided")).count("4.20 / 2.60")


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
    assert printed == [["guidance", "FD"], ["free", "6.00 ± 1.00"], ["3", "6.00 ± 1.00"]]


# --- the caption ----------------------------------------------------------------------------------------


def test_the_caption_says_how_it_was_measured(table1):
    text = markdown(table1, everything(table1))
    for words in (
        "In brackets: the paper's FID and IS on ImageNet 256x256, another data set at another scale.",
        table1.source,
        "Fréchet distance on the features of mnist5k",
        "FD: 1000 generated images against 4000 training images (held-out: against 1000 images never trained",
        "alone on 1000 held-out images",
        "Real held-out images against the training images: FD 0.45.",
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
        ((5,), (0,), "One run (training seed 5, sampling seed 0), no ±."),
    ],
)  # fmt: skip
def test_the_caption_says_over_which_seeds(table1, seeds, sampling_seeds, words):
    text = markdown(table1, generations(table1, seeds=seeds, sampling_seeds=sampling_seeds))
    assert words in text
    assert ("so ± leaves out their chance" in text) == (len(seeds) * len(sampling_seeds) > 1)


def test_cells_with_other_seeds_are_named(table1):
    text = markdown(table1, generations(table1), by_id(generation(table1, ROW, 0, 1, 5.0)))
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


def test_another_extractor_is_warned_of(table1):
    made = generation(table1, ROW, 0, 0, 5.0)
    made.protocol["extractor"] = {**EXTRACTOR, "sha256": "a" * 64}
    text = markdown(table1, everything(table1), by_id(made))
    assert text.index("**Warning: not measured alike") < text.index("|")
    assert "the feature extractor's sha256 is ffffffffff in raster_causal/ce/unguided, " in text
    assert f"; aaaaaaaaaa in {ROW}." in text


def test_a_reconstruction_by_another_extractor_is_warned_of(table1):
    floor = reconstruction(table1, ROW)
    floor.protocol["extractor"] = {**EXTRACTOR, "sha256": "a" * 64}
    assert "**Warning: not measured alike" in markdown(table1, everything(table1), by_id(floor))


@pytest.mark.parametrize("key", ["num_generated", "num_reference", "num_heldout", "label_mode", "dtype"])
def test_another_protocol_is_warned_of(table1, key):
    made = generation(table1, ROW, 0, 0, 5.0)
    made.protocol[key] = 17
    text = markdown(table1, everything(table1), by_id(made))
    assert f" {key} is " in text and f"; 17 in {ROW}." in text


def test_failed_records_are_not_warned_of(table1):
    failed = generation(table1, ROW, 0, 0, None)
    assert "Warning" not in markdown(table1, everything(table1), by_id(failed))


def test_rows_with_different_distances_are_warned_of(table1):
    paper = load_experiment("table1", "paper")
    mixed = replace(table1, rows={**table1.rows, ROW: paper.rows[ROW]})
    assert "**Warning: the rows have different distances**: fd_mnist5k/fid." in markdown(mixed, {})


# --- CSV ------------------------------------------------------------------------------------------------


def read(experiment: Experiment, records: dict[str, Record]) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(build(experiment, records).csv()))


def test_csv_agrees_with_the_records(table1):
    made = everything(table1)
    frame = read(table1, made)
    assert set(frame["metric"]) == {
        "fd_mnist5k", "fd_mnist5k_heldout", "is_mnist5k", "accuracy_mnist5k",
    }  # fmt: skip
    distances = frame[frame["metric"] == "fd_mnist5k"].set_index("row")
    assert list(distances.index) == list(table1.rows)
    for row, line in distances.iterrows():
        assert line["mean"] == pytest.approx(base(row) + 0.1) and line["sd"] == pytest.approx(0.1)
        assert (line["n_train_seeds"], line["n_sampling_seeds"], line["status"]) == (3, 1, "done")
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
    paper = load_experiment("table1", "paper")
    assert list(read(paper, {})["metric"].unique()) == ["fid", "fid_heldout", "is"]
