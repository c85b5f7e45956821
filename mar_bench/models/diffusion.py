"""Gaussian diffusion on tokens: cosine and linear schedules, learned-range variances, respaced sampling.

Nichol and Dhariwal, Improved Denoising Diffusion Probabilistic Models (2021), cited below as iDDPM; the
settings are those of the MAR paper, appendix A. The linear schedule is DDPM's (Ho et al. 2020), which DiT takes.
Tables are float64; a network sees float32.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch


def cosine_betas(num_timesteps: int) -> np.ndarray:
    """iDDPM, equation 17: betas from alpha_bar(t) = cos^2((t + 0.008) / 1.008 * pi / 2), capped at 0.999."""

    def alpha_bar(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    n = num_timesteps
    return np.array([min(1 - alpha_bar((i + 1) / n) / alpha_bar(i / n), 0.999) for i in range(n)])


def linear_betas(num_timesteps: int) -> np.ndarray:
    """DDPM, section 4: from 1e-4 to 0.02 in 1000 steps; of fewer each adds more, capped at 0.999 like the cosine's."""
    scale = 1000 / num_timesteps
    return np.linspace(1e-4 * scale, 0.02 * scale, num_timesteps).clip(max=0.999)


BETAS = {"cosine": cosine_betas, "linear": linear_betas}


def respaced_timesteps(num_timesteps: int, num_steps: int) -> list[int]:
    """``num_steps`` of the training timesteps, evenly spaced with both ends kept (iDDPM, section 4)."""
    assert 1 <= num_steps <= num_timesteps
    stride = (num_timesteps - 1) / (num_steps - 1) if num_steps > 1 else 1.0
    # added up as the official code does: where a position falls half-way, a product would round elsewhere
    positions = itertools.accumulate([stride] * (num_steps - 1), initial=0.0)
    return sorted({round(position) for position in positions})


@dataclass(frozen=True)
class DiffusionTables:
    """Everything about a noise schedule that is indexed by its step, each a tensor (T,).

    Built in float64, since 1 - alpha_bar loses its digits in float32; ``on`` gives what a network uses."""

    timesteps: torch.Tensor  # the training timestep that each step stands for, int64
    betas: torch.Tensor
    log_betas: torch.Tensor
    alphas_cumprod: torch.Tensor
    signal: torch.Tensor  # sqrt(alpha_bar)
    sigma: torch.Tensor  # sqrt(1 - alpha_bar)
    inverse_signal: torch.Tensor  # sqrt(1 / alpha_bar)
    inverse_snr: torch.Tensor  # sqrt(1 / alpha_bar - 1)
    posterior_variance: torch.Tensor
    posterior_log_variance_clipped: torch.Tensor
    posterior_mean_x0: torch.Tensor  # weight of x0 in the mean of q(x_{t-1} | x_t, x_0)
    posterior_mean_xt: torch.Tensor  # weight of x_t in it

    @staticmethod
    def make(num_timesteps: int, num_steps: int | None = None, schedule: str = "cosine") -> DiffusionTables:
        """Tables of the training schedule (one of BETAS), or respaced to ``num_steps``."""
        full = np.cumprod(1 - BETAS[schedule](num_timesteps))
        timesteps = respaced_timesteps(num_timesteps, num_steps or num_timesteps)
        kept = full[timesteps]
        previous = np.append(1.0, kept[:-1])
        betas = 1 - kept / previous
        variance = betas * (1 - previous) / (1 - kept)
        # the variance of the last denoising step is 0; its logarithm is clipped to the next one's
        log_variance = np.log(np.append(variance[1:2] if len(variance) > 1 else betas, variance[1:]))
        columns = {
            "betas": betas,
            "log_betas": np.log(betas),
            "alphas_cumprod": kept,
            "signal": np.sqrt(kept),
            "sigma": np.sqrt(1 - kept),
            "inverse_signal": np.sqrt(1 / kept),
            "inverse_snr": np.sqrt(1 / kept - 1),
            "posterior_variance": variance,
            "posterior_log_variance_clipped": log_variance,
            "posterior_mean_x0": betas * np.sqrt(previous) / (1 - kept),
            "posterior_mean_xt": (1 - previous) * np.sqrt(1 - betas) / (1 - kept),
        }
        return DiffusionTables(torch.tensor(timesteps), **{k: torch.from_numpy(v) for k, v in columns.items()})

    def on(self, device: torch.device) -> DiffusionTables:
        """The same in float32 on a device."""
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        return DiffusionTables(
            **{k: v.to(device, torch.float32 if v.is_floating_point() else v.dtype) for k, v in columns.items()}
        )

    def at(self, name: str, t: torch.Tensor) -> torch.Tensor:
        """Column ``name`` at steps ``t`` (N,), as (N, 1)."""
        return getattr(self, name)[t][:, None]


