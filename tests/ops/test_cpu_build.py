"""Which compilers make the CPU kernels, and that it does not matter which one did."""

from __future__ import annotations

import ctypes
import shutil
import sys
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
