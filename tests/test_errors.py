"""Bad input is refused by name and value before any work: the score is never called, no kernel is ever asked for.

A case is (exception, what the message must say, the call); `s` is a score that counts its calls.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch

import fastscore as fs
from fastscore import cli, metrics, noise, samplers, targets
from fastscore.ops import _dispatch

X = torch.ones(4, 2)
META = torch.ones(4, 2, device="meta")
NAN, INF = float("nan"), float("inf")
Case = tuple[type[Exception], str, Callable[[Callable], object]]


class Counting:
    """A score, energy and log-density in one that counts its calls."""

    def __init__(self, answer: Callable = torch.neg) -> None:
        self.calls, self.answer = 0, answer

    def __call__(self, x: torch.Tensor, *_: object) -> torch.Tensor:
        self.calls += 1
        return self.answer(x)


def over(name: str, call: Callable, cases: list[tuple[object, type[Exception], str]]) -> list[Case]:
    """One argument, many bad values: `call(s, value)`; every message begins with the argument's name."""
    return [(error, f"{name} {text}", lambda s, v=value: call(s, v)) for value, error, text in cases]


def langevin(s: Callable, x: object = X, **arguments: object) -> object:
    return fs.langevin_dynamics(s, x, **{"step_size": 0.1, "n_steps": 3, "seed": 0, **arguments})


def step(x: object = X, score: object = X, **arguments: object) -> object:
    return fs.langevin_step(x, score, **{"step_size": 0.1, "seed": 0, "step": 0, **arguments})


def annealed(s: Callable, **arguments: object) -> object:
    settings = {"sigmas": [1.0, 0.5], "n_steps_each": 2, "step_size": 0.1, "seed": 0, **arguments}
    return fs.annealed_langevin_dynamics(s, X, **settings)


def mala(s: Callable, **arguments: object) -> object:
    return fs.mala(lambda x: s(x).sum(1), X, **{"step_size": 0.1, "n_steps": 3, "seed": 0, **arguments})


def underdamped(s: Callable, **arguments: object) -> object:
    return fs.underdamped_langevin(s, X, **{"step_size": 0.1, "n_steps": 3, "seed": 0, **arguments})


def implicit(s: Callable, **arguments: object) -> object:
    return fs.implicit_score_matching(s, X, **arguments)


def denoising(s: Callable, **arguments: object) -> object:
    return fs.denoising_score_matching(s, X, **{"sigma": 0.5, "seed": 0, **arguments})


TAKES_POINTS = {
    "divergence": fs.divergence,
    "jacobian": fs.jacobian,
    "laplacian": fs.laplacian,
    "explain": fs.explain,
    "implicit": fs.implicit_score_matching,
    "sliced": fs.sliced_score_matching,
    "explicit": lambda s, x: fs.explicit_score_matching(s, x, target=s),
    "denoising": lambda s, x: fs.denoising_score_matching(s, x, sigma=1.0),
    "fisher": lambda s, x: metrics.fisher_divergence(s, s, x),
    "stein": metrics.kernel_stein_discrepancy,
    "langevin_dynamics": langevin,
    "gradient_ascent": lambda s, x: fs.gradient_ascent(s, x, step_size=0.1, n_steps=1),
    "annealed": lambda s, x: fs.annealed_langevin_dynamics(s, x, sigmas=[1.0], n_steps_each=1, step_size=0.1),
    "mala": lambda s, x: fs.mala(s, x, step_size=0.1, n_steps=1),
    "underdamped": lambda s, x: fs.underdamped_langevin(s, x, step_size=0.1, n_steps=1),
    "LangevinDynamics": lambda s, x: fs.LangevinDynamics(s).sample(x),
    "langevin_step": lambda s, x: step(x),
}
NEEDS_ROWS = {"implicit", "sliced", "explicit", "denoising", "fisher", "stein"}
POINTS = [
    ([[1.0, 2.0]], TypeError, r"x must be a tensor, got list"),
    (np.ones((4, 2)), TypeError, r"x must be a tensor, got ndarray"),
    (torch.ones(4, 2, dtype=torch.int64), TypeError, r"x must be a floating point tensor, got torch\.int64"),
    (torch.ones(4, 2, dtype=torch.bool), TypeError, r"x must be a floating point tensor, got torch\.bool"),
    (torch.ones(4, 2, dtype=torch.complex64), TypeError, r"x must be a floating point tensor, got torch\.complex64"),
    (X.to(torch.float8_e4m3fn), TypeError, r"x must be a floating point tensor .*, got torch\.float8_e4m3fn"),
    (X.to_sparse(), TypeError, r"x must be a dense tensor, got .*sparse_coo"),
    (META, ValueError, r"x must hold numbers, got a tensor on the meta device"),
    (torch.ones(4), ValueError, r"x must have shape \[B, \*event\] .* got \[4\]"),
    (torch.ones(4, 0), ValueError, r"x must have at least one feature, got \[4, 0\]"),
]

