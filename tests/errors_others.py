"""Bad arguments of networks, targets, noise, backends and kernels of the user's own."""

from __future__ import annotations

import torch

import fastscore as fs
from fastscore import noise, samplers, targets
from tests.errors import COUNTS, DEVICES, INF, NAN, SEEDS, X, over

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
