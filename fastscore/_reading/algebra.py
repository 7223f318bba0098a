"""Arithmetic of factors and affine values, for the rules."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from fastscore._reading.record import Call, Recorder
from fastscore._reading.symbols import OPAQUE, Affine, Input, Ref, Scale, Symbol


def times(recorder: Recorder, a: Scale, b: Scale) -> Scale:
    """The product of two factors, None being 1."""
    if a is None or b is None:
        return b if a is None else a
    return a * b if isinstance(a, float) and isinstance(b, float) else recorder.emit(torch.mul, a, b)


def plus(recorder: Recorder, a: Scale, b: Scale) -> Scale:
    """The sum of two factors, neither None."""
    return a + b if isinstance(a, float) and isinstance(b, float) else recorder.emit(torch.add, a, b)


def number(value: object) -> bool:
    """A finite Python number."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def factor(call: Call, given: Any, value: Any) -> Scale:
    """A number, or a tensor with one value for the batch or one per row, as a `Scale`; None where it is neither."""
    if number(given):
        return float(given)
    if not isinstance(given, Ref) or not value.dtype.is_floating_point or value.dim() > call.result.dim():
        return None
    single = value.numel() == 1 and value.dim() < call.result.dim()
    rowwise = value.dim() == call.result.dim() and value.shape[1:].numel() == 1
    return call.recorder.emit(torch.reshape, given, (-1, 1)) if single or rowwise else None


def scaled(recorder: Recorder, symbol: Any, by: Scale) -> Symbol:
    """`by * value` of an input or an affine value."""
    if by is not None and isinstance(symbol, Input):
        return Input(times(recorder, symbol.scale, by))
    if by is not None and isinstance(symbol, Affine):
        skip = None if symbol.skip is None else times(recorder, symbol.skip, by)
        return replace(symbol, scale=times(recorder, symbol.scale, by), skip=skip)
    return OPAQUE


def plain(recorder: Recorder, z: Affine) -> Affine | None:
    """The same value without a scale, which goes into the weights; None where it is one per row."""
    if z.scale is None or z.skip is not None:
        return z if z.skip is None else None
    if isinstance(z.scale, Ref):
        if recorder.values[z.scale.index].numel() > 1:
            return None
        scale: Ref | float = recorder.emit(torch.reshape, z.scale, ())
    else:
        scale = z.scale
    weight = recorder.emit(torch.mul, z.weight, scale)
    bias = None if z.bias is None else recorder.emit(torch.mul, z.bias, scale)
    shifts = tuple(
        u * scale if isinstance(u, float) and isinstance(scale, float) else recorder.emit(torch.mul, u, scale)
        for u in z.shifts
    )
    return Affine(z.base, weight, bias, shifts)
