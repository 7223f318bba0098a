"""What a caller asks of a trace, and the fast path that a recognised network takes to it.

`reader.read` says whether a callable is an MLP; `ops.mlp` has the closed forms. Here lies what is between them: which
form is taken, and the scalings around the network, `s(x) = b net(a x) + c x`, so `tr(C J) = a b tr(C J_net) + c tr C`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastscore import _checks, noise, reader
from fastscore._forms import Probes as Directions
from fastscore._forms import cut, remade, run
from fastscore.ops import mlp as ops
from fastscore.reference import mlp as reference

EXACT_FEATURES = 64
"""`trace="auto"` is exact for events of up to this many features where the exact trace costs a tangent a feature."""

_PIECE = 2**26  # bytes that the tangents of one piece may take


@dataclass(frozen=True)
class Request:
    """How a trace is wanted: the arguments that `divergence` and `laplacian` share, under the same names."""

    trace: str
    n_probes: int
    probe: str
    chunk_size: int | None
    seed: int | None
    generator: torch.Generator | None
    first_chain: int = 0
    weight: Tensor | None = None

    def check(self, name: str, fn: object, x: Tensor) -> None:
        """Refuse what cannot be right, before any work."""
        check(name, fn, x, self.chunk_size)
        _checks.choice("trace", self.trace, ("auto", "exact", "hutchinson"))
        _checks.choice("probe", self.probe, ("rademacher", "normal"))
        _checks.count("n_probes", self.n_probes, minimum=1)
        _checks.integer("first_chain", self.first_chain, 0, 2**56 - x.shape[0] + 1)
        noise.check_seed(self.seed, self.generator)
        if self.weight is None:
            return
        _checks.floating("weight", self.weight)
        _checks.same_device("weight", self.weight, "x", x)
        b, d = x.shape[0], features(x)
        if tuple(self.weight.shape) not in ((d, d), (b, d, d)):
            raise ValueError(f"weight must have shape [{d}, {d}] or [{b}, {d}, {d}], got {list(self.weight.shape)}")

    def directions(self) -> Directions:
        """The probes of an estimate; draws their seed where none is given."""
        seed = noise.resolve_seed(None, self.generator) if self.seed is None else _checks.whole("seed", self.seed)
        return Directions(self.probe, seed, _checks.whole("first_chain", self.first_chain))

    def probes(self, seed: int | None = None) -> ops.Probes:
        """The same for the structured networks."""
        return ops.Probes(self.directions().seed if seed is None else seed, self.n_probes, self.probe, self.first_chain)

    def exact(self, x: Tensor, closed: bool) -> tuple[bool, str]:
        """Whether the trace is to be exact, `closed` if that costs no tangent a feature; and why."""
        if self.trace != "auto":
            return self.trace == "exact", f"trace={self.trace!r} was asked for"
        if closed:
            return True, "the exact trace costs no tangent a feature"
        few = features(x) <= EXACT_FEATURES
        return few, f"auto is exact up to {EXACT_FEATURES} features where each costs a tangent"


@dataclass(frozen=True)
class Plan:
    """How a trace will be computed: what `divergence`, `laplacian` and the losses carry out, and `explain` tells.

    Attributes:
        reading: The network for a structured method, or None for the generic way.
        exact: Whether the trace is exact.
        method: As in `Divergence`; the generic way falls back from "-jvp" to "-vjp" where an operator has no forward
            rule.
        why: What made it so.
    """

    reading: reader.Reading | None
    exact: bool
    method: str
    why: str


class Found(NamedTuple):
    """Score `[B, *event]`, its traces `[K, B]` (K = 1 if exact), and the energy `[B]` of an energy."""

    score: Tensor
    traces: Tensor
    energy: Tensor | None


def check(name: str, fn: object, x: Tensor, chunk_size: int | None) -> None:
    """Refuse a function, points or a chunk size that cannot be right."""
    _checks.callable_(name, fn)
    owner = getattr(fn, "__self__", fn)
    if torch.is_grad_enabled() and isinstance(owner, nn.Module) and any(map(_sharded, owner.modules())):
        raise ValueError(
            f"{name} is sharded by FSDP, which gathers its parameters for one forward and backward pass only: compute "
            f"the loss in the forward method of a module that holds the network, and shard only the module that holds "
            f"the loss, not its layers"
        )
    _checks.batch("x", x)
    if chunk_size is not None:
        _checks.count("chunk_size", chunk_size, minimum=1)


def _sharded(module: nn.Module) -> bool:
    """Whether it is a module of `fully_shard` or `FullyShardedDataParallel`."""
    return any(base.__name__ in ("FSDPModule", "FullyShardedDataParallel") for base in type(module).__mro__)


def features(x: Tensor) -> int:
    """D, the number of features of an event."""
    return math.prod(x.shape[1:])


def plan(fn: _checks.Score, x: Tensor, cond: Any, how: Request, *, energy: bool = False) -> Plan:
    """The cheapest correct method for the trace of a score's Jacobian, or with `energy` for the Laplacian of an energy.

    Closed forms for one and two hidden layers, tangents for more and wherever C differs from sample to sample, the
    forward Laplacian for energies, Hutchinson's estimate by dual numbers; the generic way for what is not recognised.
    """
    reading = read(fn, x, cond, ("energy",) if energy else ("score", "energy_score"))
    per_sample = how.weight is not None and how.weight.dim() == 3
    closed = reading is not None and reading.kind == "score" and reading.mlp.depth <= 2 and not per_sample
    exact, why = how.exact(x, closed)
    if reading is None:
        pass
    elif reading.kind == "score":
        method = "closed-form" if closed else "tangents"
        return Plan(reading, exact, method if exact else "hutchinson-dual", why)
    elif how.weight is not None or reading.skip is not None:
        why += "; the passes for energies give neither weighted traces nor added multiples of x"
    else:
        return Plan(reading, exact, "forward-laplacian" if exact else "hutchinson-dual", why)
    n = features(x) if exact else how.n_probes
    # Neither torch.compile nor checkpointing, which recomputes pieces, has forward mode over a reverse pass.
    reverse = torch.compiler.is_compiling() or (energy and remade(x, n, how.chunk_size, cond))
    mode = "vjp" if reverse else "jvp"
    return Plan(None, exact, f"{'exact' if exact else 'hutchinson'}-{mode}", why)


def read(fn: _checks.Score, x: Tensor, cond: Any, kinds: tuple[str, ...]) -> reader.Reading | None:
    """The network that fn is, if it is one of these kinds and its sums are in x's own precision."""
    if x.dtype not in (torch.float32, torch.float64):
        return None
    # Kernels that round to autocast's bfloat16 take the network itself in full precision.
    full = torch.autocast(x.device.type, enabled=False) if ops.narrow(x) else contextlib.nullcontext()
    with full:
        reading = reader.read(fn, x, cond)
    if reading is not None and "energy" in kinds and reading.kind == "score" and x.shape[1:] == (1,):
        reading = replace(reading, kind="energy")  # [B, 1] for x [B, 1]
    return reading if reading is not None and reading.kind in kinds else None


