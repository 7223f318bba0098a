"""Where noise comes from: seeds, streams, and reproducible arrays of normals, signs and uniforms.

The noise of fastscore is a pure function of (seed, stream, step, chain, feature) (see `reference.philox`), so it is the
same on every device and for every batch split, block size and number of ranks. Row b of an array belongs to chain
`first_chain + b`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastscore import _checks
from fastscore.ops import noise as _ops
from fastscore.reference.philox import STREAM_VERSION as STREAM_VERSION
from fastscore.reference.philox import Stream as Stream


def resolve_seed(seed: int | None = None, generator: torch.Generator | None = None) -> int:
    """The seed to use, an int in [0, 2^64).

    A given `seed` is checked and returned; a `generator` gives one draw; with neither, torch's default CPU generator
    gives one, so that `torch.manual_seed` reproduces a whole program.

    Raises:
        TypeError: `seed` is not an int (bool, float and tensor seeds are refused), or `generator` is of another type.
        ValueError: `seed` is outside [0, 2^64), or both are given.
    """
    check_seed(seed, generator)
    if seed is not None:
        return _checks.whole("seed", seed)
    device = generator.device if generator is not None else torch.device("cpu")
    high, low = torch.randint(0, 2**32, (2,), dtype=torch.int64, generator=generator, device=device).tolist()
    return int(high << 32 | low)


def check_seed(seed: int | None, generator: torch.Generator | None) -> None:
    """Refuse what `resolve_seed` refuses, and draw nothing."""
    if seed is not None:
        if generator is not None:
            raise ValueError("give seed or generator, not both")
        _checks.integer("seed", seed, 0, 2**64)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")


def normal(
    shape: Sequence[int],
    *,
    seed: int,
    stream: int,
    step: int = 0,
    first_chain: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Standard normals of `shape` `[B, *event]`; float16 and bfloat16 are rounded from float32.

    Args:
        shape: `[B, *event]`.
        seed: an int in [0, 2^64).
        stream: what the noise is for, a `Stream` or an int in [0, 256): streams never share a word. One's own
            draws may take any from 16 on: fastscore has the others.
        step: the number of the step, in [0, 2^32).
        first_chain: the global index of row 0, in [0, 2^56): row i has the noise of chain first_chain + i.
        dtype: of the result; computed in float64 for float64, else in float32.
        device: where it is made; torch's default device when not given.

    Raises:
        TypeError: an argument of a wrong type, by name.
        ValueError: a number outside its range, by name.
    """
    numbers = _arguments(shape, seed, stream, step, first_chain, dtype)
    made = _ops.normal(*numbers, dtype, _device(device))
    return made.reshape(tuple(shape))


def rademacher(
    shape: Sequence[int],
    *,
    seed: int,
    stream: int,
    step: int = 0,
    first_chain: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Signs +-1, each with probability one half, of `shape` `[B, *event]`; arguments and errors as of `normal`."""
    numbers = _arguments(shape, seed, stream, step, first_chain, dtype)
    made = _ops.rademacher(*numbers, dtype, _device(device))
    return made.reshape(tuple(shape))


def uniform(
    n: int,
    *,
    seed: int,
    stream: int,
    step: int = 0,
    first_chain: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Uniforms in (0, 1], one per chain, `[n]`; otherwise arguments and errors are those of `normal`."""
    n = _checks.count("n", n, 0)
    _, _, seed, stream, step, first_chain = _arguments((n,), seed, stream, step, first_chain, dtype)
    return _ops.uniform(n, seed, stream, step, first_chain, dtype, _device(device))


def _arguments(
    shape: Sequence[int], seed: int, stream: int, step: int, first_chain: int, dtype: torch.dtype
) -> tuple[int, int, int, int, int, int]:
    """(rows, features, seed, stream, step, first chain) of a checked request, Python's ints."""
    if not isinstance(shape, Sequence):
        raise TypeError(f"shape must be a sequence of ints, got {shape!r}")
    sizes = [_checks.count("shape", size, 0) for size in shape]
    if len(shape) < 1:
        raise ValueError("shape must have a batch dimension, got ()")
    seed = _checks.integer("seed", seed, 0, 2**64)
    stream = _checks.integer("stream", stream, 0, 256)
    step = _checks.integer("step", step, 0, 2**32)
    first_chain = _checks.integer("first_chain", first_chain, 0, 2**56 - sizes[0] + 1)
    _checks.floating_dtype("dtype", dtype)
    return sizes[0], math.prod(sizes[1:]), seed, stream, step, first_chain


def _device(device: torch.device | str | None) -> torch.device:
    _checks.device("device", device)
    return torch.device(device) if device is not None else torch.get_default_device()
