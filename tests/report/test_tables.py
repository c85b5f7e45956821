"""The table: its cells, notes and warnings in Markdown, and the same numbers as CSV."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import pandas as pd
import pytest

from mar_bench.config.experiment import Experiment
from mar_bench.records.paper import findings
from mar_bench.records.record import Record
from mar_bench.report import format as fmt
from mar_bench.report.table.build import table
from tests.made_up import (
    EXTRACTOR,
    as_before,
    base,
    by_id,
    everything,
    generation,
    generations,
    likelihood,
    reconstruction,
    speed,
)

ROW = "mar/diff/guided"


def first_table(text: str) -> list[list[str]]:
    """Heading and lines of the first Markdown table in a text."""
    block = text[text.index("|") :].split("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block]
    return [rows[0], *rows[2:]]


def cell(experiment: Experiment, text: str, row: str, metric: str = "fd") -> str:
    """The cell of a row and metric in the first table of ``text``."""
    lines, columns = fmt.lines_and_columns(experiment)
    metrics = experiment.layout["metrics"]
    printed = first_table(text)
    for i, line in enumerate(lines):
        for j, column in enumerate(columns):
            if fmt.row_at(experiment, line, column) == row:
                labels = len(printed[0]) - len(columns) * len(metrics)
                return printed[1 + i][labels + j * len(metrics) + metrics.index(metric)]
    raise AssertionError(row)


def further(text: str) -> list[list[str]]:
    """The table below the main one."""
    return first_table(text.split("Further metrics of every row:")[1])


def markdown(experiment: Experiment, *records: dict[str, Record]) -> str:
    return table(experiment, {k: v for made in records for k, v in made.items()}).markdown()


# --- cells ----------------------------------------------------------------------------------------------


def test_every_row_stands_beside_the_paper_s_number(table1):
    text = markdown(table1, everything(table1))
    assert text.splitlines()[0] == f"# {table1.title} (table1, tiny scale, not comparable with the paper's FID)"
    heading, *lines = first_table(text)
    assert heading[5:7] == ["FD-1k, without CFG (paper)", "IS-1k, without CFG (paper)"]
    assert len(lines) == len(table1.rows) / 2
    for row in table1.rows:
        published, ours = table1.paper[row], 9 - (base(row) + 0.1) / 10
        assert cell(table1, text, row) == f"{base(row) + 0.1:.2f} ± 0.10 ({published['fd']:.2f})"
        assert cell(table1, text, row, "is") == f"{ours:.2f} ± 0.01 ({published['is']:.1f})"


def test_failed_and_missing_cells(table1):
    failed, missing = "mar/ce/guided", "mar/ce/unguided"
    rows = [row for row in table1.rows if row != missing]

    def value(row: str, training: int, _: int) -> float | None:
        return None if row == failed or (row, training) == (ROW, 1) else 5.0 + training

    made = table(table1, generations(table1, value, rows=rows))
    text = made.markdown()
    assert cell(table1, text, failed) == "FAILED (3.69)" and made.status(failed) == "failed"
    assert cell(table1, text, missing) == "– (8.79)" and made.status(missing) == "missing"
    assert cell(table1, text, ROW) == "6.00 ± 1.41 † (1.98)" and made.status(ROW) == "done"
    assert text.count(f"- {ROW}, training seed 1, sampling seed 0: `ValueError: loss is not finite`\n") == 1
    assert "a second line" not in text
    nothing = markdown(table1, {})
    assert all(cell(table1, nothing, row).startswith("– (") for row in table1.rows)
    assert "Records:" not in nothing and "Further" not in nothing


def test_a_second_table_has_what_else_was_measured(table1):
    heading, *lines = further(markdown(table1, everything(table1)))
    names = [*(f"reconstruction FD-1k, vs {images}" for images in ("training", "held-out")), "held-out FD-1k"]
    names += ["KID", "Precision", "Recall", "copied %", "accuracy"]
    assert heading == ["row", *names] and [line[0] for line in lines] == list(table1.rows)
    for line in lines:
        mean = base(line[0]) + 0.1
        assert float(line.pop(4).split(" ± ")[0]) == pytest.approx(mean / 1000, rel=0.05)
        shares = ["0.80 ± 0.00", "0.60 ± 0.00", "2.00 ± 0.00", "0.90 ± 0.00"]
        floors = ["4.20", "4.00"] if "/ce/" in line[0] else ["2.60", "2.40"]
        assert line[1:] == [*floors, f"{mean + 0.4:.2f} ± 0.10", *shares]
    old = {i: as_before(r) for i, r in generations(table1, rows=["mar/ce/guided", ROW]).items()}
    table = further(markdown(table1, old))
    assert table[0] == ["row", "held-out FD-1k", "accuracy"] and table[1] == ["raster_causal/ce/unguided", "–", "–"]


def test_a_metric_of_the_layout_stands_in_the_main_table_alone(table1):
    chosen = replace(table1, layout={**table1.layout, "metrics": ["fd", "kid"]}, paper={ROW: {"kid": 0.002}})
    text = markdown(chosen, everything(chosen))
    assert cell(chosen, text, ROW, "kid") == "0.0066 ± 0.0001 (0.002)"
    assert cell(chosen, text, ROW) == f"{base(ROW) + 0.1:.2f} ± 0.10", "no brackets without published numbers"
    assert "KID, with CFG (paper)" in first_table(text)[0] and "FD-1k, with CFG" in first_table(text)[0]
    assert "KID" not in further(text)[0]


# --- notes ----------------------------------------------------------------------------------------------


def test_the_notes_say_how_it_was_measured(table1):
    text = markdown(table1, everything(table1))
    for words in (
        "In brackets: the paper's FID, IS on ImageNet 256x256, another data set at another scale.",
        "Fréchet distance on the features of mnist5k",
        "FD-1k: 1000 generated images (labels balanced) against 4000 training images (mnist5k). Held-out: against",
        "KID: mean over 100 subsets of 500 images each of the generated and of 3000 training images (mnist5k).",
        "alone on held-out images",
        "FD-1k = 0.45, KID = 0.00030, Precision = 0.90, Recall = 0.88, copied % = 1.50.",
        "over 3 training runs (training seeds 0, 1, 2; sampling seed 0). All seeds share tokenizer",
        "guidance 1 linear / 3 linear; temperature 1;",
        "denoising steps none / 25",
        f"Records: {3 * len(table1.rows) + 2 + len(table1.rows)}, from commit 0123456789; on Example CPU.",
    ):
        assert words in text


def test_a_single_run_shows_the_standard_error_of_its_images(table1):
    text = markdown(table1, generations(table1, lambda *_: 5.0, seeds=(0,)))
    assert cell(table1, text, ROW) == "5.00 ± 0.10 (1.98)" and "jackknife standard error over images" in text
    assert "excludes the variance of training and sampling" in text and "All seeds share" not in text
    old = markdown(table1, by_id(as_before(generation(table1, ROW, 0, 0, 5.0))))
    assert cell(table1, old, ROW) == "5.00 (1.98)" and "One run without ± (training seed 0; sampling seed 0)." in old


def test_cells_with_other_seeds_are_named(table1):
    undeclared = replace(table1, seeds={})  # otherwise a seed of one row alone is left out
    text = markdown(undeclared, generations(table1), by_id(generation(table1, ROW, 0, 1, 5.0)))
    assert "(training seeds 0, 1, 2; sampling seed 0) in raster_causal/ce/unguided, " in text
    assert f"(training seeds 0, 1, 2; sampling seeds 0, 1, averaged) in {ROW}. All" in text


def test_unusual_protocols_and_origins_are_named(table1):
    first, second = (generation(table1, ROW, seed, 0, 5.0) for seed in (0, 1))
    first.protocol["reference"] |= {"kind": "file", "name": "adm-imagenet256"}
    first.protocol.update(label_mode="unbalanced")
    first = replace(first, provenance={"git": {"commit": "abcdef" * 6, "dirty": True}, "device": "A"})
    second = replace(second, provenance={"git": None, "mar_bench": "0.9", "device": "B"})
    text = markdown(table1, by_id(first, second))
    assert "(labels unbalanced/balanced)" in text
    assert "against 4000 file/training images (adm-imagenet256/mnist5k)" in text
    assert "commit abcdefabcd with uncommitted changes; commit unknown; on A; B." in text


# --- likelihoods ------------------------------------------------------------------------------------------


def test_a_likelihood_stands_in_every_row_that_shares_its_training(table1):
    layout = {**table1.layout, "metrics": ["fd", "nll"]}
    shown = replace(table1, shows_likelihood=True, layout=layout)
    rows = [row for row in shown.rows if row.endswith("/guided") and not row.startswith("mar/")]
    nll = {row: 1.0 + i for i, row in enumerate(rows)}
    made = [likelihood(shown, row, seed, nll[row] + 0.1 * seed) for row in rows for seed in (0, 1, 2)]
    found = table(shown, {**everything(shown), **by_id(*made)})
    text, lines = found.markdown(), pd.read_csv(io.StringIO(found.csv())).set_index(["row", "metric"])
    assert first_table(text)[0][6] == "held-out NLL bits/token, without CFG"
    for row in ("random_bidirectional/diff/guided", "mar/diff/unguided"):
        expected = nll["random_bidirectional/diff/guided"] + 0.1
        assert cell(shown, text, row, "nll") == f"{expected:.2f} ± 0.10"
        line = lines.loc[(row, "nll")]
        assert (line["mean"], line["n_train_seeds"], line["num_generated"]) == (pytest.approx(expected), 3, 1000)
        assert len(line["records"].split()) == 3
    assert "training NLL bits/token" in further(text)[0]
    assert "800 training images by the chain rule" in text and "of a diffusion head an upper bound" in text
    (warning,) = warned(shown, everything(shown), by_id(*made))
    assert "NLL of " in warning and "likelihoods of other tokens (latents " in warning
    assert "nll" not in table(table1, {**everything(table1), **by_id(*made)}).csv()


def test_a_likelihood_beside_the_columns_is_shown_once_and_a_failed_one_says_so(table1):
    layout = {**table1.layout, "beside": ["nll"]}
    shown = replace(table1, shows_likelihood=True, layout=layout)
    failed = likelihood(shown, "raster_causal/ce/guided", 0, None)
    text = markdown(shown, everything(shown), by_id(failed, likelihood(shown, "mar/ce/guided", 0, -1.5)))
    heading, *lines = first_table(text)
    assert heading[5] == "held-out NLL bits/token" and [line[5] for line in lines].count("-1.50 ± 0.02") == 2
    assert lines[0][5] == "FAILED" and "UserError: not finite" in text


# --- warnings -------------------------------------------------------------------------------------------


def warned(experiment: Experiment, *records: dict[str, Record]) -> list[str]:
    return [line for line in markdown(experiment, *records).splitlines() if line.startswith("**Warning")]


def test_records_measured_alike_give_no_warning(table1):
    assert warned(table1, everything(table1), by_id(generation(table1, ROW, 0, 0, None))) == []
    old = {i: as_before(r) for i, r in everything(table1).items() if r.task != "speed"}
    assert warned(table1, old) == [] and "KID" not in markdown(table1, old)


def test_another_extractor_is_warned_of(table1):
    made, floor = generation(table1, ROW, 0, 0, 5.0), reconstruction(table1, ROW)
    for record in (made, floor):
        record.protocol["extractor"] = {**EXTRACTOR, "sha256": "a" * 64}
    text = markdown(table1, everything(table1), by_id(made))
    assert text.index("**Warning: measured differently") < text.index("|")
    samples, alone = warned(table1, everything(table1), by_id(made))
    reason = f"another feature extractor (sha256 {'a' * 8} against {'f' * 8})."
    assert f" of {ROW} (1 of 3 runs): {reason}" in samples
    assert f"Samples against reconstruction of {ROW}: {reason}" in alone
    lines = warned(table1, everything(table1), by_id(floor))
    assert len(lines) == 2 and all("another feature extractor" in line for line in lines)
    assert all(row in lines[1] for row in table1.rows if "/diff/" in row) and "/ce/" not in lines[1]


def test_another_protocol_is_warned_of_once_for_the_metrics_it_affects(table1):
    first = list(table1.rows)[:3]  # the majority counts, not the first
    made = [generation(table1, row, seed, 0, 5.0) for row in first for seed in (0, 1, 2)]
    for record in made:
        record.protocol["num_heldout"] = 17
    (line,) = [line for line in warned(table1, everything(table1), by_id(*made)) if "reconstruction" not in line]
    assert line.endswith(f" held-out FD-1k of {', '.join(first)}: 17 against 1000 held-out images.")


def test_repeated_and_shared_images_singular_covariances_and_mixed_distances_are_warned_of(table1, paper):
    made = [generation(table1, ROW, seed, 0, 5.0) for seed in (0, 1, 2)]
    made[0].protocol["samples"]["duplicates"] = 12
    made[1].protocol["singular"] = True
    made[2].protocol["overlaps"] = {"samples in reference": 7, "held-out images in reference": 0}
    repeated, singular, shared = warned(table1, everything(table1), by_id(*made))
    assert "7 of the 1000 samples are also in the reference" in shared
    assert "copies of another" in repeated and "fewer images than features" in singular
    assert repeated.endswith(f" In {ROW} (1 of 3 runs).") and singular.endswith(f" In {ROW} (1 of 3 runs).")
    mixed = replace(table1, rows={**table1.rows, ROW: paper.rows[ROW]})
    assert "FD-1k mnist5k / FID" in warned(mixed, {})[0]


def test_mind_is_shown_where_it_was_measured(table1):
    old = generations(table1, rows=["mar/ce/guided", ROW], seeds=(0,))
    assert "MIND" not in markdown(table1, old) and "mind" not in table(table1, old).csv()
    one = next(iter(generations(table1, rows=[ROW], seeds=(0,)).values()))
    new = {one.id: replace(one, metrics={**one.metrics, "mind_mnist5k": 30.0})}
    text = markdown(table1, {**old, **new})
    column = further(text)[0].index("MIND-1k")
    shown = {line[0]: line[column] for line in further(text)[1:]}
    assert (shown[ROW], shown["mar/ce/guided"]) == ("30.00", "–")
    assert "over 1000 projections, of 1000 generated images and as many of 3000 training images" in text
    frame = read(table1, {**old, **new})
    assert frame[frame["metric"] == "mind_mnist5k"].set_index("row")["mean"].dropna().to_dict() == {ROW: 30.0}


def test_what_others_measured_is_shown_to_who_asks(table1):
    asking = replace(table1, literature=findings(["orders"]))
    text = markdown(asking, {}).split("## What others have measured")[1]
    assert "arXiv 2411.00776, Table 2" in text and "2.18" in text and "bits a character" not in text
    assert "others have measured" not in markdown(table1, {})


# --- CSV ------------------------------------------------------------------------------------------------


def read(experiment: Experiment, records: dict[str, Record]) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(table(experiment, records).csv()))


def test_csv_agrees_with_the_records(table1, paper):
    gpu = by_id(*(speed(table1, row, "GPU", 0.1) for row in list(table1.rows)[:3]))  # not the main setting
    made = {**everything(table1), **gpu}
    frame = read(table1, made)
    assert set(frame["speed_setting"]) == {"Example CPU, 1 thread, float32, batch 64"}
    names = ("fd", "is", "kid", "precision", "recall", "copied", "accuracy")
    assert set(frame["metric"]) == {*(f"{name}_mnist5k" for name in names), "fd_mnist5k_heldout"}
    distances = frame[frame["metric"] == "fd_mnist5k"].set_index("row")
    assert list(distances.index) == list(table1.rows)
    for row, line in distances.iterrows():
        assert line["mean"] == pytest.approx(base(row) + 0.1) and line["sd"] == pytest.approx(0.1)
        assert (line["n_train_seeds"], line["n_sampling_seeds"], line["status"]) == (3, 1, "done")
        assert line["num_generated"] == 1000 and line["se"] == pytest.approx(0.02 * line["mean"], rel=1e-5)
        assert line["variant"] == row.split("/")[0] and line["paper"] == table1.paper[row]["fd"]
        found = {made[i].metrics["fd_mnist5k"] for i in line["records"].split()}
        assert found == {base(row) + 0.1 * seed for seed in (0, 1, 2)}
        assert line["floor_fd"] == (4.2 if "/ce/" in row else 2.6)
        seconds = speed(table1, row).metrics["seconds_per_image"]
        assert line["seconds_per_image"] == pytest.approx(seconds, rel=1e-5)
    assert list(read(paper, {})["metric"].unique()) == ["fid", "fid_heldout", "is", "kid", "precision", "recall"]


def test_csv_has_units_of_the_records_and_the_std_over_seeds(table1):
    frame = read(table1, generations(table1, lambda *_: 5.0, seeds=(0,))).set_index(["row", "metric"])
    kid, copied = (frame.loc[(ROW, f"{name}_mnist5k")] for name in ("kid", "copied"))
    assert (kid["mean"], kid["se"]) == (0.005, 0.0001) and math.isnan(kid["sd"])
    assert copied["mean"] == 0.02 and math.isnan(copied["se"])
    both = everything(table1, lambda row, t, s: base(row) + 0.5 * t + 0.1 * s, seeds=(0, 1), sampling_seeds=(0, 1, 2))
    line = read(table1, both).set_index(["row", "metric"]).loc[(ROW, "fd_mnist5k")]
    assert line["sd_training"] == line["sd"] == pytest.approx(0.5 / math.sqrt(2), rel=1e-4)
    assert line["sd_sampling"] == pytest.approx(0.1, rel=1e-4)
