"""Diffusion head: a small denoising MLP models p(x | z) for one token (paper, section 3.2, appendix A)."""

from __future__ import annotations

from torch import Tensor

from mar_bench.config.spec import Continuous, DiffusionHead, SamplingSpec
from mar_bench.models.diffusion import sample, tables_on, training_loss
from mar_bench.models.heads.base import Head
from mar_bench.models.heads.layers import AdaLNMLP, guided_network
from mar_bench.utils.noise import NoiseSource


class Diffusion(Head):
    """Diffusion loss; guidance acts on the predicted noise. Temperature multiplies the noise added in each step."""

    def __init__(self, spec: DiffusionHead, space: Continuous, dim: int):
        super().__init__()
        self.spec, self.token_dim = spec, space.dim
        # the output holds the noise and the raw variance, D values each
        self.net = AdaLNMLP(space.dim, 2 * space.dim, dim, spec.width, spec.depth)

    def draw_training(self, noise: NoiseSource, step: int, length: int) -> dict[str, Tensor]:
        """M = draws_per_token timesteps per token, (B, L, M), and their noise (B, L, M, D)."""
        draws = self.spec.draws_per_token
        return {
            "t": noise.integers("timestep", step, self.spec.num_train_timesteps, (length, draws)),
            "eps": noise.normal("diffusion", step, (length, draws, self.token_dim)),
        }

    def loss(self, z: Tensor, target: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        """z (B, n, E), tokens (B, n, D), t (B, n, M), eps (B, n, M, D) -> hybrid loss (B, n), mean over M."""
        t, eps = drawn["t"], drawn["eps"]
        condition = self.net.condition(z)[:, :, None].expand(*t.shape, -1).flatten(0, 2)
        loss = training_loss(
            tables_on(z.device, self.spec.num_train_timesteps),
            lambda xt, timestep: self.net.conditioned(xt, timestep, condition).float(),
            target[:, :, None].expand_as(eps).flatten(0, 2),
            t.flatten(),
            eps.flatten(0, 2),
        )
        return loss.view(t.shape).mean(-1)

    def draw_sampling(self, noise: NoiseSource, step: int, n: int, sampling: SamplingSpec) -> Tensor:
        """One block per image, (B, T + 1, n, D): row 0 is the start, row i the noise of denoising step i."""
        assert sampling.num_diffusion_steps is not None
        return noise.normal("sample", step, (sampling.num_diffusion_steps + 1, n, self.token_dim))

    def sample(
        self, z: Tensor, drawn: Tensor, sampling: SamplingSpec, scale: float = 1.0, z_uncond: Tensor | None = None
    ) -> Tensor:
        """z (B, n, E) -> tokens (B, n, D) in T = num_diffusion_steps denoising steps."""
        network = guided_network(self.net, z, z_uncond, scale, self.token_dim)
        tokens = sample(
            tables_on(z.device, self.spec.num_train_timesteps, sampling.num_diffusion_steps),
            lambda xt, timestep: network(xt, timestep[:1]),  # all tokens are at the same timestep
            drawn.permute(1, 0, 2, 3).flatten(1, 2),  # (T + 1, B n, D), image by image
            temperature=sampling.temperature,
            clamp_x0=sampling.clamp_x0,
        )
        return tokens.view(*z.shape[:2], -1)
