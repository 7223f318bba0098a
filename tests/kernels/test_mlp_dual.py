"""Hutchinson's estimate along one probe, two hidden layers on chip, against brute force in float64."""

from __future__ import annotations

import pytest
import torch

import fastscore
from fastscore.ops import mlp as ops
from tests.kernels.test_mlp_layers import DEVICE, Case, close

pytest.importorskip("triton")
from fastscore_kernels import mlp as kernels
from fastscore_kernels import mlp_whole

SIGNS, NORMAL = ops.Probes(seed=7), ops.Probes(seed=8, kind="normal", first_sample=2**33)


@pytest.fixture(autouse=True)
def launches(monkeypatch):
    """Counts launches, so that a silent fallback fails."""
    counted: list[str] = []
    launch = kernels._launch

    def counting(kernel, operation, layers, *rest):
        counted.append(operation if layers.dual else "not dual")
        return launch(kernel, operation, layers, *rest)

    monkeypatch.setattr(kernels, "_launch", counting)
    yield counted
    assert counted


SHAPES = [
    {"rows": 1, "dim": 1, "widths": (7, 5)},
    {"rows": 64, "dim": 2, "widths": (32, 32)},
    {"rows": 65, "dim": 16, "widths": (16, 33), "bare": True},
    {"rows": 5, "dim": 7, "widths": (48, 129)},
    {"rows": 5, "dim": 2, "widths": (129, 20), "bare": True},
    {"rows": 3, "dim": 5, "widths": (24, 24)},
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "-".join(f"{k}{v}" for k, v in s.items()).replace(" ", ""))
def test_values_and_all_gradients_match_brute_force(shape, launches):
    """On each side of every edge: rows, features and units that fill tiles, fall short of them, or need several."""
    case = Case(**shape, probes=NORMAL if shape["rows"] % 2 else SIGNS)
    for found, exact in zip(case.fused("xuwb"), case.exact("xuwb"), strict=True):
        close(found, exact)
    assert launches == ["forward", "upper", "lower"]


@pytest.mark.parametrize("needs", ["x", "w"])
def test_subsets_of_gradients(needs):
    case = Case(rows=5, dim=2, widths=(18, 18), probes=SIGNS)
    close(case.fused(needs)[1], case.exact(needs)[1])


def test_chunks_of_the_batch_add_up(monkeypatch, launches):
    case = Case(rows=23, dim=2, widths=(24, 24), probes=NORMAL)
    monkeypatch.setattr(kernels, "_CHUNK", 24 * 10)
    close(case.fused("xuwb")[1], case.exact("xuwb")[1])
    assert launches == ["forward", *["upper", "lower"] * 3]


@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU has no order of programs")
def test_the_order_of_programs_does_not_matter(monkeypatch):
    from triton.runtime import interpreter

    case = Case(rows=130, dim=2, widths=(20, 130), probes=SIGNS)
    forwards = case.fused("xuwb")
    monkeypatch.setattr(interpreter, "range", lambda *bounds: reversed(range(*bounds)), raising=False)
    backwards = case.fused("xuwb")
    for found, again in zip(forwards, backwards, strict=True):
        assert all(torch.equal(f, b) for f, b in zip(found, again, strict=True))


@pytest.mark.parametrize("widths", [(20, 24), (48, 128)])
def test_several_probes_add_up(widths, launches, monkeypatch):
    """In large batches one launch of each kernel a probe and chunk, and all forms in one before them."""
    case = Case(rows=23, dim=3, widths=widths, probes=ops.Probes(seed=9, count=3, kind="normal"))
    monkeypatch.setattr(mlp_whole, "_MANY", 23)
    monkeypatch.setattr(kernels, "_CHUNK", max(widths) * 12)
    for found, exact in zip(case.fused("xuwb"), case.exact("xuwb"), strict=True):
        close(found, exact)
    assert launches == ["upper", "lower"] * 3 * 2


def test_weighted_trace():
    """v'CJv, and the gradient in C."""
    case = Case(rows=6, dim=3, widths=(20, 24), probes=SIGNS)
    matrix = torch.tensor([[0.5, 1.0, 0.0], [-1.0, 2.0, 0.3], [0.1, 0.0, 1.0]], dtype=torch.float64)
    results = []
    for dtype, backend in ((torch.float32, "triton"), (torch.float64, "torch")):
        groups, leaves = case.leaves(dtype, "xw")
        c = matrix.to(leaves[0]).requires_grad_()
        mlp, x, shifts = case.network(groups)
        with fastscore.use_backend(backend):
            values = ops.score_and_quadratic(mlp, x, shifts, probes=SIGNS, weight=c)
            found = torch.autograd.grad(values, [*leaves, c], [u.to(c) for u in case.upstream])
        results.append([*values, *(f.cpu() for f in found)])
    close(*results)


@pytest.mark.parametrize("count", [1, 3])
def test_a_training_step_through_the_public_loss(launches, count, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(mlp_whole, "_MANY", 37)
    net = fastscore.ScoreMLP(dim=2, width=20, depth=2)
    x = torch.randn(37, 2, dtype=torch.float64)
    found = {}
    for backend, dtype, device in (("torch", torch.float64, "cpu"), ("triton", torch.float32, DEVICE)):
        net.to(device, dtype).zero_grad()
        with fastscore.use_backend(backend):
            loss = fastscore.implicit_score_matching(
                net, x.to(device, dtype), trace="hutchinson", n_probes=count, seed=3
            )
            loss.backward()
        found[backend] = [loss.detach(), *(p.grad.clone() for p in net.parameters())]
    assert launches == ["forward"] * (count == 1) + ["upper", "lower"] * count
    close(found["triton"], [t.cpu() for t in found["torch"]])
