"""Score matching losses: closed forms for Gaussian data and linear scores, brute force, reductions, errors."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fastscore import noise, targets
from fastscore.divergence import divergence
from fastscore.losses import (
    ScoreMatchingTerms,
    denoising_score_matching,
    explicit_score_matching,
    implicit_score_matching,
    sliced_score_matching,
)
from fastscore.networks import EnergyMLP

MEAN = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
COVARIANCE = torch.tensor([[2.0, 0.6, 0.0], [0.6, 1.0, -0.3], [0.0, -0.3, 0.5]], dtype=torch.float64)
MATRIX = torch.tensor([[1.0, 0.2, -0.1], [0.4, 0.8, 0.3], [0.0, -0.5, 1.5]], dtype=torch.float64)
CENTRE = torch.tensor([0.1, 0.2, -0.3], dtype=torch.float64)
LOSSES = {
    "implicit": implicit_score_matching,
    "sliced": sliced_score_matching,
    "explicit": lambda score_fn, x, seed=None, **how: explicit_score_matching(score_fn, x, target=torch.sin, **how),
    "denoising": lambda score_fn, x, **how: denoising_score_matching(score_fn, x, sigma=0.5, **how),
}


def data(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return noise.normal(shape, seed=seed, stream=noise.Stream.DATA, dtype=dtype)


def close(actual: object, expected: object, tolerance: float = 1e-11) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def exact_gaussian() -> Tensor:
    """Six points with mean MEAN and covariance COVARIANCE exactly: MEAN +- sqrt(3) times the columns of a factor."""
    steps = math.sqrt(3) * torch.linalg.cholesky(COVARIANCE).T
    return torch.cat([MEAN + steps, MEAN - steps])


class Linear(nn.Module):
    """The score -L (x - mu)."""

    def __init__(self, matrix: Tensor = MATRIX, centre: Tensor = CENTRE) -> None:
        super().__init__()
        self.matrix, self.centre = nn.Parameter(matrix.clone()), nn.Parameter(centre.clone())

    def forward(self, x: Tensor) -> Tensor:
        return -(x - self.centre) @ self.matrix.T


def network(d: int = 3, activation: type[nn.Module] = nn.Tanhshrink) -> nn.Module:
    """An MLP; one with SiLU is recognised, one with Tanhshrink takes the generic way."""
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(d, 6), activation(), nn.Linear(6, d)).double()


def brute(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x if x.requires_grad else x.detach().clone().requires_grad_()
    s = net(x)
    flat = s.flatten(1)
    rows = [torch.autograd.grad(flat[:, i].sum(), x, create_graph=True)[0].flatten(1) for i in range(flat.shape[1])]
    return s, torch.stack(rows, 1)


@pytest.mark.parametrize(("convention", "scale"), [("half", 1.0), ("fisher", 2.0)])
def test_implicit_loss_of_a_linear_score_on_gaussian_data(convention: str, scale: float) -> None:
    """ISM = 1/2 [tr(L' L S) + |L (m - mu)|^2] - tr L, exactly, for data with these moments."""
    value = implicit_score_matching(Linear(), exact_gaussian(), trace="exact", convention=convention)
    expected = 0.5 * ((MATRIX.T @ MATRIX @ COVARIANCE).trace() + (MATRIX @ (MEAN - CENTRE)).square().sum())
    close(value.detach(), scale * (expected - MATRIX.trace()))


def test_implicit_and_explicit_losses_differ_by_a_constant() -> None:
    target, x = targets.Gaussian(MEAN, COVARIANCE), exact_gaussian()
    constant = 0.5 * target.score(x).square().sum(1).mean()
    for model in (Linear(), Linear(torch.linalg.inv(COVARIANCE), MEAN), Linear(MATRIX.T, -CENTRE)):
        implicit = implicit_score_matching(model, x, trace="exact")
        explicit = explicit_score_matching(model, x, target=target)
        close(implicit.detach(), (explicit - constant).detach())
        close(
            torch.autograd.grad(implicit, list(model.parameters())),
            torch.autograd.grad(explicit, list(model.parameters())),
        )


def test_the_true_score_is_the_minimum() -> None:
    model, x = Linear(torch.linalg.inv(COVARIANCE), MEAN), exact_gaussian()
    loss = implicit_score_matching(model, x, trace="exact")
    for gradient in torch.autograd.grad(loss, list(model.parameters())):
        close(gradient, torch.zeros_like(gradient), 1e-13)
    for factor in (0.9, 1.1):
        other = implicit_score_matching(Linear(factor * model.matrix.detach(), MEAN), x)
        assert other.item() > loss.item()


@pytest.mark.parametrize("shape", [(5, 3), (3, 2, 2)])
@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("activation", [nn.Tanhshrink, nn.SiLU])
def test_implicit_loss_and_gradients_against_brute_force(
    shape: tuple[int, ...], trace: str, chunk_size: int | None, activation: type[nn.Module]
) -> None:
    net = nn.Sequential(nn.Flatten(), network(math.prod(shape[1:]), activation), nn.Unflatten(1, shape[1:]))
    x, y = data(*shape).requires_grad_(), data(*shape).requires_grad_()
    found = implicit_score_matching(
        net, x, trace=trace, n_probes=2, seed=3, chunk_size=chunk_size, return_terms=True, reduction="none"
    )
    s, j = brute(net, y)
    v = torch.stack(
        [noise.rademacher(shape, seed=3, stream=noise.Stream.PROBES, step=k, dtype=x.dtype) for k in (0, 1)]
    )
    v = v.flatten(2)
    each = torch.einsum("kbi,bij,kbj->kb", v, j, v)
    tr = j.diagonal(0, 1, 2).sum(1) if trace == "exact" else each.mean(0)
    squares = 0.5 * s.square().flatten(1).sum(1)
    close(found[:3], (squares + tr, squares, tr))
    recognised = {"exact": "closed-form", "hutchinson": "hutchinson-dual"}
    assert found.method == (f"{trace}-jvp" if activation is nn.Tanhshrink else recognised[trace])
    if trace == "exact":
        assert found.stderr is None
    else:
        close(found.stderr, (each[0] - each[1]).abs().detach() / 2)
    upstream = data(shape[0], seed=8)
    close(
        torch.autograd.grad(found.loss, [x, *net.parameters()], upstream),
        torch.autograd.grad(squares + tr, [y, *net.parameters()], upstream),
    )


@pytest.mark.parametrize("probe", ["rademacher", "normal"])
@pytest.mark.parametrize(("convention", "scale"), [("half", 1.0), ("fisher", 2.0)])
def test_sliced_loss_and_gradients_against_brute_force(probe: str, convention: str, scale: float) -> None:
    net, x = network(), data(5, 3)
    found = sliced_score_matching(
        net, x, n_probes=3, probe=probe, convention=convention, seed=3, reduction="none", return_terms=True
    )
    s, j = brute(net, x)
    draw = getattr(noise, probe)
    v = torch.stack([draw((5, 3), seed=3, stream=noise.Stream.PROBES, step=k, dtype=x.dtype) for k in range(3)])
    squares = scale * 0.5 * torch.einsum("kbi,bi->kb", v, s).square().mean(0)
    trace = scale * torch.einsum("kbi,bij,kbj->kb", v, j, v).mean(0)
    close(found[:3], (squares + trace, squares, trace))
    upstream = data(5, seed=8)
    close(
        torch.autograd.grad(found.loss, list(net.parameters()), upstream),
        torch.autograd.grad(squares + trace, list(net.parameters()), upstream),
    )
    assert found.method == "hutchinson-jvp"
    chunked = sliced_score_matching(
        net, x, n_probes=3, probe=probe, convention=convention, seed=3, reduction="none", chunk_size=2
    )
    close(chunked, found.loss)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("convention", ["half", "fisher"])
@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
@pytest.mark.parametrize("kind", ["score", "scaled", "energy"])
def test_reduced_losses_of_recognised_networks(kind: str, trace: str, convention: str, reduction: str) -> None:
    """The fused loss is the reduction of the per-sample losses, which are held to brute force above."""
    net = EnergyMLP(3, 6).double() if kind == "energy" else network(3, nn.SiLU)
    score = {"score": net, "scaled": lambda x: 2.0 * net(x), "energy": getattr(net, "score", None)}[kind]
    x, y = data(5, 3).requires_grad_(), data(5, 3).requires_grad_()
    how = {"trace": trace, "n_probes": 2, "convention": convention, "seed": 3}
    found = implicit_score_matching(score, x, reduction=reduction, **how)
    each = implicit_score_matching(score, y, reduction="none", **how)
    expected = each.mean() if reduction == "mean" else each.sum()
    close(found, expected)
    leaves = list(net.parameters())
    close(
        torch.autograd.grad(3 * found, [x, *leaves], allow_unused=True, materialize_grads=True),
        torch.autograd.grad(3 * expected, [y, *leaves], allow_unused=True, materialize_grads=True),
    )


def test_sliced_loss_has_the_mean_of_the_implicit_loss() -> None:
    n = 2**16
    x = torch.tensor([[1.0, -0.5, 0.3]], dtype=torch.float64).expand(n, 3)
    exact = implicit_score_matching(Linear(), x[:1], trace="exact").item()
    for how in ({"probe": "rademacher"}, {"probe": "normal", "n_probes": 2}):
        sliced = sliced_score_matching(Linear(), x, seed=5, reduction="none", **how).detach()
        reduced = implicit_score_matching(Linear(), x, trace="hutchinson", seed=5, reduction="none", **how).detach()
        for values in (sliced, reduced):
            assert abs(float(values.mean()) - exact) < 5 * float(values.std()) / math.sqrt(n)


@pytest.mark.parametrize("convention", ["half", "fisher"])
def test_explicit_loss_by_its_definition(convention: str) -> None:
    net, x = network(), data(5, 3)
    target = targets.Gaussian(MEAN, COVARIANCE)
    expected = (0.5 if convention == "half" else 1.0) * (net(x) - target.score(x)).square().sum(1)
    for given in (target, target.score, target.score(x)):
        close(explicit_score_matching(net, x, target=given, convention=convention, reduction="none"), expected)
    conditioned = explicit_score_matching(lambda x, c: c * x, x, target=lambda x: x, cond=data(5, 1))
    close(conditioned, (0.5 * ((data(5, 1) - 1) * x).square().sum(1)).mean())


@pytest.mark.parametrize("sigma", [0.7, torch.tensor(0.7), torch.tensor([0.1, 0.5, 1.0, 2.0, 3.0])])
@pytest.mark.parametrize("weighting", ["sigma2", "none"])
def test_denoising_loss_by_its_definition(sigma: float | Tensor, weighting: str) -> None:
    net, x = network(4), data(5, 2, 2)
    net = nn.Sequential(nn.Flatten(), net, nn.Unflatten(1, (2, 2)))
    e = noise.normal(x.shape, seed=4, stream=noise.Stream.DATA, dtype=x.dtype)
    level = torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, 1, 1)
    s = net(x + level * e)
    residual = level * s + e if weighting == "sigma2" else s + e / level
    expected = 0.5 * residual.square().flatten(1).sum(1)
    found = denoising_score_matching(net, x, sigma=sigma, weighting=weighting, seed=4, reduction="none")
    close(found, expected, 1e-7 if isinstance(sigma, Tensor) else 1e-11)
    upstream = data(5, seed=8)
    close(
        torch.autograd.grad(found, list(net.parameters()), upstream),
        torch.autograd.grad(expected, list(net.parameters()), upstream),
        1e-6 if isinstance(sigma, Tensor) else 1e-11,
    )


def test_denoising_passes_the_condition() -> None:
    sigma, x = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64), data(3, 2)
    # -e / sigma is what the score of the noise is: told sigma and given x = 0, a score reads it off exactly.
    found = denoising_score_matching(lambda x, c: -x / c[:, None] ** 2, 0 * x, sigma=sigma, cond=sigma, seed=1)
    close(found, torch.zeros((), dtype=torch.float64))


