"""Latent diffusion's published autoencoders (Rombach et al. 2022) through diffusers, weights from a local file."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from mar_bench.errors import UserError
from mar_bench.spec import DataSpec, LDMKLTokenizer, LDMVQTokenizer, token_space
from mar_bench.tokenizers.base import Tokenizer, grid_to_tokens, tokens_to_grid

STAGES = (128, 128, 256, 256, 512)  # channels at each resolution of the f16 models


def _load(module: nn.Module, spec: LDMKLTokenizer | LDMVQTokenizer) -> nn.Module:
    """Weights, strictly. Without a file the module stays as it is on the meta device and cannot run."""
    if next(module.parameters()).is_meta:
        return module
    if spec.weights is None or not Path(spec.weights).is_file():
        raise UserError(
            f"tokenizer '{spec.kind}' ({spec.name}) needs its published weights: set tokenizer.weights to a "
            f"safetensors file in diffusers' names (found {spec.weights or 'none'})"
        )
    try:
        module.load_state_dict(load_file(spec.weights), strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{spec.weights}: not the weights of {spec.name}: {reason}") from None
    return module.eval().requires_grad_(False)


def _diffusers():
    try:
        import diffusers
    except ImportError:
        raise UserError("the paper's tokenizers need diffusers: pip install 'mar-bench[paper]'") from None
    return diffusers


class LDMKLAutoencoder(Tokenizer):
    """KL-f16 as the official code has it: attention in the encoder's last stage, none in the decoder."""

    stochastic = True

    def __init__(self, spec: LDMKLTokenizer, data: DataSpec):
        super().__init__()
        self.scale, self.space = spec.scale, token_space(spec, data)
        last = len(STAGES) - 1
        self.net = _load(
            _diffusers().AutoencoderKL(
                in_channels=data.channels,
                out_channels=data.channels,
                block_out_channels=STAGES,
                layers_per_block=2,
                latent_channels=spec.latent_dim,
                down_block_types=["DownEncoderBlock2D"] * last + ["AttnDownEncoderBlock2D"],
                up_block_types=["UpDecoderBlock2D"] * len(STAGES),
            ),
            spec,
        )

    def stored(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        latent = self.net.encode(images).latent_dist
        return {"mean": grid_to_tokens(latent.mean) * self.scale, "std": grid_to_tokens(latent.std) * self.scale}

    @staticmethod
    def tokens_of(stored: dict[str, torch.Tensor], noise: torch.Tensor | None) -> torch.Tensor:
        return stored["mean"] if noise is None else stored["mean"] + stored["std"] * noise

    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.net.decode(tokens_to_grid(tokens / self.scale, self.space.grid)).sample.clamp(-1, 1)


class LDMVQAutoencoder(Tokenizer):
    """VQ-f16: 16,384 codes of 8 dimensions."""

    def __init__(self, spec: LDMVQTokenizer, data: DataSpec):
        super().__init__()
        self.space = token_space(spec, data)
        last = len(STAGES) - 1
        self.net = _load(
            _diffusers().VQModel(
                in_channels=data.channels,
                out_channels=data.channels,
                block_out_channels=STAGES,
                layers_per_block=2,
                latent_channels=spec.code_dim,
                num_vq_embeddings=spec.vocab_size,
                vq_embed_dim=spec.code_dim,
                down_block_types=["DownEncoderBlock2D"] * last + ["AttnDownEncoderBlock2D"],
                up_block_types=["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * last,
            ),
            spec,
        )

    def stored(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        latents = self.net.encode(images).latents
        codes = self.net.quantize(latents)[2][2]
        return {"codes": codes.view(images.shape[0], -1).int()}

    @staticmethod
    def tokens_of(stored: dict[str, torch.Tensor], noise: torch.Tensor | None) -> torch.Tensor:
        return stored["codes"].long()

    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        latents = tokens_to_grid(self.net.quantize.embedding(tokens), self.space.grid)
        return self.net.decode(latents, force_not_quantize=True).sample.clamp(-1, 1)