def noised(tables: DiffusionTables, x0: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """A draw from q(x_t | x_0): x0 and noise (N, D), t (N,)."""
    return tables.at("signal", t) * x0 + tables.at("sigma", t) * noise


def predict_x0(tables: DiffusionTables, xt: torch.Tensor, t: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    return tables.at("inverse_signal", t) * xt - tables.at("inverse_snr", t) * eps


def posterior_mean(tables: DiffusionTables, x0: torch.Tensor, xt: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return tables.at("posterior_mean_x0", t) * x0 + tables.at("posterior_mean_xt", t) * xt


def learned_log_variance(tables: DiffusionTables, raw: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """iDDPM, equation 15: the network's output in [-1, 1] interpolates between the two bounds in log space."""
    low = tables.at("posterior_log_variance_clipped", t)
    high = tables.at("log_betas", t)
    share = (raw + 1) / 2
    return share * high + (1 - share) * low


def training_loss(
    tables: DiffusionTables,
    denoise: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    x0: torch.Tensor,
    t: torch.Tensor,
    noise: torch.Tensor,
) -> torch.Tensor:
    """The hybrid loss of iDDPM (section 3.1): mean squared error of the noise plus the variational term.

    ``denoise(x_t (N, D), timestep (N,)) -> (N, 2 D)``: noise and raw variance. x0, noise (N, D); t (N,).
    Returns (N,): per token, averaged over its D values; the variational term in bits."""
    xt = noised(tables, x0, t, noise)
    eps, raw = denoise(xt, t).chunk(2, dim=-1)
    mse = (noise - eps).square().mean(-1)
    # the variational term trains the variance alone: the mean is held fixed
    mean = posterior_mean(tables, predict_x0(tables, xt, t, eps.detach()), xt, t)
    log_variance = learned_log_variance(tables, raw, t)
    true_mean = posterior_mean(tables, x0, xt, t)
    true_log_variance = tables.at("posterior_log_variance_clipped", t)
    kl = gaussian_kl(true_mean, true_log_variance, mean, log_variance)
    nll = -discretised_gaussian_log_likelihood(x0, mean, 0.5 * log_variance)
    vlb = torch.where(t == 0, nll.mean(-1), kl.mean(-1)) / math.log(2)
    return mse + vlb


def gaussian_kl(mean1, log_variance1, mean2, log_variance2) -> torch.Tensor:
    """KL divergence of two diagonal Gaussians, elementwise, in nats."""
    return 0.5 * (
        log_variance2
        - log_variance1
        - 1.0
        + torch.exp(log_variance1 - log_variance2)
        + (mean1 - mean2).square() * torch.exp(-log_variance2)
    )


def _normal_cdf(x: torch.Tensor) -> torch.Tensor:
    # the tanh approximation of the published code; an exact one would move the loss at t = 0
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def discretised_gaussian_log_likelihood(x: torch.Tensor, mean: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    """Log-probability of the bin of half-width 1/255 around ``x``, the outermost bins open (official code)."""
    centred, inverse = x - mean, torch.exp(-log_scale)
    upper = _normal_cdf(inverse * (centred + 1 / 255))
    lower = _normal_cdf(inverse * (centred - 1 / 255))
    probability = torch.where(x < -0.999, upper, torch.where(x > 0.999, 1 - lower, upper - lower))
    return probability.clamp(min=1e-12).log()


def sample(
    tables: DiffusionTables,
    denoise: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    noise: torch.Tensor | Sequence[torch.Tensor],
    *,
    temperature: float = 1.0,
    clamp_x0: float | None = None,
) -> torch.Tensor:
    """Ancestral sampling along respaced ``tables`` with T steps.

    noise (T + 1, N, D), or what gives row i (N, D) when it is asked for: row 0 the start, row i the noise of the i-th
    denoising step (i = 1 the noisiest).
    ``temperature`` multiplies the added noise (paper, section 3.2); ``clamp_x0`` bounds the predicted x0.
    Returns (N, D)."""
    num_steps = len(tables.timesteps)
    assert len(noise) == num_steps + 1
    x = noise[0]
    for i, step in enumerate(reversed(range(num_steps)), start=1):
        t = torch.full((x.shape[0],), step, dtype=torch.int64, device=x.device)
        timestep = tables.timesteps[t]
        eps, raw = denoise(x, timestep).chunk(2, dim=-1)
        x0 = predict_x0(tables, x, t, eps)
        if clamp_x0 is not None:
            x0 = x0.clamp(-clamp_x0, clamp_x0)
        x = posterior_mean(tables, x0, x, t)
        if step > 0:  # the last step adds no noise
            x = x + torch.exp(0.5 * learned_log_variance(tables, raw, t)) * noise[i] * temperature
    return x


def sample_ddim(
    tables: DiffusionTables,
    denoise: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    start: torch.Tensor,
    *,
    clamp_x0: float | None = None,
) -> torch.Tensor:
    """Deterministic sampling along respaced ``tables`` (Song et al. 2020, DDIM, equation 12 with sigma = 0).

    start (N, D) is all the noise there is; the predicted variance is not used. A clamp of x0 changes the noise with
    it, so that both together still make x_t. Returns (N, D)."""
    x = start
    for step in reversed(range(len(tables.timesteps))):
        t = torch.full((x.shape[0],), step, dtype=torch.int64, device=x.device)
        eps = denoise(x, tables.timesteps[t]).chunk(2, dim=-1)[0]
        x0 = predict_x0(tables, x, t, eps)
        if clamp_x0 is not None:
            x0 = x0.clamp(-clamp_x0, clamp_x0)
            eps = (tables.at("inverse_signal", t) * x - x0) / tables.at("inverse_snr", t)
        x = noised(tables, x0, t - 1, eps) if step > 0 else x0
    return x
