"""Bad arguments of traces and Laplacians, of the losses made of them, and of the metrics."""

from __future__ import annotations

import torch

import fastscore as fs
from fastscore import metrics
from tests.errors import COUNTS, META, SEEDS, STEP_SIZES, X, denoising, implicit, over

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
