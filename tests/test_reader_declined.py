"""What the reader declines: whatever a replay of its record might not repeat."""

from __future__ import annotations

import collections
import functools
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastscore import reader
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


class Counting(Loop):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * self.calls


class Noisy(Loop):
    def forward(self, x):
        return super().forward(x) + 0.0 * torch.randn(D)


def importing(net):
    def fn(x):
        from colorsys import ONE_THIRD

        return net(x) * ONE_THIRD

    return fn


def residual(join):
    def made(net):
        def fn(x):
            h = torch.tanh(net.layers[0](x))
            return net.out(join(h, torch.tanh(net.layers[1](h))))

        return fn

    return made


def twice(net):
    def fn(x):
        h = torch.tanh(net.layers[0](x))
        return net.out(h + torch.tanh(net.layers[1](h)) + h)

    return fn


def using(value, scale):
    return lambda net: lambda x: net(x) * scale(value)


def branches(condition):
    return lambda net: lambda x: net(x) if condition(x) else -net(x)


def detached(net):
    return lambda x: net.out(F.silu(net.layers[0](x)).detach())


def switched(net):
    def fn(x):
        with torch.no_grad():
            return net(x)

    return fn


def swallowing(net):
    def fn(x):
        try:
            return net(x) if bool(x.sum() > 0) else 2 * net(x)
        except Exception:
            return net(x)

    return fn


def hooked(net):
    net.layers[0].register_forward_hook(lambda module, args, out: 2 * out)
    return net


def prehooked(net):
    net.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    return net


def autocasting(net):
    def fn(x):
        with torch.autocast("cpu"):
            return net(x.float()).double()

    return fn


def in_place(operation):
    def make(net):
        def fn(x):
            z = net.layers[0](x)
            operation(z)
            return net.out(torch.tanh(net.layers[1](torch.tanh(z))))

        return fn

    return make


