"""The paper's published autoencoders through diffusers, with weights from a local file that mar-bench convert wrote.

KL-16 and VQ-16 are latent diffusion's (2112.10752), KL-8 is the fine-tuned one of Stable Diffusion, and the
Consistency Decoder is OpenAI's. ``net_of(spec)`` defines the names and shapes of a file's tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mar_bench.config import spec as specs
from mar_bench.models.finite import clipped
from mar_bench.models.pretrained.fetch import converted
from mar_bench.models.tokenizers.base import Tokenizer, check_codable, grid_to_tokens, tokens_to_grid
from mar_bench.utils.errors import UserError
from mar_bench.utils.noise import NoiseSource

WIDTHS: dict[str, tuple[int, ...]] = {"sd_kl": (128, 256, 512, 512)}  # channels at each resolution
WIDTHS |= dict.fromkeys(("ldm_kl", "ldm_vq"), (128, 128, 256, 256, 512))
CHUNK = 16  # images encoded together while the scale is measured
PublishedSpec = specs.LDMKLTokenizer | specs.LDMVQTokenizer | specs.SDKLTokenizer | specs.ConsistencyTokenizer


def _diffusers():
    try:
        import diffusers
    except ImportError:
        raise UserError("the paper's tokenizers need diffusers: pip install 'mar-bench[paper]'") from None
    return diffusers


def net_of(spec: PublishedSpec) -> nn.Module:
    """The diffusers network of a published tokenizer, before its weights are loaded."""
    library = _diffusers()
    if spec.kind == "consistency":
        return library.ConsistencyDecoderVAE()
    widths = WIDTHS[spec.kind]
    down, up = ["DownEncoderBlock2D"] * len(widths), ["UpDecoderBlock2D"] * len(widths)
    blocks = {"block_out_channels": widths, "layers_per_block": 2, "down_block_types": down, "up_block_types": up}
    if spec.kind != "sd_kl":
        down[-1] = "AttnDownEncoderBlock2D"  # KL-16 has none in the decoder (official code)
    if spec.kind != "ldm_vq":
        return library.AutoencoderKL(**blocks, latent_channels=spec.latent_dim)
    up[0] = "AttnUpDecoderBlock2D"
    dim = spec.code_dim
    return library.VQModel(**blocks, latent_channels=dim, vq_embed_dim=dim, num_vq_embeddings=spec.vocab_size)


class Published(Tokenizer):
    """A diffusers network with the spec's weights (shapes only on the meta device), one scale for all channels and no
    shift (official code). Raises UserError if the file is missing, damaged or does not fit."""

    scale: Tensor  # ()
    net: Any  # a diffusers model

    def __init__(self, spec: PublishedSpec, data: specs.DataSpec):
        super().__init__()
        self.space = specs.latent_space(spec, data)
        self.net = net_of(spec)
        scale = getattr(spec, "scale", None)
        self.register_buffer("scale", torch.tensor(float("nan") if scale is None else scale))
        if next(self.net.parameters()).is_meta:
            return
        if spec.weights is None or not Path(spec.weights).is_file():
            raise UserError(
                f"tokenizer '{spec.kind}' ({spec.name}) needs its published weights: set tokenizer.weights to a file "
                f"written by mar-bench convert (found {spec.weights or 'none'})"
            )
        converted(Path(spec.weights))
        try:
            self.net.load_state_dict(load_file(spec.weights), strict=True)
        except (RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"{spec.weights}: not the weights of {spec.name}: {reason}; see mar-bench convert"
            ) from None
        self.net.eval().requires_grad_(False)

    def _moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Raw mean and std of the latent, each (B, L, D); the std of a VQ-VAE's latent is 0."""
        found = self.net.encode(images)
        mean = grid_to_tokens(found.latent_dist.mean if self.stochastic else found.latents)
        return mean, grid_to_tokens(found.latent_dist.std) if self.stochastic else torch.zeros_like(mean)

    def stored(self, images: Tensor) -> dict[str, Tensor]:
        mean, std = self._moments(images)
        return {"mean": mean * self.scale, "std": std * self.scale}

    def fitted_state(self) -> dict[str, Tensor]:
        return {"scale": self.scale}

    def load_fitted(self, state: dict[str, Tensor]) -> None:
        if "scale" not in state:
            raise RuntimeError("no scale of the tokens in the fitted state")
        self.scale.copy_(state["scale"])

    @torch.no_grad()
    def fit_scale(self, images: Tensor) -> None:
        """1 / std of the sampled latents of the training images, over all channels."""
        means, variances = zip(*((m, s.square()) for m, s in map(self._moments, images.split(CHUNK))))
        self.scale.copy_((torch.cat(means).var() + torch.cat(variances).mean()).rsqrt())


class KLAutoencoder16(Published):
    """KL-16 of latent diffusion (16 channels, stride 16), or KL-8 of Stable Diffusion (4 channels, stride 8)."""

    stochastic = True

    def decode(self, tokens: Tensor, noise: NoiseSource | None = None) -> Tensor:
        return clipped(self.net.decode(tokens_to_grid(tokens / self.scale, self.space.grid)).sample)


class ConsistencyDecoder(KLAutoencoder16):
    """Stable Diffusion's latents, decoded in two denoising steps with noise that depends on the image index."""

    def __init__(self, spec: specs.ConsistencyTokenizer, data: specs.DataSpec):
        super().__init__(spec, data)
        self.seed = spec.decode_seed

    def decode(self, tokens: Tensor, noise: NoiseSource | None = None) -> Tensor:
        own = NoiseSource(self.seed, range(len(tokens)) if noise is None else noise.indices)
        generators = [torch.Generator().manual_seed(int(s)) for s in own.integers("decode", 0, 2**63 - 1, ())]
        # diffusers applies the published scale itself
        latents = tokens_to_grid(tokens / self.scale, self.space.grid)
        return clipped(self.net.decode(latents, generator=generators).sample)


class VQAutoencoder16(Published):
    """VQ-16 of latent diffusion: 16,384 codes of 8 dimensions, or the latents before quantisation."""

    def stored(self, images: Tensor) -> dict[str, Tensor]:
        if not isinstance(self.space, specs.Discrete):
            return {"latents": self._moments(images)[0] * self.scale}
        latents = self.net.encode(images).latents
        check_codable(latents)
        codes = self.net.quantize(latents)[2][2]
        return {"codes": codes.view(images.shape[0], -1).int()}

    def decode(self, tokens: Tensor, noise: NoiseSource | None = None) -> Tensor:
        """Latents are quantised first, as in the decoder's training."""
        codes = isinstance(self.space, specs.Discrete)
        values = self.net.quantize.embedding(tokens) if codes else tokens / self.scale
        latents = tokens_to_grid(values, self.space.grid)
        return clipped(self.net.decode(latents, force_not_quantize=codes).sample)