def test_denoising_is_minimal_at_the_score_of_the_blurred_data() -> None:
    """For data N(m, S) that is -(S + sigma^2 I)^-1 (x - m); the gradient there is zero within the noise."""
    n, sigma = 2**16, 0.8
    x = targets.Gaussian(MEAN, COVARIANCE).sample(n, seed=6)
    model = Linear(torch.linalg.inv(COVARIANCE + sigma**2 * torch.eye(3)), MEAN)
    per_row = denoising_score_matching(model, x, sigma=sigma, seed=7, reduction="none")
    scale = float(per_row.detach().std())
    for gradient in torch.autograd.grad(per_row.mean(), list(model.parameters())):
        assert float(gradient.abs().max()) < 5 * 3 * scale / math.sqrt(n)
    wrong = Linear(torch.linalg.inv(COVARIANCE), MEAN)
    gradient = torch.autograd.grad(denoising_score_matching(wrong, x, sigma=sigma, seed=7), wrong.matrix)[0]
    assert float(gradient.abs().max()) > 50 * scale / math.sqrt(n)


@pytest.mark.parametrize("name", LOSSES)
def test_reductions_are_of_the_per_sample_losses(name: str) -> None:
    net, x = network(), data(5, 3)
    loss = LOSSES[name]
    each = loss(net, x, seed=2, reduction="none")
    assert each.shape == (5,)
    close(loss(net, x, seed=2), each.mean())
    close(loss(net, x, seed=2, reduction="sum"), each.sum())
    scaled = torch.autograd.grad(2.0**16 * loss(net, x, seed=2), list(net.parameters()))
    plain = torch.autograd.grad(each, list(net.parameters()), torch.full((5,), 2.0**16 / 5, dtype=torch.float64))
    close(scaled, plain, 1e-10)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", [implicit_score_matching, sliced_score_matching])
