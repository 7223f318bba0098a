"""Faults from outside: processes killed, memory that runs out, no compiler, no Triton, many processes at once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

import fastscore
from fastscore import noise, targets

ROOT = Path(__file__).parents[1]
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")


def program(source: str, *arguments: object, timeout: float = 300, **environment: str) -> str:
    """What a Python program of its own prints."""
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error::UserWarning", "-c", source, *map(str, arguments)]
    made = os.environ | paths | environment
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, env=made)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


# One program, so that torch is loaded once; every trial is a process forked from it and killed at a random moment.
KILLS = """
import os, random, signal, sys, time
import torch
import fastscore
from fastscore import checkpoint

folder, trials = sys.argv[1], int(sys.argv[2])
path, dice = os.path.join(folder, "net"), random.Random(0)

def trial(wait):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        for n in range(10**9):
            value = torch.full((1 << 16,), float(n))
            checkpoint.write(path, "test", {"n": n}, {"x": value})
            os.write(writer, n.to_bytes(8, "little"))
    os.close(writer)
    finished = int.from_bytes(os.read(reader, 8), "little")
    time.sleep(wait)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while word := os.read(reader, 8):
        finished = int.from_bytes(word, "little")
    os.close(reader)
    about, tensors = checkpoint.read(path, "test")  # raises if it is corrupt
    assert bool((tensors["x"] == about["n"]).all()) and about["n"] in (finished, finished + 1), (about, finished)

for _ in range(trials):
    trial(dice.uniform(0, 0.02))
print(trials)
"""


@needs_fork
@pytest.mark.parametrize("trials", [15, pytest.param(200, marks=pytest.mark.slow)])
def test_a_process_killed_while_it_writes_leaves_a_whole_checkpoint(trials: int, tmp_path: Path) -> None:
    assert int(program(KILLS, tmp_path, trials)) == trials


# The run is taken up again by one process after another, each killed, until one comes to its end.
SAMPLING = """
import os, random, signal, sys, time
import torch
import fastscore
from fastscore import checkpoint, noise

folder, most = sys.argv[1], int(sys.argv[2])
x = noise.normal((64, 3), seed=1, stream=noise.Stream.INITIAL).to(torch.bfloat16)
runs = {
    "langevin": lambda score, **o: fastscore.langevin_dynamics(score, x, step_size=0.1, n_steps=400, seed=2, **o),
    "underdamped": lambda score, **o: fastscore.underdamped_langevin(score, x, step_size=0.1, n_steps=400, seed=2, **o),
    "mala": lambda score, **o: fastscore.mala(
        lambda x: -x.square().sum(1) / 2, x, score_fn=score, step_size=0.3, n_steps=400, seed=2, **o
    ),
}
killed, dice = 0, random.Random(0)
for name, run in runs.items():
    path = os.path.join(folder, name)
    options = {"return_trajectory": True, "thin": 100}
    expected = run(torch.neg, **options)
    options |= {"checkpoint": path, "checkpoint_every": 3}
    for _ in range(most):
        child = os.fork()
        if child == 0:
            run(torch.neg, **options)
            os._exit(0)
        time.sleep(dice.uniform(0, 0.1))
        os.kill(child, signal.SIGKILL)
        killed += os.waitpid(child, 0)[1] == signal.SIGKILL
    assert torch.equal(run(torch.neg, **options), expected), name