SEEDS = [
    (True, TypeError, r"must be an int, got True"),
    (1.5, TypeError, r"must be an int, got 1\.5"),
    (torch.tensor(1), TypeError, r"must be an int, got tensor\(1\)"),
    (-1, ValueError, r"must be in \[0, 2\*\*64\), got -1"),
    (2**64, ValueError, rf"must be in \[0, 2\*\*64\), got {2**64}"),
]
STEP_SIZES = [
    (0.0, ValueError, r"must be finite and > 0, got 0\.0"),
    (-0.1, ValueError, r"must be finite and > 0, got -0\.1"),
    (NAN, ValueError, r"must be finite and > 0, got nan"),
    (INF, ValueError, r"must be finite and > 0, got inf"),
    (True, TypeError, r"must be a number or a tensor, got True"),
    ("0.1", TypeError, r"must be a number or a tensor, got '0\.1'"),
    (torch.tensor([0.1, NAN]), ValueError, r"must be finite and > 0, got nan"),
    (torch.tensor([0.1, -3.0]), ValueError, r"must be finite and > 0, got -3\.0"),
    (torch.tensor(0.1 + 0j), TypeError, r"must be a real number, got a tensor of torch\.complex64"),
    (torch.full((3,), 0.1), ValueError, r"must be .* 0-dim or of the event's shape \[2\], got shape \[3\]"),
    (torch.tensor(0.1, device="meta"), ValueError, r"is on meta, x on cpu"),
]
TEMPERATURES = [
    (-1.0, ValueError, r"must be finite and >= 0, got -1\.0"),
    (NAN, ValueError, r"must be finite and >= 0, got nan"),
    (torch.ones(2), ValueError, r"must be a number or a tensor that is 0-dim, got shape \[2\]"),
    (None, TypeError, r"must be a number or a tensor, got None"),
]
COUNTS = [
    (2.0, TypeError, r"must be an int, got 2\.0"),
    (True, TypeError, r"must be an int, got True"),
    (-1, ValueError, r"must be at least \d, got -1"),
]

STEP = (
    over("step_size", lambda _, v: step(step_size=v), STEP_SIZES)
    + over("temperature", lambda _, v: step(temperature=v), TEMPERATURES)
    + over("seed", lambda _, v: step(seed=v), [*SEEDS, (None, TypeError, "must be an int, got None")])
    + over("step", lambda _, v: step(step=v), [(2**32, ValueError, r"must be in \[0, 2\*\*32\), got 4294967296")])
    + over(
        "first_chain", lambda _, v: step(first_chain=v), [(2**56 - 1, ValueError, r"must be in \[0, .*\), got 72057")]
    )
    + over(
        "score",
        lambda _, v: step(score=v),
        [
            (X.tolist(), TypeError, "must be a tensor, got list"),
            (X.long(), TypeError, r"must be a floating point tensor, got torch\.int64"),
            (torch.ones(4, 3), ValueError, r"must have the shape of x \[4, 2\], got \[4, 3\]"),
            (META, ValueError, r"is on meta, x on cpu"),
        ],
    )
)