def test_reduced_terms(loss: Callable[..., ScoreMatchingTerms], reduction: str) -> None:
    net, x = network(), data(5, 3)
    how = {"n_probes": 4, "seed": 2, "convention": "fisher", "return_terms": True}
    how |= {"trace": "hutchinson"} if loss is implicit_score_matching else {}
    each, whole = loss(net, x, reduction="none", **how), loss(net, x, reduction=reduction, **how)
    share = 1 / 5 if reduction == "mean" else 1.0
    close(whole[:3], tuple(share * part.sum() for part in each[:3]))
    close(whole.stderr, share * each.stderr.square().sum().sqrt())
    close(each.stderr, 2 * divergence(net, x, trace="hutchinson", n_probes=4, seed=2).stderr)


@pytest.mark.parametrize("name", LOSSES)
def test_random_losses_are_functions_of_the_seed(name: str) -> None:
    net, x = network(70).float(), data(4, 70, dtype=torch.float32)
    loss = LOSSES[name]
    assert torch.equal(loss(net, x, seed=5), loss(net, x, seed=5))
    if name == "explicit":
        return
    assert not torch.equal(loss(net, x, seed=5), loss(net, x, seed=6))
    seed = noise.resolve_seed(None, torch.Generator().manual_seed(1))
    assert torch.equal(loss(net, x, generator=torch.Generator().manual_seed(1)), loss(net, x, seed=seed))
    torch.manual_seed(3)
    first = loss(net, x)
    assert not torch.equal(loss(net, x), first)
    torch.manual_seed(3)
    assert torch.equal(loss(net, x), first)


