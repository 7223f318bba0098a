"""Training steps of an energy network, relative to an eager step of denoising; torchebm's published loss settings."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import fastscore
from bench.families import law, losses, networks
from bench.families.training import ALL, FEW, provider, remote
from bench.registry import Arrays, Call, Case, Family, Provider

PROJECTIONS = 5
"""torchebm's default, which its published figures are for."""

#    B    D  L   H   rivals, headline
CPU = [
    (4096, 2, 2, 128, ALL, True),
    (4096, 8, 2, 128, ALL, True),
    (1024, 64, 2, 128, FEW, False),
    (128, 16, 2, 128, ALL, False),
    (1024, 128, 2, 128, FEW, False),
]
CUDA = [
    (65536, 8, 2, 128, ALL, True),
    (4096, 2, 2, 128, ALL, False),
    (65536, 64, 2, 128, FEW, False),
    (128, 16, 2, 128, ALL, False),
    (1024, 128, 2, 128, FEW, False),
]


def cases(device: str) -> list[Case]:
    return [_case(*row) for row in (CUDA if device == "cuda" else CPU)]


def _case(batch: int, dim: int, depth: int, width: int, rivals: int, headline: bool) -> Case:
    return Case(
        name=f"energy B={batch} D={dim} L={depth} H={width}",
        settings={"B": batch, "D": dim, "L": depth, "H": width, "rivals": rivals},
        units=batch,
        flops=12 * (dim * width + (depth - 1) * width**2 + width),
        seconds=5.0 if rivals else 3.0,
        headline=headline,
    )


def inputs(case: Case, device: str) -> dict[str, Tensor]:
    s = case.settings
    return networks.inputs([s["D"]] + [s["H"]] * s["L"] + [1], s["B"], device)


def reference(case: Case, arrays: Arrays) -> dict[str, law.Exact | law.Estimate]:
    weights, x = networks.split(arrays)
    model = networks.network(weights, dtype=torch.float64)
    score, wide = losses.score_of(model), x.double()
    exact = law.exact(networks.training_step(model, losses.in_parts(score, wide)))

    def sliced(part: Tensor) -> Call:
        return networks.training_step(model, _sliced(score, part))

    def denoising(part: Tensor) -> Call:
        return networks.training_step(model, losses.denoising(score, part))

    return {
        "exact": exact,
        "sliced": law.estimate(sliced, wide, exact),
        "denoising": law.estimate(denoising, wide),
    }


def _sliced(score: losses.Score, x: Tensor) -> losses.Loss:
    """`losses.sliced` of more projections and without its reduction of variance, as torchebm has it."""

    def loss() -> Tensor:
        y = x.detach().repeat(PROJECTIONS, 1).requires_grad_()
        s = score(y)
        v = torch.randn_like(y).sign()
        (product,) = torch.autograd.grad(s, y, v, create_graph=True)
        return (0.5 * (s * v).sum(-1).square() + (product * v).sum(-1)).mean()

    return loss


def fast_network(weights: Arrays) -> fastscore.EnergyMLP:
    """The same network as fastscore has it."""
    depth = len(weights) // 2 - 1
    model = fastscore.EnergyMLP(weights["w0"].shape[1], weights["w0"].shape[0], depth)
    state = {f"layers.{i}.{kind}": weights[f"{kind[0]}{i}"] for i in range(depth + 1) for kind in ("weight", "bias")}
    model.load_state_dict(state)
    return model.to(weights["w0"].device)


def _ours(make: Callable[[fastscore.EnergyMLP, Tensor], losses.Loss], named: str = "exact") -> Provider:
    def build(case: Case, arrays: Arrays) -> Call:
        weights, x = networks.split(arrays)
        model = fast_network(weights)
        return networks.training_step(model, make(model, x))

    return Provider(build, named)


FAMILY = Family(
    name="divergence of energies",
    title="A training step of an energy network, time relative to an eager denoising step of the same network",
    unit="sample",
    base="denoising, eager",
    cases=cases,
    inputs=inputs,
    reference=reference,
    check=law.check,
    calls={"exact": 1, "sliced": law.CALLS, "denoising": law.CALLS},
    providers={
        "denoising, eager": provider(lambda m, x: losses.denoising(losses.score_of(m), x), "denoising"),
        "fastscore, exact": _ours(
            lambda m, x: lambda: fastscore.implicit_score_matching(m.score, x, trace="exact")  # type: ignore
        ),
        "fastscore, denoising": _ours(
            lambda m, x: lambda: fastscore.denoising_score_matching(m.score, x, sigma=losses.SIGMA),  # type: ignore
            "denoising",
        ),
        "fastscore, sliced (5)": _ours(
            lambda m, x: lambda: fastscore.sliced_score_matching(m.score, x, n_probes=PROJECTIONS),  # type: ignore
            "sliced",
        ),
        "sliced score matching (5), double backward": provider(lambda m, x: _sliced(losses.score_of(m), x), "sliced"),
        "loop of autograd.grad": provider(lambda m, x: losses.loop(losses.score_of(m), x), rivals=ALL),
        "vmap(jacrev)": provider(lambda m, x: losses.stacked(m, x, energy=True), rivals=ALL),
        "CUDA graph of denoising": provider(
            lambda m, x: losses.denoising(losses.score_of(m), x), "denoising", graph=True
        ),
        "torchebm, ScoreMatching": remote(rivals=ALL, package="torchebm"),
        "torchebm, ScoreMatching approx": remote(rivals=FEW, package="torchebm"),
        "torchebm, SlicedScoreMatching (5)": remote("sliced", rivals=FEW, package="torchebm"),
        "torchebm, DenoisingScoreMatching": remote("denoising", rivals=FEW, package="torchebm"),
        "JAX, jacfwd of grad": remote(rivals=ALL),
        "JAX, folx": remote(rivals=FEW, package="folx"),
    },
)