RUNS = (
    over("step_size", lambda s, v: langevin(s, step_size=v), STEP_SIZES)
    + over("step_size", lambda s, v: mala(s, step_size=v), STEP_SIZES)
    + over("step_size", lambda s, v: underdamped(s, step_size=v), STEP_SIZES)
    + over("temperature", lambda s, v: langevin(s, temperature=v), TEMPERATURES)
    + over("temperature", lambda s, v: underdamped(s, temperature=v), TEMPERATURES)
    + over("temperature", lambda s, v: annealed(s, temperature=v), TEMPERATURES[:3])
    + over("seed", lambda s, v: langevin(s, seed=v), SEEDS)
    + over("seed", lambda s, v: mala(s, seed=v), SEEDS)
    + over("n_steps", lambda s, v: langevin(s, n_steps=v), COUNTS)
    + over("n_steps", lambda s, v: underdamped(s, n_steps=v), COUNTS)
    + over(
        "burn_in", lambda s, v: langevin(s, burn_in=v), [*COUNTS, (4, ValueError, "must be at most n_steps 3, got 4")]
    )
    + over("thin", lambda s, v: langevin(s, thin=v), [*COUNTS, (0, ValueError, "must be at least 1, got 0")])
    + over("n_steps_each", lambda s, v: annealed(s, n_steps_each=v), COUNTS)
    + over(
        "first_step", lambda s, v: langevin(s, first_step=v), [(2**32 - 2, ValueError, r"must be in .* got 4294967294")]
    )
    + over("first_step", lambda s, v: annealed(s, first_step=v), [(5, ValueError, r"must be in \[0, 5\), got 5")])
    + over(
        "first_chain",
        lambda s, v: langevin(s, first_chain=v),
        [
            (2**56 - 3, ValueError, r"must be in \[0, 72057594037927933\), got 72057594037927933"),
            (0.0, TypeError, r"must be an int, got 0\.0"),
        ],
    )
    + over(
        "clamp",
        lambda s, v: langevin(s, clamp=v),
        [
            ((1.0, 0.0), ValueError, r"must be \(low, high\) with low < high, got \(1\.0, 0\.0\)"),
            ((0.0, NAN), ValueError, r"must be \(low, high\) with low < high, got \(0\.0, nan\)"),
            (1.0, TypeError, r"must be \(low, high\), two numbers, got 1\.0"),
            ("ab", TypeError, r"must be \(low, high\), two numbers, got 'ab'"),
            ((0.0, 1.0, 2.0), TypeError, r"must be \(low, high\), two numbers, got \(0\.0, 1\.0, 2\.0\)"),
        ],
    )
    + over(
        "on_nonfinite",
        lambda s, v: langevin(s, on_nonfinite=v),
        [
            ("stop", ValueError, "must be one of 'raise', .* got 'stop'"),
            ([], ValueError, r"must be one of .* got \[\]"),
        ],
    )
    + over(
        "return_trajectory",
        lambda s, v: langevin(s, return_trajectory=v),
        [("no", TypeError, "must be True or False, got 'no'")],
    )
    + over("denoise", lambda s, v: annealed(s, denoise=v), [("no", TypeError, "must be True or False, got 'no'")])
    + over(
        "score_fn",
        lambda _, v: langevin(v),
        [(X, TypeError, "must be callable, got Tensor"), (None, TypeError, "must be callable, got NoneType")],
    )
    + over(
        "score_fn",
        lambda _, v: mala(targets.Gaussian([0.0, 0.0], 1.0).log_prob, score_fn=v),
        [(1, TypeError, "must be callable, got int")],
    )
    + over(
        "score_fn",
        lambda _, v: fs.mala(targets.Gaussian([0.0, 0.0], 1.0), X, step_size=0.1, n_steps=1, score_fn=v),
        [(1, TypeError, "must be callable, got int")],
    )
    + over(
        "log_prob",
        lambda _, v: fs.mala(v, X, step_size=0.1, n_steps=1),
        [(1.0, TypeError, "must be callable, got float")],
    )
    + over(
        "sigmas",
        lambda s, v: annealed(s, sigmas=v),
        [
            ([], ValueError, "must have at least one noise level, got none"),
            ([0.5, 1.0], ValueError, r"must decrease, got \[0\.5, 1\.0\]"),
            ([1.0, 1.0], ValueError, r"must decrease, got \[1\.0, 1\.0\]"),
            ([1.0, 0.0], ValueError, r"must be finite and > 0, got 0\.0"),
            ([1.0, NAN], ValueError, r"must be finite and > 0, got nan"),
            (1.0, TypeError, r"must be a sequence of numbers, got 1\.0"),
            (torch.ones(2, 2), TypeError, r"must be a sequence of numbers, got .*\[1\.0, 1\.0\]"),
            (["1.0", "0.5"], TypeError, r"must be a sequence of numbers, got .*'1\.0'"),
        ],
    )
    + over(
        "step_size",
        lambda s, v: annealed(s, step_size=v),
        [*STEP_SIZES[:6], (torch.ones(2), ValueError, r"must be .* 0-dim, got shape \[2\]")],
    )
    + over(
        "friction",
        lambda s, v: underdamped(s, friction=v),
        [
            (0.0, ValueError, r"must be finite and > 0, got 0\.0"),
            (NAN, ValueError, r"must be finite and > 0, got nan"),
            (torch.ones(3), ValueError, r"must be a number or a tensor that is 0-dim, got shape \[3\]"),
        ],
    )
    + over(
        "velocity",
        lambda s, v: underdamped(s, velocity=v),
        [
            (1.0, TypeError, "must be a tensor, got float"),
            (X.long(), TypeError, r"must be a floating point tensor, got torch\.int64"),
            (torch.ones(3, 2), ValueError, r"must have the shape of x \[4, 2\], got \[3, 2\]"),
            (META, ValueError, "is on meta, x on cpu"),
        ],
    )
    + [(ValueError, "velocity is needed .* got None with first_step 3", lambda s: underdamped(s, first_step=3))]
    + [(ValueError, "give seed or generator, not both", lambda s: langevin(s, generator=torch.Generator()))]
    + [(TypeError, "generator must be a torch.Generator, got int", lambda s: langevin(s, seed=None, generator=3))]
)

DEVICES = [
    ("gpu", ValueError, "must be a device such as 'cpu' .*, got 'gpu'"),
    (1.5, ValueError, r"must be a device such as 'cpu' .*, got 1\.5"),
]

