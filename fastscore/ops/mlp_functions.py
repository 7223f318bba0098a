"""What autograd sees of the structured networks: two Functions over the tiles of `fastscore.ops.mlp_tiles`.

`Terms` returns values per sample and recomputes each tile in its backward, so it saves nothing but its inputs. `Loss`
returns one number whose gradients it already computed tile by tile in its forward, and only scales them in its
backward. Where a gradient must itself be differentiated (`create_graph=True`, `torch.func` over a backward), both go
back to the plain meaning, which autograd differentiates to any order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from fastscore.ops import _cpu_threads, _dispatch, mlp_tiles
from fastscore.ops.mlp_problem import Given, OfLoss, Outputs, Problem, Weights
from fastscore.ops.mlp_tile import Key, Sought, Upstream


class Prepared:
    """A form on detached weights, with the small graph from the weights to the form's parameters kept beside it."""

    def __init__(self, problem: Problem, x: Tensor, tensors: Sequence[Any], needs: Sequence[bool]) -> None:
        keys = problem.keys()[1:]
        leaves: list[Any] = [t if t is None else t.detach() for t in tensors]
        self.leaves: dict[Key, Tensor] = {}
        for key, leaf, need in zip(keys, leaves, needs, strict=True):
            if need and key[0] in ("weight", "C"):
                self.leaves[key] = leaf.requires_grad_()
        mlp, self.shifts, weight = problem.split(leaves)
        # Hooks of our own, which do nothing: activation checkpointing must not see this graph, which is used up here.
        with torch.enable_grad(), saved_tensors_hooks(lambda t: t, lambda t: t):
            self.form = problem.form(mlp, x, weight)
        self.graph = self.form.parameters
        self.form.parameters = tuple(parameter.detach() for parameter in self.graph)
        self.mlp, self.problem = mlp, problem
        if problem.narrow:  # what enters products; the graph above stays in float32
            self.mlp = replace(mlp, weights=tuple(weight.detach().bfloat16() for weight in mlp.weights))
            self.form.parameters = tuple(p.bfloat16() if p.ndim == 2 else p for p in self.form.parameters)

    def evaluate(self, x: Tensor) -> Outputs:
        """The network's output and the form's values."""
        return cast(
            Outputs, (self.problem.kernels(self.mlp, x) or mlp_tiles).evaluate(self.mlp, x, self.shifts, self.form)
        )

    def wanted(self) -> dict[Key, Tensor]:
        """The parameters of the form through which a wanted gradient flows."""
        return {("form", i): p for i, p in enumerate(self.graph) if p.requires_grad}

    def pull(self, gradients: dict[Key, Tensor]) -> None:
        """Turn gradients in the form's parameters into gradients in weights, added to those there."""
        through = [key for key in gradients if key[0] == "form"]
        if not through:
            return
        outputs = [self.graph[i] for _, i in through]
        leaves = list(self.leaves.values())
        found = torch.autograd.grad(outputs, leaves, [gradients.pop(key) for key in through], allow_unused=True)
        for key, gradient in zip(self.leaves, found, strict=True):
            if gradient is not None:
                gradients[key] = gradients[key] + gradient if key in gradients else gradient


def differentiate(
    problem: Problem,
    x: Tensor,
    tensors: Sequence[Any],
    needs: Sequence[bool],
    upstream: Upstream,
    scale: float = 1.0,
    *,
    reads: bool,
) -> list[Tensor | None]:
    """Gradients of `(x, *tensors)` where they are needed, else None; `reads` says whether upstream looks at outputs."""
    keys = problem.keys()
    wanted = {key: t for key, t, need in zip(keys, (x, *tensors), needs, strict=True) if need and key[0] != "C"}
    with _cpu_threads.alone(x), torch.autocast(x.device.type, enabled=False):
        prepared = Prepared(problem, x, tensors, needs[1:])
        arguments = (prepared.mlp, x, prepared.shifts, prepared.form, upstream, {**wanted, **prepared.wanted()}, scale)
        found = problem.kernels(prepared.mlp, x)
        gradients = (
            mlp_tiles.differentiate(Sought(*arguments)) if found is None else found.differentiate(*arguments, reads)
        )
        prepared.pull(gradients)
    return [gradients.get(key) if need else None for key, need in zip(keys, needs, strict=True)]


