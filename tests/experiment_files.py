"""Small experiment files, and what loading them says."""

from __future__ import annotations

from pathlib import Path

import pytest

from mar_bench.config.experiment import load_experiment
from mar_bench.utils.errors import UserError

TABLE1 = Path(__file__).parents[1] / "experiments/table1.yaml"
BASE = """
run:
  data: {kind: digits}
  tokenizer: {kind: kl, stride: 4, width: 8, batch_size: 16}
  train: {batch_size: 16}
  sampling: {num_ar_steps: null}
  metrics:
    extractor: {kind: classifier, name: digits, batch_size: 16}
    reference: {kind: training}
    kid_subset_size: 50
"""
MINE = """
id: mine
base: mine
axes:
  head:
    small: {set: {model: {head: {kind: diffusion, width: 8}}}}
    large: {set: {model: {head: {kind: diffusion, width: 16}}}}
layout: {rows: [head], metrics: [fd]}
"""


def written(folder: Path, experiment: str = MINE, base: str = BASE, scale: str = "run: {}") -> Path:
    """An experiment with a base and a scale of its own."""
    for name, text in (("mine", experiment), ("base/mine", base), ("scale/little", scale)):
        path = folder / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return folder / "mine.yaml"


def load(file: Path, *overrides: str, scale: str = "little"):
    return load_experiment(str(file), scale, overrides)


def mistake(file: Path | str, *overrides: str, scale: str = "little") -> str:
    with pytest.raises(UserError) as caught:
        load_experiment(str(file), scale, overrides)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    return message


INLINE = "paper:\n  mar/ce/guided: {fd: 3.69, is: 278.4}\n"


def changed(folder: Path, old: str, new: str) -> Path:
    """A copy of Table 1 with one passage changed; its published numbers inline, and no sections of scales."""
    text = TABLE1.read_text().partition("\nscales:\n")[0].replace("paper: table1\n", INLINE) + "\n"
    assert text.count(old) >= 1, old
    file = folder / "changed.yaml"
    file.write_text(text.replace(old, new, 1))
    return file
