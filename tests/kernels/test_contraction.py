"""The contraction's kernels against the reference: every branch of the tile, dtypes, layouts, splits, gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

import fastscore
from fastscore import use_backend
from fastscore.ops.contraction import Contraction, Drawn
from fastscore.reference import contraction as reference
from fastscore_kernels import contraction as kernels

# (K, B, *event): ragged in chains, groups, lanes and words; one and several programs in each direction.
SHAPES = [
    (1, 1, 1), (2, 3, 2), (1, 5, 3), (3, 2, 4), (1, 33, 17), (2, 7, 64), (1, 3, 130), (1, 130, 3),
    (2, 2, 4099), (1, 2, 3, 4, 5), (1, 1025, 1), (1, 2, 127), (1, 2, 129),
]  # fmt: skip
KINDS = ["rademacher", "normal"]


def drawn(kind, dtype):
    return Drawn(kind, dtype, 2**63 + 11, 2**32 - 2, 2**32 - 2)


def made(shape, dtype, device):
    make = torch.Generator().manual_seed(sum(shape))
    p = torch.randn(shape, generator=make, dtype=torch.float64).to(dtype).to(device)
    return torch.randn(shape[1:], generator=make, dtype=torch.float64).to(dtype).to(device), p


def exact(s, p, how):
    """In float64, with the probes as they are drawn."""
    with use_backend("torch"):
        v = how.draw(p.shape, torch.device("cpu")).double()
    return reference.contraction(s.cpu().double(), p.cpu().double(), v)


def close(found, true, scale, dtype, loose=0.0):
    """Within some roundings of the sum's largest terms, and `loose`."""
    eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    assert ((found.cpu().double() - true).abs() <= 4 * eps * scale + loose).all()


def flipped(p, how):
    """What one normal probe does that is rounded to half the other way: a GPU's logarithm is not the host's."""
    with use_backend("torch"):
        v = how.draw(p.shape, torch.device("cpu")).double()
    return 2.0**-10 * (v * p.cpu().double()).abs().flatten(2).amax(2)


def alike(found, true, kind):
    """Equal; normal probes of two kernels that a GPU's compiler was given one by one, nearly."""
    if kind == "rademacher" or found.device.type == "cpu":
        assert torch.equal(found, true)
    else:
        torch.testing.assert_close(found, true)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_values(device, shape, kind, dtype):
    s, p = made(shape, dtype, device)
    how = drawn(kind, dtype)
    found, true = Contraction.apply(s, p, how), exact(s, p, how)
    bound = exact(s, p.abs(), how._replace(kind="rademacher"))[0], 4 * p.cpu().double().abs().flatten(2).sum(2)
    loose = 0.0, flipped(p, how) if (kind, dtype) == ("normal", torch.float16) else 0.0
    for f, t, b, one in zip(found, true, bound, loose, strict=True):
        assert f.shape == t.shape
        assert f.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        close(f, t, b + 1e-300, dtype, one)


