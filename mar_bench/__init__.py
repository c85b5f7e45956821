"""mar_bench: discrete against continuous autoregressive image generation, one core, one spec per table.

Conventions, said once because the field's codebases contradict each other:

- Position sets are ``known`` and ``target``; a boolean set is True for its members. There is no bare ``mask``.
- An ``order`` lists positions in the order in which they are generated: ``order[:, :k]`` are the first k.
- ``attend`` is a boolean attention matrix, True where a query may look at a key.
- ``guidance_scale`` w: 1 is off; the guided prediction is uncond + w (cond - uncond).
- ``temperature`` is defined by each head in one line: cross-entropy divides the logits by it, diffusion
  multiplies the noise added in each denoising step (DiT's too; its DDIM adds none), flow and energy multiply the
  noise they start from, a mixture its standard deviations.
- ``num_ar_steps`` K: how many sets of tokens an image is drawn in; K = L is one token a step.
- Shape letters: B batch, L tokens of an image, n tokens asked for, D token dim, E width, V vocabulary,
  H attention heads, K autoregressive steps, T denoising steps.
"""

__version__ = "0.1.0"
