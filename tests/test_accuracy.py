"""The error against float64 is at most twice that of plain PyTorch at the same dtype, at every magnitude of x."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from fastscore import ScoreMLP, divergence
from tests.brute import brute_jacobian, data

NETWORKS = {
    "closed form": lambda: ScoreMLP(3, 32, 2),
    "tangents": lambda: ScoreMLP(3, 32, 3, "tanh"),
    "softplus": lambda: ScoreMLP(3, 32, 2, "softplus"),
    "generic": lambda: nn.Sequential(nn.Linear(3, 32), nn.LayerNorm(32), nn.SiLU(), nn.Linear(32, 3)),
}


def errors(net: nn.Module, exact: nn.Module, x: Tensor) -> tuple[list[float], list[float], list[float]]:
    """Root mean square errors of our score and trace, those of a loop of autograd.grad, and the values' own size."""
    found = divergence(net, x, trace="exact")[:2]
    score, jacobian = brute_jacobian(net, x)
    plain = (score, jacobian.diagonal(0, 1, 2).sum(1))
    score, jacobian = brute_jacobian(exact, x.double())
    true = (score, jacobian.diagonal(0, 1, 2).sum(1))

    def size(values: Tensor) -> float:
        return float(values.detach().double().square().mean().sqrt())

    return (
        [size(a.double() - b) for a, b in zip(found, true, strict=True)],
        [size(a.double() - b) for a, b in zip(plain, true, strict=True)],
        [size(b) for b in true],
    )


@pytest.mark.parametrize("power", [-10, 0, 5, 10, 15])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NETWORKS)
def test_errors_are_at_most_twice_those_of_plain_pytorch(name: str, dtype: torch.dtype, power: int) -> None:
    torch.manual_seed(5)
    power = min(power, 12) if dtype == torch.float16 else power  # above it the network's own products overflow
    net = NETWORKS[name]().to(dtype)
    exact = copy.deepcopy(net).double()
    x = (data(512, 3) * 2.0**power).clamp(-(2.0**15), 2.0**15).to(dtype)
    ours, theirs, sizes = errors(net, exact, x)
    for mine, plain, size in zip(ours, theirs, sizes, strict=True):
        assert mine <= 2 * plain + torch.finfo(dtype).eps * size + torch.finfo(dtype).tiny
