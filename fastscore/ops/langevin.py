"""The golden operation: a Langevin step whose noise is never stored, differentiable in x, score and step_size.

A primitive that autograd does not see (`_step`: the reference, or a Triton kernel) is wrapped in an autograd Function
whose backward, jvp and vmap are made of torch operations on regenerated noise, so every transform and every derivative
of it is right by construction.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastscore.ops import _cpu_chain, _dispatch, noise
from fastscore.ops.noise import tensor
from fastscore.reference import langevin as reference
from fastscore.reference.philox import Stream


def langevin_step(
    x: Tensor,
    score: Tensor,
    step_size: float | Tensor,
    temperature: float | Tensor,
    seed: int,
    step: int,
    first_chain: int,
) -> Tensor:
    """x + a score + sqrt(2 a T) e for x, score `[B, *event]`; a 0-dim or of the event's shape, T 0-dim, or numbers."""
    counters = (seed, step, first_chain)
    if torch.compiler.is_compiling():
        return reference.langevin_step(x, score, tensor(step_size, x), tensor(temperature, x), _noise(x, *counters))
    if not _differentiated(x, score, step_size):  # to bind the arguments of a Function takes as long as a small step
        return _step(x, score, step_size, temperature, *counters)
    return LangevinStep.apply(x, score, tensor(step_size, x), tensor(temperature, x), *counters)  # type: ignore[no-untyped-call, no-any-return]


def _differentiated(*values: float | Tensor) -> bool:
    """Whether a derivative or a transform may be asked of a function of these."""
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return True
    return torch.is_grad_enabled() and any(isinstance(value, Tensor) and value.requires_grad for value in values)


def _step(x: Tensor, score: Tensor, step_size: float | Tensor, temperature: float | Tensor, *counters: int) -> Tensor:
    """The primitive: no autograd; the counters are those above."""
    if (kernels := _dispatch.kernels("langevin", x.device)) is not None and x.numel():
        rows, a = (x.shape[0], x[0].numel()), tensor(step_size, x)
        flat = a.flatten() if a.dim() else a
        made = kernels.langevin_step(x.reshape(rows), score.reshape(rows), flat, tensor(temperature, x), *counters)
        return made.view(x.shape)  # type: ignore[no-any-return]
    if (stepped := _cpu_chain.langevin_step(x, score, step_size, temperature, *counters)) is not None:
        return stepped
    return reference.langevin_step(x, score, tensor(step_size, x), tensor(temperature, x), _noise(x, *counters))


def _noise(x: Tensor, seed: int, step: int, first_chain: int) -> Tensor:
    """The noise of the step, shaped like x, in the dtype of its arithmetic."""
    width = x.shape[1:].numel()
    dtype = noise.computed(x.dtype)
    return noise.normal(x.shape[0], width, seed, Stream.LANGEVIN, step, first_chain, dtype, x.device).view(x.shape)


@_dispatch.carried
class LangevinStep(torch.autograd.Function):
    """Saves x's shape and the scalars; dx = g, dscore = a g, da = sum g (score + sqrt(T / (2 a)) e)."""

    @staticmethod
    def forward(
        x: Tensor, score: Tensor, step_size: Tensor, temperature: Tensor, seed: int, step: int, first_chain: int
    ) -> Tensor:
        return _step(x, score, step_size, temperature, seed, step, first_chain)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, score, step_size, temperature, *ctx.counters = inputs
        # x itself is kept only as what to shape the noise like: an expanded scalar holds no memory of the batch.
        like = x.new_empty(()).expand(x.shape)
        ctx.dtypes = (x.dtype, score.dtype, step_size.dtype)
        needs_step = ctx.needs_input_grad[2]
        ctx.save_for_backward(like, score if needs_step else None, step_size, temperature)
        ctx.save_for_forward(like, score, step_size, temperature)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        like, score, step_size, temperature = ctx.saved_tensors
        dtype = noise.computed(like.dtype)
        a, g = step_size.to(dtype), grad.to(dtype)
        need_x, need_score, need_step = ctx.needs_input_grad[:3]
        grad_step = None
        if need_step:
            rate = _rate(like, score, a, temperature, ctx.counters)
            grad_step = (g * rate).sum_to_size(_padded(a, g)).view(a.shape).to(ctx.dtypes[2])
        return (
            g.to(ctx.dtypes[0]) if need_x else None,
            (a * g).to(ctx.dtypes[1]) if need_score else None,
            grad_step,
            *[None] * 4,
        )

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dscore: Tensor | None, dstep: Tensor | None, *_: Any) -> Tensor:
        like, score, step_size, temperature = ctx.saved_tensors
        dtype = noise.computed(like.dtype)
        a = step_size.to(dtype)
        total = torch.zeros_like(score, dtype=dtype)
        if dx is not None:
            total = total + dx.to(dtype)
        if dscore is not None:
            total = total + a * dscore.to(dtype)
        if dstep is not None:
            total = total + dstep.to(dtype) * _rate(like, score, a, temperature, ctx.counters)
        return total.to(like.dtype)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        x: Tensor,
        score: Tensor,
        step_size: Tensor,
        temperature: Tensor,
        *counters: int,
    ) -> tuple[Tensor, int]:
        if in_dims[3] is not None:
            raise RuntimeError(
                "langevin_step: vmap over temperature is not supported; call it once for each temperature"
            )
        if in_dims[2] is not None:  # [N, *a] against [N, B, *event]
            step_size = step_size.movedim(in_dims[2], 0).unsqueeze(1)
            event = (x.dim() - 1 if in_dims[0] is not None else x.dim()) - 1
            step_size = step_size.view(step_size.shape + (1,) * (event + 2 - step_size.dim()))
        x = x.movedim(in_dims[0], 0) if in_dims[0] is not None else x.unsqueeze(0)
        score = score.movedim(in_dims[1], 0) if in_dims[1] is not None else score.unsqueeze(0)
        # Every slice is the function of its own rows, so all slices share one noise.
        moved = reference.langevin_step(x, score, step_size, temperature, _noise(x[0], *counters))
        return moved.expand(info.batch_size, *moved.shape[1:]), 0


def _rate(like: Tensor, score: Tensor, a: Tensor, temperature: Tensor, counters: list[int]) -> Tensor:
    """dx' / da = score + sqrt(T / (2 a)) e."""
    return score.to(a.dtype) + torch.sqrt(temperature.to(a.dtype) / (2.0 * a)) * _noise(like, *counters)


def _padded(a: Tensor, g: Tensor) -> tuple[int, ...]:
    """The shape of a with leading ones, as many dimensions as g."""
    return (1,) * (g.dim() - a.dim()) + tuple(a.shape)
