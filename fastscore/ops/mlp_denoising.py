"""The denoising loss of a structured network in one pass: noise made where it is used, gradients with the loss.

`square sum_b |alpha_b s(y_b) + beta_b e_b|^2` at `y = x + level e`. The normals e are a function of the seed and the
row; they are made again for the residual, and neither they nor anything of the network's width outlives a chunk or
tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastscore.ops import _cpu_threads, mlp_functions, mlp_tiles, noise
from fastscore.ops.mlp_forms import Jets
from fastscore.ops.mlp_functions import Outputs, Problem
from fastscore.ops.mlp_passes import Scratch
from fastscore.ops.mlp_tiles import Gradients
from fastscore.reference import mlp as reference
from fastscore.reference.philox import Stream


class Value:
    """The form of a network of which nothing but its output is asked."""

    kind, order, columns = "value", 0, 1
    parameters: tuple[Tensor, ...] = ()

    def value(self, rows: slice, jets: Jets, scratch: Scratch) -> tuple[()]:
        """Nothing."""
        return ()

    def pullback(
        self, upstream: tuple[Tensor | None, ...], jets: Jets, scratch: Scratch, sums: Gradients
    ) -> tuple[list[Tensor], None]:
        """No gradients."""
        return [], None


@dataclass(frozen=True)
class Residual:
    """`square sum_b |alpha_b s_b + beta_b e_b|^2`; alpha and beta are numbers or `[B, 1]`."""

    square: float
    alpha: float | Tensor
    beta: float | Tensor
    seed: int
    first_chain: int

    def __call__(self, rows: slice, score: Tensor) -> Tensor:
        """The residual of some rows."""
        alpha, beta = self.scales(rows)
        return noise.mixed(score, alpha, beta, self.seed, int(Stream.DATA), self.first_chain + rows.start)

    def scales(self, rows: slice) -> tuple[float | Tensor, float | Tensor]:
        """alpha and beta of some rows."""
        alpha, beta = (s[rows] if isinstance(s, Tensor) and s.numel() > 1 else s for s in (self.alpha, self.beta))
        return alpha, beta

    def plain(self, problem: Problem, y: Tensor, tensors: Sequence[Any]) -> Tensor:
        """The loss as autograd differentiates it, to any order."""
        mlp, shifts, _ = problem.split(tensors)
        score = reference.forward(mlp, y, shifts)
        with torch.no_grad():
            e = noise.mixed(torch.zeros_like(y), 0.0, 1.0, self.seed, int(Stream.DATA), self.first_chain)
        return self.square * (self.alpha * score + self.beta * e).square().sum()


class Denoising(torch.autograd.Function):
    """`(problem, residual, y, *shifts, *weights, *biases, None) -> loss`, whose gradients its forward makes."""

    @staticmethod
    def forward(ctx: Any, problem: Problem, residual: Residual, y: Tensor, *tensors: Any) -> Tensor:
        ctx.problem, ctx.residual, needs = problem, residual, ctx.needs_input_grad[2:]
        mlp, shifts, _ = problem.split([t if t is None else t.detach() for t in tensors])
        if problem.narrow:
            mlp = replace(mlp, weights=tuple(weight.bfloat16() for weight in mlp.weights))
        keys = problem.keys()
        wanted = {key: t for key, t, need in zip(keys, (y, *tensors), needs, strict=True) if need}
        squares: dict[int, Tensor] = {}  # by first row: threads come in any order

        def upstream(rows: slice, score: Tensor, _: Outputs) -> tuple[Tensor, tuple[()]]:
            found = residual(rows, score)
            squares[rows.start] = found.square().sum()
            return found.mul_(2 * residual.square * residual.scales(rows)[0]), ()

        arguments, kernels = (mlp, y, shifts, Value(), upstream, wanted, 1.0), problem.kernels(mlp, y)
        with _cpu_threads.alone(y), torch.autocast(y.device.type, enabled=False):
            if kernels is None:
                gradients = mlp_tiles.differentiate(*arguments)
            else:
                gradients = kernels.differentiate(*arguments, True)
        ctx.save_for_backward(y, *tensors, *(gradients.get(key) for key in keys))
        return residual.square * torch.stack([squares[row] for row in sorted(squares)]).sum()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        problem, residual, needs = ctx.problem, ctx.residual, ctx.needs_input_grad[2:]
        saved = ctx.saved_tensors
        inputs, gradients = saved[: len(needs)], saved[len(needs) :]
        if not torch.is_grad_enabled() and not mlp_functions.transformed((upstream,)):
            return None, None, *(None if gradient is None else gradient * upstream for gradient in gradients)

        def plain(y: Tensor, *tensors: Any) -> tuple[Tensor]:
            return (residual.plain(problem, y, tensors),)

        return None, None, *mlp_functions.vjp(plain, inputs, needs, (upstream,))
