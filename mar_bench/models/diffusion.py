"""Gaussian diffusion of tokens: cosine and linear schedules, learned variances, respaced sampling.

Nichol and Dhariwal, Improved Denoising Diffusion Probabilistic Models (2102.09672), cited below as iDDPM, with the
settings of the MAR paper, appendix A. The linear schedule is DDPM's (Ho et al., 2006.11239), which DiT uses.
Tables are computed in float64; networks see float32."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mar_bench.models.finite import finite

# noisy tokens (N, D), timesteps (N,) -> noise and raw variance (N, 2 D)
Denoiser = Callable[[Tensor, Tensor], Tensor]
PREDICTED = "predictions of x0"  # as messages name them
StepDenoiser = Callable[[Tensor, float], Tensor]  # the same at one timestep of all tokens, as samplers ask for it


def cosine_betas(num_timesteps: int) -> np.ndarray:
    """iDDPM, equation 17: betas from alpha_bar(t) = cos^2((t + 0.008) / 1.008 * pi / 2), capped at 0.999."""
    n = num_timesteps
    kept = [math.cos((i / n + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(n + 1)]
    return np.array([min(1 - after / before, 0.999) for before, after in itertools.pairwise(kept)])


def linear_betas(num_timesteps: int) -> np.ndarray:
    """DDPM, section 4: 1e-4 to 0.02 in 1000 steps; with fewer steps each adds more noise. Capped at 0.999."""
    scale = 1000 / num_timesteps
    return np.linspace(1e-4 * scale, 0.02 * scale, num_timesteps).clip(max=0.999)


BETAS = {"cosine": cosine_betas, "linear": linear_betas}


def respaced_timesteps(num_timesteps: int, num_steps: int) -> list[int]:
    """``num_steps`` of the training timesteps, evenly spaced with both ends kept (iDDPM, section 4)."""
    assert 1 <= num_steps <= num_timesteps
    stride = (num_timesteps - 1) / (num_steps - 1) if num_steps > 1 else 1.0
    # accumulated as in the official code: a product could round a half-way position to the other side
    positions = itertools.accumulate([stride] * (num_steps - 1), initial=0.0)
    return sorted({round(position) for position in positions})


class DiffusionTables(NamedTuple):
    """A noise schedule: all quantities indexed by the step, each a tensor (T,) but the first.

    ``make`` computes in float64, since 1 - alpha_bar loses its digits in float32; ``on`` converts for a network."""

    timesteps: tuple[int, ...]  # the training timestep of each step
    betas: Tensor
    log_betas: Tensor
    alphas_cumprod: Tensor
    signal: Tensor  # sqrt(alpha_bar)
    sigma: Tensor  # sqrt(1 - alpha_bar)
    inverse_signal: Tensor  # sqrt(1 / alpha_bar)
    inverse_snr: Tensor  # sqrt(1 / alpha_bar - 1)
    posterior_variance: Tensor
    posterior_log_variance_clipped: Tensor
    posterior_mean_x0: Tensor  # weight of x0 in the mean of q(x_{t-1} | x_t, x_0)
    posterior_mean_xt: Tensor  # weight of x_t in it

    @staticmethod
    def make(num_timesteps: int, num_steps: int | None = None, schedule: str = "cosine") -> DiffusionTables:
        """Tables of the training schedule, one of BETAS, or of its respacing to ``num_steps``."""
        timesteps = respaced_timesteps(num_timesteps, num_steps or num_timesteps)
        kept = np.cumprod(1 - BETAS[schedule](num_timesteps))[timesteps]
        previous = np.append(1.0, kept[:-1])
        betas = 1 - kept / previous
        variance = betas * (1 - previous) / (1 - kept)
        last = variance[1:2] if len(kept) > 1 else betas  # replaces the last step's variance of 0 (iDDPM's code)
        columns = {
            "betas": betas,
            "log_betas": np.log(betas),
            "alphas_cumprod": kept,
            "signal": np.sqrt(kept),
            "sigma": np.sqrt(1 - kept),
            "inverse_signal": np.sqrt(1 / kept),
            "inverse_snr": np.sqrt(1 / kept - 1),
            "posterior_variance": variance,
            "posterior_log_variance_clipped": np.log(np.append(last, variance[1:])),
            "posterior_mean_x0": betas * np.sqrt(previous) / (1 - kept),
            "posterior_mean_xt": (1 - previous) * np.sqrt(1 - betas) / (1 - kept),
        }
        return DiffusionTables(tuple(timesteps), **{k: torch.from_numpy(v) for k, v in columns.items()})

    def on(self, device: torch.device) -> DiffusionTables:
        """The same tables in float32 on ``device``."""
        return DiffusionTables(self.timesteps, *(column.to(device, torch.float32) for column in self[1:]))

    def at(self, name: str, t: Tensor | None) -> Tensor:
        """Column ``name`` at steps ``t`` (N,), as (N, 1); None: of one of ``rows``, as ()."""
        column = getattr(self, name)
        return column if t is None else column[t][:, None]

    def rows(self) -> list[DiffusionTables]:
        """Each step by itself: its timestep and each column as ()."""
        columns = zip(*(column.unbind(0) for column in self[1:]))
        return [DiffusionTables((t,), *values) for t, values in zip(self.timesteps, columns)]


@lru_cache(maxsize=16)
def tables_on(
    device: torch.device, num_timesteps: int, num_steps: int | None = None, schedule: str = "cosine"
) -> DiffusionTables:
    """``DiffusionTables.make`` in float32 on ``device``, computed once."""
    with torch.inference_mode(False):  # otherwise training could not use tables made by a sampler
        return DiffusionTables.make(num_timesteps, num_steps, schedule).on(device)


def noised(tables: DiffusionTables, x0: Tensor, t: Tensor | None, noise: Tensor) -> Tensor:
    """A sample of q(x_t | x_0) (iDDPM, equation 9): x0 and noise (N, D), t (N,), or None and one of ``rows``."""
    return tables.at("signal", t) * x0 + tables.at("sigma", t) * noise


def predict_x0(tables: DiffusionTables, xt: Tensor, t: Tensor | None, eps: Tensor) -> Tensor:
    """x0 (N, D) from x_t and the noise in it: ``noised`` solved for x0."""
    return tables.at("inverse_signal", t) * xt - tables.at("inverse_snr", t) * eps


def posterior_mean(tables: DiffusionTables, x0: Tensor, xt: Tensor, t: Tensor | None) -> Tensor:
    """Mean (N, D) of q(x_{t-1} | x_t, x_0) (iDDPM, equation 11)."""
    return tables.at("posterior_mean_x0", t) * x0 + tables.at("posterior_mean_xt", t) * xt


def learned_log_variance(tables: DiffusionTables, raw: Tensor, t: Tensor | None) -> Tensor:
    """iDDPM, equation 15: the network's output in [-1, 1] interpolates between the bounds in log space."""
    share = (raw + 1) / 2
    return share * tables.at("log_betas", t) + (1 - share) * tables.at("posterior_log_variance_clipped", t)


