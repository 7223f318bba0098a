"""The denoising loss of a structured network in one pass: noise made where it is used, gradients with the loss.

`square sum_b |alpha_b s(y_b) + beta_b e_b|^2` at `y = x + level e`. The normals e are a function of the seed and the
row; they are made again for the residual, and neither they nor anything of the network's width outlives a chunk or
tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastscore.ops import _dispatch, mlp_functions, noise
from fastscore.ops._cpu_program import Noise, Recorder
from fastscore.ops.mlp_problem import Outputs, Problem
from fastscore.ops.mlp_tile import Above, Upstream
from fastscore.reference.philox import Stream


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
        score = problem.plain(y, tensors)[-1]
        with torch.no_grad():
            e = noise.mixed(torch.zeros_like(y), 0.0, 1.0, self.seed, int(Stream.DATA), self.first_chain)
        return self.square * (self.alpha * score + self.beta * e).square().sum()


class OfResidual(Upstream):
    """The gradient of the residual's square in the score, an energy's if there are values, and the sum of squares."""

    def __init__(self, residual: Residual, y: Tensor) -> None:
        self.residual, self.like, self.key = residual, y, ("residual", residual.square)
        self.noise = Noise("normal", residual.seed, residual.first_chain)
        if y.device.type == "cpu":  # what a program reads
            scales = (residual.alpha, residual.beta)
            self.arrays = tuple(torch.as_tensor(s, dtype=y.dtype, device=y.device).expand(len(y), 1) for s in scales)
        self.squares: dict[int, Tensor] = {}  # by first row: threads come in any order

    def __call__(self, rows: slice, out: Tensor, values: Outputs) -> Above:
        """That of some rows, whose squares are kept."""
        found = self.residual(rows, values[0] if values else out)
        self.squares[rows.start] = found.square().sum()
        found.mul_(2 * self.residual.square * self.residual.scales(rows)[0])
        return (None, (found,)) if values else (found, ())

    def record(self, rows: slice, out: Tensor, values: Outputs, recorder: Recorder) -> Above:
        """The same as steps of a program."""
        alpha, beta = (array[rows] for array in self.arrays)
        score = values[0] if values else out
        e = recorder.draw("normal", 1, score.shape[1], int(Stream.DATA)).view(score.shape)
        recorder.mix(e, score, e, alpha, beta)
        recorder.number(e, e)
        recorder.mix(e, e, left=alpha)
        recorder.mix(e, e, left=2 * self.residual.square)
        return (None, (e,)) if values else (e, ())

    def settle(self, numbers: list[float]) -> None:
        """Take the sum over all rows."""
        self.squares[0] = self.like.new_tensor(numbers[0])

    def sum(self) -> Tensor:
        """`sum_b |alpha_b s_b + beta_b e_b|^2`."""
        return torch.stack([self.squares[row] for row in sorted(self.squares)]).sum()


@_dispatch.carried
class Denoising(torch.autograd.Function):
    """`(problem, residual, y, *shifts, *weights, *biases, None) -> loss`, whose gradients its forward makes."""

    @staticmethod
    def forward(ctx: Any, problem: Problem, residual: Residual, y: Tensor, *tensors: Any) -> Tensor:
        ctx.problem, ctx.residual, needs = problem, residual, ctx.needs_input_grad[2:]
        upstream = OfResidual(residual, y)
        gradients = mlp_functions.differentiate(problem, y, tensors, needs, upstream, reads=True)
        ctx.save_for_backward(y, *tensors, *gradients)
        return residual.square * upstream.sum()

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