DYNAMICS = (
    over("device", lambda s, v: fs.LangevinDynamics(s, device=v), DEVICES)
    + over("step_size", lambda s, v: fs.LangevinDynamics(s, v), STEP_SIZES[:9])
    + over("temperature", lambda s, v: fs.LangevinDynamics(s, temperature=v), TEMPERATURES[:2])
    + over(
        "dtype",
        lambda s, v: fs.LangevinDynamics(s, dtype=v),
        [
            (torch.int64, TypeError, r"must be a floating point dtype, got torch\.int64"),
            ("float32", TypeError, "must be a floating point dtype, got 'float32'"),
        ],
    )
    + over("on_nonfinite", lambda s, v: fs.LangevinDynamics(s, on_nonfinite=v), [("stop", ValueError, ".* got 'stop'")])
    + over(
        "dim",
        lambda s, v: fs.LangevinDynamics(s).sample(dim=v),
        [
            (0, ValueError, "must be at least 1, got 0"),
            ((2, -1), ValueError, "must be at least 1, got -1"),
            (2.5, TypeError, r"must be an int, got 2\.5"),
            (True, TypeError, "must be an int, got True"),
        ],
    )
    + over("n_samples", lambda s, v: fs.LangevinDynamics(s).sample(dim=2, n_samples=v), COUNTS)
    + [
        (ValueError, r"give x .* or dim .*, got neither", lambda s: fs.LangevinDynamics(s).sample()),
        (ValueError, "give noise_scale or temperature", lambda s: fs.LangevinDynamics(s, 0.1, 1.0, temperature=0.5)),
    ]
    + over("noise_scale", lambda s, v: fs.LangevinDynamics(s, 0.1, v), STEP_SIZES[:9])
    + over("decay", lambda s, v: fs.LangevinDynamics(s, decay=v), [(0.1, ValueError, r"must be 0, got 0\.1")])
    + over("integrator", lambda s, v: fs.LangevinDynamics(s, integrator=v), [("heun", ValueError, ".*, got 'heun'")])
    + over("model_kwargs", lambda s, v: fs.LangevinDynamics(s).sample(X, model_kwargs=v), [(3, TypeError, ".* got 3")])
)

FIRST_CHAINS = [
    (-1, ValueError, r"must be in \[0, 72057594037927933\), got -1"),
    (2**56 - 3, ValueError, r"must be in \[0, 72057594037927933\), got 72057594037927933"),
    (0.0, TypeError, r"must be an int, got 0\.0"),
]

TRACES = (
    over("first_chain", lambda s, v: fs.divergence(s, X, first_chain=v), FIRST_CHAINS)
    + over("first_chain", lambda s, v: fs.laplacian(s, X, first_chain=v), FIRST_CHAINS)
    + over("first_chain", lambda s, v: implicit(s, first_chain=v), FIRST_CHAINS)
    + over("first_chain", lambda s, v: denoising(s, first_chain=v), FIRST_CHAINS)
    + over("trace", lambda s, v: fs.divergence(s, X, trace=v), [("hutch", ValueError, "must be one of .* got 'hutch'")])
    + over("probe", lambda s, v: fs.divergence(s, X, probe=v), [("gauss", ValueError, "must be one of .* got 'gauss'")])
    + over(
        "n_probes",
        lambda s, v: fs.divergence(s, X, n_probes=v),
        [*COUNTS, (0, ValueError, "must be at least 1, got 0")],
    )
    + over(
        "chunk_size",
        lambda s, v: fs.divergence(s, X, chunk_size=v),
        [*COUNTS, (0, ValueError, "must be at least 1, got 0")],
    )
    + over("chunk_size", lambda s, v: fs.jacobian(s, X, chunk_size=v), COUNTS)
    + over("n_probes", lambda s, v: fs.laplacian(s, X, n_probes=v), COUNTS)
    + over("seed", lambda s, v: fs.divergence(s, X, seed=v), SEEDS)
    + over("seed", lambda s, v: fs.laplacian(s, X, trace="hutchinson", seed=v), SEEDS)
    + [
        (
            ValueError,
            "give seed or generator, not both",
            lambda s: fs.divergence(s, X, seed=1, generator=torch.Generator()),
        )
    ]
    + over(
        "generator",
        lambda s, v: fs.divergence(s, X, generator=v),
        [(3, TypeError, "must be a torch.Generator, got int")],
    )
    + over("of", lambda s, v: fs.explain(s, X, of=v), [("trace", ValueError, "must be one of .* got 'trace'")])
    + over(
        "weight",
        lambda s, v: fs.divergence(s, X, weight=v),
        [
            (torch.ones(3, 3), ValueError, r"must have shape \[2, 2\] or \[4, 2, 2\], got \[3, 3\]"),
            (torch.ones(2, 2).long(), TypeError, r"must be a floating point tensor, got torch\.int64"),
            (1.0, TypeError, "must be a tensor, got float"),
            (torch.ones(2, 2, device="meta"), ValueError, "is on meta, x on cpu"),
        ],
    )
    + over("score_fn", lambda _, v: fs.divergence(v, X), [(X, TypeError, "must be callable, got Tensor")])
    + over("energy_fn", lambda _, v: fs.laplacian(v, X), [(X, TypeError, "must be callable, got Tensor")])
)

