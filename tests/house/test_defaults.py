"""What an argument is when it is not given: one value for one name, wherever the name is an argument."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import fastscore
from fastscore import diagnostics, metrics, noise, samplers, targets

DEFAULTS: dict[str, Any] = {
    "activation": "silu", "bandwidth": 1.0, "barrier": 1.0, "burn_in": 0, "checkpoint": None, "checkpoint_every": 1000,
    "chunk_size": None, "clamp": None, "cond": None, "cond_dim": 0, "convention": "half", "decay": 0.0, "denoise": True,
    "depth": 2, "device": None, "diagnostics": None, "dim": None, "dtype": torch.float32, "first_chain": 0,
    "first_step": 0, "friction": 1.0, "generator": None, "integrator": None, "model_kwargs": None, "n_modes": 8,
    "n_probes": 1, "n_samples": 1, "n_steps": 100, "noise_scale": None, "of": "divergence", "on_nonfinite": "raise",
    "probe": "rademacher", "progress": False, "radius": 4.0, "reduction": "mean", "relative": False, "reset_schedulers":
    True, "return_diagnostics": False, "return_terms": False, "return_trajectory": False, "score_fn": None, "seed":
    None, "std": 0.5, "step": 0, "step_size": 1e-3, "temperature": 1.0, "thin": 1, "trace": "auto", "unbiased": False,
    "velocity": None, "weight": None, "weighting": "sigma2", "weights": None, "width": 128, "x": None, "y": None,
}  # fmt: skip


def public() -> Iterator[tuple[str, Callable[..., Any]]]:
    for module in (fastscore, diagnostics, metrics, noise, samplers, targets):
        for name, value in vars(module).items():
            if name.startswith("_") or not getattr(value, "__module__", "").startswith("fastscore"):
                continue
            if not inspect.isclass(value):
                if callable(value):
                    yield f"{module.__name__}.{name}", value
                continue
            for method, function in vars(value).items():
                function = getattr(function, "__func__", function)
                if inspect.isfunction(function) and (method == "__init__" or not method.startswith("_")):
                    yield f"{module.__name__}.{name}.{method}", function


GIVEN = [
    (f"{name}: {parameter.name}", parameter.name, parameter.default)
    for name, function in public()
    for parameter in inspect.signature(function).parameters.values()
    if parameter.default is not parameter.empty
]


def test_a_default_is_that_of_its_name() -> None:
    assert [
        where for where, name, value in GIVEN if DEFAULTS[name] != value or type(DEFAULTS[name]) is not type(value)
    ] == []
    assert {name for _, name, _ in GIVEN} == set(DEFAULTS)


@pytest.mark.parametrize(
    "field", inspect.signature(samplers.chain.Run).parameters.values(), ids=lambda field: field.name
)
def test_a_run_has_the_samplers_defaults(field: inspect.Parameter) -> None:
    if field.name not in ("n_steps", "seed", "settings"):  # the first two are given by every sampler
        assert field.default == DEFAULTS[field.name]
