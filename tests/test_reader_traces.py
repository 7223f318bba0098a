"""Reading a network leaves no trace in it, nor in the random numbers of anybody."""

from __future__ import annotations

import contextlib
import copy
import random
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from fastscore import explicit_score_matching, langevin_dynamics, reader
from fastscore.reader import read
from tests.mlps import B, D, H, Loop, check, data
from tests.mlps import double as double


class Changing(nn.Module):
    """A network that does something else at each of its calls, and the state that this leaves."""

    calls = 0

    def __init__(self, act):
        super().__init__()
        self.net, self.act = Loop(), act
        self.register_buffer("mean", torch.zeros(D))
        self.list, self.dict, self.set, self.count = [], {}, {0}, 0

    def forward(self, x):
        self.act(self, x)
        return self.net(x)

    def state(self):
        containers = (list(self.list), dict(self.dict), set(self.set), dict(vars(self)).keys())
        numbers = (self.count, CALLS, Changing.calls, *(p.grad is None for p in self.parameters()))
        return containers, numbers, [b.tolist() for b in self.buffers()]


CALLS = 0


def counts_globally(net, x):
    global CALLS
    CALLS += 1


def counts_in_a_closure():
    calls = 0

    def act(net, x):
        nonlocal calls
        calls += 1
        net.seen = calls

    return act


ACTS = {
    "tracks": lambda net, x: setattr(net, "mean", 0.9 * net.mean + 0.1 * x.detach().mean(0)),
    "tracks in place": lambda net, x: net.mean.mul_(0.9).add_(0.1 * x.detach().mean(0)),
    "tracks data": lambda net, x: net.mean.data.mul_(0.9),
    "writes to a part": lambda net, x: net.mean.__setitem__(0, 1.0),
    "writes by a view": lambda net, x: net.mean.view(-1)[1:].add_(1.0),
    "writes out": lambda net, x: torch.add(torch.ones(D), 1.0, out=net.mean),
    "batch statistics": lambda net, x: nn.functional.batch_norm(
        torch.ones(2, D), net.mean, torch.ones(D), training=True
    ),
    "replaces data": lambda net, x: setattr(net.mean, "data", torch.ones(D)),
    "counts": lambda net, x: setattr(net, "count", net.count + 1),
    "counts on the class": lambda net, x: setattr(Changing, "calls", Changing.calls + 1),
    "counts globally": counts_globally,
    "counts in a closure": counts_in_a_closure(),
    "appends": lambda net, x: net.list.append(len(net.list)),
    "fills": lambda net, x: net.dict.setdefault(len(net.dict), 1.0),
    "adds": lambda net, x: net.set.add(len(net.set)),
    "registers": lambda net, x: net.register_buffer("other", torch.ones(D)),
    "differentiates": lambda net, x: net.net(torch.ones(2, D)).sum().backward(),
}


@pytest.mark.parametrize("rows", [2, B])
@pytest.mark.parametrize("name", ACTS)
def test_what_calls_change_is_declined_and_put_back(name, rows):
    net, x = Changing(ACTS[name]), data(rows, D)
    before = net.state()
    assert read(net, x) is None
    assert net.state() == before
    assert any(word in reader.reason(net, x) for word in ("changes", "trace"))
    assert net.state() == before
    net.act = lambda net, x: None
    check(net, x)


@pytest.fixture
def recordings(monkeypatch):
    """The callables that were recorded."""
    recorded, record = [], reader._record
    monkeypatch.setattr(reader, "_record", lambda fn, *others: recorded.append(fn) or record(fn, *others))
    return recorded


def test_a_network_that_always_changes_is_not_recorded_for_ever(recordings):
    net, x = Changing(lambda net, x: setattr(net, "count", net.count + net.training)), data(B, D)
    for _ in range(10):
        assert read(net, x) is None
        net(x)
    assert 0 < len(recordings) < 5
    net.eval()
    check(net, x)


