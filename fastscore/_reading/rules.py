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

from fastscore._reading import linear
from fastscore._reading.algebra import factor, features, number, opened, plain, plus, scaled, shared, stretched, two
from fastscore._reading.record import Call, Recorder, Rules
from fastscore._reading.symbols import OPAQUE, Affine, Descent, Gate, Hidden, Input, Moved, Ref, Symbol, Total


def _mul(call: Call) -> Symbol:
    operands = two(call)
    if operands is None:
        return OPAQUE
    for (a, b), position in ((operands, 1), (operands[::-1], 0)):
        if isinstance(a, Affine) and isinstance(b, Gate):
            return _activated(call, a, "silu") if b.z is a else OPAQUE
        if isinstance(b, (Ref, int, float)):
            if call.result.shape != call.tensors[1 - position].shape:
                return OPAQUE
            return _times(call, a, b, call.tensors[position], inverse=False)
    return OPAQUE


def _times(call: Call, symbol: Any, given: Any, value: Any, inverse: bool) -> Symbol:
    """A value times, or over, a number, a number per row, or one per feature."""
    symbol, by = opened(call.recorder, symbol), factor(call, given, value)
    vector = features(call, given, value) if by is None and isinstance(given, Ref) else None
    if inverse:
        by, vector = _reciprocal(call, by), _reciprocal(call, vector)
    if vector is None:
        return scaled(call.recorder, symbol, by)
    known = isinstance(symbol, (Input, Hidden, Moved, Affine)) and shared(call.recorder, vector)
    return stretched(call.recorder, symbol, vector) if known else OPAQUE


def _reciprocal(call: Call, by: Any) -> Any:
    return 1 / by if isinstance(by, float) else by if by is None else call.recorder.emit(torch.reciprocal, by)


def _div(call: Call) -> Symbol:
    operands = two(call)
    if operands is None or call.result.shape != call.tensors[0].shape:
        return OPAQUE
    return _times(call, operands[0], operands[1], call.tensors[1], inverse=True)


def _neg(call: Call) -> Symbol:
    return scaled(call.recorder, call.args[0], -1.0)


def _add(call: Call) -> Symbol:
    operands = two(call)
    return OPAQUE if operands is None else _sum(call, *operands)


def _sub(call: Call) -> Symbol:
    return _difference(call, two(call))


def _rsub(call: Call) -> Symbol:
    operands = two(call)
    return _difference(call, operands and operands[::-1])


def _difference(call: Call, operands: tuple[Any, ...] | None) -> Symbol:
    return OPAQUE if operands is None else _sum(call, operands[0], _negated(call.recorder, operands[1]))


def _negated(recorder: Recorder, value: Any) -> Any:
    if isinstance(value, Ref):
        return recorder.emit(torch.neg, value)
    return -value if number(value) else scaled(recorder, value, -1.0)


def _sum(call: Call, a: Any, b: Any) -> Symbol:
    recorder, result = call.recorder, call.result
    a, b = opened(recorder, a), opened(recorder, b)
    if isinstance(a, (Ref, int, float)) or (isinstance(a, Input) and isinstance(b, Affine)):
        a, b = b, a
    if not all(t.shape == result.shape for t, s in zip(call.tensors, call.args, strict=True) if not _constant(s)):
        return OPAQUE
    if isinstance(a, Affine) and _constant(b):
        z, offset = plain(recorder, a) if a.skip is None else None, _offset(call, b)
        if z is None or offset is None:
            return OPAQUE
        if isinstance(b, Ref) and result.dim() == 2 and recorder.values[b.index].shape == result.shape[1:]:
            return replace(z, bias=b if z.bias is None else recorder.emit(torch.add, z.bias, b))
        return replace(z, shifts=(*z.shifts, offset))
    if isinstance(a, (Input, Hidden, Moved)) and _constant(b):
        offset, moved = _offset(call, b), a if isinstance(a, Moved) else Moved(a)
        return OPAQUE if offset is None else replace(moved, offsets=(*moved.offsets, offset))
    if isinstance(a, Affine) and isinstance(b, Input):
        skip = 1.0 if b.scale is None else b.scale
        return replace(a, skip=skip if a.skip is None else plus(recorder, a.skip, skip))
    if isinstance(a, Input) and isinstance(b, Input):
        one, other = (1.0 if value.scale is None else value.scale for value in (a, b))
        return Input(plus(recorder, one, other))
    return _residual(a, b)


def _residual(a: Any, b: Any) -> Symbol:
    """`phi(z) + h`, z computed from h; both may have been multiplied by one factor, and moved."""
    one, other = (Moved(symbol) if isinstance(symbol, Hidden) else symbol for symbol in (a, b))
    if not (isinstance(one, Moved) and isinstance(other, Moved)) or one.gain != other.gain:
        return OPAQUE
    for h, below in ((one.base, other.base), (other.base, one.base)):
        if isinstance(h, Hidden) and h.z.base is below and isinstance(below, Hidden) and not h.residual:
            added, offsets = replace(h, residual=True), (*one.offsets, *other.offsets)
            return Moved(added, one.gain, offsets) if offsets or one.gain is not None else added
    return OPAQUE


