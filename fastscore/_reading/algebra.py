"""Arithmetic of factors and affine values, for the rules."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastscore._reading.record import Call, Recorder
from fastscore._reading.symbols import OPAQUE, Affine, Descent, Gate, Hidden, Input, Moved, Ref, Scale, Symbol, Total


def times(recorder: Recorder, a: Scale, b: Scale) -> Scale:
    """The product of two factors, None being 1."""
    if a is None or b is None:
        return b if a is None else a
    return _product(recorder, a, b)


def plus(recorder: Recorder, a: Scale, b: Scale) -> Scale:
    """The sum of two factors, neither None."""
    return a + b if isinstance(a, float) and isinstance(b, float) else recorder.emit(torch.add, a, b)


def two(call: Call) -> tuple[Any, ...] | None:
    """The two operands of an elementwise operation without options, or None."""
    return (call.args[0], call.args[1]) if len(call.args) == 2 and not call.keywords else None


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


def features(call: Call, given: Ref, value: Any) -> Ref | None:
    """A value to add to, or multiply, each feature of the result: `[B, D]`, or `[1, D]` for one that all rows share."""
    event, batched = call.result.shape[1:], value.dim() == call.result.dim()
    if not value.dtype.is_floating_point or value.dim() > call.result.dim():
        return None
    return call.recorder.emit(_flat, given, tuple(event), batched)


def shared(recorder: Recorder, factor: Ref | float) -> bool:
    """Whether a factor or an offset is the same for all rows."""
    return not isinstance(factor, Ref) or recorder.values[factor.index].shape[0] == 1


def _flat(value: Tensor, event: tuple[int, ...], batched: bool) -> Tensor:
    return value.expand(len(value) if batched else 1, *event).flatten(1)


def scaled(recorder: Recorder, symbol: Any, by: Scale) -> Symbol:
    """`by * value` of a factor that is a number or one per row."""
    if by is not None and isinstance(symbol, Input):
        return Input(times(recorder, symbol.scale, by))
    if by is not None and isinstance(symbol, Affine):
        skip = None if symbol.skip is None else times(recorder, symbol.skip, by)
        return replace(symbol, scale=times(recorder, symbol.scale, by), skip=skip)
    if isinstance(symbol, (Total, Descent)) and by is not None:
        energy = replace(symbol.energy, scale=times(recorder, symbol.energy.scale, by))
        return replace(symbol, energy=_tidy(recorder, energy))
    if by is None or not isinstance(symbol, (Hidden, Moved)):
        return OPAQUE
    if isinstance(symbol, Moved) and isinstance(symbol.base, Input):
        offsets = tuple(_product(recorder, offset, by) for offset in symbol.offsets)
        return Moved(Input(times(recorder, symbol.base.scale, by)), symbol.gain, offsets)
    return stretched(recorder, symbol, by) if shared(recorder, by) else OPAQUE


def _tidy(recorder: Recorder, energy: Affine) -> Affine:
    """The same energy with its scale in the last weight, unless it is one per row."""
    if energy.scale == 1.0:
        return replace(energy, scale=None)
    return plain(recorder, energy) or energy


def stretched(recorder: Recorder, symbol: Any, by: Ref | float) -> Symbol:
    """`by * value` of a factor for each feature, the same for all rows."""
    if isinstance(symbol, Affine):
        if symbol.skip is not None:
            return OPAQUE
        weight = recorder.emit(_rows_times, symbol.weight, by)
        bias = None if symbol.bias is None else recorder.emit(_rows_times, symbol.bias, by)
        return replace(symbol, weight=weight, bias=bias, shifts=tuple(_product(recorder, u, by) for u in symbol.shifts))
    moved = symbol if isinstance(symbol, Moved) else Moved(symbol)
    gain = by if moved.gain is None else _product(recorder, moved.gain, by)
    return Moved(moved.base, gain, tuple(_product(recorder, offset, by) for offset in moved.offsets))


def _product(recorder: Recorder, a: Ref | float, b: Ref | float) -> Ref | float:
    """The product of two factors, neither None."""
    return a * b if isinstance(a, float) and isinstance(b, float) else recorder.emit(torch.mul, a, b)


def _rows_times(value: Tensor, by: Tensor) -> Tensor:
    """The rows of a weight, or the entries of a bias, times `by` `[1, rows]`."""
    return value * (by.t() if value.dim() == 2 else by[0])


def opened(recorder: Recorder, symbol: Any) -> Any:
    """A sigmoid that is no gate, as hidden values; anything else as it is."""
    z = plain(recorder, symbol.z) if isinstance(symbol, Gate) else None
    return symbol if z is None else Hidden(z, "sigmoid")


def absorbed(recorder: Recorder, moved: Moved, weight: Ref) -> tuple[Ref, tuple[Ref, ...], tuple[Ref, ...]]:
    """A layer's weight on the base of what moved, and what the offsets add: to its bias, and to each row."""
    biases, shifts = [], []
    for offset in moved.offsets:
        if not isinstance(offset, Ref):
            biases.append(recorder.emit(_row_sums, weight, offset))
        elif shared(recorder, offset):
            biases.append(recorder.emit(_shared_product, offset, weight))
        else:
            shifts.append(recorder.emit(F.linear, offset, weight))
    weight = weight if moved.gain is None else recorder.emit(torch.mul, weight, moved.gain)
    return weight, tuple(biases), tuple(shifts)


def _row_sums(weight: Tensor, offset: float) -> Tensor:
    return weight.sum(1) * offset


def _shared_product(offset: Tensor, weight: Tensor) -> Tensor:
    return F.linear(offset[0], weight)


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
    return Affine(z.base, weight, bias, tuple(_product(recorder, u, scale) for u in z.shifts))