LOSSES = (
    over("trace", lambda s, v: implicit(s, trace=v), [("full", ValueError, "must be one of .* got 'full'")])
    + over("convention", lambda s, v: implicit(s, convention=v), [("one", ValueError, "must be one of .* got 'one'")])
    + over(
        "reduction",
        lambda s, v: implicit(s, reduction=v),
        [("max", ValueError, "must be one of .* got 'max'"), (None, ValueError, "must be one of .* got None")],
    )
    + over(
        "return_terms", lambda s, v: implicit(s, return_terms=v), [("no", TypeError, "must be True or False, got 'no'")]
    )
    + over("n_probes", lambda s, v: implicit(s, n_probes=v), COUNTS)
    + over("seed", lambda s, v: implicit(s, seed=v), SEEDS)
    + over("n_probes", lambda s, v: fs.sliced_score_matching(s, X, n_probes=v), COUNTS)
    + over(
        "probe",
        lambda s, v: fs.sliced_score_matching(s, X, probe=v),
        [("sphere", ValueError, "must be one of .* got 'sphere'")],
    )
    + over("seed", lambda s, v: fs.sliced_score_matching(s, X, seed=v), SEEDS)
    + over(
        "target",
        lambda s, v: fs.explicit_score_matching(s, X, target=v),
        [
            (3, TypeError, "must have a score method, be callable or a tensor, got int"),
            (None, TypeError, "must have a score method, be callable or a tensor, got NoneType"),
            (torch.ones(4, 3), ValueError, r"must have the shape of x \[4, 2\], got \[4, 3\]"),
            (X.long(), TypeError, r"must be a floating point tensor, got torch\.int64"),
            (META, ValueError, "is on meta, x on cpu"),
            (lambda x: None, TypeError, "must give a tensor, got NoneType"),
        ],
    )
    + over(
        "sigma",
        lambda s, v: denoising(s, sigma=v),
        [
            *STEP_SIZES[:8],
            (torch.tensor([0.1, 0.2, 0.0, 0.3]), ValueError, r"must be finite and > 0, got 0\.0"),
            (torch.ones(3), ValueError, r"must be a number or have shape \[4\], got \[3\]"),
            (torch.ones(4, 2), ValueError, r"must be a number or have shape \[4\], got \[4, 2\]"),
            (torch.ones(4, device="meta"), ValueError, "is on meta, x on cpu"),
            ([0.1, 0.2, 0.3, 0.4], TypeError, r"must be a number or a tensor, got \[0\.1"),
        ],
    )
    + over("weighting", lambda s, v: denoising(s, weighting=v), [("snr", ValueError, "must be one of .* got 'snr'")])
    + over("reduction", lambda s, v: denoising(s, reduction=v), [("max", ValueError, "must be one of .* got 'max'")])
    + over("seed", lambda s, v: denoising(s, seed=v), SEEDS)
    + over(
        "bandwidth",
        lambda s, v: metrics.kernel_stein_discrepancy(s, X, bandwidth=v),
        [*STEP_SIZES[:6], (torch.ones(2), ValueError, r"must be a number or a tensor that is 0-dim, got shape \[2\]")],
    )
    + over(
        "unbiased",
        lambda s, v: metrics.kernel_stein_discrepancy(s, X, unbiased=v),
        [("no", TypeError, "must be True or False, got 'no'")],
    )
    + over(
        "relative",
        lambda s, v: metrics.fisher_divergence(s, s, X, relative=v),
        [("no", TypeError, "must be True or False, got 'no'")],
    )
    + [
        (
            ValueError,
            r"x must have at least 2 rows .* got \[1, 2\]",
            lambda s: metrics.kernel_stein_discrepancy(s, X[:1], unbiased=True),
        )
    ]
)

