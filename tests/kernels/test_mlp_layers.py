"""Networks layer by layer, through the operations, against brute force in float64 (Triton's interpreter or a GPU)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

import fastscore
from fastscore.ops import mlp as ops
from fastscore.reference import activations as reference_activations
from fastscore.reference import mlp as reference
from fastscore.reference.mlp import MLP

pytest.importorskip("triton")
from fastscore_kernels import jet_layers, mlp_layers, mlp_whole

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ACTIVATIONS = ("silu", "softplus", "tanh", "gelu", "gelu_tanh", "softsign", "sine")


@dataclass
class Case:
    """A network, samples, shifts and upstream gradients, in float64 or as leaves of another dtype."""

    widths: tuple[int, ...] = (20, 24, 18)
    rows: int = 9
    dim: int = 3
    names: tuple[str, ...] = ("silu", "tanh", "gelu", "softplus", "gelu_tanh", "sine")
    residuals: tuple[int, ...] = ()
    energy: bool = False
    probes: ops.Probes | None = None
    bare: bool = False
    """No biases and no shifts."""
    made: dict[str, list[Tensor | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        make = torch.Generator().manual_seed(100 * self.dim + self.rows)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=make, dtype=torch.float64)

        layers = list(itertools.pairwise((self.dim, *self.widths, 1 if self.energy else self.dim)))
        self.made = {
            "x": [1.5 * random(self.rows, self.dim)],
            "u": [None if self.bare else 0.5 * random(self.rows, out) for _, out in layers],
            "w": [1.2 * random(out, inner) / inner**0.5 for inner, out in layers],
            "b": [None if self.bare else 0.3 * random(out) for _, out in layers],
        }
        values = self.values(*self.network(self.leaves(torch.float64)[0]), exact=True)
        self.upstream = [random(*value.shape) for value in values]

    def leaves(self, dtype: torch.dtype, needs: str = "") -> tuple[dict[str, list[Tensor | None]], list[Tensor]]:
        """All tensors by group, and those that need gradients."""
        device = "cpu" if dtype == torch.float64 else DEVICE
        groups = {
            key: [None if t is None else t.to(device, dtype, copy=True).requires_grad_(key in needs) for t in group]
            for key, group in self.made.items()
        }
        return groups, [t for group in groups.values() for t in group if t is not None and t.requires_grad]

    def network(self, groups: dict[str, list[Tensor | None]]) -> tuple[MLP, Tensor, tuple[Tensor | None, ...]]:
        """Network, x and shifts."""
        depth = len(self.widths)
        names = tuple(itertools.islice(itertools.cycle(self.names), depth))
        residuals = tuple(layer in self.residuals for layer in range(depth))
        return MLP(tuple(groups["w"]), tuple(groups["b"]), names, residuals), groups["x"][0], tuple(groups["u"])

    def values(self, mlp: MLP, x: Tensor, shifts: tuple[Tensor | None, ...], exact: bool) -> list[Tensor]:
        """What is asked of the network: by brute force (x needs gradients), or by the operations."""
        if not exact:
            if self.energy:
                return list(ops.energy_terms(mlp, x, shifts, probes=self.probes))
            if self.probes is not None:
                return list(ops.score_and_quadratic(mlp, x, shifts, probes=self.probes))
            return list(ops.score_and_trace(mlp, x, shifts))
        x = x if x.requires_grad else x.detach().requires_grad_()
        out = reference.forward(mlp, x, shifts)
        score = -torch.autograd.grad(out.sum(), x, create_graph=True)[0] if self.energy else out
        rows = [torch.autograd.grad(s.sum(), x, create_graph=True)[0] for s in score.unbind(1)]
        jacobian = torch.stack(rows, 1)
        if self.probes is not None:
            with fastscore.use_backend("torch"):
                v = self.probes.draw(slice(0, len(x)), x.detach().float()).double()
            second = torch.einsum("bki,bij,bkj->bk", v, jacobian, v)
        else:
            second = jacobian.diagonal(0, 1, 2).sum(1)
        return [out.squeeze(1), score, -second] if self.energy else [score, second]

    def exact(self, needs: str = "") -> tuple[list[Tensor], list[Tensor]]:
        """Values and gradients by brute force."""
        groups, _ = self.leaves(torch.float64, needs + "x")
        values = self.values(*self.network(groups), exact=True)
        wanted = [t for key in groups if key in needs for t in groups[key] if t is not None]
        found = torch.autograd.grad(values, wanted, self.upstream, allow_unused=True) if wanted else ()
        return values, [torch.zeros_like(t) if f is None else f for f, t in zip(found, wanted, strict=True)]

    def fused(self, needs: str = "") -> tuple[list[Tensor], list[Tensor]]:
        """The same by the kernels, in float32."""
        groups, leaves = self.leaves(torch.float32, needs)
        values = self.values(*self.network(groups), exact=False)
        upstream = [u.to(v) for u, v in zip(self.upstream, values, strict=True)]
        return values, list(torch.autograd.grad(values, leaves, upstream)) if leaves else []


def close(found: list[Tensor], exact: list[Tensor], tolerance: float = 5e-6) -> None:
    """Within some float32 roundings of the largest entry, finite everywhere."""
    assert len(found) == len(exact)
    for i, (f, e) in enumerate(zip(found, exact, strict=True)):
        assert f.shape == e.shape, i
        error = (f.detach().cpu().double() - e.detach()).abs().max() / e.detach().abs().max().clamp(min=1)
        assert error < tolerance, (i, tuple(f.shape), float(error))


@pytest.fixture(autouse=True)
def launches(monkeypatch):
    """Counts launches, so that a silent fallback fails; what one launch would do goes layer by layer here."""
    counted: list[str] = []
    launch = jet_layers._launch
    monkeypatch.setattr(mlp_whole, "supported", lambda *_: False)

    def counting(kernel, *rest):
        counted.append(kernel.__name__)
        return launch(kernel, *rest)

    monkeypatch.setattr(jet_layers, "_launch", counting)
    yield counted
    assert counted


TWO, NORMAL = ops.Probes(seed=7, count=2), ops.Probes(seed=8, count=2, kind="normal", first_sample=2**33)
CASES = {
    "trace-3": Case(),
    "trace-3-one-row-one-feature": Case(rows=1, dim=1, widths=(7, 1, 5)),
    "trace-3-residual-2": Case(widths=(20, 20, 18), residuals=(1,)),
    "trace-3-residual-3": Case(widths=(20, 18, 18), residuals=(2,)),
    "trace-4": Case(widths=(16, 20, 17, 18), rows=65, dim=2),
    "trace-4-residuals": Case(widths=(20, 20, 20, 20), residuals=(1, 2, 3)),
    "trace-5-residual-3": Case(widths=(20, 18, 18, 16, 20), residuals=(2,), bare=True),
    "trace-3-two-blocks": Case(widths=(129, 130, 128), rows=9, dim=2, bare=True),
    "trace-2-too-wide": Case(widths=(20, 257), rows=5),
    "trace-2-too-wide-residual": Case(widths=(257, 257), rows=5, residuals=(1,)),
    "trace-1-too-wide": Case(widths=(257,), rows=5),
    "estimate-1": Case(widths=(20,), probes=TWO),
    "estimate-2": Case(widths=(20, 33), probes=NORMAL, rows=33),
    "estimate-3-residuals": Case(widths=(20, 20, 20), residuals=(1, 2), probes=TWO),
    "estimate-6-residual-6": Case(widths=(16, 20, 17, 18, 19, 19), residuals=(5,), probes=NORMAL),
    "estimate-2-two-blocks": Case(widths=(130, 129), rows=17, dim=17, probes=TWO, bare=True),
    "energy-1": Case(widths=(20,), energy=True),
    "energy-2": Case(widths=(20, 24), energy=True, rows=65),
    "energy-2-residual": Case(widths=(20, 20), energy=True, residuals=(1,)),
    "energy-3": Case(energy=True, bare=True),
    "energy-4-residuals": Case(widths=(20, 20, 20, 20), residuals=(1, 2, 3), energy=True, dim=2),
    "curvature-1": Case(widths=(20,), energy=True, probes=TWO),
    "curvature-2-residual": Case(widths=(20, 20), energy=True, residuals=(1,), probes=NORMAL, rows=33),
    "curvature-3": Case(energy=True, bare=True, probes=ops.Probes(seed=9), rows=1),
    "curvature-4-residual-3": Case(widths=(16, 20, 20, 18), residuals=(2,), energy=True, probes=NORMAL, rows=65, dim=2),
    "energy-2-two-blocks": Case(widths=(130, 129), rows=9, dim=2, energy=True, bare=True),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_all_gradients_match_brute_force(name):
    """Each kind of form, depths, residual layers above and below the form, on each side of the edges of tiles."""
    for found, exact in zip(CASES[name].fused("xuwb"), CASES[name].exact("xuwb"), strict=True):
        close(found, exact)


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation(name):
    """With its third derivative, in an energy; and finite far from 0."""
    case = Case(rows=4, dim=2, widths=(16, 16), names=(name,), energy=True)
    for found, exact in zip(case.fused("xuwb"), case.exact("xuwb"), strict=True):
        close(found, exact)
    z = torch.tensor([[-1e4, -90.0, -20.0, 20.0, 90.0, 1e4]], device=DEVICE)
    layer, one = jet_layers.Layer(name, None, None), torch.ones_like(z)
    out, d, _ = jet_layers.ascend(layer, jet_layers.Jet(z, one[:, None], one), slope=True)
    dz, _, _ = jet_layers.descend(layer, jet_layers.Jet(z, one[:, None], one), jet_layers.Jet(one, one[:, None], one))
    if name != "sine":  # whose argument is reduced up to 8192 only
        assert all(t.isfinite().all() for t in (*out, d, *dz))


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_at_0_and_far_from_it(name):
    """Value, slope and curvature; a sine's argument is reduced to float32's digits up to 8192."""
    far = [-8192.0, -5000.5, 777.25, 8191.0] if name == "sine" else [-1e20, -8192.0, -100.0, 100.0, 8192.0, 1e20]
    z = torch.tensor([[0.0, -1.5, 0.25, *far]], device=DEVICE)
    layer = jet_layers.Layer(name, None, None, torch.ones(z.shape[1], device=DEVICE))
    out, slope, _ = jet_layers.ascend(layer, jet_layers.Jet(z), slope=True)
    exact = reference_activations.ACTIVATIONS[name].derivatives(z.cpu().double(), 2)
    for found, true in zip((out.value, slope, out.laplacian), exact, strict=True):
        torch.testing.assert_close(found.cpu().double(), true, rtol=2e-6, atol=2e-6)


KINDS = {
    "trace": {"widths": (18, 18, 18), "residuals": (2,)},
    "estimate": {"widths": (18, 18), "probes": TWO},
    "energy": {"widths": (18, 18), "energy": True},
    "curvature": {"widths": (18, 18), "energy": True, "probes": TWO},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("needs", ["x", "u", "w", "b"])
def test_gradients_alone(needs, kind):
    case = Case(rows=5, dim=2, **KINDS[kind])
    close(case.fused(needs)[1], case.exact(needs)[1])


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_of_the_batch_add_up(kind, monkeypatch, launches):
    """Values without gradients, too; and a NaN in one row stays there."""
    case = Case(rows=23, dim=2, **KINDS[kind])
    monkeypatch.setattr(mlp_layers, "_CHUNK", 18 * 2 * 10)
    for found, exact in zip(case.fused("xuwb"), case.exact("xuwb"), strict=True):
        close(found, exact)
    groups, _ = case.leaves(torch.float32)
    groups["x"][0][3] = float("nan")
    values = case.values(*case.network(groups), exact=False)
    keep = torch.arange(23) != 3
    close([v[keep] for v in values], [e[keep] for e in case.exact()[0]])
    assert all(v[3].isnan().all() for v in values)


@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU has no order of programs")
@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_programs_does_not_matter(kind, monkeypatch):
    from triton.runtime import interpreter

    case = Case(rows=130, dim=2, **KINDS[kind])
    forwards = case.fused("xuwb")
    monkeypatch.setattr(interpreter, "range", lambda *bounds: reversed(range(*bounds)), raising=False)
    backwards = case.fused("xuwb")
    for found, again in zip(forwards, backwards, strict=True):
        assert all(torch.equal(f, b) for f, b in zip(found, again, strict=True))


@pytest.mark.parametrize("kind", ["trace", "estimate"])
def test_weighted_trace(kind):
    """tr(C J) and v'CJv, and the gradient in C."""
    case = Case(rows=6, dim=3, **KINDS[kind])
    matrix = torch.tensor([[0.5, 1.0, 0.0], [-1.0, 2.0, 0.3], [0.1, 0.0, 1.0]], dtype=torch.float64)
    results = []
    for dtype, backend in ((torch.float32, "triton"), (torch.float64, "torch")):
        groups, leaves = case.leaves(dtype, "xw")
        c = matrix.to(leaves[0]).requires_grad_()
        mlp, x, shifts = case.network(groups)
        with fastscore.use_backend(backend):
            if kind == "trace":
                values = ops.score_and_trace(mlp, x, shifts, weight=c)
            else:
                values = ops.score_and_quadratic(mlp, x, shifts, probes=TWO, weight=c)
            found = torch.autograd.grad(values, [*leaves, c], [u.to(c) for u in case.upstream])
        results.append([*values, *(f.cpu() for f in found)])
    close(*results)