@pytest.mark.parametrize("shape", [(2, 3, 2), (1, 33, 17), (2, 2, 4099), (1, 130, 3)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients(device, shape, kind, dtype):
    """Signs are exact; with one, the other or both outputs."""
    s, p = (t.requires_grad_() for t in made(shape, dtype, device))
    how = drawn(kind, dtype)
    squares, forms = Contraction.apply(s, p, how)
    g, h = torch.randn_like(squares), torch.randn_like(forms)
    ds, dp = torch.autograd.grad((squares, forms), (s, p), (g, h), retain_graph=True)
    v = how.draw(p.shape, p.device)
    ones = (1,) * (s.dim() - 1)
    assert torch.equal(ds, g.view(-1, *ones) * s)
    alike(dp, h.view(*h.shape, *ones) * v, kind)
    assert torch.equal(torch.autograd.grad(squares, s, g, retain_graph=True)[0], ds)
    assert torch.equal(torch.autograd.grad(forms, p, h)[0], dp)


@pytest.mark.parametrize("kind", KINDS)
def test_second_derivatives(device, kind):
    """A launch inside the backward would have none."""
    s, p = (t.requires_grad_() for t in made((2, 2, 3), torch.float64, device))
    how = drawn(kind, torch.float64)
    fn = lambda s, p: Contraction.apply(s, p, how)  # noqa: E731
    assert gradcheck(fn, (s, p), check_batched_grad=True)  # forward mode takes no outputs within guarded memory
    assert gradgradcheck(fn, (s, p), fast_mode=True)


def test_bfloat16(device):
    """Sums of float32 over loaded values; normal probes rounded as drawn ones, which the interpreter truncates."""
    s, p = made((1, 33, 17), torch.bfloat16, device)
    for kind in KINDS:
        how = drawn(kind, torch.bfloat16)
        squares, forms = Contraction.apply(s, p, how)
        true = exact(s, p, how)
        torch.testing.assert_close(squares.cpu().double(), true[0], rtol=1e-5, atol=0)
        loose = 2.0**-7 * 4 * p.cpu().double().abs().flatten(2).sum(2) if kind == "normal" else 1e-4
        assert ((forms.cpu().double() - true[1]).abs() <= loose).all()


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_beside_float32(device, kind):
    """What autocast gives for float32 points: the probes keep their digits."""
    s, p = made((2, 9, 5), torch.float16, device)
    how = drawn(kind, torch.float32)
    for found, true in zip(Contraction.apply(s, p, how), exact(s, p, how), strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.cpu().double(), true, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_layouts(device, kind):
    s, p = made((2, 6, 5), torch.float32, device)
    how = drawn(kind, torch.float32)
    true = Contraction.apply(s, p, how)
    strided = s.t().contiguous().t().requires_grad_(), torch.stack([p, -p], 2)[:, :, 0].requires_grad_()
    found = Contraction.apply(*strided, how)
    for one, other in zip(found, true, strict=True):
        alike(one, other, kind)
    ds, dp = torch.autograd.grad([t.sum() for t in found], strided)  # expanded upstream gradients
    assert torch.equal(ds, s)
    alike(dp, how.draw(p.shape, p.device), kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("elements", [32, 1024])
def test_the_batch_and_the_probes_may_be_split(device, kind, elements, monkeypatch):
    """Rows and probes are known by their own numbers; a tile of another size changes no more than the order of sums."""
    s, p = made((3, 9, 70), torch.float32, device)
    how = drawn(kind, torch.float32)._replace(first_probe=4)
    whole = Contraction.apply(s, p, how)
    monkeypatch.setattr(kernels, "_ELEMENTS", elements)
    for k, rows in ((0, slice(0, 1)), (1, slice(1, 6)), (2, slice(6, 9))):
        part = how._replace(first_probe=4 + k, first_chain=how.first_chain + rows.start)
        squares, forms = Contraction.apply(s[rows], p[k : k + 1, rows], part)
        torch.testing.assert_close(squares, whole[0][rows], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(forms[0], whole[1][k, rows], rtol=1e-5, atol=1e-5)


def test_a_bad_row_stays_in_its_row(device):
    s, p = made((1, 40, 7), torch.float32, device)
    s[3], p[0, 5, 2] = float("nan"), float("inf")
    squares, forms = Contraction.apply(s, p, drawn("normal", torch.float32))
    assert squares.isnan().nonzero().flatten().tolist() == [3]
    assert (~forms[0].isfinite()).nonzero().flatten().tolist() == [5]


def test_nothing_to_contract(device):
    for shape in ((1, 0, 3), (2, 4, 0)):
        s, p = (t.requires_grad_() for t in made(shape, torch.float32, device))
        squares, forms = Contraction.apply(s, p, drawn("rademacher", torch.float32))
        assert not squares.any() and not forms.any()
        ds, dp = torch.autograd.grad((squares.sum(), forms.sum()), (s, p))
        assert (ds.shape, dp.shape) == (s.shape, p.shape)


class Score(nn.Module):
    """A network that is not recognised."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 6))

    def forward(self, x):
        return (x.flatten(1).sin() + self.net(x.flatten(1))).view(x.shape)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [None, 5])
@pytest.mark.parametrize("n_probes", [1, 3])
def test_a_training_step_of_any_network(device, kind, chunk, n_probes, monkeypatch):
    """Through the public loss: launched forward and backward, in pieces too, and equal to float64 without kernels."""
    launched = []
    for name in ("contraction", "pullback"):
        real = getattr(kernels, name)
        monkeypatch.setattr(kernels, name, lambda *a, name=name, real=real: launched.append(name) or real(*a))
    torch.manual_seed(0)
    net, x = Score(), torch.randn(12, 2, 3, dtype=torch.float64)
    how = {"trace": "hutchinson", "seed": 3, "probe": kind, "chunk_size": chunk, "n_probes": n_probes}
    found = {}
    for backend, dtype, where in (("torch", torch.float64, "cpu"), ("triton", torch.float32, device)):
        net.to(where, dtype).zero_grad()
        with use_backend(backend):
            terms = fastscore.implicit_score_matching(net, x.to(where, dtype), return_terms=True, **how)
            terms.loss.backward()
        assert terms.method == "hutchinson-jvp"
        assert (terms.stderr is None) == (n_probes == 1)
        found[backend] = [
            *(t.detach().cpu().double() for t in terms[:3]),
            *(q.grad.clone().cpu().double() for q in net.parameters()),
        ]
    assert set(launched) == {"contraction", "pullback"}
    for a, b in zip(found["triton"], found["torch"], strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5)


def test_a_weighted_trace_and_an_exact_one_take_no_kernel(device, monkeypatch):
    """Their directions are not probes."""
    monkeypatch.setattr(kernels, "contraction", None)
    x = torch.ones(3, 6, device=device)
    net = Score().to(device)
    fastscore.divergence(net, x)
    fastscore.divergence(net, x, trace="hutchinson", seed=1, weight=torch.eye(6, device=device))
