"""Changes of classes, functions and what they inherit are seen, and watching them keeps no network alive."""

from __future__ import annotations

import functools
import gc
import types
import weakref
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from torch import nn

from fastscore._reading import entries
from fastscore.reader import read
from tests.mlps import B, D, Loop, check, data
from tests.mlps import double as double

Change = tuple[Callable[..., Any], Callable[[], object]]


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Loop()

    def forward(self, x):
        return self.body(x)


def read_by_closure() -> Change:
    class Config:
        gain = 1.0

    config, net = Config(), Loop()
    return lambda x: config.gain * net(x), lambda: setattr(Config, "gain", 3.0)


def read_by_getattr() -> Change:
    class Config:
        gain = 1.0

    config, net = Config(), Loop()
    return lambda x: getattr(config, "gain") * net(x), lambda: setattr(Config, "gain", 3.0)  # noqa: B009


def read_by_helper() -> Change:
    class Net(Body):
        gain = 1.0

        def forward(self, x):
            return helper(self, x)

    def helper(net, x):
        return net.gain * net.body(x)

    return Net(), lambda: setattr(Net, "gain", 3.0)


def content_of_class_attribute() -> Change:
    class Config:
        settings: ClassVar = {"gain": [1.0]}

    config, net = Config(), Loop()
    return lambda x: config.settings["gain"][0] * net(x), lambda: Config.settings["gain"].__setitem__(0, 3.0)


def global_of_method() -> Change:
    class Net(Body):
        def scaled(self, x):
            return Settings.gain * self.body(x)

    class Settings:
        gain = 1.0

    net = Net()
    return lambda x: net.scaled(x), lambda: setattr(Settings, "gain", 3.0)


def special_method() -> Change:
    class Settings:
        gain = 1.0

    class Layers(nn.Sequential):
        def __iter__(self):
            return iter([*super().__iter__(), lambda h: Settings.gain * h])

    return Layers(Loop()), lambda: setattr(Settings, "gain", 3.0)


def function_attribute() -> Change:
    net = Loop()

    def fn(x):
        return fn.gain * net(x)

    fn.gain = 1.0
    return fn, lambda: setattr(fn, "gain", 3.0)


def defaults() -> Change:
    net = Loop()

    def fn(x, *unused, gain=1.0):
        return gain * net(x)

    return fn, lambda: setattr(fn, "__kwdefaults__", {"gain": 3.0})


def keyword_defaults() -> Change:
    net = Loop()

    def inner(x, gain=1.0):
        return gain * net(x)

    return lambda x: inner(x), lambda: setattr(inner, "__defaults__", (3.0,))


def forward_set_on_subclass() -> Change:
    class Net(Body):
        pass

    return Net(), lambda: setattr(Net, "forward", lambda self, x: 3 * self.body(x))


def forward_set_on_sequential() -> Change:
    class Net(nn.Sequential):
        pass

    return Net(Loop()), lambda: setattr(Net, "forward", lambda self, x: 3 * self[0](x))


def attribute_set_on_subclass() -> Change:
    class Net(Body):
        gain = 1.0

        def forward(self, x):
            return self.gain * self.body(x)

    class Sub(Net):
        pass

    return Sub(), lambda: setattr(Sub, "gain", 3.0)


def attribute_set_on_class_of_callable() -> Change:
    class Score:
        gain = 1.0

        def __init__(self):
            self.net = Loop()

        def __call__(self, x):
            return self.gain * self.net(x)

    class Sub(Score):
        pass

    return Sub(), lambda: setattr(Sub, "gain", 3.0)


def class_of_an_instance() -> Change:
    class Other(Body):
        def forward(self, x):
            return 3 * self.body(x)

    net = Body()
    return net, lambda: setattr(net, "__class__", Other)


def method_of_a_named_tuple() -> Change:
    class Pair(NamedTuple):
        gain: float

        def times(self, h):
            return self.gain * h * factor.gain

    factor, pair, net = types.SimpleNamespace(gain=1.0), Pair(2.0), Loop()
    return lambda x: pair.times(net(x)), lambda: setattr(factor, "gain", 3.0)


def keys_of_a_dictionary() -> Change:
    settings, net = {"gain": 2.0}, Loop()

    def rename():
        settings["shift"] = settings.pop("gain")

    return lambda x: settings.get("gain", 1.0) * net(x), rename


CHANGES = (
    *(read_by_closure, read_by_getattr, read_by_helper, content_of_class_attribute, global_of_method, special_method),
    *(function_attribute, defaults, keyword_defaults, forward_set_on_subclass, forward_set_on_sequential),
    *(attribute_set_on_subclass, attribute_set_on_class_of_callable, class_of_an_instance),
    *(method_of_a_named_tuple, keys_of_a_dictionary),
)


@pytest.mark.parametrize("make", CHANGES, ids=lambda make: make.__name__)
def test_a_change_is_seen(make):
    (fn, change), x = make(), data(B, D)
    first = check(fn, x)
    assert read(fn, x) is first
    before = fn(x)
    change()
    check(fn, x)
    assert not torch.allclose(fn(x), before)


class Bound(Body):
    def __init__(self):
        super().__init__()
        self.act = self.scaled

    def scaled(self, x):
        return 2.0 * self.body(x)

    def forward(self, x):
        return self.act(x)


class Closed(Body):
    def __init__(self):
        super().__init__()
        self.act = lambda x: 2.0 * self.body(x)

    def forward(self, x):
        return self.act(x)


class Owned(Body):
    def __init__(self):
        super().__init__()
        self.settings = [{"owner": self}]


class Partial(Bound):
    def __init__(self):
        super().__init__()
        self.act = functools.partial(self.scaled)


def recursive():
    net = Loop()

    def fn(x, again=True):
        return fn(x, False) if again else net(x)

    return fn


class Trainer:
    def __init__(self):
        self.net = Loop()
        self.score = self._score

    def _score(self, x):
        return self.net(x)


@pytest.mark.parametrize("make", [Bound, Closed, Owned, Partial, recursive, Trainer], ids=lambda make: make.__name__)
def test_a_callable_that_refers_to_itself_is_freed(make):
    gc.collect()
    before = len(entries._cache)
    owner = make()
    check(getattr(owner, "score", owner), data(B, D))
    alive = weakref.ref(owner)
    assert len(entries._cache) == before + 1
    del owner
    gc.collect()
    assert alive() is None
    assert len(entries._cache) == before


def test_a_callable_that_refers_to_itself_since_it_was_read_is_freed():
    net = Body()
    check(net, data(B, D))
    net.myself = [net]
    net.register_forward_hook(functools.partial(print, net))
    alive = weakref.ref(net)
    del net
    gc.collect()
    assert alive() is None


def test_another_object_at_the_same_address_is_seen():
    """An activation is replaced by one that memory gives the address of the old one, as often as it does."""
    net, x = Loop(nn.Tanh()), data(B, D)
    for kind in (nn.SiLU, nn.Tanh) * 20:
        check(net, x)
        net.activation = None
        net.activation = kind()
        assert check(net, x).mlp.activations[0] == {nn.SiLU: "silu", nn.Tanh: "tanh"}[kind]
