"""Arrays of counter noise: rows are chains `first_chain, first_chain + 1, ...`; no autograd, nothing to differentiate."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastscore.ops import _dispatch
from fastscore.reference import philox

_BLOCK = 1 << 15  # counters worked on at a time on a CPU: their words stay in the cache


def normal(
    n: int, width: int, seed: int, stream: int, step: int, first_chain: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Standard normals `[n, width]`; computed in float64 for float64, else in float32 and rounded."""
    if n == 0 or width == 0:
        return torch.empty(n, width, dtype=dtype, device=device)
    if (kernels := _dispatch.kernels("noise", device)) is not None:
        return kernels.normal(n, width, seed, stream, step, first_chain, dtype, device)  # type: ignore[no-any-return]
    return _rows(
        lambda chain: philox.normals(seed, stream, step, chain, width, computed(dtype)).to(dtype),
        n,
        -(-width // 4),
        first_chain,
        device,
    )


def rademacher(
    n: int, width: int, seed: int, stream: int, step: int, first_chain: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Signs +-1 `[n, width]`."""
    if n == 0 or width == 0:
        return torch.empty(n, width, dtype=dtype, device=device)
    if (kernels := _dispatch.kernels("noise", device)) is not None:
        return kernels.rademacher(n, width, seed, stream, step, first_chain, dtype, device)  # type: ignore[no-any-return]
    return _rows(
        lambda chain: philox.rademacher(seed, stream, step, chain, width, dtype), n, width, first_chain, device
    )


def uniform(
    n: int, seed: int, stream: int, step: int, first_chain: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Uniforms in (0, 1] `[n]`, one a chain: too few to be worth a kernel."""
    return _rows(
        lambda chain: philox.uniforms(seed, stream, step, chain, computed(dtype)).to(dtype), n, 1, first_chain, device
    )


def computed(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which arithmetic on `dtype` is done: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _rows(make: Callable[[Tensor], Tensor], n: int, width: int, first_chain: int, device: torch.device) -> Tensor:
    """`make(chain)` for n chains of `width` counters, a cache-sized block of rows at a time on a CPU."""
    chain = torch.arange(first_chain, first_chain + n, dtype=torch.int64, device=device)
    block = max(1, _BLOCK // width)
    if n <= block or device.type != "cpu" or torch.compiler.is_compiling():
        return make(chain)
    return torch.cat([make(part) for part in chain.split(block)])
