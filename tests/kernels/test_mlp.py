"""The fused networks, through the operations, against brute force in float64 (Triton's interpreter or a GPU)."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from torch import Tensor

import fastscore
from fastscore.ops import mlp as ops
from fastscore.reference import mlp as reference
from fastscore.reference.mlp import MLP

pytest.importorskip("triton")
from fastscore_kernels import mlp as kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ACTIVATIONS = ("silu", "softplus", "tanh", "gelu", "gelu_tanh", "softsign", "sine")


class Case:
    """A network, samples, shifts and upstream gradients in float64; `cast` gives leaves of another dtype."""

    def __init__(
        self, rows=9, dim=3, widths=(20, 36), names=("silu", "tanh"), shifted=True, residual=False, biased=True
    ):
        make = torch.Generator().manual_seed(1000 * dim + rows)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=make, dtype=torch.float64)

        sizes = (dim, *widths, dim)
        layers = list(itertools.pairwise(sizes))
        self.names, self.residuals = names[: len(widths)], (False, residual)[: len(widths)]
        self.x = 1.5 * random(rows, dim)
        self.shifts = [0.5 * random(rows, out) if shifted else None for _, out in layers]
        self.weights = [1.2 * random(out, inner) / inner**0.5 for inner, out in layers]
        self.biases = [0.3 * random(out) if biased else None for _, out in layers]
        self.ds, self.g = random(rows, dim), random(rows)

    def tensors(self, dtype: torch.dtype, needs: str = "") -> tuple[list[Tensor | None], list[Tensor | None]]:
        """The tensors `(x, *shifts, *weights, *biases)`, and of these the leaves that need gradients."""
        device = "cpu" if dtype == torch.float64 else DEVICE
        groups = {"x": [self.x], "u": self.shifts, "w": self.weights, "b": self.biases}
        flat: list[Tensor | None] = []
        for key, group in groups.items():
            for t in group:
                flat.append(None if t is None else t.to(device, dtype, copy=True).requires_grad_(key in needs))
        return flat, [t for t in flat if t is not None and t.requires_grad]

    def network(self, flat: list[Tensor | None]) -> tuple[MLP, Tensor, tuple[Tensor | None, ...]]:
        """Network, x and shifts from the flat list."""
        x, size = flat[0], len(self.weights)
        shifts, weights, biases = (tuple(flat[1 + i * size : 1 + (i + 1) * size]) for i in range(3))
        return MLP(weights, biases, self.names, self.residuals), x, shifts

    def exact(self, needs: str = "") -> tuple[list[Tensor], list[Tensor]]:
        """Values and gradients by brute force in float64: the Jacobian, one autograd row at a time."""
        flat, leaves = self.tensors(torch.float64, needs + "x")
        mlp, x, shifts = self.network(flat)
        score = reference.forward(mlp, x, shifts)
        trace = sum(torch.autograd.grad(score[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(x.shape[1]))
        wanted = leaves if "x" in needs else leaves[1:]
        total = (score * self.ds).sum() + (trace * self.g).sum()
        found = torch.autograd.grad(total, wanted, allow_unused=True) if wanted else ()
        return [score, trace], [torch.zeros_like(t) if f is None else f for f, t in zip(found, wanted, strict=True)]

    def fused(self, needs: str = "") -> tuple[list[Tensor], list[Tensor]]:
        """The same by the kernels, in float32."""
        flat, leaves = self.tensors(torch.float32, needs)
        mlp, x, shifts = self.network(flat)
        with fastscore.use_backend("triton"):
            score, trace = ops.score_and_trace(mlp, x, shifts)
            gradients = ()
            if leaves:
                gradients = torch.autograd.grad((score, trace), leaves, (self.ds.to(score), self.g.to(trace)))
        return [score, trace], list(gradients)


def close(found: list[Tensor], exact: list[Tensor]) -> None:
    """Within some float32 roundings of the largest entry, finite everywhere."""
    assert len(found) == len(exact)
    for i, (f, e) in enumerate(zip(found, exact, strict=True)):
        assert f.shape == e.shape, i
        error = (f.detach().cpu().double() - e.detach()).abs().max() / e.detach().abs().max().clamp(min=1)
        assert error < 5e-6, (i, tuple(f.shape), float(error))


@pytest.fixture(autouse=True)
def launches(monkeypatch):
    """Counts launches, so that a silent fallback fails."""
    counted: list[str] = []
    launch = kernels._launch

    def counting(kernel, operation, *rest):
        counted.append(operation)
        return launch(kernel, operation, *rest)

    monkeypatch.setattr(kernels, "_launch", counting)
    yield counted
    assert counted


SHAPES = [
    {"rows": 1, "dim": 1, "widths": (7, 5)},
    {"rows": 63, "dim": 2, "widths": (32, 32)},
    {"rows": 64, "dim": 3, "widths": (33, 16)},
    {"rows": 65, "dim": 16, "widths": (16, 33), "shifted": False},
    {"rows": 5, "dim": 17, "widths": (48, 129), "shifted": False},
    {"rows": 5, "dim": 2, "widths": (129, 20)},
    {"rows": 70, "dim": 5, "widths": (24,)},
    {"rows": 3, "dim": 33, "widths": (130,), "shifted": False},
    {"rows": 5, "dim": 3, "widths": (40, 40), "residual": True},
    {"rows": 66, "dim": 2, "widths": (130, 130), "residual": True, "shifted": False},
    {"rows": 5, "dim": 4, "widths": (20, 24), "biased": False},
    {"rows": 5, "dim": 4, "widths": (20,), "biased": False, "shifted": False},
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "-".join(f"{k}{v}" for k, v in s.items()).replace(" ", ""))
def test_values_and_all_gradients_match_brute_force(shape):
    """On each side of every edge: rows, features and units that fill tiles, fall short of them, or need several."""
    case = Case(**shape)
    for found, exact in zip(case.fused("xuwb"), case.exact("xuwb"), strict=True):
        close(found, exact)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation(name, depth):
    case = Case(rows=20, dim=2, widths=(16, 16)[:depth], names=(name, name))
    for found, exact in zip(case.fused("xuwb"), case.exact("xuwb"), strict=True):
        close(found, exact)


@pytest.mark.parametrize("needs", ["".join(s) for n in (1, 2, 3) for s in itertools.combinations("xuwb", n)])
@pytest.mark.parametrize("widths", [(18,), (18, 18)])
def test_every_subset_of_gradients(needs, widths):
    case = Case(rows=5, dim=2, widths=widths, residual=len(widths) == 2)
    close(case.fused(needs)[1], case.exact(needs)[1])


def test_loss_and_gradients_of_the_fused_loss(launches):
    """The loss that computes its gradients in its forward: upstream gradients come from the scores of this pass."""
    case = Case(rows=67, dim=2, widths=(20, 24))
    flat, leaves = case.tensors(torch.float64, "xuwb")
    score, trace = reference.score_and_trace(*case.network(flat))
    exact = 0.3 * score.square().sum() + 0.7 * trace.sum()
    flat, leaves32 = case.tensors(torch.float32, "xuwb")
    with fastscore.use_backend("triton"):
        loss, *_ = ops.implicit_loss(*case.network(flat), square=0.3, trace=0.7)
    assert launches == ["forward", "upper", "lower"]
    close([loss], [exact])
    close(list(torch.autograd.grad(2 * loss, leaves32)), list(torch.autograd.grad(2 * exact, leaves)))


def test_error_is_at_most_twice_that_of_torch():
    """At float32, against float64, on every output and gradient of a batch."""
    case = Case(rows=130, dim=5, widths=(64, 64))
    values, gradients = case.exact("xuwb")
    fused = [*case.fused("xuwb")[0], *case.fused("xuwb")[1]]
    flat, leaves = case.tensors(torch.float32, "xuwb")
    with fastscore.use_backend("torch"):
        plain = reference.score_and_trace(*case.network(flat))
    upstream = (case.ds.to(plain[0]), case.g.to(plain[1]))
    plain = [*plain, *torch.autograd.grad(plain, leaves, upstream)]
    for i, (f, p, e) in enumerate(zip(fused, plain, [*values, *gradients], strict=True)):
        error, of_torch = ((t.detach().cpu().double() - e).abs().max() for t in (f, p))
        assert error <= 2 * of_torch + 1e-6 * e.abs().max(), (i, float(error), float(of_torch))


@pytest.mark.parametrize("residual", [False, True])
def test_chunks_of_the_batch_add_up(monkeypatch, launches, residual):
    case = Case(rows=23, dim=2, widths=(24, 24), residual=residual)
    monkeypatch.setattr(kernels, "_CHUNK", 24 * 10)
    close(case.fused("xuwb")[1], case.exact("xuwb")[1])
    assert launches == ["forward", *["upper", "lower"] * 3]


@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU has no order of programs")
def test_the_order_of_programs_does_not_matter(monkeypatch):
    """No program reads what another writes in the same launch."""
    from triton.runtime import interpreter

    case = Case(rows=130, dim=2, widths=(20, 130))
    forwards = case.fused("xuwb")
    monkeypatch.setattr(interpreter, "range", lambda n: reversed(range(n)), raising=False)
    backwards = case.fused("xuwb")
    assert all(
        torch.equal(f, b) for f, b in zip([*forwards[0], *forwards[1]], [*backwards[0], *backwards[1]], strict=True)
    )


def test_weighted_trace():
    """tr(C J): the kernels see C through M and c, its gradient through theirs."""
    case = Case(rows=6, dim=3, widths=(20, 24), residual=False)
    matrix = torch.tensor([[0.5, 1.0, 0.0], [-1.0, 2.0, 0.3], [0.1, 0.0, 1.0]], dtype=torch.float64)
    results = []
    for dtype, backend in ((torch.float32, "triton"), (torch.float64, "torch")):
        flat, leaves = case.tensors(dtype, "xw")
        c = matrix.to(leaves[0]).requires_grad_()
        with fastscore.use_backend(backend):
            values = ops.score_and_trace(*case.network(flat), weight=c)
            found = torch.autograd.grad(values, [*leaves, c], [case.ds.to(leaves[0]), case.g.to(leaves[0])])
        results.append([*values, *(f.cpu() for f in found)])
    close(*results)


def test_strided_inputs_and_gradients():
    """A slice of a wider first weight, transposed samples, an expanded shift, and broadcast upstream gradients."""
    case = Case(rows=12, dim=3, widths=(20, 24))
    case.weights[0] = torch.cat([case.weights[0], torch.ones(20, 2)], 1)[:, :3]
    case.shifts[1] = case.shifts[1][:1].expand(12, -1)
    case.x = case.x.t().contiguous().t()
    case.ds, case.g = case.ds[:1].expand(12, -1), torch.ones((), dtype=torch.float64).expand(12)
    flat, leaves = case.tensors(torch.float64, "xw")
    exact = torch.autograd.grad(reference.score_and_trace(*case.network(flat)), leaves, (case.ds, case.g))
    flat, _ = case.tensors(torch.float32)
    flat[0] = case.x.float().to(DEVICE).requires_grad_()
    wide = torch.cat([case.weights[0], torch.ones(20, 2)], 1).float().to(DEVICE).requires_grad_()
    flat[4] = wide[:, :3]
    flat[2] = case.shifts[1][:1].float().to(DEVICE).expand(12, -1)
    with fastscore.use_backend("triton"):
        score, trace = ops.score_and_trace(*case.network(flat))
        upstream = (case.ds[:1].to(score).expand(12, -1), torch.ones((), device=DEVICE).expand(12))
        found = torch.autograd.grad((score, trace), (flat[0], wide), upstream)
    close([found[0], found[1][:, :3]], list(exact[:2]))


def test_a_row_does_not_depend_on_its_batch():
    """The same bits alone and among others, whatever tile it falls in; a NaN in one row stays there.

    (The interpreter's products are NumPy's, whose last bit depends on where in a tile a row is.)
    """
    same = torch.equal if DEVICE == "cuda" else functools.partial(torch.allclose, rtol=1e-5, atol=1e-6)
    case = Case(rows=70, dim=2, widths=(20, 24))
    flat, _ = case.tensors(torch.float32)
    mlp, x, shifts = case.network(flat)
    with fastscore.use_backend("triton"):
        score, trace = ops.score_and_trace(mlp, x, shifts)
        for rows in (slice(66, 67), slice(1, 64)):
            part = ops.score_and_trace(mlp, x[rows], [None if u is None else u[rows] for u in shifts])
            assert same(part[0], score[rows]) and same(part[1], trace[rows])
        x[3] = float("nan")
        poisoned = ops.score_and_trace(mlp, x, shifts)
    keep = torch.arange(70, device=x.device) != 3
    assert poisoned[0][3].isnan().all() and poisoned[1][3].isnan()
    assert torch.equal(poisoned[0][keep], score[keep]) and torch.equal(poisoned[1][keep], trace[keep])


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_large_and_small_inputs():
    """Inputs from 2^-10 to 2^15: finite, and as near as float32 allows."""
    for power in (-10, 0, 15):
        case = Case(rows=8, dim=2, widths=(20, 24), names=("silu", "gelu_tanh"), shifted=False)
        case.x = case.x * 2.0**power
        found, exact = case.fused("w"), case.exact("w")
        for f, e in zip([*found[0], *found[1]], [*exact[0], *exact[1]], strict=True):
            error = (f.detach().cpu().double() - e.detach()).abs().max() / e.detach().abs().max().clamp(min=1)
            assert error < 2e-5


def test_second_derivatives_are_right():
    """A gradient that is differentiated again is not made by kernels autograd cannot see into."""
    case = Case(rows=5, dim=2, widths=(8, 8), shifted=False)
    results = []
    for dtype, backend in ((torch.float32, "triton"), (torch.float64, "torch")):
        flat, leaves = case.tensors(dtype, "xw")
        with fastscore.use_backend(backend):
            score, trace = ops.score_and_trace(*case.network(flat))
            (first,) = torch.autograd.grad(score.sum() + trace.sum(), leaves[0], create_graph=True)
            results.append(list(torch.autograd.grad(first.square().sum(), leaves, allow_unused=True)))
    close([f for f in results[0] if f is not None], [e for e in results[1] if e is not None])


def test_a_training_step_through_the_public_loss(launches):
    """A user's network and loss, the same gradients as on the torch backend."""
    torch.manual_seed(3)
    net, x = fastscore.ScoreMLP(2, width=24, depth=2).to(DEVICE), torch.randn(9, 2, device=DEVICE)
    found = {}
    for backend in ("triton", "torch"):
        net.zero_grad()
        with fastscore.use_backend(backend):
            loss = fastscore.implicit_score_matching(net, x)
            loss.backward()
        found[backend] = [loss.detach(), *(p.grad.clone() for p in net.parameters())]
    assert launches == ["forward", "upper", "lower"]
    close(found["triton"], [t.double().cpu() for t in found["torch"]])
