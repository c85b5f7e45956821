"""The report of a rehearsal: the estimated cost of the trainings on a GPU and the results of the trials."""

from __future__ import annotations

from typing import Any

import pandas as pd

from mar_bench.report.format import Block, inline
from mar_bench.report.render import render


def title_of(rows: list[str]) -> str:
    """``a/b/c, a/b/d`` -> ``a/b``."""
    return ", ".join(dict.fromkeys(row.rpartition("/")[0] or row for row in rows))


def markdown(title: str, content: dict[str, Any]) -> str:
    """The costs of all trainings and the outcome of each trial; ``content`` is returned by ``rehearse_all``."""
    found, gpu = content["found"], content["gpu"]
    tried = [item for item in found if item["steps"] or item["error"]]
    return render(
        "rehearsal.md.j2",
        title=title,
        costs=_table([_cost(item, gpu) for item in found]),
        hours={part: sum(item["gpu_hours"][part] for item in found) for part in ("training", "sampling")},
        trials=tried and _table([_trial(item) for item in tried]),
        trained=next((item for item in tried if item["steps"]), None),
        **content,
    )


def _cost(item: dict[str, Any], gpu: str) -> dict[str, str]:
    flops, hours, images = item["flops"], item["gpu_hours"], sorted(set(item["image_flops"].values()))
    return {
        "training": title_of(item["rows"]),
        "parameters": f"{item['parameters']['total']:,}",
        "in the head": f"{item['parameters']['head']:,}",
        "tokenizer": f"{item['tokenizer_parameters']:,}",
        "PFLOP per training step": f"{flops['step'] / 1e15:.3g}",
        "TFLOP per sampled image": ", ".join(dict.fromkeys(f"{count / 1e12:.3g}" for count in images)),
        "TFLOP to decode it": "not counted" if flops["decode"] is None else f"{flops['decode'] / 1e12:.3g}",
        f"{gpu} hours, training": f"{hours['training']:,.0f}",
        f"{gpu} hours, sampling": f"{hours['sampling']:,.1f}",
    }


def _trial(item: dict[str, Any]) -> dict[str, str]:
    if item["error"] is not None:
        return {"training": title_of(item["rows"]), "resumed": f"FAILED: {item['error'].splitlines()[0]}"}
    return {
        "training": title_of(item["rows"]),
        "losses": ", ".join(f"{loss:.3f}" for loss in item["losses"]),
        "s per step": f"{item['seconds_a_step']:.1f}",
        "peak memory (GB)": f"{item['peak_bytes'] / 1e9:.1f}",
        "checkpoint (GB)": f"{item['checkpoint_bytes'] / 1e9:.2f}",
        "sample (s)": f"{item['sample_seconds']:.1f}",
        "total (min)": f"{item['seconds'] / 60:.1f}",
        "resumed": "same bits" if item["resumed_equal"] else "FAILED: other bits",
    }


def _table(lines: list[dict[str, str]]) -> Block:
    frame = pd.DataFrame(lines).fillna("").map(inline)
    return Block(frame.to_markdown(index=False, disable_numparse=True))
