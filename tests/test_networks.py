"""ScoreMLP and EnergyMLP: shapes, conditions, the written-out score, initialisation and refusals."""

from __future__ import annotations

import math

import pytest
import scipy.integrate
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import fastscore
from fastscore._layers import gain_of
from fastscore.networks import EnergyMLP, ScoreMLP
from fastscore.reference.activations import ACTIVATIONS

NAMES = sorted(ACTIVATIONS)


def data(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def network(kind, *args, seed=1, **kwargs):
    torch.manual_seed(seed)
    net = kind(*args, **kwargs).double()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_forward_is_the_chain_it_says(name, depth):
    net = network(ScoreMLP, 3, 7, depth, name)
    h = x = data(5, 3)
    for layer in net.layers[:-1]:
        h = ACTIVATIONS[name](h @ layer.weight.T + layer.bias)
    torch.testing.assert_close(net(x), h @ net.layers[-1].weight.T + net.layers[-1].bias, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("cond_dim", [0, 2])
def test_energy_score_is_minus_the_gradient(name, depth, cond_dim):
    """Values, input gradients and parameter gradients against autograd of the energy, in float64."""
    net = network(EnergyMLP, 6, 8, depth, name, cond_dim)
    x = data(4, 2, 3).requires_grad_(True)
    args = (data(4, 2, seed=9),) if cond_dim else ()
    score, weight = net.score(x, *args), data(4, 2, 3, seed=5)
    (gradient,) = torch.autograd.grad(net(x, *args).sum(), x, create_graph=True)
    torch.testing.assert_close(score, -gradient, rtol=1e-12, atol=1e-12)

    inputs = [x, *(p for n, p in net.named_parameters() if n != f"layers.{depth}.bias")]
    mine = torch.autograd.grad((score * weight).sum(), inputs)
    theirs = torch.autograd.grad((-gradient * weight).sum(), inputs)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_energy_score_of_one_unit_by_hand():
    """`E = w tanh(a x + b) + c`, so `s = -w a (1 - tanh^2)`."""
    net = EnergyMLP(1, 1, 1, "tanh").double()
    with torch.no_grad():
        for p, value in zip(net.parameters(), (0.7, 0.2, -1.5, 3.0), strict=True):
            p.fill_(value)
    x = torch.tensor([[0.4], [-2.0]], dtype=torch.float64)
    t = torch.tanh(0.7 * x + 0.2)
    torch.testing.assert_close(net(x), (-1.5 * t + 3.0).squeeze(1))
    torch.testing.assert_close(net.score(x), 1.5 * 0.7 * (1 - t * t))


@pytest.mark.parametrize("shape", [(5, 12), (5, 3, 4), (5, 3, 2, 2), (0, 12), (1, 12)])
def test_events_of_any_shape(shape):
    score, energy = network(ScoreMLP, 12, 8), network(EnergyMLP, 12, 8)
    x = data(*shape)
    assert score(x).shape == energy.score(x).shape == x.shape
    assert energy(x).shape == (shape[0],)
    torch.testing.assert_close(score(x).flatten(1), score(x.flatten(1)))


def test_one_sample_for_function_transforms():
    net = network(ScoreMLP, 3, 8, cond_dim=1)
    x, t = data(4, 3), data(4, seed=2)
    torch.testing.assert_close(torch.func.vmap(net)(x, t), net(x, t))
    jacobian = torch.func.vmap(torch.func.jacrev(net))(x, t)
    assert jacobian.shape == (4, 3, 3)
    energy = network(EnergyMLP, 3, 8)
    gradient = torch.func.vmap(torch.func.grad(energy))(x)
    torch.testing.assert_close(energy.score(x), -gradient)


@pytest.mark.parametrize("kind", [ScoreMLP, EnergyMLP])
def test_conditions_of_every_shape_agree(kind):
    x = data(4, 3)
    one, two = network(kind, 3, 8, cond_dim=1), network(kind, 3, 8, cond_dim=2)
    t = torch.full((4,), 0.3, dtype=torch.float64)
    for cond in (t[:, None], t[0], t[:1], t[:1, None], 0.3, t.float()[0] * 0 + 0.3):
        torch.testing.assert_close(one(x, cond), one(x, t), rtol=1e-6, atol=1e-6)
    pair = data(2, seed=4)
    torch.testing.assert_close(two(x, pair), two(x, pair.expand(4, 2)))


def test_condition_reaches_every_hidden_layer_and_learns():
    net = network(ScoreMLP, 3, 8, 3, cond_dim=1)
    x, t = data(4, 3), data(4, seed=2).requires_grad_(True)
    net(x, t).square().sum().backward()
    assert t.grad is not None
    assert (t.grad != 0).all()
    for name, p in net.named_parameters():
        assert p.grad is not None and p.grad.abs().max() > 0, name


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_condition_is_what_the_docstring_says(columns):
    net = network(ScoreMLP, 2, 5, 2, "tanh", cond_dim=columns)
    x, c = data(3, 2), data(3, columns, seed=8)
    angles = torch.cat(
        [c[:, i : i + 1] * (0.25 * 2.0 ** torch.arange(7, dtype=torch.float64)) for i in range(columns)], 1
    )
    e = F.silu(net.condition.embed(torch.cat([c, torch.sin(angles), torch.cos(angles)], 1)))
    h = x
    for layer, shift in zip(net.layers[:-1], net.condition.maps, strict=True):
        h = torch.tanh(layer(h) + shift(e))
    torch.testing.assert_close(net(x, c), net.layers[-1](h))


@pytest.mark.parametrize("name", NAMES)
def test_initial_preactivations_have_unit_scale_and_the_output_is_small(name):
    torch.manual_seed(0)
    net = ScoreMLP(64, 512, 4, name)
    h = torch.randn(2000, 64)
    for layer in net.layers[:-1]:
        z = layer(h)
        h = ACTIVATIONS[name](z)
        assert 0.8 < z.square().mean().sqrt() < 1.25
    assert net(torch.randn(2000, 64)).std() < 0.25


def test_the_initial_condition_has_unit_scale_and_moves_every_layer():
    torch.manual_seed(0)
    condition = ScoreMLP(2, 400, 3, cond_dim=2).condition
    for layer, inputs in ((condition.embed, 30), *((layer, 400) for layer in condition.maps)):
        assert layer.weight.shape == (400, inputs)
        assert abs(float(layer.weight.detach().square().mean()) * inputs - 1) < 5 * math.sqrt(2 / layer.weight.numel())


@pytest.mark.parametrize("name", NAMES)
def test_the_gain_of_the_initialisation_is_that_of_a_normal(name):
    def integrand(z):
        value = float(ACTIVATIONS[name](torch.tensor(z, dtype=torch.float64)))
        return value**2 * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)

    moment = sum(scipy.integrate.quad(integrand, *ends)[0] for ends in ((-8.0, 0.0), (0.0, 8.0)))
    assert abs(gain_of(ACTIVATIONS[name]) ** -2 / moment - 1) < 1e-4


def test_seed_state_dict_and_copy():
    a, b = network(ScoreMLP, 3, 8, cond_dim=1, seed=5), network(ScoreMLP, 3, 8, cond_dim=1, seed=5)
    x, t = data(4, 3), data(4)
    assert torch.equal(a(x, t), b(x, t))
    c = network(ScoreMLP, 3, 8, cond_dim=1, seed=6)
    c.load_state_dict(a.state_dict())
    assert torch.equal(a(x, t), c(x, t))
    assert {name.split(".")[0] for name in a.state_dict()} == {"layers", "condition"}


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "selu"])
@pytest.mark.parametrize("kind", [ScoreMLP, EnergyMLP])
def test_activations_without_a_second_derivative_are_refused(kind, name):
    with pytest.raises(ValueError, match=rf"(?s){name}.*second derivative.*'silu'.*'tanh'"):
        kind(2, activation=name)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dim": 0}, ValueError, "dim must be at least 1, got 0"),
        ({"dim": 2.0}, TypeError, "dim must be an int"),
        ({"dim": 2, "width": 0}, ValueError, "width must be at least 1, got 0"),
        ({"dim": 2, "depth": 0}, ValueError, "depth must be at least 1, got 0"),
        ({"dim": 2, "cond_dim": -1}, ValueError, "cond_dim must be at least 0, got -1"),
        ({"dim": 2, "activation": "swish7"}, ValueError, "activation must be one of .*'silu'.*got 'swish7'"),
        ({"dim": 2, "activation": None}, ValueError, "activation must be one of .*got None"),
    ],
)
def test_bad_arguments(arguments, error, message):
    for kind in (ScoreMLP, EnergyMLP):
        with pytest.raises(error, match=message):
            kind(**arguments)