def test_error_is_at_most_twice_that_of_torch():
    """At float32, against float64, on every output and gradient."""
    for kind in KINDS:
        case = Case(rows=20, dim=5, **{**KINDS[kind], "widths": (40,) * len(KINDS[kind]["widths"])})
        exact, fused = case.exact("xuwb"), case.fused("xuwb")
        with fastscore.use_backend("torch"):
            plain = case.fused("xuwb")
        for group in (0, 1):
            for i, (f, p, e) in enumerate(zip(fused[group], plain[group], exact[group], strict=True)):
                error, of_torch = ((t.detach().cpu().double() - e).abs().max() for t in (f, p))
                assert error <= 2 * of_torch + 1e-6 * e.abs().max(), (kind, i, float(error), float(of_torch))


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize("power", [-10, 15])
def test_large_and_small_inputs(power):
    for kind in KINDS:
        case = Case(rows=4, dim=2, names=("silu", "gelu_tanh"), bare=True, **KINDS[kind])
        case.made["x"] = [case.made["x"][0] * 2.0**power]
        found = case.fused("w")
        if case.energy and power > 0:  # autograd's own third derivative of torch's GELU is NaN there
            assert all(t.isfinite().all() for group in found for t in group)
            continue
        for group, exact in zip(found, case.exact("w"), strict=True):
            close(group, exact, 2e-5)


