"""What the tests of divergences share: loops of autograd.grad in float64, and callables to differentiate."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastscore import noise

Function = Callable[[Tensor], Tensor]


def data(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return noise.normal(shape, seed=seed, stream=noise.Stream.DATA, dtype=dtype)


class Convolutions(nn.Module):
    """A small image score network."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.SiLU(), nn.Conv2d(8, 2, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)


class Cube(torch.autograd.Function):
    """x^3 as a legacy Function without a forward rule."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 3 * gradient * x**2


class Through(nn.Module):
    """A linear layer followed by an operation."""

    def __init__(self, operation: Function) -> None:
        super().__init__()
        self.linear, self.operation = nn.Linear(3, 3), operation

    def forward(self, x: Tensor) -> Tensor:
        return self.operation(self.linear(x))


class Energy(nn.Module):
    """An energy of images, with an optional condition that moves them."""

    def __init__(self, operation: Function = torch.tanh, column: bool = False) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 1)
        self.operation, self.column = operation, column

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        h = self.first(x.flatten(1))
        energy = self.last(self.operation(h if cond is None else h + cond))
        return energy if self.column else energy.squeeze(1)


def mlp(d: int) -> nn.Module:
    return nn.Sequential(nn.Linear(d, 7), nn.SiLU(), nn.LayerNorm(7), nn.Linear(7, 7), nn.Softplus(), nn.Linear(7, d))


def brute_jacobian(fn: Function, x: Tensor) -> tuple[Tensor, Tensor]:
    """Score and Jacobian by a loop of autograd.grad over the features."""
    x = x if x.requires_grad else x.detach().clone().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        s = fn(x)
    flat = s.flatten(1)
    rows = [torch.autograd.grad(flat[:, i].sum(), x, create_graph=True)[0].flatten(1) for i in range(flat.shape[1])]
    return s, torch.stack(rows, 1)


def gradients(outputs: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """Gradients for upstream gradients that are neither uniform nor contiguous."""
    upstream = [data(*o.shape, 2, seed=9)[..., 0] for o in outputs]
    return list(torch.autograd.grad(outputs, inputs, upstream, allow_unused=True, materialize_grads=True))


def close(actual: object, expected: object, tolerance: float = 1e-11) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def compare_with_gradients(
    found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], x: Tensor, y: Tensor, net: nn.Module
) -> None:
    close(found, expected)
    close(
        gradients(list(found), [x, *net.parameters()]),
        gradients(list(expected), [y, *net.parameters()]),
    )
