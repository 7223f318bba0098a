"""What a program around us may have set: torch's defaults, inference mode."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import fastscore
from fastscore.ops import _cpu_build

DEFAULTS = """
import torch
import fastscore
from fastscore import noise, targets

ring, wells, x = targets.GaussianMixture.ring(), targets.DoubleWell(2), torch.randn(200, 2)
net, steps = fastscore.ScoreMLP(dim=2, width=128, depth=2), {"step_size": 0.01, "n_steps": 5, "seed": 1}
ladder = {"sigmas": [1.0, 0.5], "n_steps_each": 3, "step_size": 0.01, "seed": 1}

def trained(loss):
    return loss, *torch.autograd.grad(loss, tuple(net.parameters()))

def results():
    return [
        fastscore.langevin_dynamics(ring.score, x, **steps),
        fastscore.langevin_dynamics(net, x, **steps),
        fastscore.langevin_dynamics(lambda x: -x, x, **steps),
        fastscore.langevin_step(x, -x, step_size=0.1, seed=0, step=0),
        fastscore.mala(wells.log_prob, x, **steps),
        fastscore.mala(lambda x: -(x**2).sum(1), x, **steps),
        fastscore.underdamped_langevin(ring.score, x, **steps),
        fastscore.annealed_langevin_dynamics(ring.noisy_score, x, **ladder),
        noise.normal((200, 3), seed=0, stream=5, dtype=torch.float32, device="cpu"),
        noise.rademacher((200, 3), seed=0, stream=5, dtype=torch.float32, device="cpu"),
        *trained(fastscore.implicit_score_matching(net, x)),
        *trained(fastscore.sliced_score_matching(net, x, seed=0)),
        *trained(fastscore.denoising_score_matching(net, x, sigma=0.3, seed=0)),
        fastscore.divergence(net, x).trace,
    ]

found = []  # the library is first looked at among the odd defaults
for dtype in (torch.float64, torch.bfloat16):
    torch.set_default_dtype(dtype)
    found.append(results())
torch.set_default_dtype(torch.float32)
with torch.device("meta"):
    found.append(results())
assert all(a.dtype == b.dtype and torch.equal(a, b) for one in found for a, b in zip(one, results(), strict=True))
"""


def test_torchs_defaults_change_nothing() -> None:
    """In a process of its own, which memory of the wrong size could end."""
    if _cpu_build.library(build=True) is None:
        pytest.skip("no C compiler")
    root = str(Path(__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", DEFAULTS], cwd=root, timeout=240, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("compiler", [True, False])
def test_a_look_in_inference_mode_does_not_spoil_training(compiler: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a thread that has no buffers yet."""
    if not compiler:
        monkeypatch.setattr(_cpu_build, "library", lambda *, build: None)
    net, x, found = fastscore.ScoreMLP(dim=3, width=64, depth=2), torch.randn(128, 3), []

    def run() -> None:
        with torch.inference_mode():
            found.append(fastscore.implicit_score_matching(net, x))
        loss = fastscore.implicit_score_matching(net, x)
        loss.backward()
        found.append(loss)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert len(found) == 2 and torch.equal(found[0], found[1].detach())