print(killed)
"""


@needs_fork
@pytest.mark.parametrize("most", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_a_run_killed_again_and_again_ends_at_the_same_bits(most: int, tmp_path: Path) -> None:
    assert int(program(SAMPLING, tmp_path, most)) > 0


def test_a_run_without_a_bar_waits_for_no_lock_of_tqdm() -> None:
    """The lock is shared by forked processes, so that one killed while it held it would stop all others for ever."""
    with ThreadPoolExecutor(1) as pool, tqdm.get_lock():
        run = pool.submit(fastscore.langevin_dynamics, torch.neg, X, step_size=0.1, n_steps=3, seed=1)
        assert bool(torch.isfinite(run.result(timeout=60)).all())


class Exhausted(TorchDispatchMode):
    """Raises torch.OutOfMemoryError at the i-th operation that makes a tensor, or counts them."""

    def __init__(self, at: int = -1) -> None:
        super().__init__()
        self.at, self.count = at, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            if self.count == self.at:
                self.count += 1
                raise torch.OutOfMemoryError(f"simulated at operation {self.at}")
            self.count += 1
        return func(*args, **(kwargs or {}))


NET = fastscore.ScoreMLP(3, width=8)
MIXTURE = targets.GaussianMixture([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]], [1.0, 2.0])
X = noise.normal((6, 3), seed=1, stream=noise.Stream.INITIAL)


def gradients(loss: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(NET.parameters()))])


OPERATIONS: dict[str, Any] = {
    "langevin_dynamics": lambda: fastscore.langevin_dynamics(torch.neg, X, step_size=0.1, n_steps=3, seed=1),
    "mixture": lambda: fastscore.langevin_dynamics(MIXTURE.score, X, step_size=0.1, n_steps=3, seed=1),
    "mala": lambda: fastscore.mala(MIXTURE, X, step_size=0.1, n_steps=3, seed=1),
    "underdamped_langevin": lambda: fastscore.underdamped_langevin(NET, X, step_size=0.1, n_steps=3, seed=1),
    "divergence": lambda: fastscore.divergence(NET, X).trace.detach(),
    "hutchinson": lambda: fastscore.divergence(NET, X, trace="hutchinson", seed=1, n_probes=2).trace.detach(),
    "implicit_score_matching": lambda: gradients(fastscore.implicit_score_matching(NET, X)),
    "sliced_score_matching": lambda: gradients(fastscore.sliced_score_matching(NET, X, seed=1)),
    "denoising_score_matching": lambda: gradients(fastscore.denoising_score_matching(NET, X, sigma=0.1, seed=1)),
    "any callable": lambda: fastscore.divergence(lambda x: x.sin().cumsum(1), X).trace,
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_out_of_memory_comes_out_and_changes_nothing(name: str) -> None:
    run, before = OPERATIONS[name], [X.clone(), *(p.detach().clone() for p in NET.parameters())]
    expected = run()
    with Exhausted() as counting:
        run()
    assert counting.count > 3
    for at in sorted({*range(5), *range(5, counting.count, max(1, counting.count // 15)), counting.count - 1}):
        with pytest.raises(torch.OutOfMemoryError, match=f"simulated at operation {at}"), Exhausted(at):
            run()
        assert all(torch.equal(a, b) for a, b in zip(before, [X, *NET.parameters()], strict=True))
        assert all(p.grad is None for p in NET.parameters())
        assert torch.equal(run(), expected)


CACHE = """
import os, sys
import torch
from fastscore import noise
from fastscore.ops import _cpu_build

start, go = os.pipe()
found, tell = os.pipe()
for _ in range(int(sys.argv[1])):
    if os.fork() == 0:
        os.close(go)
        os.read(start, 1)  # until the last child is there
        library = _cpu_build.library(build=True)
        total = noise.normal((1000, 3), seed=5, stream=1).double().sum().item()
        os.write(tell, f"{library is not None} {total}\\n".encode())
        os._exit(0)
os.close(go)
os.close(tell)
print(os.fdopen(found).read(), end="")
"""


@needs_fork
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_processes_on_one_cold_cache_compile_once_and_all_find_a_whole_library(tmp_path: Path) -> None:
    compiler, calls = tmp_path / "bin" / "cc", tmp_path / "calls"
    compiler.parent.mkdir()
    compiler.write_text(f'#!/bin/sh\necho >> {calls}\nexec {shutil.which("cc")} "$@"\n')
    compiler.chmod(0o755)
    path = os.pathsep.join([str(compiler.parent), os.environ["PATH"]])
    printed = [line.split() for line in program(CACHE, 8, HOME=str(tmp_path), PATH=path).splitlines()]
    assert len(printed) == 8 and {found for found, _ in printed} == {"True"}
    assert len({total for _, total in printed}) == 1
    assert [kept.suffix for kept in (tmp_path / ".cache" / "fastscore").iterdir()] == [".so"]
    assert calls.read_text() == "\n"


OTHER_TRITON = """
import torch, fastscore
x = torch.ones(4, 3)
assert fastscore.langevin_dynamics(torch.neg, x, step_size=0.1, n_steps=2, seed=0).shape == x.shape
with fastscore.use_backend("triton"):
    try:
        fastscore.langevin_step(x, -x, step_size=0.1, seed=0, step=0)
    except RuntimeError as error:
        print(error)
"""


def test_an_unknown_triton_is_named_and_needed_by_nobody_on_a_cpu(tmp_path: Path) -> None:
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text("__version__ = '99.0'\ndef jit(f): raise TypeError('new')\n")
    said = program(OTHER_TRITON, PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT), str(ROOT / "kernels")]))
    assert "the Triton kernels cannot be loaded with Triton 99.0" in said and 'backend "torch"' in said
