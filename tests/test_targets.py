"""Targets: log-densities against scipy, scores against autograd, samples against their law."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kstest, multivariate_normal
from torch import Tensor

import fastscore
from fastscore import noise, targets
from fastscore.ops import _cpu_build, _cpu_target

D, K = 3, 4


def spd(n: int, seed: int) -> Tensor:
    root = noise.normal((n, D, D), seed=seed, stream=noise.Stream.DATA, dtype=torch.float64)
    return root @ root.mT + 0.3 * torch.eye(D, dtype=torch.float64)


MEANS = 2 * noise.normal((K, D), seed=1, stream=noise.Stream.DATA, dtype=torch.float64)
WEIGHTS = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
COVARIANCES = {
    "shared": 0.7,
    "each": torch.tensor([0.2, 0.5, 1.0, 3.0], dtype=torch.float64),
    "diagonal": spd(K, 2).diagonal(0, -2, -1),
    "full": spd(K, 3),
}
X = 3 * noise.normal((50, D), seed=4, stream=noise.Stream.DATA, dtype=torch.float64)


def dense(covariance: float | Tensor) -> Tensor:
    eye = torch.eye(D, dtype=torch.float64)
    if isinstance(covariance, float):
        return (covariance * eye).expand(K, D, D)
    if covariance.dim() == 1:
        return covariance[:, None, None] * eye
    return torch.diag_embed(covariance) if covariance.dim() == 2 else covariance


@pytest.mark.parametrize("kind", COVARIANCES)
def test_mixture_log_prob_is_scipys(kind: str) -> None:
    target = targets.GaussianMixture(MEANS, COVARIANCES[kind], WEIGHTS)
    density = sum(
        w * multivariate_normal(m.numpy(), s.numpy()).pdf(X.numpy())
        for w, m, s in zip(WEIGHTS.tolist(), MEANS, dense(COVARIANCES[kind]), strict=True)
    )
    torch.testing.assert_close(target.log_prob(X), torch.from_numpy(density).log(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", COVARIANCES)
def test_mixture_score_is_the_gradient_of_log_prob(kind: str) -> None:
    target = targets.GaussianMixture(MEANS, COVARIANCES[kind], WEIGHTS)
    x = X.clone().requires_grad_()
    (expected,) = torch.autograd.grad(target.log_prob(x).sum(), x)
    torch.testing.assert_close(target.score(X), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", COVARIANCES)
def test_noise_adds_its_variance_to_every_component(kind: str) -> None:
    target = targets.GaussianMixture(MEANS, COVARIANCES[kind], WEIGHTS)
    sigmas = torch.linspace(0.1, 3.0, len(X), dtype=torch.float64)
    for x, sigma, score in zip(X, sigmas, target.noisy_score(X, sigmas), strict=True):
        known = targets.GaussianMixture(
            MEANS, dense(COVARIANCES[kind]) + sigma**2 * torch.eye(D, dtype=torch.float64), WEIGHTS
        )
        torch.testing.assert_close(score, known.score(x[None])[0], rtol=1e-10, atol=1e-10)
        smoothed = target.smoothed(float(sigma))
        torch.testing.assert_close(smoothed.log_prob(x[None]), known.log_prob(x[None]), rtol=1e-10, atol=1e-10)
    assert (smoothed.dtype, smoothed.device) == (target.dtype, target.device)
    listed = targets.GaussianMixture([[0.1], [0.7]], 0.3).smoothed(0.2)
    assert listed.sample(2, seed=1).dtype == listed.score(torch.zeros(1, 1)).dtype == torch.float32
    half = target.noisy_score(X.half(), sigmas)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.double(), target.noisy_score(X, sigmas), rtol=2e-2, atol=2e-2)


def test_noise_levels_are_checked() -> None:
    target = targets.GaussianMixture(MEANS, 1.0)
    with pytest.raises(ValueError, match=r"sigma must have one number a row, shape \[4\], got \[3\]"):
        target.noisy_score(torch.zeros(4, D), torch.ones(3))
    with pytest.raises(TypeError, match="sigma must be a tensor"):
        target.noisy_score(torch.zeros(4, D), 1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sigma must be finite and > 0"):
        target.smoothed(0.0)


@pytest.mark.parametrize("covariance", [0.5, [0.2, 0.5, 2.0], spd(1, 5)[0]], ids=["number", "diagonal", "full"])
def test_gaussian_against_scipy_and_the_textbook(covariance: object) -> None:
    target = targets.Gaussian(MEANS[0], covariance)
    s = torch.as_tensor(covariance, dtype=torch.float64)
    s = s if s.dim() == 2 else torch.diag(s.expand(D))
    law = multivariate_normal(MEANS[0].numpy(), s.numpy())
    torch.testing.assert_close(target.log_prob(X), torch.from_numpy(law.logpdf(X.numpy())), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(target.score(X), -(X - MEANS[0]) @ torch.linalg.inv(s), rtol=1e-10, atol=1e-10)
    assert target.lipschitz == pytest.approx(1 / float(torch.linalg.eigvalsh(s)[0]), rel=1e-10)


def test_scores_differentiate_twice() -> None:
    target = targets.GaussianMixture(MEANS, COVARIANCES["full"], WEIGHTS)
    x = X[:4].clone().requires_grad_()
    assert torch.autograd.gradcheck(target.score, (x,))
    assert torch.autograd.gradgradcheck(target.score, (x,))
    assert torch.autograd.gradgradcheck(target.log_prob, (x,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("distance", [1e2, 1e4, 1e8])
def test_score_far_in_the_tails(dtype: torch.dtype, distance: float) -> None:
    target = targets.GaussianMixture(torch.tensor([[-1.0, 0.0], [2.0, 0.0]], dtype=dtype), 0.5)
    x = torch.tensor([[distance, 0.0], [-distance, 0.0], [0.0, 3.0]], dtype=dtype)
    expected = torch.tensor([[-(distance - 2) / 0.5, 0.0], [(distance - 1) / 0.5, 0.0]], dtype=dtype)
    torch.testing.assert_close(target.score(x)[:2], expected, rtol=4 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("covariance", [1.0, 1e-30, [[1.0]], [[1e-30]]])
def test_a_gaussian_has_its_score_where_its_density_underflows(covariance: Any) -> None:
    target = targets.Gaussian([0.0], covariance)
    precision = 1 / torch.tensor(covariance, dtype=torch.float64).item()
    x = torch.tensor([[2e19 / precision**0.5], [3e4], [0.0]])
    torch.testing.assert_close(target.score(x).double(), -precision * x.double(), rtol=1e-6, atol=0)
    score, none = target.noisy_score(x, torch.full((3,), 1e-25)), target.log_prob(x)
    torch.testing.assert_close(score.double(), -precision * x.double(), rtol=1e-6, atol=0)
    assert none.tolist()[0] == -math.inf


def test_compiled_chains_reach_a_gaussian_from_where_its_density_underflows() -> None:
    if _cpu_build.library(build=True) is None:
        pytest.skip("no C compiler")
    target, x = targets.Gaussian([0.0, 0.0], 1.0), torch.full((3, 2), 1e20)
    for score in (target.score, lambda x: target.score(x)):
        out = fastscore.langevin_dynamics(score, x, step_size=0.9, n_steps=60, seed=1)
        assert float(out.abs().max()) < 10


@pytest.mark.parametrize(
    ("scale", "ratio"), [(1e308, 1.0), (1e308, 3e-308), (1e-308, 1.0), (5e-324, 1.0)], ids=lambda v: f"{v:g}"
)
def test_weights_of_any_size(scale: float, ratio: float) -> None:
    target = targets.GaussianMixture([[0.0], [1.0]], 1.0, [scale, scale * ratio])
    known = targets.GaussianMixture([[0.0], [1.0]], 1.0, [1.0, ratio])
    x = torch.linspace(-3, 3, 7).unsqueeze(1)
    torch.testing.assert_close(target.score(x), known.score(x), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(target.log_prob(x), known.log_prob(x), rtol=1e-6, atol=1e-6)
    assert bool(target.score(x).isfinite().all())


def test_lipschitz_bounds_the_jacobian_and_is_reached() -> None:
    target = targets.GaussianMixture([[-2.0, 0.0], [2.0, 0.0]], [[0.5, 2.0], [0.5, 2.0]])
    grid = torch.cartesian_prod(*2 * [torch.linspace(-4, 4, 81, dtype=torch.float64)])
    jacobians = torch.func.vmap(torch.func.jacrev(lambda x: target.score(x[None])[0]))(grid)
    largest = float(torch.linalg.matrix_norm(jacobians, ord=2).max())
    assert target.lipschitz == pytest.approx(max(1, 32 / 4 - 1) / 0.5)
    assert largest <= target.lipschitz
    assert largest == pytest.approx(target.lipschitz, rel=1e-6)  # at the saddle, which the grid contains
    assert targets.GaussianMixture(MEANS, COVARIANCES["each"]).lipschitz is None


def test_lipschitz_of_a_covariance_that_all_share() -> None:
    covariance, apart = torch.tensor([[2.0, 0.6], [0.6, 0.5]], dtype=torch.float64), torch.tensor([3.0, -1.0]).double()
    target = targets.GaussianMixture(torch.stack([-apart / 2, apart / 2, 0 * apart]), covariance.expand(3, 2, 2))
    distance = float(apart @ torch.linalg.solve(covariance, apart))  # of Mahalanobis, squared, of the farthest two
    assert target.lipschitz == pytest.approx((distance / 4 - 1) / float(torch.linalg.eigvalsh(covariance)[0]))
    grid = torch.cartesian_prod(*2 * [torch.linspace(-3, 3, 41, dtype=torch.float64)])
    jacobians = torch.func.vmap(torch.func.jacrev(lambda x: target.score(x[None])[0]))(grid)
    assert float(torch.linalg.matrix_norm(jacobians, ord=2).max()) <= target.lipschitz


def test_constants_follow_the_points() -> None:
    target = targets.GaussianMixture(MEANS.float(), COVARIANCES["full"].float(), WEIGHTS)
    exact = targets.GaussianMixture(MEANS.float().double(), COVARIANCES["full"].float().double(), WEIGHTS)
    assert target.score(X).dtype == torch.float64
    torch.testing.assert_close(target.score(X), exact.score(X), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(target.score(X.float()), exact.score(X).float(), rtol=2e-5, atol=2e-5)
    half = X.bfloat16()
    torch.testing.assert_close(target.score(half), target.score(half.float()).bfloat16(), rtol=0, atol=0)
    assert torch.equal(target.log_prob(half), target.log_prob(half.float()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("target", [targets.Gaussian([0.0] * 512, 1.0), targets.DoubleWell(512)])
def test_log_densities_of_half_precision_keep_their_differences(target: Any, dtype: torch.dtype) -> None:
    """They decide what Metropolis's rule accepts."""
    x = target.sample(64, seed=1).to(dtype)
    found = target.log_prob(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), target.log_prob(x.double()), rtol=0, atol=1e-3)
    assert bool(target.log_prob(torch.full((1, 512), 20.0, dtype=dtype)).isfinite())
    run: dict[str, Any] = {"step_size": 0.001, "n_steps": 20, "seed": 2, "return_diagnostics": True}
    _, diagnostics = fastscore.mala(target, x, **run)
    assert float(diagnostics["acceptance_rate"].mean()) > 0.9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_closed_forms_have_nothing_of_autocast(dtype: torch.dtype) -> None:
    target, x = targets.GaussianMixture(MEANS, COVARIANCES["full"], WEIGHTS), X.to(dtype)
    sigma = torch.full((len(x),), 0.3, dtype=dtype)
    expected = target.log_prob(x), target.score(x), target.noisy_score(x, sigma)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = target.log_prob(x), target.score(x), target.noisy_score(x, sigma)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_layouts_and_empty_batches() -> None:
    target = targets.GaussianMixture(MEANS, COVARIANCES["full"])
    expected = target.score(X)
    for x in (X.t().contiguous().t(), X.repeat(1, 2)[:, :D], X.repeat_interleave(2, 0)[::2]):
        torch.testing.assert_close(target.score(x), expected, rtol=1e-14, atol=1e-14)
    assert target.score(X[:0]).shape == (0, D)
    assert target.log_prob(X[:0]).shape == (0,)


