"""Every entry of the launch table at its largest sizes against float64, and the same bits from every repeat."""

from __future__ import annotations

import pytest
import torch

import fastscore
from bench.tune import rounding
from fastscore.ops import mlp as ops
from fastscore.reference import mlp as reference
from tests.kernels.test_mlp_layers import DEVICE, KINDS, Case

pytest.importorskip("triton")
from fastscore_kernels import table

ROWS, REPEATS = (4099, 250) if DEVICE == "cuda" else (3, 1)
ERROR = {"ieee": 2e-5, "tf32x3": 2e-5, "tf32": 1e-2, "bf16": 8e-2}


def _entries():
    """Precision, width and dim of this device's entries; in the interpreter, of the narrow ones of an sm_90."""
    architecture = table.architecture(torch.device(DEVICE))
    for entry in table.entries():
        here = entry["operation"] == "mlp_forward" and architecture in entry["architectures"]
        if here and (DEVICE == "cuda" or entry["width"] == 64):
            yield entry["precision"], entry["width"], entry["dim"]


@pytest.mark.parametrize(("precision", "width", "dim"), sorted(set(_entries())))
def test_every_entry_against_float64(precision, width, dim):
    make = torch.Generator().manual_seed(0)
    sizes = ((width, dim), (width, width), (dim, width))
    weights = [torch.randn(*s, generator=make, dtype=torch.float64) / s[1] ** 0.5 for s in sizes]
    x = torch.randn(ROWS, dim, generator=make, dtype=torch.float64)
    found = []
    for dtype, backend in ((torch.float64, "torch"), (torch.float32, "triton")):
        leaves = [w.to(DEVICE, dtype).requires_grad_() for w in weights]
        mlp = reference.MLP(tuple(leaves), (None,) * 3, ("silu", "tanh"), (False, False))
        with fastscore.use_backend(backend), rounding(precision if backend == "triton" else "highest", DEVICE):
            values = ops.score_and_trace(mlp, x.to(DEVICE, dtype))
            total = values[0].square().sum() / 2 + values[1].sum()
            found.append([*values, *torch.autograd.grad(total, leaves)])
    for exact, made in zip(*found, strict=True):
        assert (made.double() - exact).abs().max() <= ERROR[precision] * exact.abs().max()


@pytest.mark.parametrize("precision", ["highest", "tf32", "bf16"] if DEVICE == "cuda" else ["bf16"])
@pytest.mark.parametrize("kind", ["closed", "dual", *KINDS])
def test_every_repeat_has_the_same_bits(kind, precision):
    probes = ops.Probes(seed=3) if kind == "dual" else None
    case = Case(rows=130 if DEVICE == "cuda" else 9, dim=2, **KINDS.get(kind, {"widths": (40, 33), "probes": probes}))
    with rounding(precision, DEVICE):
        first = case.fused("xuwb")
        for _ in range(REPEATS):
            again = case.fused("xuwb")
            for before, after in zip(first, again, strict=True):
                assert all(torch.equal(b, a) for b, a in zip(before, after, strict=True))
