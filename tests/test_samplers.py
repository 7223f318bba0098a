"""The contract every sampler keeps: the same bits for every way to run it, what is kept, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fastscore
import fastscore.networks
from fastscore import noise, targets

N_STEPS = 20
TARGET = targets.GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], 0.5)


def bends(x: Tensor) -> Tensor:
    """A score of exact operations: torch's exp rounds differently at the end of a row of memory."""
    return 1.5 / (1.0 + x * x) - x


def start(n: int = 16, *event: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return noise.normal((n, *(event or (2,))), seed=3, stream=noise.Stream.INITIAL, dtype=dtype)


def langevin(x: Tensor, **options: Any) -> Any:
    return fastscore.langevin_dynamics(bends, x, **{"step_size": 0.1, "seed": 7} | options)


def ascent(x: Tensor, **options: Any) -> Any:
    options.pop("seed", None)
    return fastscore.gradient_ascent(bends, x, step_size=0.1, **options)


def annealed(x: Tensor, **options: Any) -> Any:
    options.pop("n_steps", None)
    return fastscore.annealed_langevin_dynamics(
        lambda x, sigma: bends(x) / (1 + sigma.unsqueeze(1)),
        x,
        **{"sigmas": [2.0, 1.0, 0.5, 0.25], "n_steps_each": 5, "step_size": 0.01, "denoise": False, "seed": 7}
        | options,
    )


SAMPLERS = {"langevin": langevin, "ascent": ascent, "annealed": annealed}
samplers = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)


@samplers
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("stop", range(N_STEPS + 1))
def test_stopping_anywhere_and_going_on_gives_the_same_bits(sampler: Any, dtype: torch.dtype, stop: int) -> None:
    x = start(dtype=dtype)
    path = sampler(x, n_steps=N_STEPS, return_trajectory=True)
    middle = path[:, stop - 1] if stop else x
    rest = sampler(middle, n_steps=N_STEPS - stop, first_step=stop)
    assert torch.equal(rest, path[:, -1])


@samplers
@pytest.mark.parametrize("sizes", [[16], [8, 8], [1] * 16, [3, 1, 7, 5]])
def test_every_split_of_the_batch_gives_the_same_bits(sampler: Any, sizes: list[int]) -> None:
    x = start()
    whole = sampler(x, n_steps=N_STEPS, first_chain=1000)
    parts, first = [], 1000
    for part in x.split(sizes):
        parts.append(sampler(part, n_steps=N_STEPS, first_chain=first))
        first += len(part)
    assert torch.equal(torch.cat(parts), whole)


@samplers
def test_a_sampler_leaves_its_start_alone_and_repeats_itself(sampler: Any) -> None:
    x = start()
    before = x.clone()
    first = sampler(x, n_steps=N_STEPS)
    assert torch.equal(x, before) and first.data_ptr() != x.data_ptr()
    assert torch.equal(sampler(x, n_steps=N_STEPS), first)
    assert torch.equal(sampler(x.t().contiguous().t(), n_steps=N_STEPS), first)


def test_seeds_streams_and_chains_differ() -> None:
    x = torch.zeros(4, 2)
    runs = [
        langevin(x, n_steps=1, seed=s, first_chain=c, first_step=k)
        for s, c, k in [(0, 0, 0), (1, 0, 0), (2**32, 0, 0), (0, 4, 0), (0, 2**32, 0), (0, 0, 1)]
    ]
    assert len(torch.unique(torch.cat(runs), dim=0)) == 24


