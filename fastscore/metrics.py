"""How far a score is from the truth, and samples from a score: figures of merit that need no normalising constant."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastscore import _checks
from fastscore._forms import wide
from fastscore._terms import true_score
from fastscore.samplers.arguments import as_score

_DIFFERENCES = 2**24  # coordinates of differences between samples held at a time


def fisher_divergence(
    score_fn: _checks.Score, target: Any, x: Tensor, *, cond: Any = None, relative: bool = False
) -> Tensor:
    """Fisher divergence `mean |s(x) - s*(x)|^2`, a 0-dim tensor; with `relative`, divided by `mean |s*(x)|^2`.

    With samples x of the target it estimates `E_p* |s - s*|^2`; relative, 0 is a perfect score and 1 that of `s = 0`.

    Args:
        score_fn: `score_fn(x)` or `score_fn(x, cond)`, any callable returning a tensor shaped like x; or a target, an
            object with a method `score`.
        target: The true score s*: an object with a method `score(x)`, a callable, or the scores `[B, *event]`.
        x: Points `[B, *event]`, B at least 1.
        cond: Passed to score_fn, not to the target.
        relative: Divide by the mean square of the true score.

    Raises:
        TypeError: x is not a floating point tensor, score_fn or target of another kind.
        ValueError: Shapes that do not fit, an empty batch.

    Example:
        >>> import torch
        >>> fisher_divergence(lambda x: -x / 2, lambda x: -x, torch.tensor([[2.0], [4.0]]), relative=True)
        tensor(0.2500)
    """
    score_fn = as_score(score_fn)
    _checks.batch("x", x, allow_empty=False)
    _checks.flag("relative", relative)
    true = wide(true_score(target, x)).flatten(1)
    error = (wide(_checks.evaluate(score_fn, x, cond)).flatten(1) - true).square().sum(1).mean()
    return error / true.square().sum(1).mean() if relative else error


def kernel_stein_discrepancy(
    score_fn: _checks.Score, x: Tensor, *, cond: Any = None, bandwidth: float = 1.0, unbiased: bool = False
) -> Tensor:
    r"""Squared kernel Stein discrepancy of samples x from the distribution whose score is score_fn, a 0-dim tensor.

    `mean_ij k_p(x_i, x_j)` with the Stein kernel of the inverse multiquadric `k = (1 + r^2 / h^2)^(-1/2)`,
    `k_p(x, y) = s(x).s(y) k + s(x).grad_y k + s(y).grad_x k + tr grad_x grad_y k` (Gorham & Mackey 2017).
    With `d = (x - y) / h`, `q = 1 / (1 + |d|^2)`: `grad_x k = -k q d / h` and
    `tr grad_x grad_y k = k q (D - 3 + 3 q) / h^2`.

    Args:
        score_fn: `score_fn(x)` or `score_fn(x, cond)`, any callable returning a tensor shaped like x; or a target, an
            object with a method `score`.
        x: Samples `[B, *event]`, B at least 1 (2 if unbiased).
        cond: Passed to score_fn.
        bandwidth: h, a length in the units of x.
        unbiased: Leave out the diagonal: mean zero for samples of the target, and then sometimes negative.

    Raises:
        TypeError: x is not a floating point tensor, score_fn is not callable.
        ValueError: Shapes that do not fit, a bandwidth that is not finite and positive, too few samples.
    """
    score_fn = as_score(score_fn)
    _checks.batch("x", x, allow_empty=False)
    _checks.scalar("bandwidth", bandwidth)
    _checks.flag("unbiased", unbiased)
    n = x.shape[0]
    if unbiased and n < 2:
        raise ValueError(f"x must have at least 2 rows for the unbiased estimate, got {list(x.shape)}")
    points, scores = wide(x).flatten(1), wide(_checks.evaluate(score_fn, x, cond)).flatten(1)
    total = points.new_zeros(())
    rows = max(1, _DIFFERENCES // points.numel())
    with torch.autocast(x.device.type, enabled=False):
        for start in range(0, n, rows):
            part = slice(start, start + rows)
            values = _stein(points[part], scores[part], points, scores, bandwidth)
            if unbiased:  # not taken off the total, most of which it may be
                values = values.diagonal_scatter(values.new_zeros(len(values)), start)
            total = total + values.sum()
    return total / (n * (n - 1) if unbiased else n**2)


def _stein(x: Tensor, s: Tensor, y: Tensor, t: Tensor, bandwidth: float) -> Tensor:
    """The Stein kernel `[n, m]` between points x `[n, D]` with scores s and points y `[m, D]` with scores t."""
    # Distances from differences of norms would cancel; a product with every pair of points does not.
    difference = (x.unsqueeze(1) - y) / bandwidth  # [n, m, D]
    k = torch.rsqrt(1 + difference.square().sum(2))
    q = k.square()
    drift = (difference * (s.unsqueeze(1) - t)).sum(2)  # s.grad_y k + t.grad_x k = k q d.(s - t) / h
    # Divided twice, for no square of the bandwidth can overflow then.
    return k * (s @ t.t() + (q * drift + q * (x.shape[1] - 3 + 3 * q) / bandwidth) / bandwidth)