@pytest.mark.parametrize("name", ["implicit", "sliced", "denoising"])
@pytest.mark.parametrize("kind", ["score", "scaled", "energy", "generic"])
def test_parts_of_a_batch_with_one_seed_have_the_noise_of_the_whole(name: str, kind: str) -> None:
    net = EnergyMLP(3, 6).double() if kind == "energy" else network(3, nn.Tanhshrink if kind == "generic" else nn.SiLU)
    score = {"scaled": lambda x: 2.0 * net(x) - x, "energy": getattr(net, "score", None)}.get(kind, net)
    x, how = data(7, 3), {"seed": 2**63, "reduction": "sum"}
    if name != "denoising":
        how |= {"n_probes": 2, "probe": "normal"} | ({"trace": "hutchinson"} if name == "implicit" else {})
    whole = LOSSES[name](score, x, first_chain=2**40, **how)
    parts = [LOSSES[name](score, x[i : i + 3], first_chain=2**40 + i, **how) for i in (0, 3, 6)]
    close(torch.stack(parts).sum(), whole)
    leaves = list(net.parameters())
    close(
        torch.autograd.grad(sum(parts), leaves, allow_unused=True, materialize_grads=True),
        torch.autograd.grad(whole, leaves, allow_unused=True, materialize_grads=True),
    )
    other = LOSSES[name](score, x, first_chain=1, **how)
    assert not torch.allclose(other, whole)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums_in_float32(name: str, dtype: torch.dtype) -> None:
    x = data(4, 4096, dtype=torch.float32).to(dtype)
    found = LOSSES[name](lambda x: -x, x, seed=1, reduction="none")
    exact = LOSSES[name](lambda x: -x, x.double(), seed=1, reduction="none")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=4 * torch.finfo(dtype).eps, atol=1.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_denoised_score_is_asked_in_the_dtype_of_x(dtype: torch.dtype) -> None:
    seen: list[torch.dtype] = []
    for sigma in (0.5, torch.tensor(0.5, dtype=torch.float64), torch.full((4,), 0.5, dtype=torch.float64)):
        loss = denoising_score_matching(lambda x: (seen.append(x.dtype), -x)[1], data(4, 3).to(dtype), sigma=sigma)
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert seen == 3 * [dtype]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weighting", ["sigma2", "none"])
def test_the_noise_of_half_precision_is_what_rounding_left(dtype: torch.dtype, weighting: str) -> None:
    """Data in one point has a score that knows its noise; sigma is less here than what two numbers differ by."""
    x = torch.full((4000, 4), 4.0, dtype=dtype).requires_grad_()
    sigma = torch.tensor(0.01 if dtype == torch.bfloat16 else 0.001, requires_grad=True)
    how = {"sigma": sigma, "weighting": weighting, "seed": 1}
    loss = denoising_score_matching(lambda y: (4.0 - y.float()) / sigma.detach() ** 2, x, **how)
    assert float(loss.detach()) < 1e-6
    score = torch.nn.Linear(4, 4)
    # The noise has no gradient: neither has x, but through the score, nor sigma, but where it is a factor.
    noisy: list[Tensor] = []
    loss = denoising_score_matching(lambda y: (noisy.append(y), score(y.float()))[1], x, reduction="sum", **how)
    found = torch.autograd.grad(loss, (x, sigma))
    e = (noisy[0].float() - 4.0).detach() / sigma.detach()
    y = noisy[0].detach().float().requires_grad_()
    level = sigma.detach().clone().requires_grad_()
    residual = level * score(y) + e if weighting == "sigma2" else score(y) + e / level
    of_y, of_level = torch.autograd.grad(0.5 * residual.square().sum(), (y, level))
    torch.testing.assert_close(found[0].float(), of_y.to(dtype).float(), rtol=1e-2, atol=1e-2)
    exact = noise.normal(x.shape, seed=1, stream=noise.Stream.DATA)
    torch.testing.assert_close(found[1], of_level + (of_y.to(dtype).float() * exact).sum(), rtol=1e-3, atol=1e-2)


