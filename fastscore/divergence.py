"""Divergences, Jacobians and Laplacians of any callable, exact or estimated, differentiable by one ordinary backward.

Signs: a score is `s = +grad log p = -grad E`; the divergence of a score is `tr ds/dx`, and that of `-grad E` is minus
the Laplacian of E. Samples are assumed independent: row b of the output depends on row b of x alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastscore import _checks, _plan, _structured
from fastscore._forms import Forms, Twice, basis, forms, wide
from fastscore._plan import EXACT_FEATURES as EXACT_FEATURES
from fastscore._plan import Plan, Request, check, features
from fastscore._products import Aux
from fastscore._terms import squared_norm


class Divergence(NamedTuple):
    """A score with the trace of its Jacobian.

    Attributes:
        score: `s(x)`, `[B, *event]`.
        trace: `tr ds/dx` or its estimate, `[B]`; float32 where x is in half precision.
        stderr: Standard error of the estimate `[B]`, detached; None where the trace is exact or has a single probe.
        method: What ran. Any callable: "exact-jvp", "exact-vjp", "hutchinson-jvp" or "hutchinson-vjp" (forward-mode
            products, or reverse-mode where an operator has no forward rule). A recognised MLP: "closed-form" (one or
            two hidden layers), "tangents" (more), "hutchinson-dual", or "forward-laplacian" (an energy or its score).
    """

    score: Tensor
    trace: Tensor
    stderr: Tensor | None
    method: str


class Laplacian(NamedTuple):
    """An energy with its score and Laplacian.

    Attributes:
        energy: `E(x)`, `[B]`.
        score: `-grad E(x)`, `[B, *event]`.
        laplacian: `tr d2E/dx2` or its estimate, `[B]`; the divergence of the score is minus this.
        stderr: Standard error of the estimate `[B]`, detached; None where it is exact or has a single probe.
        method: What ran, as in `Divergence`.
    """

    energy: Tensor
    score: Tensor
    laplacian: Tensor
    stderr: Tensor | None
    method: str


def divergence(
    score_fn: _checks.Score,
    x: Tensor,
    *,
    cond: Any = None,
    trace: str = "auto",
    n_probes: int = 1,
    probe: str = "rademacher",
    chunk_size: int | None = None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    first_chain: int = 0,
    weight: Tensor | None = None,
) -> Divergence:
    r"""The score and the trace of its Jacobian, `tr J`, `J = ds/dx`; with `weight` C, `tr(C J)`.

    Exact: `tr(C J) = sum_i (C J e_i)_i` over the unit vectors. Hutchinson (1990): `mean_k v_k' C J v_k` with
    independent probes, `E[v v'] = I`, which is unbiased: `E[v' C J v] = E[tr(C J v v')] = tr(C J)`. With S the
    symmetric part of `C J`, a Rademacher probe has variance `2 (|S|_F^2 - sum_i S_ii^2)`, a normal one `2 |S|_F^2`.

    Args:
        score_fn: `score_fn(x)` or `score_fn(x, cond)`, any callable returning a tensor shaped like x,
            row i of which depends on row i of x alone.
        x: Points `[B, *event]`, D features each.
        cond: Passed on as it is; where the batch is cut, a tensor whose first dimension is B is cut with it, as are
            those in a tuple, list or dict.
        trace: "exact", "hutchinson", or "auto": exact where there is a closed form or up to `EXACT_FEATURES` features,
            else Hutchinson.
        n_probes: K, the probes of Hutchinson's estimate, where that is what runs.
        probe: "rademacher" or "normal".
        chunk_size: Rows worked on at a time (recomputed in the backward); by a memory budget when not given. A
            recognised network chooses its own tiles.
        seed: Seed of the probes, an int in [0, 2^64); probe k of row b depends on (seed, k, first_chain + b) alone.
        generator: Draws the seed instead; with neither, torch's default CPU generator does.
        first_chain: Global index of the first row, in [0, 2^56): parts of a batch, on several ranks say, with one seed
            have the probes of the whole.
        weight: C, `[D, D]` or `[B, D, D]`.

    Returns:
        Score, trace, standard error for K >= 2 probes, and the method that ran. Score and trace are differentiable in
        the parameters of score_fn and in x.

    Raises:
        TypeError: x is not a floating point tensor, score_fn is not callable or does not return a tensor.
        ValueError: An argument out of range, shapes that do not fit, active dropout, BatchNorm in training mode.

    Example:
        >>> matrix = torch.tensor([[-2.0, 1.0], [0.0, -3.0]])
        >>> divergence(lambda x: x @ matrix.T, torch.ones(1, 2)).trace
        tensor([-5.])
    """
    how = Request(trace, n_probes, probe, chunk_size, seed, generator, first_chain, weight)
    how.check("score_fn", score_fn, x)
    return carry_out(_plan.plan(score_fn, x, cond, how), score_fn, x, cond, how)


def carry_out(
    plan: Plan, score_fn: _checks.Score, x: Tensor, cond: Any, how: Request, *, squares: bool = False
) -> Divergence:
    """The divergence by the method that was planned for it; with `squares`, `1/2 |s|^2` `[B]` in place of the score."""
    if plan.reading is None:
        found, total, stderr, method = _trace(_score(score_fn), x, cond, how, plan.exact, squares=squares)
        return Divergence(found.value, total, stderr, method)
    fast = _structured.score(plan.reading, x, how, plan.exact)
    value = 0.5 * squared_norm(fast.score) if squares else fast.score
    return Divergence(value, fast.traces.mean(0), _standard_error(fast.traces.detach()), plan.method)


def jacobian(score_fn: _checks.Score, x: Tensor, *, cond: Any = None, chunk_size: int | None = None) -> Tensor:
    """The Jacobian `J[b, i, j] = ds_i/dx_j` of every sample, `[B, D, D]`, over the flattened event.

    Args:
        score_fn: `score_fn(x)` or `score_fn(x, cond)`, any callable returning a tensor shaped like x,
            row i of which depends on row i of x alone.
        x: Points `[B, *event]`.
        cond: As in `divergence`.
        chunk_size: As in `divergence`.

    Raises:
        TypeError: As in `divergence`.
        ValueError: As in `divergence`.

    Example:
        >>> jacobian(lambda x: x * x, torch.tensor([[1.0, 3.0]]))
        tensor([[[2., 0.],
                 [0., 6.]]])
    """
    check("score_fn", score_fn, x, chunk_size)
    reading = _plan.read(score_fn, x, cond)
    if reading is not None and not reading.is_energy:
        return _structured.jacobian(reading, x, chunk_size)
    found = forms(_score(score_fn), x, cond, basis, features(x), chunk_size=chunk_size, whole=True)
    stacked = found.kept.flatten(2)  # [D, B, D]: columns of J in forward mode, rows in reverse mode
    return stacked.permute(1, 2, 0) if found.mode == "jvp" else stacked.permute(1, 0, 2)


def laplacian(
    energy_fn: _checks.Score,
    x: Tensor,
    *,
    cond: Any = None,
    trace: str = "auto",
    n_probes: int = 1,
    probe: str = "rademacher",
    chunk_size: int | None = None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    first_chain: int = 0,
    weight: Tensor | None = None,
) -> Laplacian:
    """Energy, score `-grad E` and Laplacian `tr H`, `H = d2E/dx2`; with `weight` C, `tr(C H)`.

    The implicit score matching loss of an energy is `1/2 |score|^2 - laplacian`. Forward mode is taken over the reverse
    pass that gives the gradient.

    Args:
        energy_fn: `energy_fn(x)` or `energy_fn(x, cond)`, any callable returning `[B]` or `[B, 1]`,
            row i of which depends on row i of x alone.
        x: Points `[B, *event]`.
        cond: As in `divergence`; so are the arguments that follow.
        trace: As in `divergence`.
        n_probes: As in `divergence`.
        probe: As in `divergence`.
        chunk_size: As in `divergence`.
        seed: As in `divergence`.
        generator: As in `divergence`.
        first_chain: As in `divergence`.
        weight: As in `divergence`.

    Raises:
        TypeError: As in `divergence`.
        ValueError: As in `divergence`.

    Example:
        >>> laplacian(lambda x: (x**2).sum(1), torch.tensor([[1.0, 2.0, 3.0]]))[:3]
        (tensor([14.]), tensor([[-2., -4., -6.]]), tensor([6.]))
    """
    how = Request(trace, n_probes, probe, chunk_size, seed, generator, first_chain, weight)
    how.check("energy_fn", energy_fn, x)
    plan = _plan.plan(energy_fn, x, cond, how, energy=True)
    if plan.reading is not None:
        fast = _structured.energy(plan.reading, x, how, plan.exact)
        assert fast.energy is not None
        stderr = _standard_error(fast.traces.detach())
        return Laplacian(fast.energy, fast.score, -fast.traces.mean(0), stderr, plan.method)
    found, total, stderr, method = _trace(_gradient(energy_fn), x, cond, how, plan.exact)
    return Laplacian(found.aux[0], -found.value, total, stderr, method)


def _trace(
    function: Callable[[Any], Twice], x: Tensor, cond: Any, how: Request, exact: bool, *, squares: bool = False
) -> tuple[Forms, Tensor, Tensor | None, str]:
    """The forms along the directions that `how` asks for, their total, its standard error and the method's name."""
    asked: dict[str, Any] = {"chunk_size": how.chunk_size, "squares": squares}
    asked["weight"] = None if how.weight is None else how.weight.to(x.dtype)
    if exact:
        found = forms(function, x, cond, basis, features(x), **asked)
        return found, found.kept.sum(0), None, f"exact-{found.mode}"
    found = forms(function, x, cond, how.directions(), how.n_probes, **asked)  # type: ignore[arg-type]
    return found, found.kept.mean(0), _standard_error(found.kept.detach()), f"hutchinson-{found.mode}"