NET, TOLD = fs.ScoreMLP(2, width=4), fs.ScoreMLP(2, width=4, cond_dim=3)
NETWORKS = (
    over("dim", lambda _, v: fs.ScoreMLP(v), [*COUNTS, ("2", TypeError, "must be an int, got '2'")])
    + over("width", lambda _, v: fs.EnergyMLP(2, width=v), [*COUNTS, (0, ValueError, "must be at least 1, got 0")])
    + over("depth", lambda _, v: fs.ScoreMLP(2, depth=v), [(0, ValueError, "must be at least 1, got 0")])
    + over("cond_dim", lambda _, v: fs.ScoreMLP(2, cond_dim=v), COUNTS)
    + over(
        "activation",
        lambda _, v: fs.ScoreMLP(2, activation=v),
        [
            ("relu", ValueError, "'relu' cannot be used: .* use one of 'silu'"),
            ("swoosh", ValueError, "must be one of 'silu'.* got 'swoosh'"),
            (torch.tanh, ValueError, "must be one of 'silu'.* got <built-in"),
        ],
    )
    + over(
        "x",
        lambda _, v: NET(v),
        [
            (torch.ones(4, 3), ValueError, r"must have shape \[B, \*event\] with 2 features, got \[4, 3\]"),
            (X.long(), TypeError, r"must be a floating point tensor, got torch\.int64"),
            (X.numpy(), TypeError, "must be a tensor, got ndarray"),
        ],
    )
    + over("cond", lambda _, v: NET(X, v), [(torch.ones(4), ValueError, "was given to a network without a condition")])
    + over(
        "cond",
        lambda _, v: TOLD(X, v),
        [
            (None, ValueError, "is missing: the network was built with cond_dim=3"),
            (torch.ones(3, 3), ValueError, r"must have shape \[4, 3\] or broadcast to it, got \[3, 3\]"),
            (torch.ones(4, 2), ValueError, r"must have shape \[4, 3\] or broadcast to it, got \[4, 2\]"),
            (0.5, ValueError, r"must have shape \[4, 3\] or broadcast to it, got \[\]"),
            ("warm", TypeError, "must be a number or a tensor, got 'warm'"),
            (torch.ones(4, 3) * 1j, TypeError, r"must be a real number, got a tensor of torch\.complex64"),
            (torch.ones(4, 3, device="meta"), ValueError, "is on meta, x on cpu"),
        ],
    )
    + over(
        "cond",
        lambda _, v: fs.implicit_score_matching(TOLD, X, cond=v),
        [(torch.ones(3, 3), ValueError, r"must have shape .* got \[3, 3\]")],
    )
)

EYE = torch.eye(2)
TARGETS = (
    over(
        "means",
        lambda _, v: targets.GaussianMixture(v, 1.0),
        [
            ([0.0, 1.0], ValueError, r"must have shape \[K, D\], got \[2\]"),
            (torch.empty(0, 2), ValueError, r"must have shape \[K, D\], got \[0, 2\]"),
            ([[0.0, NAN]], ValueError, r"must be finite, got \[\[0\.0, nan\]\]"),
            ([[0.0], [0.0, 1.0]], TypeError, r"must be numbers of one shape, got \[\[0\.0\], \[0\.0, 1\.0\]\]"),
            ("ring", TypeError, "must be numbers of one shape, got 'ring'"),
            (torch.ones(2, 2) * 1j, TypeError, r"must be real numbers, got torch\.complex64"),
        ],
    )
    + over(
        "covariances",
        lambda _, v: targets.GaussianMixture([[0.0, 0.0]], v),
        [
            (0.0, ValueError, r"must be positive variances, got .*0\.0"),
            (-1.0, ValueError, r"must be positive variances, got .*-1\.0"),
            (torch.ones(3), ValueError, r"must be a number or have shape .* got \[3\]"),
            (
                torch.tensor([[[1.0, 0.5], [0.0, 1.0]]]),
                ValueError,
                r"must be symmetric, got 0\.5 at \[0, 1\] and 0\.0 at",
            ),
            (-EYE[None], ValueError, r"must be positive definite, got a least eigenvalue of -1"),
            (torch.ones(1, 2, 2), ValueError, r"must be positive definite, got a least eigenvalue of "),
        ],
    )
    + over(
        "weights",
        lambda _, v: targets.GaussianMixture([[0.0], [1.0]], 1.0, v),
        [
            ([1.0], ValueError, r"must be 2 positive numbers, got \[1\.0\]"),
            ([1.0, 0.0], ValueError, r"must be 2 positive numbers, got \[1\.0, 0\.0\]"),
            ([1.0, -1.0], ValueError, r"must be 2 positive numbers, got \[1\.0, -1\.0\]"),
            ([1.0, INF], ValueError, r"must be finite, got \[1\.0, inf\]"),
        ],
    )
    + over(
        "mean", lambda _, v: targets.Gaussian(v, 1.0), [([[0.0]], ValueError, r"must have shape \[D\], got \[1, 1\]")]
    )
    + over(
        "covariance",
        lambda _, v: targets.Gaussian([0.0], v),
        [
            (torch.ones(2), ValueError, r"must be a number or have .* got \[2\]"),
            (-1.0, ValueError, r"must be positive variances, got .*-1\.0"),
        ],
    )
    + over(
        "n_modes", lambda _, v: targets.GaussianMixture.ring(v), [*COUNTS, (0, ValueError, "must be at least 1, got 0")]
    )
    + over(
        "radius",
        lambda _, v: targets.GaussianMixture.ring(radius=v),
        [(-1.0, ValueError, r"must be finite and > 0, got -1\.0")],
    )
    + over(
        "std",
        lambda _, v: targets.GaussianMixture.ring(std=v),
        [(0.0, ValueError, r"must be finite and > 0, got 0\.0")],
    )
    + over("n", lambda _, v: targets.Gaussian([0.0], 1.0).sample(v), COUNTS)
    + over("n", lambda _, v: targets.DoubleWell(1).sample(v), COUNTS)
    + over("seed", lambda _, v: targets.Gaussian([0.0], 1.0).sample(3, v), SEEDS)
    + over("seed", lambda _, v: targets.DoubleWell(1).sample(3, v), SEEDS)
    + over(
        "x",
        lambda _, v: targets.Gaussian([0.0], 1.0).score(v),
        [
            (X, ValueError, r"must have shape \[B, 1\], got \[4, 2\]"),
            (torch.ones(1), ValueError, r"must have shape \[B, 1\], got \[1\]"),
            ([0.0], TypeError, "must be a tensor, got list"),
        ],
    )
)

