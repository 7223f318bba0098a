"""Metropolis's rule, compiled and not, for densities that only Python knows."""

from __future__ import annotations

import pytest
import torch

import fastscore
from fastscore.ops import _cpu_build, metropolis
from fastscore.samplers import Mala
from tests.proposals import judged, odd, same, some

COUNTERS = (2**63 + 11, 2**32 - 1, 2**32 - 2)


@pytest.fixture(params=["compiled", "torch"], autouse=True)
def library(request, monkeypatch):
    found = _cpu_build.library(build=True)
    if request.param == "torch":
        monkeypatch.setattr(_cpu_build, "library", lambda *, build: None)
    elif found is None:
        pytest.skip("no C compiler")
    return request.param


@pytest.mark.parametrize(
    "shape", [(1, 1), (63, 3), (64, 2), (300, 2), (7, 130), (200_000, 2), (9, 2, 5), (0, 3), (3, 0)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values(shape, dtype):
    state, to = some(shape, 0.3, dtype)
    a = torch.tensor(0.3, dtype=dtype)
    before = [part.clone() for part in state]
    found = metropolis.accept(state, to, a, *COUNTERS)
    true = judged(state, to, a, COUNTERS)
    differ = (found.accepted != true.accepted).double().mean()  # a tie but for rounding, in so many
    if not shape[0] or differ <= 1e-5:
        agree = found.accepted == true.accepted
        same(type(found)(*(part[agree] for part in found)), type(true)(*(part[agree] for part in true)))
    assert not shape[0] or differ <= 1e-5
    assert all(torch.equal(part, was) for part, was in zip(state, before, strict=True))
    assert found.x.shape == state.x.shape


def test_a_step_size_a_feature_and_any_layout():
    a = torch.linspace(0.05, 0.6, 6).view(2, 3)
    state, to = some((60, 2, 3), a)
    state = state._replace(x=state.x.transpose(1, 2).contiguous().transpose(1, 2), log_prob=torch.zeros(()).expand(60))
    same(metropolis.accept(state, to, a, *COUNTERS), judged(state, to, a, COUNTERS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("width", "feature"), [(1, 0), (3, 2), (200, 199)])
def test_where_the_density_is_no_number(width, feature, dtype):
    state, to = odd(width, feature, dtype)
    a = torch.tensor(0.1, dtype=dtype)
    same(metropolis.accept(state, to, a, *COUNTERS), judged(state, to, a, COUNTERS))


def test_mala_of_a_density_it_cannot_look_into_uses_it(library, monkeypatch):
    """And a call of two hundred chains makes the same as the reference at every step."""
    calls = []
    if library == "compiled":
        real = metropolis._compiled
        monkeypatch.setattr(metropolis, "_compiled", lambda *given: calls.append(1) or real(*given))
    algorithm = Mala(lambda x: -(x**4).sum(1), step_size=0.3, seed=5)
    state = algorithm.init(fastscore.noise.normal((200, 3), seed=1, stream=5))
    for k in range(9):
        y = fastscore.langevin_step(state.x, state.score, step_size=0.3, seed=5, step=k)
        to = metropolis.Proposal(y, *algorithm.evaluate(y))
        true = judged(state, to, torch.tensor(0.3), (5, k, 0))
        state = algorithm.step(state, k)
        same(state, true)
    assert len(calls) == (9 if library == "compiled" else 0)


def test_under_a_transform():
    """A kernel cannot write to what torch.func wraps."""
    state, to = some((8, 3), 0.2)
    a = torch.tensor(0.2)

    def chosen(x):
        return metropolis.accept(state, to._replace(x=x), a, *COUNTERS).x

    made = torch.func.vmap(chosen)(torch.stack([to.x, to.x]))
    same(type(state)(made[1], *state[1:]), type(state)(judged(state, to, a, COUNTERS).x, *state[1:]))


def test_a_density_that_is_negated_in_place(library):
    state, to = some((200, 3), 0.3, torch.float32)
    a = torch.tensor(0.3)
    found = metropolis.accept(state, to, a, *COUNTERS)
    odd = to._replace(log_prob=torch._neg_view(-to.log_prob), score=torch._neg_view(-to.score))
    same(metropolis.accept(state, odd, torch._neg_view(-a), *COUNTERS), found)
