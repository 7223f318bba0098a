"""Products in bfloat16, as autocast asks: against float64, beside PyTorch's own under the same autocast.

The interpreter cuts off what a GPU rounds, which doubles the error of every factor that is written.
"""

from __future__ import annotations

import pytest
import torch

import fastscore
from fastscore.ops import mlp as ops
from fastscore.ops import mlp_problem
from tests.kernels.test_mlp_layers import DEVICE, KINDS, Case

pytest.importorskip("triton")
from fastscore_kernels import mlp, mlp_layers, mlp_whole, products

CLOSED = {
    "closed-1": {"widths": (32,)},
    "closed-2": {"widths": (32, 24)},
    "closed-2-residual": {"widths": (24, 24), "residuals": (1,)},
    "closed-2-too-wide": {"widths": (257, 257), "residuals": (1,)},
}


def autocast() -> torch.autocast:
    return torch.autocast(DEVICE, torch.bfloat16)


@pytest.mark.parametrize("kind", [*CLOSED, *KINDS, "energy-1", "dual"])
def test_error_is_at_most_twice_that_of_torch(kind, monkeypatch):
    """On every output and gradient, relative to its largest entry; what comes out is float32."""
    more = {"energy-1": {"widths": (20,), "energy": True}, "dual": {"widths": (32, 24), "probes": ops.Probes(seed=3)}}
    case = Case(rows=16, dim=3, **{**CLOSED, **KINDS, **more}[kind])
    exact = case.exact("xuwb")
    narrow = case.values(*case.network(case.leaves(torch.float32)[0]), exact=False)
    with autocast():
        with fastscore.use_backend("torch"):
            plain = case.fused("xuwb")
        monkeypatch.setattr(mlp_problem.Problem, "plain", None)
        net = case.network(case.leaves(torch.float32)[0])[0]
        asked = mlp_problem.Problem(net.activations, net.residuals, case.energy, case.probes, narrow=True)
        module = asked.kernels(net, torch.ones(1, 3, device=DEVICE))
        by_kind = {"closed-2-too-wide": mlp_layers, "closed": mlp, "dual": mlp}
        assert module is by_kind.get(kind, by_kind.get(kind.split("-")[0], mlp_whole))
        fused = case.fused("xuwb")
    assert any(not torch.equal(f, n) for f, n in zip(fused[0], narrow, strict=True)), "nothing was rounded"
    for group in (0, 1):
        for i, (f, p, e) in enumerate(zip(fused[group], plain[group], exact[group], strict=True)):
            assert f.dtype == torch.float32
            error, of_torch = ((t.detach().cpu().double() - e).abs().max() for t in (f, p))
            assert error <= (2 if DEVICE == "cuda" else 4) * of_torch + 2e-3 * e.abs().max(), (
                group,
                i,
                float(error),
                float(of_torch),
            )


@pytest.mark.parametrize("kind", ["score", "estimate", "energy", "curvature"])
def test_a_training_step_under_autocast(kind):
    """The public loss takes the kernels, and leaves gradients in the parameters' own precision."""
    torch.manual_seed(1)
    energy = kind in ("energy", "curvature")
    net = (fastscore.EnergyMLP if energy else fastscore.ScoreMLP)(dim=2, width=32, depth=2).to(DEVICE)
    score, how = net.score if energy else net, {}
    if kind in ("estimate", "curvature"):
        how = {"trace": "hutchinson", "seed": 3}
    x = torch.randn(20, 2, device=DEVICE)
    found = []
    for narrow in (False, True):
        net.zero_grad()
        with torch.autocast(DEVICE, torch.bfloat16, enabled=narrow):
            assert fastscore.explain(score, x, trace=how.get("trace", "auto")).backend == "triton"
            loss = fastscore.implicit_score_matching(score, x, **how)
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in net.parameters())])
    for full, rounded in zip(*found, strict=True):
        assert rounded.dtype == torch.float32
        error = (full - rounded).abs().max() / full.abs().max().clamp(min=0.1)
        assert 0 < error < 0.06 or full.abs().max() == 0, float(error)


def test_other_autocasts_are_declined():
    x = torch.ones(2, 2, device=DEVICE)
    with torch.autocast(DEVICE, torch.float16):
        assert not ops.narrow(x)
    with autocast():
        assert ops.narrow(x)
        assert not ops.narrow(x.double())
        with fastscore.use_backend("torch"):
            assert not ops.narrow(x)


def test_products_of_bfloat16_are_summed_in_float32(device):
    left, right = (torch.randn(n, m, device=device).bfloat16() for n, m in ((64, 512), (512, 64)))
    true = left.double() @ right.double()
    assert (products.product(left, right).double() - true).norm() <= 1e-6 * true.norm()