DECLINED = {
    "relu": lambda net: sequential(nn.ReLU()),
    "layer norm": lambda net: nn.Sequential(nn.Linear(D, H), nn.LayerNorm(H), nn.SiLU(), nn.Linear(H, D)),
    "batch norm": lambda net: nn.Sequential(nn.Linear(D, H), nn.BatchNorm1d(H), nn.SiLU(), nn.Linear(H, D)),
    "linear": lambda net: nn.Linear(D, D),
    "two linear": lambda net: nn.Sequential(nn.Linear(D, H), nn.Linear(H, D)),
    "activation last": lambda net: nn.Sequential(nn.Linear(D, H), nn.SiLU(), nn.Linear(H, D), nn.Tanh()),
    "softplus of another threshold": lambda net: sequential(nn.Softplus(threshold=1.0)),
    "product": lambda net: lambda x: net(x) * x,
    "two networks": lambda net: lambda x: net(x) + net(2 * x),
    "long residual": lambda net: (
        lambda x: net.out(
            F.silu(net.layers[0](x)) + F.silu(net.layers[2](F.silu(net.layers[1](F.silu(net.layers[0](x))))))
        )
    ),
    "residual from x": lambda net: lambda x: net.out(F.pad(x, (0, H - D)) + F.silu(net.layers[0](x))),
    "residual twice": lambda net: (
        lambda x: net.out(
            F.silu(net.layers[1](net.layers[0](x).tanh())) + net.layers[0](x).tanh() + net.layers[0](x).tanh()
        )
    ),
    "residual of one value twice": twice,
    "gate of another": lambda net: lambda x: net.out(net.layers[0](x) * torch.sigmoid(net.layers[0](x) + 1)),
    "features in another order": lambda net: lambda x: net(x[:, [1, 0, 2]]),
    "reversed": lambda net: lambda x: net(x).flip(-1),
    "transposed": lambda net: lambda x: net(x.reshape(D, -1).T),
    "part of x": lambda net: lambda x: F.pad(net(x)[:, :2], (0, 1)),
    "batch statistics": lambda net: lambda x: net(x - x.mean(0)),
    "vector scale beside x": lambda net: lambda x: (net(x) + x) * torch.arange(1.0, D + 1),
    "branch on a value": branches(lambda x: bool(x.sum() > 0)),
    "branch on an item": branches(lambda x: x[0, 0].item() > 0),
    "branch on a float": branches(lambda x: float(x.norm()) > 1),
    "branch on a list": branches(lambda x: x.tolist()[0][0] > 0),
    "detached": detached,
    "no_grad": switched,
    "swallowed branch": swallowing,
    "custom function": lambda net: Loop(Straight.apply),
    "hook": hooked,
    "pre-hook": prehooked,
    "dropout": lambda net: Loop(nn.Dropout(0.5)),
    "functional dropout": lambda net: lambda x: net(F.dropout(x, 0.5)),
    "noise": lambda net: Noisy(),
    "Python noise": lambda net: lambda x: net(x) if random.random() > 1e-9 else -net(x),
    "NumPy noise": lambda net: lambda x: net(x) if np.random.rand() > 1e-9 else -net(x),
    "NumPy generator": using(np.random.default_rng(0), lambda g: 1.0 if g.random() > 1e-9 else -1.0),
    "Python generator": using(random.Random(0), lambda g: 1.0 if g.random() > 1e-9 else -1.0),
    "iterator": using(iter([1.0] * 1000), next),
    "array": using(np.array([2.0]), lambda a: float(a[0])),
    "queue": using(collections.deque([2.0]), lambda a: a[0]),
    "memory": using(functools.lru_cache(lambda n: n / 2), lambda f: f(3)),
    "import": importing,
    "eval": lambda net: lambda x: net(x) * eval("SCALE"),
    "state": lambda net: Counting(),
    "autocast": autocasting,
    "in place through a view": in_place(lambda z: z.view(-1, H).mul_(2.0)),
    "in place on a part": in_place(lambda z: z[:, :2].mul_(2.0)),
    "in place by itself": in_place(lambda z: z.mul_(z)),
    "in place by index": in_place(lambda z: z.__setitem__((slice(None), 0), 0.0)),
    "in place, without a rule": in_place(lambda z: z.clamp_(min=-1.0)),
    "residual of a scaled layer": residual(lambda h, new: torch.linspace(0.5, 2, H) * h + new),
    "residual with another scale": residual(lambda h, new: torch.linspace(0.5, 2, H) * h + torch.ones(H) * new),
    "numpy": lambda net: lambda x: net(x) * float(x.detach().numpy().max()),
    "TorchScript": lambda net: torch.jit.script(nn.Sequential(nn.Linear(D, H), nn.SiLU(), nn.Linear(H, D))),
    "spectral norm": lambda net: nn.utils.parametrizations.spectral_norm(nn.Linear(D, D)),
    "generator": lambda net: functools.partial(lambda g, x: net(x), torch.Generator()),
    "autograd inside": lambda net: lambda x: torch.autograd.grad(net(x).sum(), x)[0],
    "compiled function": lambda net: torch.compile(lambda x: net(x), backend="eager"),
    "compiled": lambda net: torch.compile(net, backend="eager"),
    "compiled in place": lambda net: net.compile(backend="eager") or net,
    "data parallel": lambda net: nn.DataParallel(net),
    "wrong shape": lambda net: nn.Sequential(nn.Linear(D, H), nn.SiLU(), nn.Linear(H, 2)),
    "a tuple": lambda net: lambda x: (net(x), net(x)),
    "an error": lambda net: lambda x: net(x[:, :2]),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("make", DECLINED.values(), ids=DECLINED.keys())
def test_declined(make):
    fn = make(Loop())
    for batch in (B, 1):
        assert read(fn, data(batch, D)) is None
        assert read(fn, data(batch, D)) is None


BY_STRUCTURE = (
    *("product", "two networks", "long residual", "residual twice", "residual of one value twice", "gate of another"),
    *(
        "features in another order",
        "reversed",
        "transposed",
        "part of x",
        "vector scale beside x",
        "branch on a value",
        "hook",
    ),
    *("residual of a scaled layer", "residual with another scale"),
    *("hook", "detached", "custom function", "in place through a view", "in place by itself", "Python noise"),
)


@pytest.mark.parametrize("name", BY_STRUCTURE)
def test_declined_without_comparing_values(monkeypatch, name):
    """The operations alone give these away; the comparison with the network's own output only confirms."""
    monkeypatch.setattr(reader, "_agrees", lambda *_: True)
    assert read(DECLINED[name](Loop()), data(B, D)) is None


def test_declined_conditions():
    net, x, t = Added(), data(B, D), data(B).abs()
    assert read(lambda y, c: net(y, c) * float(c.mean()), x, t) is None
    assert read(lambda y, c: net(y, c) if c.max() > 1 else -net(y, c), x, t) is None
    assert read(lambda y, c: net(y, c) * torch.rand(1), x, t) is None
    assert read(lambda y, c: net(y, c * y.mean(-1)), x, t) is None
    assert read(lambda y, c: net(y, Straight.apply(c)), x, t) is None


def test_declined_surroundings():
    net, x = Loop(), data(B, D)
    check(net, x)
    with torch.autocast("cpu"):
        assert read(net, x) is None
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, out: None)
    assert read(net, x) is None
    handle.remove()
    check(net, x)
    seen = []
    torch.func.vmap(lambda y: seen.append(read(net, y)) or y)(data(2, B, D))
    torch.func.jvp(lambda y: seen.append(read(net, y)) or y, (x,), (x,))
    torch.func.grad(lambda y: seen.append(read(net, y)) or y.sum())(x)
    assert seen == [None, None, None]
    for bad in (torch.zeros(0, D), torch.zeros(D), torch.zeros(B, D, dtype=torch.int64), torch.zeros(B, D).to_sparse()):
        assert read(net, bad) is None
    hook = net.out.register_forward_hook(lambda module, args, out: None)
    assert read(net, x) is None
    hook.remove()
    check(net, x)


def test_compiled_callers_get_none():
    net, x = Loop(), data(B, D)

    @torch.compile(backend="eager", fullgraph=True)
    def fn(y):
        return net(y) if read(net, y) is None else y

    torch.testing.assert_close(fn(x), net(x))
