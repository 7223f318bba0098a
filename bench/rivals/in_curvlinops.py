"""curvlinops: its Hessian operator, for which the points stand in the place of a network's parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from curvlinops import HessianLinearOperator
from torch import Tensor, nn

from bench.families.networks import network, tensors


class Points(nn.Module):
    """All points as one parameter, and the energies at them."""

    def __init__(self, x: Tensor, energy: nn.Module) -> None:
        super().__init__()
        self.x, self.energy = nn.Parameter(x), energy

    def forward(self, rows: Tensor) -> Tensor:
        return self.energy(self.x)


class Sum(nn.Module):
    """The sum of the energies, so that the Hessian has a block for each point and nothing else."""

    reduction = "sum"

    def forward(self, energies: Tensor, nothing: Tensor) -> Tensor:
        return energies.sum()


def laplacian(settings: dict[str, Any], inputs: dict[str, np.ndarray], device: str) -> Any:
    """The operator times one unit vector a dimension, the same in every block: the diagonals of all blocks at once."""
    arrays = tensors(inputs, device)
    x = arrays.pop("x")
    model = Points(x, network(arrays, "tanh").requires_grad_(False))
    data = [(torch.zeros(len(x), device=device), torch.zeros(len(x), device=device))]
    operator = HessianLinearOperator(model, Sum(), [model.x], data, check_deterministic=False)
    units = torch.eye(x.shape[1], device=device).repeat(len(x), 1)
    return lambda: {"laplacian": (units * (operator @ units)).sum(1).reshape(x.shape).sum(1)}


BUILDERS = {("divergence of gradients", "curvlinops, Hessian operator"): laplacian}