def _standard_error(samples: Tensor) -> Tensor | None:
    """Standard error of the mean over the first dimension: `[K, B]` -> `[B]`; None for K = 1."""
    k = samples.shape[0]
    return None if k == 1 else ((samples - samples.mean(0)).square().sum(0) / (k * (k - 1))).sqrt()


def _score(score_fn: _checks.Score) -> Callable[[Any], Twice]:
    """score_fn as the function whose Jacobian is wanted, a condition at a time."""

    def function(cond: Any) -> Twice:
        def score(x: Tensor) -> tuple[Tensor, Aux]:
            return _checks.evaluate(score_fn, x, cond), ()

        return score, score

    return function


def _gradient(energy_fn: _checks.Score) -> Callable[[Any], Twice]:
    """The gradient of energy_fn as the function whose Jacobian is wanted; the energies come along."""

    def function(cond: Any) -> Twice:
        def total(x: Tensor) -> tuple[Tensor, Tensor]:
            energy = energies(energy_fn, x, cond)
            return wide(energy).sum(), energy

        def forward(x: Tensor) -> tuple[Tensor, Aux]:
            gradient, energy = torch.func.grad(total, has_aux=True)(x)
            return gradient, (energy,)

        def reverse(x: Tensor) -> tuple[Tensor, Aux]:
            value, energy = total(x)
            return torch.autograd.grad(value, x, create_graph=True)[0], (energy,)

        return forward, reverse

    return function


def energies(energy_fn: _checks.Score, x: Tensor, cond: Any) -> Tensor:
    """The energies `[B]`, checked."""
    energy = energy_fn(x) if cond is None else energy_fn(x, cond)
    if not isinstance(energy, Tensor):
        raise TypeError(f"energy_fn must return a tensor, got {type(energy).__name__}")
    if tuple(energy.shape) not in ((x.shape[0],), (x.shape[0], 1)):
        raise ValueError(
            f"energy_fn must return one energy a sample, [{x.shape[0]}] or [{x.shape[0]}, 1], got {list(energy.shape)}"
        )
    if not energy.is_floating_point():
        raise TypeError(f"energy_fn must return a floating point tensor, got {energy.dtype}")
    return energy.reshape(x.shape[0])
