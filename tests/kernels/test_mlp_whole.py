"""Whole networks in one launch, through the operations, against brute force in float64 (interpreter or a GPU)."""

from __future__ import annotations

import collections
import functools
import itertools

import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import fastscore
from fastscore.ops import mlp as ops
from fastscore.reference import mlp as reference
from tests.kernels.test_mlp_entries import ERROR, rounding
from tests.kernels.test_mlp_layers import ACTIVATIONS, DEVICE, Case, close

pytest.importorskip("triton")
from fastscore_kernels import mlp_layers, mlp_whole, table


@pytest.fixture(autouse=True)
def whole(monkeypatch):
    """Counts calls, and has nothing to fall back to."""
    called: list[str] = []
    evaluate = mlp_whole.evaluate

    def counting(mlp, x, shifts, form):
        called.append(form.kind)
        return evaluate(mlp, x, shifts, form)

    monkeypatch.setattr(mlp_whole, "evaluate", counting)
    monkeypatch.setattr(mlp_layers, "evaluate", None)
    yield called
    assert called


def probes(count: int = 3) -> ops.Probes:
    """Of signs where they are even in number, else normal, of samples that are far in their batch."""
    return ops.Probes(seed=2**63 + 8, count=count, kind="normal" if count % 2 else "rademacher", first_sample=2**33)


LIGHT = ("silu", "tanh", "softsign")  # the others take too many registers in three and more layers of an energy
CASES = {
    "estimate-2-of-8": Case(widths=(20, 24), probes=probes(8), rows=31),
    "estimate-2-residual": Case(widths=(20, 20), residuals=(1,), probes=probes(1), rows=65, dim=16),
    "estimate-3-of-1": Case(probes=probes(1), rows=32, dim=2),
    "estimate-3-one-feature": Case(rows=1, dim=1, widths=(7, 1, 5), probes=probes(2), bare=True),
    "estimate-2-widest": Case(rows=17, dim=16, widths=(128, 65), probes=probes(), bare=True),
    "estimate-2-most-features": Case(rows=17, dim=64, widths=(64, 64), residuals=(1,), probes=probes()),
    "estimate-3-widest": Case(rows=33, dim=15, widths=(33, 64, 64), residuals=(2,), probes=probes()),
    "trace-3": Case(),
    "trace-3-one-row-one-feature": Case(rows=1, dim=1, widths=(7, 1, 5)),
    "trace-3-residual-2": Case(widths=(20, 20, 18), residuals=(1,)),
    "trace-3-residual-3": Case(widths=(20, 18, 18), residuals=(2,)),
    "trace-3-fills-a-tile": Case(rows=32, dim=16, widths=(64, 64, 64), bare=True),
    "trace-3-wide": Case(rows=31, dim=17, widths=(65, 127, 64), bare=True),
    "trace-3-widest": Case(rows=17, dim=2, widths=(128, 128, 128), residuals=(1, 2)),
    "trace-3-most-features": Case(rows=17, dim=128, widths=(64, 33, 33), residuals=(2,)),
    "trace-4": Case(widths=(16, 20, 17, 18), rows=65, dim=2),
    "trace-4-residuals": Case(widths=(20, 20, 20, 20), residuals=(1, 2, 3), rows=33),
    "trace-5-residual-3": Case(widths=(20, 18, 18, 16, 20), residuals=(2,), bare=True),
    "energy-1": Case(widths=(20,), energy=True),
    "energy-1-widest": Case(widths=(128,), energy=True, rows=66, dim=18, bare=True),
    "energy-2": Case(widths=(20, 24), energy=True, rows=65),
    "energy-2-residual": Case(widths=(20, 20), energy=True, residuals=(1,), rows=32, dim=16),
    "energy-2-wide": Case(widths=(65, 127), energy=True, rows=15, dim=17),
    "energy-2-most-features": Case(widths=(33, 64), energy=True, rows=17, dim=128),
    "energy-3": Case(energy=True, bare=True, rows=1, dim=1),
    "curvature-1-of-1": Case(widths=(20,), energy=True, probes=probes(1), rows=65),
    "curvature-2-of-8": Case(widths=(20, 24), energy=True, probes=probes(8), rows=31),
    "curvature-2-most-features": Case(widths=(64, 64), residuals=(1,), energy=True, probes=probes(), rows=17, dim=64),
    "curvature-3-of-2": Case(names=LIGHT, energy=True, probes=probes(2), rows=1, dim=1, bare=True),
    "curvature-4-residuals": Case(
        names=LIGHT, widths=(20, 20, 20, 20), residuals=(1, 3), energy=True, dim=2, rows=33, probes=probes()
    ),
    "energy-4-residuals": Case(widths=(20, 20, 20, 20), residuals=(1, 2, 3), energy=True, dim=2, rows=33),
}


@pytest.mark.parametrize("name", CASES)
def test_values_match_brute_force(name):
    """On each side of every edge: samples, features and units that fill tiles, fall short of them, or need several."""
    close(CASES[name].fused()[0], CASES[name].exact()[0])


