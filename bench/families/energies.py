"""Training steps of an energy network, relative to an eager step of denoising; torchebm's published loss settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import fastscore
from bench.families import law, losses, networks
from bench.families.training import split
from bench.registry import Arrays, Call, Case, Family, Provider

PROJECTIONS = 5
"""torchebm's default, which its published figures are for."""

#    B     D   L    H   rivals: all of them, headline
CPU = [
    (4096, 2, 2, 128, True, True),
    (4096, 8, 2, 128, True, True),
    (1024, 64, 2, 128, False, False),
    (128, 16, 2, 128, True, False),
    (1024, 128, 2, 128, False, False),
]
CUDA = [
    (4096, 2, 2, 128, True, True),
    (65536, 8, 2, 128, True, True),
    (65536, 64, 2, 128, False, False),
    (128, 16, 2, 128, True, False),
    (1024, 128, 2, 128, False, False),
]


def cases(device: str) -> list[Case]:
    return [
        Case(
            name=f"energy B={batch} D={dim} L={depth} H={width}",
            settings={"B": batch, "D": dim, "L": depth, "H": width, "all": everything},
            units=batch,
            flops=12 * (dim * width + (depth - 1) * width**2 + width),
            seconds=5.0 if everything else 3.0,
            headline=headline,
        )
        for batch, dim, depth, width, everything, headline in (CUDA if device == "cuda" else CPU)
    ]


def inputs(case: Case, device: str) -> dict[str, Tensor]:
    s = case.settings
    made = networks.weights([s["D"]] + [s["H"]] * s["L"] + [1])
    made["x"] = torch.randn(s["B"], s["D"], generator=networks.generator(1))
    return {name: value.to(device) for name, value in made.items()}


def reference(case: Case, arrays: Arrays) -> dict[str, law.Exact | law.Estimate]:
    weights, x = split(arrays)
    model = networks.network(weights, dtype=torch.float64)
    score, wide = losses.score_of(model), x.double()
    rows = max(64, 2**15 // x.shape[1])

    def exactly() -> Tensor:
        total = torch.zeros((), dtype=wide.dtype, device=wide.device)
        for part in wide.split(rows):
            share = losses.loop(score, part)() * (len(part) / len(wide))
            share.backward()
            total += share.detach()
        return total.requires_grad_()

    exact = law.exact(networks.training_step(model, exactly))

    def sliced(part: Tensor) -> Call:
        return networks.training_step(model, losses.sliced(score, part, PROJECTIONS, reduced=False))

    def denoising(part: Tensor) -> Call:
        return networks.training_step(model, losses.denoising(score, part))

    return {
        "exact": exact,
        "sliced": law.estimate(sliced, wide, exact),
        "denoising": law.estimate(denoising, wide),
    }


def check(case: Case, arrays: Arrays, laws: Any, name: str, results: Sequence[Arrays]) -> None:
    laws[name].check(results)


def fast_network(weights: Arrays) -> fastscore.EnergyMLP:
    """The same network as fastscore has it."""
    depth = len(weights) // 2 - 1
    model = fastscore.EnergyMLP(weights["w0"].shape[1], weights["w0"].shape[0], depth)
    state = {f"layers.{i}.{kind}": weights[f"{kind[0]}{i}"] for i in range(depth + 1) for kind in ("weight", "bias")}
    model.load_state_dict(state)
    return model.to(weights["w0"].device)


def _ours(make: Callable[[fastscore.EnergyMLP, Tensor], losses.Loss], named: str = "exact") -> Provider:
    def build(case: Case, arrays: Arrays) -> Call:
        weights, x = split(arrays)
        model = fast_network(weights)
        return networks.training_step(model, make(model, x))

    return Provider(build, named)


def _plain(
    make: Callable[[nn.Module, Tensor], losses.Loss],
    named: str = "exact",
    *,
    everywhere: bool = True,
    graph: bool = False,
) -> Provider:
    def build(case: Case, arrays: Arrays) -> Call:
        weights, x = split(arrays)
        model = networks.network(weights)
        step = networks.training_step(model, make(model, x))
        return networks.graphed(step) if graph else step  # type: ignore[return-value]

    def unfit(case: Case, device: str) -> str:
        if graph and device != "cuda":
            return networks.cuda_only(case, device)
        return "" if everywhere or case.settings["all"] else "too slow or too large at this size"

    return Provider(build, named, unfit)


def _remote(package: str, named: str = "exact", *, everywhere: bool = True) -> Provider:
    return Provider(None, named, _plain(losses.loop, everywhere=everywhere).unfit, package)


FAMILY = Family(
    name="energies",
    title="A training step of an energy network, time relative to an eager denoising step of the same network",
    unit="sample",
    base="denoising, eager",
    cases=cases,
    inputs=inputs,
    reference=reference,
    check=check,
    calls={"exact": 1, "sliced": law.CALLS, "denoising": law.CALLS},
    providers={
        "denoising, eager": _plain(lambda m, x: losses.denoising(losses.score_of(m), x), "denoising"),
        "fastscore, exact": _ours(
            lambda m, x: lambda: fastscore.implicit_score_matching(m.score, x, trace="exact")  # type: ignore
        ),
        "fastscore, sliced (5)": _ours(
            lambda m, x: lambda: fastscore.sliced_score_matching(m.score, x, n_probes=PROJECTIONS),  # type: ignore
            "sliced",
        ),
        "sliced score matching (5), double backward": _plain(
            lambda m, x: losses.sliced(losses.score_of(m), x, PROJECTIONS, reduced=False), "sliced"
        ),
        "loop of autograd.grad": _plain(lambda m, x: losses.loop(losses.score_of(m), x), everywhere=False),
        "vmap(jacrev)": _plain(lambda m, x: losses.stacked(m, x, energy=True), everywhere=False),
        "CUDA graph of denoising": _plain(
            lambda m, x: losses.denoising(losses.score_of(m), x), "denoising", graph=True
        ),
        "torchebm, ScoreMatching": _remote("torchebm", everywhere=False),
        "torchebm, ScoreMatching approx": _remote("torchebm"),
        "torchebm, SlicedScoreMatching (5)": _remote("torchebm", "sliced"),
        "torchebm, DenoisingScoreMatching": _remote("torchebm", "denoising"),
        "JAX, jacfwd of grad": _remote("jax", everywhere=False),
        "JAX, folx": _remote("folx"),
    },
)
