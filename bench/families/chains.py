"""Chains of Langevin dynamics: to mixtures in closed form, along networks, and torchebm's published double well."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import fastscore
from bench import check as checks
from bench.families import energies, networks
from bench.registry import Arrays, Call, Case, Family, NotRunError, Provider
from fastscore import reader
from fastscore.ops import _cpu_build

REFERENCE = (2**14, 2**22, 2**19)  # at the most: chains, their steps together, their numbers
STD = 0.5  # of every component of the mixtures
BARRIER = 2.0  # of the double well, as in torchebm

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
TITLES = {
    "ring": "2-D mixture of 8",
    "mixture32": "32-D mixture of 8",
    "network": "3 x 128 SiLU network",
    "double well": "128-D double well",
    "energy": "2 x 128 SiLU energy",
}


def cases(device: str) -> list[Case]:
    return [_case(*row) for row in (CUDA if device == "cuda" else CPU)]


def _case(target: str, chains: int, steps: int, step_size: float, rivals: int, headline: bool) -> Case:
    dim = {"ring": 2, "network": 2, "energy": 2, "mixture32": 32, "double well": 128}[target]
    mixture = 8 * (5 * dim + 6)  # distances, exponentials and the weighted mean of the components
    each = {
        "network": 2 * (2 * 128 + 2 * 128**2 + 128 * 2),
        "energy": 2 * (2 * 128 + 128**2 + 128 + 128**2 + 128 * 2),
        "double well": 4 * dim,
    }
    return Case(
        name=f"{TITLES[target]}, {chains} chains",
        settings={"target": target, "n": chains, "D": dim, "steps": steps, "step_size": step_size, "rivals": rivals},
        units=chains * steps,
        flops=each.get(target, mixture) + 4 * dim,
        seconds=8.0 if rivals > 1 else 5.0,
        headline=headline,
    )


def inputs(case: Case, device: str) -> dict[str, Tensor]:
    """Starting points; at the target's own law where it can be drawn, so that chains have only their bias to find."""
    s, draws = case.settings, networks.generator(0)
    x = torch.randn(s["n"], s["D"], generator=draws)
    made = {}
    if s["target"] == "network":
        made = networks.weights([2, 128, 128, 128, 2])
        for name in ("w3", "b3"):
            made[name] = 0.3 * made[name]
    elif s["target"] == "energy":
        made = networks.weights([2, 128, 128, 1])
    elif s["target"] == "double well":
        x = x.sign() + 0.3 * torch.randn(x.shape, generator=draws)
    else:
        angles = torch.arange(8) * (math.tau / 8)
        ring = 4.0 * torch.stack([angles.cos(), angles.sin()], 1)
        made["means"] = ring if s["target"] == "ring" else torch.randn(8, s["D"], generator=draws)
        x = made["means"][torch.randint(8, (s["n"],), generator=draws)] + STD * x
    return {name: value.to(device) for name, value in (made | {"x": x}).items()}


def score_of(case: Case, arrays: Arrays, dtype: torch.dtype = torch.float32) -> Callable[[Tensor], Tensor]:
    """The score as one writes it."""
    target = case.settings["target"]
    if target == "network":
        return networks.network({k: v for k, v in arrays.items() if k != "x"}, dtype=dtype)
    if target == "energy":
        return energy_score(networks.network({k: v for k, v in arrays.items() if k != "x"}, dtype=dtype))
    if target == "double well":
        return lambda y: -4 * BARRIER * y * (y.square() - 1)
    means = arrays["means"].to(dtype)

    def score(y: Tensor) -> Tensor:
        difference = y[:, None, :] - means
        weights = torch.softmax(-0.5 / STD**2 * difference.square().sum(-1), -1)
        return -(weights[..., None] * difference).sum(1) / STD**2

    return score


