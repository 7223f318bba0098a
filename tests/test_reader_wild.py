"""Networks as different authors write them: recognised or not, values and gradients are those of autograd."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastscore import ScoreMLP, divergence, explain, implicit_score_matching
from fastscore.reader import read
from tests.brute import brute_jacobian, data
from tests.mlps import B, D, H
from tests.mlps import double as double

Forward = Callable[..., Tensor]


class Net(nn.Module):
    """Four layers, a time embedding, two vectors and statistics, which a forward of its own uses as it likes."""

    def __init__(self, forward: Forward, inputs: int = D, outputs: int = D) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(inputs, H), nn.Linear(H, H), nn.Linear(H, H)
        self.out, self.time = nn.Linear(H, outputs), nn.Linear(8, H)
        self.gamma, self.delta = nn.Parameter(torch.rand(H) + 0.5), nn.Parameter(torch.rand(D) + 0.5)
        self.register_buffer("mean", torch.randn(D))
        self.register_buffer("std", torch.rand(D) + 0.5)
        self.register_buffer("frequencies", torch.linspace(0, 3, 4).exp())
        self.method = forward

    def embed(self, t: Tensor) -> Tensor:
        angles = t[:, None] * self.frequencies
        return self.time(torch.cat([angles.sin(), angles.cos()], dim=-1))

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        return self.method(self, x) if t is None else self.method(self, x, t)


def normalised(net: Net, x: Tensor) -> Tensor:
    h = (x - net.mean) / net.std
    return net.out(F.silu(net.b(F.silu(net.a(h))))) / net.std


def whitened_images(net: Net, x: Tensor) -> Tensor:
    mean, std = net.mean.view(3, 1, 1), net.std.view(1, 3, 1, 1)
    h = F.gelu(net.a(((x - mean) / std).flatten(1)))
    return net.out(h).view_as(x) / std - mean


def embedded_after(net: Net, x: Tensor, t: Tensor) -> Tensor:
    e = net.embed(t)
    h = F.silu(net.a(x)) + e
    h = h + F.silu(net.b(h)) + e
    return net.out(torch.tanh(net.c(h) + e)) / t.unsqueeze(1)


def edm(net: Net, x: Tensor, sigma: Tensor) -> Tensor:
    s, d = sigma.reshape(-1, 1), 0.5
    skip, out, scale = d**2 / (s**2 + d**2), s * d / (s**2 + d**2).sqrt(), 1 / (s**2 + d**2).sqrt()
    inner = net.out(F.silu(net.b(F.silu(net.a(scale * x) + net.embed(sigma.log() / 4)))))
    return (skip * x + out * inner - x) / s**2


def concatenated(net: Net, x: Tensor, t: Tensor) -> Tensor:
    return net.out(F.elu(net.b(F.mish(net.a(torch.cat((2 * x - 1, t.view(-1, 1)), 1))))))


def divided_residual(net: Net, x: Tensor) -> Tensor:
    h = F.silu(net.a(x))
    return net.out((h + F.silu(net.b(h))) / math.sqrt(2))


def in_place(net: Net, x: Tensor) -> Tensor:
    h = torch.tanh_(net.a(x))
    g = net.b(h)
    g += 0.5
    return net.out(g.sigmoid_() - 0.5).mul_(2.0)


def residual_in_place(net: Net, x: Tensor) -> Tensor:
    h = F.silu(net.a(x))
    g = F.silu(net.b(h), inplace=True)
    g += h
    return net.out(g)


def einsum(net: Net, x: Tensor) -> Tensor:
    h = torch.einsum("bi,oi->bo", x, net.a.weight) + net.a.bias
    h = torch.einsum("n h, h k -> n k", torch.tanh(h), net.b.weight)
    return torch.einsum("oh,bh->bo", net.out.weight, F.silu(h))


def by_hand(net: Net, x: Tensor) -> Tensor:
    h = x @ net.a.weight.T + net.a.bias
    h = torch.addmm(net.b.bias, h * torch.sigmoid(h), net.b.weight.t())
    return torch.negative(torch.matmul(torch.sin(torch.mul(h, 30.0)), net.out.weight.mT)) - 1


def layer_scale(net: Net, x: Tensor) -> Tensor:
    return net.delta * net.out(F.silu(net.b(net.gamma * F.silu(net.a(x)) - 0.1)))


def layer_scales(net: Net, x: Tensor) -> Tensor:
    h = net.gamma * (net.gamma.cos() * F.silu(net.a(x)))
    return net.delta * (net.delta.sin() * net.out(h))


def tied(net: Net, x: Tensor) -> Tensor:
    return F.linear(torch.tanh(net.b(torch.tanh(net.b(torch.tanh(net.a(x)))))), net.a.weight.t())


def chain(*activations: nn.Module) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(D, H)]
    for activation in activations:
        layers += [activation, nn.Linear(H, H)]
    return nn.Sequential(*layers[:-1], nn.Linear(H, D))


def materialised() -> nn.Module:
    net = nn.Sequential(nn.LazyLinear(H), nn.SiLU(), nn.LazyLinear(D))
    net(data(2, D))
    return net


def frozen() -> nn.Module:
    net = chain(nn.SiLU(), nn.Tanh())
    net[2].requires_grad_(False)
    return net


READ: dict[str, Callable[[], Forward]] = {
    "SiLU in place": lambda: chain(nn.SiLU(inplace=True), nn.SiLU(inplace=True)),
    "ELU in place": lambda: chain(nn.ELU(inplace=True)),
    "Mish, CELU": lambda: chain(nn.Mish(), nn.CELU()),
    "sigmoid": lambda: chain(nn.Sigmoid(), nn.Sigmoid()),
    "softplus of beta 5": lambda: chain(nn.Softplus(beta=5), nn.Softplus(0.5)),
    "dropout in eval": lambda: chain(nn.Sequential(nn.SiLU(), nn.Dropout(0.2, inplace=True))).eval(),
    "no biases": lambda: nn.Sequential(nn.Linear(D, H, bias=False), nn.GELU(), nn.Linear(H, D, bias=False)),
    "lazy": materialised,
    "frozen layer": frozen,
    "spectral norm in eval": lambda: nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(D, H)), nn.SiLU(), nn.Linear(H, D)
    ).eval(),
    "orthogonal": lambda: nn.Sequential(
        nn.Linear(D, H), nn.SiLU(), nn.utils.parametrizations.orthogonal(nn.Linear(H, H)), nn.Tanh(), nn.Linear(H, D)
    ),
    "skip around all": lambda: (lambda net: lambda x: x + net(x))(chain(nn.SiLU())),
    "partial": lambda: functools.partial(Net(lambda net, x: net.out(F.silu(net.a(x))))),
    "bound method": lambda: Net(tied).forward,
    **{
        f.__name__: functools.partial(Net, f)
        for f in (normalised, divided_residual, in_place, residual_in_place, einsum, by_hand, layer_scale, layer_scales)
    },
    "tied": lambda: Net(tied),
    "whitened images": lambda: Net(whitened_images, 12, 12),
    "embedded after": lambda: Net(embedded_after),
    "edm": lambda: Net(edm),
    "concatenated": lambda: Net(concatenated, D + 1),
}
NOT_READ: dict[str, Callable[[], Forward]] = {
    "ReLU": lambda: chain(nn.ReLU(), nn.LeakyReLU(0.1)),
    "SELU": lambda: chain(nn.SELU()),
    "GLU": lambda: nn.Sequential(nn.Linear(D, 2 * H), nn.GLU(), nn.Linear(H, D)),
    "ELU of alpha 2": lambda: chain(nn.ELU(2.0)),
    "FiLM": lambda: Net(lambda net, x, t: net.out(F.silu(net.a(x) * net.embed(t) + net.embed(t)))),
    "scaled residual": lambda: Net(lambda net, x: (lambda h: net.out(h + 0.5 * F.silu(net.b(h))))(F.silu(net.a(x)))),
    "block of two layers": lambda: Net(
        lambda net, x: (lambda h: net.out(h + net.c(F.silu(net.b(h)))))(F.silu(net.a(x)))
    ),
    "long skip": lambda: Net(lambda net, x: (lambda h: net.out(h + F.silu(net.c(F.silu(net.b(h))))))(F.silu(net.a(x)))),
    "layer norm": lambda: chain(nn.Sequential(nn.LayerNorm(H), nn.SiLU())),
    "weight norm by hooks": lambda: nn.Sequential(nn.utils.weight_norm(nn.Linear(D, H)), nn.SiLU(), nn.Linear(H, D)),
    "compiled": lambda: torch.compile(ScoreMLP(D, H), backend="eager"),
    "DataParallel": lambda: nn.DataParallel(ScoreMLP(D, H)),
    "two networks": lambda: (lambda a, b: lambda x: a(x) + b(x))(chain(nn.SiLU()), chain(nn.Tanh())),
    "product of x": lambda: (lambda net: lambda x: net(x) * x)(chain(nn.SiLU())),
}
SHAPES = {"whitened images": (B, 3, 2, 2)}
CONDITIONED = {"embedded after", "edm", "concatenated", "FiLM"}


def made(name: str) -> tuple[Forward, Tensor, Tensor | None, list[nn.Parameter]]:
    """The callable of that name, points, a condition, and the parameters that learn."""
    torch.manual_seed(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's, about what it deprecates
        fn = {**READ, **NOT_READ}[name]()
    x, t = data(*SHAPES.get(name, (B, D))), data(B, seed=2).abs() + 0.1 if name in CONDITIONED else None
    found: list[nn.Parameter] = []
    for value in (fn, getattr(fn, "func", None), getattr(fn, "__self__", None), *closed_over(fn)):
        found += value.parameters() if isinstance(value, nn.Module) else []
    return fn, x, t, [p for p in found if p.requires_grad]


def closed_over(fn: Forward) -> list[object]:
    return [cell.cell_contents for cell in getattr(fn, "__closure__", None) or ()]


@pytest.mark.filterwarnings("ignore:the score calls .*relu")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of torch.compile's
@pytest.mark.parametrize("name", [*READ, *NOT_READ])
def test_values_and_gradients_are_those_of_autograd(name: str) -> None:
    fn, x, t, parameters = made(name)
    assert parameters
    assert (read(fn, x, t) is not None) == (name in READ), explain(fn, x, cond=t).network
    score, jacobian = brute_jacobian(lambda x: fn(x) if t is None else fn(x, t), x)
    trace = jacobian.diagonal(0, 1, 2).sum(1)
    found = divergence(fn, x, cond=t)
    torch.testing.assert_close(found[:2], (score, trace), rtol=1e-10, atol=1e-10)
    assert (found.method in ("closed-form", "tangents")) == (name in READ)
    expected = (0.5 * score.square().flatten(1).sum(1) + trace).mean()
    loss = implicit_score_matching(fn, x, cond=t)
    torch.testing.assert_close(
        torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True),
        torch.autograd.grad(expected, parameters, allow_unused=True, materialize_grads=True),
        rtol=1e-9,
        atol=1e-9,
    )


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_a_record_of_few_rows_serves_any_batch(name: str, batch: int) -> None:
    fn, x, t, _ = made(name)
    read(fn, x, t)
    x, t = x[:batch], None if t is None else t[:batch]
    reading = read(fn, x, t)
    assert reading is not None
    torch.testing.assert_close(reading.value(x.flatten(1)).reshape(x.shape), fn(x) if t is None else fn(x, t))


def test_statistics_that_change_are_seen() -> None:
    fn, x, _, _ = made("normalised")
    for scale in (1.0, 3.0):
        fn.std.mul_(scale)
        fn.mean.add_(scale)
        trace = brute_jacobian(fn, x)[1].diagonal(0, 1, 2).sum(1)
        torch.testing.assert_close(divergence(fn, x).trace, trace)