def score(reading: reader.Reading, x: Tensor, how: Request, exact: bool) -> Found:
    """The score with its trace or estimates."""
    if reading.kind == "energy_score":
        return energy(reading, x, how, exact)
    rows = _flat(x)
    scaled = rows if reading.in_scale is None else reading.in_scale * rows
    weight = None if how.weight is None else how.weight.to(x.dtype)
    if exact:
        value, trace = _score_and_trace(reading, scaled, weight, how)
        traces, directions = trace.unsqueeze(0), None
    else:
        directions = how.directions()
        probes = how.probes(directions.seed)
        value, quadratic = ops.score_and_quadratic(reading.mlp, scaled, reading.shifts, probes=probes, weight=weight)
        traces = quadratic.t()
    for scale in (reading.in_scale, reading.out_scale):
        traces = traces if scale is None else scale.squeeze(1) * traces
    value = value if reading.out_scale is None else reading.out_scale * value
    if reading.skip is not None:
        value = value + reading.skip * rows
        traces = traces + reading.skip.squeeze(1) * _identity_forms(rows, weight, directions, how.n_probes)
    return Found(value.reshape(x.shape), traces, None)


def jacobian(reading: reader.Reading, x: Tensor, chunk_size: int | None) -> Tensor:
    """`ds/dx` of a score, `[B, D, D]`."""
    rows = _flat(x)
    scaled = rows if reading.in_scale is None else reading.in_scale * rows

    def piece(x: Tensor, *shifts: Tensor | None) -> tuple[Tensor]:
        return (reference.score_and_jacobian(reading.mlp, x, shifts)[1],)

    (total,) = _in_pieces(piece, _rows(reading, x, chunk_size), scaled, *reading.shifts)
    for scale in (reading.in_scale, reading.out_scale):
        total = total if scale is None else scale.unsqueeze(2) * total
    if reading.skip is None:
        return total
    return total + reading.skip.unsqueeze(2) * torch.eye(rows.shape[1], dtype=x.dtype, device=x.device)


def energy(reading: reader.Reading, x: Tensor, how: Request, exact: bool) -> Found:
    """The energy, its score and the divergence of that or its estimates."""
    rows = _flat(x)
    scaled = rows if reading.in_scale is None else reading.in_scale * rows
    probes = None if exact else how.probes()
    value, gradient, laplacian = ops.energy_terms(reading.mlp, scaled, reading.shifts, probes=probes)
    traces = -laplacian.unsqueeze(0) if exact else -laplacian.t()
    if reading.in_scale is not None:
        gradient, traces = reading.in_scale * gradient, reading.in_scale.squeeze(1).square() * traces
    if reading.out_scale is not None:
        outer = reading.out_scale.squeeze(1)
        value, gradient, traces = outer * value, reading.out_scale * gradient, outer * traces
    return Found(gradient.reshape(x.shape), traces, value)


