"""BAOAB, MALA, ladders and double wells in compiled code: the generic chains' states, the same bits for every cut."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import fastscore
from fastscore import noise, targets
from fastscore.ops import _cpu_build, _cpu_chain, _cpu_target, _cpu_threads
from fastscore.samplers import AnnealedLangevin, Langevin, Mala, Underdamped, analytic, chain
from fastscore.samplers.mala import MalaState

EYE = torch.eye(3, dtype=torch.float64)
TARGETS: dict[str, Any] = {
    "ring": targets.GaussianMixture.ring(),
    "each": targets.GaussianMixture([[0.0], [3.0], [-2.0]], [0.3, 0.5, 2.0], [1.0, 2.0, 3.0]),
    "full": targets.GaussianMixture(
        torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), (EYE + 0.3).expand(5, 3, 3)
    ),
    "gaussian": targets.Gaussian([1.0, -1.0, 0.0, 2.0, 3.0], [0.2, 0.5, 1.0, 2.0, 0.1]),
    "wells": targets.DoubleWell(6, barrier=0.5),
}
SIGMAS = [1.0, 0.6, 0.3]
Run = Callable[..., Any]


def und(score: Any, log_prob: Any, x: Tensor, n_steps: int = 30, **options: Any) -> Any:
    return fastscore.underdamped_langevin(score, x, **{"step_size": 0.05, "n_steps": n_steps, "seed": 5} | options)


def corrected(score: Any, log_prob: Any, x: Tensor, n_steps: int = 30, **options: Any) -> Any:
    settings = {"score_fn": score, "step_size": 0.02, "n_steps": n_steps, "seed": 5}
    return fastscore.mala(log_prob, x, **settings | options)


def plain(score: Any, log_prob: Any, x: Tensor, n_steps: int = 30, **options: Any) -> Any:
    return fastscore.langevin_dynamics(score, x, **{"step_size": 0.005, "n_steps": n_steps, "seed": 5} | options)


SAMPLERS: dict[str, Run] = {"underdamped": und, "mala": corrected, "langevin": plain}
algorithms = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
towards = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    if _cpu_build.library(build=True) is None:
        pytest.skip("no C compiler")


def start(target: Any, n: int = 100) -> Tensor:
    return 1.5 * noise.normal((n, target.dim), seed=0, stream=5)


def count_chains(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of steps of the runs that a kernel makes from now on."""
    seen: list[int] = []
    run = _cpu_target.Target._run

    def counted(self: Any, name: str, state: Any, factors: Any, *rest: Any) -> Any:
        seen.append(len(factors[0]))
        return run(self, name, state, factors, *rest)

    monkeypatch.setattr(_cpu_target.Target, "_run", counted)
    return seen


