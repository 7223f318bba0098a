"""A cached reading is dropped when anything that the callable can see has changed."""

from __future__ import annotations

import collections
import copy
import functools
import gc
import types
import weakref

import torch
from torch import nn
from torch.nn import functional as F

from fastscore._reading import entries
from fastscore.networks import ScoreMLP
from fastscore.reader import read
from tests.mlps import (
    Added,
    B,
    D,
    H,
    Loop,
    Straight,
    check,
    data,
    sequential,
)
from tests.mlps import double as double


def test_changes_of_parameters_are_seen():
    net, x, t = Added(), data(B, D), data(B).abs() + 0.1
    check(net, x, t)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    net(x, t).square().sum().backward()
    optimizer.step()
    check(net, x, t)
    state = {name: value + 1 for name, value in net.state_dict().items()}
    net.load_state_dict(state)
    check(net, x, t)
    net.load_state_dict(state, assign=True)
    check(net, x, t, tuple(net.parameters()))
    net.a.weight = nn.Parameter(data(H, D))
    check(net, x, t, tuple(net.parameters()))
    net.a = nn.Linear(D, H, bias=False)
    check(net, x, t, tuple(net.parameters()))
    net.a.weight.requires_grad_(False)
    check(net, x, t, tuple(p for p in net.parameters() if p.requires_grad))
    net.a.weight.data = data(H, D, seed=9)
    check(net, x, t)
    net.a.weight.data = data(H, D + 1)
    assert read(net, x, t) is None


def test_changes_of_type_are_seen():
    net, x = Loop(), data(B, D)
    check(net, x)
    net.float()
    assert read(net, x) is None
    assert read(net, x.float()).mlp.weights[0].dtype == torch.float32
    net.double()
    check(net, x)


def test_changes_of_code_and_attributes_are_seen():
    net, x = Loop(), data(B, D)
    check(net, x)
    net.residual = True
    assert check(net, x).mlp.residuals == (False, True, True)
    net.activation = torch.tanh
    assert check(net, x).mlp.activations == ("tanh",) * 3
    net.layers.append(nn.Linear(H, H))
    check(net, x)
    net.layers[1] = nn.Sequential(nn.Linear(H, H), nn.Identity())
    check(net, x)
    nn.utils.parametrizations.weight_norm(net.out)
    check(net, x, None, tuple(net.parameters()))
    nn.utils.parametrize.remove_parametrizations(net.out, "weight")
    check(net, x)
    net.forward = lambda y: 2 * Loop.forward(net, y)
    check(net, x)
    del net.forward
    net.layers[0].scale = 2.0
    check(net, x)


SCALE = 2.0


def test_changes_of_globals_closures_and_classes_are_seen(monkeypatch):
    net, x, factor = Loop(), data(B, D), 3.0

    def scaled(y):
        return net(y) * SCALE * factor

    check(scaled, x)
    monkeypatch.setitem(globals(), "SCALE", 5.0)
    check(scaled, x)
    factor = 7.0
    check(scaled, x)
    net = Loop(torch.tanh)
    check(scaled, x)
    module = Loop()
    check(module, x)
    old = Loop.forward
    monkeypatch.setattr(Loop, "forward", lambda self, y: 2 * old(self, y))
    check(module, x)


class Config:
    scale = 2.0


HELPERS = types.ModuleType("helpers")
exec("FACTOR = 2.0\ndef scaled(y):\n    return y * FACTOR", vars(HELPERS))


class Derived(Loop):
    def forward(self, x):
        return super().forward(x) * 1.0

    @property
    def double(self):
        return 2 * Config.scale


