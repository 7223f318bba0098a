"""Compiles the CPU kernels once a machine.

A plain C compiler is enough (no headers of torch or Python), and takes a few seconds: the system's, or that of the
package `ziglang`, which pip brings. What it made is kept in the user's cache folder, written atomically, under the hash
of source and flags and its own: what was cut short or damaged is made anew. Where there is no compiler, or it fails, or
what it made does not repeat the reference's noise to the bit, there is no library and nothing else changes.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from fastscore import _config
from fastscore.ops._cpu_call import call_langevin
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
