"""MAR as published (Li et al., 2406.11838, sections 3.2 to 3.4, appendices A and B), written down without regard to
speed: what ``benchmarks/against_baseline.py`` compares our time with.

Independent of mar_bench. Parameters have the names of the published checkpoints, and tests/parity compares condition,
loss and samples with arrays of the official code. B images, L tokens of D values, E-dimensional conditions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

Rows = Iterable[Tensor]  # of noise: the start of denoising, then what each step adds, (N, D) each
Noise = Callable[[int, int], Rows]  # AR step and number of tokens N -> their noise


class Residual(nn.Module):
    """A block of the denoising MLP: x + gate * MLP(AdaLN(x))."""

    def __init__(self, width: int):
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shift, scale, gate = self.adaLN_modulation(y).chunk(3, dim=-1)
        return x + gate * self.mlp(self.in_ln(x) * (1 + scale) + shift)


class Denoiser(nn.Module):
    """Noisy tokens (N, D), timesteps (N,), conditions (N, E) -> noise and raw variance (N, 2 D)."""

    def __init__(self, token_dim: int, dim: int, depth: int, width: int):
        super().__init__()
        self.time_embed = nn.ModuleDict(
            {"mlp": nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))}
        )
        self.cond_embed = nn.Linear(dim, width)
        self.input_proj = nn.Linear(token_dim, width)
        self.res_blocks = nn.ModuleList(Residual(width) for _ in range(depth))
        final = {
            "linear": nn.Linear(width, 2 * token_dim),
            "adaLN_modulation": nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width)),
        }
        self.final_layer = nn.ModuleDict(final)

    def forward(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        frequencies = torch.exp(-math.log(10_000) * torch.arange(128, dtype=torch.float32, device=t.device) / 128)
        waves = t[:, None].float() * frequencies
        y = self.time_embed["mlp"](torch.cat([waves.cos(), waves.sin()], dim=-1)) + self.cond_embed(z)
        x = self.input_proj(x)
        for block in self.res_blocks:
            x = block(x, y)
        shift, scale = self.final_layer["adaLN_modulation"](y).chunk(2, dim=-1)
        return self.final_layer["linear"](F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift)


class Diffusion:
    """A cosine schedule of 1000 steps, or the respaced steps of it: tables in float64, read anew in each step."""

    def __init__(self, steps: int = 1000):
        alpha_bar = [math.cos((i / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(1001)]
        kept = np.cumprod([1 - min(1 - alpha_bar[i + 1] / alpha_bar[i], 0.999) for i in range(1000)])
        position, self.timesteps = 0.0, []
        for _ in range(steps):
            self.timesteps.append(round(position))
            position += 999 / (steps - 1)
        self.alpha_bar = kept[self.timesteps]
        self.before = np.append(1.0, self.alpha_bar[:-1])
        self.beta = 1 - self.alpha_bar / self.before
        variance = self.beta * (1 - self.before) / (1 - self.alpha_bar)
        self.log_variance = np.log(np.append(variance[1], variance[1:]))

    @staticmethod
    def at(table: np.ndarray, t: Tensor, like: Tensor) -> Tensor:
        """The values of a table at steps t (N,), as large as ``like`` (N, D)."""
        return torch.from_numpy(table).to(t.device)[t].float()[:, None].expand_as(like)

    def posterior_mean(self, x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """iDDPM, equation 11."""
        of_x0 = self.beta * np.sqrt(self.before) / (1 - self.alpha_bar)
        of_x = (1 - self.before) * np.sqrt(1 - self.beta) / (1 - self.alpha_bar)
        return self.at(of_x0, t, x) * x0 + self.at(of_x, t, x) * x

    def predicted(self, output: Tensor, x: Tensor, t: Tensor, clamp: float | None) -> tuple[Tensor, Tensor]:
        """Mean and log variance of p(x_{t-1} | x_t) (iDDPM, equations 13 and 15) from the network's output."""
        eps, raw = output.chunk(2, dim=-1)
        share = (raw + 1) / 2
        log_variance = share * self.at(np.log(self.beta), t, x) + (1 - share) * self.at(self.log_variance, t, x)
        x0 = self.at(np.sqrt(1 / self.alpha_bar), t, x) * x - self.at(np.sqrt(1 / self.alpha_bar - 1), t, x) * eps
        x0 = x0 if clamp is None else x0.clamp(-clamp, clamp)
        return self.posterior_mean(x0, x, t), log_variance

    def loss(self, net: Callable[[Tensor, Tensor], Tensor], x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The hybrid loss (N,) of iDDPM, section 3.1: the error of the noise, and the variational term in bits."""
        x = self.at(np.sqrt(self.alpha_bar), t, x0) * x0 + self.at(np.sqrt(1 - self.alpha_bar), t, x0) * noise
        output = net(x, t)
        eps, raw = output.chunk(2, dim=-1)
        mean, log_variance = self.predicted(torch.cat([eps.detach(), raw], dim=-1), x, t, None)
        true_mean, true_log_variance = self.posterior_mean(x0, x, t), self.at(self.log_variance, t, x0)
        ratio = true_log_variance - log_variance
        kl = 0.5 * (ratio.exp() - 1 - ratio + (true_mean - mean) ** 2 * (-log_variance).exp())
        inverse = (-0.5 * log_variance).exp()
        upper, lower = (self.cdf(inverse * (x0 - mean + side / 255)) for side in (1, -1))
        inside = (upper - lower).clamp(min=1e-12).log()
        tails = torch.where(x0 < -0.999, upper.clamp(min=1e-12).log(), (1 - lower).clamp(min=1e-12).log())
        nll = -torch.where(x0.abs() > 0.999, tails, inside)
        bits = torch.where(t == 0, nll.mean(-1), kl.mean(-1)) / math.log(2)
        return ((noise - eps) ** 2).mean(-1) + bits

    @staticmethod
    def cdf(x: Tensor) -> Tensor:
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def sample(
        self, net: Callable[[Tensor, Tensor], Tensor], rows: Rows, temperature: float, clamp: float | None
    ) -> Tensor:
        """Ancestral sampling (DDPM, algorithm 2): (N, D)."""
        noise = iter(rows)
        x = next(noise)
        for i in reversed(range(len(self.timesteps))):
            t = torch.full((len(x),), i, device=x.device)
            output = net(x, torch.tensor(self.timesteps, device=x.device)[t])
            mean, log_variance = self.predicted(output, x, t, clamp)
            added = (t != 0).float()[:, None] * torch.exp(0.5 * log_variance) * next(noise) * temperature
            x = mean + added
        return x


class Head(nn.Module):
    def __init__(self, token_dim: int, dim: int, depth: int, width: int):
        super().__init__()
        self.net = Denoiser(token_dim, dim, depth, width)


class MAR(nn.Module):
    """Masked autoregressive generation with the diffusion loss."""

    def __init__(
        self,
        length: int,
        token_dim: int,
        dim: int,
        depth: int,
        heads: int,
        head_depth: int,
        head_width: int,
        classes: int = 1000,
        class_tokens: int = 64,
    ):
        super().__init__()
        self.length, self.token_dim, self.class_tokens = length, token_dim, class_tokens
        self.class_emb = nn.Embedding(classes, dim)
        self.fake_latent = nn.Parameter(torch.zeros(1, dim))  # stands for "no class"
        self.z_proj, self.z_proj_ln = nn.Linear(token_dim, dim), nn.LayerNorm(dim, eps=1e-6)
        self.encoder_pos_embed_learned = nn.Parameter(torch.zeros(1, class_tokens + length, dim))
        self.encoder_blocks, self.encoder_norm = self.blocks(dim, depth, heads), nn.LayerNorm(dim, eps=1e-6)
        self.decoder_embed, self.mask_token = nn.Linear(dim, dim), nn.Parameter(torch.zeros(1, 1, dim))
        self.decoder_pos_embed_learned = nn.Parameter(torch.zeros(1, class_tokens + length, dim))
        self.decoder_blocks, self.decoder_norm = self.blocks(dim, depth, heads), nn.LayerNorm(dim, eps=1e-6)
        self.diffusion_pos_embed_learned = nn.Parameter(torch.zeros(1, length, dim))
        self.diffloss = Head(token_dim, dim, head_depth, head_width)

    @staticmethod
    def blocks(dim: int, depth: int, heads: int) -> nn.ModuleList:
        norm = partial(nn.LayerNorm, eps=1e-6)
        drop = {"proj_drop": 0.1, "attn_drop": 0.1}  # in training
        return nn.ModuleList(Block(dim, heads, 4.0, qkv_bias=True, norm_layer=norm, **drop) for _ in range(depth))

    def condition(self, tokens: Tensor, mask: Tensor, classes: Tensor) -> Tensor:
        """Tokens (B, L, D), mask (B, L), 1 where unknown, and embedded classes (B, E) -> z (B, L, E)."""
        batch, dim = classes.shape
        x = self.z_proj(tokens)
        front = torch.zeros(batch, self.class_tokens, dim, device=x.device) + classes[:, None]
        x = self.z_proj_ln(torch.cat([front, x], dim=1) + self.encoder_pos_embed_learned)
        everywhere = torch.cat([torch.zeros(batch, self.class_tokens, device=x.device), mask], dim=1)
        x = x[everywhere == 0].reshape(batch, -1, dim)
        for block in self.encoder_blocks:
            x = block(x)
        x = self.decoder_embed(self.encoder_norm(x))
        full = self.mask_token.repeat(batch, everywhere.shape[1], 1).to(x.dtype)
        full[everywhere == 0] = x.reshape(-1, dim)
        x = full + self.decoder_pos_embed_learned
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_norm(x)[:, self.class_tokens :] + self.diffusion_pos_embed_learned

    def loss(self, tokens: Tensor, labels: Tensor, mask: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The mean loss of unknown tokens. t (M B L,) and noise (M B L, D): M draws a token, repeated as blocks."""
        z = self.condition(tokens, mask, self.class_emb(labels))
        repeats = len(t) // mask.numel()
        z, target = z.flatten(0, 1).repeat(repeats, 1), tokens.flatten(0, 1).repeat(repeats, 1)
        weight = mask.flatten().repeat(repeats)
        losses = Diffusion().loss(lambda x, t: self.diffloss.net(x, t, z), target, t, noise)
        return (losses * weight).sum() / weight.sum()

    @torch.no_grad()
    def sample(
        self,
        labels: Tensor,
        orders: Tensor,
        noise: Noise,
        ar_steps: int,
        denoising_steps: int,
        scale: float = 1.0,
        schedule: str = "linear",
        temperature: float = 1.0,
        clamp: float | None = None,
    ) -> Tensor:
        """Tokens (B, L, D) for labels (B,). Generation runs through the orders (B, L) from their end."""
        batch, length = orders.shape
        tokens, mask = torch.zeros(batch, length, self.token_dim, device=labels.device), torch.ones_like(orders).float()
        diffusion = Diffusion(denoising_steps)
        for k in range(ar_steps):
            classes = self.class_emb(labels)
            if scale != 1:
                classes = torch.cat([classes, self.fake_latent.expand_as(classes)])
            fold = len(classes) // batch
            z = self.condition(tokens.repeat(fold, 1, 1), mask.repeat(fold, 1), classes)
            left = int(mask[0].sum())
            after = max(1, min(left - 1, math.floor(length * math.cos(math.pi / 2 * (k + 1) / ar_steps))))
            still = torch.zeros_like(mask).scatter(1, orders[:, :after], 1.0)
            now = mask.bool() if k == ar_steps - 1 else mask.bool() & ~still.bool()
            z = z[now.repeat(fold, 1)]
            w = scale if schedule == "constant" else 1 + (scale - 1) * (length - after) / length

            def net(x: Tensor, t: Tensor, z: Tensor = z, w: float = w, fold: int = fold) -> Tensor:
                if fold == 1:
                    return self.diffloss.net(x, t, z)
                output = self.diffloss.net(x.repeat(2, 1), t.repeat(2), z)
                eps, raw = output.chunk(2, dim=-1)
                conditional, unconditional = eps.chunk(2)
                return torch.cat([unconditional + w * (conditional - unconditional), raw.chunk(2)[0]], dim=-1)

            tokens[now] = diffusion.sample(net, noise(k, int(now.sum())), temperature, clamp)
            mask = still
        return tokens


def drawn(seed: int, token_dim: int, device: torch.device) -> Noise:
    """Noise drawn when it is needed, as the official code does."""
    generator = torch.Generator(device).manual_seed(seed)

    def rows(step: int, count: int) -> Iterator[Tensor]:
        while True:
            yield torch.randn(count, token_dim, generator=generator, device=device)

    return rows
