"""Which networks the fused kernels take; what they decline comes out right all the same."""

from __future__ import annotations

import copy
import itertools
import subprocess
import sys

import pytest
import torch

import fastscore
from fastscore.ops import mlp as ops
from fastscore.ops import mlp_problem
from fastscore.reference import mlp as reference
from fastscore.reference.mlp import MLP

pytest.importorskip("triton")
from fastscore_kernels import mlp as kernels
from fastscore_kernels import mlp_layers, mlp_whole, table


def network(*sizes: int, dtype: torch.dtype = torch.float32, device: torch.device, name: str = "silu") -> MLP:
    make = torch.Generator().manual_seed(len(sizes))
    weights = [torch.randn(b, a, generator=make).to(device, dtype) / a**0.5 for a, b in itertools.pairwise(sizes)]
    hidden = len(sizes) - 2
    return MLP(tuple(weights), (None,) * len(weights), (name,) * hidden, (False,) * hidden)


DECLINED = {
    "float64": ((2, 8, 8, 2), torch.float64, None),
    "three hidden layers": ((2, 8, 8, 8, 2), torch.float32, mlp_whole),
    "three, too wide": ((2, 8, 129, 8, 2), torch.float32, mlp_layers),
    "three, most features": ((128, 8, 8, 8, 128), torch.float32, mlp_whole),
    "three, too many features": ((129, 8, 8, 8, 129), torch.float32, mlp_layers),
    "seven": ((2, *[8] * 7, 2), torch.float32, mlp_layers),
    "too wide": ((2, 8, 257, 2), torch.float32, mlp_layers),
    "too many features": ((129, 8, 8, 129), torch.float32, mlp_layers),
}


@pytest.mark.parametrize("why", DECLINED)
def test_what_is_declined_is_right(why, device, monkeypatch):
    """It goes layer by layer, or to PyTorch where that is declined, too."""
    sizes, dtype, instead = DECLINED[why]
    mlp, x = network(*sizes, dtype=dtype, device=device), torch.ones(3, sizes[0], dtype=dtype, device=device)
    monkeypatch.setattr(kernels, "_launch", None)
    assert not kernels.supported(mlp, x, False, "mlp")
    assert mlp_problem.Problem(mlp.activations, mlp.residuals).kernels(mlp, x) is instead
    score, trace = ops.score_and_trace(mlp, x)
    exact = reference.score_and_trace(mlp, x)
    torch.testing.assert_close(score, exact[0])
    torch.testing.assert_close(trace, exact[1])


@pytest.mark.parametrize(
    ("depth", "how"), [(2, {}), (3, {}), (2, {"trace": "hutchinson", "n_probes": 8}), (2, {"trace": "hutchinson"})]
)
def test_explain_says_so(depth, how, device):
    net = fastscore.ScoreMLP(dim=2, width=128, depth=depth).to(device)
    assert fastscore.explain(net, torch.ones(9, 2, device=device), **how).backend == "triton"
    with fastscore.use_backend("torch"):
        assert fastscore.explain(net, torch.ones(9, 2, device=device), **how).backend == "torch"


def edges():
    for depth in range(1, 7):
        for width, dim in ((32, 1), (64, 2), (65, 17), (128, 64), (129, 65), (256, 128)):
            if depth < 4 or dim < 64 or (width == 256 and depth == 6):  # the others are the same paths, and slow
                yield depth, width, dim


@pytest.mark.parametrize(("depth", "width", "dim"), list(edges()))
def test_every_size_is_right_whatever_takes_it(depth, width, dim, device):
    """Depth 1-6, width 32-256, dim 1-128, exact and estimated; what does not fit on chip falls by itself."""
    torch.manual_seed(depth)
    net = fastscore.ScoreMLP(dim=dim, width=width, depth=depth).to(device)
    x = torch.randn(3, dim).to(device)
    for how in ({"trace": "exact"}, {"trace": "hutchinson", "n_probes": 2, "seed": 1}):
        with torch.no_grad():
            made = fastscore.divergence(net, x, **how)
            with fastscore.use_backend("torch"):
                true = fastscore.divergence(copy.deepcopy(net).double(), x.double(), **how)
        assert fastscore.explain(net, x, **{k: v for k, v in how.items() if k != "seed"}).backend == "triton"
        for found, exact in ((made.score, true.score), (made.trace, true.trace)):
            assert (found - exact).abs().max() < 1e-5 * exact.abs().max().clamp(min=1)


@pytest.mark.parametrize("sizes", [(2, 8, 8, 2), (1, 1, 1), (64, 256, 256, 64), (3, 20, 3), (2, 64, 129, 2)])
def test_what_is_supported(sizes, device):
    x = torch.ones(1, sizes[0], device=device)
    assert kernels.supported(network(*sizes, device=device), x, False, "mlp")
    assert not kernels.supported(network(*sizes, device=device, name="relu"), x, False, "mlp")


def test_energies_whose_curvatures_take_too_many_registers_go_layer_by_layer(device):
    for depth, module in ((2, mlp_whole), (3, mlp_layers)):
        mlp = network(2, *[8] * depth, 1, device=device, name="gelu_tanh")
        problem = mlp_problem.Problem(mlp.activations, mlp.residuals, energy=True)
        assert problem.kernels(mlp, torch.ones(1, 2, device=device)) is module


def test_the_torch_backend_launches_nothing(device, monkeypatch):
    monkeypatch.setattr(kernels, "_launch", None)
    with fastscore.use_backend("torch"):
        ops.score_and_trace(network(2, 8, 8, 2, device=device), torch.ones(3, 2, device=device))


def test_precision_follows_torch(device):
    """ "highest" keeps float32's digits, "high" rounds to TF32."""
    try:
        torch.set_float32_matmul_precision("high")
        assert kernels.precision(torch.device("cpu"), False) == "tf32"
        torch.set_float32_matmul_precision("highest")
        assert kernels.precision(torch.device("cpu"), False) == "tf32x3"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_the_smallest_entry_that_fits():
    cpu = torch.device("cpu")
    small = table.options("mlp_upper", cpu, "tf32", 64, 16)
    assert small == table.options("mlp_upper", cpu, "tf32", 33, 2)
    assert small["BLOCK"] == 64
    assert table.options("mlp_upper", cpu, "tf32", 65, 2)["BLOCK"] == 128
    assert table.options("mlp_upper", cpu, "tf32", 257, 2) is None
    assert table.options("mlp_upper", cpu, "tf32", 64, 129) is None


TOLD = """
import torch
from fastscore_kernels.launch import float32_products

backends, made = torch.backends, [float32_products()]
for legacy in ("medium", "high", "highest"):
    torch.set_float32_matmul_precision(legacy)
    made.append(float32_products())
backends.cuda.matmul.fp32_precision = "tf32"
made.append(float32_products())
torch.set_float32_matmul_precision("medium")
backends.cuda.matmul.fp32_precision = "ieee"
made.append(float32_products())
print(*made)
"""


def test_both_ways_to_tell_torch_of_tf32_are_heard():
    """In a process of its own: torch does not take the newer way back."""
    done = subprocess.run([sys.executable, "-c", TOLD], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["highest", "medium", "high", "highest", "high", "highest"]
