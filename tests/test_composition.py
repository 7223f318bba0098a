"""The losses inside other people's machinery: autocast, accumulation, checkpointing, ensembles, frozen networks."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint

from fastscore import EnergyMLP, ScoreMLP, divergence, implicit_score_matching, noise

X = noise.normal((12, 3), seed=1, stream=noise.Stream.DATA, dtype=torch.float64)
HOW: dict[str, dict[str, object]] = {
    "exact": {},
    "hutchinson": {"trace": "hutchinson", "n_probes": 2, "seed": 5},
}
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "closed": lambda: ScoreMLP(3, 8),
    "tangents": lambda: ScoreMLP(3, 8, 3),
    "generic": lambda: nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.SiLU(), nn.Linear(8, 3)),
}


class Loss(nn.Module):
    """The loss in a module's forward: the form for what wraps modules."""

    def __init__(self, net: nn.Module, how: dict[str, object]) -> None:
        super().__init__()
        self.net, self.how = net, how

    def forward(self, x: Tensor) -> Tensor:
        return implicit_score_matching(self.net, x, **self.how)


@pytest.fixture(params=NETWORKS)
def net(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(2)
    return NETWORKS[request.param]().double()


@pytest.fixture(params=HOW)
def how(request: pytest.FixtureRequest) -> dict[str, object]:
    return HOW[request.param]


def gradients(loss: Tensor, net: nn.Module) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, list(net.parameters()), allow_unused=True, materialize_grads=True)


def close(actual: object, expected: object, tolerance: float = 1e-11) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_autocast(net: nn.Module, how: dict[str, object]) -> None:
    """Within a few roundings of bfloat16, 2^-8; parameters and their gradients stay in float32."""
    net, x = net.float(), X.float()
    with torch.autocast("cpu", torch.bfloat16):
        loss = implicit_score_matching(net, x, **how)
    exact = implicit_score_matching(net, x, **how)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.03, atol=0.03)
    for a, b in zip(gradients(loss, net), gradients(exact, net), strict=True):
        assert a.dtype == torch.float32
        assert float((a - b).norm()) <= 0.05 * float(b.norm()) + 1e-3


def test_gradients_accumulate(net: nn.Module) -> None:
    implicit_score_matching(net, X).backward()
    whole = [p.grad for p in net.parameters()]
    net.zero_grad()
    for part in X.split(5):
        (len(part) / len(X) * implicit_score_matching(net, part)).backward()
    close([p.grad for p in net.parameters()], whole)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_draws_the_same_probes_again(net: nn.Module, reentrant: bool) -> None:
    x = X.clone().requires_grad_()
    for trace in ("exact", "hutchinson"):

        def loss(x: Tensor, trace: str = trace) -> Tensor:
            return implicit_score_matching(net, x, trace=trace, n_probes=2)  # no seed: from torch's generator

        torch.manual_seed(4)
        expected = loss(x)
        torch.manual_seed(4)
        found = checkpoint(loss, x, use_reentrant=reentrant)
        close(found, expected)
        inputs = [x, *net.parameters()]
        expected_gradients = torch.autograd.grad(expected, inputs)
        for tensor in inputs:
            tensor.grad = None
        found.backward()  # the reentrant kind takes no autograd.grad
        close([tensor.grad for tensor in inputs], list(expected_gradients))


def test_functional_call(net: nn.Module, how: dict[str, object]) -> None:
    other = {name: (p + 0.1).detach().requires_grad_() for name, p in net.named_parameters()}
    loss = implicit_score_matching(lambda x: functional_call(net, other, (x,)), X, **how)
    changed = copy.deepcopy(net)
    changed.load_state_dict(other)
    expected = implicit_score_matching(changed, X, **how)
    close(loss, expected)
    close(torch.autograd.grad(loss, list(other.values())), gradients(expected, changed))


@pytest.mark.parametrize("kind", [*NETWORKS, "energy"])
def test_ensembles(kind: str, how: dict[str, object]) -> None:
    """One vmap over stacked networks is a loop over them, be it the score or the loss that is called functionally."""
    make = NETWORKS.get(kind, lambda: EnergyMLP(3, 8))
    nets = [make().double() for _ in range(3)]
    parameters, buffers = stack_module_state(nets)
    base = copy.deepcopy(nets[0]).to("meta")

    def score(net: nn.Module) -> Callable[[Tensor], Tensor]:
        return net.score if isinstance(net, EnergyMLP) else net

    def by_score(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        return implicit_score_matching(lambda x: functional_call(base, (parameters, buffers), (x,)), x, **how)

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = base

        def forward(self, x: Tensor) -> Tensor:
            return implicit_score_matching(score(self.net), x, **how)

    def by_loss(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        named = {f"net.{name}": value for name, value in (parameters | buffers).items()}
        return functional_call(Whole(), named, (x,))

    losses = [implicit_score_matching(score(net), X, **how) for net in nets]
    expected = [gradients(loss, net) for loss, net in zip(losses, nets, strict=True)]
    for function in [by_loss] if kind == "energy" else [by_loss, by_score]:
        close(vmap(function, (0, 0, None))(parameters, buffers, X), torch.stack(losses))
        found = vmap(grad(function), (0, 0, None))(parameters, buffers, X)
        for index, each in enumerate(expected):
            close([value[index] for value in found.values()], list(each))


@pytest.mark.parametrize(
    ("net", "method"), [(ScoreMLP(3, 8), "closed-form"), (EnergyMLP(3, 8).score, "forward-laplacian")]
)
def test_transforms_keep_the_closed_forms(net: Callable[[Tensor], Tensor], method: str) -> None:
    methods = []

    def trace(x: Tensor) -> Tensor:
        found = divergence(net, x)
        methods.append(found.method)
        return found.trace.sum()

    vmap(grad(trace))(X.float().view(3, 4, 3))
    assert methods == [method]


def test_frozen_parameters(net: nn.Module, how: dict[str, object]) -> None:
    expected = gradients(implicit_score_matching(net, X, **how), net)
    first, *rest = net.parameters()
    first.requires_grad_(False)
    loss = implicit_score_matching(net, X, **how)
    close(torch.autograd.grad(loss, rest), expected[1:])
    net.requires_grad_(False)
    assert not implicit_score_matching(net, X, **how).requires_grad
    x = X.clone().requires_grad_()
    assert torch.autograd.grad(implicit_score_matching(net, x, **how), x)[0].norm() > 0


def test_training_and_evaluation_mode(how: dict[str, object]) -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 3)).double()
    with pytest.raises(ValueError, match="active dropout"):
        implicit_score_matching(net, X, **how)
    net.eval()
    loss = implicit_score_matching(net, X, **how)
    net.train()
    net[1].p = 0.0
    close(implicit_score_matching(net, X, **how), loss)
    net[1].p = 0.5
    with pytest.raises(ValueError, match="active dropout"):
        implicit_score_matching(net, X, **how)


def test_the_same_network_is_read_after_an_optimiser_step(net: nn.Module) -> None:
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        loss = implicit_score_matching(net, X)
        loss.backward()
        optimiser.step()
    s = net(X)
    j = torch.stack([torch.func.jacrev(lambda row: net(row[None])[0])(row) for row in X])
    close(divergence(net, X).trace, j.diagonal(0, 1, 2).sum(1))
    close(implicit_score_matching(net, X), (0.5 * s.square().sum(1) + j.diagonal(0, 1, 2).sum(1)).mean())
