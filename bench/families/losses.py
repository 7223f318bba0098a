"""The losses as people write them in plain PyTorch, for any score function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacfwd, jacrev, vmap

SIGMA = 0.1
Score = Callable[[Tensor], Tensor]
Loss = Callable[[], Tensor]


def denoising(score: Score, x: Tensor, compiled: Callable[..., Any] = lambda of: of) -> Loss:
    """`1/2 |sigma s(x + sigma e) + e|^2`, the yardstick, as every tutorial has it; `compiled` for all but the noise."""

    @compiled
    def of(noise: Tensor) -> Tensor:
        return 0.5 * (SIGMA * score(x + SIGMA * noise) + noise).square().sum(-1).mean()

    return lambda: of(torch.randn_like(x))


def loop(score: Score, x: Tensor) -> Loss:
    """The Jacobian's diagonal by a loop of autograd.grad."""

    def loss() -> Tensor:
        y = x.detach().requires_grad_()
        s = score(y)
        rows = (torch.autograd.grad(s[:, i].sum(), y, create_graph=True)[0][:, i] for i in range(x.shape[1]))
        return (0.5 * s.square().sum(-1) + sum(rows)).mean()

    return loss


def in_parts(score: Score, x: Tensor) -> Loss:
    """The loop over a part of the batch at a time, each with its backward, so that float64 fits at any size."""
    rows = max(64, 2 ** (20 if x.is_cuda else 15) // x.shape[1])

    def loss() -> Tensor:
        total = torch.zeros((), dtype=x.dtype, device=x.device)
        for part in x.split(rows):
            share = loop(score, part)() * (len(part) / len(x))
            share.backward()
            total += share.detach()
        return total.requires_grad_()

    return loss


def sliced(score: Score, x: Tensor) -> Loss:
    """Sliced score matching by a double backward of a copy of x, as published, with its reduction of variance."""

    def loss() -> Tensor:
        y = x.detach().clone().requires_grad_()
        s = score(y)
        v = torch.randn_like(y).sign()
        (product,) = torch.autograd.grad(s, y, v, create_graph=True)
        return (0.5 * s.square().sum(-1) + (product * v).sum(-1)).mean()

    return loss


def stacked(model: nn.Module, x: Tensor, *, mode: str = "jacrev", energy: bool = False) -> Loss:
    """The whole Jacobian of one sample under vmap, by jacrev or jacfwd."""
    parameters = dict(model.named_parameters())
    jacobian_of = {"jacrev": jacrev, "jacfwd": jacfwd}[mode]

    def value(parameters: dict[str, Tensor], v: Tensor) -> Tensor:
        return functional_call(model, parameters, (v.unsqueeze(0),)).squeeze(0)

    def one(parameters: dict[str, Tensor], v: Tensor) -> Tensor:
        return grad(lambda v: -value(parameters, v).squeeze())(v) if energy else value(parameters, v)

    def loss() -> Tensor:
        s = vmap(one, (None, 0))(parameters, x)
        jacobian = vmap(jacobian_of(one, 1), (None, 0))(parameters, x)
        return (0.5 * s.square().sum(-1) + jacobian.diagonal(dim1=1, dim2=2).sum(-1)).mean()

    return loss


def score_of(energy: nn.Module) -> Score:
    """Minus the gradient of an energy, by autograd."""

    def score(y: Tensor) -> Tensor:
        y = y if y.requires_grad else y.requires_grad_()
        return torch.autograd.grad(-energy(y).sum(), y, create_graph=True)[0]

    return score
