"""The terms of the score matching losses: the true score, the noise level, squared norms, conventions, reductions."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from fastscore import _checks
from fastscore._forms import wide

_CONVENTIONS = {"half": 1.0, "fisher": 2.0}
REDUCTIONS = ("mean", "sum", "none")


class ScoreMatchingTerms(NamedTuple):
    """A score matching loss with its parts, all reduced alike.

    Attributes:
        loss: `score_term + trace_term`.
        score_term: The part in the score itself.
        trace_term: The part in its Jacobian.
        stderr: Standard error of `trace_term` from the spread of the probes, detached; None where the trace is exact
            or has a single probe.
        method: What computed the trace, as in `Divergence`.
    """

    loss: Tensor
    score_term: Tensor
    trace_term: Tensor
    stderr: Tensor | None
    method: str


def true_score(target: Any, x: Tensor) -> Tensor:
    """The score a target gives at x: `target.score(x)`, `target(x)` or the tensor `target`, of the shape of x."""
    if isinstance(target, Tensor):
        score: Any = target
    elif callable(getattr(target, "score", None)):
        score = target.score(x)
    elif callable(target):
        score = target(x)
    else:
        raise TypeError(f"target must have a score method, be callable or a tensor, got {type(target).__name__}")
    if not isinstance(score, Tensor):
        raise TypeError(f"target must give a tensor, got {type(score).__name__}")
    _checks.floating("target", score)
    _checks.same_shape("target", score, "x", x)
    _checks.same_device("target", score, "x", x)
    return score


def noise_level(sigma: float | Tensor, x: Tensor) -> Tensor | float:
    """sigma, checked and shaped to multiply x."""
    _checks.positive("sigma", sigma)
    if not isinstance(sigma, Tensor):
        return float(sigma)
    rows = (x.shape[0],)
    if tuple(sigma.shape) not in ((), rows, (*rows, *[1] * (x.dim() - 1))):
        raise ValueError(f"sigma must be a number or have shape [{x.shape[0]}], got {list(sigma.shape)}")
    _checks.same_device("sigma", sigma, "x", x)
    return sigma.to(wide(x).dtype).reshape(-1, *[1] * (x.dim() - 1))


def scale_of(convention: str, reduction: str) -> float:
    """What a convention multiplies the half convention by; both arguments are checked."""
    _checks.choice("convention", convention, tuple(_CONVENTIONS))
    _checks.choice("reduction", reduction, REDUCTIONS)
    return _CONVENTIONS[convention]


def squared_norm(score: Tensor) -> Tensor:
    """Squared norms over the event: `[B, *event]` -> `[B]`."""
    return wide(score).square().flatten(1).sum(1)


def reduce(loss: Tensor, reduction: str) -> Tensor:
    """The losses `[B]`, or their mean or sum."""
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()


def finish(
    squares: Tensor,
    trace: Tensor,
    stderr: Tensor | None,
    method: str,
    scale: float,
    reduction: str,
    return_terms: bool,
) -> Tensor | ScoreMatchingTerms:
    """The loss, or all its terms, from the per-sample parts `[B]` in convention "half"."""
    if not return_terms:
        return reduce(scale * (squares + trace), reduction)
    score_term, trace_term = reduce(scale * squares, reduction), reduce(scale * trace, reduction)
    if stderr is not None:
        stderr = scale * stderr
        if reduction != "none":  # errors of different samples are independent: their variances add
            stderr = stderr.square().sum().sqrt() / (len(stderr) if reduction == "mean" else 1)
    return ScoreMatchingTerms(score_term + trace_term, score_term, trace_term, stderr, method)
