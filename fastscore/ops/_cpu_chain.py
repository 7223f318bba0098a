"""What the compiled CPU kernels offer to `ops`: normals, signs, a Langevin step, to the reference's bits.

They take contiguous float32 CPU tensors. Whole chains are in `_cpu_target`.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastscore import _config
from fastscore.ops import _cpu_build, _cpu_call, _cpu_threads
from fastscore.reference.philox import Stream

REPAYS = 1 << 24  # normals, or components of a mixture at a point: done a few times, they repay the compilation
_LARGE = 1 << 24  # bytes of a tensor that repay asking for large pages
_THREAD_ELEMENTS = 1 << 14  # elements that repay waking a thread
_LONG_ELEMENTS = 1 << 19  # elements that repay ending OpenMP's
CALL_ELEMENTS = 1 << 26  # elements of a call of C's, at most about: half a second, which an interrupt waits for
BLOCK = 64  # the kernels' block of counters or chains
WIDEST = (1 << 31) // BLOCK - 1  # features of a chain: the kernels count the entries of a block in an int


def expect(x: Tensor, work: int) -> None:
    """Announce so many normals (or components of a mixture at a point) for x, and compile now if they repay it."""
    library(x, work)


def library(x: Tensor, work: int = 0, *others: Tensor) -> ctypes.CDLL | None:
    """The compiled kernels where x and the others are theirs to work on; `work` is announced as by `expect`."""
    return _cpu_build.library(build=_cpu_build.done(work) >= REPAYS) if plain(x, *others) else None


def plain(*tensors: Tensor) -> bool:
    """Whether these are tensors that kernels on a CPU can work on."""
    return all(map(_ordinary, tensors)) and _config.backend() != "triton"


def _ordinary(x: Tensor) -> bool:
    """Whether x is in a CPU's memory as it says, in float32: nothing sparse, wrapped, or negated in place."""
    return type(x) in _TYPES and x.dtype == torch.float32 and torch._C._dispatch_keys(x).raw_repr() in _KEYS


def _keys(*, inference: bool) -> int:
    """What torch has of such a tensor: one number, where its properties one by one take as long as a small step."""
    with torch.inference_mode(inference):
        return torch._C._dispatch_keys(_empty(0)).raw_repr()


def _empty(*shape: int) -> Tensor:
    """Memory for a float32 tensor, whatever torch's defaults are."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


_TYPES = (Tensor, torch.nn.Parameter)
_KEYS = {_keys(inference=False), _keys(inference=True)}


def _fresh(found: ctypes.CDLL, shape: torch.Size) -> Tensor:
    """The same, in large pages where it is new and the system has them."""
    out = _empty(*shape)
    if out.nbytes >= _LARGE:
        found.enlarge(_cpu_call.pointer(out), ctypes.c_uint64(out.nbytes))
    return out


def threads(elements: int) -> int:
    """How many threads so many exponentials repay."""
    return min(torch.get_num_threads(), max(1, elements // _THREAD_ELEMENTS))


def over(run: Callable[[tuple[int, int]], object], n: int, elements: int) -> None:
    """`run((begin, end))` over [0, n), so much work, on as many threads as it repays, in calls of half a second."""
    parts = -(-elements // CALL_ELEMENTS)
    _cpu_threads.parallel(run, n, BLOCK, threads(elements), parts=parts, long=elements >= _LONG_ELEMENTS)


def normal(n: int, width: int, seed: int, stream: int, step: int, first_chain: int) -> Tensor | None:
    """Float32 normals `[n, width]`, or None where nothing compiled can make them."""
    out = _empty(n, width)
    if (found := library(out, out.numel())) is None:
        return None

    def run(part: tuple[int, int]) -> None:
        _cpu_call.call_langevin(found, None, None, out, None, None, part, seed, stream, step, first_chain)

    over(run, n * -(-width // 4), out.numel())
    return out


def signs(n: int, width: int, seed: int, stream: int, step: int, first_chain: int) -> Tensor | None:
    """Float32 signs `[n, width]`, or None where nothing compiled can make them."""
    out = _empty(n, width)
    if (found := library(out, out.numel())) is None:
        return None

    def run(part: tuple[int, int]) -> None:
        begin, end = map(ctypes.c_uint64, part)
        named = _cpu_call.key(seed, step, stream, first_chain)
        found.signs(_cpu_call.pointer(out), begin, end, ctypes.c_uint64(width), *named)

    over(run, n * -(-width // 128), out.numel())
    return out


def langevin_step(
    x: Tensor,
    score: Tensor,
    step_size: float | Tensor,
    temperature: float | Tensor,
    seed: int,
    step: int,
    first_chain: int,
) -> Tensor | None:
    """x + a score + sqrt(2 a T) e, or None where nothing compiled can make it."""
    if (found := library(x, x.numel(), score)) is None:
        return None
    n, width = x.shape[0], x.shape[1:].numel()
    a, c = _factors(step_size, temperature)
    x, score, out = x.contiguous(), score.contiguous(), _fresh(found, x.shape)
    rows = out if out.dim() == 2 else out.view(n, width)

    def run(part: tuple[int, int]) -> None:
        _cpu_call.call_langevin(found, x, score, rows, a, c, part, seed, Stream.LANGEVIN, step, first_chain)

    over(run, n * -(-width // 4), x.numel())
    return out


def _factors(step_size: float | Tensor, temperature: float | Tensor) -> tuple[Any, Any]:
    """a and sqrt(2 a T) in float32, tensors or, of numbers, what C takes as one."""
    if not (isinstance(step_size, Tensor) or isinstance(temperature, Tensor)):
        return tuple(map(ctypes.c_float, _numbers(step_size, temperature)))  # type: ignore[return-value]
    a, t = (torch.as_tensor(v, dtype=torch.float32, device="cpu").detach() for v in (step_size, temperature))
    c, a = torch.sqrt(2.0 * t * a), a.resolve_neg()
    return (a.reshape(-1).contiguous(), c.reshape(-1).contiguous()) if a.dim() else (a, c)


@functools.lru_cache(maxsize=64)
def _numbers(step_size: float, temperature: float) -> tuple[float, float]:
    """Kept, for the operations on tensors of one number take as long as a small step; torch's root is not C's."""
    a, t = (torch.full((), value, dtype=torch.float32, device="cpu") for value in (step_size, temperature))
    return float(a), float(torch.sqrt(2.0 * t * a))


@dataclass(frozen=True)
class Mixture:
    """The constants of a Gaussian mixture: float32, contiguous."""

    means: Tensor  # [K, D]
    inverse: Tensor  # [K, D] or lower triangular [K, D, D]: L_k^-1
    log_scale: Tensor  # [K]

    def constants(self) -> tuple[object, ...]:
        """What the kernels take it as."""
        return (
            *map(ctypes.c_int, (*self.means.shape, self.inverse.dim() == 3)),
            *map(_cpu_call.pointer, (self.means, self.inverse, self.log_scale)),
        )

    def work(self) -> int:
        """How many exponentials cost as much as one feature of the score."""
        return len(self.means)
