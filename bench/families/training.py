"""Training steps of a score network: exact and estimated traces, relative to an eager step of denoising."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import fastscore
from bench.families import law, losses, networks
from bench.registry import Arrays, Call, Case, Family, Provider

ALL, MOST, SOME, FEW = 3, 2, 1, 0
"""How many rivals: all of them; torch.compile of the yardstick; those in eager PyTorch and JAX's best; what is fast."""

#        B   D  L    H  rivals, headline
CPU = [
    (4096, 2, 2, 128, ALL, True),
    (4096, 8, 2, 128, ALL, True),
    (4096, 64, 2, 128, SOME, True),
    (4096, 2, 3, 128, SOME, True),
    (4096, 8, 3, 128, SOME, True),
    (65536, 2, 2, 128, SOME, True),
    (1024, 8, 2, 128, SOME, False),
    (16384, 2, 2, 128, FEW, False),
    (4096, 16, 2, 128, FEW, False),
    (1024, 128, 2, 128, FEW, False),
    (4096, 8, 1, 128, FEW, False),
    (4096, 8, 4, 128, FEW, False),
    (4096, 8, 2, 64, FEW, False),
    (4096, 8, 2, 256, FEW, False),
    (4096, 8, 2, 512, FEW, False),
]
CUDA = [
    (1048576, 2, 2, 128, MOST, True),
    (1048576, 16, 2, 128, MOST, True),
    (1048576, 64, 2, 128, MOST, True),
    (65536, 64, 2, 128, SOME, False),
    (65536, 8, 3, 128, SOME, False),
    (4096, 2, 2, 128, ALL, False),
    (65536, 8, 2, 128, SOME, False),
    (65536, 2, 2, 128, FEW, False),
    (65536, 128, 2, 128, FEW, False),
    (65536, 8, 4, 128, FEW, False),
    (65536, 8, 2, 64, FEW, False),
    (65536, 8, 2, 256, FEW, False),
    (65536, 8, 2, 512, FEW, False),
]


def cases(device: str) -> list[Case]:
    return [case_of(*row) for row in (CUDA if device == "cuda" else CPU)]


def case_of(batch: int, dim: int, depth: int, width: int, rivals: int, headline: bool) -> Case:
    products = dim * width + (depth - 1) * width**2 + width * dim
    return Case(
        name=f"B={batch} D={dim} L={depth} H={width}",
        settings={"B": batch, "D": dim, "L": depth, "H": width, "rivals": rivals},
        units=batch,
        flops=6 * products,
        seconds=(7.0, 5.0, 5.0, 2.0)[ALL - rivals],
        headline=headline,
    )


def inputs(case: Case, device: str) -> dict[str, Tensor]:
    s = case.settings
    return networks.inputs([s["D"]] + [s["H"]] * s["L"] + [s["D"]], s["B"], device)


def reference(case: Case, arrays: Arrays) -> dict[str, law.Exact | law.Estimate]:
    weights, x = networks.split(arrays)
    model = networks.network(weights, dtype=torch.float64)
    wide = x.double()
    exact = law.exact(networks.training_step(model, losses.in_parts(model, wide)))

    def random(loss: Callable[..., losses.Loss]) -> Callable[[Tensor], Call]:
        return lambda part: networks.training_step(model, loss(model, part))

    return {
        "exact": exact,
        "hutchinson": law.estimate(random(losses.sliced), wide, exact),
        "denoising": law.estimate(random(losses.denoising), wide),
    }


def provider(
    make: Callable[[nn.Module, Tensor], losses.Loss],
    named: str = "exact",
    *,
    rivals: int = FEW,
    largest: int = 1 << 40,
    compiled: dict[str, Any] | None = None,
    graph: bool = False,
    gpu: bool = False,
) -> Provider:
    """Whole training steps with the loss that `make` gives, for batches of at most `largest` B x D on a CPU.

    On a GPU the limit is 2^26, where the loop over D asks for more memory than there is, and says so.
    """

    def build(case: Case, arrays: Arrays) -> Call:
        weights, x = networks.split(arrays)
        model = networks.network(weights)
        loss = make(model, x)
        step = networks.training_step(model, loss if compiled is None else torch.compile(loss, **compiled))
        return networks.graphed(step) if graph else step

    return Provider(build, named, _unfit(rivals, largest, graph or gpu))