@towards
@algorithms
def test_chains_are_the_generic_ones(sampler: Run, target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = count_chains(monkeypatch)
    x = start(target)
    options: dict[str, Any] = {
        "step_size": lambda k: 0.05 / (1 + k) * torch.linspace(0.5, 1, target.dim),
        "first_chain": 2**32 - 50,
    }
    if sampler is not und:
        options["first_step"] = 17
    if sampler is not corrected:
        options["temperature"] = lambda k: 1.0 / (1 + k)
    generic = sampler(lambda x: target.score(x), lambda x: target.log_prob(x), x, **options)
    assert not seen
    made = sampler(target.score, target.log_prob, x, **options)
    assert seen == [30]
    torch.testing.assert_close(made, generic, rtol=4e-5, atol=4e-5)


@towards
@algorithms
def test_chains_have_the_same_bits_however_they_are_cut(sampler: Run, target: Any) -> None:
    run = partial(sampler, target.score, target.log_prob)
    x = start(target)
    path = run(x, return_trajectory=True)
    assert torch.equal(run(x), path[:, -1])
    assert torch.equal(run(x, thin=7, burn_in=2, return_trajectory=True), path[:, 2:][:, 6::7])
    half, found = run(x, 13, return_diagnostics=True)
    more = {"velocity": found["velocity"]} if sampler is und else {}
    assert torch.equal(run(half, 17, first_step=13, **more), path[:, -1])
    parts = [run(part, first_chain=first) for part, first in zip(x.split([1, 64, 35]), (0, 1, 65), strict=True)]
    assert torch.equal(torch.cat(parts), path[:, -1])


@algorithms
def test_states_are_kept_inside_one_run_of_the_kernel(sampler: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    target = TARGETS["wells"]
    run = partial(sampler, target.score, target.log_prob, start(target))
    expected = [run(n_steps) for n_steps in (14, 19, 24, 29)]
    seen = count_chains(monkeypatch)
    path = run(30, burn_in=9, thin=5, return_trajectory=True)
    assert seen == [30]
    assert torch.equal(path, torch.stack(expected, 1))


@pytest.mark.parametrize(
    ("algorithm", "run"),
    [
        (Underdamped(TARGETS["ring"].score, step_size=0.05, seed=5), und),
        (Mala(TARGETS["ring"], step_size=0.02, seed=5), corrected),
        (Langevin(TARGETS["wells"].score, step_size=0.005, seed=5), plain),
    ],
    ids=SAMPLERS,
)
def test_single_steps_have_the_same_bits(algorithm: Any, run: Run) -> None:
    target = TARGETS["wells" if run is plain else "ring"]
    state = algorithm.init(start(target))
    for k in range(30):
        state = algorithm.step(state, k)
    assert torch.equal(state.x, run(target.score, target.log_prob, start(target)))


@algorithms
@pytest.mark.parametrize("policy", ["raise", "freeze", "ignore"])
def test_a_bad_chain_is_found_inside_a_leap(sampler: Run, policy: str) -> None:
    target = TARGETS["wells" if sampler is plain else "ring"]
    run = partial(sampler, target.score, target.log_prob)
    x = noise.normal((100, target.dim), seed=0, stream=5)
    clean = run(x[:70], 600)
    x[70, 1] = 1e30  # the score is not a number, or grows without end
    if policy == "raise":
        with pytest.raises(fastscore.NonFiniteError, match="chain 75 is not finite after step 0"):
            run(x, 600, first_chain=5)
        return
    found, diagnostics = run(x, 600, on_nonfinite=policy, return_diagnostics=True, thin=600)
    assert torch.equal(found[:70], clean)
    if policy == "freeze":
        assert torch.equal(found[70], x[70])
    assert int(diagnostics["first_nonfinite"][70]) == (0 if policy == "freeze" else -1)


@pytest.mark.parametrize("value", [1e25, 3e38])
def test_mala_from_where_the_density_is_0_is_the_generic_chain(value: float) -> None:
    """Every component's logarithm overflows there, and the score is not a number: such a chain is lost, not stuck."""
    target = TARGETS["ring"]
    x = torch.zeros(3, 2)
    x[1] = value
    made = corrected(target.score, target.log_prob, x, on_nonfinite="ignore", return_diagnostics=True)
    generic = corrected(
        lambda x: target.score(x), lambda x: target.log_prob(x), x, on_nonfinite="ignore", return_diagnostics=True
    )
    torch.testing.assert_close(made[0], generic[0], rtol=4e-5, atol=4e-5, equal_nan=True)
    assert torch.equal(made[1]["acceptance_rate"], generic[1]["acceptance_rate"])


@towards
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_mala_loses_a_chain_whose_proposal_is_not_finite(target: Any, value: float) -> None:
    """Whatever the density is there: -inf of most targets, NaN where an infinity meets a zero of a matrix."""
    x, score = start(target, 3), torch.zeros(3, target.dim)
    score[1, -1] = value  # of a state whose density says -inf, so that only the proposal tells
    log_prob = torch.tensor([0.0, -torch.inf, 0.0])
    for given in (target.log_prob, lambda x: target.log_prob(x)):
        algorithm = Mala(given, score_fn=target.score if given is target.log_prob else None, step_size=0.01, seed=5)
        made = algorithm.step(MalaState(x, log_prob, score, torch.zeros(3)), 0)
        assert bool(made.x[1].isnan().all()) and bool(made.x[[0, 2]].isfinite().all())
    with pytest.raises(fastscore.NonFiniteError, match="chain 1 is not finite after step 0"):
        x[1, -1] = value
        corrected(target.score, target.log_prob, x)


def test_mala_takes_a_target_a_method_and_its_own_score(monkeypatch: pytest.MonkeyPatch) -> None:
    target, other = TARGETS["ring"], targets.GaussianMixture.ring()
    seen, x = count_chains(monkeypatch), start(target)
    made = fastscore.mala(target, x, step_size=0.02, n_steps=9, seed=5)
    assert torch.equal(fastscore.mala(target.log_prob, x, step_size=0.02, n_steps=9, seed=5), made)
    assert seen == [9, 9]
    fastscore.mala(target.log_prob, x, score_fn=other.score, step_size=0.02, n_steps=9, seed=5)
    assert seen == [9, 9]


@towards
def test_values_err_at_most_twice_as_much_as_torch(target: Any) -> None:
    x = 4.0 * start(target, 5000)
    log_prob, score = _cpu_target.of(analytic.density(target.log_prob, None, x), x).density(x)  # type: ignore[union-attr]
    true = target.log_prob(x.double()), target.score(x.double())
    for made, torchs, exact in zip((log_prob, score), (target.log_prob(x), target.score(x)), true, strict=True):
        ours, theirs = ((found.double() - exact).abs() for found in (made, torchs))
        assert float(ours.max()) <= 2 * float(theirs.max())
        assert float(ours.mean()) <= 2 * float(theirs.mean())


@towards
def test_the_density_of_what_is_not_finite_is_torchs(target: Any) -> None:
    x = torch.zeros(8, target.dim)
    for row, value in enumerate((torch.nan, torch.inf, -torch.inf, 1e25, 3e38)):
        x[row, -1] = value
    x[6:] = torch.tensor([[torch.inf], [-3e38]])
    if target is TARGETS["full"]:  # torch multiplies an infinity by the zeros of a triangle, the kernel leaves them out
        x = x.nan_to_num(nan=torch.nan)
    log_prob, _ = _cpu_target.of(analytic.density(target.log_prob, None, x), x).density(x)  # type: ignore[union-attr]
    torch.testing.assert_close(log_prob, target.log_prob(x), rtol=4e-5, atol=4e-5, equal_nan=True)


@pytest.mark.parametrize("conditioned", [False, True])
def test_networks_have_momenta_too(conditioned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = fastscore.ScoreMLP(dim=3, width=24, depth=2, cond_dim=2 if conditioned else 0)
    cond = torch.randn(200, 2) if conditioned else None
    seen, x = count_chains(monkeypatch), noise.normal((200, 3), seed=0, stream=5)
    made = und(net, None, x, cond=cond)
    assert seen == [30]
    generic = und(lambda x, *c: net(x, *c) + 0.0 * x.frac(), None, x, cond=cond)
    assert seen == [30]
    torch.testing.assert_close(made, generic, rtol=4e-5, atol=4e-5)


@pytest.mark.parametrize("name", ["ring", "each", "full", "gaussian"])
@pytest.mark.parametrize("compiler", [True, False])
def test_a_ladder_towards_a_mixture(name: str, compiler: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    target = TARGETS[name]
    x = start(target)

    def run(score: Any, x: Tensor = x, **options: Any) -> Any:
        settings = {"sigmas": SIGMAS, "n_steps_each": 9, "step_size": 0.01, "seed": 5}
        return fastscore.annealed_langevin_dynamics(score, x, **settings | options)

    options = {"clamp": (-9.0, 4.0), "denoise": False}
    generic = run(lambda x, sigma: target.noisy_score(x, sigma), **options)
    if compiler:
        monkeypatch.setattr(AnnealedLangevin, "score", None)  # it is not asked
    else:
        monkeypatch.setattr(_cpu_build, "library", lambda *, build: None)
    made = run(target.noisy_score, **options)
    torch.testing.assert_close(made, generic, rtol=4e-5, atol=4e-5)
    path = run(target.noisy_score, return_trajectory=True, **options)
    assert torch.equal(path[:, -1], made)
    later = run(target.noisy_score, path[:, 12], first_step=13, return_trajectory=True, **options)
    assert torch.equal(later, path[:, 13:])
    parts = [
        run(target.noisy_score, part, first_chain=i, **options) for part, i in zip(x.split(60), (0, 60), strict=True)
    ]
    assert torch.equal(torch.cat(parts), made)


def test_a_leap_over_a_ladder_keeps_what_it_is_asked_for() -> None:
    """Wherever it begins: memory that nothing is written to would be returned as states."""
    target, x = TARGETS["ring"], start(TARGETS["ring"])
    algorithm = AnnealedLangevin(target.noisy_score, sigmas=SIGMAS, n_steps_each=9, step_size=0.01, seed=5)
    for k in (0, 4, 11):
        made = algorithm.leap(algorithm.init(x), k, 14, chain.Keep(2, 3, 5))
        assert made is not None and made[1].shape[1] == 5
        state = algorithm.init(x)
        for step in range(14):
            state = algorithm.step(state, k + step)
            if step % 3 == 1:
                assert torch.equal(made[1][:, step // 3], state.x)


@algorithms
def test_without_a_compiler_steps_are_made_one_by_one(sampler: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    target = TARGETS["wells"]
    x = start(target)
    monkeypatch.setattr(_cpu_build, "library", lambda *, build: None)
    generic = sampler(lambda x: target.score(x), lambda x: target.log_prob(x), x)
    assert torch.equal(sampler(target.score, target.log_prob, x), generic)


def test_a_subclass_with_a_score_of_its_own_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    class Twice(targets.DoubleWell):
        def score(self, x: Tensor) -> Tensor:
            return 2.0 * super().score(x)

    seen, x = count_chains(monkeypatch), torch.randn(5, 2)
    und(Twice(2).score, None, x)
    assert not seen


@pytest.mark.parametrize("name", ["ring", "wells", "network"])
@pytest.mark.parametrize("sampler", [fastscore.langevin_dynamics, fastscore.underdamped_langevin, fastscore.mala])
def test_calls_that_are_cut_short_for_an_interrupt_change_nothing(
    name: str, sampler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    energy = fastscore.EnergyMLP(dim=2, width=16, depth=2)
    target = {"network": energy, "wells": targets.DoubleWell(2)}.get(name, TARGETS["ring"])
    log_prob = (lambda x: -energy(x)) if name == "network" else target.log_prob
    given = log_prob if sampler is fastscore.mala else target.score
    x = noise.normal((200, 2), seed=0, stream=5)
    options = {"step_size": 0.01, "n_steps": 20, "burn_in": 3, "thin": 4, "seed": 5, "return_trajectory": True}
    whole, calls, parallel = sampler(given, x, **options), [], _cpu_threads.parallel
    monkeypatch.setattr(_cpu_chain, "CALL_ELEMENTS", 1000)
    monkeypatch.setattr(
        _cpu_threads, "parallel", lambda *given, **more: (calls.append(more["parts"]), parallel(*given, **more))
    )
    assert torch.equal(sampler(given, x, **options), whole)
    assert len(calls) >= 3 and max(calls) > 1


def test_chains_that_are_too_wide_for_the_kernels_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    source, x = _cpu_target.DoubleWell(3, 1.0, 0.0), torch.zeros(5, 3)
    assert _cpu_target.of(source, x) is not None
    assert _cpu_chain.WIDEST * _cpu_chain.BLOCK < 2**31
    monkeypatch.setattr(_cpu_chain, "WIDEST", 2)
    assert _cpu_target.of(source, x) is None
