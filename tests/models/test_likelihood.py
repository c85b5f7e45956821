"""Likelihoods where they are known: by enumeration, from torch.distributions, and of Gaussian tokens."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from mar_bench.config.spec import Discrete, LikelihoodSpec
from mar_bench.models.ar import ARGenerator
from mar_bench.models.backbones.base import Backbone
from mar_bench.models.diffusion import (
    DiffusionTables,
    bound_terms,
    prior_term,
    strata,
    tables_on,
)
from mar_bench.models.heads.linear import CrossEntropy
from mar_bench.models.likelihood import bits_per_token
from mar_bench.utils.errors import UserError
from mar_bench.utils.noise import NoiseSource
from tests.tiny import (
    HEAD_SPECS,
    NUM_CLASSES,
    SMALL,
    backbone_of,
    generator_of,
    head_of,
    normal,
    scrambled,
    space_of,
    tokens_in,
)

SPEC = LikelihoodSpec(orders=1)
B, L = 6, 9
LABELS = torch.arange(B) % NUM_CLASSES


def bits(model, tokens, order: str = "random", noise=None, **settings) -> torch.Tensor:
    noise = noise or NoiseSource(0, range(len(tokens)))
    return bits_per_token(model, tokens, LABELS[: len(tokens)], order, replace(SPEC, **settings), noise)


# --- the chain rule --------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["raster", "random"])
@pytest.mark.parametrize("backbone", ["masked", "causal"])
def test_the_probabilities_of_all_sequences_sum_to_1(backbone, order):
    space = Discrete(3, (2, 2))
    head = scrambled(CrossEntropy(HEAD_SPECS["cross_entropy"](), space, SMALL["dim"]))
    model = ARGenerator(order, backbone_of(backbone, space), head, space, label_dropout=0.1).eval()
    every = torch.tensor([*itertools.product(range(3), repeat=4)])
    same_order = NoiseSource(3, [0] * len(every))
    found = bits_per_token(model, every, torch.full((len(every),), 2), order, SPEC, same_order)
    probabilities = 2 ** (-4 * found)
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-5)
    assert probabilities.max() > 3 * probabilities.min()  # the model knows something


def test_one_teacher_forced_pass_gives_what_one_pass_for_each_place_does():
    space, places = space_of("gmm"), torch.tensor([[0, 3, 8], [1, 2, 5]])
    causal, tokens, labels = backbone_of("causal", space), tokens_in(space, 2), LABELS[:2]
    order = torch.stack([torch.arange(L), torch.arange(L).flip(0)])
    slow = Backbone.conditions(causal, tokens, labels, order, places)
    torch.testing.assert_close(causal.conditions(tokens, labels, order, places), slow)


class Contextless(Backbone):
    """z depends on the position alone."""

    dim = SMALL["dim"]

    def conditions(self, tokens, labels, order, places):
        return normal(L, self.dim)[order.gather(1, places)]

    num_known = new_cache = predict = forward = None


@pytest.mark.parametrize("kind", ["cross_entropy", "gmm"])
def test_all_orders_agree_if_tokens_are_independent(kind):
    model = ARGenerator("random", Contextless(), head_of(kind), space_of(kind), label_dropout=0.1)
    tokens = tokens_in(space_of(kind), B)
    raster = bits(model, tokens, "raster")
    torch.testing.assert_close(bits(model, tokens, "random"), raster)
    torch.testing.assert_close(bits(model, tokens, "random", orders=3), raster)


@pytest.mark.parametrize("backbone", ["masked", "causal"])
def test_some_positions_give_all_of_them_on_average(backbone):
    class Starts(NoiseSource):
        def uniform(self, purpose, step, shape):
            drawn = super().uniform(purpose, step, shape)
            return torch.full_like(drawn, self.start) if purpose == "position" else drawn

    model, tokens, found = generator_of(backbone, "cross_entropy"), tokens_in(space_of("cross_entropy"), B), []
    for start in (0.1, 0.4, 0.9):  # a third of all starts each
        noise = Starts(0, range(B))
        noise.start = start
        found.append(bits(model, tokens, noise=noise, positions=3))
    torch.testing.assert_close(torch.stack(found).mean(0), bits(model, tokens))
    assert found[0].sub(found[1]).abs().min() > 1e-3


def test_orders_are_averaged_and_do_not_depend_on_the_batch():
    model, tokens = generator_of("masked", "gmm"), tokens_in(space_of("gmm"), B)
    one, three = bits(model, tokens), bits(model, tokens, orders=3)
    assert not torch.allclose(one, three)
    torch.testing.assert_close(bits(model, tokens[:2], orders=3), three[:2])
    assert torch.equal(bits(model, tokens, "raster", orders=3), bits(model, tokens, "raster"))


def test_values_that_are_not_finite_are_refused():
    model = generator_of("causal", "gmm")
    model.head.output.bias.data[0] = math.nan
    with pytest.raises(
        UserError, match="mixture parameters, log-likelihoods of tokens of images 0 to 5 are not finite"
    ):
        bits(model, tokens_in(space_of("gmm"), B))


# --- heads -----------------------------------------------------------------------------------------------


def test_a_head_has_a_likelihood_if_and_only_if_its_spec_says_so():
    for kind, spec in HEAD_SPECS.items():
        head, z = head_of(kind), normal(B, L, SMALL["dim"])
        drawn = head.draw_likelihood(NoiseSource(0, range(B)), 0, L, SPEC)
        target = tokens_in(space_of(kind), B)
        if spec.likelihood:
            found = head.log_likelihood(z, target, drawn)
            assert found.shape == (B, L) and found.isfinite().all()
        else:
            with pytest.raises(NotImplementedError):
                head.log_likelihood(z, target, drawn)


def test_that_of_a_mixture_is_torch_s():
    head, z, target = head_of("gmm"), normal(B, L, SMALL["dim"]), tokens_in(space_of("gmm"), B)
    log_weights, means, scales = head.mixture(z)
    expected = MixtureSameFamily(Categorical(logits=log_weights), Independent(Normal(means, scales), 1))
    torch.testing.assert_close(head.log_likelihood(z, target, {}), expected.log_prob(target))


# --- the variational bound of a diffusion head -------------------------------------------------------------

T = 50
TABLES = DiffusionTables.make(T)  # float64
MEAN, STD = 0.3, 0.6  # of Gaussian tokens, whose best denoiser is known
REPEATS = 4000


def best(xt: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The exact reverse process of Gaussian tokens: their noise given x_t, and the variance of x_{t-1} given x_t."""
    signal, sigma = TABLES.at("signal", t), TABLES.at("sigma", t)
    variance = (signal * STD) ** 2 + sigma**2
    left = (STD * sigma) ** 2 / variance  # of x0 given x_t
    reverse = TABLES.at("posterior_variance", t) + TABLES.at("posterior_mean_x0", t) ** 2 * left
    low, high = TABLES.at("posterior_log_variance_clipped", t), TABLES.at("log_betas", t)
    raw = 2 * (reverse.log() - low) / (high - low) - 1
    return torch.cat([sigma * (xt - signal * MEAN) / variance, raw.expand_as(xt)], dim=-1)


