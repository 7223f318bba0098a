"""Metrics: closed forms and brute force."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastscore import noise, targets
from fastscore.metrics import fisher_divergence, kernel_stein_discrepancy

X = torch.ones(4, 3)


def data(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return noise.normal(shape, seed=seed, stream=noise.Stream.DATA, dtype=dtype)


def close(actual: object, expected: object, tolerance: float = 1e-11) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_fisher_divergence_of_two_gaussians() -> None:
    """Scores -x / a and -x / b differ by (1/b - 1/a) x: the mean square is (1/b - 1/a)^2 mean |x|^2."""
    x = data(7, 2, 2)
    square = x.square().sum() / 7
    target = lambda x: -x / 2.0  # noqa: E731
    close(fisher_divergence(lambda x: -x / 0.5, target, x), 1.5**2 * square)
    close(fisher_divergence(lambda x: -x / 0.5, target, x, relative=True), torch.tensor(9.0, dtype=torch.float64))
    close(fisher_divergence(lambda x: 0 * x, target, x, relative=True), torch.tensor(1.0, dtype=torch.float64))
    close(fisher_divergence(lambda x, c: c * x, -x / 2, x, cond=-0.5), torch.tensor(0.0, dtype=torch.float64))


def test_fisher_divergence_takes_targets() -> None:
    target = targets.GaussianMixture.ring()
    x = target.sample(50, seed=1)
    assert float(fisher_divergence(target.score, target, x)) == float(fisher_divergence(target, target, x)) == 0
    assert torch.equal(kernel_stein_discrepancy(target, x), kernel_stein_discrepancy(target.score, x))
    expected = (target.score(x) + x).square().sum(1).mean()
    close(fisher_divergence(lambda x: -x, target.score(x), x), expected, 1e-6)
    assert fisher_divergence(lambda x: -x, lambda x: -x, x.bfloat16()).dtype == torch.float32


def stein_kernel(score: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, bandwidth: float) -> Tensor:
    """The Stein kernel of two points by autograd, from its definition."""
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    k = (1 + (x - y).square().sum() / bandwidth**2) ** -0.5
    dx, dy = torch.autograd.grad(k, (x, y), create_graph=True)
    trace = sum(torch.autograd.grad(dx[i], y, retain_graph=True)[0][i] for i in range(len(x)))
    s, t = score(x), score(y)
    return (s @ t * k + s @ dy + t @ dx + trace).detach()


@pytest.mark.parametrize("bandwidth", [1.0, 0.6])
def test_stein_discrepancy_against_its_definition(bandwidth: float, monkeypatch: pytest.MonkeyPatch) -> None:
    x = data(6, 3)
    score = torch.sin
    kernel = torch.stack([torch.stack([stein_kernel(score, a, b, bandwidth) for b in x]) for a in x])
    close(kernel_stein_discrepancy(score, x, bandwidth=bandwidth), kernel.mean())
    off_diagonal = (kernel.sum() - kernel.trace()) / 30
    close(kernel_stein_discrepancy(score, x, bandwidth=bandwidth, unbiased=True), off_diagonal)
    monkeypatch.setattr("fastscore.metrics._DIFFERENCES", 40)  # two rows at a time
    close(kernel_stein_discrepancy(score, x, bandwidth=bandwidth), kernel.mean())
    image = x.reshape(6, 1, 3)
    close(kernel_stein_discrepancy(lambda x, c: c * score(x), image, cond=1.0, bandwidth=bandwidth), kernel.mean())


@pytest.mark.parametrize("bandwidth", [0.01, 0.1, 1.0])
def test_the_unbiased_discrepancy_never_sums_its_diagonal(bandwidth: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a narrow kernel, the diagonal is a million times the rest."""
    x = data(300, 3, dtype=torch.float32)
    exact = float(kernel_stein_discrepancy(lambda x: -x, x.double(), bandwidth=bandwidth, unbiased=True))
    for held in (2**24, 4000):  # whole, and some rows at a time
        monkeypatch.setattr("fastscore.metrics._DIFFERENCES", held)
        found = float(kernel_stein_discrepancy(lambda x: -x, x, bandwidth=bandwidth, unbiased=True))
        assert found == pytest.approx(exact, rel=1e-4, abs=1e-6)


def test_the_discrepancy_has_nothing_of_autocast() -> None:
    x = data(50, 3, dtype=torch.float32)
    expected = kernel_stein_discrepancy(torch.sin, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(kernel_stein_discrepancy(torch.sin, x), expected)


def test_bandwidths_whose_squares_overflow() -> None:
    """The kernel is 1 for all points of a wide one, and 0 for two of a narrow one."""
    x = data(50, 3, dtype=torch.float32)
    wide = kernel_stein_discrepancy(lambda x: 1 - x, x, bandwidth=1e20)
    close(wide, (1 - x).mean(0).square().sum(), 1e-5)
    narrow = kernel_stein_discrepancy(lambda x: 1 - x, x, bandwidth=1e-20, unbiased=True)
    assert abs(float(narrow)) < 1e-12


def test_stein_discrepancy_tells_right_from_wrong() -> None:
    """Unbiased, its mean over samples of the target is zero: over 40 sets of 200 within 5 standard errors."""
    target = targets.Gaussian([0.0, 0.0], 1.0)
    right = torch.stack(
        [kernel_stein_discrepancy(target.score, target.sample(200, seed=i), unbiased=True) for i in range(40)]
    )
    assert abs(float(right.mean())) < 5 * float(right.std()) / math.sqrt(40)
    wrong = kernel_stein_discrepancy(target.score, 1.6 * target.sample(200, seed=1), unbiased=True)
    assert float(wrong) > 5 * float(right.std())


@pytest.mark.parametrize(
    ("error", "call", "message"),
    [
        (TypeError, lambda: fisher_divergence(1, torch.tanh, X), "score_fn must be callable"),
        (TypeError, lambda: fisher_divergence(torch.tanh, 1, X), "target must have a score method"),
        (ValueError, lambda: fisher_divergence(torch.tanh, X[:1], X), "target must have the shape of x"),
        (ValueError, lambda: fisher_divergence(torch.tanh, torch.tanh, X[:0]), "batch is empty"),
        (TypeError, lambda: kernel_stein_discrepancy(1, X), "score_fn must be callable"),
        (ValueError, lambda: kernel_stein_discrepancy(torch.tanh, X[:0]), "batch is empty"),
        (
            ValueError,
            lambda: kernel_stein_discrepancy(torch.tanh, X, bandwidth=0.0),
            "bandwidth must be finite and > 0",
        ),
        (ValueError, lambda: kernel_stein_discrepancy(torch.tanh, X[:1], unbiased=True), "x must have at least 2 rows"),
        (ValueError, lambda: kernel_stein_discrepancy(lambda x: x[:1], X), "score_fn must return"),
    ],
)
def test_errors_name_the_argument(error: type[Exception], call: Callable[[], object], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
