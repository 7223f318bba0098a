"""Parts of a batch on several threads, each running torch on one.

A tile that fits in a core's cache is too little for two cores: they would wait for each other after every operation.
Whole tiles for each core do not wait at all. What is small and comes before or after runs on one thread too (`alone`):
OpenMP's threads go on spinning for milliseconds after every parallel operation, on the cores that the tiles want.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from fastscore.ops import _cpu_build

Result = TypeVar("Result")
_local = threading.local()
_SHARE = 1 << 16  # elements of a batch's largest array that repay waking a thread


def share(x: Tensor, rows: int, width: int) -> int:
    """How many rows of x a tile has, of `rows` at most, so that every thread has one."""
    threads = _threads(x)
    return min(rows, max(16, -(-len(x) // threads))) if repays(x, width) else rows


def repays(x: Tensor, width: int) -> bool:
    """Whether a batch whose largest array is so wide repays waking a thread."""
    return len(x) * width >= _SHARE


def over(x: Tensor, rows: int, run: Callable[[slice], Result]) -> list[Result]:
    """`run` over consecutive parts of the rows of x, cut between tiles of `rows`, in their order; without gradients."""
    threads = _threads(x)
    if threads == 1 or len(x) <= rows:
        return [run(slice(0, len(x)))]
    found: dict[int, Result] = {}
    inference = torch.is_inference_mode_enabled()

    def part(edges: tuple[int, int]) -> None:
        _set(1)
        with torch.inference_mode(inference), torch.no_grad():
            found[edges[0]] = run(slice(*edges))

    with alone(x):
        _cpu_build.parallel(part, len(x), rows, threads)
    return [found[begin] for begin in sorted(found)]


@contextlib.contextmanager
def alone(x: Tensor) -> Iterator[None]:
    """Run torch on one thread of a CPU, and let `over` know how many there are."""
    outer, current = getattr(_local, "threads", None), torch.get_num_threads()
    if x.device.type != "cpu" or outer is not None:
        yield
        return
    _local.threads = current
    _set(1)
    try:
        yield
    finally:
        _local.threads = None
        _set(current)


def _set(threads: int) -> None:
    """Have torch work on so many threads for this one."""
    torch.get_num_threads()  # the first call of a thread sets the number that all begin with
    for setter in _setters():
        setter(threads)


@functools.cache
def _setters() -> tuple[Callable[[int], object], ...]:
    """What sets the number of one thread, asked of torch's libraries.

    Torch itself, where they cannot be, sets what new threads begin with, too: one that starts meanwhile keeps to one.
    """
    if torch.backends.openmp.is_available():
        with contextlib.suppress(OSError, StopIteration, AttributeError):
            libraries = ctypes.CDLL(str(next((Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*"))))
            own = libraries.omp_set_num_threads
            return (own, libraries.MKL_Set_Num_Threads_Local) if torch.backends.mkl.is_available() else (own,)
    return (torch.set_num_threads,)


def _threads(x: Tensor) -> int:
    if x.device.type != "cpu":
        return 1
    return getattr(_local, "threads", None) or torch.get_num_threads()
