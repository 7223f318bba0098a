"""How a linear layer, in any of its spellings, takes up what comes to it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastscore._reading.algebra import absorbed, opened, two
from fastscore._reading.record import Call, Recorder
from fastscore._reading.symbols import OPAQUE, Affine, Cat, Hidden, Input, Moved, Ref, Symbol


def linear(call: Call) -> Symbol:
    """`F.linear`."""
    given = [*call.args, *(call.keywords.get(name) for name in ("input", "weight", "bias") if name in call.keywords)]
    h, weight, bias = [*given, None][:3]
    if not isinstance(weight, Ref) or not (bias is None or isinstance(bias, Ref)):
        return OPAQUE
    return _affine(call, h, call.tensors[0] if call.tensors else None, weight, bias)


def _affine(call: Call, h: Any, value: Tensor | None, weight: Ref, bias: Ref | None) -> Symbol:
    """`W h + b` of an input, hidden values, or either beside values that do not depend on x."""
    matrix = call.recorder.values[weight.index]
    if value is None or matrix.dim() != 2 or value.shape[1:].numel() != value.shape[-1] or value.dim() < 2:
        return OPAQUE
    h = opened(call.recorder, h)
    if isinstance(h, (Input, Hidden, Moved)):
        return _layer(call.recorder, h, weight, bias)
    if not isinstance(h, Cat):
        return OPAQUE
    start, shifts, base, columns = 0, [], None, weight
    for part, width in h.parts:
        block = call.recorder.emit(torch.narrow, weight, 1, start, width)
        start += width
        if isinstance(part, Ref):
            shifts.append(call.recorder.emit(F.linear, part, block))
        else:
            base, columns = part, block
    return OPAQUE if base is None else _layer(call.recorder, base, columns, bias, *shifts)


def _layer(recorder: Recorder, h: Input | Hidden | Moved, weight: Ref, bias: Ref | None, *shifts: Ref) -> Affine:
    """`W h + b + shifts`, with what moved h taken into W and b."""
    if not isinstance(h, Moved):
        return Affine(h, weight, bias, shifts)
    weight, biases, more = absorbed(recorder, h, weight)
    for added in biases:
        bias = added if bias is None else recorder.emit(torch.add, bias, added)
    return Affine(h.base, weight, bias, (*shifts, *more))


def matmul(call: Call) -> Symbol:
    """`h @ W`."""
    operands = two(call)
    if operands is None or not isinstance(operands[1], Ref) or call.tensors[1].dim() != 2:
        return OPAQUE
    return _affine(call, operands[0], call.tensors[0], call.recorder.emit(torch.t, operands[1]), None)


def addmm(call: Call) -> Symbol:
    """`torch.addmm(b, h, W)`."""
    bias, h, weight = call.args
    if call.keywords or not (isinstance(bias, Ref) and isinstance(weight, Ref)) or call.tensors[0].dim() != 1:
        return OPAQUE
    return _affine(call, h, call.tensors[1], call.recorder.emit(torch.t, weight), bias)


def einsum(call: Call) -> Symbol:
    """`x W` or `x W'` written as "bi,io->bo" or "bi,oi->bo"."""
    equation, operands = call.args[0], tuple(call.args[1:])
    tensors = tuple(call.tensors[1:])
    inputs, output = equation.replace(" ", "").split("->")
    left, right = inputs.split(",")
    if isinstance(operands[0], Ref):
        left, right, operands, tensors = right, left, operands[::-1], tensors[::-1]
    weight = operands[1]
    if not isinstance(weight, Ref) or len(left) != 2 or output[:1] != left[0] or len({*left, *output}) != 3:
        return OPAQUE
    if right == left[1] + output[1:]:
        weight = call.recorder.emit(torch.t, weight)
    elif right != output[1:] + left[1]:
        return OPAQUE
    return _affine(call, operands[0], tensors[0], weight, None)


def cat(call: Call) -> Symbol:
    """Features side by side, of which one part depends on x."""
    parts = [opened(call.recorder, part) for part in call.args[0]]
    dim = call.args[1] if len(call.args) > 1 else call.keywords.get("dim", 0)
    tensors = call.tensors[0]
    if call.result.dim() != 2 or dim not in (-1, 1) or any(t.dtype != call.result.dtype for t in tensors):
        return OPAQUE
    if sum(not isinstance(part, Ref) for part in parts) != 1:
        return OPAQUE
    if not all(isinstance(part, (Ref, Input, Hidden, Moved)) for part in parts):
        return OPAQUE
    return Cat(tuple((part, tensor.shape[1]) for part, tensor in zip(parts, tensors, strict=True)))
