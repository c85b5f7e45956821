"""MAR-B on this CPU against the baseline, the published algorithm written down without regard to speed.

Both have the same weights and run in one process on the same cores, in turn; a ratio above 1 is how many times faster
ours is. A sampling step is one AR step with guidance at equal known tokens, its head with 100 denoising steps; a
training step includes clipping, AdamW and EMA. Medians over the repeats; ratios are medians of the ratio of each pair.

    python -m benchmarks.against_baseline --threads 2"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.baseline import MAR, Diffusion, drawn
from mar_bench.config.experiment import load_experiment
from mar_bench.config.spec import RunSpec, SamplingSpec
from mar_bench.data.latents import Latents
from mar_bench.models.ar import ARGenerator
from mar_bench.models.build import build_generator
from mar_bench.models.inference import pack
from mar_bench.models.pretrained.names import our_name
from mar_bench.models.schedules import tokens_per_step
from mar_bench.pipeline.train import train_generator
from mar_bench.utils.errors import Superseded
from mar_bench.utils.noise import NoiseSource

ROW = "mar_b/guided"  # of Table 4 at paper scale
AR_STEPS = (0, 16, 32, 48, 63)  # of 64
SCALE = 3.0
Laps = dict[str, Callable[[], object]]


def alternate(laps: Laps, repeats: int) -> dict[str, list[float]]:
    """Seconds of each lap by name, all laps once a round; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in laps}
    for round in range(repeats + 1):
        for name, lap in laps.items():
            begin = time.perf_counter()
            lap()
            if round:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def step_laps(
    baseline: MAR, models: dict[str, ARGenerator], settings: SamplingSpec, batch: int, step: int
) -> dict[str, Laps]:
    """Backbone and head of one AR step with guidance, of the baseline and of each of ``models``."""
    length, dim, counts = baseline.length, baseline.token_dim, tokens_per_step(baseline.length, 64)
    known, n, denoising = sum(counts[:step]), counts[step], Diffusion(100)
    labels, tokens = torch.arange(batch) * 17, torch.randn(batch, length, dim)
    order = torch.stack([torch.randperm(length) for _ in range(batch)])
    mask = torch.ones(batch, length).scatter(1, order[:, :known], 0.0).repeat(2, 1)
    now = torch.zeros(batch, length).scatter(1, order[:, known : known + n], 1.0).bool().repeat(2, 1)
    classes = torch.cat([baseline.class_emb(labels), baseline.fake_latent.expand(batch, -1)])
    seen = tokens.gather(1, order[:, :known, None].expand(-1, -1, dim)).repeat(2, 1, 1)
    labels, order = torch.cat([labels, torch.full_like(labels, -1)]), order.repeat(2, 1)

    def condition() -> Tensor:
        return baseline.condition(tokens.repeat(2, 1, 1), mask, classes)[now]

    def predict(model: ARGenerator) -> Tensor:
        return model.backbone.predict(seen, labels, order, n)

    z, (z_ours, z_uncond) = condition(), predict(next(iter(models.values()))).chunk(2)

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        eps, raw = baseline.diffloss.net(x.repeat(2, 1), t.repeat(2), z).chunk(2, dim=-1)
        conditional, unconditional = eps.chunk(2)
        return torch.cat([unconditional + SCALE * (conditional - unconditional), raw.chunk(2)[0]], dim=-1)

    def head(model: ARGenerator) -> Tensor:
        noise = model.head.draw_sampling(NoiseSource(0, range(batch)), step, n, settings)
        return model.head.sample(z_ours, noise, settings, SCALE, z_uncond)

    return {
        "backbone": {"baseline": condition, **{name: partial(predict, model) for name, model in models.items()}},
        "head": {
            "baseline": lambda: denoising.sample(denoise, drawn(0, dim, z.device)(step, batch * n), 1.0, None),
            **{name: partial(head, model) for name, model in models.items()},
        },
    }


def sampling(
    baseline: MAR, models: dict[str, ARGenerator], spec: RunSpec, batch: int, repeats: int
) -> dict[str, dict[str, list[float]]]:
    """Seconds of backbone, head and both, summed over AR_STEPS, by name; each a list over the repeats."""
    settings = replace(spec.sampling, num_diffusion_steps=100, temperature=1.0, guidance_scale=SCALE)
    total: dict[str, dict[str, list[float]]] = {part: {} for part in ("backbone", "head", "both")}
    for step in AR_STEPS:
        for part, laps in step_laps(baseline, models, settings, batch, step).items():
            for name, seconds in alternate(laps, repeats).items():
                for sums in (total[part], total["both"]):
                    sums[name] = [a + b for a, b in zip(sums.get(name, [0.0] * repeats), seconds)]
    return total


