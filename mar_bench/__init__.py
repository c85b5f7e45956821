"""mar_bench: discrete against continuous autoregressive image generation, one core, one spec per table.

The public interface is loaded on first use: ``load_experiment``, ``plan_runs``, ``execute``, ``read_records``,
``frame``, ``table``, ``run``, ``compare`` and ``eval_images``. ``mar_bench.frame("table1", scale="tiny")`` is a table's
results as a tidy DataFrame; docs/notebook.ipynb shows the others.

Conventions, stated once because the field's codebases contradict each other:

- Position sets are ``known`` and ``target``; a boolean set is True for its members. There is no bare ``mask``.
- An ``order`` lists positions in the order in which they are generated: ``order[:, :k]`` are the first k.
- ``attend`` is a boolean attention matrix, True where a query may attend to a key.
- ``guidance_scale`` w: 1 is off; the guided prediction is uncond + w (cond - uncond).
- ``temperature`` is defined by each head in one line: cross-entropy divides the logits by it, diffusion
  multiplies the noise added in each denoising step (DiT's too; its DDIM adds none), flow and energy multiply the
  noise they start from, a mixture its standard deviations.
- ``num_ar_steps`` K: the number of steps in which an image's tokens are drawn; K = L is one token per step.
- Shape letters: B batch, L tokens of an image, n requested tokens, D token dim, E width, V vocabulary,
  H attention heads, K autoregressive steps, T denoising steps.
"""

import importlib

__version__ = "0.1.0"

_PUBLIC = {
    "Plugin": "mar_bench.config.plugins",
    "load_experiment": "mar_bench.config.experiment",
    "plan_runs": "mar_bench.config.ids",
    "execute": "mar_bench.pipeline.execute",
    "read_records": "mar_bench.records.record",
    "frame": "mar_bench.report.frames",
    "table": "mar_bench.report.table.build",
    "run": "mar_bench.cli.python",
    "compare": "mar_bench.cli.python",
    "eval_images": "mar_bench.cli.python",
}


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'mar_bench' has no attribute '{name}'")
