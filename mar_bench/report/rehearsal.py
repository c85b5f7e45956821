"""The report of a rehearsal: what the trainings will cost on a GPU and how the trials went."""

from __future__ import annotations

from typing import Any

import pandas as pd

METHOD = """\
FLOPs follow from the architecture (a multiply-add is two): of a training step on the whole batch, averaged over the
masking ratio; of an image for each number of AR steps, without and with guidance. GPU hours assume the share of the
data sheet's peak that the authors' own times for MAR-L imply; one token per step with a kv-cache is bound by memory and
takes longer. Encoding the images and the metrics are not counted."""
TRIALS = """\
Each training ran at its true architecture for {steps} steps of {images_a_step} real images on the CPU, was checkpointed
after the second and resumed by a fresh model from the memory-mapped file, whose pages are part of the peak; all weights
and averages after the last step are compared bit by bit. Then one guided image was drawn (4 AR steps of 4 denoising
steps; with a kv-cache the first 8 tokens) and decoded."""


def title_of(rows: list[str]) -> str:
    """``a/b/c, a/b/d`` -> ``a/b``."""
    return ", ".join(dict.fromkeys(row.rpartition("/")[0] or row for row in rows))


def markdown(title: str, content: dict[str, Any]) -> str:
    """Costs of all trainings, and the outcome of each that was tried; ``content`` is that of ``rehearse_all``."""
    found, gpu, origin = content["found"], content["gpu"], content["provenance"]
    training, sampling = (sum(item["gpu_hours"][part] for item in found) for part in ("training", "sampling"))
    parts = [
        f"# {title}",
        "## What it will cost",
        _table([_cost(item, gpu) for item in found]),
        f"Total on {gpu}: {training:,.0f} GPU hours of training, {sampling:,.0f} of sampling and decoding.\n{METHOD}",
    ]
    if tried := [item for item in found if item["steps"] or item["error"]]:
        parts += ["## What was tried", _table([_trial(item) for item in tried])]
        parts += [TRIALS.format(**item) for item in tried if item["steps"]][:1]
    parts.append(
        f"Images: {content['images']}; tokenizers have random weights where none were given. {origin['device']}, "
        f"{origin['threads']} threads, torch {origin['versions']['torch']}."
    )
    return "\n\n".join(parts) + "\n"


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


def _table(lines: list[dict[str, str]]) -> str:
    return pd.DataFrame(lines).fillna("").to_markdown(index=False, disable_numparse=True)