NOISE = (
    over("device", lambda _, v: noise.normal((4, 2), seed=0, stream=0, device=v), DEVICES)
    + over("seed", lambda _, v: noise.normal((4, 2), seed=v, stream=0), SEEDS)
    + over("seed", lambda _, v: noise.resolve_seed(v), SEEDS)
    + over(
        "step",
        lambda _, v: noise.normal((4, 2), seed=0, stream=0, step=v),
        [
            (2**32, ValueError, r"must be in \[0, 2\*\*32\), got 4294967296"),
            (1.0, TypeError, r"must be an int, got 1\.0"),
        ],
    )
    + over(
        "stream",
        lambda _, v: noise.rademacher((4, 2), seed=0, stream=v),
        [
            (256, ValueError, r"must be in \[0, 256\), got 256"),
            (-1, ValueError, r"must be in \[0, 256\), got -1"),
            (0.0, TypeError, r"must be an int, got 0\.0"),
        ],
    )
    + over(
        "shape",
        lambda _, v: noise.normal(v, seed=0, stream=0),
        [
            ((), ValueError, r"must have a batch dimension, got \(\)"),
            (4, TypeError, "must be a sequence of ints, got 4"),
            ((4, -2), ValueError, "must be at least 0, got -2"),
            ((4.0, 2), TypeError, r"must be an int, got 4\.0"),
        ],
    )
    + over("n", lambda _, v: noise.uniform(v, seed=0, stream=0), COUNTS)
    + over(
        "dtype",
        lambda _, v: noise.uniform(4, seed=0, stream=0, dtype=v),
        [
            (torch.int32, TypeError, r"must be a floating point dtype, got torch\.int32"),
            ("float32", TypeError, "must be a floating point dtype, got 'float32'"),
        ],
    )
)


def backend(name: object) -> None:
    with fs.use_backend(name):
        pass


OTHERS = (
    over(
        "backend",
        lambda _, v: backend(v),
        [
            ("cuda", ValueError, "must be one of 'auto', .* got 'cuda'"),
            (None, ValueError, "must be one of .* got None"),
        ],
    )
    + over("kernel", lambda s, v: samplers.TritonScore(v, (), s), [(None, TypeError, "must be callable, got NoneType")])
    + over("params", lambda s, v: samplers.TritonScore(s, v, s), [(0.5, TypeError, r"must be a tuple, got 0\.5")])
    + over(
        "reference", lambda s, v: samplers.TritonScore(s, (), v), [(None, TypeError, "must be callable, got NoneType")]
    )
)

TABLES = {
    "step": STEP, "runs": RUNS, "dynamics": DYNAMICS, "traces": TRACES, "losses": LOSSES, "networks": NETWORKS,
    "targets": TARGETS, "noise": NOISE, "others": OTHERS,
}  # fmt: skip
POINT_CASES: list[Case] = [
    (error, text, lambda s, call=call, x=x: call(s, x)) for call in TAKES_POINTS.values() for x, error, text in POINTS
] + [
    (
        ValueError,
        r"x must have at least one row: the batch is empty, got \[0, 2\]",
        lambda s, n=n: TAKES_POINTS[n](s, X[:0]),
    )
    for n in sorted(NEEDS_ROWS)
]
ALL = [(f"{area}-{i}", *case) for area, cases in {**TABLES, "x": POINT_CASES}.items() for i, case in enumerate(cases)]


@pytest.mark.parametrize(("error", "text", "call"), [case[1:] for case in ALL], ids=[case[0] for case in ALL])
def test_a_bad_argument_is_named_before_any_work(error, text, call, monkeypatch) -> None:
    def launched(*_: object) -> None:
        raise AssertionError("a kernel was asked for")

    monkeypatch.setattr(_dispatch, "kernels", launched)
    score = Counting()
    with pytest.raises(error, match=f"^{text}") as raised:
        call(score)
    assert raised.type is error
    assert score.calls == 0