def _offset(call: Call, given: Any) -> Ref | float | None:
    """What is added to each feature, the same for all rows or not; None where it is neither."""
    if isinstance(given, Ref):
        return features(call, given, call.recorder.values[given.index])
    return float(given) if number(given) else None


def _constant(value: object) -> bool:
    return isinstance(value, (Ref, int, float))


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


def _softplus(call: Call) -> Symbol:
    """`log(1 + e^(beta z)) / beta`, with torch's own threshold."""
    named = {**dict(zip(("input", "beta", "threshold"), call.args, strict=False)), **call.keywords}
    z, beta, threshold = named["input"], named.get("beta", 1), named.get("threshold", 20)
    if threshold != 20 or not number(beta) or beta == 0:
        return OPAQUE
    if beta == 1:
        return _activated(call, z, "softplus")
    recorder = call.recorder
    return scaled(recorder, _activated(call, scaled(recorder, z, float(beta)), "softplus"), 1 / beta)


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


def _total(call: Call) -> Symbol:
    """The sum of everything, of one value a sample."""
    energy, value = call.args[0], call.tensors[0]
    whole = len(call.args) == 1 and not call.keywords and value.shape[1:].numel() == 1
    return Total(energy) if whole and isinstance(energy, Affine) and energy.skip is None else OPAQUE


def _gradient(call: Call) -> Symbol:
    """`torch.autograd.grad` of energies, summed or with ones for gradients, in x; what it returned must depend on x."""
    given = dict(zip(("outputs", "inputs", "grad_outputs"), call.args, strict=False)) | call.keywords
    (y,), (x,), seeds = given["outputs"], given["inputs"], given.get("grad_outputs")
    if not isinstance(x, Input) or x.scale is not None or given.get("is_grads_batched"):
        return OPAQUE
    if isinstance(y, Affine) and y.skip is None and seeds is not None:
        (ones,) = seeds if isinstance(seeds, (tuple, list)) else (seeds,)
        made = [step.function for step in call.recorder.steps if step.index == ones.index]
        return scaled(call.recorder, Descent(y), -1.0) if made == [torch.ones_like] else OPAQUE
    if not isinstance(y, Total) or seeds not in (None, (None,)):
        return OPAQUE
    return scaled(call.recorder, Descent(y.energy), -1.0)


def _methods(*names: str) -> list[Callable[..., Any]]:
    """The functions of these names in `torch`, `torch.nn.functional` and `Tensor`."""
    spaces = (torch, F, Tensor)
    found = (getattr(space, name, None) for name in names for space in spaces)
    return [function for function in found if callable(function)]


RULES: Rules = {
    function: rule
    for rule, functions in (
        (linear.linear, [F.linear]),
        (linear.matmul, _methods("matmul", "mm", "__matmul__")),
        (linear.addmm, _methods("addmm")),
        (linear.cat, _methods("cat", "concat", "concatenate")),
        (_mul, _methods("mul", "multiply", "__mul__", "__rmul__", "mul_", "__imul__")),
        (_div, _methods("div", "divide", "true_divide", "__truediv__", "div_", "__itruediv__")),
        (_neg, _methods("neg", "negative", "__neg__", "neg_")),
        (_add, _methods("add", "__add__", "__radd__", "add_", "__iadd__")),
        (_sub, _methods("sub", "subtract", "__sub__", "sub_", "__isub__")),
        (_rsub, [Tensor.__rsub__]),
        (_sigmoid, [*_methods("sigmoid", "sigmoid_"), torch.special.expit]),
        (_activation("silu"), [F.silu]),
        (_softplus, [F.softplus]),
        (_activation("mish"), [F.mish]),
        (_activation("elu", alpha=(1, 1.0)), [F.elu, F.celu]),
        (linear.einsum, [torch.einsum]),
        (_activation("tanh"), _methods("tanh", "tanh_")),
        (_gelu, [F.gelu]),
        (_activation("softsign"), [F.softsign]),
        (_activation("sine"), _methods("sin", "sin_")),
        (_same, _methods("view", "reshape", "flatten", "squeeze", "unsqueeze", "view_as", "reshape_as", "unflatten")),
        (_same, _methods("contiguous", "clone", "to", "float", "double", "half", "bfloat16", "type_as")),
        (_getitem, [Tensor.__getitem__]),
        (_total, _methods("sum")),
        (_gradient, [torch.autograd.grad]),
        (_dropout, _methods("dropout", "dropout1d", "alpha_dropout", "feature_alpha_dropout")),
    )
    for function in functions
}
