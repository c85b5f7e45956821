"""`make gpu-check` on the CPU with small models, also where something differs, and parts of `make bench`."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks import gpu_check, performance
from mar_bench.models.heads import layers
from mar_bench.utils.errors import UserError


@pytest.mark.slow
def test_the_whole_check_on_a_cpu(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--device", "cpu", "--quick", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        gpu_check.main()
    (page,) = tmp_path.glob("*.md")
    assert (
        ended.value.code == 0
        and "Everything agrees." in page.read_text() == capsys.readouterr().out.split("\nwrote")[0]
    )
    found = json.loads(page.with_suffix(".json").read_text())
    assert [line["Table 1, smoke scale"] for line in found["table1"]] == ["the device", "2 ranks"]
    assert {line["mode"] for line in found["agreement"]} == {mode for mode in gpu_check.MODES if "compiled" not in mode}
    assert len(found["speed"]) == 3 and found["failures"] == []


def test_what_differs_or_fails_is_reported(tmp_path, monkeypatch):
    """A device that guides half as much again, and cannot train."""
    exact, quantities, compared = layers.guided, gpu_check.quantities, []

    def guided(conditional, unconditional, scale, channels=None):
        return exact(conditional, unconditional, scale * (1.5 if compared else 1.0), channels)

    def counted(*given):
        found = quantities(*given)
        compared.append("the CPU is done")
        return found

    monkeypatch.setattr(layers, "guided", guided)
    monkeypatch.setattr(gpu_check, "quantities", counted)
    monkeypatch.setattr(gpu_check, "speeds", lambda *given: ([], []))
    monkeypatch.setattr(gpu_check, "trained", lambda *given: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--device", "cpu", "--quick", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        gpu_check.main()
    failures = json.loads(next(tmp_path.glob("*.json")).read_text())["failures"]
    assert ended.value.code == 1 and failures[0] == "Table 1: ZeroDivisionError: division by zero"
    assert [words.split("  ")[0][:11] for words in failures[1:]] == ["fp32 tokens", "fp32, CUDA "]


def test_the_limits_of_the_paper_scale():
    """MAR-L at batch 256, by hand: 29,168 TFLOP at 989 a second; 256 passes of the backbone and 25,600 of the head."""
    lines = {(line[0], line[1]): line[2:] for line in performance.sampling_at_the_limits()}
    assert lines["mar-l", "256"][2:] == ["compute", "0.115", "0.20"] and lines["mar-l", "1"][2] == "memory"
    assert float(lines["mar-l", "256"][1].replace(",", "")) == pytest.approx(2 * 256 * (0.36 + 100 * 0.065), rel=0.1)
    assert {line[0]: line[-2] for line in performance.training_at_the_limits()}["mar-h"] == "compute"


def test_growth_is_measured_beside_that_of_the_flops(monkeypatch):
    monkeypatch.setattr(performance, "REPEATS", 1)
    monkeypatch.setattr(performance, "GROWTHS", (performance.Growth("batch", (1, 2, 4)),))
    real, small = performance.measure, performance.small
    few = {"tokens of an image": 64, "AR steps": 2}
    monkeypatch.setattr(performance, "small", lambda **sizes: small(**{**few, **sizes}))

    def timed(name, spec, batch, *rest):
        """The real measurement, with a time of its own: that of this machine varies."""
        assert min((found := real(name, spec, batch, *rest))["laps"]) > 0
        return {**found, "laps": [0.01 * batch**1.5]}

    monkeypatch.setattr(performance, "measure", timed)
    performance.growth(lines := [])
    assert lines == [["batch", "1 / 2 / 4", "0.01 / 0.0283 / 0.08", "1.50", "1.00"]]
    with pytest.raises(UserError):
        performance.small(**{"AR steps": 257})
