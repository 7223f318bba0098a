"""The reader: every way of writing an MLP is read with the same values, Jacobians and gradients, or not at all."""

from __future__ import annotations

import functools
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastscore.networks import EnergyMLP, ScoreMLP
from fastscore.reader import read
from fastscore.reference.activations import ACTIVATIONS
from tests.mlps import (
    CONDITIONAL,
    Added,
    B,
    ByHand,
    Concatenated,
    D,
    H,
    Image,
    Loop,
    Parametrized,
    Tied,
    check,
    check_energy_score,
    data,
    sequential,
)
from tests.mlps import double as double

SCORES = {
    "ScoreMLP": lambda: ScoreMLP(D, H, 3),
    "sequential": lambda: sequential(nn.SiLU(), nn.Softplus(), nn.Tanh()),
    "other activations": lambda: sequential(nn.GELU(), nn.GELU(approximate="tanh"), nn.Softsign()),
    "nested": lambda: nn.Sequential(nn.Sequential(nn.Linear(D, H), nn.SiLU()), nn.Identity(), nn.Linear(H, D)),
    "dropout of probability 0": lambda: sequential(nn.SiLU(), nn.Sequential(nn.Dropout(0.0), nn.SiLU())),
    "dropout that is off": lambda: sequential(nn.SiLU(), nn.Sequential(nn.SiLU(), nn.Dropout(0.3))).eval(),
    "loop": Loop,
    "loop, functions": lambda: Loop(torch.sin),
    "loop, method": lambda: Loop(torch.Tensor.tanh),
    "loop, gated": lambda: Loop(lambda z: z.sigmoid() * z),
    "residual": lambda: Loop(F.silu, residual=True),
    "by hand": ByHand,
    "weight norm": Parametrized,
    "tied": Tied,
}


@pytest.mark.parametrize("make", SCORES.values(), ids=SCORES.keys())
def test_scores(make):
    net = make()
    reading = check(net, data(B, D), None, tuple(net.parameters()))
    assert reading.is_plain and not reading.is_energy
    assert all(shift is None for shift in reading.shifts)


@pytest.mark.parametrize("make", CONDITIONAL.values(), ids=CONDITIONAL.keys())
def test_conditions(make):
    """With gradients to the conditioning network, for conditions that change from call to call."""
    net = make()
    for seed in (0, 1):
        t = data(B, seed=seed).abs() + 0.1
        check(net, data(B, D), t, tuple(net.parameters()))


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_own_networks(name, depth):
    score, energy = ScoreMLP(D, H, depth, name), EnergyMLP(D, H, depth, name)
    reading = check(score, data(B, D), None, tuple(score.parameters()))
    assert reading.mlp.activations == (name,) * depth
    assert reading.mlp.weights[0] is score.layers[0].weight
    assert reading.mlp.biases[-1] is score.layers[-1].bias
    check(energy, data(B, D), None, tuple(energy.parameters()), kind="energy")


def test_energies():
    energy, x, t = EnergyMLP(D, H, cond_dim=1), data(B, D), data(B)
    assert check(energy, x, t, kind="energy").is_energy
    reading = read(energy.score, x, t)
    assert reading.kind == "energy_score" and reading.is_energy
    torch.testing.assert_close(reading.value(x).squeeze(1), energy(x, t))
    own = nn.Sequential(nn.Linear(D, H), nn.Tanh(), nn.Linear(H, 1))
    check(lambda y: own(y).squeeze(-1), x, kind="energy")
    check(lambda y: own(y)[:, 0] / 2, x, kind="energy")

    check_energy_score(energy.score, x, t)
    check_energy_score(lambda y: energy.score(y, t), x)
    check_energy_score(lambda y: energy.score(y, cond=torch.tensor(0.3)).reshape(B, D), x)
    check_energy_score(lambda y: -energy.score(y, t), x)
    for fn in (lambda y: energy.score(y / 2, t), lambda y: energy.score(y, t) + y):
        assert read(fn, x) is None


def test_energy_score_does_not_depend_on_an_overridden_forward():
    class Other(EnergyMLP):
        def forward(self, x, cond=None):
            return super().forward(x, cond) + x.square().sum(-1)

    net = Other(D, H)
    check_energy_score(net.score, data(B, D))
    assert read(net, data(B, D)) is None