def vjp(
    function: Callable[..., Outputs], inputs: Sequence[Any], needs: Sequence[bool], upstream: Sequence[Tensor]
) -> list[Tensor | None]:
    """Gradients of the plain function, themselves differentiable where gradients are recorded."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # One view per argument: a tensor given twice (tied weights) must get two gradients, not two sums.
        arguments: list[Any] = [t if t is None else t.view_as(t) for t in inputs]
        for argument, need in zip(arguments, needs, strict=True):
            if need and not argument.requires_grad:
                argument.requires_grad_()
        outputs = function(*arguments)
        chosen = [argument for argument, need in zip(arguments, needs, strict=True) if need]
        found = iter(torch.autograd.grad(outputs, chosen, upstream, create_graph=create_graph, allow_unused=True))
    return [next(found) if need else None for need in needs]


def transformed(tensors: Iterable[Tensor]) -> bool:
    """Whether a transform of torch.func, or the vmap of `is_grads_batched`, looks on: tiles work in place, below it."""
    # The tests that torch itself makes in autograd.Function.apply and in its printing; there are no public ones.
    legacy = torch._C._functorch.is_legacy_batchedtensor
    return bool(torch._C._are_functorch_transforms_active()) or any(legacy(tensor) for tensor in tensors)


@_dispatch.carried
class Terms(torch.autograd.Function):
    """`(problem, x, *shifts, *weights, *biases, C) -> ` the outputs of `Problem.plain`."""

    @staticmethod
    def forward(ctx: Any, problem: Problem, x: Tensor, *tensors: Any) -> Outputs:
        ctx.problem = problem
        ctx.save_for_backward(x, *tensors)
        with _cpu_threads.alone(x), torch.autocast(x.device.type, enabled=False):
            return Prepared(problem, x, tensors, [False] * len(tensors)).evaluate(x)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        problem, (x, *tensors), needs = ctx.problem, ctx.saved_tensors, ctx.needs_input_grad[1:]
        if torch.is_grad_enabled() or transformed(upstream):
            return None, *vjp(lambda x, *t: problem.plain(x, t), (x, *tensors), needs, upstream)
        return None, *differentiate(problem, x, tensors, needs, Given(upstream), reads=False)


@_dispatch.carried
class Loss(torch.autograd.Function):
    """`(problem, weights, x, *shifts, *weights, *biases, C) -> (loss, sum |s|^2, sum tr)`, the sums detached."""

    @staticmethod
    def forward(ctx: Any, problem: Problem, weights: Weights, x: Tensor, *tensors: Any) -> Outputs:
        ctx.problem, ctx.weights, needs = problem, weights, ctx.needs_input_grad[2:]
        of_loss = OfLoss(problem, weights, x)
        scale = 1.0 if problem.energy else weights.trace / of_loss.count
        gradients = differentiate(problem, x, tensors, needs, of_loss, scale, reads=True)
        square, trace = of_loss.sums()
        ctx.save_for_backward(x, *tensors, *gradients)
        ctx.mark_non_differentiable(square, trace)
        return weights.square * square + weights.trace * trace, square, trace

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        problem, weights, needs = ctx.problem, ctx.weights, ctx.needs_input_grad[2:]
        saved = ctx.saved_tensors  # read once: checkpointing refuses a second time
        inputs, gradients = saved[: len(needs)], saved[len(needs) :]
        if not torch.is_grad_enabled() and not transformed((upstream,)):
            return None, None, *(None if gradient is None else gradient * upstream for gradient in gradients)

        def plain(x: Tensor, *tensors: Any) -> Outputs:
            square, trace = weights.sums(problem, problem.plain(x, tensors))
            return (weights.square * square + weights.trace * trace,)

        return None, None, *vjp(plain, inputs, needs, (upstream,))