def test_bad_inputs():
    plain, conditional = ScoreMLP(3, 8), ScoreMLP(3, 8, cond_dim=2)
    x = torch.zeros(4, 3)
    with pytest.raises(ValueError, match=r"x must have shape .* with 3 features, got \[4, 2\]"):
        plain(torch.zeros(4, 2))
    with pytest.raises(TypeError, match="x must be a floating point tensor"):
        plain(torch.zeros(4, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="cond was given to a network without a condition"):
        plain(x, torch.zeros(4))
    with pytest.raises(ValueError, match="cond is missing: the network was built with cond_dim=2"):
        conditional(x)
    for cond in (torch.zeros(4, 3), torch.zeros(3, 2), torch.zeros(4), torch.zeros(1, 4, 2), 0.5):
        with pytest.raises(ValueError, match=r"cond must have shape \[4, 2\]"):
            conditional(x, cond)


@pytest.mark.parametrize("kind", [ScoreMLP, EnergyMLP])
def test_compiles_into_one_graph(kind):
    net = network(kind, 3, 8, cond_dim=1)
    x, t = data(4, 3), data(4, seed=2)
    fn = net.score if kind is EnergyMLP else net
    compiled = torch.compile(fn, backend="aot_eager", fullgraph=True)
    compiled(x, t).square().sum().backward()
    mine = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    fn(x, t).square().sum().backward()
    theirs = [p.grad for p in net.parameters() if p.grad is not None]
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("use", ["call", "loss", "chain"])
def test_a_network_of_another_dtype_is_named(use: str) -> None:
    net, x = ScoreMLP(2), torch.zeros(3, 2, dtype=torch.float64)
    call = {
        "call": lambda: net(x),
        "loss": lambda: fastscore.implicit_score_matching(net, x),
        "chain": lambda: fastscore.langevin_dynamics(net, x, step_size=0.1, n_steps=2, seed=0),
    }[use]
    with pytest.raises(TypeError, match=r"x is torch\.float64, the network torch\.float32"):
        call()
    with torch.autocast("cpu", torch.bfloat16):
        assert ScoreMLP(2)(x.bfloat16()).shape == x.shape


class Adapted(nn.Module):
    """What LoRA makes of a layer."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer, self.down, self.up = layer, nn.Linear(layer.in_features, 2), nn.Linear(2, layer.out_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + self.up(self.down(x))


CHANGES = {
    "adapter": lambda layer: Adapted(layer).double(),
    "sequence": lambda layer: nn.Sequential(layer, nn.Tanh()),
    "parametrized": parametrizations.weight_norm,
    "no bias": lambda layer: nn.Linear(layer.in_features, layer.out_features, bias=False).double(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_layers_put_in_the_place_of_others_are_called(change: str) -> None:
    """Wrapped layers count in the value, the energy's score, its trace (eager, chunked, compiled) and the gradients."""
    torch._dynamo.reset()
    score, energy, x = network(ScoreMLP, 3, 8), network(EnergyMLP, 3, 8), data(6, 3).requires_grad_()
    for net in (score, energy):
        net.layers[1] = CHANGES[change](net.layers[1])
    h = F.silu(score.layers[1](F.silu(score.layers[0](x))))
    torch.testing.assert_close(score(x), score.layers[2](h))

    (slope,) = torch.autograd.grad(energy(x).sum(), x, create_graph=True)
    torch.testing.assert_close(energy.score(x), -slope)
    trace = -torch.stack([torch.autograd.grad(slope[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(3)])
    inner = list(energy.layers[1].parameters())
    expected = torch.autograd.grad(trace.sum(), inner, allow_unused=True, materialize_grads=True)
    compiled = torch.compile(lambda x: fastscore.divergence(energy.score, x).trace, backend="aot_eager", fullgraph=True)
    for found in (*(fastscore.divergence(energy.score, x, chunk_size=n).trace for n in (None, 4)), compiled(x)):
        torch.testing.assert_close(found, trace.sum(0))
        mine = torch.autograd.grad(found.sum(), inner, allow_unused=True, materialize_grads=True)
        torch.testing.assert_close(mine, expected)
    with torch.no_grad():
        assert not energy.score(x.detach()).requires_grad
    with pytest.raises(TypeError, match=r"layers\.1 must be a plain nn\.Linear here, got a"):
        score.structure()


@pytest.mark.parametrize("kind", [ScoreMLP, EnergyMLP])
def test_networks_built_without_numbers(kind: type[ScoreMLP] | type[EnergyMLP]) -> None:
    """On the meta device, then filled; of fake tensors."""
    whole, x = kind(3, 8, cond_dim=1), torch.randn(4, 3)
    for assign in (False, True):
        with torch.device("meta"):
            net = kind(3, 8, cond_dim=1)
        net = net if assign else net.to_empty(device="cpu")
        net.load_state_dict(whole.state_dict(), assign=assign)
        assert torch.equal(net(x, 0.3), whole(x, 0.3))
    with FakeTensorMode():
        assert len(kind(3, 8, cond_dim=1)(torch.randn(4, 3), 0.3)) == 4


def test_new_weights_are_drawn_for_the_condition_too() -> None:
    net = ScoreMLP(3, 8, cond_dim=2)
    before = {name: weight.clone() for name, weight in net.state_dict().items()}
    net.reset_parameters()
    assert [name for name, weight in net.state_dict().items() if torch.equal(weight, before[name])] == ["layers.2.bias"]
    assert net.condition.embed.bias.abs().max() < net.condition.embed.in_features**-0.5