def test_images():
    net = Image()
    check(net, data(B, 3, 2, 2), None, tuple(net.parameters()))
    check(net, data(B, 3, 4))
    check(ScoreMLP(12, H), data(B, 3, 4))
    sigma = data(B, seed=3).abs()
    check(lambda x: net(x) / sigma[:, None, None, None], data(B, 3, 2, 2))
    check(lambda x, s: net(x) * s.view(-1, 1, 1, 1), data(B, 3, 2, 2), sigma)


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 64])
def test_any_batch_size(batch):
    for make in (Loop, Tied, ByHand):
        check(make(), data(batch, D))
    for make in CONDITIONAL.values():
        check(make(), data(batch, D), data(batch).abs() + 0.1)


def test_batch_sizes_in_turn():
    """One record serves every batch size, or each its own where the code reads sizes: never another's."""
    for make in CONDITIONAL.values():
        net = make()
        for batch in (5, 1, 2, 9, 3, 5, D, H):
            check(net, data(batch, D), data(batch).abs() + 0.1)

    def per_size(x):
        return net(x) * (1.0 if len(x) < 4 else 2.0)

    net = Loop()
    for batch in (2, 6, 3, 4, 6):
        check(per_size, data(batch, D))


def test_callables_around_a_module():
    net, x, t = Concatenated(first=True), data(B, D), data(B)
    check(lambda y: net(y, t), x, None, tuple(net.parameters()))
    check(functools.partial(net, t=t), x)
    check(net.forward, x, t)
    check(lambda y: -3 * net(0.5 * y, t) + y / 2, x)
    check(lambda y: 1.5 - net(y, t), x)

    class Wrapped:
        def __init__(self, net, scale):
            self.net, self.scale = net, scale

        def __call__(self, x, cond):
            return self.net(x, cond) * self.scale

    wrapped = Wrapped(net, 2.0)
    check(wrapped, x, t)
    wrapped.scale = 3.0
    check(wrapped, x, t)


def test_broadcast_conditions():
    net, x = ScoreMLP(D, H, cond_dim=1), data(B, D)
    for cond in (torch.tensor(0.3), torch.tensor([0.3]), torch.full((B, 1), 0.3)):
        check(net, x, cond, tuple(net.parameters()))
    pair = ScoreMLP(D, H, cond_dim=B)
    check(pair, x, data(B))
    check(pair, data(2, D), data(B))