def test_training_finds_the_score() -> None:
    torch.manual_seed(0)
    target = targets.Gaussian([1.0, -1.0], [[1.0, 0.3], [0.3, 0.5]])
    x = target.sample(512, seed=1)
    model = Linear(torch.eye(2), torch.zeros(2))
    optimizer = torch.optim.LBFGS(model.parameters(), line_search_fn="strong_wolfe", max_iter=200)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = implicit_score_matching(model, x)
        loss.backward()
        return loss

    optimizer.step(step)
    torch.testing.assert_close(model.centre.detach(), x.mean(0), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(model.matrix.detach(), torch.linalg.inv(x.T.cov(correction=0)), rtol=1e-2, atol=1e-2)


X = torch.ones(4, 3)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("error", "score_fn", "x", "how", "message"),
    [
        (ValueError, torch.tanh, X[:0], {}, r"x must have at least one row: the batch is empty, got \[0, 3\]"),
        (ValueError, torch.tanh, X[0], {}, r"x must have shape \[B, \*event\]"),
        (TypeError, torch.tanh, X.long(), {}, "x must be a floating point tensor, got torch.int64"),
        (TypeError, torch.tanh, None, {}, "x must be a tensor, got NoneType"),
        (TypeError, "net", X, {}, "score_fn must be callable, got str"),
        (ValueError, torch.tanh, X, {"reduction": "avg"}, "reduction must be one of 'mean', 'sum', 'none', got 'avg'"),
        (ValueError, lambda x: x[:, :1], X, {}, r"score_fn must return .* \[4, 3\], got \[4, 1\]"),
        (TypeError, lambda x: 0, X, {}, "score_fn must return a tensor, got int"),
    ],
)
def test_errors_of_every_loss(
    name: str, error: type[Exception], score_fn: object, x: object, how: dict[str, object], message: str
) -> None:
    with pytest.raises(error, match=message):
        LOSSES[name](score_fn, x, **how)


