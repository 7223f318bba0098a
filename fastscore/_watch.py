"""What a function may call while its Jacobian is taken, and by what some calls are replaced.

Measured on torch 2.13: a reverse pass over forward-mode tangents (`torch.func.jvp`, then `backward`) is *silently
wrong* for layer_norm, instance_norm and several functions of linear algebra, whose tangents treat saved statistics or
factors as constants; and the tangent of a `torch.library.custom_op` is silently zero. So is a third reverse pass over
layer_norm, which the gradient of a Laplacian needs. Values and lower derivatives are right, so nothing warns.
Normalisations are therefore written out, and the rest is left to reverse mode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

_DROPOUT = "score_fn has active dropout: its Jacobian is not defined; call .eval() on the network or set p = 0"
_BATCH_NORM = (
    "score_fn has BatchNorm in training mode, which couples the samples of a batch: call .eval() on the network "
    "or use GroupNorm or LayerNorm"
)


class NoForwardRuleError(RuntimeError):
    """A call whose forward-mode derivative, or its gradient, would silently be wrong."""


class Watch(TorchFunctionMode):
    """Keeps the Jacobian of the functions called under it well defined and differentiable.

    Refuses what couples the samples of a batch or draws a new function at every call, sends attention to the backend
    with second derivatives, and writes normalisations out. With `forward`, rejects what forward mode gets wrong.

    Raises:
        ValueError: Active dropout, BatchNorm in training mode.
        NoForwardRuleError: With `forward`, a call to leave to reverse mode.
    """

    def __init__(self, forward: bool) -> None:
        super().__init__()
        self.forward = forward

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _REPLACED:
            return _REPLACED[func](*args, **kwargs)
        if self.forward and (func in _LEFT_TO_REVERSE or _foreign(func)):
            raise NoForwardRuleError(str(func))
        return func(*args, **kwargs)


def _foreign(func: Any) -> bool:
    """Whether func is an operator registered from outside PyTorch."""
    operator = isinstance(func, (torch._ops.OpOverload, torch._ops.OpOverloadPacket))
    return operator and not str(func).startswith(("aten.", "prims.", "prim."))


def _inactive(dropout: Callable[..., Tensor], trains: bool) -> Callable[..., Tensor]:
    """`dropout`, refused where it is active; `trains` is the default of its argument `training`."""

    def call(input: Tensor, p: float = 0.5, training: bool = trains, inplace: bool = False) -> Tensor:
        if training and p > 0:
            raise ValueError(_DROPOUT)
        return dropout(input, p, training, inplace)

    return call


def _batch_norm(
    input: Tensor, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None,
    training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    if training:
        raise ValueError(_BATCH_NORM)
    return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, dropout_p: float = 0.0, *rest: Any, **kwargs: Any
) -> Tensor:
    if dropout_p > 0:
        raise ValueError(_DROPOUT)
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, *rest, **kwargs)


_TRAINING, _DROPOUT_P = 13, 10  # positions in the signature of multi_head_attention_forward


def _multi_head_attention(*args: Any, **kwargs: Any) -> Any:
    training = args[_TRAINING] if len(args) > _TRAINING else kwargs.get("training", True)
    dropout_p = args[_DROPOUT_P] if len(args) > _DROPOUT_P else kwargs["dropout_p"]
    if training and dropout_p > 0:
        raise ValueError(_DROPOUT)
    with sdpa_kernel(SDPBackend.MATH):
        return F.multi_head_attention_forward(*args, **kwargs)


def _standard(x: Tensor, dims: list[int], eps: float, centre: bool = True) -> Tensor:
    """x less its mean over dims (if `centre`), over its root mean square, computed in float32 at least."""
    y = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    y = y - y.mean(dims, keepdim=True) if centre else y
    return (y * torch.rsqrt(y.square().mean(dims, keepdim=True) + eps)).to(x.dtype)


def _affine(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _layer_norm(
    input: Tensor, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Tensor:
    return _affine(_standard(input, list(range(-len(normalized_shape), 0)), eps), weight, bias)


def _rms_norm(input: Tensor, normalized_shape: Any, weight: Any = None, eps: float | None = None) -> Tensor:
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    return _affine(_standard(input, list(range(-len(normalized_shape), 0)), eps, centre=False), weight, None)


def _group_norm(
    input: Tensor, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Tensor:
    y = _standard(input.unflatten(1, (num_groups, -1)), list(range(2, input.dim() + 1)), eps).reshape(input.shape)
    shape = (-1, *[1] * (input.dim() - 2))
    return _affine(y, None if weight is None else weight.view(shape), None if bias is None else bias.view(shape))


def _instance_norm(
    input: Tensor, running_mean: Any = None, running_var: Any = None, weight: Any = None, bias: Any = None,
    use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    if not use_input_stats or running_mean is not None:
        return F.instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    return _group_norm(input, input.shape[1], weight, bias, eps)


def _glu(input: Tensor, dim: int = -1) -> Tensor:
    a, b = input.chunk(2, dim)
    return a * torch.sigmoid(b)


_REPLACED: dict[Any, Callable[..., Any]] = {
    F.dropout: _inactive(F.dropout, True),
    F.dropout1d: _inactive(F.dropout1d, True),
    F.dropout2d: _inactive(F.dropout2d, True),
    F.dropout3d: _inactive(F.dropout3d, True),
    F.alpha_dropout: _inactive(F.alpha_dropout, False),
    F.feature_alpha_dropout: _inactive(F.feature_alpha_dropout, False),
    F.batch_norm: _batch_norm,
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _multi_head_attention,
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    torch.rms_norm: _rms_norm,
    F.group_norm: _group_norm,
    torch.group_norm: _group_norm,
    F.instance_norm: _instance_norm,
    F.glu: _glu,
}

_DATA: Any = Tensor.data
_LEFT_TO_REVERSE: frozenset[Any] = frozenset(
    {
        # Scores that call torch.autograd.grad themselves begin by cutting x off: their tangent would be zero.
        *(Tensor.detach, Tensor.detach_, torch.detach, torch.detach_, _DATA.__get__),
        # The tangents of these treat LU factors, or the matrix, as constants.
        *(torch.det, torch.logdet, torch.slogdet, Tensor.det, Tensor.logdet, Tensor.slogdet),
        *(torch.linalg.det, torch.linalg.slogdet),
        *(torch.linalg.solve, torch.linalg.solve_ex, torch.linalg.tensorsolve),
        *(torch.cholesky_inverse, Tensor.cholesky_inverse),
        *(torch.linalg.householder_product, torch.orgqr, Tensor.orgqr),
    }
)
