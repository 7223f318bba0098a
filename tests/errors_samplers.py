"""Bad arguments of one step, of the samplers that make many, and of `LangevinDynamics`."""

from __future__ import annotations

import torch

import fastscore as fs
from fastscore import targets
from tests.errors import (
    COUNTS,
    DEVICES,
    META,
    NAN,
    SEEDS,
    STEP_SIZES,
    TEMPERATURES,
    X,
    annealed,
    langevin,
    mala,
    over,
    step,
    underdamped,
)

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
