"""States that are not finite are named by chain and step, and an interrupt leaves what is needed to go on."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import fastscore
from fastscore import noise

N_STEPS = 20


def start(n: int = 8) -> Tensor:
    return noise.normal((n, 2), seed=3, stream=noise.Stream.INITIAL)


class Breaks:
    """The score -x, but `value` in element (row, 1) at one call."""

    def __init__(self, at: int, rows: list[int], value: float = math.nan) -> None:
        self.at, self.rows, self.value, self.calls = at, rows, value, 0

    def __call__(self, x: Tensor) -> Tensor:
        score = -x
        if self.calls == self.at:
            score[self.rows, 1] = self.value
        self.calls += 1
        return score


def run(score: Any, **options: Any) -> Any:
    return fastscore.langevin_dynamics(score, start(), **{"step_size": 0.1, "n_steps": N_STEPS, "seed": 7} | options)


@pytest.mark.parametrize("at", range(N_STEPS))
def test_raise_names_chain_and_step(at: int) -> None:
    with pytest.raises(fastscore.NonFiniteError) as caught:
        run(Breaks(at, [2, 5]), first_chain=100, first_step=1000)
    assert caught.value.chains == [102, 105]
    assert caught.value.step == 1000 + at
    assert f"chain 102, 105 is not finite after step {1000 + at} (2 in all)" in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 1, 17, 19])
def test_freeze_keeps_the_last_finite_state_and_leaves_the_others_alone(at: int, value: float) -> None:
    clean = run(lambda x: -x, return_trajectory=True)
    path, diagnostics = run(
        Breaks(at, [3], value), on_nonfinite="freeze", return_trajectory=True, return_diagnostics=True
    )
    others = [b for b in range(8) if b != 3]
    assert torch.equal(path[others], clean[others])
    assert torch.equal(path[3, :at], clean[3, :at])
    frozen = clean[3, at - 1] if at else start()[3]
    assert torch.equal(path[3, at:], frozen.expand(N_STEPS - at, 2))
    assert diagnostics["first_nonfinite"].tolist() == [at if b == 3 else -1 for b in range(8)]


def test_freeze_catches_chains_that_break_at_different_steps() -> None:
    class Twice(Breaks):
        def __call__(self, x: Tensor) -> Tensor:
            self.rows = [self.calls]
            self.at = self.calls if self.calls in (2, 5) else -1
            return super().__call__(x)

    _, diagnostics = run(Twice(0, []), on_nonfinite="freeze", return_diagnostics=True)
    assert diagnostics["first_nonfinite"].tolist() == [-1, -1, 2, -1, -1, 5, -1, -1]


def test_the_first_bad_step_is_kept_where_a_chain_stays_broken() -> None:
    class Stays(Breaks):
        def __call__(self, x: Tensor) -> Tensor:
            self.at = max(4, self.calls)
            return super().__call__(x)

    kept, diagnostics = run(Stays(4, [3]), on_nonfinite="freeze", return_diagnostics=True)
    assert diagnostics["first_nonfinite"].tolist() == [4 if b == 3 else -1 for b in range(8)]
    assert torch.equal(kept[3], run(lambda x: -x, n_steps=4)[3])


def test_ignore_lets_the_row_go_and_no_other() -> None:
    clean, found = run(lambda x: -x), run(Breaks(4, [3]), on_nonfinite="ignore")
    assert torch.isnan(found[3, 1]) and torch.equal(found[:3], clean[:3]) and torch.equal(found[4:], clean[4:])


def density(x: Tensor) -> Tensor:
    return -x.square().sum(1) / 2


OPTIONS: dict[str, Any] = {"n_steps": 6, "step_size": 0.1, "seed": 7}
EVERY: dict[str, Any] = {
    "langevin_dynamics": lambda score, **o: fastscore.langevin_dynamics(score, start(), **OPTIONS, **o),
    "underdamped_langevin": lambda score, **o: fastscore.underdamped_langevin(score, start(), **OPTIONS, **o),
    "mala": lambda score, **o: fastscore.mala(density, start(), score_fn=score, **OPTIONS, **o),
    "gradient_ascent": lambda score, **o: fastscore.gradient_ascent(score, start(), n_steps=6, step_size=0.1, **o),
    "annealed": lambda score, **o: fastscore.annealed_langevin_dynamics(
        lambda x, _: score(x), start(), sigmas=[2.0, 1.0], n_steps_each=3, step_size=0.1, seed=7, denoise=False, **o
    ),
}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", EVERY)
def test_every_sampler_keeps_a_bad_chain_apart(name: str, value: float) -> None:
    run, others = EVERY[name], [b for b in range(8) if b != 3]
    clean = run(torch.neg)
    with pytest.raises(fastscore.NonFiniteError) as caught:
        run(Breaks(2, [3], value))
    assert caught.value.chains == [3] and caught.value.step in (1, 2)
    for policy in ("freeze", "ignore"):
        found, told = run(Breaks(2, [3], value), on_nonfinite=policy, return_diagnostics=True)
        assert torch.equal(found[others], clean[others])
        assert bool(found[3].isfinite().all()) == (policy == "freeze")
        assert told["first_nonfinite"].tolist() == [
            caught.value.step if b == 3 and policy == "freeze" else -1 for b in range(8)
        ]


@pytest.mark.parametrize("policy", ["raise", "freeze"])
def test_a_velocity_lost_at_the_last_step_is_found(policy: str) -> None:
    """The score is that at the new position: NaN there reaches the velocity, and the position a step later only."""

    def run(score: Any) -> Any:
        return fastscore.underdamped_langevin(score, start(), on_nonfinite=policy, return_diagnostics=True, **OPTIONS)

    if policy == "raise":
        with pytest.raises(fastscore.NonFiniteError, match="chain 3 is not finite after step 5"):
            run(Breaks(6, [3]))
        return
    (clean, _), (found, told) = run(torch.neg), run(Breaks(6, [3]))
    assert told["first_nonfinite"].tolist() == [5 if b == 3 else -1 for b in range(8)]
    assert bool(told["velocity"].isfinite().all()) and torch.equal(found[:3], clean[:3])


def test_a_velocity_lost_inside_a_leap_is_found() -> None:
    """In C, too: of a double well, whose score overflows before the position does."""
    target, x = fastscore.targets.DoubleWell(1, barrier=1.0), torch.zeros(300, 1)
    x[7] = 1e13
    run: dict[str, Any] = {"step_size": 0.1, "n_steps": 1, "seed": 0, "velocity": torch.zeros(300, 1)}
    with pytest.raises(fastscore.NonFiniteError, match="chain 7 is not finite after step 0"):
        fastscore.underdamped_langevin(target, x, **run)


def test_a_start_that_is_not_finite_is_found_after_the_first_step() -> None:
    x = start()
    x[6, 0] = math.inf
    with pytest.raises(fastscore.NonFiniteError, match="chain 6 is not finite after step 0"):
        fastscore.langevin_dynamics(lambda x: -x, x, step_size=0.1, n_steps=3, seed=0)


def test_a_diverging_step_size_is_found_at_the_predicted_step() -> None:
    # a = 2.5 on N(0, 1): |x| grows by 1.5 a step, so 1e30 passes the largest float32 after ln(3.4e8) / ln 1.5 steps.
    predicted = math.ceil(math.log(torch.finfo(torch.float32).max / 1e30) / math.log(1.5))
    with pytest.raises(fastscore.NonFiniteError) as caught:
        fastscore.langevin_dynamics(lambda x: -x, torch.full((2, 1), 1e30), step_size=2.5, n_steps=200, seed=0)
    assert abs(caught.value.step + 1 - predicted) <= 1


def test_large_but_finite_states_are_no_alarm() -> None:
    x = torch.full((64, 2), 3e38)  # their sum is not finite
    found, diagnostics = fastscore.langevin_dynamics(
        torch.zeros_like, x, step_size=0.1, n_steps=3, seed=0, return_diagnostics=True
    )
    assert bool(torch.isfinite(found).all()) and int(diagnostics["first_nonfinite"].max()) == -1


class Stops:
    """Ctrl-C inside the score at call `at`."""

    def __init__(self, at: int) -> None:
        self.at, self.calls = at, 0

    def __call__(self, x: Tensor, *_: Tensor) -> Tensor:
        if self.calls == self.at:
            raise KeyboardInterrupt
        self.calls += 1
        return -x


@pytest.mark.parametrize("at", range(N_STEPS))
def test_an_interrupt_leaves_a_state_to_go_on_with(at: int) -> None:
    whole = run(lambda x: -x, return_trajectory=True, thin=2, burn_in=4)
    with pytest.raises(fastscore.Interrupted) as caught:
        run(Stops(at), return_trajectory=True, thin=2, burn_in=4)
    stopped = caught.value
    assert isinstance(stopped, KeyboardInterrupt)
    assert (stopped.step, stopped.seed) == (at, 7)
    assert stopped.trajectory is not None
    kept = stopped.trajectory.shape[1]
    assert kept == max(0, at - 4) // 2 and torch.equal(stopped.trajectory, whole[:, :kept])
    rest = fastscore.langevin_dynamics(
        lambda x: -x, stopped.x, step_size=0.1, n_steps=N_STEPS - at, first_step=stopped.step, seed=stopped.seed
    )
    assert torch.equal(rest, whole[:, -1])
    assert f"first_step={at}, seed=7" in str(stopped)


@pytest.mark.parametrize("at", [0, 3, 7])
def test_an_interrupted_ladder_goes_on_where_it_was(at: int) -> None:
    options: dict[str, Any] = {"sigmas": [2.0, 1.0], "n_steps_each": 4, "step_size": 0.01, "seed": 1}
    whole = fastscore.annealed_langevin_dynamics(lambda x, _: -x, start(), **options)
    with pytest.raises(fastscore.Interrupted) as caught:
        fastscore.annealed_langevin_dynamics(Stops(at), start(), **options)
    rest = fastscore.annealed_langevin_dynamics(
        lambda x, _: -x, caught.value.x, first_step=caught.value.step, **options
    )
    assert torch.equal(rest, whole)


def test_an_error_in_the_score_is_the_users_own() -> None:
    def score(x: Tensor) -> Tensor:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        run(score)


@pytest.mark.parametrize("policy", ["raise", "freeze", "ignore"])
def test_the_last_denoising_is_guarded(policy: str) -> None:
    calls = []

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        calls.append(1)
        worst = torch.where(torch.arange(4) == 2, torch.nan, 1.0) if len(calls) > 6 else torch.ones(4)
        return -x * worst[:, None]

    def run() -> Tensor:
        return fastscore.annealed_langevin_dynamics(
            score, torch.ones(4, 2), sigmas=[1.0, 0.5], n_steps_each=3, step_size=0.1, seed=0, on_nonfinite=policy
        )

    if policy == "raise":
        with pytest.raises(fastscore.NonFiniteError, match="chain 2 is not finite after step 5"):
            run()
    else:
        assert run().isfinite().all(1).tolist() == [True, True, policy == "freeze", True]


def test_what_float16_cannot_hold_is_an_error() -> None:
    """The state is float32, finite; the samples would not be."""
    x = torch.full((3, 2), 6e4).half()
    x[1] = 0.0
    options = {"step_size": 1e4, "n_steps": 1, "seed": 0, "temperature": 0.0}
    with pytest.raises(fastscore.NonFiniteError, match=r"chain 0, 2 is not finite after step 0"):
        fastscore.langevin_dynamics(torch.ones_like, x, **options)
    assert fastscore.langevin_dynamics(torch.ones_like, x, on_nonfinite="ignore", **options)[0].isinf().all()


def test_a_chain_that_leaves_float16_is_frozen_and_flagged() -> None:
    options: dict[str, Any] = {"step_size": 1e4, "n_steps": 9, "seed": 0, "temperature": 0.0, "on_nonfinite": "freeze"}
    options |= {"return_diagnostics": True, "return_trajectory": True}
    x = torch.tensor([[0.0], [-5e4]]).half()
    path, found = fastscore.langevin_dynamics(torch.ones_like, x, **options)
    assert path.isfinite().all() and path[:, -1].tolist() == [[60000.0], [40000.0]]
    assert found["first_nonfinite"].tolist() == [6, -1]


def test_moments_are_wide_and_means_of_long_chains_exact() -> None:
    x = torch.tensor([[300.0], [-300.0]]).half()
    options: dict[str, Any] = {"step_size": 1e-3, "seed": 0, "return_diagnostics": True}
    _, found = fastscore.langevin_dynamics(torch.zeros_like, x, n_steps=2, **options)
    assert all(found[name].dtype == torch.float32 for name in ("mean", "var", "chain_mean", "chain_var"))
    torch.testing.assert_close(found["var"], torch.full((2, 1), 9e4), rtol=1e-3, atol=0.0)
    target, x = fastscore.targets.Gaussian([1000.0], 1.0), torch.full((4, 1), 1000.0)
    options |= {"return_trajectory": True, "n_steps": 20_000, "step_size": 0.1}
    path, found = fastscore.langevin_dynamics(target.score, x, **options)
    torch.testing.assert_close(found["chain_mean"].double(), path.double().mean(1), rtol=0.0, atol=7e-5)


def test_mala_in_inference_mode() -> None:
    def run() -> Tensor:
        return fastscore.mala(lambda x: -(x**4).sum(1), torch.ones(5, 2), step_size=0.1, n_steps=5, seed=0)

    with torch.inference_mode():
        made = run()
    assert torch.equal(made, run())


def test_a_checkpoint_with_any_condition(tmp_path: Any) -> None:
    def run(cond: Any) -> Tensor:
        return fastscore.langevin_dynamics(
            lambda x, cond: -x, torch.ones(2, 2), step_size=0.1, n_steps=2, seed=0, cond=cond, checkpoint=tmp_path / "a"
        )

    with pytest.raises(TypeError, match=r"a run with a checkpoint takes arguments that are tensors, .*, got object"):
        run(object())
    first = run({"label": torch.ones(2), "name": "ab"})
    assert torch.equal(run({"label": torch.ones(2), "name": "ab"}), first)
    with pytest.raises(fastscore.CheckpointError, match="written by a run with cond"):
        run({"label": torch.ones(2), "name": "ac"})


def test_a_ladder_has_one_temperature() -> None:
    with pytest.raises(TypeError, match="temperature must be a number or a 0-dim tensor"):
        fastscore.annealed_langevin_dynamics(
            lambda x, s: -x, torch.ones(2, 2), sigmas=[1.0], n_steps_each=1, step_size=0.1, temperature=lambda k: 1.0
        )


def test_an_event_may_be_a_list() -> None:
    sampler = fastscore.LangevinDynamics(lambda x: -x, 0.1)
    assert sampler.sample(torch.ones(4, 2, 3), dim=[2, 3], n_steps=2, seed=0).shape == (4, 2, 3)
