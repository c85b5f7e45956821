"""Diffusion head: a small denoising MLP models p(x | z) for one token (paper, section 3.2, appendix A)."""

from __future__ import annotations

import torch
from torch import nn

from mar_bench.config.spec import Continuous, DiffusionHead, SamplingSpec
from mar_bench.models.diffusion import DiffusionTables, sample, training_loss
from mar_bench.models.heads.layers import AdaLNMLP
from mar_bench.utils.noise import NoiseSource


class Diffusion(nn.Module):
    """Diffusion loss; guidance acts on the predicted noise. Temperature multiplies the noise of each step."""

    def __init__(self, spec: DiffusionHead, space: Continuous, dim: int):
        super().__init__()
        self.spec, self.token_dim = spec, space.dim
        # noise and raw variance come out of it, each of a token's size
        self.net = AdaLNMLP(space.dim, 2 * space.dim, dim, spec.width, spec.depth)
        self._tables: dict[tuple, DiffusionTables] = {}

    def tables(self, num_steps: int | None, device: torch.device) -> DiffusionTables:
        """The training schedule (None) or one respaced to ``num_steps``, kept for each device."""
        key = (num_steps, device)
        if key not in self._tables:
            self._tables[key] = DiffusionTables.make(self.spec.num_train_timesteps, num_steps).on(device)
        return self._tables[key]

    def draw_training(self, noise: NoiseSource, step: int, length: int) -> dict[str, torch.Tensor]:
        """For each token M timesteps (B, L, M) and their noise (B, L, M, D), M = draws_per_token."""
        draws = self.spec.draws_per_token
        return {
            "t": noise.integers("timestep", step, self.spec.num_train_timesteps, (length, draws)),
            "eps": noise.normal("diffusion", step, (length, draws, self.token_dim)),
        }

    def loss(self, z: torch.Tensor, target: torch.Tensor, drawn: dict[str, torch.Tensor]) -> torch.Tensor:
        """z (B, n, E), tokens (B, n, D), t (B, n, M), eps (B, n, M, D) -> hybrid loss (B, n), mean over M."""
        t, eps = drawn["t"], drawn["eps"]
        draws = t.shape[-1]
        condition = self.net.condition(z)[:, :, None].expand(-1, -1, draws, -1).flatten(0, 2)
        x0 = target[:, :, None].expand(-1, -1, draws, -1).flatten(0, 2)

        def denoise(xt: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
            return self.net.conditioned(xt, steps, condition).float()

        loss = training_loss(self.tables(None, z.device), denoise, x0, t.flatten(), eps.flatten(0, 2))
        return loss.view(t.shape).mean(-1)

    def draw_sampling(self, noise: NoiseSource, step: int, n: int, sampling: SamplingSpec) -> torch.Tensor:
        """One block an image, (B, T + 1, n, D): row 0 the start, row i the noise of denoising step i."""
        return noise.normal("sample", step, (sampling.num_diffusion_steps + 1, n, self.token_dim))

    def sample(
        self,
        z: torch.Tensor,
        drawn: torch.Tensor,
        sampling: SamplingSpec,
        guidance_scale: float = 1.0,
        z_uncond: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """z (B, n, E) -> tokens (B, n, D); both halves of guidance share the noise."""
        batch, n = z.shape[:2]
        tables = self.tables(sampling.num_diffusion_steps, z.device)
        condition = self.net.condition(z).flatten(0, 1)
        uncond = None if z_uncond is None else self.net.condition(z_uncond).flatten(0, 1)

        def denoise(xt: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            if uncond is None:
                return self.net.conditioned(xt, timestep[:1], condition).float()
            both = self.net.conditioned(xt.repeat(2, 1), timestep[:1], torch.cat([condition, uncond])).float()
            conditional, unconditional = both.chunk(2)
            eps, raw = conditional.chunk(2, dim=-1)
            eps_uncond = unconditional.chunk(2, dim=-1)[0]
            return torch.cat([eps_uncond + guidance_scale * (eps - eps_uncond), raw], dim=-1)

        noise = drawn.permute(1, 0, 2, 3).flatten(1, 2)  # (T + 1, B n, D), image by image
        tokens = sample(tables, denoise, noise, temperature=sampling.temperature, clamp_x0=sampling.clamp_x0)
        return tokens.view(batch, n, -1)
