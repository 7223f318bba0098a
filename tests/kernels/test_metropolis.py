"""Metropolis's rule against the reference: every branch of the tile, dtypes, splits, and densities that are none."""

from __future__ import annotations

import pytest
import torch

from fastscore.ops import metropolis, noise
from fastscore.reference.metropolis import MalaState, Proposal
from fastscore.reference.philox import Stream
from fastscore_kernels import metropolis as kernels
from tests.proposals import judged, moved, odd, same, some

COUNTERS = (2**63 + 11, 2**32 - 1, 2**32 - 2)
# One and several programs, rows and tiles of features.
SHAPES = [(1, 1), (5, 3), (300, 2), (33, 17), (7, 64), (3, 1500), (9, 2, 5)]


def accept(device, state, to, a):
    return metropolis.accept(moved(state, device), moved(to, device), a.to(device), *COUNTERS)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values(device, shape, dtype):
    state, to = some(shape, 0.3, dtype)
    a = torch.tensor(0.3, dtype=dtype)
    found = accept(device, state, to, a)
    true = judged(state, to, a, COUNTERS)
    same(found, true)
    taken = true.accepted - state.accepted
    assert shape[0] < 30 or 0.1 < float(taken.mean()) < 0.9
    assert shape[0] < 30 or {0.0, 1.0} == set(taken.tolist())


def test_a_step_size_a_feature(device):
    a = torch.linspace(0.05, 0.6, 17)
    state, to = some((60, 17), a)
    same(accept(device, state, to, a), judged(state, to, a, COUNTERS))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("width", "feature"), [(3, 0), (3, 2), (1030, 0), (1030, 1029)])
def test_where_the_density_is_no_number(device, width, feature, dtype):
    state, to = odd(width, feature, dtype)
    a = torch.tensor(0.1, dtype=dtype)
    true = judged(state, to, a, COUNTERS)
    same(accept(device, state, to, a), true)
    lost = true.x.isnan().any(1)
    assert 0 < int(lost.sum()) < len(lost) // 2 + 1 and not bool(lost[1::2].any())


@pytest.mark.parametrize("tile", [2, 16, 64])
def test_no_tile_changes_a_choice(device, tile, monkeypatch):
    state, to = some((40, 21), 0.2)
    monkeypatch.setattr(kernels, "TILE", tile)
    a = torch.tensor(0.2)
    same(accept(device, state, to, a), judged(state, to, a, COUNTERS))


def test_layouts(device):
    state, to = some((6, 5), 0.2)
    state = state._replace(x=state.x.t().contiguous().t(), log_prob=state.log_prob.repeat_interleave(2)[::2])
    to = Proposal(to.x, to.log_prob[:1].expand(6), to.score[:1].expand(6, 5))
    a = torch.tensor(0.2)
    same(accept(device, state, to, a), judged(state, to, a, COUNTERS))


def test_a_batch_may_be_split(device):
    state, to = some((50, 3), 0.2)
    a = torch.tensor(0.2).to(device)
    seed, step, first = COUNTERS
    whole = accept(device, state, to, a)
    parts = [
        metropolis.accept(
            MalaState(*(part[i : i + 10].to(device) for part in state)),
            Proposal(*(part[i : i + 10].to(device) for part in to)),
            a,
            seed,
            step,
            first + i,
        )
        for i in range(0, 50, 10)
    ]
    for found, *pieces in zip(whole, *parts, strict=True):
        assert torch.equal(found, torch.cat(pieces))


@pytest.mark.parametrize("side", [-1, 1])
def test_a_uniform_of_float64_keeps_its_digits(side, device):
    """A ratio within 1e-12 of it is on its right side."""
    n, (seed, step, first) = 64, COUNTERS
    u = noise.uniform(n, seed, Stream.ACCEPT, step, first, torch.float64, torch.device("cpu"))
    zero, none = torch.zeros(n, 1, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    state, to = MalaState(zero, none, zero, none), Proposal(zero, u.log() * (1 - side * 1e-12), zero)
    found = accept(device, state, to, torch.tensor(0.3, dtype=torch.float64))
    assert (found.accepted.cpu() == (side > 0)).all()