def terms_of(x0: float, t: int, denoise=best) -> torch.Tensor:
    """Estimates (REPEATS,) of the bound's term at step t for a token of one dimension."""
    tokens = torch.full((REPEATS, 1), x0, dtype=torch.float64)
    return bound_terms(TABLES, denoise, tokens, torch.full((REPEATS,), t), normal(REPEATS, 1, seed=t).double())


def bound(x0: float, denoise=best) -> tuple[float, float]:
    """The bound in nats, summed over all steps, and its standard error."""
    terms = [terms_of(x0, t, denoise) for t in range(T)]
    prior = prior_term(TABLES, torch.tensor([[x0]], dtype=torch.float64)).item()
    error = math.sqrt(sum(term.var().item() for term in terms) / REPEATS)
    return prior + sum(term.mean().item() for term in terms), error


@pytest.mark.parametrize("x0", [0.3, 1.2, -1.5])
def test_the_best_denoiser_of_a_gaussian_reaches_its_density_and_others_stay_above(x0):
    """Its reverse process is the true one, so the bound is the density itself."""
    exact = -Normal(MEAN, STD).log_prob(torch.tensor(x0)).item()
    found, error = bound(x0)
    assert found == pytest.approx(exact, abs=4 * error + 2e-3)
    assert error < 0.03
    for worse in (
        lambda xt, t: best(xt, t) * torch.tensor([0.8, 1.0]),  # too little noise
        lambda xt, t: torch.cat([best(xt, t)[:, :1], torch.full_like(xt, -1.0)], dim=-1),  # the smallest variance
    ):
        looser, error = bound(x0, worse)
        assert looser > exact + 3 * error


