"""Score matching: losses whose minimum over a family of scores is the score of the data.

Every loss is a mean over the batch of a per-sample objective, sums over features are taken in float32 at least, and one
ordinary backward reaches the parameters. Convention "half" (the default) is written below; "fisher" is twice that.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, overload

import torch
from torch import Tensor

from fastscore import _checks, _plan, _structured, noise
from fastscore._forms import wide
from fastscore._plan import Request
from fastscore._terms import REDUCTIONS, finish, noise_level, reduce, scale_of, squared_norm, true_score
from fastscore._terms import ScoreMatchingTerms as ScoreMatchingTerms
from fastscore.divergence import carry_out
from fastscore.ops import noise as drawn


@overload
def implicit_score_matching(
    score_fn: _checks.Score, x: Tensor, *, cond: Any = ..., trace: str = ..., n_probes: int = ..., probe: str = ...,
    convention: str = ..., reduction: str = ..., chunk_size: int | None = ..., seed: int | None = ...,
    generator: torch.Generator | None = ..., first_chain: int = ..., return_terms: Literal[False] = ...,
) -> Tensor: ...  # fmt: skip


@overload
def implicit_score_matching(
    score_fn: _checks.Score, x: Tensor, *, cond: Any = ..., trace: str = ..., n_probes: int = ..., probe: str = ...,
    convention: str = ..., reduction: str = ..., chunk_size: int | None = ..., seed: int | None = ...,
    generator: torch.Generator | None = ..., first_chain: int = ..., return_terms: Literal[True],
) -> ScoreMatchingTerms: ...  # fmt: skip


@overload
def implicit_score_matching(
    score_fn: _checks.Score, x: Tensor, *, cond: Any = ..., trace: str = ..., n_probes: int = ..., probe: str = ...,
    convention: str = ..., reduction: str = ..., chunk_size: int | None = ..., seed: int | None = ...,
    generator: torch.Generator | None = ..., first_chain: int = ..., return_terms: bool,
) -> Tensor | ScoreMatchingTerms: ...  # fmt: skip


def implicit_score_matching(
    score_fn: _checks.Score,
    x: Tensor,
    *,
    cond: Any = None,
    trace: str = "auto",
    n_probes: int = 1,
    probe: str = "rademacher",
    convention: str = "half",
    reduction: str = "mean",
    chunk_size: int | None = None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    first_chain: int = 0,
    return_terms: bool = False,
) -> Tensor | ScoreMatchingTerms:
    """Implicit score matching, `1/2 |s(x)|^2 + tr ds/dx` (Hyvarinen 2005, theorem 1).

    Needs samples only: its mean over the data differs from that of the explicit loss by a constant. With
    `trace="hutchinson"` it is sliced score matching with variance reduction (Song, Garg, Shi & Ermon 2019).

    What wraps modules (DDP, FSDP2, ensembles by `functional_call`) is best given one whose forward returns this loss:
    the network inside is then recognised. Of FSDP, shard only the module that holds the loss, not its layers. Give
    every rank one seed and its own `first_chain`, the index of its first row in the whole batch: the ranks' probes are
    then those of the whole batch in one process.

    Args:
        score_fn: `score_fn(x)` or `score_fn(x, cond)`, any callable returning a tensor shaped like x,
            row i of which depends on row i of x alone.
        x: Data `[B, *event]`, B at least 1.
        cond: As in `divergence`; so are `trace`, `n_probes`, `probe`, `chunk_size`, `seed`, `generator`, `first_chain`.
        trace: "exact", "hutchinson" or "auto": exact where there is a closed form or x has up to 64 features, else
            Hutchinson.
        n_probes: Probes of Hutchinson's estimate, where that is what runs.
        probe: "rademacher" or "normal".
        convention: "half" as above, or "fisher", `|s|^2 + 2 tr ds/dx`.
        reduction: "mean" or "sum" over the batch, or "none" for `[B]`.
        chunk_size: Rows worked on at a time: the memory of a backward is then that of one chunk.
        seed: Seed of the probes.
        generator: Draws the seed instead.
        first_chain: Global index of the first row, as in `divergence`.
        return_terms: Return the parts of the loss and the method as well.

    Raises:
        TypeError: As in `divergence`.
        ValueError: As in `divergence`, and for an empty batch.

    Example:
        >>> implicit_score_matching(lambda x: -x, torch.tensor([[1.0, 2.0]]))  # 1/2 * 5 - 2
        tensor(0.5000)
    """
    scale = scale_of(convention, reduction)
    _checks.batch("x", x, allow_empty=False)
    _checks.flag("return_terms", return_terms)
    how = Request(trace, n_probes, probe, chunk_size, seed, generator, first_chain)
    how.check("score_fn", score_fn, x)
    plan = _plan.plan(score_fn, x, cond, how)
    if reduction != "none" and not return_terms:
        share = scale / x.shape[0] if reduction == "mean" else scale
        fused = _structured.implicit_loss(plan, x, how, share)
        if fused is not None:
            return fused
    found = carry_out(plan, score_fn, x, cond, how, squares=True)
    return finish(found.score, found.trace, found.stderr, found.method, scale, reduction, return_terms)


@overload
def sliced_score_matching(
    score_fn: _checks.Score, x: Tensor, *, cond: Any = ..., n_probes: int = ..., probe: str = ...,
    convention: str = ..., reduction: str = ..., chunk_size: int | None = ..., seed: int | None = ...,
    generator: torch.Generator | None = ..., first_chain: int = ..., return_terms: Literal[False] = ...,
) -> Tensor: ...  # fmt: skip


@overload
def sliced_score_matching(
    score_fn: _checks.Score, x: Tensor, *, cond: Any = ..., n_probes: int = ..., probe: str = ...,
    convention: str = ..., reduction: str = ..., chunk_size: int | None = ..., seed: int | None = ...,
    generator: torch.Generator | None = ..., first_chain: int = ..., return_terms: Literal[True],
) -> ScoreMatchingTerms: ...  # fmt: skip


@overload
def sliced_score_matching(
    score_fn: _checks.Score, x: Tensor, *, cond: Any = ..., n_probes: int = ..., probe: str = ...,
    convention: str = ..., reduction: str = ..., chunk_size: int | None = ..., seed: int | None = ...,
    generator: torch.Generator | None = ..., first_chain: int = ..., return_terms: bool,
) -> Tensor | ScoreMatchingTerms: ...  # fmt: skip


def sliced_score_matching(
    score_fn: _checks.Score,
    x: Tensor,
    *,
    cond: Any = None,
    n_probes: int = 1,
    probe: str = "rademacher",
    convention: str = "half",
    reduction: str = "mean",
    chunk_size: int | None = None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    first_chain: int = 0,
    return_terms: bool = False,
) -> Tensor | ScoreMatchingTerms:
    """Sliced score matching, `mean_k 1/2 (v_k' s)^2 + v_k' J v_k` with `E[v v'] = I` (Song et al. 2019).

    Its expectation over the probes is the implicit loss. `implicit_score_matching(trace="hutchinson")` with the same
    seed has the same trace term and takes `|s|^2` exactly, which is the variance-reduced form.

    Args:
        score_fn: As in `implicit_score_matching`; so are the arguments that follow.
        x: Data `[B, *event]`, B at least 1.
        cond: As in `divergence`.
        n_probes: Probes a sample.
        probe: "rademacher" or "normal".
        convention: "half" as above, or "fisher", twice that.
        reduction: "mean" or "sum" over the batch, or "none" for `[B]`.
        chunk_size: As in `implicit_score_matching`.
        seed: Seed of the probes.
        generator: Draws the seed instead.
        first_chain: Global index of the first row, as in `divergence`.
        return_terms: Return the parts of the loss and the method as well.

    Raises:
        TypeError: As in `divergence`.
        ValueError: As in `divergence`, and for an empty batch.
    """
    scale = scale_of(convention, reduction)
    _checks.batch("x", x, allow_empty=False)
    _checks.flag("return_terms", return_terms)
    how = Request("hutchinson", n_probes, probe, chunk_size, seed, generator, first_chain)
    how.check("score_fn", score_fn, x)
    how = replace(how, seed=how.directions().seed, generator=None)
    found = carry_out(_plan.plan(score_fn, x, cond, how), score_fn, x, cond, how)
    probes = how.directions()
    squares = torch.zeros_like(found.trace)
    for k in range(n_probes):
        projected = (wide(probes(x.detach(), 0, k, k + 1)[0]) * wide(found.score)).flatten(1).sum(1)
        squares = squares + 0.5 * projected.square() / n_probes
    return finish(squares, found.trace, found.stderr, found.method, scale, reduction, return_terms)


def explicit_score_matching(
    score_fn: _checks.Score,
    x: Tensor,
    *,
    target: Any,
    cond: Any = None,
    convention: str = "half",
    reduction: str = "mean",
) -> Tensor:
    """Explicit score matching, `1/2 |s(x) - s*(x)|^2`, for data whose score s* is known (Hyvarinen 2005).

    Args:
        score_fn: `score_fn(x)` or `score_fn(x, cond)`, any callable returning a tensor shaped like x.
        x: Data `[B, *event]`, B at least 1.
        target: s*: an object with a method `score(x)`, a callable, or the scores themselves `[B, *event]`.
        cond: Passed to score_fn, not to the target.
        convention: "half" as above, or "fisher", `|s - s*|^2`.
        reduction: "mean" or "sum" over the batch, or "none" for `[B]`.

    Raises:
        TypeError: x is not a floating point tensor, score_fn or target of another kind.
        ValueError: Shapes that do not fit, an unknown convention or reduction, an empty batch.

    Example:
        >>> explicit_score_matching(lambda x: -x, torch.tensor([[1.0, 2.0]]), target=lambda x: -x / 2)
        tensor(0.6250)
    """
    scale = scale_of(convention, reduction)
    _checks.callable_("score_fn", score_fn)
    _checks.batch("x", x, allow_empty=False)
    true = wide(true_score(target, x))
    score = _structured.score_alone(score_fn, x, cond)
    if score is None:
        score = _checks.evaluate(score_fn, _structured.recordable(x), cond)
    return reduce(0.5 * scale * squared_norm(wide(score) - true), reduction)


def denoising_score_matching(
    score_fn: _checks.Score,
    x: Tensor,
    *,
    sigma: float | Tensor,
    cond: Any = None,
    weighting: str = "sigma2",
    reduction: str = "mean",
    seed: int | None = None,
    generator: torch.Generator | None = None,
    first_chain: int = 0,
) -> Tensor:
    """Denoising score matching, `1/2 |sigma s(x + sigma e) + e|^2` with `e ~ N(0, I)` (Vincent 2011).

    Its minimum is the score of the data blurred by `N(0, sigma^2 I)`; Song & Ermon (2019) weigh it by sigma^2. In half
    precision x + sigma e is rounded, and e is the noise that it then has.

    Args:
        score_fn: `score_fn(x)` or `score_fn(x, cond)`, any callable returning a tensor shaped like x.
        x: Data `[B, *event]`, B at least 1.
        sigma: Standard deviation of the noise, a number or one a sample, `[B]` or `[B, 1, ..., 1]`.
        cond: Passed to score_fn; give `cond=sigma` for a score that is told its noise level.
        weighting: "sigma2" as above, which weighs noise levels alike, or "none", `1/2 |s(x + sigma e) + e / sigma|^2`.
        reduction: "mean" or "sum" over the batch, or "none" for `[B]`.
        seed: Seed of the noise, an int in [0, 2^64); row b's noise depends on (seed, first_chain + b) alone.
        generator: Draws the seed instead; with neither, torch's default CPU generator does.
        first_chain: Global index of the first row, in [0, 2^56).

    Raises:
        TypeError: x is not a floating point tensor, score_fn is not callable.
        ValueError: sigma not finite and positive or of another shape, an unknown weighting or reduction, no rows.
    """
    _checks.choice("weighting", weighting, ("sigma2", "none"))
    _checks.choice("reduction", reduction, REDUCTIONS)
    _checks.callable_("score_fn", score_fn)
    _checks.batch("x", x, allow_empty=False)
    first_chain = _checks.integer("first_chain", first_chain, 0, 2**56 - x.shape[0] + 1)
    level = noise_level(sigma, x)
    seed = _checks.whole("seed", noise.resolve_seed(seed, generator))
    if reduction != "none":
        share, weigh = 1.0 / x.shape[0] if reduction == "mean" else 1.0, weighting == "sigma2"
        fused = _structured.denoising_loss(
            score_fn, x, cond, level, weigh=weigh, share=share, seed=seed, first_chain=first_chain
        )
        if fused is not None:
            return fused
    rows, width, dtype = x.shape[0], _plan.features(x), drawn.computed(x.dtype)
    e = drawn.normal(rows, width, seed, noise.Stream.DATA, 0, first_chain, dtype, x.device).view(x.shape)
    noisy = (wide(x) + level * e).to(x.dtype)
    if noisy.dtype != e.dtype:  # rounding took part of the noise away, or made it: what the score can know is the rest
        e = ((wide(noisy) - wide(x)) / level).detach()
    score = _checks.evaluate(score_fn, noisy, cond)
    residual = level * wide(score) + e if weighting == "sigma2" else wide(score) + e / level
    return reduce(0.5 * squared_norm(residual), reduction)
