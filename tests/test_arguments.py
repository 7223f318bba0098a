"""Every argument of every public function is checked there: no function takes what another one of the name refuses."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

import fastscore
from fastscore import metrics

X, NAN = torch.ones(4, 2), float("nan")
RATES: list[Any] = [0.0, -0.1, NAN, "0.1", torch.ones(3)]
COUNTS: list[Any] = [-1, 1.5, True, "3"]
FLAGS: list[Any] = ["no", 1, None]
BAD: dict[str, list[Any]] = {
    "bandwidth": [0.0, -1.0, NAN, "1"],
    "burn_in": COUNTS,
    "checkpoint": [5, X],
    "checkpoint_every": [0, *COUNTS],
    "chunk_size": [0, *COUNTS],
    "clamp": [(1.0, 0.0), (NAN, 1.0), 3.0, ("0", "1"), (0.0, 1.0, 2.0)],
    "convention": ["one", None],
    "denoise": FLAGS,
    "first_chain": [2**56, *COUNTS],
    "first_step": [2**32, *COUNTS],
    "friction": [0.0, -1.0, NAN, "1"],
    "generator": [7, "0"],
    "n_probes": [0, *COUNTS],
    "n_steps": COUNTS,
    "n_steps_each": [0, *COUNTS],
    "on_nonfinite": ["stop", None],
    "probe": ["sphere", None],
    "progress": FLAGS,
    "reduction": ["max", None],
    "relative": FLAGS,
    "return_diagnostics": FLAGS,
    "return_terms": FLAGS,
    "return_trajectory": FLAGS,
    "score": [X.tolist(), X.long(), torch.ones(4, 3), torch.ones(4, 2, device="meta")],
    "seed": [-1, 2**64, 1.5, True],
    "sigma": [0.0, NAN, torch.ones(3), -1.0],
    "sigmas": [[], [1.0, 0.0], [1.0, NAN], 3.0],
    "step": [-1, 2**32, 1.5, True],
    "step_size": RATES,
    "target": [3, torch.ones(4, 3), X.long()],
    "temperature": [-1.0, NAN, "1"],
    "thin": [0, *COUNTS],
    "trace": ["full", None],
    "unbiased": FLAGS,
    "velocity": [3, torch.ones(4, 3)],
    "weight": [3, torch.ones(3, 3), torch.ones(3, 2, 2)],
    "weighting": ["sigma", None],
}
GIVEN: dict[str, Any] = {
    "step_size": 0.1, "n_steps": 3, "n_steps_each": 2, "sigmas": [1.0, 0.5], "sigma": 0.5, "target": torch.neg,
    "score": X, "step": 0, "seed": 0,
}  # fmt: skip
FREE = {"x", "cond", "score_fn", "energy_fn", "log_prob", "fn", "of"}  # met in tests/test_errors.py
FUNCTIONS = [
    fastscore.annealed_langevin_dynamics,
    fastscore.denoising_score_matching,
    fastscore.divergence,
    fastscore.explain,
    fastscore.explicit_score_matching,
    fastscore.gradient_ascent,
    fastscore.implicit_score_matching,
    fastscore.jacobian,
    fastscore.langevin_dynamics,
    fastscore.langevin_step,
    fastscore.laplacian,
    fastscore.mala,
    fastscore.sliced_score_matching,
    fastscore.underdamped_langevin,
    metrics.fisher_divergence,
    metrics.kernel_stein_discrepancy,
]
CASES = [
    pytest.param(function, name, value, id=f"{function.__name__}-{name}-{i}")
    for function in FUNCTIONS
    for name in inspect.signature(function).parameters
    for i, value in enumerate(BAD.get(name, []))
]


def test_every_argument_has_a_case() -> None:
    names = {name for function in FUNCTIONS for name in inspect.signature(function).parameters}
    assert names - FREE == set(BAD)
    public = {name for name in vars(fastscore) if inspect.isfunction(getattr(fastscore, name))}
    others = {"diagnose", "load_network", "save_network", "use_backend"}  # whose own tests have what they refuse
    assert public - {function.__name__ for function in FUNCTIONS} == others


@pytest.mark.parametrize(("function", "name", "value"), CASES)
def test_a_bad_value_is_refused_by_name(function: Any, name: str, value: Any) -> None:
    calls: list[int] = []

    def fn(x: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return -x

    parameters = inspect.signature(function).parameters
    functions = dict.fromkeys(("score_fn", "energy_fn", "log_prob", "fn"), fn)
    given = {n: v for n, v in ({"x": X} | functions | GIVEN | {name: value}).items() if n in parameters}
    with pytest.raises((TypeError, ValueError), match=name):
        function(**given)
    assert not calls