ANSWERS = [
    (lambda x: (x, x), TypeError, "{} must return a tensor, got tuple"),
    (lambda x: None, TypeError, "{} must return a tensor, got NoneType"),
    (lambda x: x.detach().numpy(), TypeError, "{} must return a tensor, got ndarray"),
    (lambda x: x.detach().sign().long(), TypeError, r"{} must return a floating point tensor, got torch\.int64"),
    (lambda x: torch.complex(x, x), TypeError, r"{} must return a floating point tensor, got torch\.complex64"),
    (lambda x: x[:, :1], ValueError, r"{} must return .*\[4.*got \[4, 1\]"),
    (lambda x: x.sum(0), ValueError, r"{} must return .*\[4.*got \[2\]"),
    (lambda x: x.unsqueeze(0), ValueError, r"{} must return .*\[4.*got \[1, 4, 2\]"),
]
ASKS = {
    "divergence": lambda f: fs.divergence(f, X),
    "probes": lambda f: fs.divergence(f, X, trace="hutchinson", seed=0),
    "jacobian": lambda f: fs.jacobian(f, X),
    "implicit": lambda f: fs.implicit_score_matching(f, X),
    "sliced": lambda f: fs.sliced_score_matching(f, X, seed=0),
    "explicit": lambda f: fs.explicit_score_matching(f, X, target=X),
    "denoising": lambda f: fs.denoising_score_matching(f, X, sigma=0.5, seed=0),
    "fisher": lambda f: metrics.fisher_divergence(f, X, X),
    "stein": lambda f: metrics.kernel_stein_discrepancy(f, X),
    "langevin": langevin,
    "annealed": lambda f: annealed(lambda x, sigma: f(x)),
    "underdamped": underdamped,
    "mala": lambda f: fs.mala(lambda x: x.sum(1), X, step_size=0.1, n_steps=1, seed=0, score_fn=f),
}
ENERGY_ANSWERS = [
    *ANSWERS[:3],
    (lambda x: x.detach().sum(1).long(), TypeError, r"{} must return a floating point tensor, got torch\.int64"),
    (lambda x: x, ValueError, r"{} must return one .* got \[4, 2\]"),
    (lambda x: x.sum(), ValueError, r"{} must return one .* got \[\]"),
]


@pytest.mark.parametrize("answer", range(len(ANSWERS)))
@pytest.mark.parametrize("name", ASKS)
def test_a_bad_answer_of_the_score_is_named(name, answer) -> None:
    given, error, text = ANSWERS[answer]
    with pytest.raises(error, match=text.format("score_fn")):
        ASKS[name](given)


@pytest.mark.parametrize("answer", range(len(ENERGY_ANSWERS)))
def test_a_bad_answer_of_an_energy_or_a_density_is_named(answer) -> None:
    given, error, text = ENERGY_ANSWERS[answer]
    with pytest.raises(error, match=text.format("energy_fn")):
        fs.laplacian(given, X)
    with pytest.raises(error, match=text.format("log_prob")):
        fs.mala(given, X, step_size=0.1, n_steps=1, seed=0, score_fn=torch.neg)


def test_a_value_cut_off_from_x_is_named() -> None:
    weight = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match=r"log_prob must be differentiable in x"):
        fs.mala(lambda x: x.detach().sum(1), X, step_size=0.1, n_steps=1, seed=0)
    with pytest.raises(ValueError, match=r"log_prob must be differentiable in x"):
        fs.mala(lambda x: (x.detach() * weight).sum(1), X, step_size=0.1, n_steps=1, seed=0)


@pytest.mark.parametrize("value", [NAN, 0.0, "fast", torch.ones(3)])
def test_a_schedule_is_checked_at_its_step(value) -> None:
    score = Counting()
    with pytest.raises((TypeError, ValueError), match=r"step_size(\(2\))? must be"):
        langevin(score, step_size=lambda k: 0.1 if k < 2 else value, n_steps=5)
    assert score.calls == 2


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["demo", "--seed", "-1"], "--seed"),
        (["demo", "--seed", "1.5"], "whole number from 0 to 2^32 - 1, got 1.5"),
        (["demo", "--seed", str(2**32)], f"whole number from 0 to 2^32 - 1, got {2**32}"),
        (["demo", "--only", "faces"], "invalid choice: 'faces'"),
        (["train"], "invalid choice: 'train'"),
        ([], "required"),
    ],
)
def test_the_command_line_names_what_it_cannot_read(arguments, text, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert text in capsys.readouterr().err


def test_an_unknown_backend_in_the_environment_is_named() -> None:
    run = subprocess.run(
        [sys.executable, "-c", "import fastscore"],
        env={**os.environ, "FASTSCORE_BACKEND": "cuda"}, capture_output=True, text=True,
    )  # fmt: skip
    assert "FASTSCORE_BACKEND must be one of 'auto', 'torch', 'triton', got 'cuda'" in run.stderr


def test_there_are_enough_of_them() -> None:
    assert len({text for *_, text, _ in ALL}) >= 90
