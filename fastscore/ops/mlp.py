"""The structured networks' fast path: score with its exact trace or Hutchinson's estimate, energies, implicit losses.

The entry for `divergence`, `laplacian` and the losses; they pass a network read from the user's module
(`fastscore.reference.mlp.MLP`, live tensors), x `[B, D]` and the shifts its conditions add to each layer:

    score_and_trace(mlp, x, shifts, weight=C)             -> score [B, D], trace [B]            exact
    score_and_quadratic(mlp, x, shifts, probes=Probes())  -> score [B, D], v'CJv [B, K]         Hutchinson
    energy_terms(mlp, x, shifts, probes=None)             -> energy [B], score [B, D], lap [B]  exact, or v'Hv [B, K]
    implicit_loss(mlp, x, shifts, square=, trace=, ...)   -> loss, sum |s|^2, sum tr            one number, fused
    denoising_loss(mlp, x, shifts, level=, ...)           -> loss, or None if not compiled      one number, fused
    score(mlp, x, shifts)                                 -> score [B, D], or None likewise     alone

Scalings around the network (`s = c_out net(c_in x) + c_skip x`) stay with the caller, for whom
`tr = c_in c_out tr_net + c_skip D`. Everything is differentiable in x, shifts, weights, biases and C, to any order;
memory beyond inputs, outputs and gradients does not grow with the batch, with D or with the probes. What the
hand-written passes cannot serve (torch.func transforms, forward-mode AD, torch.compile, dtypes but float32 and float64,
tensor subclasses, a C per sample, autocast but to bfloat16 by Triton's kernels) gets the plain reference, with the same
values.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastscore.ops import _cpu_layers, _cpu_threads, _dispatch, mlp_tiles, noise
from fastscore.ops.mlp_denoising import Denoising, Residual
from fastscore.ops.mlp_functions import Loss, Terms, transformed
from fastscore.ops.mlp_problem import Outputs, Problem, Weights
from fastscore.ops.mlp_problem import Probes as Probes
from fastscore.ops.mlp_problem import narrow as narrow
from fastscore.reference.mlp import MLP, Shifts
from fastscore.reference.philox import Stream

_ROWS = 1 << 10  # below which autograd's own denoising loss on a CPU is as fast


def score_and_trace(mlp: MLP, x: Tensor, shifts: Shifts = (), *, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the score `[B, D]` and `tr(C J)`, `[B]`, exactly.

    One hidden layer costs O(H), two one extra matrix product, more D tangents.

    Args:
        mlp: the network.
        x: `[B, D]`.
        shifts: one `[B, H_l]` or None for each of the L + 1 linear layers, or `()`.
        weight: C, `[D, D]` or `[B, D, D]`; the identity when None.
    """
    score, terms = _terms(_problem(mlp, x), mlp, x, shifts, weight)
    return score, terms.squeeze(1)


