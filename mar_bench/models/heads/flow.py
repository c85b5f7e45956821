"""Flow-matching head: an MLP predicts the velocity that moves noise to a token along a straight line.

Flow matching (2210.02747) along the path of rectified flow (2209.03003): x_t = (1 - t) eps + t x with velocity
x - eps, so t = 0 is noise and t = 1 the token."""

from __future__ import annotations

from torch import Tensor

from mar_bench.config.spec import Continuous, FlowHead, SamplingSpec
from mar_bench.models.heads.base import Head
from mar_bench.models.heads.layers import AdaLNMLP, guided_network
from mar_bench.utils.noise import NoiseSource

# Times in [0, 1] are scaled to the range of diffusion timesteps before they are embedded: the fastest sinusoid has
# a period of 2 pi, so over [0, 1] alone none would complete a sixth of a turn.
TIME_SCALE = 1000.0


class Flow(Head):
    """Flow-matching loss; guidance acts on the velocity. Temperature multiplies the initial noise."""

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
        velocity = self.net.conditioned(xt.flatten(0, 2), TIME_SCALE * t.flatten(), condition.flatten(0, 2)).float()
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
            x = x + velocity(x, x.new_full((1,), TIME_SCALE * i / steps)) / steps
        return x.view_as(drawn)