def training_loss(tables: DiffusionTables, denoise: Denoiser, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Hybrid loss of iDDPM (section 3.1): mean squared error of the noise plus the variational term in bits.

    x0 and noise (N, D), t (N,). Returns (N,): one loss per token, averaged over D."""
    xt = noised(tables, x0, t, noise)
    eps, raw = denoise(xt, t).chunk(2, dim=-1)
    mse = (noise - eps).square().mean(-1)
    # the variational term trains only the variance: the mean is detached
    mean = posterior_mean(tables, predict_x0(tables, xt, t, eps.detach()), xt, t)
    log_variance = learned_log_variance(tables, raw, t)
    true_mean = posterior_mean(tables, x0, xt, t)
    kl = gaussian_kl(true_mean, tables.at("posterior_log_variance_clipped", t), mean, log_variance)
    nll = -discretised_gaussian_log_likelihood(x0, mean, 0.5 * log_variance)
    return mse + torch.where(t == 0, nll.mean(-1), kl.mean(-1)) / math.log(2)


def gaussian_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL divergence between two diagonal Gaussians, elementwise, in nats."""
    difference = log_variance2 - log_variance1 - 1.0 + torch.exp(log_variance1 - log_variance2)
    return 0.5 * (difference + (mean1 - mean2).square() * torch.exp(-log_variance2))


def bound_terms(tables: DiffusionTables, denoise: Denoiser, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """The terms at steps ``t`` of the variational bound on -log p(x0) (iDDPM, equations 4 to 6): (N,) nats.

    x0 and noise (N, D), t (N,) of the full process; summed over D. The last step's term is a Gaussian density, not the
    official code's bins for 8-bit images, so that the sum over all steps and ``prior_term`` bounds a density."""
    xt = noised(tables, x0, t, noise)
    eps, raw = denoise(xt, t).chunk(2, dim=-1)
    mean = posterior_mean(tables, predict_x0(tables, xt, t, eps), xt, t)
    log_variance = learned_log_variance(tables, raw, t)
    true = posterior_mean(tables, x0, xt, t), tables.at("posterior_log_variance_clipped", t)
    density = 0.5 * (math.log(2 * math.pi) + log_variance + (x0 - mean).square() * torch.exp(-log_variance))
    return torch.where(t[:, None] == 0, density, gaussian_kl(*true, mean, log_variance)).sum(-1)


def prior_term(tables: DiffusionTables, x0: Tensor, start: int = -1) -> Tensor:
    """The bound's KL divergence of q(x_T | x_0) from the start of sampling (iDDPM, equation 7): (N, D) -> (N,) nats.

    ``start``: the noisiest step of which there is a term, by default the last of all."""
    variance = tables.sigma[start].square()
    return gaussian_kl(tables.signal[start] * x0, variance.log(), torch.zeros_like(x0), torch.zeros_like(variance)).sum(
        -1
    )


@lru_cache(maxsize=16)
def strata(
    num_timesteps: int, count: int | None, skipped: int = 0, schedule: str = "cosine"
) -> tuple[tuple[int, int], ...]:
    """``count`` runs of consecutive steps, (first, size), that together are all steps but the ``skipped`` noisiest;
    None or too many: one each.

    A random step of each, times its size, estimates the bound without bias. The first and the last step stand alone,
    as their terms are unlike their neighbours'. The others are split where the bound's weight on the error of the
    predicted noise, beta^2 / (2 variance alpha (1 - alpha_bar)) (DDPM, equation 12), has equal sums."""
    steps = num_timesteps - skipped
    if count is None or count >= steps:
        return tuple((step, 1) for step in range(steps))
    tables, last = DiffusionTables.make(num_timesteps, schedule=schedule), steps - 1
    scale = 2 * tables.posterior_variance * (1 - tables.betas) * (1 - tables.alphas_cumprod)
    share = (tables.betas.square() / scale)[1:last].cumsum(0).numpy()
    begins, inner = [0, 1], count - 2
    for i in range(1, inner):
        wanted = 1 + int(np.searchsorted(share, share[-1] * i / inner))
        begins.append(min(max(wanted, begins[-1] + 1), last - (inner - i)))  # at least one step for each that follows
    begins.append(last)
    return tuple((begin, end - begin) for begin, end in itertools.pairwise([*begins, steps]))


def discretised_gaussian_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log-probability of the bin of half-width 1/255 around ``x``; the outermost bins are open (official code)."""

    def cdf(x: Tensor) -> Tensor:  # the official tanh approximation; the exact function would change the loss at t = 0
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    centred, inverse = x - mean, torch.exp(-log_scale)
    upper, lower = cdf(inverse * (centred + 1 / 255)), cdf(inverse * (centred - 1 / 255))
    probability = torch.where(x < -0.999, upper, torch.where(x > 0.999, 1 - lower, upper - lower))
    return probability.clamp(min=1e-12).log()


def sample(
    tables: DiffusionTables,
    denoise: StepDenoiser,
    noise: Iterable[Tensor],
    temperature: float = 1.0,
    clamp_x0: float | None = None,
    step: Callable[..., tuple[Tensor, Tensor]] | None = None,
) -> Tensor:
    """Ancestral sampling in the T steps of ``tables`` (DDPM, algorithm 2, with iDDPM's learned variance).

    noise: the start (N, D), then the noise (N, D) added in each step, the noisiest step first; T + 1 rows, the last one
    unused. ``temperature`` multiplies the added noise (paper, section 3.2); ``clamp_x0`` bounds the
    predicted x0; ``step`` is ``ancestral``, possibly compiled. Returns (N, D)."""
    each = iter(noise)
    x = next(each)
    last, *noisier = tables.rows()
    for row in reversed(noisier):
        x, x0 = (step or ancestral)(row, x, denoise(x, row.timesteps[0]), next(each), temperature, clamp_x0)
        if clamp_x0 is not None:
            finite(x0, PREDICTED)
    return posterior_mean(last, _denoised(last, denoise, x, clamp_x0)[1], x, None)  # adds no noise


def ancestral(
    row: DiffusionTables, x: Tensor, output: Tensor, noise: Tensor, temperature: float, clamp_x0: float | None
) -> tuple[Tensor, Tensor]:
    """A sample (N, D) of the next, less noisy x, and the predicted x0 before it is clamped."""
    eps, raw = output.chunk(2, dim=-1)
    x0 = predict_x0(row, x, None, eps)
    mean = posterior_mean(row, x0 if clamp_x0 is None else x0.clamp(-clamp_x0, clamp_x0), x, None)
    return mean + torch.exp(0.5 * learned_log_variance(row, raw, None)) * noise * temperature, x0


def sample_ddim(tables: DiffusionTables, denoise: StepDenoiser, start: Tensor, clamp_x0: float | None = None) -> Tensor:
    """Deterministic sampling in the steps of ``tables`` (DDIM, 2010.02502, equation 12 with sigma = 0).

    start (N, D) is the only noise; the predicted variance is unused. If x0 is clamped, the noise is adjusted so that
    both still add up to x_t. Returns (N, D)."""
    x, rows = start, tables.rows()
    for row, after in zip(rows[:0:-1], rows[-2::-1]):
        eps, x0 = _denoised(row, denoise, x, clamp_x0)
        if clamp_x0 is not None:
            eps = (row.inverse_signal * x - x0) / row.inverse_snr
        x = noised(after, x0, None, eps)
    return _denoised(rows[0], denoise, x, clamp_x0)[1]


def sample_dpm_solver(
    tables: DiffusionTables, denoise: StepDenoiser, start: Tensor, clamp_x0: float | None = None
) -> Tensor:
    """Deterministic sampling in the steps of ``tables`` by DPM-Solver++(2M) (2211.01095, algorithm 2).

    The ODE of DDIM, but each step extrapolates x0 from its last two predictions. The first step has only one, and the
    last, whose end has no noise, takes one. start (N, D) is the only noise. Returns (N, D)."""
    x, earlier, rows = start, None, tables.rows()
    log_snr = (tables.signal / tables.sigma).log()  # lambda
    shrink = tables.sigma[:-1] / tables.sigma[1:]  # from step i + 1 to step i
    gain = tables.signal[:-1] - tables.signal[1:] * shrink
    lengths = log_snr[:-1] - log_snr[1:]
    reach = 0.5 * lengths[:-1] / lengths[1:]  # 1 / 2r, r being the previous step's length over this one's
    for i in reversed(range(len(rows) - 1)):
        x0 = _denoised(rows[i + 1], denoise, x, clamp_x0)[1]
        ahead = x0 if earlier is None else x0 + reach[i] * (x0 - earlier)
        x, earlier = shrink[i] * x + gain[i] * ahead, x0
    return _denoised(rows[0], denoise, x, clamp_x0)[1]


DETERMINISTIC = {"ddim": sample_ddim, "dpm_solver": sample_dpm_solver}  # by name in specs; "ddpm" is ``sample``


def _denoised(row: DiffusionTables, denoise: StepDenoiser, x: Tensor, clamp_x0: float | None) -> tuple[Tensor, Tensor]:
    """The network's noise, and x0, each (N, D)."""
    eps, _ = denoise(x, row.timesteps[0]).chunk(2, dim=-1)
    x0 = predict_x0(row, x, None, eps)
    return eps, x0 if clamp_x0 is None else finite(x0, PREDICTED).clamp(-clamp_x0, clamp_x0)
