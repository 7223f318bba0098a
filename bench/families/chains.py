"""Chains of Langevin dynamics: to mixtures in closed form, along networks, and torchebm's published double well.

The cases and the step as one writes it; what is sampled, and how it is checked, is in `targets`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fastscore
from bench.families import compilers, energies, networks, targets
from bench.families.targets import MIXTURES, unfit
from bench.registry import Arrays, Call, Case, Family, Provider

#  target, chains, steps, step size, rivals (2: with torch.compile), headline
CPU = [
    ("ring", 4096, 250, 0.005, 2, True),
    ("network", 4096, 60, 0.01, 2, True),
    ("network", 65536, 10, 0.01, 1, True),
    ("mixture32", 4096, 100, 0.005, 2, True),
    ("ring", 256, 1000, 0.005, 1, True),
    ("ring", 65536, 50, 0.005, 1, True),
    ("double well", 1024, 200, 0.001, 1, False),
    ("network", 256, 200, 0.01, 1, False),
    ("energy", 4096, 40, 0.01, 1, True),
    ("energy", 256, 200, 0.01, 1, False),
]
CUDA = [
    ("ring", 4096, 250, 0.005, 2, True),
    ("network", 4096, 200, 0.01, 2, True),
    ("network", 65536, 50, 0.01, 1, True),
    ("ring", 4_000_000, 20, 0.005, 1, False),
    ("ring", 65536, 200, 0.005, 1, False),
    ("mixture32", 4096, 200, 0.005, 1, False),
    ("network", 4_000_000, 5, 0.01, 1, False),
    ("double well", 1024, 200, 0.001, 1, False),
    ("energy", 4096, 200, 0.01, 1, True),
]


def cases(device: str) -> list[Case]:
    return [targets.case_of(*row) for row in (CUDA if device == "cuda" else CPU)]


def stepper(
    case: Case, score: Callable[[Tensor], Tensor], compiled: Callable[..., Any] = lambda move: move
) -> Callable[[Tensor], Tensor]:
    """A step as one writes it; `compiled` for all but the noise, which Inductor draws slowly on a CPU."""
    a = case.settings["step_size"]
    scale = math.sqrt(2 * a)

    @compiled
    def move(y: Tensor, noise: Tensor) -> Tensor:
        return y + a * score(y) + scale * noise

    return lambda y: move(y, torch.randn_like(y))


@torch.no_grad()
def run(step: Callable[[Tensor], Tensor], x: Tensor, n_steps: int) -> Tensor:
    for _ in range(n_steps):
        x = step(x)
    return x


def reference(case: Case, arrays: Arrays) -> tuple[Tensor, Tensor]:
    """Mean and standard error of the statistics of some chains in float64."""
    step = stepper(case, targets.score_of(case, arrays, torch.float64))
    found = targets.statistics(run(step, targets.starts(case, arrays), case.settings["steps"]), arrays)
    return found.mean(0), found.std(0) / len(found) ** 0.5


def _naive(case: Case, arrays: Arrays, **compiled: Any) -> Call:
    step = stepper(case, targets.score_of(case, arrays))
    chosen = torch.compile(step, **compiled) if compiled else step
    if compiled.get("mode") == "reduce-overhead":  # whose replays write over what the step before returned
        return lambda: {"x": run(functools.partial(_replayed, chosen), arrays["x"], case.settings["steps"])}
    return lambda: {"x": run(chosen, arrays["x"], case.settings["steps"])}


def _replayed(step: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    torch.compiler.cudagraph_mark_step_begin()
    return step(x).clone()


def _in_place(case: Case, arrays: Arrays) -> Call:
    """Naive eager without the temporaries of the step."""
    score, a = targets.score_of(case, arrays), case.settings["step_size"]

    @torch.no_grad()
    def call() -> Arrays:
        x, noise = arrays["x"].clone(), torch.empty_like(arrays["x"])
        for _ in range(case.settings["steps"]):
            x.add_(score(x), alpha=a).add_(noise.normal_(), alpha=math.sqrt(2 * a))
        return {"x": x}

    return call


def _moved(case: Case, arrays: Arrays) -> Call:
    """All of the step compiled but its noise."""
    step = stepper(case, targets.score_of(case, arrays), torch.compile)
    return lambda: {"x": run(step, arrays["x"], case.settings["steps"])}


def _graph(case: Case, arrays: Arrays, **compiled: Any) -> Call:
    return networks.graphed(_naive(case, arrays, **compiled))


def _ours(case: Case, arrays: Arrays, *, plain: bool = False) -> Call:
    """`langevin_dynamics`; `plain` hides from it what the score is."""
    s, score = case.settings, targets.score_of(case, arrays)
    seeds = iter(range(1 << 62))
    if "means" in arrays and not plain:
        score = fastscore.targets.GaussianMixture(arrays["means"], targets.STD**2).score
    if s["target"] == "energy" and not plain:
        score = energies.fast_network(networks.split(arrays)[0]).score
    chosen = targets.Hidden(score, arrays["x"]) if plain else score

    def call() -> Arrays:
        return {
            "x": fastscore.langevin_dynamics(
                chosen, arrays["x"], step_size=s["step_size"], n_steps=s["steps"], seed=next(seeds)
            )
        }

    return call


def _compiled(case: Case, device: str) -> str:
    """Wherever there are rivals on a GPU; on a CPU compiling takes longer than the race."""
    return unfit(1 if device == "cuda" else 2)(case, device)


FAMILY = Family(
    name="chains",
    title="Sampling, time relative to naive eager PyTorch",
    unit="chain-step",
    base="naive eager",
    cases=cases,
    inputs=targets.inputs,
    reference=reference,
    check=targets.check,
    calls={"exact": 2},
    providers={
        "naive eager": Provider(_naive),
        "eager in place": Provider(_in_place),
        "fastscore": Provider(compilers.own(_ours)),
        "fastscore, a score it does not know": Provider(functools.partial(_ours, plain=True), unfit=unfit(2)),
        "fastscore, ziglang for a C compiler": Provider(compilers.ziglang(_ours), unfit=unfit(2, MIXTURES, "cpu")),
        "fastscore, no C compiler": Provider(compilers.none(_ours), unfit=unfit(2, MIXTURES, "cpu")),
        "CUDA graph of naive eager": Provider(_graph, unfit=unfit(1, device="cuda")),
        "torch.compile": Provider(functools.partial(_naive, mode="default"), unfit=_compiled),
        "torch.compile, noise drawn outside": Provider(_moved, unfit=unfit(2, device="cpu")),
        "CUDA graph of torch.compile": Provider(
            functools.partial(_graph, mode="default"), unfit=unfit(1, device="cuda")
        ),
        "torch.compile, max-autotune": Provider(
            functools.partial(_naive, mode="max-autotune-no-cudagraphs"), unfit=unfit(2, ("network",))
        ),
        "torch.compile, reduce-overhead": Provider(
            functools.partial(_naive, mode="reduce-overhead"), unfit=unfit(2, device="cuda")
        ),
        "torchebm, LangevinDynamics": Provider(None, unfit=unfit(1), package="torchebm"),
        "JAX, lax.scan": Provider(None, unfit=unfit(1), package="jax"),
        "blackjax, overdamped Langevin": Provider(None, unfit=unfit(1, MIXTURES), package="blackjax"),
    },
    never={"torchebm, fused_langevin": "a proof of concept for CUDA that its samplers do not use"},
)