def energy_score(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Minus the gradient, as one writes it."""

    def score(y: Tensor) -> Tensor:
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            return -torch.autograd.grad(model(y).sum(), y)[0]

    return score


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


def statistics(x: Tensor, arrays: Arrays) -> Tensor:
    """Coordinates, their squares, squared distances from the start and from the nearest mode: observations a chain.

    Where there are no modes the last is the fourth power of the distance from 0. Rows start from those of the inputs,
    over and over again.
    """
    x = x.double().to(arrays["x"].device)
    start = arrays["x"].double().repeat(-(-len(x) // len(arrays["x"])), 1)[: len(x)]
    squares, moved = x.square(), (x - start).square().sum(1, keepdim=True)
    if "means" in arrays:
        last = torch.cdist(x, arrays["means"].double()).square().amin(1, keepdim=True)
    else:
        last = squares.sum(1, keepdim=True).square()
    return torch.cat([x, squares, moved, last], 1)


def reference(case: Case, arrays: Arrays) -> tuple[Tensor, Tensor]:
    """Mean and standard error of the statistics of some chains in float64, and the names."""
    step = stepper(case, score_of(case, arrays, torch.float64))
    found = statistics(run(step, starts(case, arrays), case.settings["steps"]), arrays)
    return found.mean(0), found.std(0) / len(found) ** 0.5


def starts(case: Case, arrays: Arrays) -> Tensor:
    """Those of the reference's chains: the inputs', over and over again, in float64."""
    steps, n = case.settings["steps"], len(arrays["x"])
    chains = min(REFERENCE[0], REFERENCE[1] // steps, REFERENCE[2] // case.settings["D"])
    return arrays["x"].double().repeat(-(-chains // n), 1)[:chains]


def check(case: Case, arrays: Arrays, found: Any, law: str, results: Sequence[Arrays]) -> None:
    """The last states have the law of the reference's, and are not its starting points."""
    mean, error = found
    dim = case.settings["D"]
    names = (
        [f"x{i}" for i in range(dim)]
        + [f"x{i}^2" for i in range(dim)]
        + ["|x - x0|^2", "|x - m|^2" if "means" in arrays else "|x|^4"]
    )
    moved = results[0]["x"].to(arrays["x"].device) - arrays["x"]
    if not bool((moved != 0).any(1).all()):
        raise checks.WrongError("a chain has not moved")
    if len(results) > 1 and bool((results[0]["x"] == results[1]["x"]).all(1).any()):  # a number may fall alike
        raise checks.WrongError("two runs with different seeds share a state")
    checks.same_mean(names, statistics(torch.cat([result["x"] for result in results]), arrays), mean, error)


def _naive(case: Case, arrays: Arrays, **compiled: Any) -> Call:
    step = stepper(case, score_of(case, arrays))
    chosen = torch.compile(step, **compiled) if compiled else step
    if compiled.get("mode") == "reduce-overhead":  # whose replays write over what the step before returned
        return lambda: {"x": run(functools.partial(_replayed, chosen), arrays["x"], case.settings["steps"])}
    return lambda: {"x": run(chosen, arrays["x"], case.settings["steps"])}


def _replayed(step: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    torch.compiler.cudagraph_mark_step_begin()
    return step(x).clone()


def _in_place(case: Case, arrays: Arrays) -> Call:
    """Naive eager without the temporaries of the step."""
    score, a = score_of(case, arrays), case.settings["step_size"]

    @torch.no_grad()
    def call() -> Arrays:
        x, noise = arrays["x"].clone(), torch.empty_like(arrays["x"])
        for _ in range(case.settings["steps"]):
            x.add_(score(x), alpha=a).add_(noise.normal_(), alpha=math.sqrt(2 * a))
        return {"x": x}

    return call


def _moved(case: Case, arrays: Arrays) -> Call:
    """All of the step compiled but its noise."""
    step = stepper(case, score_of(case, arrays), torch.compile)
    return lambda: {"x": run(step, arrays["x"], case.settings["steps"])}


def _graph(case: Case, arrays: Arrays, **compiled: Any) -> Call:
    return networks.graphed(_naive(case, arrays, **compiled))


def _ours(case: Case, arrays: Arrays, *, plain: bool = False) -> Call:
    """`langevin_dynamics`; `plain` hides from it what the score is."""
    s, score = case.settings, score_of(case, arrays)
    seeds = iter(range(1 << 62))
    if "means" in arrays and not plain:
        score = fastscore.targets.GaussianMixture(arrays["means"], STD**2).score
    if s["target"] == "energy" and not plain:
        score = energies.fast_network(networks.split(arrays)[0]).score
    chosen = Hidden(score, arrays["x"]) if plain else score

    def call() -> Arrays:
        return {
            "x": fastscore.langevin_dynamics(
                chosen, arrays["x"], step_size=s["step_size"], n_steps=s["steps"], seed=next(seeds)
            )
        }

    return call


class Hidden:
    """A function that counts its calls, so that fastscore cannot read it: a call of it has a consequence.

    Raises:
        AssertionError: it is read all the same.
    """

    def __init__(self, fn: Callable[[Tensor], Tensor], x: Tensor) -> None:
        self.fn, self.calls = fn, 0
        assert reader.read(self, x) is None, "what ought to be hidden is read"

    def __call__(self, y: Tensor) -> Tensor:
        self.calls += 1
        return self.fn(y)


def _by(library: ctypes.CDLL | None, call: Call) -> Call:
    """The call with these kernels for the machine's own."""

    def made() -> Arrays:
        with mock.patch.object(_cpu_build, "library", lambda *, build: library):
            return call()

    return made


def _without_compiler(case: Case, arrays: Arrays) -> Call:
    return _by(None, _ours(case, arrays))


@functools.cache
def _of_ziglang() -> ctypes.CDLL | None:
    """The kernels as a machine without a compiler of its own gets them, from the package `ziglang`."""
    if importlib.util.find_spec("ziglang") is None:
        return None
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(_cpu_build, "_cache", lambda: Path(folder)),
        mock.patch.object(_cpu_build.shutil, "which", lambda name: None),
    ):
        return _cpu_build._find(build=True)


def _with_ziglang(case: Case, arrays: Arrays) -> Call:
    if (library := _of_ziglang()) is None:
        raise NotRunError("no ziglang")
    return _by(library, _ours(case, arrays))


def _with_compiler(case: Case, arrays: Arrays) -> Call:
    if not arrays["x"].is_cuda and _cpu_build.library(build=True) is None:
        raise NotRunError("no C compiler")
    return _ours(case, arrays)


def _unfit(rivals: int, targets: Sequence[str] = tuple(TITLES), device: str = "") -> Callable[[Case, str], str]:
    def unfit(case: Case, where: str) -> str:
        if device and where != device:
            return "CUDA graphs need a GPU" if device == "cuda" else "for CPUs"
        if case.settings["target"] not in targets:
            return "not for this target"
        return "" if case.settings["rivals"] >= rivals else "left out at this size"

    return unfit


def _compiled(case: Case, device: str) -> str:
    """Wherever there are rivals on a GPU; on a CPU compiling takes longer than the race."""
    return _unfit(1 if device == "cuda" else 2)(case, device)


NETWORK, MIXTURES = ("network",), ("ring", "mixture32")

FAMILY = Family(
    name="chains",
    title="Sampling, time relative to naive eager PyTorch",
    unit="chain-step",
    base="naive eager",
    cases=cases,
    inputs=inputs,
    reference=reference,
    check=check,
    calls={"exact": 2},
    providers={
        "naive eager": Provider(_naive),
        "eager in place": Provider(_in_place),
        "fastscore": Provider(_with_compiler),
        "fastscore, a score it does not know": Provider(functools.partial(_ours, plain=True), unfit=_unfit(2)),
        "fastscore, ziglang for a C compiler": Provider(_with_ziglang, unfit=_unfit(2, MIXTURES, "cpu")),
        "fastscore, no C compiler": Provider(_without_compiler, unfit=_unfit(2, MIXTURES, "cpu")),
        "CUDA graph of naive eager": Provider(_graph, unfit=_unfit(1, device="cuda")),
        "torch.compile": Provider(functools.partial(_naive, mode="default"), unfit=_compiled),
        "torch.compile, noise drawn outside": Provider(_moved, unfit=_unfit(2, device="cpu")),
        "CUDA graph of torch.compile": Provider(
            functools.partial(_graph, mode="default"), unfit=_unfit(1, device="cuda")
        ),
        "torch.compile, max-autotune": Provider(
            functools.partial(_naive, mode="max-autotune-no-cudagraphs"), unfit=_unfit(2, NETWORK)
        ),
        "torch.compile, reduce-overhead": Provider(
            functools.partial(_naive, mode="reduce-overhead"), unfit=_unfit(2, device="cuda")
        ),
        "torchebm, LangevinDynamics": Provider(None, unfit=_unfit(1), package="torchebm"),
        "JAX, lax.scan": Provider(None, unfit=_unfit(1), package="jax"),
        "blackjax, overdamped Langevin": Provider(None, unfit=_unfit(1, MIXTURES), package="blackjax"),
    },
    never={"torchebm, fused_langevin": "a proof of concept for CUDA that its samplers do not use"},
)
