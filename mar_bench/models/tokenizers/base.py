"""The contract of a tokenizer."""

from __future__ import annotations

from torch import Tensor, nn

from mar_bench.config.spec import TokenSpace
from mar_bench.models.finite import check_finite
from mar_bench.utils.noise import NoiseSource


class Tokenizer(nn.Module):
    """Images (B, C, H, W) in [-1, 1] <-> tokens in ``space``; owns the shift and scale of the tokens."""

    space: TokenSpace
    stochastic = False  # whether tokens_of takes noise

    def stored(self, images: Tensor) -> dict[str, Tensor]:
        """Tensors (B, L[, D]) of images for the latent cache."""
        raise NotImplementedError

    @staticmethod
    def tokens_of(stored: dict[str, Tensor], noise: Tensor | None) -> Tensor:
        """Tokens (B, L[, D]) of ``codes``, ``pixels``, ``latents``, or ``mean`` and ``std`` with ``noise`` (B, L, D),
        with which a stochastic encoder is sampled anew in each step. Without noise the token is the mean."""
        if "codes" in stored:
            return stored["codes"].long()
        if "pixels" in stored:
            return stored["pixels"].float() / 127.5 - 1
        if "latents" in stored:
            return stored["latents"]
        return stored["mean"] if noise is None else stored["mean"] + stored["std"] * noise

    def encode(self, images: Tensor) -> Tensor:
        """Tokens (B, L[, D]) of images, without noise."""
        return self.tokens_of(self.stored(images), None)

    def decode(self, tokens: Tensor, noise: NoiseSource | None = None) -> Tensor:
        """Images (B, C, H, W) of tokens, clipped to [-1, 1].

        A stochastic decoder draws noise for the image indices of ``noise``, by default 0, ..., B - 1."""
        raise NotImplementedError

    def training_loss(self, images: Tensor, noise: Tensor) -> Tensor:
        """Scalar loss of a batch (B, C, H, W) with ``noise`` (B, L, D) standard normal."""
        raise NotImplementedError

    def fit_scale(self, images: Tensor) -> None:
        """Set shift and scale from training images once training is over; by default there is nothing to do."""

    def fitted_state(self) -> dict[str, Tensor]:
        """The state to save: everything that training and ``fit_scale`` determine."""
        return self.state_dict()

    def load_fitted(self, state: dict[str, Tensor]) -> None:
        """The inverse of ``fitted_state``. Raises RuntimeError if ``state`` is from another tokenizer."""
        self.load_state_dict(state)


def check_codable(latents: Tensor) -> None:
    """Raises UserError for latents that are not finite: any of them would be given a code."""
    check_finite({"an encoded image": latents}, "the tokenizer", "check that it is trained and its weights are intact")


def grid_to_tokens(x: Tensor) -> Tensor:
    """(B, D, h, w) -> (B, h w, D), row by row."""
    return x.flatten(2).transpose(1, 2)


def tokens_to_grid(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, h w, D) -> (B, D, h, w)."""
    return tokens.transpose(1, 2).unflatten(2, grid)
