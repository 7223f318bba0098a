"""Products with the Jacobian of any callable, by automatic differentiation.

Forward mode pushes a block of tangents through one shared evaluation (`torch.func.jvp` under `vmap`). Where an operator
has no forward rule (a custom Function or operator, a function that calls `torch.autograd.grad` itself) reverse mode
pulls cotangents back instead, one at a time. Either way the result is an ordinary differentiable tensor: one backward
reaches the parameters and x, and under `torch.no_grad` nothing is saved.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastscore._script import inside_script
from fastscore._watch import Watch

Aux: TypeAlias = tuple[Tensor, ...]
Differentiated: TypeAlias = Callable[[Tensor], tuple[Tensor, Aux]]
"""x [B, *event] -> (the value to differentiate, shaped like x, and whatever else is wanted of the evaluation)."""

_jvp: Callable[..., Any] = torch.func.jvp  # their annotations do not know has_aux
_vjp: Callable[..., Any] = torch.func.vjp
_LEVEL = threading.RLock()  # levels of forward mode belong to the process: one thread would end another's


def push(fn: Differentiated, x: Tensor, tangents: Tensor) -> tuple[Tensor, Aux, Tensor]:
    """Forward mode: value, aux and `J v` for tangents v, both `[C, B, *event]`; the value is computed once."""
    with _LEVEL, Watch(forward=True) as watch:
        watched = functools.partial(watch.noticing_scripts, fn)
        if len(tangents) == 1:
            value, product, aux = _jvp(watched, (x,), (tangents[0],), has_aux=True)
            return value, aux, product.unsqueeze(0)
        value, products, aux = torch.func.vmap(lambda v: _jvp(watched, (x,), (v,), has_aux=True))(tangents)
    # The value does not depend on the tangent: vmap expanded one evaluation, it did not repeat it.
    return value[0], tuple(a[0] for a in aux), products


def pull(
    fn: Differentiated, x: Tensor, cotangents: Iterable[Tensor], *, script: bool = False
) -> tuple[Tensor, Aux, Tensor]:
    """Reverse mode: value, aux and `J' u` for cotangents u, both `[C, B, *event]`; `script` if fn calls TorchScript."""
    differentiable = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad(), Watch(forward=False):
        point = leaf(x)
        value, aux = inside_script(fn, point, differentiable) if script else fn(point)
        stacked = torch.stack([_pull_one(value, point, u.to(value.dtype), differentiable) for u in cotangents])
    # Copies made without gradients let go of the graph; they keep the tangent of an outer forward mode.
    return (value, aux, stacked) if differentiable else (value.clone(), tuple(a.clone() for a in aux), stacked)


def leaf(x: Tensor) -> Tensor:
    """x as a tensor to differentiate by, with the tangent it has in an outer forward mode."""
    if x.requires_grad:
        return x.view_as(x)  # an alias: what else depends on x, a condition, is no part of the partial derivative
    primal, tangent = forward_ad.unpack_dual(x.clone() if x.is_inference() else x)
    alone = primal.detach().requires_grad_()
    dual: Tensor = alone if tangent is None else forward_ad.make_dual(alone, tangent)
    return dual


def traced() -> bool:
    """Whether torch.compile or a transform of torch.func looks on."""
    return torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None


def pull_traced(fn: Differentiated, x: Tensor, cotangents: Tensor) -> tuple[Tensor, Aux, Tensor]:
    """`pull` while torch.compile traces, which takes no autograd.grad that is itself differentiated."""
    with Watch(forward=False):
        value, back, aux = _vjp(fn, x, has_aux=True)
        return value, aux, torch.func.vmap(lambda u: back(u)[0])(cotangents)


def _pull_one(value: Tensor, leaf: Tensor, cotangent: Tensor, differentiable: bool) -> Tensor:
    product = None
    if value.requires_grad:
        (product,) = torch.autograd.grad(
            value, leaf, cotangent, retain_graph=True, create_graph=differentiable, allow_unused=True
        )
    if product is None:
        raise ValueError("the function's value does not depend on x for autograd: is x detached inside it?")
    return product


def products(
    forward: Differentiated, reverse: Differentiated, x: Tensor, left: Tensor, right: Tensor
) -> tuple[Tensor, Aux, Tensor, str]:
    """(value, aux, products, mode): `J v` for v in `right` if mode is "jvp", `J' u` for u in `left` if it is "vjp".

    Directions and products are `[C, B, *event]`;
    `forward` and `reverse` are the same function, written for `torch.func` and for `torch.autograd`.

    Raises:
        ValueError: The function has active dropout or BatchNorm in training mode, or draws random numbers.
    """
    if torch.compiler.is_compiling():  # Inductor refuses the zero tangents of forward mode
        return *pull_traced(forward, x, left), "vjp"
    try:
        return *push(forward, x, right), "jvp"
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if "random" in str(error) and "vmap" in str(error):
            raise ValueError(
                "score_fn draws random numbers: its Jacobian is not defined; make the noise an argument"
            ) from error
        script = "TorchScript" in str(error)
    return *pull(reverse, x, left, script=script), "vjp"