def test_conditions_of_whole_numbers():
    class Labelled(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.a, self.b = nn.Embedding(4, H), nn.Linear(D, H), nn.Linear(H, D)

        def forward(self, x, label):
            return self.b(F.silu(self.a(x) + self.table(label)))

    net = Labelled()
    check(net, data(B, D), torch.tensor([0, 3, 1, 1, 2]), tuple(net.parameters()))


def test_constants_shaped_like_x():
    net, x = Loop(inputs=D + 1), data(B, D)
    check(lambda y: net(torch.cat([y, torch.ones_like(y[:, :1])], -1)), x)
    check(lambda y: net(torch.cat([y, torch.full((y.shape[0], 1), 0.3)], -1)), x)
    t = torch.tensor([[0.7]])
    check(lambda y: net(torch.cat([y, t.expand(len(y), 1)], -1)), x)


def test_functional_call():
    net, x = Loop(), data(B, D)
    other = {name: (p.detach() + 0.1).requires_grad_() for name, p in net.named_parameters()}
    check(lambda y: torch.func.functional_call(net, other, (y,)), x, None, tuple(other.values()))
    check(net, x, None, tuple(net.parameters()))


@pytest.mark.skipif(torch.__version__ < "2.12", reason="it took the inputs through a Function of its own, unreadable")
def test_checkpointing():
    net, x = Loop(), data(B, D)
    check(lambda y: torch.utils.checkpoint.checkpoint(net, y, use_reentrant=False), x, None, tuple(net.parameters()))


def test_reading_inside_a_checkpoint():
    """The calls made to record do not disturb what a checkpoint counts."""
    net, x = Added(), data(B, D).requires_grad_()
    t = data(B).abs() + 0.1

    def fn(y):
        return read(net, y, t).value(y)

    torch.utils.checkpoint.checkpoint(fn, x, use_reentrant=False).sum().backward()
    (theirs,) = torch.autograd.grad(net(x, t).sum(), x)
    torch.testing.assert_close(x.grad, theirs)


def test_random_states_are_left_alone():
    x = data(B, D)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()

    def noisy(y):
        return y * torch.rand(1) * random.random() * np.random.rand()

    def failing(y):
        raise RuntimeError(noisy(y).sum())

    for fn in (noisy, failing, Loop(nn.Dropout(0.5)), Loop()):
        state = torch.get_rng_state()
        read(fn, x)
        assert torch.equal(torch.get_rng_state(), state)
    assert before[1] == random.getstate()
    assert np.array_equal(before[2][1], np.random.get_state()[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    net = Added().to(dtype)
    x, t = data(B, D).to(dtype), data(B).abs().to(dtype) + 1
    reading = read(net, x, t)
    assert reading is not None
    assert reading.mlp.weights[0].dtype == dtype
    torch.testing.assert_close(reading.value(x), net(x, t), rtol=100 * torch.finfo(dtype).eps, atol=0.02)
    assert read(net, data(B, D).to(torch.float16), data(B).abs().to(torch.float16)) is None


class Random(nn.Module):
    """Drawn at random: the event, depth, activations, gains, residuals, conditions, scales and spellings."""

    def __init__(self, draw):
        super().__init__()
        self.event = draw.choice([(3,), (2, 2), (4,), (1,), (1, 2, 3)])
        width, depth, dim = draw.choice([2, 4, 5]), draw.choice([1, 2, 3]), int(np.prod(self.event))
        self.style = draw.choice(["none", "cat", "first", "every", "constant"])
        self.columns = draw.choice([1, 2])
        more = {"cat": self.columns, "constant": 1}.get(self.style, 0)
        self.layers = nn.ModuleList(
            nn.Linear(width if i else dim + more, width, bias=draw.random() < 0.7) for i in range(depth)
        )
        self.out = nn.Linear(width, dim, bias=draw.random() < 0.7)
        self.embed = nn.Sequential(nn.Linear(self.columns, width), nn.ReLU(), nn.Linear(width, width))
        self.maps = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(depth))
        self.activations = [draw.choice(SPELLINGS) for _ in range(depth)]
        self.residuals = [i > 0 and draw.random() < 0.4 for i in range(depth)]
        self.gains = nn.ParameterDict(
            {str(i): torch.linspace(0.5, 2, width) for i in range(depth) if draw.random() < 0.4}
        )
        self.flat, self.swap = draw.choice(["flatten", "view", "reshape"]), draw.random() < 0.5
        self.before, self.after = draw.choice(["", "number", "row"]), draw.choice(["", "-", "/", "skip", "-x", "1-"])

    @property
    def conditional(self):
        return self.style in ("cat", "first", "every")

    def forward(self, x, cond=None):
        rows = {"flatten": x.flatten(1), "view": x.view(x.shape[0], -1), "reshape": x.reshape(len(x), -1)}[self.flat]
        column = torch.zeros(1, 1) if cond is None else cond.reshape(-1, self.columns)
        h = {"": rows, "number": rows * 0.7, "row": rows / (1 + column[:, :1] ** 2).sqrt()}[self.before]
        if self.style == "cat":
            h = torch.cat([h, column] if self.swap else [column, h], -1)
        elif self.style == "constant":
            h = torch.cat((h, torch.full((x.shape[0], 1), 0.3)), dim=1)
        for i, layer in enumerate(self.layers):
            z = layer(h)
            if self.style == "every" or (self.style == "first" and i == 0):
                u = self.maps[i](self.embed(column))
                z = z + u if self.swap else u + z
            if str(i) in self.gains:
                z = z * self.gains[str(i)]
            new = self.activations[i](z)
            h = (h + new if self.swap else new + h) if self.residuals[i] else new
        out = self.out(h)
        out = {
            **{"": out, "-": -out, "/": out / column[:, :1].exp()},
            **{"skip": 0.3 * rows + out * 2, "-x": out - rows, "1-": 1 - out},
        }[self.after]
        return out.view_as(x) if self.swap else out.reshape(x.shape)


SPELLINGS = [
    *(F.silu, torch.tanh, F.softplus, F.gelu, F.softsign, torch.sin, nn.SiLU(), nn.Tanh(), nn.GELU("tanh")),
    *(lambda z: z * torch.sigmoid(z), lambda z: z.sigmoid().mul(z), lambda z: torch.sin(3.0 * z)),
]


@pytest.mark.parametrize("seed", range(30))
def test_random_architectures(seed):
    draw = random.Random(seed)
    net = Random(draw)
    for batch in draw.sample([1, 2, 3, 4, 5, 7], 3):
        cond = data(batch, net.columns, seed=batch) if net.conditional else None
        check(net, data(batch, *net.event, seed=seed), cond, tuple(net.parameters()))