def training(baseline: MAR, spec: RunSpec, batch: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of whole training steps. Ours is the loop that trains all models; it stops before it saves anything."""
    length, dim = baseline.length, baseline.token_dim
    parameters = [p for p in baseline.train().requires_grad_(True).parameters()]
    averages = [p.detach().clone() for p in parameters]
    optimiser = torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.02)
    mean, std, labels = torch.randn(batch, length, dim), torch.full((batch, length, dim), 0.1), torch.arange(batch) * 17
    with torch.device("meta"):
        masking = build_generator(spec).backbone.num_known

    def step(now: int) -> None:
        tokens, mask = mean + std * torch.randn_like(mean), torch.ones(batch, length)
        known = masking(NoiseSource(spec.train.seed, []).shared("mask", now), length)  # as many as ours in this step
        mask.scatter_(1, torch.rand(batch, length).argsort(1)[:, :known], 0.0)
        t = torch.randint(1000, (4 * batch * length,))
        optimiser.zero_grad()
        baseline.loss(tokens, labels, mask, t, torch.randn(len(t), dim)).backward()
        nn.utils.clip_grad_norm_(parameters, 3.0)
        optimiser.step()
        for average, parameter in zip(averages, parameters):
            average.mul_(0.9999).add_(parameter.detach(), alpha=1 - 0.9999)

    seconds: dict[str, list[float]] = {"baseline": [], "ours": []}
    begins: list[float] = []

    def between(now: int, *_: float) -> None:
        """Called at the beginning of each of our steps: notes its time, and runs the baseline's step in between."""
        ended = time.perf_counter()
        if now > 1:
            seconds["ours"].append(ended - begins[-1])
        if now > repeats:
            raise Superseded
        begin = time.perf_counter()
        step(now)
        if now:
            seconds["baseline"].append(time.perf_counter() - begin)
        begins.append(time.perf_counter())

    def tokens_of(stored: dict[str, Tensor], noise: Tensor | None) -> Tensor:
        return stored["mean"] + stored["std"] * noise

    latents = Latents({"mean": mean[None], "std": std[None]}, {}, labels, labels[:0], tokens_of, stochastic=True)
    train = replace(spec.train, batch_size=batch, steps=10**6, published=None, weights=None, precision="fp32")
    spec = replace(spec, compute=replace(spec.compute, micro_batch=None))  # one pass, like the baseline
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(), suppress(Superseded):
        train_generator(replace(spec, train=train), latents, Path(folder), between)
    return seconds


def line(name: str, seconds: dict[str, list[float]]) -> str:
    base = seconds["baseline"]
    cells = [f"{statistics.median(base):.3f} s"]
    for other in ("ours", "ours, packed"):
        own = seconds.get(other)
        ratio = own and statistics.median(a / b for a, b in zip(base, own))
        cells.append(f"{statistics.median(own):.3f} s, {ratio:.2f}x" if own else "")
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", default="1,8", help="batches of sampling; the last is that of training")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    spec = load_experiment("table4", "paper").rows[ROW]
    ours = build_generator(spec).eval()
    assert isinstance(ours, ARGenerator)
    baseline = MAR(256, 16, 768, 12, 12, 6, 1024).eval()
    theirs = ours.state_dict()
    baseline.load_state_dict({name: theirs[our_name(name)] for name in baseline.state_dict()})
    print(f"torch {torch.__version__}, {given.threads} threads, {given.repeats} repeats\n")
    print("| | baseline | ours | ours, packed |\n|:--|--:|--:|--:|")
    batches = list(map(int, given.batch.split(",")))
    packed = copy.deepcopy(ours)
    models = {"ours": ours, "ours, packed": packed} if pack(packed) else {"ours": ours}
    with torch.inference_mode():
        for batch in batches:
            for part, seconds in sampling(baseline, models, spec, batch, given.repeats).items():
                print(line(f"{part}, batch {batch}", seconds), flush=True)
    del ours, packed, models
    print(line(f"training step, batch {batches[-1]}", training(baseline, spec, batches[-1], given.repeats)))


if __name__ == "__main__":
    main()