def test_torchs_global_seed_reproduces_a_program() -> None:
    x = torch.zeros(4, 2)
    torch.manual_seed(0)
    first, second = langevin(x, n_steps=2, seed=None), langevin(x, n_steps=2, seed=None)
    torch.manual_seed(0)
    assert torch.equal(langevin(x, n_steps=2, seed=None), first) and not torch.equal(first, second)
    given = [langevin(x, n_steps=2, seed=None, generator=torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(*given)


@samplers
@pytest.mark.parametrize(("thin", "burn_in"), [(1, 0), (3, 0), (1, 4), (4, 3), (20, 0), (7, 20), (21, 0)])
def test_what_is_kept_is_every_thin_th_state_after_the_burn_in(sampler: Any, thin: int, burn_in: int) -> None:
    x = start()
    path = sampler(x, n_steps=N_STEPS, return_trajectory=True)
    assert path.shape == (16, N_STEPS, 2)
    options = {"n_steps": N_STEPS, "thin": thin, "burn_in": burn_in}
    kept, diagnostics = sampler(x, return_trajectory=True, return_diagnostics=True, **options)
    expected = path[:, burn_in:][:, thin - 1 :: thin]
    assert torch.equal(kept, expected)
    mean = expected.mean(0)
    torch.testing.assert_close(diagnostics["mean"], mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(diagnostics["var"], (expected - mean).square().mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(diagnostics["chain_mean"], expected.mean(1), rtol=1e-5, atol=1e-6, equal_nan=True)
    deviations = expected - expected.mean(1, keepdim=True)
    torch.testing.assert_close(
        diagnostics["chain_var"], deviations.square().mean(1), rtol=1e-4, atol=1e-6, equal_nan=True
    )
    assert torch.equal(diagnostics["first_nonfinite"], torch.full((16,), -1))
    assert torch.equal(sampler(x, **options), path[:, -1])
    last, _ = sampler(x, return_diagnostics=True, **options)
    assert torch.equal(last, path[:, -1])


def test_events_of_any_shape() -> None:
    x = start(4, 3, 2, 5)
    image = fastscore.langevin_dynamics(lambda x: -x, x, step_size=0.1, n_steps=3, seed=1)
    flat = fastscore.langevin_dynamics(lambda x: -x, x.flatten(1), step_size=0.1, n_steps=3, seed=1)
    assert image.shape == x.shape and torch.equal(image.flatten(1), flat)


@samplers
def test_nothing_to_do_is_done(sampler: Any) -> None:
    assert sampler(start(0), n_steps=N_STEPS).shape == (0, 2)
    if sampler is not annealed:
        assert torch.equal(sampler(start(), n_steps=0), start())


def test_clamp_bounds_every_state() -> None:
    path = langevin(start(), n_steps=20, clamp=(-0.5, 0.25), return_trajectory=True)
    assert float(path.min()) == -0.5 and float(path.max()) == 0.25


def test_conditions_are_handed_on_and_no_graph_is_built() -> None:
    cond = torch.tensor([[1.0], [2.0]])
    weight = torch.ones((), requires_grad=True)
    found = fastscore.langevin_dynamics(
        lambda x, c: -weight * c * x, torch.ones(2, 1), cond=cond, step_size=0.1, temperature=0.0, n_steps=1, seed=0
    )
    torch.testing.assert_close(found, 1 - 0.1 * cond)
    assert not found.requires_grad


def test_a_score_made_with_autograd_works_inside_no_grad() -> None:
    def score(x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(TARGET.log_prob(x).sum(), x)[0]

    run = {"step_size": 0.1, "n_steps": 10, "seed": 7}
    found, expected = (fastscore.langevin_dynamics(s, start(), **run) for s in (score, TARGET.score))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_sampler_answers_in_the_dtype_it_is_asked_in(dtype: torch.dtype) -> None:
    seen = set()

    def score(x: Tensor) -> Tensor:
        seen.add(x.dtype)
        return -x

    found = fastscore.langevin_dynamics(score, start(dtype=dtype), step_size=0.1, n_steps=3, seed=1)
    assert found.dtype == dtype and seen == {dtype}


def test_progress_is_shown_and_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert torch.equal(langevin(start(), n_steps=5, progress=True), langevin(start(), n_steps=5))
    assert "step" in capsys.readouterr().err


def test_init_and_step_are_the_sampler() -> None:
    algorithm = fastscore.samplers.Langevin(bends, step_size=0.1, seed=7)
    state = algorithm.init(start())
    for k in range(5):
        state = algorithm.step(state, k)
    assert torch.equal(state.x, langevin(start(), n_steps=5))


class TestLangevinDynamics:
    sampler = fastscore.LangevinDynamics(lambda x: -x, step_size=5e-3)

    def test_shapes_are_torchebms(self) -> None:
        sample = self.sampler.sample
        assert sample(dim=2, n_steps=10).shape == (1, 2)
        assert sample(None, 2, 10, 5).shape == (5, 2)
        assert sample(dim=(3, 4), n_samples=2).shape == (2, 3, 4)
        assert sample(dim=2, n_steps=10, return_trajectory=True).shape == (1, 10, 2)
        x = start(6, 3)
        kept, diagnostics = sample(x, n_steps=10, thin=3, return_trajectory=True, return_diagnostics=True)
        assert kept.shape == (6, 3, 3)
        assert diagnostics["mean"].shape == diagnostics["var"].shape == (3, 3)
        assert sample(x, n_steps=10, thin=3).shape == (6, 3)

    def test_a_seed_settles_start_and_noise(self) -> None:
        torch.manual_seed(42)
        first = self.sampler.sample(dim=2)
        torch.manual_seed(42)
        assert torch.equal(self.sampler.sample(dim=2), first)
        drawn = [self.sampler.sample(dim=2, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
        assert torch.equal(*drawn)
        assert torch.equal(self.sampler.sample(dim=2, seed=9), self.sampler.sample(dim=2, seed=9))

    def test_the_law(self) -> None:
        target = targets.Gaussian([1.0, -1.0], [[1.0, 0.5], [0.5, 2.0]])
        sampler = fastscore.LangevinDynamics(target, step_size=0.05)
        x = sampler.sample(dim=2, n_steps=200, n_samples=1 << 13, seed=0)
        assert float((x.mean(0) - torch.tensor([1.0, -1.0])).abs().max()) < 5 * (2.1 / 2**13) ** 0.5
        precision = torch.linalg.inv(torch.tensor([[1.0, 0.5], [0.5, 2.0]]))
        expected = torch.linalg.inv(precision @ (torch.eye(2) - 0.025 * precision))
        assert float((torch.cov(x.t()) - expected).abs().max()) < 5 * 2 * (2 / 2**13) ** 0.5

    def test_clamp_and_dtype(self) -> None:
        sampler = fastscore.LangevinDynamics(
            lambda x: -x, 0.1, temperature=25.0, clamp=(-0.5, 0.5), dtype=torch.float64
        )
        x = sampler.sample(dim=2, n_samples=16, n_steps=20, seed=0)
        assert x.dtype == torch.float64 and float(x.abs().max()) == 0.5

    def test_neither_x_nor_dim(self) -> None:
        with pytest.raises(ValueError, match=r"give x \(starting points\) or dim .* got neither"):
            self.sampler.sample()


X = torch.zeros(3, 2)
ERRORS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": [1.0]}, TypeError, "x must be a tensor, got list"),
    ({"x": torch.zeros(3, 2, dtype=torch.int64)}, TypeError, "x must be a floating point tensor, got torch.int64"),
    ({"x": torch.zeros(3, 2, dtype=torch.complex64)}, TypeError, "x must be a floating point tensor"),
    ({"x": torch.zeros(3)}, ValueError, r"x must have shape \[B, \*event\] with at least 2 dimensions, got \[3\]"),
    ({"x": torch.zeros(3, 0)}, ValueError, r"x must have at least one feature, got \[3, 0\]"),
    ({"score_fn": 3}, TypeError, "score_fn must be callable, got int"),
    ({"score_fn": lambda x: None}, TypeError, "score_fn must return a tensor, got NoneType"),
    ({"score_fn": lambda x: x[:, :1]}, ValueError, r"shape of x \[3, 2\], got \[3, 1\]"),
    *[
        ({"step_size": a}, ValueError, rf"step_size must be finite and > 0, got {shown}")
        for a, shown in [(-0.1, "-0.1"), (0, "0"), (float("nan"), "nan"), (float("inf"), "inf")]
    ],
    ({"step_size": torch.tensor(-1.0)}, ValueError, r"step_size must be finite and > 0, got -1"),
    ({"step_size": torch.tensor([0.1, -1.0])}, ValueError, r"step_size must be finite and > 0, got -1"),
    ({"step_size": torch.ones(3)}, ValueError, r"event's shape \[2\], got shape \[3\]"),
    ({"step_size": "0.1"}, TypeError, "step_size must be a number or a tensor, got '0.1'"),
    ({"step_size": True}, TypeError, "step_size must be a number or a tensor, got True"),
    ({"step_size": lambda k: 0.1 - k}, ValueError, r"step_size\(1\) must be finite and > 0, got -0.9"),
    ({"temperature": -1.0}, ValueError, "temperature must be finite and >= 0, got -1.0"),
    ({"temperature": torch.ones(2)}, ValueError, r"temperature must be a number or a tensor that is 0-dim"),
    ({"n_steps": -1}, ValueError, "n_steps must be at least 0, got -1"),
    ({"n_steps": 1.5}, TypeError, "n_steps must be an int, got 1.5"),
    ({"thin": 0}, ValueError, "thin must be at least 1, got 0"),
    ({"burn_in": 6}, ValueError, "burn_in must be at most n_steps 5, got 6"),
    ({"burn_in": -1}, ValueError, "burn_in must be at least 0, got -1"),
    ({"clamp": (1.0, -1.0)}, ValueError, r"clamp must be \(low, high\) with low < high, got \(1.0, -1.0\)"),
    ({"seed": -1}, ValueError, r"seed must be in \[0, 2\*\*64\), got -1"),
    ({"seed": 2**64}, ValueError, r"seed must be in \[0, 2\*\*64\)"),
    ({"seed": 1.5}, TypeError, "seed must be an int, got 1.5"),
    ({"seed": True}, TypeError, "seed must be an int, got True"),
    ({"generator": torch.Generator()}, ValueError, "give seed or generator, not both"),
    ({"seed": None, "generator": 3}, TypeError, "generator must be a torch.Generator, got int"),
    ({"first_chain": -1}, ValueError, "first_chain must be in"),
    ({"first_step": 2**32}, ValueError, "first_step must be in"),
    ({"on_nonfinite": "stop"}, ValueError, "on_nonfinite must be one of 'raise', 'freeze', 'ignore', got 'stop'"),
]


@pytest.mark.parametrize(("change", "error", "message"), ERRORS)
def test_what_is_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"score_fn": lambda x: -x, "x": X, "step_size": 0.1, "n_steps": 5, "seed": 0} | change
    with pytest.raises(error, match=message):
        fastscore.langevin_dynamics(arguments.pop("score_fn"), arguments.pop("x"), **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigmas": []}, "at least one noise level"),
        ({"sigmas": [1.0, 2.0]}, "sigmas must decrease"),
        ({"sigmas": [1.0, 1.0]}, "sigmas must decrease"),
        ({"sigmas": [1.0, -0.5]}, "sigmas must be finite and > 0, got -0.5"),
        ({"n_steps_each": 0}, "n_steps_each must be at least 1, got 0"),
        ({"first_step": 21}, r"first_step must be in \[0, 21\), got 21"),
    ],
)
def test_what_the_annealed_sampler_refuses(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        annealed(X, **change)


@pytest.mark.parametrize("cond_dim", [0, 1])
def test_a_recognised_network_is_sampled_as_it_computes(cond_dim: int) -> None:
    torch.manual_seed(0)
    network = fastscore.networks.ScoreMLP(2, width=32, depth=3, cond_dim=cond_dim)
    x = start(5000)
    cond = {"cond": torch.linspace(0, 1, 5000).unsqueeze(1)} if cond_dim else {}
    run: dict[str, Any] = {"step_size": 0.1, "n_steps": 5, "seed": 2} | cond
    fast = fastscore.langevin_dynamics(network, x, **run)
    plain = fastscore.langevin_dynamics(lambda *given: network(*given), x, **run)
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)
    scaled = fastscore.gradient_ascent(Scaled(network), x[:, :, None], step_size=0.1, n_steps=5, **cond)
    expected = fastscore.gradient_ascent(
        lambda *g: Scaled(network)(*g), x[:, :, None], step_size=0.1, n_steps=5, **cond
    )
    torch.testing.assert_close(scaled, expected, rtol=1e-5, atol=1e-5)


class Scaled(torch.nn.Module):
    """A network with scales around it, on events `[2, 1]`."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, *cond: Tensor) -> Tensor:
        return 2.0 * self.network(0.5 * x.flatten(1), *cond).view(x.shape) - x


def test_a_score_by_autograd_is_told_how() -> None:
    """Samplers build no graph, so that a score that differentiates has to ask for one."""

    def score(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return -torch.autograd.grad((x**2).sum(), x)[0]

    langevin_dynamics = fastscore.langevin_dynamics
    with pytest.raises(RuntimeError, match=r"under torch\.enable_grad\(\)"):
        langevin_dynamics(score, torch.zeros(3, 2), step_size=0.1, n_steps=2)
    samples = langevin_dynamics(torch.enable_grad()(score), torch.zeros(3, 2), step_size=0.1, n_steps=2, seed=0)
    assert samples.shape == (3, 2)
