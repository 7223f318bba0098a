"""Arrays of counter noise: rows are chains `first_chain, first_chain + 1, ...`; no autograd, nothing to differentiate.

While torch.compile traces, an array of noise is one opaque operator: Inductor would write the rounds of Philox, each of
whose values is used twice, into one expression whose size doubles with every round. Under torch.func, too: a kernel
inside cannot write to a tensor that is wrapped.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastscore.ops import _cpu_chain, _cpu_numpy, _dispatch
from fastscore.reference import philox

_BLOCK = 1 << 15  # counters worked on at a time on a CPU: their words stay in the cache


def normal(
    n: int, width: int, seed: int, stream: int, step: int, first_chain: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Standard normals `[n, width]`; computed in float64 for float64, else in float32 and rounded."""
    make = _normal_opaque if looked_on() else _normal
    return make(n, width, _signed(seed), stream, step, first_chain, dtype, device)


def rademacher(
    n: int, width: int, seed: int, stream: int, step: int, first_chain: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Signs +-1 `[n, width]`."""
    make = _rademacher_opaque if looked_on() else _rademacher
    return make(n, width, _signed(seed), stream, step, first_chain, dtype, device)


def uniform(
    n: int, seed: int, stream: int, step: int, first_chain: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Uniforms in (0, 1] `[n]`, one a chain: too few to be worth a kernel."""
    least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps  # below half of it, float16 would round to 0

    def make(chain: Tensor) -> Tensor:
        return philox.uniforms(seed, stream, step, chain, computed(dtype)).clamp(min=least).to(dtype)

    return _rows(make, n, 1, first_chain, device)


def mixed(x: Tensor, alpha: float | Tensor, beta: float | Tensor, seed: int, stream: int, first_chain: int) -> Tensor:
    """`alpha x + beta e` for x `[n, D]` of float32 and the normals e of its rows; alpha, beta a number or `[n, 1]`."""
    if (kernels := _dispatch.kernels("noise", x.device)) is not None and len(x):
        scales = (tensor(scale, x).to(x.device, torch.float32) for scale in (alpha, beta))
        return kernels.mixed(x, *scales, seed, stream, first_chain)  # type: ignore[no-any-return]
    n, width = x.shape
    e = normal(n, width, seed, stream, 0, first_chain, x.dtype, x.device)
    return alpha * x + beta * e


def tensor(value: float | Tensor, x: Tensor) -> Tensor:
    """A number as a tensor of what x is computed in, written there (a copy would wait); a tensor as it is."""
    if isinstance(value, Tensor):
        return value
    return torch.full((), value, dtype=computed(x.dtype), device=x.device)


def computed(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which arithmetic on `dtype` is done: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _normal(
    n: int, width: int, seed: int, stream: int, step: int, first_chain: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    if n == 0 or width == 0:
        return torch.empty(n, width, dtype=dtype, device=device)
    if (kernels := _dispatch.kernels("noise", device)) is not None:
        return kernels.normal(n, width, seed, stream, step, first_chain, dtype, device)  # type: ignore[no-any-return]
    if dtype == torch.float32 and device.type == "cpu":
        made = _cpu_chain.normal(n, width, seed, stream, step, first_chain)
        return torch.from_numpy(_cpu_numpy.normals(n, width, seed, stream, step, first_chain)) if made is None else made

    def make(chain: Tensor) -> Tensor:
        return philox.normals(seed, stream, step, chain, width, computed(dtype)).to(dtype)

    return _rows(make, n, -(-width // 4), first_chain, device)


def _rademacher(
    n: int, width: int, seed: int, stream: int, step: int, first_chain: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    if n == 0 or width == 0:
        return torch.empty(n, width, dtype=dtype, device=device)
    if (kernels := _dispatch.kernels("noise", device)) is not None:
        return kernels.rademacher(n, width, seed, stream, step, first_chain, dtype, device)  # type: ignore[no-any-return]
    if dtype == torch.float32 and device.type == "cpu":
        made = _cpu_chain.signs(n, width, seed, stream, step, first_chain)
        if made is not None:
            return made

    def make(chain: Tensor) -> Tensor:
        return philox.rademacher(seed, stream, step, chain, width, dtype)

    return _rows(make, n, width, first_chain, device)


_normal_opaque = torch.library.custom_op("fastscore::normal", _normal, mutates_args=())
_rademacher_opaque = torch.library.custom_op("fastscore::rademacher", _rademacher, mutates_args=())


@_normal_opaque.register_fake
@_rademacher_opaque.register_fake
def _fake(
    n: int, width: int, seed: int, stream: int, step: int, first_chain: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    return torch.empty(n, width, dtype=dtype, device=device)


def looked_on() -> bool:
    """Whether torch.compile traces, or torch.func wraps new tensors so that no kernel can take them."""
    return torch.compiler.is_compiling() or bool(torch._C._are_functorch_transforms_active())


def _signed(seed: int) -> int:
    """The same 64 bits as an int64, the widest integer an operator takes."""
    return seed - 2**64 * (seed // 2**63)  # without a branch, so that a traced seed stays a symbol


def _rows(make: Callable[[Tensor], Tensor], n: int, width: int, first_chain: int, device: torch.device) -> Tensor:
    """`make(chain)` for n chains of `width` counters, a cache-sized block of rows at a time on a CPU."""
    chain = torch.arange(first_chain, first_chain + n, dtype=torch.int64, device=device)
    block = max(1, _BLOCK // width)
    if n <= block or device.type != "cpu":
        return make(chain)
    return torch.cat([make(part) for part in chain.split(block)])