def test_a_sampler_that_starts_later_has_a_bound_too():
    """Of a good denoiser it is the same number: the prior term pays for the steps left out."""
    x0, token = 1.2, torch.tensor([[1.2]], dtype=torch.float64)
    exact, left = -Normal(MEAN, STD).log_prob(torch.tensor(x0)).item(), [terms_of(x0, t) for t in range(T - 2)]
    prior = prior_term(TABLES, token, start=T - 3).item()
    assert prior > 10 * prior_term(TABLES, token).item()
    assert prior + sum(term.mean().item() for term in left) == pytest.approx(exact, abs=0.1)


def test_the_gaussian_s_variance_is_within_the_learned_range():
    """Otherwise the test above would not be about the bound of a head with learned variances."""
    t = torch.arange(1, T)
    raw = best(torch.zeros(T - 1, 1), t)[:, 1:]
    assert raw.min() > -1 and raw.max() < 1


@pytest.mark.parametrize("count", [4, 7, 32, 49])
@pytest.mark.parametrize("timesteps", [50, 1000])
def test_strata_are_all_steps_in_order(timesteps, count):
    found = strata(timesteps, count)
    assert [step for first, size in found for step in range(first, first + size)] == [*range(timesteps)]
    assert len(found) == count and found[0] == (0, 1) and found[-1] == (timesteps - 1, 1)
    assert strata(timesteps, count - 1, skipped=1)[-1] == (timesteps - 2, 1)
    assert strata(timesteps, None) == strata(timesteps, timesteps) == tuple((t, 1) for t in range(timesteps))


def test_the_head_s_estimate_is_its_bound_on_average():
    """Many draws of a few timesteps against every timestep, on the head's own network."""
    head, repeats = head_of("diffusion"), 600
    z, target = (x[:1, :1].expand(repeats, 1, -1) for x in (normal(1, 1, SMALL["dim"]), tokens_in(space_of("gmm"), 1)))
    means, errors = [], []
    for timesteps, seed in ((None, 0), (6, 1)):
        drawn = head.draw_likelihood(NoiseSource(seed, range(repeats)), 0, 1, replace(SPEC, timesteps=timesteps))
        assert drawn["t"].shape[-1] == (timesteps or SMALL["num_train_timesteps"])
        found = head.log_likelihood(z, target, drawn)
        means.append(found.mean().item())
        errors.append(found.std().item() / math.sqrt(repeats))
    assert means[0] == pytest.approx(means[1], abs=4 * math.hypot(*errors))
    assert errors[1] < 0.1 * abs(means[0])
    every, t = tables_on(torch.device("cpu"), 50), torch.arange(50)
    x0, eps = target[0].expand(50, -1), drawn["eps"][0, 0, :1].expand(50, -1)
    alone = bound_terms(every, lambda xt, step: head.net(xt, step, z[0].expand(50, -1)), x0, t, eps).sum() + prior_term(
        every, target[0]
    )
    same = {"t": t.view(1, 1, 50), "eps": eps.view(1, 1, 50, -1), "size": torch.ones(1, 1, 50)}
    torch.testing.assert_close(head.log_likelihood(z[:1], target[:1], same)[0], -alone)
