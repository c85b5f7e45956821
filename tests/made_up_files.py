"""Small experiment files like those of the paper's figures and tables, for the tests of reports."""

from __future__ import annotations

from pathlib import Path

from mar_bench.config.experiment import Experiment, load_experiment

RUN = (
    "base: imagenet256\n"
    "run: {tokenizer: '${parts.tokenizer.continuous}',"
    " model: {head: '${parts.head.diffusion}', backbone: '${parts.backbone.masked}'},"
    " sampling: {num_ar_steps: 6}}\n"
)
STEPS = (
    "id: steps\ntitle: Denoising steps\nsource: the paper\n" + RUN + "axes:\n"
    "  steps:\n"
    "    s2: {label: {steps: '2'}, set: {sampling: {num_diffusion_steps: 2}}}\n"
    "    s5: {label: {steps: '5'}, set: {sampling: {num_diffusion_steps: 5}}}\n"
    "    s25: {label: {steps: '25'}, set: {sampling: {num_diffusion_steps: 25}}}\n"
    "    s100: {label: {steps: '100'}, set: {sampling: {num_diffusion_steps: 100}}}\n"
    "  guidance:\n"
    "    unguided: {label: {guidance: without CFG}, set: {sampling: '${parts.unguided}'}}\n"
    "    guided: {label: {guidance: with CFG}, set: {sampling: '${parts.guided}'}}\n"
    "layout: {rows: [steps], columns: [guidance], metrics: [fd, is]}\n"
    "paper: {s100/unguided: {fd: 2.85, is: 214}, s100/guided: {fd: 1.97, is: 291.2}}\n"
    "figure: {kind: curve, x: sampling.num_diffusion_steps, x_title: denoising steps, line: guidance, log_x: true}\n"
    "orderings:\n"
    "  - {claim: a quarter of the steps is enough, axis: steps, better: s25, worse: s100, costs_at_most: 0.05}\n"
)
TEMPERATURE = (
    "id: temperature\ntitle: Temperature of the denoising\n" + RUN + "axes:\n"
    "  guidance:\n"
    "    w1: {label: {guidance: '1'}, set: {sampling: {guidance_scale: 1.0}}}\n"
    "    w3: {label: {guidance: '3'}, set: {sampling: {guidance_scale: 3.0}}}\n"
    "  temperature:\n"
    "    t090: {label: {temperature: '0.90'}, set: {sampling: {temperature: 0.9}}}\n"
    "    t095: {label: {temperature: '0.95'}, set: {sampling: {temperature: 0.95}}}\n"
    "    t100: {label: {temperature: '1.00'}, set: {sampling: {temperature: 1.0}}}\n"
    "    t105: {label: {temperature: '1.05'}, set: {sampling: {temperature: 1.05}}}\n"
    "layout: {rows: [temperature], columns: [guidance]}\n"
    "figure: {kind: curve, x: sampling.temperature, line: guidance}\n"
)
SPEED = (
    "id: speed\ntitle: Speed against accuracy\n" + RUN + "axes:\n"
    "  system:\n"
    "    mar4: {label: {system: 'MAR, DiffLoss', steps: '4'}, set: {sampling: {num_ar_steps: 4}}}\n"
    "    mar8: {label: {system: 'MAR, DiffLoss', steps: '8'}, set: {sampling: {num_ar_steps: 8}}}\n"
    "    mar16: {label: {system: 'MAR, DiffLoss', steps: '16'}, set: {sampling: {num_ar_steps: 16}}}\n"
    "    ce4: {label: {system: 'MAR, CrossEnt', steps: '4'}, set: {tokenizer: '${parts.tokenizer.discrete}',"
    " model: {head: '${parts.head.cross_entropy}'}, sampling: {num_ar_steps: 4}}}\n"
    "    ce16: {label: {system: 'MAR, CrossEnt', steps: '16'}, set: {tokenizer: '${parts.tokenizer.discrete}',"
    " model: {head: '${parts.head.cross_entropy}'}, sampling: {num_ar_steps: 16}}}\n"
    "    ar: {label: {system: 'AR, CrossEnt'}, set: {tokenizer: '${parts.tokenizer.discrete}',"
    " model: {order: raster, head: '${parts.head.cross_entropy}', backbone: '${parts.backbone.causal}'},"
    " sampling: {num_ar_steps: null}}}\n"
    "layout: {rows: [system], beside: [parameters, head_parameters, rfd, seconds_per_image]}\n"
    "paper: {mar8: {fd: 1.97, seconds_per_image: 0.288, parameters: 407000000}}\n"
    "figure: {kind: speed, line: system, point: steps}\n"
)
SWEPT = (
    "id: swept\ntitle: Swept\n" + RUN + "axes:\n"
    "  cell:\n"
    "    fixed: {set: {sampling: {guidance_scale: 2.0}}}\n"
    "    best: {select: {minimise: fd, over: {sampling.guidance_scale: [2.0, 3.0], sampling.temperature: [0.9, 1.0]}},"
    " set: {sampling: {num_ar_steps: 8}}}\n"
    "    gone: {absent: paper scale only}\n"
    "layout: {rows: [cell], metrics: [fd, is]}\n"
    "paper: {gone: {fd: 7.82, is: 151.7}}\n"
)
FILES = {"steps": STEPS, "temperature": TEMPERATURE, "speed": SPEED, "swept": SWEPT}


def made_up(folder: Path, name: str, scale: str = "tiny", more: str = "") -> Experiment:
    """Write one of FILES to ``folder`` and load it."""
    file = folder / f"{name}.yaml"
    file.write_text(FILES[name] + more)
    return load_experiment(str(file), scale)
