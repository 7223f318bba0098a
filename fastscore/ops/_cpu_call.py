"""How compiled code is called: what its arguments are, as ctypes has them."""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from fastscore.reference import philox


def call_langevin(
    loaded: ctypes.CDLL,
    x: torch.Tensor | None,
    score: torch.Tensor | None,
    out: torch.Tensor,
    a: torch.Tensor | ctypes.c_float | None,
    c: torch.Tensor | ctypes.c_float | None,
    counters: tuple[int, int],
    seed: int,
    stream: int,
    step: int,
    first_chain: int,
) -> None:
    """out = x + a score + c e on contiguous float32 `[B, D]`, a and c numbers, 0-dim or `[D]`; e where x is None.

    Only the counters `[begin, end)` are worked on, of which every row has ceil(D / 4).
    """
    begin, end = map(ctypes.c_uint64, counters)
    width, vary = ctypes.c_uint64(out.shape[1]), ctypes.c_uint64(isinstance(a, torch.Tensor) and a.dim() > 0)
    named = key(seed, step, stream, first_chain)
    loaded.langevin(pointer(x), pointer(score), pointer(out), begin, end, width, vary, pointer(a), pointer(c), *named)


def pointer(value: torch.Tensor | ctypes.c_float | None) -> Any:
    """The address of a contiguous tensor's first element or of a number, null for None."""
    if isinstance(value, ctypes.c_float):
        return ctypes.byref(value)
    return ctypes.c_void_p(None if value is None else address(value))


def address(value: torch.Tensor) -> int:
    """Where a tensor's first element lies.

    Raises:
        RuntimeError: nothing lies there, or not what the tensor says.
    """
    found = value.data_ptr()
    if value.is_neg() or (not found and value.numel()):
        raise RuntimeError(f"compiled code cannot read a {type(value).__name__} without memory, or negated in place")
    return found


def key(seed: int, step: int, stream: int, first_chain: int) -> tuple[object, ...]:
    """The arguments that end every kernel's list."""
    words = (seed & philox.MASK, seed >> 32 & philox.MASK, step, stream)
    return (*map(ctypes.c_uint32, words), ctypes.c_uint64(first_chain))