@pytest.mark.parametrize("kind", COVARIANCES)
def test_samples_have_the_law(kind: str) -> None:
    n = 200_000
    target = targets.GaussianMixture(MEANS, COVARIANCES[kind], WEIGHTS)
    x = target.sample(n, seed=11)
    covariances = dense(COVARIANCES[kind])
    mean = WEIGHTS @ MEANS
    second = torch.einsum("k,kij->ij", WEIGHTS, covariances + MEANS[:, :, None] * MEANS[:, None, :])
    deviation = (second - torch.outer(mean, mean)).diagonal().sqrt() / math.sqrt(n)
    assert bool(((x.mean(0) - mean).abs() < 5 * deviation).all())
    products = x[:, :, None] * x[:, None, :]
    assert bool(((products.mean(0) - second).abs() < 5 * products.std(0) / math.sqrt(n)).all())
    along = torch.tensor([0.6, -0.3, 0.5], dtype=torch.float64)
    centres, spreads = MEANS @ along, torch.einsum("i,kij,j->k", along, covariances, along).sqrt()

    def cdf(value: object) -> object:
        z = (torch.as_tensor(value)[:, None] - centres) / spreads
        return (torch.special.ndtr(z) @ WEIGHTS).numpy()

    assert kstest((x @ along).numpy(), cdf).pvalue > 1e-4