def score_and_quadratic(
    mlp: MLP, x: Tensor, shifts: Shifts = (), *, probes: Probes, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the score `[B, D]` and Hutchinson's `v_k' C J v_k`, `[B, K]`, from one pass of dual numbers.

    Args:
        mlp: the network.
        x: `[B, D]`.
        shifts: one `[B, H_l]` or None for each of the L + 1 linear layers, or `()`.
        probes: which probes; they are regenerated where they are needed and never kept.
        weight: C, `[D, D]` or `[B, D, D]`; the identity when None.
    """
    score, quadratic = _terms(_problem(mlp, x, probes=probes), mlp, x, shifts, weight)
    return score, quadratic


def energy_terms(
    mlp: MLP, x: Tensor, shifts: Shifts = (), *, probes: Probes | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the energy `[B]`, the score `-grad E` `[B, D]` and the Laplacian `[B]` of a network with one output.

    With probes, Hutchinson's `v_k' (d2E/dx2) v_k`, `[B, K]`, for the Laplacian.

    Args:
        mlp: the network; its last weight is `[1, H_L]`.
        x: `[B, D]`.
        shifts: one `[B, H_l]` or None for each of the L + 1 linear layers, or `()`.
        probes: which probes, for an estimate.
    """
    problem = _problem(mlp, x, energy=True, probes=probes)
    energy, score, laplacian = _terms(problem, mlp, x, shifts, None)
    return energy.squeeze(1), score, laplacian


def implicit_loss(
    mlp: MLP,
    x: Tensor,
    shifts: Shifts = (),
    *,
    square: float,
    trace: float,
    probes: Probes | None = None,
    energy: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `square sum_b |s_b|^2 + trace sum_b tr_b`, its gradients computed on the way, and both sums detached.

    The mean loss of convention "half" is `square = 1 / (2 B)`, `trace = 1 / B`; with scales around the network,
    `square = c_out^2 / (2 B)`, `trace = c_in c_out / B`.

    Args:
        mlp: the network.
        x: `[B, D]`.
        shifts: one `[B, H_l]` or None for each of the L + 1 linear layers, or `()`.
        square: the weight of `|s|^2`.
        trace: the weight of `tr J`.
        probes: use the mean of Hutchinson's estimates for the trace; exact when None.
        energy: the network is E, its last weight `[1, H_L]`: s = -grad E, tr J = -lap E.
    """
    return _loss(_problem(mlp, x, energy=energy, probes=probes), Weights(square, trace), mlp, x, shifts)


def score(mlp: MLP, x: Tensor, shifts: Shifts = (), *, energy: bool = False) -> Tensor | None:
    """Return the score `[B, D]`, whose gradients take compiled passes on a CPU; None where they do not.

    Args:
        mlp: the network.
        x: `[B, D]`.
        shifts: one `[B, H_l]` or None for each of the L + 1 linear layers, or `()`.
        energy: the score is minus the gradient of the network's one output.
    """
    tensors = _flat(mlp, shifts, None)
    problem = replace(_problem(mlp, x, energy=energy), traced=False)
    if x.dtype != torch.float32 or not (_recorded(x, *tensors) and _fusable(problem, x, tensors)):
        return None
    if problem.kernels(mlp, x) is not None or not _compiled(mlp, x):
        return None
    return cast(Outputs, Terms.apply(problem, x, *tensors))[-1]  # type: ignore[no-untyped-call]


def denoising_loss(
    mlp: MLP,
    x: Tensor,
    shifts: Shifts = (),
    *,
    level: float | Tensor,
    weigh: bool,
    square: float,
    seed: int,
    first_chain: int,
    energy: bool = False,
) -> Tensor | None:
    """Return `square sum_b |level_b s(x_b + level_b e_b) + e_b|^2`, its gradients computed on the way.

    None where nothing compiled is there for it, or it asks for more than gradients in the network's tensors.

    Args:
        mlp: the network.
        x: `[B, D]`.
        shifts: one `[B, H_l]` or None for each of the L + 1 linear layers, or `()`.
        level: standard deviation of the noise, a number or `[B, 1]`.
        weigh: weigh residuals by the level, as above; else they are `s + e / level`.
        square: the weight of the squares.
        seed: seed of the noise.
        first_chain: global index of the first row.
        energy: s is minus the gradient of the network's one output.
    """
    tensors = _flat(mlp, shifts, None)
    problem = replace(_problem(mlp, x, energy=energy), traced=False)
    fixed = not _recorded(x, level if isinstance(level, Tensor) else None)
    if x.dtype != torch.float32 or not (fixed and _recorded(*tensors) and _fusable(problem, x, tensors)):
        return None
    if problem.kernels(mlp, x) is None and not _compiled(mlp, x):
        return None
    residual = Residual(square, level if weigh else 1.0, 1.0 if weigh else 1 / level, seed, first_chain)
    with _cpu_threads.alone(x):  # so little that it would wait for threads that torch left spinning
        y = noise.mixed(x.detach(), 1.0, level, seed, int(Stream.DATA), first_chain)
    return cast(Tensor, Denoising.apply(problem, residual, y, *tensors))  # type: ignore[no-untyped-call]


def runner(
    mlp: MLP,
    x: Tensor,
    shifts: Shifts = (),
    *,
    energy: bool = False,
    probes: Probes | None = None,
    weight: Tensor | None = None,
) -> tuple[str, int]:
    """Return what the functions above would run for these arguments, and for how many rows at a time.

    "mlp", "mlp_whole" or "mlp_layers": kernels, by module; "tiles": hand-written passes in tiles; "reference": plain
    torch, the whole batch at once.
    """
    problem = _problem(mlp, x, energy=energy, probes=probes)
    if not _fusable(problem, x, _flat(mlp, shifts, weight)):
        return "reference", len(x)
    if (kernels := problem.kernels(mlp, x)) is not None:
        return kernels.__name__.rpartition(".")[2], len(x)
    with torch.no_grad():
        return "tiles", min(len(x), mlp_tiles.rows(x, mlp, problem.form(mlp, x, weight)))


def denoises(x: Tensor) -> bool:
    """Whether there may be compiled passes for a score's own gradients at x."""
    return _dispatch.kernels("mlp", x.device) is not None or (x.device.type == "cpu" and len(x) >= _ROWS)


def _compiled(mlp: MLP, x: Tensor) -> bool:
    """Whether tiles on a CPU are compiled from end to end: autograd's own passes are as good as torch's in tiles."""
    known = all(map(_cpu_layers.knows, mlp.activations))
    return known and _cpu_layers.layers(x, len(x) * max(mlp.widths)) is not None


def _problem(mlp: MLP, x: Tensor, *, energy: bool = False, probes: Probes | None = None) -> Problem:
    return Problem(mlp.activations, mlp.residuals, energy, probes, narrow(x))


def _terms(problem: Problem, mlp: MLP, x: Tensor, shifts: Shifts, weight: Tensor | None) -> Outputs:
    tensors = _flat(mlp, shifts, weight)
    if not _fusable(problem, x, tensors):
        return problem.plain(x, tensors)
    return cast(Outputs, Terms.apply(problem, x, *tensors))  # type: ignore[no-untyped-call]


def _loss(problem: Problem, weights: Weights, mlp: MLP, x: Tensor, shifts: Shifts) -> tuple[Tensor, Tensor, Tensor]:
    tensors = _flat(mlp, shifts, None)
    if _recorded(x, *tensors) and _fusable(problem, x, tensors):
        return cast(tuple[Tensor, Tensor, Tensor], Loss.apply(problem, weights, x, *tensors))  # type: ignore[no-untyped-call]
    square, trace = weights.sums(problem, _terms(problem, mlp, x, shifts, None))
    return weights.square * square + weights.trace * trace, square.detach(), trace.detach()


def _recorded(*tensors: Tensor | None) -> bool:
    """Whether autograd records what is done with one of these."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _flat(mlp: MLP, shifts: Shifts, weight: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors of a problem in the order of `Problem.split`."""
    return (*(shifts or (None,) * (mlp.depth + 1)), *mlp.weights, *mlp.biases, weight)


def _fusable(problem: Problem, x: Tensor, tensors: Iterable[Tensor | None]) -> bool:
    """Whether plain eager tensors of one precise dtype ask for values and first derivatives, as far as can be seen."""
    if torch.compiler.is_compiling() or transformed((x,)):
        return False
    if torch.is_autocast_enabled(x.device.type) and not problem.narrow:
        return False
    if x.dtype not in (torch.float32, torch.float64) or not len(x):
        return False
    *layers, weight = tensors
    if weight is not None and weight.ndim != 2:
        return False
    return all(
        tensor is None
        or (
            type(tensor) in (Tensor, torch.nn.Parameter)
            and (tensor.dtype == x.dtype or (problem.narrow and tensor.dtype == torch.bfloat16))
            and tensor.device == x.device
            and forward_ad.unpack_dual(tensor).tangent is None
        )
        for tensor in (x, *layers, weight)
    )
