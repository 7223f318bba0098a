"""Products with the Jacobian of any callable, by automatic differentiation.

Forward mode pushes a block of tangents through one shared evaluation (`torch.func.jvp` under `vmap`). Where an operator
has no forward rule (a custom Function or operator, a function that calls `torch.autograd.grad` itself) reverse mode
pulls cotangents back instead, one at a time. Either way the result is an ordinary differentiable tensor: one backward
reaches the parameters and x, and under `torch.no_grad` nothing is saved.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

Aux: TypeAlias = tuple[Tensor, ...]
Differentiated: TypeAlias = Callable[[Tensor], tuple[Tensor, Aux]]
"""x [B, *event] -> (the value to differentiate, shaped like x, and whatever else is wanted of the evaluation)."""

_DATA: Any = Tensor.data
_DETACHING = frozenset((Tensor.detach, Tensor.detach_, torch.detach, torch.detach_, _DATA.__get__))
_jvp: Callable[..., Any] = torch.func.jvp  # its annotation does not know has_aux
_DROPOUTS = frozenset((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout))


class _NoForwardRuleError(RuntimeError):
    """A call whose forward-mode derivative would silently be zero."""


class _Watch(TorchFunctionMode):
    """Looks at the calls a function makes and keeps its Jacobian well defined.

    Refuses what couples the samples of a batch or draws a new function at every call; sends attention to the one
    backend with second derivatives; and in forward mode rejects what may drop a tangent without a warning: operators
    from outside PyTorch (the tangent of a `torch.library.custom_op` with `register_autograd` is zero) and `detach`,
    with which scores that call `torch.autograd.grad` themselves begin.
    """

    def __init__(self, forward: bool) -> None:
        super().__init__()
        self.forward = forward

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _DROPOUTS or func is F.batch_norm or func is F.multi_head_attention_forward:
            _refuse_training(func, inspect.signature(func).bind(*args, **kwargs))
        if func is F.multi_head_attention_forward or func is F.scaled_dot_product_attention:
            if func is F.scaled_dot_product_attention and (args[4] if len(args) > 4 else kwargs.get("dropout_p", 0)):
                raise ValueError(_DROPOUT)
            with sdpa_kernel(SDPBackend.MATH):
                return func(*args, **kwargs)
        if self.forward and (func in _DETACHING or _foreign(func)):
            raise _NoForwardRuleError(str(func))
        return func(*args, **kwargs)


_DROPOUT = "score_fn has active dropout: its Jacobian is not defined; call .eval() on the network or set p = 0"
_BATCH_NORM = (
    "score_fn has BatchNorm in training mode, which couples the samples of a batch: call .eval() on the network "
    "or use GroupNorm or LayerNorm"
)


def _foreign(func: Any) -> bool:
    """Whether func is an operator registered from outside PyTorch."""
    operator = isinstance(func, (torch._ops.OpOverload, torch._ops.OpOverloadPacket))
    return operator and not str(func).startswith(("aten.", "prims.", "prim."))


def _refuse_training(func: Any, bound: inspect.BoundArguments) -> None:
    bound.apply_defaults()
    given = bound.arguments
    if not given["training"]:
        return
    if func is F.batch_norm:
        raise ValueError(_BATCH_NORM)
    if given.get("dropout_p", given.get("p")):
        raise ValueError(_DROPOUT)


def _watch(forward: bool) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext() if torch.compiler.is_compiling() else _Watch(forward)


def push(fn: Differentiated, x: Tensor, tangents: Tensor) -> tuple[Tensor, Aux, Tensor]:
    """Forward mode: value, aux and `J v` for tangents v, both `[C, B, *event]`; the value is computed once."""
    with _watch(forward=True):
        if len(tangents) == 1:
            value, product, aux = _jvp(fn, (x,), (tangents[0],), has_aux=True)
            return value, aux, product.unsqueeze(0)
        value, products, aux = torch.func.vmap(lambda v: _jvp(fn, (x,), (v,), has_aux=True))(tangents)
    # The value does not depend on the tangent: vmap expanded one evaluation, it did not repeat it.
    return value[0], tuple(a[0] for a in aux), products


def pull(fn: Differentiated, x: Tensor, cotangents: Iterable[Tensor]) -> tuple[Tensor, Aux, Tensor]:
    """Reverse mode: value, aux and `J' u` for cotangents u, both `[C, B, *event]`."""
    differentiable = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad(), _watch(forward=False):
        source = x.clone() if x.is_inference() else x
        # An alias: what else depends on x (a condition) is no part of the partial derivative.
        leaf = source.view_as(source) if source.requires_grad else source.detach().requires_grad_()
        value, aux = fn(leaf)
        stacked = torch.stack([_pull_one(value, leaf, u.to(value.dtype), differentiable) for u in cotangents])
    return (value, aux, stacked) if differentiable else (value.detach(), tuple(a.detach() for a in aux), stacked)


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
    try:
        return *push(forward, x, right), "jvp"
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if "random" in str(error) and "vmap" in str(error):
            raise ValueError(
                "score_fn draws random numbers: its Jacobian is not defined; make the noise an argument"
            ) from error
        if torch.compiler.is_compiling():
            raise
    return *pull(reverse, x, left), "vjp"
