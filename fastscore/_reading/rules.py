"""How each torch operation acts on the values of a network that depend on x (`fastscore._reading.symbols`).

A rule gets a `Call` and returns what the result is, or `OPAQUE` where the result is not part of an MLP. Ranks and
trailing sizes decide, never the number of rows: a record made with few rows must hold for any number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastscore._reading.algebra import factor, number, plain, plus, scaled
from fastscore._reading.record import Call, Recorder, Rules
from fastscore._reading.symbols import OPAQUE, Affine, Cat, Gate, Hidden, Input, Ref, Symbol


def _two(call: Call) -> tuple[Any, ...] | None:
    """The two operands of an elementwise operation without options, or None."""
    return (call.args[0], call.args[1]) if len(call.args) == 2 and not call.keywords else None


def _mul(call: Call) -> Symbol:
    operands = _two(call)
    if operands is None:
        return OPAQUE
    for (a, b), position in ((operands, 1), (operands[::-1], 0)):
        if isinstance(a, Affine) and isinstance(b, Gate):
            return _activated(call, a, "silu") if b.z is a else OPAQUE
        if isinstance(b, (Ref, int, float)):
            if call.result.shape != call.tensors[1 - position].shape:
                return OPAQUE
            return scaled(call.recorder, a, factor(call, b, call.tensors[position]))
    return OPAQUE


def _div(call: Call) -> Symbol:
    operands = _two(call)
    if operands is None or call.result.shape != call.tensors[0].shape:
        return OPAQUE
    by = factor(call, operands[1], call.tensors[1])
    inverse = 1 / by if isinstance(by, float) else by if by is None else call.recorder.emit(torch.reciprocal, by)
    return scaled(call.recorder, operands[0], inverse)


def _neg(call: Call) -> Symbol:
    return scaled(call.recorder, call.args[0], -1.0)


def _add(call: Call) -> Symbol:
    operands = _two(call)
    return OPAQUE if operands is None else _sum(call, *operands)


def _sub(call: Call) -> Symbol:
    return _difference(call, _two(call))


def _rsub(call: Call) -> Symbol:
    operands = _two(call)
    return _difference(call, operands and operands[::-1])


def _difference(call: Call, operands: tuple[Any, ...] | None) -> Symbol:
    return OPAQUE if operands is None else _sum(call, operands[0], _negated(call.recorder, operands[1]))


def _negated(recorder: Recorder, value: Any) -> Any:
    if isinstance(value, Ref):
        return recorder.emit(torch.neg, value)
    return -value if number(value) else scaled(recorder, value, -1.0)


def _sum(call: Call, a: Any, b: Any) -> Symbol:
    recorder, result = call.recorder, call.result
    if isinstance(a, (Ref, int, float)) or (isinstance(a, Input) and isinstance(b, Affine)):
        a, b = b, a
    if not all(t.shape == result.shape for t, s in zip(call.tensors, call.args, strict=True) if not _constant(s)):
        return OPAQUE
    if isinstance(a, Affine) and _constant(b):
        z = plain(recorder, a) if a.skip is None else None
        if z is None or not (number(b) or (isinstance(b, Ref) and result.dim() == 2)):
            return OPAQUE
        if isinstance(b, Ref) and recorder.values[b.index].shape == result.shape[1:]:
            return replace(z, bias=b if z.bias is None else recorder.emit(torch.add, z.bias, b))
        return replace(z, shifts=(*z.shifts, b if isinstance(b, Ref) else float(b)))
    if isinstance(a, Affine) and isinstance(b, Input):
        skip = 1.0 if b.scale is None else b.scale
        return replace(a, skip=skip if a.skip is None else plus(recorder, a.skip, skip))
    if isinstance(a, Input) and isinstance(b, Input):
        one, other = (1.0 if value.scale is None else value.scale for value in (a, b))
        return Input(plus(recorder, one, other))
    if isinstance(a, Hidden) and isinstance(b, Hidden):
        for h, below in ((a, b), (b, a)):
            if h.z.base is below and not h.residual:
                return replace(h, residual=True)
    return OPAQUE


def _constant(value: object) -> bool:
    return isinstance(value, (Ref, int, float))


def _linear(call: Call) -> Symbol:
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
    if isinstance(h, (Input, Hidden)):
        return Affine(h, weight, bias)
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
    return OPAQUE if base is None else Affine(base, columns, bias, tuple(shifts))


def _matmul(call: Call) -> Symbol:
    operands = _two(call)
    if operands is None or not isinstance(operands[1], Ref) or call.tensors[1].dim() != 2:
        return OPAQUE
    return _affine(call, operands[0], call.tensors[0], call.recorder.emit(torch.t, operands[1]), None)


def _addmm(call: Call) -> Symbol:
    bias, h, weight = call.args
    if call.keywords or not (isinstance(bias, Ref) and isinstance(weight, Ref)) or call.tensors[0].dim() != 1:
        return OPAQUE
    return _affine(call, h, call.tensors[1], call.recorder.emit(torch.t, weight), bias)


def _cat(call: Call) -> Symbol:
    parts = call.args[0]
    dim = call.args[1] if len(call.args) > 1 else call.keywords.get("dim", 0)
    tensors = call.tensors[0]
    if call.result.dim() != 2 or dim not in (-1, 1) or any(t.dtype != call.result.dtype for t in tensors):
        return OPAQUE
    if sum(not isinstance(part, Ref) for part in parts) != 1:
        return OPAQUE
    if not all(isinstance(part, (Ref, Input, Hidden)) for part in parts):
        return OPAQUE
    return Cat(tuple((part, tensor.shape[1]) for part, tensor in zip(parts, tensors, strict=True)))


def _activated(call: Call, z: Any, name: str) -> Symbol:
    simple = plain(call.recorder, z) if isinstance(z, Affine) else None
    return OPAQUE if simple is None else Hidden(simple, name)


def _activation(name: str, **wanted: tuple[int, object]) -> Callable[[Call], Symbol]:
    """A rule for an activation, whose options `name=(position, value)` must have the values wanted."""

    def rule(call: Call) -> Symbol:
        for option, (position, value) in wanted.items():
            given = call.args[position] if len(call.args) > position else call.keywords.get(option, value)
            if given != value:
                return OPAQUE
        return _activated(call, call.args[0] if call.args else call.keywords["input"], name)

    return rule


def _gelu(call: Call) -> Symbol:
    exact = call.keywords.get("approximate", "none") == "none"
    return _activated(call, call.args[0] if call.args else call.keywords["input"], "gelu" if exact else "gelu_tanh")


def _sigmoid(call: Call) -> Symbol:
    return Gate(call.args[0]) if isinstance(call.args[0], Affine) else OPAQUE


def _same(call: Call) -> Symbol:
    """The rows are the same values in the same order, whatever their shape."""
    new, old = call.result.shape, call.tensors[0].shape
    if len(new) == 0 or len(old) == 0 or new[0] != old[0] or new[1:].numel() != old[1:].numel():
        return OPAQUE
    sizes = [s for s in torch.utils._pytree.tree_leaves(call.args[1:]) if s == call.recorder.rows]
    call.recorder.sized |= bool(sizes) and not call.recorder.trusted
    symbol: Symbol = call.args[0]
    return symbol


def _getitem(call: Call) -> Symbol:
    """Indices that only insert or remove dimensions of size 1."""
    index = call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
    reshaping = all(i is None or i is Ellipsis or i == slice(None) or (type(i) is int and i in (0, -1)) for i in index)
    return _same(call) if reshaping else OPAQUE


def _dropout(call: Call) -> Symbol:
    probability = call.args[1] if len(call.args) > 1 else call.keywords.get("p", 0.5)
    training = call.args[2] if len(call.args) > 2 else call.keywords.get("training", True)
    return OPAQUE if training and probability else _same(call)


def _methods(*names: str) -> list[Callable[..., Any]]:
    """The functions of these names in `torch`, `torch.nn.functional` and `Tensor`."""
    spaces = (torch, F, Tensor)
    found = (getattr(space, name, None) for name in names for space in spaces)
    return [function for function in found if callable(function)]


RULES: Rules = {
    function: rule
    for rule, functions in (
        (_linear, [F.linear]),
        (_matmul, _methods("matmul", "mm", "__matmul__")),
        (_addmm, _methods("addmm")),
        (_cat, _methods("cat", "concat", "concatenate")),
        (_mul, _methods("mul", "multiply", "__mul__", "__rmul__")),
        (_div, _methods("div", "divide", "true_divide", "__truediv__")),
        (_neg, _methods("neg", "negative", "__neg__")),
        (_add, _methods("add", "__add__", "__radd__")),
        (_sub, _methods("sub", "subtract", "__sub__")),
        (_rsub, [Tensor.__rsub__]),
        (_sigmoid, [*_methods("sigmoid"), torch.special.expit]),
        (_activation("silu"), [F.silu]),
        (_activation("softplus", beta=(1, 1), threshold=(2, 20)), [F.softplus]),
        (_activation("tanh"), _methods("tanh")),
        (_gelu, [F.gelu]),
        (_activation("softsign"), [F.softsign]),
        (_activation("sine"), _methods("sin")),
        (_same, _methods("view", "reshape", "flatten", "squeeze", "unsqueeze", "view_as", "reshape_as", "unflatten")),
        (_same, _methods("contiguous", "clone", "to", "float", "double", "half", "bfloat16", "type_as")),
        (_getitem, [Tensor.__getitem__]),
        (_dropout, _methods("dropout", "dropout1d", "alpha_dropout", "feature_alpha_dropout")),
    )
    for function in functions
}
