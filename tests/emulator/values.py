"""What registers hold: bits, an array over the threads, which an instruction reads as values of a type."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tests.emulator.machine import Machine

Ints = NDArray[np.int64]
Values = NDArray[Any]
Mask = NDArray[np.bool_]
"""The threads that do an instruction."""
Step = Callable[["Machine", "Mask | None"], None]
"""What an instruction does, for the threads of a mask or for all."""

DTYPES: dict[str, np.dtype[Any]] = {
    "pred": np.dtype(np.bool_),
    **{f"{letter}{bits}": np.dtype(f"u{bits // 8}") for letter in "bu" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": np.dtype(f"i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"f{bits}": np.dtype(f"f{bits // 8}") for bits in (16, 32, 64)},
}


def as_dtype(bits: Values, dtype: np.dtype[Any]) -> Values:
    """The low bits of a register, read as a type."""
    if bits.dtype == dtype:
        return bits
    if bits.itemsize > dtype.itemsize:
        bits = bits.astype(f"u{dtype.itemsize}")
    return bits.view(dtype)


def extended(values: Values, bits: np.dtype[Any]) -> Values:
    """Values as the bits of a register, by their sign if they have one."""
    if values.dtype.kind == "i" and values.itemsize < bits.itemsize:
        values = values.astype(f"i{bits.itemsize}")
    elif values.itemsize != bits.itemsize:
        values = values.view(f"u{values.itemsize}").astype(bits)
    return values.view(bits)


@functools.cache
def literal(text: str, dtype: np.dtype[Any]) -> Values:
    """A number such as -3, 0x10, 0f3F800000 or 0d3FF0000000000000; a symbol stands for the offset 0."""
    if text[:2] in ("0f", "0d"):
        return as_dtype(np.array(int(text[2:], 16), "u4" if text[1] == "f" else "u8"), dtype)
    if dtype.kind == "b":
        return np.array(int(text, 0) != 0)
    if not re.match(r"-?\d", text):
        return np.array(0, dtype)
    return as_dtype(np.array(int(text.rstrip("U"), 0) % 2**64, np.uint64), dtype)


def vector(operand: str) -> list[str]:
    """The registers of `{a, b}`, or of one alone."""
    return [part.strip() for part in operand.strip("{} ").split(",")]


def bfloat16(values: Values) -> NDArray[np.uint16]:
    """float32 rounded to bfloat16, to nearest even, as its bits."""
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FFF, rounded).astype(np.uint16)


def from_bfloat16(bits: Values) -> Values:
    """The float32 that a bfloat16 is."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def tensorfloat32(values: Values) -> Values:
    """float32 rounded to ten bits of mantissa, ties away from zero."""
    bits = (values.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(values), bits.view(np.float32), values)
