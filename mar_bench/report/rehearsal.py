"""What a rehearsal found, as tables, and what the real thing would cost on a GPU."""

from __future__ import annotations

from typing import Any

import pandas as pd

# dense 16-bit peak of the data sheets, TFLOP/s
GPUS = {"V100": 125, "A100": 312, "H100": 989, "H200": 989, "B200": 2250, "L40S": 362, "RTX4090": 165, "MI300X": 1307}
# of that peak: what the authors' 1 day 11 hours of MAR-L on 16 H100 and their 0.288 s an image on an A100 come to
TRAINING_SHARE, SAMPLING_SHARE = 0.16, 0.30


def gpu_hours(found: list[dict], specs: dict[str, Any], gpu: str) -> pd.DataFrame:
    """Hours of one GPU for each training: ``training`` and the ``sampling`` of all its rows."""
    peak = GPUS[gpu] * 1e12 * 3600
    lines = []
    for item in found:
        train, flops = specs[item["rows"][0]].train, item["flops"]
        each = item["image_flops"].items()
        images = sum(specs[row].sampling.num_images * (count + flops["decode"]) for row, count in each)
        training = flops["step"] * train.steps / (peak * TRAINING_SHARE)
        lines.append({"training": training, "sampling": images / (peak * SAMPLING_SHARE)})
    return pd.DataFrame(lines)


def title_of(rows: list[str]) -> str:
    """``a/b/c, a/b/d`` -> ``a/b``."""
    return ", ".join(dict.fromkeys(row.rpartition("/")[0] or row for row in rows))


def _costs(found: list[dict], specs: dict[str, Any], gpu: str) -> pd.DataFrame:
    hours = gpu_hours(found, specs, gpu)
    lines = []
    for i, item in enumerate(found):
        flops = item["flops"]
        each = sorted({f"{count / 1e12:.3g}" for count in item["image_flops"].values()}, key=float)
        lines.append(
            {
                "training": title_of(item["rows"]),
                "parameters": f"{item['parameters']['total']:,}",
                "of them head": f"{item['parameters']['head']:,}",
                "tokenizer": f"{item['tokenizer_parameters']:,}",
                "PFLOP a training step": f"{flops['step'] / 1e15:.3g}",
                "TFLOP a sampled image": ", ".join(each),
                "TFLOP to decode it": f"{flops['decode'] / 1e12:.3g}",
                f"{gpu} hours, training": f"{hours['training'][i]:,.0f}",
                f"{gpu} hours, sampling": f"{hours['sampling'][i]:,.1f}",
            }
        )
    return pd.DataFrame(lines)


def _trials(found: list[dict]) -> pd.DataFrame:
    lines = []
    for item in found:
        line = {"training": title_of(item["rows"])}
        if item["error"] is None:
            line |= {
                "losses": ", ".join(f"{loss:.3f}" for loss in item["losses"]),
                "s a step": f"{item['seconds_a_step']:.1f}",
                "peak memory (GB)": f"{item['peak_bytes'] / 1e9:.1f}",
                "check-point (GB)": f"{item['checkpoint_bytes'] / 1e9:.2f}",
                "sample (s)": f"{item['sample_seconds']:.1f}",
                "in all (min)": f"{item['seconds'] / 60:.1f}",
                "resumed": "same bits" if item["resumed_equal"] else "FAILED: other bits",
            }
        else:
            line["resumed"] = f"FAILED: {item['error'].splitlines()[0]}"
        lines.append(line)
    return pd.DataFrame(lines).fillna("")


def markdown(title: str, content: dict[str, Any], specs: dict[str, Any]) -> str:
    """Costs of all, and how each training went where it was tried.

    ``content``: what is stored, found (a Rehearsal each, as a dict), gpu, images and provenance."""
    found, gpu, origin = content["found"], content["gpu"], content["provenance"]
    hours = gpu_hours(found, specs, gpu).sum()
    parts = [
        f"# {title}",
        "## What it will cost",
        _table(_costs(found, specs, gpu)),
        f"The whole table on {gpu}: {hours['training']:,.0f} GPU hours of training and {hours['sampling']:,.0f} of "
        f"sampling and decoding. Estimated from the FLOPs at {GPUS[gpu]} TFLOP/s times {TRAINING_SHARE} in training "
        f"and {SAMPLING_SHARE} in sampling, which is what the authors' own times for MAR-L come to; one token a step "
        "with a kv-cache is bound by memory and will take longer. Encoding the images and the metrics are not counted. "
        "FLOPs are counted on the meta device (a multiply-add is two): of a training step on the whole batch and on "
        "average over the masking ratio, of an image for each number of AR steps without and with guidance.",
    ]
    tried = [item for item in found if item["steps"] or item["error"]]
    if tried:
        parts += ["## What was tried", _table(_trials(tried))]
        best = max(tried, key=lambda item: item["steps"])
    if tried and best["steps"]:
        parts.append(
            f"Each training ran at its true architecture for {best['steps']} steps of {best['images_a_step']} real "
            "images on the CPU, was check-pointed after the second and resumed by a fresh model from the memory-mapped "
            "file, whose pages are part of the peak; all weights and averages after the last step are compared bit by "
            "bit. Then one guided image was drawn (4 AR steps of 4 denoising steps; with a kv-cache the first 8 "
            "tokens) and decoded."
        )
    parts.append(
        f"Images: {content['images']}; tokenizers have random weights where none were given. {origin['device']}, "
        f"{origin['threads']} threads, torch {origin['versions']['torch']}."
    )
    return "\n\n".join(parts) + "\n"


def _table(frame: pd.DataFrame) -> str:
    return frame.to_markdown(index=False, disable_numparse=True)
