"""Which compilers make the CPU kernels, and that it does not matter which one did."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fastscore
from fastscore import noise, targets
from fastscore.ops import _cpu_build

ZIG = (sys.executable, "-m", "ziglang", "cc", "-mcpu=baseline")


def results() -> list[Tensor]:
    """A chain of each kind, a step of training in compiled passes, and its gradients."""
    torch.manual_seed(0)
    net, x = fastscore.ScoreMLP(dim=3, width=37, depth=2), noise.normal((2048, 3), seed=0, stream=5)
    ring, wells = targets.GaussianMixture.ring(), targets.DoubleWell(3)
    loss = fastscore.implicit_score_matching(net, x)
    return [
        fastscore.langevin_dynamics(ring.score, x[:, :2], step_size=0.01, n_steps=20, seed=1),
        fastscore.langevin_dynamics(net, x, step_size=0.01, n_steps=20, seed=1),
        fastscore.mala(wells, x, step_size=0.05, n_steps=20, seed=1),
        loss.detach(),
        *torch.autograd.grad(loss, tuple(net.parameters())),
    ]


@pytest.mark.skipif(shutil.which("cc") is None, reason="no other C compiler to compare with")
def test_ziglang_makes_a_library_of_the_same_bits(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ziglang")
    assert _cpu_build.library(build=True) is not None
    expected = results()
    shutil.rmtree(fresh / ".cache")
    monkeypatch.setattr(_cpu_build._Found, "library", None)
    monkeypatch.setattr(_cpu_build._Found, "built", False)
    monkeypatch.setattr(_cpu_build.shutil, "which", lambda name: None)
    assert isinstance(_cpu_build.library(build=True), ctypes.CDLL)
    assert [path.suffix for path in fresh.rglob("*") if path.is_file()] == [".so"]  # and no cache of the compiler's
    assert all(torch.equal(made, wanted) for made, wanted in zip(results(), expected, strict=True))


def test_the_next_compiler_is_asked_where_one_fails(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = next(_cpu_build._compilers())  # the tests' environment has ziglang's, if no other
    failing = [(sys.executable, "-c", "raise SystemExit(1)"), (str(fresh / "nowhere"),)]
    monkeypatch.setattr(_cpu_build, "_compilers", lambda: iter([*failing, found]))
    assert _cpu_build.library(build=True) is not None


@pytest.mark.parametrize(("platform", "zig"), [("linux", True), ("linux", False), ("win32", True), ("win32", False)])
def test_the_systems_compilers_come_first(platform: str, zig: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cpu_build.sys, "platform", platform)
    monkeypatch.setattr(_cpu_build.shutil, "which", lambda name: None if name == "gcc" else f"/bin/{name}")
    monkeypatch.setattr(_cpu_build.importlib.util, "find_spec", lambda name: object() if zig else None)
    own = [] if platform == "win32" else [("/bin/cc",), ("/bin/clang",)]
    assert list(_cpu_build._compilers()) == own + [ZIG] * zig


class Again:
    """An empty home whose compiler copies the library of these tests; every look is as a new process's."""

    def __init__(self, home: Path, real: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cache, self.real, self.compiled, self.patch = home / ".cache" / "fastscore", real, 0, monkeypatch
        monkeypatch.setattr(_cpu_build, "_compile", self.compile)

    def compile(self, flags: tuple[str, ...], folder: Path) -> Path:
        self.compiled += 1
        return Path(shutil.copyfile(self.real, folder / "kernels.so"))

    def look(self, *, build: bool = True) -> ctypes.CDLL | None:
        for name, value in {"library": None, "looked": False, "built": False}.items():
            self.patch.setattr(_cpu_build._Found, name, value)
        return _cpu_build.library(build=build)

    def files(self) -> list[Path]:
        return list(self.cache.iterdir())


REAL = _cpu_build.library(build=True)


@pytest.fixture
def again(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> Again:
    if REAL is None or not Path(REAL._name).exists():
        pytest.skip("no C compiler, or a cache that cannot be written")
    return Again(fresh, Path(REAL._name), monkeypatch)


@pytest.mark.parametrize("damage", ["empty", "garbage", "cut", "changed"])
def test_a_damaged_library_is_made_anew_once(again: Again, damage: str) -> None:
    assert again.look() is not None and again.compiled == 1
    (file,) = again.files()
    whole = file.read_bytes()
    damaged = {"empty": b"", "garbage": b"x" * 9999, "cut": whole[:8192], "changed": whole[:-1] + b"x"}[damage]
    file.unlink()  # it is mapped into this process
    file.write_bytes(damaged)
    assert again.look(build=False) is None and again.files() == []
    file.write_bytes(damaged)
    assert again.look() is not None and again.compiled == 2
    assert again.look(build=False) is not None and again.compiled == 2
    assert again.files() == [file] and file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_read(again: Again, monkeypatch: pytest.MonkeyPatch) -> None:
    again.look()

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(_cpu_build, "_keep", refuse)
    assert again.look(build=False) is not None and again.compiled == 1
    again.files()[0].unlink()
    assert again.look() is not None and again.compiled == 2  # from where it was made


def test_a_cache_that_nothing_may_be_run_from(again: Again, monkeypatch: pytest.MonkeyPatch) -> None:
    real = ctypes.CDLL

    def load(name: str) -> ctypes.CDLL:
        if name.startswith(str(again.cache)):
            raise OSError("failed to map segment from shared object")
        return real(name)

    monkeypatch.setattr(_cpu_build.ctypes, "CDLL", load)
    assert again.look() is not None and again.files() == []


@pytest.mark.skipif(sys.platform == "win32", reason="no owners")
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o700])
def test_nothing_is_loaded_from_a_folder_that_others_write_to(
    again: Again, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    again.look()
    if mode == 0o700:  # or that is another's
        monkeypatch.setattr(_cpu_build.os, "getuid", lambda: os.stat(again.cache).st_uid + 1)
    again.cache.chmod(mode)
    assert again.look(build=False) is None and len(again.files()) == 1
    found = again.look()
    assert found is not None and again.compiled == 2 and not found._name.startswith(str(again.cache))


def test_one_that_holds_the_lock_and_has_stopped_is_not_waited_for(
    again: Again, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    again.cache.mkdir(parents=True, mode=0o700)
    handle = os.open(again.cache, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    monkeypatch.setattr(_cpu_build, "_SECONDS", 0.2)
    assert again.look() is not None and again.compiled == 1
    fcntl.flock(handle, fcntl.LOCK_UN)
    os.close(handle)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_compiler_that_hangs_is_ended_with_all_it_started(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = ("sh", "-c", f"sleep 60 & echo $! > {fresh}/child; wait")
    good = ("sh", "-c", 'until [ "$1" = -o ]; do shift; done; echo made > "$2"', "sh")
    monkeypatch.setattr(_cpu_build, "_compilers", lambda: iter([hanging, good]))
    monkeypatch.setattr(_cpu_build, "_SECONDS", 0.5)
    assert _cpu_build._compile((), fresh) == fresh / "kernels.so"
    status = Path(f"/proc/{(fresh / 'child').read_text().strip()}/stat")
    last = time.monotonic() + 5  # the signal is on its way
    while status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < last


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fork_while_another_thread_compiles_does_not_hang(fresh: Path) -> None:
    with _cpu_build._Found.lock:
        child = os.fork()
        if child == 0:
            os._exit(0 if _cpu_build._Found.lock.acquire(timeout=0.1) else 1)
        assert os.waitpid(child, 0)[1] == 0