def test_a_refused_network_is_recorded_once(recordings):
    net, x = nn.Sequential(nn.BatchNorm1d(D), Loop()), data(B, D)
    for _ in range(5):
        assert read(net, x) is None
        net[0].running_mean.add_(1.0)
    assert len(recordings) == 1


def test_what_the_first_call_sets_up_is_no_obstacle():
    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.scale = Loop(), None

        def forward(self, x):
            if self.scale is None:
                self.scale = torch.full((1, 1), 2.0)
            return self.scale * self.net(x)

    net, x = Lazy(), data(B, D)
    assert read(net, x) is None
    assert net.scale is None
    net(x)
    check(net, x)


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm1d, lambda d: nn.BatchNorm1d(d, momentum=None), nn.SyncBatchNorm], ids=["", "average", "sync"]
)
def test_batch_statistics_are_those_of_the_callers_batches(norm):
    net, x = nn.Sequential(norm(D), nn.Linear(D, H), nn.SiLU(), nn.Linear(H, D)), 5 + data(2048, D)
    other = copy.deepcopy(net)
    explicit_score_matching(net, x, target=lambda y: -y)
    other(x)
    torch.testing.assert_close(net.state_dict(), other.state_dict(), rtol=0, atol=0)


def test_spectral_norm_in_training_keeps_its_vectors():
    net = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(D, H)), nn.SiLU(), nn.Linear(H, D))
    before = copy.deepcopy(net.state_dict())
    assert read(net, data(B, D)) is None
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)


def test_a_sampler_makes_as_many_calls_as_steps():
    net = Changing(lambda net, x: setattr(net, "count", net.count + 1))
    langevin_dynamics(net, data(200, D), step_size=0.1, n_steps=5, seed=0)
    assert net.count == 5


DRAWS = {
    "dropout": nn.functional.dropout,
    "normal": lambda h: h + torch.randn(H),
    "permutation": lambda h: h[:, torch.randperm(H)],
    "swallowed": lambda h: attempt(lambda: torch.rand(1), h),
    "NumPy": lambda h: h * np.random.rand(),
    "NumPy by method": lambda h: h * np.random.mtrand.random(),
    "Python": lambda h: h * random.random(),
}


def attempt(call, h):
    with contextlib.suppress(Exception):
        call()
    return torch.tanh(h)


@pytest.mark.parametrize("name", DRAWS)
def test_random_numbers_are_declined_before_they_are_drawn(monkeypatch, name):
    monkeypatch.setattr(reader, "_agrees", lambda *_: True)
    net, x = Loop(DRAWS[name]), data(B, D)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist(), np.random.get_state()[2]
    assert read(net, x) is None
    assert "random" in reader.reason(net, x)
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist(), np.random.get_state()[2]
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_draws_of_another_thread_are_neither_repeated_nor_held_against_a_network(monkeypatch):
    """Another thread draws while a network is recorded."""
    drawn, agrees = [], reader._agrees

    def draw():
        drawn.append((torch.rand(1).item(), random.random(), np.random.rand()))

    def elsewhere(*given):
        thread = threading.Thread(target=draw)
        thread.start()
        thread.join()
        return agrees(*given)

    monkeypatch.setattr(reader, "_agrees", elsewhere)
    assert read(Loop(), data(B, D)) is not None
    draw()
    assert len(drawn) == 2
    assert all(first != second for first, second in zip(*drawn, strict=True))


def test_recording_sets_no_flag_of_the_process(monkeypatch):
    seen, agrees = [], reader._agrees
    monkeypatch.setattr(reader, "_agrees", lambda *given: seen.append(is_in_torch_dispatch_mode()) or agrees(*given))
    check(Loop(), data(B, D))
    assert seen == [False]


def test_attention_without_dropout_draws_nothing():
    net, t = Loop(), data(2 * D)

    def fn(x, t):
        tokens = t.reshape(1, 1, 2, D)
        return net(x) + nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)[0, 0, 0]

    check(fn, data(B, D), t)