def remote(named: str = "exact", *, rivals: int = SOME, package: str = "jax") -> Provider:
    """One of the other environment."""
    return Provider(None, named, _unfit(rivals), package)


def _unfit(rivals: int, largest: int = 1 << 40, gpu: bool = False) -> Callable[[Case, str], str]:
    """Why a case is not for a provider: by the rivals that it is to have, its B x D, and whether it needs a GPU."""

    def reason(case: Case, device: str) -> str:
        if gpu and device != "cuda":
            return networks.cuda_only(case, device)
        if case.settings["rivals"] < rivals:
            return "left out at this size"
        size = case.settings["B"] * case.settings["D"]
        return "" if size <= largest * (256 if device == "cuda" else 1) else "too slow or too large at this size"

    return reason


def _fast(trace: str) -> Callable[[nn.Module, Tensor], losses.Loss]:
    return lambda model, x: lambda: fastscore.implicit_score_matching(model, x, trace=trace)


def _stacked(mode: str) -> Callable[[nn.Module, Tensor], losses.Loss]:
    return lambda model, x: losses.stacked(model, x, mode=mode)


PER_DIMENSION = 4096 * 64

FAMILY = Family(
    name="divergence",
    title="A training step, time relative to an eager denoising step of the same network",
    unit="sample",
    base="denoising, eager",
    cases=cases,
    inputs=inputs,
    reference=reference,
    check=law.check,
    calls={"exact": 1, "hutchinson": law.CALLS, "denoising": law.CALLS},
    providers={
        "denoising, eager": provider(losses.denoising, "denoising"),
        "fastscore, exact": provider(_fast("exact")),
        "fastscore, Hutchinson": provider(_fast("hutchinson"), "hutchinson"),
        "fastscore, denoising": provider(
            lambda model, x: lambda: fastscore.denoising_score_matching(model, x, sigma=losses.SIGMA), "denoising"
        ),
        "sliced score matching, double backward": provider(losses.sliced, "hutchinson"),
        "loop of autograd.grad": provider(losses.loop, rivals=SOME, largest=PER_DIMENSION),
        "vmap(jacrev)": provider(_stacked("jacrev"), rivals=SOME, largest=PER_DIMENSION),
        "vmap(jacfwd)": provider(_stacked("jacfwd"), rivals=ALL, largest=PER_DIMENSION),
        "torch.compile of denoising": provider(losses.denoising, "denoising", rivals=MOST, compiled={}),
        "torch.compile of denoising, noise drawn outside": provider(
            lambda model, x: losses.denoising(model, x, torch.compile), "denoising", rivals=MOST
        ),
        "torch.compile of denoising, reduce-overhead": provider(
            losses.denoising, "denoising", rivals=MOST, compiled={"mode": "reduce-overhead"}, gpu=True
        ),
        "torch.compile of vmap(jacrev)": provider(_stacked("jacrev"), rivals=ALL, compiled={}),
        "torch.compile of sliced score matching": provider(losses.sliced, "hutchinson", rivals=ALL, compiled={}),
        "CUDA graph of denoising": provider(losses.denoising, "denoising", rivals=SOME, graph=True),
        "CUDA graph of sliced score matching": provider(losses.sliced, "hutchinson", rivals=SOME, graph=True),
        "JAX, denoising": remote("denoising"),
        "JAX, jacrev": remote(rivals=ALL),
        "JAX, jacfwd": remote(rivals=ALL),
        "JAX, closed form": remote(),
        "JAX, Hutchinson by jvp": remote("hutchinson"),
    },
    never={
        "curvlinops": "its operators are made without gradients, so that nothing can be trained through their traces"
    },
)
