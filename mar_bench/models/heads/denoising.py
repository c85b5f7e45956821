"""Heads that denoise a token in several steps of a small MLP: diffusion and flow matching."""

from __future__ import annotations

import torch
from torch import Tensor

from mar_bench.config.spec import Continuous, DiffusionHead, FlowHead, LikelihoodSpec, SamplingSpec
from mar_bench.models.diffusion import (
    DETERMINISTIC,
    ancestral,
    bound_terms,
    prior_term,
    sample,
    strata,
    tables_on,
    training_loss,
)
from mar_bench.models.heads.base import Head
from mar_bench.models.heads.layers import AdaLNMLP, guided_network
from mar_bench.utils.noise import NoiseSource

# The flow's times in [0, 1] are scaled to the range of diffusion timesteps before they are embedded: the fastest
# sinusoid has a period of 2 pi, so over [0, 1] none would complete a sixth of its period.
TIME_SCALE = 1000.0


class Diffusion(Head):
    """Diffusion loss (paper, section 3.2, appendix A); guidance acts on the predicted noise.

    Temperature multiplies the noise added in each step."""

    def __init__(self, spec: DiffusionHead, space: Continuous, dim: int):
        super().__init__()
        self.spec, self.token_dim = spec, space.dim
        # the outputs are the noise and the raw variance, D values each
        self.net = AdaLNMLP(space.dim, 2 * space.dim, dim, spec.width, spec.depth)
        self.ancestral = ancestral  # inference.py may compile it

    def draw_training(self, noise: NoiseSource, step: int, length: int) -> dict[str, Tensor]:
        """M = draws_per_token timesteps per token, (B, L, M), and their noise (B, L, M, D)."""
        shape = (length, self.spec.draws_per_token)
        t = noise.integers("timestep", step, self.spec.num_train_timesteps, shape)
        return {"t": t, "eps": noise.normal("diffusion", step, (*shape, self.token_dim))}

    def loss(self, z: Tensor, target: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        """z (B, n, E), tokens (B, n, D), t (B, n, M), eps (B, n, M, D) -> hybrid loss (B, n), mean over M."""
        t, eps = drawn["t"], drawn["eps"]
        condition = self.net.condition(z)[:, :, None].expand(*t.shape, -1).flatten(0, 2)
        loss = training_loss(
            tables_on(z.device, self.spec.num_train_timesteps),
            lambda xt, timestep: self.net.conditioned(xt, self.net.time(timestep), condition).float(),
            target[:, :, None].expand_as(eps).flatten(0, 2),
            t.flatten(),
            eps.flatten(0, 2),
        )
        return loss.view(t.shape).mean(-1)

    def draw_likelihood(self, noise: NoiseSource, step: int, n: int, spec: LikelihoodSpec) -> dict[str, Tensor]:
        """A timestep of each of the S strata for every token, (B, n, S), its noise (B, n, S, D), and the size of the
        stratum."""
        chosen = strata(self.spec.num_train_timesteps, spec.timesteps, spec.skipped_timesteps)
        first, size = torch.tensor(chosen).T  # (S,) each
        u = noise.uniform("bound-timestep", step, (n, len(size)))
        t = first + (u * size).long().clamp(max=size - 1)  # u * size may round to size
        return {"t": t, "eps": noise.normal("bound", step, (*t.shape[1:], self.token_dim)), "size": size.expand_as(t)}

    def log_likelihood(self, z: Tensor, target: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        """An unbiased estimate of the variational bound, exact in the steps if each stratum is one of them.

        Neither the sampler's respaced steps nor its clamp or temperature belong to the bound."""
        t, eps = drawn["t"], drawn["eps"]
        tables, x0 = tables_on(z.device, self.spec.num_train_timesteps), target.flatten(0, 1)
        condition = self.net.condition(z).flatten(0, 1)
        bound = prior_term(tables, x0, start=int(t.max()))  # the noisiest step is a stratum of its own
        for i in range(t.shape[-1]):
            terms = bound_terms(
                tables,
                lambda xt, timestep: self.net.conditioned(xt, self.net.time(timestep), condition).float(),
                x0,
                t[..., i].flatten(),
                eps[..., i, :].flatten(0, 1),
            )
            bound = bound + drawn["size"][..., i].flatten() * terms
        return -bound.view(z.shape[:2])

    def draw_sampling(self, noise: NoiseSource, step: int, n: int, sampling: SamplingSpec) -> Tensor:
        """One block per image, (B, T + 1, n, D): row 0 is the start, row i the noise of denoising step i. Deterministic
        samplers have the same start and no other row."""
        assert sampling.num_diffusion_steps is not None
        rows = 1 if sampling.sampler in DETERMINISTIC else sampling.num_diffusion_steps + 1
        return noise.normal("sample", step, (rows, n, self.token_dim))

    def sample(
        self, z: Tensor, drawn: Tensor, sampling: SamplingSpec, scale: float = 1.0, z_uncond: Tensor | None = None
    ) -> Tensor:
        """z (B, n, E) -> tokens (B, n, D) in T = num_diffusion_steps denoising steps."""
        tables = tables_on(z.device, self.spec.num_train_timesteps, sampling.num_diffusion_steps)
        network = guided_network(self.net, z, z_uncond, scale, self.token_dim)
        rows = drawn.permute(1, 0, 2, 3).flatten(1, 2)  # (T + 1, B n, D), image by image
        if sampling.sampler in DETERMINISTIC:
            tokens = DETERMINISTIC[sampling.sampler](tables, network, rows[0], sampling.clamp_x0)
        else:
            tokens = sample(tables, network, rows, sampling.temperature, sampling.clamp_x0, self.ancestral)
        return tokens.view(*z.shape[:2], -1)


class Flow(Head):
    """Flow-matching loss (2210.02747); guidance acts on the velocity. Temperature multiplies the initial noise.

    The path is rectified flow's (2209.03003), a straight line: x_t = (1 - t) eps + t x with velocity x - eps, so
    t = 0 is noise and t = 1 the token."""

    def __init__(self, spec: FlowHead, space: Continuous, dim: int):
        super().__init__()
        self.spec, self.token_dim = spec, space.dim
        self.net = AdaLNMLP(space.dim, space.dim, dim, spec.width, spec.depth)

    def draw_training(self, noise: NoiseSource, step: int, length: int) -> dict[str, Tensor]:
        """M = draws_per_token uniform times per token, (B, L, M), and their noise (B, L, M, D)."""
        shape = (length, self.spec.draws_per_token)
        return {"t": noise.uniform("time", step, shape), "eps": noise.normal("flow", step, (*shape, self.token_dim))}

    def loss(self, z: Tensor, target: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        """z (B, n, E), tokens (B, n, D), t (B, n, M), eps (B, n, M, D) -> squared error of the velocity (B, n), mean
        over D and M."""
        t, eps = drawn["t"], drawn["eps"]
        x = target[:, :, None]  # (B, n, 1, D)
        xt = (1 - t[..., None]) * eps + t[..., None] * x
        condition = self.net.condition(z)[:, :, None].expand(*t.shape, -1)
        time = self.net.time(TIME_SCALE * t.flatten())
        velocity = self.net.conditioned(xt.flatten(0, 2), time, condition.flatten(0, 2)).float()
        return (velocity.view_as(eps) - (x - eps)).square().mean((-1, -2))

    def draw_sampling(self, noise: NoiseSource, step: int, n: int, sampling: SamplingSpec) -> Tensor:
        """The initial noise of each token, (B, n, D); the path from it is deterministic."""
        return noise.normal("sample", step, (n, self.token_dim))

    def sample(
        self, z: Tensor, drawn: Tensor, sampling: SamplingSpec, scale: float = 1.0, z_uncond: Tensor | None = None
    ) -> Tensor:
        """z (B, n, E) -> tokens (B, n, D) in T = num_diffusion_steps equal Euler steps from t = 0 to 1, each with the
        velocity at its start."""
        steps = sampling.num_diffusion_steps
        assert steps is not None
        velocity = guided_network(self.net, z, z_uncond, scale)
        x = sampling.temperature * drawn.flatten(0, 1)  # (B n, D)
        for i in range(steps):
            x = x + velocity(x, TIME_SCALE * i / steps) / steps
        return x.view_as(drawn)