@pytest.mark.parametrize(
    ("error", "call", "message"),
    [
        (ValueError, lambda: implicit_score_matching(torch.tanh, X, convention="full"), "convention must be one of"),
        (ValueError, lambda: sliced_score_matching(torch.tanh, X, convention="full"), "convention must be one of"),
        (ValueError, lambda: implicit_score_matching(torch.tanh, X, trace="x"), "trace must be one of .* got 'x'"),
        (ValueError, lambda: implicit_score_matching(torch.tanh, X, n_probes=0), "n_probes must be at least 1, got 0"),
        (ValueError, lambda: sliced_score_matching(torch.tanh, X, n_probes=0), "n_probes must be at least 1, got 0"),
        (ValueError, lambda: sliced_score_matching(torch.tanh, X, probe="x"), "probe must be one of"),
        (ValueError, lambda: sliced_score_matching(torch.tanh, X, chunk_size=0), "chunk_size must be at least 1"),
        (ValueError, lambda: implicit_score_matching(torch.tanh, X, chunk_size=0), "chunk_size must be at least 1"),
        (ValueError, lambda: sliced_score_matching(torch.tanh, X, seed=2**64), "seed must be in"),
        (ValueError, lambda: implicit_score_matching(torch.tanh, X, first_chain=-1), r"first_chain must be in \[0, "),
        (ValueError, lambda: sliced_score_matching(torch.tanh, X, first_chain=2**56), "first_chain must be in"),
        (
            TypeError,
            lambda: denoising_score_matching(torch.tanh, X, sigma=1, first_chain=1.0),
            "first_chain must be an",
        ),
        (ValueError, lambda: explicit_score_matching(torch.tanh, X, target=X[:2]), "target must have the shape of x"),
        (TypeError, lambda: explicit_score_matching(torch.tanh, X, target=3), "target must have a score method"),
        (TypeError, lambda: explicit_score_matching(torch.tanh, X, target=lambda x: 3), "target must give a tensor"),
        (ValueError, lambda: denoising_score_matching(torch.tanh, X, sigma=0.0), "sigma must be finite and > 0, got 0"),
        (ValueError, lambda: denoising_score_matching(torch.tanh, X, sigma=float("nan")), "sigma must be finite"),
        (
            ValueError,
            lambda: denoising_score_matching(torch.tanh, X, sigma=torch.ones(3)),
            r"sigma .* shape \[4\], got",
        ),
        (ValueError, lambda: denoising_score_matching(torch.tanh, X, sigma=-X[:, 0]), "sigma must be finite and > 0"),
        (TypeError, lambda: denoising_score_matching(torch.tanh, X, sigma="1"), "sigma must be a number"),
        (
            ValueError,
            lambda: denoising_score_matching(torch.tanh, X, sigma=1, weighting="x"),
            "weighting must be one of",
        ),
        (ValueError, lambda: implicit_score_matching(nn.Dropout(), X), "active dropout"),
        (ValueError, lambda: implicit_score_matching(nn.BatchNorm1d(3), X), "BatchNorm in training mode"),
    ],
)
def test_errors_name_the_argument(error: type[Exception], call: Callable[[], object], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("how", [{}, {"trace": "hutchinson", "seed": 0}], ids=["exact", "hutchinson"])
def test_a_network_with_kinks_is_warned_of_where_it_is_trained(how: dict[str, str]) -> None:
    """The gradient of its trace is wrong: at the kinks the second derivative is not zero."""
    net, x = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)), torch.randn(5, 2)
    with pytest.warns(UserWarning, match="the score calls relu, .* use a smooth activation"):
        implicit_score_matching(net, x, **how)
    with torch.no_grad():
        implicit_score_matching(net, x, **how)
    denoising_score_matching(net, x, sigma=0.1, seed=0).backward()