def implicit_loss(plan: Plan, x: Tensor, how: Request, share: float) -> Tensor | None:
    """`share sum_b (1/2 |s_b|^2 + tr_b)` with its gradients computed on the way, or None for the way by terms."""
    reading = plan.reading
    if reading is None or not reading.is_plain:
        return None
    rows, weights = _flat(x), {"square": share / 2, "trace": share}
    probes = None if plan.exact else how.probes()
    if reading.kind == "energy_score":
        return ops.energy_loss(reading.mlp, rows, reading.shifts, probes=probes, **weights)[0]
    return ops.implicit_loss(reading.mlp, rows, reading.shifts, probes=probes, **weights)[0]


def score_alone(fn: _checks.Score, x: Tensor, cond: Any) -> Tensor | None:
    """The score where its gradients take compiled passes, or None."""
    if not ops.denoises(x):
        return None
    reading = read(fn, x, cond, ("score", "energy_score"))
    if reading is None or not reading.is_plain:
        return None
    found = ops.score(reading.mlp, _flat(x), reading.shifts, energy=reading.kind == "energy_score")
    return None if found is None else found.view(x.shape)


def denoising_loss(
    fn: _checks.Score,
    x: Tensor,
    cond: Any,
    level: float | Tensor,
    *,
    weigh: bool,
    share: float,
    seed: int,
    first_chain: int,
) -> Tensor | None:
    """`share sum_b 1/2 |level s(x + level e) + e|^2` by compiled passes that make noise and gradients, or None."""
    if not ops.denoises(x):
        return None
    reading = read(fn, x, cond, ("score", "energy_score"))
    if reading is None or not reading.is_plain:
        return None
    flat = level.reshape(-1, 1) if isinstance(level, Tensor) else level
    return ops.denoising_loss(
        reading.mlp, _flat(x), reading.shifts, level=flat, weigh=weigh, square=share / 2, seed=seed,
        first_chain=first_chain, energy=reading.kind == "energy_score",
    )  # fmt: skip


def recordable(x: Tensor) -> Tensor:
    """x, or a copy where it was made in inference mode, whose tensors no backward may keep."""
    if torch.compiler.is_compiling() or torch.is_inference_mode_enabled() or not x.is_inference():
        return x
    return x.clone()


def _flat(x: Tensor) -> Tensor:
    return recordable(x).flatten(1)


def piece_rows(reading: reader.Reading, x: Tensor, how: Request) -> int | None:
    """The rows of a piece where D tangents of a network are held, for weights that differ; None where tiles are."""
    per_sample = how.weight is not None and how.weight.dim() == 3
    return _rows(reading, x, how.chunk_size) if per_sample else None


def _score_and_trace(reading: reader.Reading, x: Tensor, weight: Tensor | None, how: Request) -> tuple[Tensor, Tensor]:
    """The network's value and `tr(C J)`."""
    rows = piece_rows(reading, x, how)
    if rows is None:
        return ops.score_and_trace(reading.mlp, x, reading.shifts, weight=weight)

    def piece(x: Tensor, weight: Tensor, *shifts: Tensor | None) -> tuple[Tensor, Tensor]:
        return ops.score_and_trace(reading.mlp, x, shifts, weight=weight)

    value, trace = _in_pieces(piece, rows, x, weight, *reading.shifts)
    return value, trace


def _rows(reading: reader.Reading, x: Tensor, chunk_size: int | None) -> int:
    """Rows few enough for D tangents of every layer to be held."""
    if torch.compiler.is_compiling():
        return len(x)
    each = x.element_size() * reading.mlp.dim * (reading.mlp.dim + 3 * sum(reading.mlp.widths))
    return min(len(x), chunk_size or max(1, _PIECE // each))


def _in_pieces(piece: Callable[..., tuple[Tensor, ...]], rows: int, *tensors: Tensor | None) -> list[Tensor]:
    """`piece(*tensors)` for `rows` rows of the batch at a time, recomputed in the backward."""
    assert tensors[0] is not None
    batch = len(tensors[0])
    if rows >= batch:
        return list(piece(*tensors))
    recorded = torch.is_grad_enabled() and torch._C._functorch.peek_interpreter_stack() is None
    done = [
        run(recorded, piece, *(cut(tensor, batch, first, min(first + rows, batch)) for tensor in tensors))
        for first in range(0, batch, rows)
    ]
    return [torch.cat(parts) for parts in zip(*done, strict=True)]


def _identity_forms(rows: Tensor, weight: Tensor | None, directions: Directions | None, n_probes: int) -> Tensor:
    """`tr C` `[1, 1 or B]`, or along the probes `v' C v` `[K, B]`, so that an estimate is that of the generic way."""
    if directions is None:
        if weight is None:
            return rows.new_full((1, 1), rows.shape[1])
        return weight.diagonal(0, -2, -1).sum(-1).reshape(1, -1)
    v = directions(rows.detach(), 0, 0, n_probes)
    left = v if weight is None else torch.matmul(v.unsqueeze(2), weight).squeeze(2)
    return (left * v).sum(2)
