"""The contraction as autograd sees it: its own derivatives under every transform, and what it saves."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from fastscore.ops.contraction import Contraction, Drawn, contraction
from fastscore.reference import contraction as reference

DRAWN = Drawn("normal", torch.float64, 2**63 + 5, 2**32 - 2, 2**32 - 1)
SIGNS = DRAWN._replace(kind="rademacher")


def inputs(k=2, batch=3, *event):
    event = event or (4,)
    make = torch.Generator().manual_seed(k)
    return (
        torch.randn(batch, *event, generator=make, dtype=torch.float64).requires_grad_(),
        torch.randn(k, batch, *event, generator=make, dtype=torch.float64).requires_grad_(),
    )


def apply(s, p, drawn=DRAWN):
    return Contraction.apply(s, p, drawn)


def plain(s, p, drawn=DRAWN):
    return reference.contraction(s, p, drawn.draw(p.shape, p.device))


@pytest.mark.parametrize("needs", list(itertools.product([False, True], repeat=2)))
@pytest.mark.parametrize("drawn", [DRAWN, SIGNS], ids=lambda d: d.kind)
def test_every_subset_of_gradients(needs, drawn):
    args = [t.detach().requires_grad_(n) for t, n in zip(inputs(), needs, strict=True)]
    if not any(needs):
        assert not any(t.requires_grad for t in apply(*args, drawn))
        return
    fn = lambda s, p: apply(s, p, drawn)  # noqa: E731
    assert gradcheck(fn, args, check_forward_ad=True, check_batched_grad=True, check_undefined_grad=True)
    if needs[0]:
        assert gradgradcheck(fn, args, gen_non_contig_grad_outputs=True)


def test_without_a_score():
    _, p = inputs()
    assert apply(None, p)[0] is None
    fn = lambda p: apply(None, p)[1]  # noqa: E731
    assert gradcheck(fn, (p,), check_forward_ad=True, check_batched_grad=True)
    torch.testing.assert_close(torch.func.jacfwd(fn)(p), torch.func.jacrev(fn)(p))
    many = torch.stack([p, -p, p.sin()], 1)
    torch.testing.assert_close(torch.func.vmap(fn, in_dims=1)(many), torch.stack([fn(q) for q in many.unbind(1)]))


def test_functional_jacobians():
    s, p = inputs(3, 2, 2, 2)
    for argnums in (0, 1):
        forward, reverse, exact = (
            transform(fn, argnums=argnums)(s, p)
            for transform, fn in ((torch.func.jacfwd, apply), (torch.func.jacrev, apply), (torch.func.jacrev, plain))
        )
        for a, b, e in zip(forward, reverse, exact, strict=True):
            torch.testing.assert_close(a, e)
            torch.testing.assert_close(b, e)
    hessian = torch.func.hessian(lambda s: apply(s, p)[0].square().sum())(s)
    torch.testing.assert_close(hessian, torch.func.hessian(lambda s: plain(s, p)[0].square().sum())(s))


@pytest.mark.parametrize("in_dims", [(0, 0), (0, None), (None, 0), (2, 3)])
def test_vmap(in_dims):
    """Every slice has the probes of the rows that it is."""
    s, p = (t.detach() for t in inputs(2, 3, 4))
    size = 5
    given, slices = [], []
    for t, d in zip((s, p), in_dims, strict=True):
        many = torch.stack([t * (i + 1) for i in range(size)], 0)
        given.append(t if d is None else many.movedim(0, d))
        slices.append([t] * size if d is None else list(many))
    made = torch.func.vmap(apply, in_dims=in_dims)(*given)
    for found, each in zip(made, zip(*map(plain, *slices), strict=True), strict=True):
        torch.testing.assert_close(found, torch.stack(each))


def test_nothing_but_the_score_is_saved():
    """No probe and no product lives until the backward."""
    s, p = inputs(2, 50, 20)
    seen: dict[int, int] = {}

    def pack(t):
        seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        squares, forms = apply(s, p)
    assert sum(seen.values()) <= s.nbytes + 8
    upstream = [squares.detach(), forms.detach()]
    found, exact = (torch.autograd.grad(fn(s, p), (s, p), upstream) for fn in (apply, plain))
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a, b)


def test_compiled():
    s, p = inputs()
    v = SIGNS.draw(p.shape, p.device)
    fn = torch.compile(lambda s, p: contraction(s, p, v, SIGNS), fullgraph=True, backend="aot_eager")
    for found, exact in zip(fn(s, p), plain(s, p, SIGNS), strict=True):
        torch.testing.assert_close(found, exact)


class Passes(TorchDispatchMode):
    """Counts entries of arrays of one size read and written."""

    def __init__(self, size):
        super().__init__()
        self.size, self.count = size, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            arrays = [t for t in (*args, out) if isinstance(t, torch.Tensor) and t.numel() == self.size]
            self.count += sum(all(t.stride()) for t in arrays)
        return out


def test_the_passes_that_a_kernel_saves():
    """The count in the module's docstring: 7 forward and 8 backward, of arrays of the batch's size."""
    s, p = inputs(1, 8, 16)
    v = SIGNS.draw(p.shape, p.device)
    ones = torch.ones(8, dtype=torch.float64)
    with Passes(s.numel()) as forward:
        values = reference.contraction(s, p, v)
    with Passes(s.numel()) as backward:
        torch.autograd.grad(values, (s, p), (ones, ones.unsqueeze(0)))
    assert (forward.count, backward.count) == (7, 8)
