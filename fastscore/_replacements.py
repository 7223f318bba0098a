"""What runs in place of some functions of torch while a Jacobian is taken (`fastscore._watch`): `REPLACED`.

Active dropout, which draws a new function at every call, and BatchNorm in training mode, which couples the samples, are
refused. Attention goes to the backend with second derivatives. Functions whose tangents are wrong or missing, such as
normalisations, are written out in elementary ones. The values are those of torch, to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastscore._script import BATCH_NORM, DROPOUT

OPERATORS = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)
"""What the operators `torch.ops.*` are, by their types."""

_TRAINING, _DROPOUT_P = 13, 10  # positions in the signature of multi_head_attention_forward


def _inactive(dropout: Callable[..., Tensor], trains: bool) -> Callable[..., Tensor]:
    """`dropout`, refused where it is active; `trains` is the default of its argument `training`."""

    def call(input: Tensor, p: float = 0.5, training: bool = trains, inplace: bool = False) -> Tensor:
        if training and p > 0:
            raise ValueError(DROPOUT)
        return dropout(input, p, training, inplace)

    return call


def _inactive_below(dropout: Callable[..., Any]) -> Callable[..., Any]:
    """The same for the functions of `torch` itself."""

    def call(input: Tensor, p: float, train: bool) -> Any:
        if train and p > 0:
            raise ValueError(DROPOUT)
        return dropout(input, p, train)

    return call


def _evaluating(batch_norm: Callable[..., Any]) -> Callable[..., Any]:
    """`batch_norm`, refused in training mode: the sixth argument, whatever the order of the others."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if args[5] if len(args) > 5 else kwargs.get("training"):
            raise ValueError(BATCH_NORM)
        return batch_norm(*args, **kwargs)

    return call


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, dropout_p: float = 0.0, *rest: Any, **kwargs: Any
) -> Tensor:
    if dropout_p > 0:
        raise ValueError(DROPOUT)
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, *rest, **kwargs)


def _multi_head_attention(*args: Any, **kwargs: Any) -> Any:
    training = args[_TRAINING] if len(args) > _TRAINING else kwargs.get("training", True)
    dropout_p = args[_DROPOUT_P] if len(args) > _DROPOUT_P else kwargs["dropout_p"]
    if training and dropout_p > 0:
        raise ValueError(DROPOUT)
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
    input: Tensor, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:  # fmt: skip
    return _affine(_standard(input, list(range(-len(normalized_shape), 0)), eps), weight, bias)


def _rms_norm(input: Tensor, normalized_shape: Any, weight: Any = None, eps: float | None = None) -> Tensor:
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    return _affine(_standard(input, list(range(-len(normalized_shape), 0)), eps, centre=False), weight, None)


def _group_norm(
    input: Tensor, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:  # fmt: skip
    y = _standard(input.unflatten(1, (num_groups, -1)), list(range(2, input.dim() + 1)), eps).reshape(input.shape)
    shape = (-1, *[1] * (input.dim() - 2))
    return _affine(y, None if weight is None else weight.view(shape), None if bias is None else bias.view(shape))


def _instance_norm(
    input: Tensor, running_mean: Any = None, running_var: Any = None, weight: Any = None, bias: Any = None,
    use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    if not use_input_stats:
        return F.instance_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    if running_mean is not None:
        with torch.no_grad():  # for the running statistics
            F.instance_norm(input, running_mean, running_var, None, None, True, momentum, eps)
    return _group_norm(input, input.shape[1], weight, bias, eps)


def _torch_instance_norm(
    input: Tensor, weight: Any, bias: Any, running_mean: Any, running_var: Any, use_input_stats: bool,
    momentum: float, eps: float, cudnn_enabled: bool,
) -> Tensor:  # fmt: skip
    return _instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)


def _native_layer_norm(input: Tensor, normalized_shape: Any, weight: Any, bias: Any, eps: float) -> tuple[Tensor, ...]:
    y = _layer_norm(input, normalized_shape, weight, bias, eps)
    return y, *_moments(input, list(range(-len(normalized_shape), 0)), eps)


def _native_group_norm(
    input: Tensor, weight: Any, bias: Any, N: int, C: int, HxW: int, group: int, eps: float
) -> tuple[Tensor, ...]:
    moments = _moments(input.reshape(N, group, -1), [2], eps)
    return _group_norm(input, group, weight, bias, eps), *(moment.squeeze(2) for moment in moments)


def _moments(x: Tensor, dims: list[int], eps: float) -> tuple[Tensor, Tensor]:
    return x.mean(dims, keepdim=True), torch.rsqrt(x.var(dims, correction=0, keepdim=True) + eps)


def _select_scatter(input: Tensor, src: Tensor, dim: int, index: int) -> Tensor:
    first = index % input.shape[dim]
    return torch.slice_scatter(input, src.unsqueeze(dim), dim, first, first + 1)


def _glu(input: Tensor, dim: int = -1) -> Tensor:
    a, b = input.chunk(2, dim)
    return a * torch.sigmoid(b)


REPLACED: dict[Any, Callable[..., Any]] = {
    F.dropout: _inactive(F.dropout, True),
    F.dropout1d: _inactive(F.dropout1d, True),
    F.dropout2d: _inactive(F.dropout2d, True),
    F.dropout3d: _inactive(F.dropout3d, True),
    F.alpha_dropout: _inactive(F.alpha_dropout, False),
    F.feature_alpha_dropout: _inactive(F.feature_alpha_dropout, False),
    torch.dropout: _inactive_below(torch.dropout),
    torch.native_dropout: _inactive_below(torch.native_dropout),
    torch.feature_dropout: _inactive_below(torch.feature_dropout),
    torch.alpha_dropout: _inactive_below(torch.alpha_dropout),
    torch.feature_alpha_dropout: _inactive_below(torch.feature_alpha_dropout),
    F.batch_norm: _evaluating(F.batch_norm),
    torch.batch_norm: _evaluating(torch.batch_norm),
    torch.native_batch_norm: _evaluating(torch.native_batch_norm),
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _multi_head_attention,
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    torch.native_layer_norm: _native_layer_norm,
    F.rms_norm: _rms_norm,
    torch.rms_norm: _rms_norm,
    F.group_norm: _group_norm,
    torch.group_norm: _group_norm,
    torch.native_group_norm: _native_group_norm,
    F.instance_norm: _instance_norm,
    torch.instance_norm: _torch_instance_norm,
    F.glu: _glu,
    torch.select_scatter: _select_scatter,
    Tensor.select_scatter: _select_scatter,
}


def by_name(func: Any) -> Any:
    """`torch.layer_norm` for `torch.ops.aten.layer_norm` and the like, if it is one that is replaced."""
    if isinstance(func, OPERATORS):
        namespace, name = str(func).split(".")[:2]
        known = getattr(torch, name, None) if namespace == "aten" else None
        return known if known in REPLACED else func
    return func
