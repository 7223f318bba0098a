"""What the instructions do that concern one thread alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.emulator.values import DTYPES, Mask, Step, Values, bfloat16, from_bfloat16, tensorfloat32, vector

if TYPE_CHECKING:
    from tests.emulator.machine import Machine

Function = Callable[..., Any]


def _same(function: Function) -> Callable[[list[str], Sequence[str]], Step]:
    """`d = function(a, b, ...)`, all of the type that the opcode ends with."""

    def make(modifiers: list[str], operands: Sequence[str]) -> Step:
        dtype, (to, *sources) = DTYPES[modifiers[-1]], operands
        flush = "ftz" in modifiers and dtype == np.float32

        def step(machine: Machine, mask: Mask | None) -> None:
            values = [machine.value(source, dtype) for source in sources]
            result = function(*map(_flushed, values)) if flush else function(*values)
            machine.write(to, np.asarray(_flushed(result) if flush else result, dtype), mask)

        return step

    return make


def _flushed(x: Values) -> Values:
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), x), x)


def _by_kind(**functions: Function) -> Callable[[list[str], Sequence[str]], Step]:
    """The function of the first of these modifiers, or kinds of type ("f", "u", "s", "b"), that the opcode has."""

    def make(modifiers: list[str], operands: Sequence[str]) -> Step:
        for name, function in functions.items():
            if name in modifiers or name == modifiers[-1][0]:
                return _same(function)(modifiers, operands)
        raise NotImplementedError(".".join(modifiers))

    return make


def _product(modifiers: list[str], operands: Sequence[str]) -> Step:
    """mul and mad: of integers the low half, the high half or all of the product."""
    kind = DTYPES[modifiers[-1]]
    if kind.kind == "f":
        return _same(np.multiply)(modifiers, operands)
    wide = np.dtype(f"{kind.kind}{kind.itemsize * 2}") if kind.itemsize < 8 else kind
    to, first, second, *added = operands

    def step(machine: Machine, mask: Mask | None) -> None:
        result = machine.value(first, kind).astype(wide) * machine.value(second, kind).astype(wide)
        if "hi" in modifiers:
            result = (result >> np.array(8 * kind.itemsize, wide)).astype(kind)
        elif "lo" in modifiers:
            result = result.astype(kind)
        for operand in added:
            result = result + machine.value(operand, result.dtype)
        machine.write(to, result, mask)

    if "hi" in modifiers and kind.itemsize == 8:
        raise NotImplementedError("the high half of a product of 128 bits")
    return step


def _fused(a: Values, b: Values, c: Values) -> Values:
    """a b + c with one rounding, but for rare ties."""
    wide = np.float64 if a.dtype == np.float32 else np.longdouble
    return (a.astype(wide) * b + c).astype(a.dtype)


def _shift_left(a: Values, n: Values) -> Values:
    bits = np.array(8 * a.itemsize, n.dtype)
    return np.where(n < bits, a << np.minimum(n, bits - 1), 0)


def _shift_right(a: Values, n: Values) -> Values:
    bits = np.array(8 * a.itemsize, n.dtype)
    if a.dtype.kind == "i":
        return a >> np.minimum(n.view(f"u{n.itemsize}"), bits.view(f"u{n.itemsize}") - 1).view(a.dtype)
    return np.where(n < bits, a >> np.minimum(n, bits - 1), 0)


def _field(a: Values, first: Values, length: Values) -> Values:
    """bfe: `length` bits from `first`; here both are literals and the field lies inside."""
    top = np.array(8 * a.itemsize, a.dtype) - length
    return (a << (top - first)) >> top


def _permuted(a: Values, b: Values, selector: Values) -> Values:
    """prmt: four bytes chosen out of eight."""
    both = (b.astype(np.uint64) << np.uint64(32)) | a
    result = np.zeros_like(both)
    for i in range(4):
        choice = (selector >> np.uint32(4 * i)) & np.uint32(15)
        byte = (both >> (8 * (choice & np.uint32(7))).astype(np.uint64)) & np.uint64(255)
        byte = np.where(choice & np.uint32(8), np.where(byte & np.uint64(128), 255, 0), byte).astype(np.uint64)
        result |= byte << np.uint64(8 * i)
    return result.astype(np.uint32)


def _truth_table(modifiers: list[str], operands: Sequence[str]) -> Step:
    """lop3: any function of three bits."""
    to, *sources, table = operands
    code = int(table, 0)

    def step(machine: Machine, mask: Mask | None) -> None:
        a, b, c = (machine.value(source, DTYPES["b32"]) for source in sources)
        result = np.zeros(machine.n, np.uint32)
        for i in range(8):
            if code >> i & 1:
                result |= (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
        machine.write(to, result, mask)

    return step


def _quotient(a: Values, b: Values) -> Values:
    return (a - np.fmod(a, b)) // b


def _tanh(x: Values) -> Values:
    """tanh of float32, which the hardware has to 11 bits of mantissa only."""
    bits = np.asarray(np.tanh(x), np.float32).view(np.uint32)
    return ((bits + np.uint32(1 << 11)) & np.uint32(0xFFFFF000)).view(np.float32)


def _reciprocal(x: Values) -> Values:
    """rcp; of float64 the hardware gives the upper half of the bits."""
    y = 1 / x
    return (y.view(np.uint64) & np.uint64(0xFFFFFFFF00000000)).view(np.float64) if y.dtype == np.float64 else y


_UNORDERED = {
    "equ": np.equal,
    "neu": np.not_equal,
    "ltu": np.less,
    "leu": np.less_equal,
    "gtu": np.greater,
    "geu": np.greater_equal,
}
_ORDERED = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
    "num": lambda a, b: True, "nan": lambda a, b: False,
}  # fmt: skip


def compare(name: str, a: Values, b: Values) -> Mask:
    """A comparison; the ordered ones are false where either is not a number, the unordered ones true."""
    result = {**_ORDERED, **_UNORDERED}[name](a, b)
    if a.dtype.kind != "f":
        return result
    nan = np.isnan(a) | np.isnan(b)
    return result | nan if name in _UNORDERED or name == "nan" else result & ~nan


def _compare(modifiers: list[str], operands: Sequence[str]) -> Step:
    """setp: one predicate or it and its contrary, joined to another predicate if there is one."""
    name, *joined, kind = [m for m in modifiers if m != "ftz"]
    (to, *contrary), first, second, *others = operands[0].split("|"), *operands[1:]
    join = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}[joined[0]] if joined else None

    def step(machine: Machine, mask: Mask | None) -> None:
        result = compare(name, machine.value(first, DTYPES[kind]), machine.value(second, DTYPES[kind]))
        opposite = ~np.asarray(result)
        if join:
            other = machine.value(others[0], DTYPES["pred"])
            result, opposite = join(result, other), join(opposite, other)
        machine.write(to, np.asarray(result), mask)
        for operand in contrary:
            machine.write(operand, opposite, mask)

    return step


def _select(modifiers: list[str], operands: Sequence[str]) -> Step:
    to, first, second, predicate = operands
    dtype = DTYPES[modifiers[-1]]

    def step(machine: Machine, mask: Mask | None) -> None:
        chosen = machine.value(predicate, DTYPES["pred"])
        machine.write(to, np.where(chosen, machine.value(first, dtype), machine.value(second, dtype)), mask)

    return step


_ROUND = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def convert(values: Values, to: str, modifiers: Sequence[str]) -> Values:
    """cvt of one value, of any type but bfloat16, to the type named `to`."""
    if to == "bf16":
        return bfloat16(values.astype(np.float32))
    if to == "tf32":
        return tensorfloat32(values)
    for name, function in _ROUND.items():
        if name in modifiers:
            values = function(values)
    dtype = DTYPES[to]
    if dtype.kind in "iu" and values.dtype.kind == "f":
        limits = np.iinfo(dtype)
        highest = np.nextafter(np.float64(limits.max), 0) if dtype.itemsize == 8 else np.float64(limits.max)
        return np.clip(np.nan_to_num(values.astype(np.float64), nan=0), limits.min, highest).astype(dtype)
    return values.astype(dtype)


def _convert(modifiers: list[str], operands: Sequence[str]) -> Step:
    """cvt: one value, or two into the halves of a register (the first into the upper one)."""
    *how, to_kind, kind = modifiers
    to, *sources = operands

    def read(machine: Machine, source: str) -> Values:
        if kind == "bf16":
            return from_bfloat16(machine.value(source, DTYPES["b16"]))
        return machine.value(source, DTYPES[kind])

    def step(machine: Machine, mask: Mask | None) -> None:
        values = [convert(read(machine, source), to_kind.removesuffix("x2"), how) for source in sources]
        if len(values) == 2:
            upper, lower = (value.view(np.uint16).astype(np.uint32) for value in values)
            values = [(upper << np.uint32(16)) | lower]
        machine.write(to, values[0], mask)

    return step


def _move(modifiers: list[str], operands: Sequence[str]) -> Step:
    """mov: a value, or the parts of one to or from several registers."""
    to, source = operands
    dtype = DTYPES[modifiers[-1]]
    parts = [operand for operand in (to, source) if operand.startswith("{")]
    if not parts:
        return lambda machine, mask: machine.write(to, machine.value(source, dtype), mask)
    names = vector(parts[0])
    part = np.dtype(f"u{dtype.itemsize // len(names)}")
    shifts = [np.array(8 * part.itemsize * i, dtype) for i in range(len(names))]

    def unpack(machine: Machine, mask: Mask | None) -> None:
        whole = machine.value(source, dtype)
        for name, shift in zip(names, shifts, strict=True):
            machine.write(name, (whole >> shift).astype(part), mask)

    def pack(machine: Machine, mask: Mask | None) -> None:
        halves = [machine.value(name, part).astype(dtype) << shift for name, shift in zip(names, shifts, strict=True)]
        machine.write(to, functools.reduce(np.bitwise_or, halves), mask)

    return unpack if to.startswith("{") else pack


OPERATIONS: dict[str, Callable[[list[str], Sequence[str]], Step]] = {
    "add": _same(np.add),
    "sub": _same(np.subtract),
    "mul": _product,
    "mad": _product,
    "fma": _same(_fused),
    "neg": _same(np.negative),
    "abs": _same(np.abs),
    "min": _by_kind(NaN=np.minimum, f=np.fmin, u=np.minimum, s=np.minimum),
    "max": _by_kind(NaN=np.maximum, f=np.fmax, u=np.maximum, s=np.maximum),
    "div": _by_kind(f=np.divide, s=_quotient, u=_quotient),
    "rem": _same(np.fmod),
    "rcp": _same(_reciprocal),
    "sqrt": _same(np.sqrt),
    "rsqrt": _same(lambda x: 1 / np.sqrt(x)),
    "ex2": _same(np.exp2),
    "lg2": _same(np.log2),
    "sin": _same(np.sin),
    "cos": _same(np.cos),
    "tanh": _same(_tanh),
    "and": _same(np.bitwise_and),
    "or": _same(np.bitwise_or),
    "xor": _same(np.bitwise_xor),
    "not": _same(np.invert),
    "shl": _same(_shift_left),
    "shr": _same(_shift_right),
    "bfe": _same(_field),
    "prmt": _same(_permuted),
    "lop3": _truth_table,
    "selp": _select,
    "setp": _compare,
    "cvt": _convert,
    "mov": _move,
}
