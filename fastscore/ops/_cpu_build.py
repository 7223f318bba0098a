"""Compiles the CPU kernels once a machine, and runs them on torch's number of threads.

A plain C compiler is enough (no headers of torch or Python), and takes a few seconds: the system's, or that of the
package `ziglang`, which pip brings. What it made is kept in the user's cache folder, written atomically, under the hash
of source and flags and its own: what was cut short or damaged is made anew. Where there is no compiler, or it fails, or
what it made does not repeat the reference's noise to the bit, there is no library and nothing else changes.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import itertools
import multiprocessing
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from fastscore import _config
from fastscore.ops._cpu_source import STEP
from fastscore.ops._cpu_source_algorithms import ALGORITHMS
from fastscore.ops._cpu_source_layers import LAYERS
from fastscore.ops._cpu_source_mixture import MIXTURE
from fastscore.ops._cpu_source_network import NETWORK
from fastscore.ops._cpu_source_products import PRODUCTS
from fastscore.ops._cpu_source_program import PROGRAM
from fastscore.ops._cpu_source_targets import TARGETS
from fastscore.reference import philox

SOURCE = STEP + PRODUCTS + LAYERS + PROGRAM + MIXTURE + NETWORK + TARGETS + ALGORITHMS
_COMPILERS = ("cc", "gcc", "clang")
_FLAGS = ("-O3", "-std=gnu11", "-shared", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
_MACHINE = {"AVX2": ("-mavx2", "-mfma"), "AVX512": ("-mfma", "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl")}
_PROCESS = os.getpid()
_SECONDS = 60  # a compiler that takes longer is stuck: it needs two to five, and a busy machine many times that


def tuned() -> bool:
    """Whether the source has instructions for this processor, which its matrix products cannot do without."""
    return torch.backends.cpu.get_cpu_capability() in _MACHINE


class _Found:
    """What is known of the library in this process."""

    lock = threading.Lock()
    library: ctypes.CDLL | None = None
    looked = built = False
    work = 0


def _unlock() -> None:
    """In the child of a fork, whose parent may have been looking."""
    _Found.lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock)


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
    name = f"kernels-{hashlib.sha256(key.encode()).hexdigest()[:32]}"
    loaded = _kept(name)
    if loaded is None and build:
        with _one_at_a_time():
            loaded = _kept(name) or _made(name, flags)
    return loaded if loaded is not None and _repeats_the_reference(loaded) else None


def _cache() -> Path:
    """The user's cache folder.

    Raises:
        OSError: there is none, or others may write to it: what is loaded from there runs as the user.
        RuntimeError: there is no home.
    """
    folder = Path.home() / ".cache" / "fastscore"
    with contextlib.suppress(OSError):  # one that cannot be written may be read
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if sys.platform != "win32" and (found.st_uid != os.getuid() or found.st_mode & 0o022):
        raise PermissionError(f"{folder} is not the user's own")
    return folder


def _kept(name: str) -> ctypes.CDLL | None:
    """The library of this name in the cache."""
    with contextlib.suppress(OSError, RuntimeError):
        return next(filter(None, map(_load, _cache().glob(f"{name}-*.so"))), None)
    return None


def _load(path: Path) -> ctypes.CDLL | None:
    """Load a library that is what its name says; else remove it."""
    with contextlib.suppress(OSError):
        if path.stem.endswith(_digest(path)):  # a file cut short would end the process
            return ctypes.CDLL(str(path))
    with contextlib.suppress(OSError):
        path.unlink()
    return None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


def _made(name: str, flags: tuple[str, ...]) -> ctypes.CDLL | None:
    """Compile, and load what was made: from the cache, or from where it was made if it cannot be kept or used there."""
    with (
        contextlib.suppress(OSError),
        tempfile.TemporaryDirectory(prefix="fastscore-", ignore_cleanup_errors=True) as folder,
    ):
        if (made := _compile(flags, Path(folder))) is None:
            return None
        made = made.replace(made.with_name(f"{name}-{_digest(made)}.so"))
        with contextlib.suppress(OSError, RuntimeError):
            if (loaded := _load(_keep(made, _cache()))) is not None:
                return loaded
        return _load(made)
    return None


def _keep(made: Path, cache: Path) -> Path:
    """Put a copy of a file into the cache, at once."""
    with tempfile.TemporaryDirectory(dir=cache, ignore_cleanup_errors=True) as folder:
        copy = Path(folder) / made.name
        with copy.open("wb") as file:
            file.write(made.read_bytes())
            file.flush()
            os.fsync(file.fileno())
        return copy.replace(cache / made.name)


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Processes take turns, where the cache's file system has locks, which end with the process that holds them.

    Eight compilers at once on a busy machine would each run out of time. One that has stopped is not waited for.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, OSError, RuntimeError):
            import fcntl

            handle = os.open(_cache(), os.O_RDONLY)
            stack.callback(os.close, handle)
            stack.callback(fcntl.flock, handle, fcntl.LOCK_UN)  # a child of a fork has the handle, too
            last = time.monotonic() + _SECONDS
            while time.monotonic() < last:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                time.sleep(0.05)
        yield


def _compilers() -> Iterator[tuple[str, ...]]:
    """The system's C compilers, then the one of the package `ziglang`, told to make code for any such processor.

    That one only on Windows, where GCC's code crashes: it keeps vectors on a stack that is not aligned for them.
    """
    if sys.platform != "win32":
        yield from ((found,) for found in map(shutil.which, _COMPILERS) if found)
    if sys.executable and importlib.util.find_spec("ziglang"):
        yield sys.executable, "-m", "ziglang", "cc", "-mcpu=baseline"


def _compile(flags: tuple[str, ...], folder: Path) -> Path | None:
    """The library, made in a folder by the first compiler that can."""
    source, made = folder / "kernels.c", folder / "kernels.so"
    source.write_text(SOURCE)
    environment = _config.environment(ZIG_GLOBAL_CACHE_DIR=str(folder), ZIG_LOCAL_CACHE_DIR=str(folder))
    for compiler in _compilers():
        if _run([*compiler, *flags, str(source), "-o", str(made), "-lm"], environment) and made.exists():
            return made
    return None


def _run(command: list[str], environment: dict[str, str]) -> bool:
    """Whether a program did its work in time; what it started ends with it."""
    none = subprocess.DEVNULL  # a pipe would be waited for as long as any of its children has it
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        process = subprocess.Popen(
            command, stdin=none, stdout=none, stderr=none, env=environment, start_new_session=True
        )
        try:
            return process.wait(_SECONDS) == 0
        finally:
            if process.poll() is None:
                process.kill() if sys.platform == "win32" else os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return False


def _repeats_the_reference(loaded: ctypes.CDLL) -> bool:
    """Whether the library's normals are the reference's, bit for bit, for rows shorter and longer than a block."""
    seed, step, first = 0x299F31D0A4093822, 0x13198A2E, (1 << 40) - 3
    with torch.device("cpu"):  # wherever else the caller's tensors are made
        for n, width in ((70, 2), (3, 301)):
            made = torch.empty(n, width, dtype=torch.float32, device="cpu")
            call_langevin(loaded, None, None, made, None, None, (0, n * -(-width // 4)), seed, 3, step, first)
            chains = torch.arange(first, first + n, dtype=torch.int64, device="cpu")
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
