"""Compiles the CPU kernels once a machine, and runs them on torch's number of threads.

A plain C compiler is enough (no headers of torch or Python), and takes a few seconds: the system's, or that of the
package `ziglang`, which pip brings. What it made is kept in the user's cache folder under the hash of source and flags,
written atomically. Where there is no compiler, or it fails, or what it made does not repeat the reference's noise to
the bit, there is no library and nothing else changes.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import itertools
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from fastscore import _config
from fastscore.ops._cpu_source import STEP
from fastscore.ops._cpu_source_chain import CHAIN
from fastscore.ops._cpu_source_layers import LAYERS
from fastscore.ops._cpu_source_network import NETWORK
from fastscore.ops._cpu_source_products import PRODUCTS
from fastscore.ops._cpu_source_program import PROGRAM
from fastscore.ops._cpu_source_targets import TARGETS
from fastscore.reference import philox

SOURCE = STEP + CHAIN + PRODUCTS + LAYERS + PROGRAM + NETWORK + TARGETS
_COMPILERS = ("cc", "gcc", "clang")
_FLAGS = ("-O3", "-std=gnu11", "-shared", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
_MACHINE = {"AVX2": ("-mavx2", "-mfma"), "AVX512": ("-mfma", "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl")}
_PROCESS = os.getpid()
_SECONDS = 180  # a compiler that takes longer is stuck: it needs two to five, and a busy machine many times that


def tuned() -> bool:
    """Whether the source has instructions for this processor, which its matrix products cannot do without."""
    return torch.backends.cpu.get_cpu_capability() in _MACHINE


class _Found:
    """What is known of the library in this process."""

    lock = threading.Lock()
    library: ctypes.CDLL | None = None
    looked = built = False
    work = 0


def done(work: int) -> int:
    """All the work announced so far, this included: many small calls repay the compilation as one large one does."""
    _Found.work += work
    return _Found.work


def library(*, build: bool) -> ctypes.CDLL | None:
    """The compiled kernels, or None where there are none.

    They are loaded if this machine has them. If not, they are compiled where `build` says that the work repays it; a
    process in which nothing did goes on without, whatever other processes compile meanwhile.
    """
    if _Found.library is None and not (_Found.built or (_Found.looked and not build)):
        with _Found.lock:
            if _Found.library is None and not (_Found.built or (_Found.looked and not build)):
                _Found.library = _find(build)
                _Found.looked, _Found.built = True, build
    return _Found.library


def _find(build: bool) -> ctypes.CDLL | None:
    """Load the library, or compile and load it; None for any reason why not."""
    flags = (*_FLAGS, *_MACHINE.get(torch.backends.cpu.get_cpu_capability(), ()))
    key = "\0".join((SOURCE, *flags, platform.system(), platform.machine()))
    name = f"kernels-{hashlib.sha256(key.encode()).hexdigest()[:32]}.so"
    with contextlib.suppress(OSError, RuntimeError, subprocess.SubprocessError):
        with _folder() as folder:
            path = folder / name
            if not path.exists():
                if not build:
                    return None
                with _one_at_a_time(folder):
                    if not path.exists():
                        _compile(flags, path)
            loaded = ctypes.CDLL(str(path))
        return loaded if _repeats_the_reference(loaded) else None
    return None


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """The user's cache folder; a temporary one where it cannot be written."""
    try:
        folder = Path.home() / ".cache" / "fastscore"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except (OSError, RuntimeError):
        writable = False
    if writable:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="fastscore-", ignore_cleanup_errors=True) as temporary:
        yield Path(temporary)


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Processes take turns in the folder, where its file system has locks, which end with the process that holds them.

    Eight compilers at once on a busy machine would each run out of time.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            handle = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _compilers() -> Iterator[tuple[str, ...]]:
    """The system's C compilers, then the one of the package `ziglang`, told to make code for any such processor.

    That one only on Windows, where GCC's code crashes: it keeps vectors on a stack that is not aligned for them.
    """
    if sys.platform != "win32":
        yield from ((found,) for found in map(shutil.which, _COMPILERS) if found)
    if sys.executable and importlib.util.find_spec("ziglang"):
        yield sys.executable, "-m", "ziglang", "cc", "-mcpu=baseline"


def _compile(flags: tuple[str, ...], path: Path) -> None:
    """Compile to a file of its own and put it in place at once, with the first compiler that can."""
    with tempfile.TemporaryDirectory(dir=path.parent, ignore_cleanup_errors=True) as folder:
        source, made = Path(folder) / "kernels.c", Path(folder) / "kernels.so"
        source.write_text(SOURCE)
        environment = _config.environment(ZIG_GLOBAL_CACHE_DIR=folder, ZIG_LOCAL_CACHE_DIR=folder)
        for compiler in _compilers():
            command = [*compiler, *flags, str(source), "-o", str(made), "-lm"]
            with contextlib.suppress(OSError, subprocess.CalledProcessError):
                subprocess.run(command, check=True, capture_output=True, timeout=_SECONDS, env=environment)
                made.replace(path)
                return


def _repeats_the_reference(loaded: ctypes.CDLL) -> bool:
    """Whether the library's normals are the reference's, bit for bit, for rows shorter and longer than a block."""
    seed, step, first = 0x299F31D0A4093822, 0x13198A2E, (1 << 40) - 3
    for n, width in ((70, 2), (3, 301)):
        made = torch.empty(n, width)
        call_langevin(loaded, None, None, made, None, None, (0, n * -(-width // 4)), seed, 3, step, first)
        chains = torch.arange(first, first + n)
        if not torch.equal(made, philox.normals(seed, 3, step, chains, width, torch.float32)):
            return False
    return True


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
    return ctypes.c_void_p(None if value is None else value.data_ptr())


def key(seed: int, step: int, stream: int, first_chain: int) -> tuple[object, ...]:
    """The arguments that end every kernel's list."""
    words = (seed & philox.MASK, seed >> 32 & philox.MASK, step, stream)
    return (*map(ctypes.c_uint32, words), ctypes.c_uint64(first_chain))


def parallel(run: Callable[[tuple[int, int]], object], n: int, block: int, threads: int, *, long: bool = True) -> None:
    """`run((begin, end))` over [0, n) on up to `threads` threads, cut at multiples of `block`; `long`: over 0.2 ms."""
    blocks = -(-n // block)
    threads = min(threads, blocks)
    if threads <= 1:
        run((0, n))
        return
    if long:
        _dismiss()
    edges = [min(n, block * (blocks * i // threads)) for i in range(threads + 1)]
    parts = list(itertools.pairwise(edges))
    waiting = [_pool(os.getpid(), threads).submit(run, part) for part in parts[1:]]
    try:
        run(parts[0])
    finally:  # the kernels write to memory of the caller's: it may not go on before they are done
        for future in waiting:
            future.result()


def _dismiss() -> None:
    """End the threads that OpenMP keeps for this one, where that can be.

    After a parallel operation of torch's they go on spinning, on the processors that ours want, for about as long as a
    training step takes; to start them again takes torch far less. A child of a fork has none of them, and would wait
    for them.
    """
    if os.getpid() == _PROCESS and (pause := _omp_pause()) is not None:
        pause(1)  # omp_pause_soft


@functools.cache
def _omp_pause() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "omp_pause_resource_all", None) if sys.platform == "linux" else None


@functools.lru_cache(maxsize=1)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads of this process: those of a parent do not survive its fork."""
    return ThreadPoolExecutor(max(1, threads - 1), thread_name_prefix="fastscore")