def test_samples_are_a_function_of_the_seed() -> None:
    target = targets.GaussianMixture(MEANS, COVARIANCES["full"], WEIGHTS)
    x = target.sample(20, seed=3)
    assert x.shape == (20, D)
    assert x.dtype == torch.float64
    assert torch.equal(x, target.sample(20, seed=3))
    assert torch.equal(x[:7], target.sample(7, seed=3))
    assert not torch.equal(x, target.sample(20, seed=4))
    torch.manual_seed(5)
    drawn = target.sample(20)
    torch.manual_seed(5)
    assert torch.equal(drawn, target.sample(20))
    assert target.sample(0, seed=3).shape == (0, D)
    z = noise.normal((20, D), seed=3, stream=noise.Stream.INITIAL, step=2)
    torch.testing.assert_close(targets.Gaussian([1.0] * D, 4.0).sample(20, seed=3), 1 + 2 * z)


def test_ring() -> None:
    target = targets.GaussianMixture.ring(n_modes=4, radius=2.0, std=0.1)
    modes = torch.tensor([[2.0, 0.0], [0.0, 2.0], [-2.0, 0.0], [0.0, -2.0]])
    torch.testing.assert_close(target.score(modes), torch.zeros(4, 2), atol=1e-4, rtol=0)
    expected = torch.full((4,), -math.log(4 * 2 * math.pi * 0.01))
    torch.testing.assert_close(target.log_prob(modes), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: targets.Gaussian([[0.0]], 1.0), r"mean must have shape \[D\], got \[1, 1\]"),
        (lambda: targets.Gaussian([0.0, float("nan")], 1.0), "mean must be finite"),
        (lambda: targets.Gaussian([0.0, 0.0], [1.0, 2.0, 3.0]), r"covariance must be a number .* got \[3\]"),
        (lambda: targets.Gaussian([0.0, 0.0], -1.0), "covariance must be positive variances"),
        (lambda: targets.Gaussian([0.0, 0.0], [[1.0, 2.0], [2.0, 1.0]]), "covariance must be positive definite"),
        (lambda: targets.Gaussian([0.0, 0.0], [[1.0, 0.5], [0.0, 1.0]]), "covariance must be symmetric"),
        (lambda: targets.Gaussian([0.0], 1e-80), "covariance must have variances of at least 1e-76, got 1e-80"),
        (lambda: targets.Gaussian([0.0], [[1e-80]]), "covariance must have variances of at least 1e-76, got 1e-80"),
        (lambda: targets.GaussianMixture([[0.0]], 9e-77), "covariances must have variances of at least 1e-76"),
        (lambda: targets.GaussianMixture([0.0, 1.0], 1.0), r"means must have shape \[K, D\], got \[2\]"),
        (lambda: targets.GaussianMixture([[0.0, 1.0]], torch.ones(3)), r"covariances must be a number .* got \[3\]"),
        (lambda: targets.GaussianMixture([[0.0], [1.0]], 1.0, [1.0]), "weights must be 2 positive numbers"),
        (lambda: targets.GaussianMixture([[0.0], [1.0]], 1.0, [1.0, 0.0]), "weights must be 2 positive numbers"),
        (lambda: targets.GaussianMixture.ring(0), "n_modes must be at least 1, got 0"),
        (lambda: targets.Gaussian([0.0], 1.0).score(torch.zeros(2, 3)), r"x must have shape \[B, 1\], got \[2, 3\]"),
        (lambda: targets.Gaussian([0.0], 1.0).sample(-1), "n must be at least 0, got -1"),
        (lambda: targets.Gaussian([0.0], 1.0).sample(1, seed=-1), "seed must be in"),
    ],
)
def test_errors_name_the_argument(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_covariance_that_rounding_made_unsymmetric_is_taken() -> None:
    """A product in float32 differs from its transpose by more of an entry than of the variances."""
    covariance = torch.tensor([[4.0, 4.8566e-05, 0.3], [4.8542e-05, 1.0, 0.2], [0.3, 0.2, 9.0]])
    even = torch.tensor([[4.0, 4.8554e-05, 0.3], [4.8554e-05, 1.0, 0.2], [0.3, 0.2, 9.0]])
    x = torch.randn(5, 3, dtype=torch.float64)
    given, wanted = (targets.Gaussian([0.0] * 3, S).score(x) for S in (covariance, even))
    torch.testing.assert_close(given, wanted, rtol=1e-9, atol=1e-9)


def test_integer_points_are_refused() -> None:
    with pytest.raises(TypeError, match="x must"):
        targets.Gaussian([0.0], 1.0).score(torch.zeros(2, 1, dtype=torch.int64))


@pytest.mark.parametrize("barrier", [0.3, 4.0, 40.0])
def test_double_well_is_normalised_and_its_score_a_gradient(barrier: float) -> None:
    target = targets.DoubleWell(2, barrier=barrier)
    line = torch.linspace(-4, 4, 20001, dtype=torch.float64)
    one = torch.stack([line, torch.ones_like(line)], 1)
    at_one = target.log_prob(torch.ones(1, 2, dtype=torch.float64)) / 2  # the density of one coordinate there
    assert math.isclose(torch.trapezoid((target.log_prob(one) - at_one).exp(), line), 1.0, rel_tol=1e-10)
    x = X[:, :2].clone().requires_grad_()
    (expected,) = torch.autograd.grad(target.log_prob(x).sum(), x)
    torch.testing.assert_close(target.score(X[:, :2]), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("barrier", [1e-6, 0.3, 79.0, 81.0, 1e4, 1e8, 1e10, 1e16, 1e30])
def test_double_well_of_any_barrier(barrier: float) -> None:
    """Its wells are Gaussians of variance 1 / 8b where they are narrow; Z is that of quadrature where they are not."""
    target, n = targets.DoubleWell(1, barrier=barrier), 40_000
    log_z = -float(target.log_prob(torch.ones(1, 1, dtype=torch.float64)))
    x, u = target._points, target._distribution
    assert bool((x.diff() >= 0).all()) and bool((u.diff() >= 0).all()) and u[0] == 0 and u[-1] == 1
    if barrier < 1e5:
        line = torch.linspace(0, float(x[-1]), 2**20 + 1, dtype=torch.float64)
        density = torch.exp(-barrier * (line.square() - 1).square())
        assert log_z == pytest.approx(math.log(2 * torch.trapezoid(density, line)), abs=1e-10)
        exact = torch.cumulative_trapezoid(density, line) / (2 * torch.trapezoid(density, line)) + 0.5
        middle = (x[:-1] + x[1:])[2**15 + 2 :] / 2
        between, wanted = np.interp(middle, x, u), np.interp(middle, line[1:], exact)
        assert np.abs(between - wanted).max() < 1e-7
    else:
        assert log_z == pytest.approx(math.log(2 * math.sqrt(math.pi / 4 / barrier)), rel=1e-5 if barrier > 1e5 else 0)
    if 1e3 < barrier < 1e20:
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            drawn = target.sample(n, seed=3)
        finally:
            torch.set_default_dtype(before)
        z = (drawn.abs() - 1) * math.sqrt(8 * barrier)
        assert abs(float(z.std()) - 1) < 5 / math.sqrt(2 * n) and abs(float(z.mean())) < 5 / math.sqrt(n) + 0.02
        assert abs(float(drawn.sign().mean())) < 5 / math.sqrt(n)


@pytest.mark.parametrize("barrier", [1.0, 1e6])
def test_double_well_keeps_its_digits_in_the_wells(barrier: float) -> None:
    x = torch.tensor([[1 + 2.0**-k] for k in range(2, 23)] + [[-1 + 2.0**-k] for k in range(2, 23)])
    target = targets.DoubleWell(1, barrier=barrier)
    torch.testing.assert_close(target.score(x).double(), target.score(x.double()), rtol=4e-7, atol=0)
    there = torch.ones(1, 1)
    found, exact = (target.log_prob(x.to(t)) - target.log_prob(there.to(t)) for t in (torch.float32, torch.float64))
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-5)
    if _cpu_build.library(build=True) is None:
        return
    compiled = _cpu_target.of(_cpu_target.DoubleWell(1, barrier, 0.0), x)
    assert compiled is not None
    log_prob, score = compiled.density(x)
    torch.testing.assert_close(score.double(), target.score(x.double()), rtol=4e-7, atol=0)
    torch.testing.assert_close(log_prob.double(), exact, rtol=1e-6, atol=1e-5)


def test_double_well_samples_follow_its_law() -> None:
    target = targets.DoubleWell(3, barrier=2.0)
    x = target.sample(20_000, seed=5).double()
    line = torch.linspace(-3, 3, 4001, dtype=torch.float64)
    density = torch.exp(-2.0 * (line.square() - 1).square())
    mass = torch.cat([torch.zeros(1, dtype=torch.float64), torch.cumulative_trapezoid(density, line)])

    def distribution(values: Any) -> Any:
        return np.interp(values, line.numpy(), (mass / mass[-1]).numpy())

    for coordinate in x.t():
        assert kstest(coordinate.numpy(), distribution).pvalue > 1e-4
    assert torch.corrcoef(x.t()).triu(1).abs().max() < 5 / 20_000**0.5
    assert torch.equal(target.sample(7, seed=5), x[:7].float())
    assert target.sample(0).shape == (0, 3)


def test_double_well_refuses() -> None:
    for arguments, named in (((0,), "dim"), ((2, 0.0), "barrier"), ((2, math.nan), "barrier")):
        with pytest.raises(ValueError, match=named):
            targets.DoubleWell(*arguments)
    with pytest.raises(ValueError, match=r"x must have shape \[B, 2\], got \[4, 3\]"):
        targets.DoubleWell(2).score(torch.zeros(4, 3))


@pytest.mark.parametrize("target", [targets.Gaussian([0.0, 0.0], 1.0), targets.DoubleWell(dim=2)])
def test_samples_are_not_the_noise_of_starting_points(target: targets.GaussianMixture) -> None:
    """Chains started with the same seed would be correlated with them."""
    chains = fastscore.LangevinDynamics(target.score, 0.01)
    start = chains.sample(dim=2, n_samples=4000, n_steps=0, seed=0)
    between = torch.corrcoef(torch.cat((target.sample(4000, seed=0), start), 1).t())[:2, 2:]
    assert between.abs().max() < 5 / 4000**0.5