def test_changes_further_away_are_seen(monkeypatch):
    """State that the code reaches through classes, modules, objects, containers, properties and base classes."""
    net, x = Derived(), data(B, D)
    settings = types.SimpleNamespace(scales=[1.0, {"out": 3.0}])
    net.out.weight.gain = 1.5
    factors = collections.OrderedDict(a=1.0)

    def fn(y):
        inner = settings.scales[0] * getattr(net, "double")  # noqa: B009
        return HELPERS.scaled(net(y)) * inner * settings.scales[1]["out"] * net.out.weight.gain * factors["a"]

    first = check(fn, x)
    assert read(fn, x) is first
    monkeypatch.setattr(Config, "scale", 3.0)
    check(fn, x)
    monkeypatch.setattr(HELPERS, "FACTOR", 4.0)
    check(fn, x)
    settings.scales[0] = 5.0
    check(fn, x)
    settings.scales[1]["out"] = 6.0
    check(fn, x)
    net.out.weight.gain = 7.0
    check(fn, x)
    factors["a"] = 8.0
    check(fn, x)
    monkeypatch.setattr(Loop, "forward", lambda self, y: 9.0 * self.out(torch.tanh(self.layers[0](y))))
    assert check(fn, x).mlp.activations == ("tanh",)
    monkeypatch.setattr(HELPERS, "scaled", lambda y: -y)
    check(fn, x)


def test_changes_behind_decorators_are_seen():
    net, x, settings = Loop(), data(B, D), {"scale": 2.0}

    @functools.wraps(F.silu)
    def disguised(y):
        return net(y) * settings["scale"]

    @torch.compiler.disable
    def decorated(y):
        return net(y) * settings["scale"]

    def wrapped(y):
        return disguised(y) if settings["scale"] else y

    for fn in (disguised, wrapped, decorated):
        for scale in (3.0, 4.0):
            settings["scale"] = scale
            if read(fn, x) is not None or fn is not decorated:
                check(fn, x)


def test_second_reading_computes_nothing():
    """The same object comes back, without one torch operation, for a network without a condition."""

    class Count(torch.overrides.TorchFunctionMode):
        operations = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            self.operations += isinstance(result, torch.Tensor)
            return result

    net, x, y = ScoreMLP(D, H), data(B, D), data(9, D)
    first = read(net, x)
    with Count() as count:
        assert read(net, x) is first
        assert read(net, y) is first
    assert count.operations == 0


def test_freezing_is_seen():
    """A parameter behind a custom rule that was frozen when it was read, and is free now."""
    net, x = Loop(), data(B, D)
    net.requires_grad_(False)

    def fn(y):
        h = F.silu(F.linear(y, Straight.apply(net.layers[0].weight)))
        return net.out(h)

    check(fn, x)
    net.requires_grad_(True)
    assert read(fn, x) is None


def test_training_mode_is_seen():
    net, x = sequential(nn.SiLU(), nn.Sequential(nn.SiLU(), nn.Dropout(0.5))), data(B, D)
    state = torch.get_rng_state()
    assert read(net, x) is None
    assert torch.equal(torch.get_rng_state(), state)
    check(net.eval(), x)
    assert read(net.train(), x) is None


def test_copies_are_their_own():
    net, x = Loop(), data(B, D)
    check(net, x)
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.out.weight.add_(1.0)
    assert check(other, x).mlp.weights[-1] is other.out.weight
    assert check(net, x).mlp.weights[-1] is net.out.weight


def test_buffers_and_frozen_parameters():
    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Loop()
            self.register_buffer("scale", torch.tensor(2.0))

        def forward(self, x):
            return self.net(x / self.scale)

    net, x = Normalised(), data(B, D)
    net.net.out.requires_grad_(False)
    check(net, x, None, tuple(p for p in net.parameters() if p.requires_grad))
    net.scale.fill_(5.0)
    check(net, x)


def test_gradients_and_modes():
    net, x = Added(), data(B, D)
    t = (data(B).abs() + 0.1).requires_grad_()
    reading = read(net, x.clone().requires_grad_(), t)
    (mine,) = torch.autograd.grad(reading.value(x).sum(), t)
    (theirs,) = torch.autograd.grad(net(x, t).sum(), t)
    torch.testing.assert_close(mine, theirs)
    with torch.no_grad():
        assert not read(net, x, t).shifts[0].requires_grad
    with torch.inference_mode():
        y = torch.ones(B, D)
        torch.testing.assert_close(read(net, y, torch.ones(B)).value(y), net(y, torch.ones(B)))
    assert read(net, x, t).shifts[0].requires_grad


def test_the_cache_is_weak():
    gc.collect()
    before = len(entries._cache)
    net, x = Loop(), data(B, D)
    check(net, x)
    alive = weakref.ref(net)
    assert len(entries._cache) == before + 1
    del net
    gc.collect()
    assert alive() is None
    assert len(entries._cache) == before