LOSSES = {
    "trace": (lambda: fastscore.ScoreMLP(dim=2, width=20, depth=3), {}),
    "estimate": (
        lambda: fastscore.ScoreMLP(dim=2, width=20, depth=2),
        {"trace": "hutchinson", "n_probes": 2, "seed": 3},
    ),
    "energy": (lambda: fastscore.EnergyMLP(dim=2, width=20, depth=2), {}),
    "curvature": (
        lambda: fastscore.EnergyMLP(dim=2, width=20, depth=3),
        {"trace": "hutchinson", "n_probes": 2, "seed": 3},
    ),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_a_training_step_through_the_public_loss(kind, launches):
    """The loss that computes its gradients in its forward, against the same on the PyTorch path in float64."""
    make, how = LOSSES[kind]
    torch.manual_seed(0)
    net = make()
    x = torch.randn(37, 2, dtype=torch.float64)
    found = {}
    for backend, dtype, device in (("torch", torch.float64, "cpu"), ("triton", torch.float32, DEVICE)):
        net.to(device, dtype).zero_grad()
        with fastscore.use_backend(backend):
            score = net.score if isinstance(net, fastscore.EnergyMLP) else net
            loss = fastscore.implicit_score_matching(score, x.to(device, dtype), **how)
            loss.backward()
        found[backend] = [loss.detach(), *(p.grad.clone() for p in net.parameters())]
    assert "forward_kernel" in launches and "backward_kernel" in launches
    close(found["triton"], [t.cpu() for t in found["torch"]])
