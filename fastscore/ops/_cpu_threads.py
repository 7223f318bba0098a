"""Parts of a batch on several threads: compiled code (`parallel`), or torch on one thread each (`over`).

A tile that fits in a core's cache is too little for two cores: they would wait for each other after every operation.
Whole tiles for each core do not wait at all. What is small and comes before or after runs on one thread too (`alone`):
OpenMP's threads go on spinning for milliseconds after every parallel operation, on the cores that the tiles want.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import multiprocessing
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")
_local = threading.local()
_PROCESS = os.getpid()
_SHARE = 1 << 16  # elements of a batch's largest array that repay waking a thread


def parallel(
    run: Callable[[tuple[int, int]], object],
    n: int,
    block: int,
    threads: int,
    *,
    parts: int = 1,
    long: bool = True,
) -> None:
    """`run((begin, end))` over [0, n) on up to `threads` threads, cut at multiples of `block`.

    Args:
        run: the work on some rows.
        n: how many rows.
        block: rows that stay together.
        threads: how many threads, of which this is one.
        parts: into how many parts it is cut at least, where it has as many blocks: an interrupt waits for one.
        long: whether it takes over 0.2 ms.
    """
    blocks = -(-n // block)
    threads = min(threads, blocks)
    if max(threads, min(parts, blocks)) <= 1:
        run((0, n))
        return
    parts = min(blocks, threads * max(1, -(-parts // threads)))
    edges = [min(n, block * (blocks * i // parts)) for i in range(parts + 1)]
    left, waiting = deque(itertools.pairwise(edges)), []

    def work() -> None:
        while True:
            try:
                part = left.popleft()
            except IndexError:
                return
            run(part)

    if threads > 1:
        if long:
            _dismiss()
        with contextlib.suppress(RuntimeError):  # where no thread can be had, as when the interpreter ends
            for _ in range(threads - 1):
                waiting.append(_pool(os.getpid(), threads).submit(work))
    try:
        work()
    finally:  # the kernels write to memory of the caller's: it may not go on before they are done
        left.clear()
        for future in waiting:
            future.result()


def _dismiss() -> None:
    """End the threads that OpenMP keeps for this one, where that can be.

    After a parallel operation of torch's they go on spinning, on the processors that ours want, for about as long as a
    training step takes; to start them again takes torch far less. A child of a fork has none of them, and would wait
    for them, whether its parent has imported this or, as one of multiprocessing's, only torch.
    """
    forked = os.getpid() != _PROCESS or multiprocessing.parent_process() is not None
    if not forked and (pause := _omp_pause()) is not None:
        pause(1)  # omp_pause_soft


@functools.cache
def _omp_pause() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "omp_pause_resource_all", None) if sys.platform == "linux" else None


@functools.lru_cache(maxsize=1)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads of this process: those of a parent do not survive its fork."""
    return ThreadPoolExecutor(max(1, threads - 1), thread_name_prefix="fastscore")


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
        parallel(part, len(x), rows, threads)
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
