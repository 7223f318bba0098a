"""The Laplacian of an energy, values only: jet-for-pytorch's published network, 50-768-768-512-512-1 with tanh."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, vmap

import fastscore
from bench import check as checks
from bench.families import networks
from bench.registry import Arrays, Call, Case, Family, Provider

SIZES = (50, 768, 768, 512, 512, 1)


def cases(device: str) -> list[Case]:
    """The published batch is 2048: seconds a call on a GPU, minutes on two cores, so that a CPU has an eighth of it."""
    return [_case(2048 if device == "cuda" else 256)]


def _case(batch: int) -> Case:
    return Case(
        name=f"Laplacian B={batch}, 50-768-768-512-512-1",
        settings={"B": batch, "D": SIZES[0]},
        units=batch,
        flops=2.0 * sum(a * b for a, b in itertools.pairwise(SIZES)) * SIZES[0] * 6,
        seconds=6.0,
        headline=True,
    )


def inputs(case: Case, device: str) -> dict[str, Tensor]:
    return networks.inputs(SIZES, case.settings["B"], device)


def _loop(model: nn.Module, x: Tensor) -> Tensor:
    y = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(model(y).sum(), y, create_graph=True)
    rows = (torch.autograd.grad(slope[:, i].sum(), y, retain_graph=True)[0][:, i] for i in range(y.shape[1]))
    return torch.stack([row.detach() for row in rows]).sum(0)


def reference(case: Case, arrays: Arrays) -> dict[str, Tensor]:
    weights, x = networks.split(arrays)
    model = networks.network(weights, "tanh", torch.float64)
    return {"laplacian": torch.cat([_loop(model, part) for part in x.double().split(256)])}


def check(case: Case, arrays: Arrays, found: Any, law: str, results: Sequence[Arrays]) -> None:
    for result in results:
        checks.close(result, found, 2e-3)


def _naive(case: Case, arrays: Arrays) -> Call:
    weights, x = networks.split(arrays)
    model = networks.network(weights, "tanh")
    return lambda: {"laplacian": _loop(model, x)}


def _hessian(case: Case, arrays: Arrays, compiled: bool = False) -> Call:
    weights, x = networks.split(arrays)
    model = networks.network(weights, "tanh")
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def trace(parameters: dict[str, Tensor], v: Tensor) -> Tensor:
        return hessian(lambda v: functional_call(model, parameters, (v,)).squeeze())(v).trace()

    whole = vmap(trace, (None, 0))
    chosen = torch.compile(whole) if compiled else whole
    return lambda: {"laplacian": chosen(parameters, x)}


def _ours(case: Case, arrays: Arrays) -> Call:
    weights, x = networks.split(arrays)
    model = networks.network(weights, "tanh").requires_grad_(False)
    return lambda: {"laplacian": fastscore.laplacian(model, x, trace="exact").laplacian}


FAMILY = Family(
    name="divergence of gradients",
    title="The Laplacian of an energy, time relative to nested autograd",
    unit="sample",
    base="loop of autograd.grad",
    cases=cases,
    inputs=inputs,
    reference=reference,
    check=check,
    providers={
        "loop of autograd.grad": Provider(_naive),
        "fastscore": Provider(_ours),
        "vmap(hessian)": Provider(_hessian),
        "torch.compile of vmap(hessian)": Provider(lambda case, arrays: _hessian(case, arrays, compiled=True)),
        "jet-for-pytorch, collapsed": Provider(None, package="jet-for-pytorch"),
        "curvlinops, Hessian operator": Provider(None, package="curvlinops-for-pytorch"),
        "JAX, hessian": Provider(None, package="jax"),
        "JAX, folx": Provider(None, package="folx"),
    },
)
