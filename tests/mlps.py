"""Networks written in many ways, and the check that a reading of one is right: for the tests of the reader."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastscore.networks import ScoreMLP
from fastscore.reader import read
from fastscore.reference.mlp import score_and_trace

D, H, B = 3, 7, 5


def data(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def call(fn, x, cond):
    return fn(x) if cond is None else fn(x, cond)


def check(fn, x, cond=None, parameters=(), kind="score"):
    """Read fn twice and compare the value, the Jacobian and the parameters' gradients with its own."""
    for _ in range(2):
        reading = read(fn, x, cond)
        assert reading is not None
        assert reading.kind == kind
        rows, out = x.flatten(1), call(fn, x, cond)
        mine = reading.value(rows)
        theirs = out.reshape(mine.shape)
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
        if kind == "score":
            brute = torch.autograd.functional.jacobian(lambda y: call(fn, y, cond).flatten(1).sum(0), x)
            brute = brute.flatten(2).permute(1, 0, 2)  # [B, D, D]
            scale = torch.ones(1, 1)
            y = rows if reading.in_scale is None else reading.in_scale * rows
            _, trace = score_and_trace(reading.mlp, y, reading.shifts)
            for s in (reading.in_scale, reading.out_scale):
                scale = scale if s is None else scale * s
            trace = scale.squeeze(1) * trace
            if reading.skip is not None:
                trace = trace + reading.skip.squeeze(1) * rows.shape[1]
            torch.testing.assert_close(trace, brute.diagonal(dim1=1, dim2=2).sum(1), rtol=1e-10, atol=1e-12)
        if parameters:
            weight = data(*mine.shape, seed=7)
            a = torch.autograd.grad((mine.square() * weight).sum(), parameters, allow_unused=True)
            b = torch.autograd.grad((theirs.square() * weight).sum(), parameters, allow_unused=True)
            for p, q in zip(a, b, strict=True):
                assert (p is None) == (q is None)
                if p is not None:
                    torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-11)
    return reading


def check_energy_score(fn, x, cond=None):
    """The reading's energy has minus fn for its gradient."""
    for _ in range(2):
        reading = read(fn, x, cond)
        assert reading is not None and reading.kind == "energy_score" and reading.is_plain
        rows = x.flatten(1).clone().requires_grad_()
        (gradient,) = torch.autograd.grad(reading.value(rows).sum(), rows)
        torch.testing.assert_close(-gradient.reshape(x.shape), call(fn, x, cond), rtol=1e-12, atol=1e-12)


class Loop(nn.Module):
    def __init__(self, activation=F.silu, residual=False, inputs=D, depth=3):
        super().__init__()
        sizes = [inputs] + [H] * depth
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.out = nn.Linear(H, D)
        self.activation, self.residual = activation, residual

    def forward(self, x):
        h = self.activation(self.layers[0](x))
        for layer in self.layers[1:]:
            new = self.activation(layer(h))
            h = h + new if self.residual else new
        return self.out(h)


class Concatenated(nn.Module):
    def __init__(self, first):
        super().__init__()
        self.net, self.first = Loop(inputs=D + 1), first

    def forward(self, x, t):
        parts = [t[:, None], x] if self.first else [x, t.unsqueeze(-1)]
        return self.net(torch.cat(parts, dim=-1))


class Added(nn.Module):
    """An embedding of the condition is added before the activations, and the output divided by it."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(1, H), nn.ReLU(), nn.Linear(H, 2 * H))
        self.a, self.b, self.c = nn.Linear(D, H), nn.Linear(H, H, bias=False), nn.Linear(H, D)

    def forward(self, x, sigma):
        u, v = self.embed(sigma.log()[:, None]).chunk(2, dim=-1)
        h = torch.tanh(self.a(x) + u)
        h = h + torch.tanh(v + self.b(h))
        return -self.c(h) / sigma[:, None]


class Preconditioned(nn.Module):
    """`s = (c_skip x + c_out F(c_in x, c_noise) - x) / sigma^2`."""

    def __init__(self):
        super().__init__()
        self.net = ScoreMLP(D, H, 2, "gelu", cond_dim=1)

    def forward(self, x, sigma):
        sigma = sigma.view(-1, 1)
        c_skip, c_out, c_in = (
            0.25 / (sigma**2 + 0.25),
            sigma * 0.5 / (sigma**2 + 0.25).sqrt(),
            (sigma**2 + 0.25).rsqrt(),
        )
        denoised = c_skip * x + c_out * self.net(c_in * x, sigma.log() / 4)
        return (denoised - x) / sigma**2


class ByHand(nn.Module):
    def __init__(self):
        super().__init__()
        self.w1, self.b1 = nn.Parameter(data(D, H)), nn.Parameter(data(H, seed=1))
        self.w2, self.w3 = nn.Parameter(data(H, H, seed=2)), nn.Parameter(data(D, H, seed=3))

    def forward(self, x):
        z = x @ self.w1 + self.b1
        z = torch.addmm(self.b1, z * torch.sigmoid(z), self.w2)
        return torch.matmul(torch.sin(2.5 * z), self.w3.T)


class Image(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(12, H), nn.Linear(H, 12)

    def forward(self, x):
        h = F.softplus(self.a(x.reshape(x.shape[0], -1)))
        return self.b(h).view(*x.shape)


class Parametrized(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.utils.parametrizations.weight_norm(nn.Linear(D, H)),
            nn.Tanh(),
            nn.Linear(H, H),
            nn.Tanh(),
            nn.Linear(H, D),
        )

    def forward(self, x):
        return self.net(x)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(D, H), nn.Linear(H, H), nn.Linear(H, D)

    def forward(self, x):
        h = F.softsign(self.b(F.softsign(self.b(F.softsign(self.a(x))))))
        return F.linear(h, self.a.weight.t(), self.c.bias)


def sequential(*activations):
    layers = [nn.Linear(D, H)]
    for activation in activations:
        layers += [activation, nn.Linear(H, H)]
    return nn.Sequential(*layers[:-1], nn.Linear(H, D))


CONDITIONAL = {
    "ScoreMLP": lambda: ScoreMLP(D, H, 3, cond_dim=1),
    "concatenated last": lambda: Concatenated(first=False),
    "concatenated first": lambda: Concatenated(first=True),
    "added": Added,
    "preconditioned": Preconditioned,
}


class Straight(torch.autograd.Function):
    """tanh with another derivative than tanh has."""

    @staticmethod
    def forward(ctx, z):
        return torch.tanh(z)

    @staticmethod
    def backward(ctx, grad):
        return grad
