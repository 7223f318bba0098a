"""Bad points x, refused by every function that takes points."""

from __future__ import annotations

import numpy as np
import torch

import fastscore as fs
from fastscore import metrics
from tests.errors import META, Case, X, langevin, step

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
