"""Metropolis-adjusted chains, to a mixture in closed form and along a network that gives log p."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fastscore
from bench.families import energies, networks, targets
from bench.registry import Arrays, Call, Case, Family, Provider

Evaluate = Callable[[Tensor], tuple[Tensor, Tensor]]
"""log p `[n]` and its gradient, of x `[n, D]`."""

#    target, chains, steps, step size
CPU = [("ring", 4096, 100, 0.1), ("energy", 4096, 40, 0.2), ("ring", 256, 400, 0.1)]
CUDA = [("ring", 4096, 200, 0.1), ("energy", 4096, 100, 0.2), ("ring", 65536, 100, 0.1)]


def cases(device: str) -> list[Case]:
    return [_case(*row) for row in (CUDA if device == "cuda" else CPU)]


def _case(target: str, n: int, steps: int, step_size: float) -> Case:
    plain = targets.case_of(target, n, steps, step_size, 2, False)
    return Case(f"MALA, {plain.name}", plain.settings, plain.units, flops=plain.flops, seconds=5.0, headline=n == 4096)


def inputs(case: Case, device: str) -> dict[str, Tensor]:
    """Starting points, and means or a network: one whose energy rises in every direction, so that p has a law."""
    made = targets.inputs(case, device)
    if case.settings["target"] == "energy":
        made["w2"] = made["w2"].abs()
    return made


def density_of(case: Case, arrays: Arrays, dtype: torch.dtype = torch.float32) -> Callable[[Tensor], Tensor]:
    """log p up to a constant, as one writes it."""
    if case.settings["target"] == "energy":
        model = networks.network(networks.split(arrays)[0], dtype=dtype)
        return lambda y: -model(y).squeeze(-1)
    means = arrays["means"].to(dtype)
    return lambda y: torch.logsumexp(-0.5 / targets.STD**2 * (y[:, None, :] - means).square().sum(-1), -1)


def evaluator(log_prob: Callable[[Tensor], Tensor]) -> Evaluate:
    """With its gradient, as one writes it."""

    def evaluate(y: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            value = log_prob(y)
            return value.detach(), torch.autograd.grad(value.sum(), y)[0]

    return evaluate


def stepper(evaluate: Evaluate, a: float, compiled: Callable[..., Any] = lambda move: move) -> Any:
    """A step as one writes it: the value and the gradient at a state are those of the step before.

    `compiled` for all but the random numbers, which Inductor draws slowly on a CPU.
    """
    scale = math.sqrt(2 * a)

    @compiled
    def move(x: Tensor, value: Tensor, slope: Tensor, noise: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        proposal = x + a * slope + scale * noise
        to_value, to_slope = evaluate(proposal)
        forth = (proposal - x - a * slope).square().sum(-1)
        back = (x - proposal - a * to_slope).square().sum(-1)
        accept = uniform.log() < to_value - value + (forth - back) / (4 * a)
        kept = accept[:, None]
        return (
            torch.where(kept, proposal, x),
            torch.where(accept, to_value, value),
            torch.where(kept, to_slope, slope),
        )

    return lambda x, value, slope: move(x, value, slope, torch.randn_like(x), torch.rand_like(value))


def run(evaluate: Evaluate, step: Any, x: Tensor, n_steps: int) -> Tensor:
    state = (x, *evaluate(x))
    for _ in range(n_steps):
        state = step(*state)
    return state[0]


def reference(case: Case, arrays: Arrays) -> tuple[Tensor, Tensor]:
    """Mean and standard error of the statistics of some chains in float64."""
    evaluate = evaluator(density_of(case, arrays, torch.float64))
    step = stepper(evaluate, case.settings["step_size"])
    found = targets.statistics(run(evaluate, step, targets.starts(case, arrays), case.settings["steps"]), arrays)
    return found.mean(0), found.std(0) / len(found) ** 0.5


def _naive(case: Case, arrays: Arrays, **compiled: Any) -> Call:
    evaluate = evaluator(density_of(case, arrays))
    step = stepper(evaluate, case.settings["step_size"])
    chosen = torch.compile(step, **compiled) if compiled else step
    return lambda: {"x": run(evaluate, chosen, arrays["x"], case.settings["steps"])}


def _moved(case: Case, arrays: Arrays) -> Call:
    """All of the step compiled but its random numbers."""
    evaluate = evaluator(density_of(case, arrays))
    step = stepper(evaluate, case.settings["step_size"], torch.compile)
    return lambda: {"x": run(evaluate, step, arrays["x"], case.settings["steps"])}


def _graph(case: Case, arrays: Arrays, **compiled: Any) -> Call:
    return networks.graphed(_naive(case, arrays, **compiled))


def _ours(case: Case, arrays: Arrays, *, plain: bool = False) -> Call:
    """`mala`; `plain` gives it a function that it cannot look into."""
    s, seeds = case.settings, iter(range(1 << 62))
    target: Any
    if plain:
        target = targets.Hidden(density_of(case, arrays), arrays["x"])
    elif s["target"] == "energy":
        model = energies.fast_network(networks.split(arrays)[0])
        target = lambda y: -model(y)  # noqa: E731
    else:
        target = fastscore.targets.GaussianMixture(arrays["means"], targets.STD**2)

    def call() -> Arrays:
        x = fastscore.mala(target, arrays["x"], step_size=s["step_size"], n_steps=s["steps"], seed=next(seeds))
        return {"x": x}

    return call


FAMILY = Family(
    name="mala",
    title="Metropolis-adjusted Langevin sampling, time relative to naive eager PyTorch",
    unit="chain-step",
    base="naive eager",
    cases=cases,
    inputs=inputs,
    reference=reference,
    check=targets.check,
    calls={"exact": 2},
    providers={
        "naive eager": Provider(_naive),
        "fastscore": Provider(_ours),
        "fastscore, a density it does not know": Provider(
            functools.partial(_ours, plain=True), unfit=targets.unfit(1, targets.MIXTURES)
        ),
        "CUDA graph of naive eager": Provider(_graph, unfit=networks.cuda_only),
        "torch.compile": Provider(functools.partial(_naive, mode="default")),
        "torch.compile, noise drawn outside": Provider(_moved, unfit=networks.cpu_only),
        "CUDA graph of torch.compile": Provider(functools.partial(_graph, mode="default"), unfit=networks.cuda_only),
        "JAX, lax.scan": Provider(None, package="jax"),
        "blackjax, mala": Provider(None, package="blackjax"),
    },
    never={"torchebm": "it has no Metropolis-adjusted Langevin sampler"},
)