@pytest.mark.parametrize("name", ["trace-3-residual-2", "energy-2", "estimate-3-of-1", "curvature-2-of-8"])
def test_gradients_go_layer_by_layer(name):
    for found, exact in zip(CASES[name].fused("xuwb"), CASES[name].exact("xuwb"), strict=True):
        close(found, exact)


@pytest.mark.parametrize("energy", [False, True])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation(name, energy):
    case = Case(rows=5, dim=2, widths=(16, 16, 16)[energy:], names=(name,), energy=energy)
    close(case.fused()[0], case.exact()[0])


class Sizes(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation makes."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            sizes = [leaf.numel() for leaf in pytree.tree_leaves(out) if isinstance(leaf, torch.Tensor)]
            self.largest = max(self.largest, *sizes, 0)
        return out


@pytest.mark.parametrize("kind", ["trace", "estimate", "energy", "curvature"])
def test_nothing_of_a_layer_s_size_is_written(kind, monkeypatch):
    """With x and shifts read where they are; what the interpreter copies is not ours."""
    some, energy = probes() if kind in ("estimate", "curvature") else None, kind in ("energy", "curvature")
    case = Case(names=LIGHT, rows=300, dim=2, widths=(20, 20, 20), energy=energy, probes=some)
    mlp, x, shifts = case.network(case.leaves(torch.float32)[0])
    launched = []
    name = "energy_kernel" if energy else "trace_kernel"
    kernel = getattr(mlp_whole, name)
    monkeypatch.setattr(mlp_whole, name, collections.defaultdict(lambda: lambda **given: launched.append(given)))
    with Sizes() as sizes, torch.no_grad():
        case.values(mlp, x, shifts, exact=False)
    (given,) = launched
    assert 300 * 2 <= sizes.largest < 300 * 20
    assert given["x_ptr"].data_ptr() == x.data_ptr() and given["shifts"][1].data_ptr() == shifts[1].data_ptr()
    assert set(given) | {"num_warps", "num_stages"} == set(kernel.arg_names) | {"num_warps", "num_stages"}


@pytest.mark.parametrize("some", [None, ops.Probes(seed=3, count=2)], ids=["trace", "estimate"])
def test_weighted_trace(some):
    """tr(C J), v'CJv: the kernel sees C through the seeds of the tangents, or through what meets them."""
    case = Case(rows=6)
    matrix = torch.tensor([[0.5, 1.0, 0.0], [-1.0, 2.0, 0.3], [0.1, 0.0, 1.0]], dtype=torch.float64)
    results = []
    for dtype, backend in ((torch.float32, "triton"), (torch.float64, "torch")):
        mlp, x, shifts = case.network(case.leaves(dtype)[0])
        with fastscore.use_backend(backend):
            c = matrix.to(x)
            if some is None:
                results.append(ops.score_and_trace(mlp, x, shifts, weight=c))
            else:
                results.append(ops.score_and_quadratic(mlp, x, shifts, probes=some, weight=c))
    close(*results)


@pytest.mark.parametrize("energy", [False, True])
def test_strided_inputs(energy):
    """A slice of a wider first weight, transposed samples and weights, an expanded shift."""
    case = Case(rows=12, energy=energy)
    exact = case.made["u"][1][:1].expand(12, -1)
    case.made["u"][1] = exact
    groups, _ = case.leaves(torch.float32)
    wide = torch.cat([groups["w"][0], groups["w"][0]], 1)
    groups["w"][0], groups["w"][1] = wide[:, :3], groups["w"][1].t().contiguous().t()
    groups["x"], groups["u"][1] = [groups["x"][0].t().contiguous().t()], exact[:1].float().to(DEVICE).expand(12, -1)
    assert not any(t.is_contiguous() for t in (*groups["w"][:2], groups["x"][0], groups["u"][1]))
    close(case.values(*case.network(groups), exact=False), case.exact()[0])


@pytest.mark.parametrize("energy", [False, True])
def test_a_row_does_not_depend_on_its_batch(energy):
    """The same bits alone and among others; a NaN in one row stays there. (In the interpreter, NumPy's last bit.)"""
    same = torch.equal if DEVICE == "cuda" else functools.partial(torch.allclose, rtol=1e-5, atol=1e-5)
    case = Case(rows=70, dim=2, energy=energy)
    mlp, x, shifts = case.network(case.leaves(torch.float32)[0])
    every = case.values(mlp, x, shifts, exact=False)
    for rows in (slice(66, 67), slice(1, 64)):
        part = case.values(mlp, x[rows], tuple(u[rows] for u in shifts), exact=False)
        assert all(same(p, e[rows]) for p, e in zip(part, every, strict=True))
    x[3] = float("nan")
    poisoned = case.values(mlp, x, shifts, exact=False)
    keep = torch.arange(70, device=x.device) != 3
    for p, e in zip(poisoned, every, strict=True):
        assert p[3].isnan().all() and torch.equal(p[keep], e[keep])


@pytest.mark.parametrize("energy", [False, True])
def test_error_is_at_most_twice_that_of_torch(energy):
    """At float32, against float64, on every output."""
    case = Case(rows=40, dim=5, widths=(40, 40, 40), energy=energy)
    exact, fused = case.exact()[0], case.fused()[0]
    with fastscore.use_backend("torch"):
        plain = case.fused()[0]
    for i, (f, p, e) in enumerate(zip(fused, plain, exact, strict=True)):
        error, of_torch = ((t.detach().cpu().double() - e).abs().max() for t in (f, p))
        assert error <= 2 * of_torch + 1e-6 * e.abs().max(), (i, float(error), float(of_torch))


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize("power", [-10, 15])
@pytest.mark.parametrize("energy", [False, True])
def test_large_and_small_inputs(energy, power):
    case = Case(rows=4, dim=2, names=("silu", "tanh", "softsign" if energy else "gelu_tanh"), bare=True, energy=energy)
    case.made["x"] = [case.made["x"][0] * 2.0**power]
    close(case.fused()[0], case.exact()[0], 2e-5)


def _entries():
    """This device's entries; in the interpreter, those of an sm_90, over fewer features."""
    architecture = table.architecture(torch.device(DEVICE))
    for entry in table.entries():
        kind, _, depth = entry["operation"].partition("_")
        if kind in ("trace", "estimate", "energy", "curvature") and architecture in entry["architectures"]:
            dim = entry["dim"] if DEVICE == "cuda" else 2
            yield kind, int(depth), entry["precision"], entry["width"], dim


@pytest.mark.parametrize(("kind", "depth", "precision", "width", "dim"), sorted(set(_entries())))
def test_every_entry_against_float64(kind, depth, precision, width, dim):
    make = torch.Generator().manual_seed(0)
    energy, some = kind in ("energy", "curvature"), ops.Probes(seed=5, count=2)
    sizes = list(itertools.pairwise((dim, *[width] * depth, 1 if energy else dim)))
    weights = [torch.randn(n, k, generator=make, dtype=torch.float64) / k**0.5 for k, n in sizes]
    x = torch.randn(4099 if DEVICE == "cuda" else 3, dim, generator=make, dtype=torch.float64)
    names = tuple(itertools.islice(itertools.cycle(("silu", "tanh")), depth))
    found = []
    for dtype, backend in ((torch.float64, "torch"), (torch.float32, "triton")):
        mlp = reference.MLP(tuple(w.to(DEVICE, dtype) for w in weights), (None,) * (depth + 1), names, (False,) * depth)
        with fastscore.use_backend(backend), rounding(precision if backend == "triton" else "highest", DEVICE):
            y = x.to(DEVICE, dtype)
            if energy:
                found.append(ops.energy_terms(mlp, y, probes=some if kind == "curvature" else None))
            elif kind == "estimate":
                found.append(ops.score_and_quadratic(mlp, y, probes=some))
            else:
                found.append(ops.score_and_trace(mlp, y))
    for exact, made in zip(*found, strict=True):
        assert (made.double() - exact).abs().max() <= ERROR[precision] * exact.abs().max().clamp(min=1)


def test_through_the_public_functions():
    """A conditional score of three hidden layers, and an energy; and the loss where no gradient is wanted."""
    torch.manual_seed(0)
    score, energy = fastscore.ScoreMLP(dim=2, width=20, depth=3, cond_dim=1), fastscore.EnergyMLP(dim=2, width=20)
    x, cond = torch.randn(37, 2, dtype=torch.float64), torch.randn(37, 1, dtype=torch.float64)
    found = []
    for backend, dtype, device in (("torch", torch.float64, "cpu"), ("triton", torch.float32, DEVICE)):
        score.to(device, dtype), energy.to(device, dtype)
        y, c = x.to(device, dtype), cond.to(device, dtype)
        with fastscore.use_backend(backend), torch.no_grad():
            d, lap = fastscore.divergence(score, y, cond=c), fastscore.laplacian(energy, y)
            losses = (
                fastscore.implicit_score_matching(score, y, cond=c),
                fastscore.implicit_score_matching(energy.score, y),
            )
        found.append([d.score, d.trace, lap.energy, lap.score, lap.laplacian, *losses])
    close(found[1], found[0])


def test_explain_says_so(whole):
    x = torch.ones(9, 2, device=DEVICE)
    for net, of in ((fastscore.ScoreMLP(dim=2, depth=3), "divergence"), (fastscore.EnergyMLP(dim=2), "laplacian")):
        told = fastscore.explain(net.to(DEVICE), x, of=of)
        assert told.backend == "triton" and "one launch" in told.why
    net = fastscore.ScoreMLP(dim=2, width=64, depth=3).to(DEVICE)
    assert "one launch" in fastscore.explain(net, x, trace="hutchinson", n_probes=4).why
    whole.append("nothing was to run")
