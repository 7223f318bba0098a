"""How a trace is wanted, and how it will be computed.

A `Request` holds the arguments that `divergence`, `laplacian` and the losses share, and checks them. `plan` asks
`fastscore.reader` whether the callable is a network with closed forms and chooses a method: a `Plan`, which those
functions carry out (`fastscore._structured` for a network, `fastscore._forms` for any other callable) and `explain`
tells.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fastscore import _checks, noise, reader
from fastscore._forms import Probes as Directions
from fastscore._forms import remade
from fastscore.ops import mlp as ops

EXACT_FEATURES = 64
"""`trace="auto"` is exact for events of up to this many features where the exact trace costs a tangent a feature."""


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
    reading = read(fn, x, cond, energy=energy)
    per_sample = how.weight is not None and how.weight.dim() == 3
    closed = reading is not None and not reading.is_energy and reading.mlp.depth <= 2 and not per_sample
    exact, why = how.exact(x, closed)
    if reading is None:
        pass
    elif not reading.is_energy:
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


def read(fn: _checks.Score, x: Tensor, cond: Any, *, energy: bool = False) -> reader.Reading | None:
    """The network that gives this score, or with `energy` this energy, if its sums are in x's own precision."""
    if x.dtype not in (torch.float32, torch.float64):
        return None
    # Kernels that round to autocast's bfloat16 take the network itself in full precision.
    full = torch.autocast(x.device.type, enabled=False) if ops.narrow(x) else contextlib.nullcontext()
    with full:
        reading = reader.read(fn, x, cond)
    if energy and reading is not None and reading.kind == "score" and x.shape[1:] == (1,):
        reading = replace(reading, kind="energy")  # [B, 1] for x [B, 1]
    return reading if reading is not None and reading.gives_score != energy else None
