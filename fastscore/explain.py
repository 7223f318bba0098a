"""What `divergence`, `laplacian` and the losses would run for a callable, what it costs, and why; without running it.

The choice is not made here: it is the `fastscore._plan.Plan` that those functions carry out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fastscore import _checks, _forms, _plan, _structured, reader
from fastscore._plan import Plan, Request, features
from fastscore._watch import Watch
from fastscore.divergence import energies
from fastscore.ops import mlp as ops
from fastscore.reference import mlp as reference


@dataclass(frozen=True, repr=False)
class Explanation:
    """What would run; printed, it is a table.

    The costs are those of a forward pass over the whole batch, in float operations of matrix products, convolutions
    and attention, and in bytes that all operations write when each is run for itself (tiles keep most of them in the
    cache). A backward pass costs about twice as much, of the trace as of the network. The costs of a callable that
    was not recognised are its own for one row, times rows and tangents.

    Attributes:
        method: As in `Divergence`. The generic way falls back from "-jvp" to "-vjp" (reverse mode) where an operator
            turns out to have no forward rule.
        network: The structure that was recognised, or why there is none, as far as is known.
        backend: "torch" or "triton".
        rows: How many rows are worked on at a time.
        flops: Float operations of value and trace as PyTorch makes them; kernels make more where that spares memory.
        bytes: Bytes written for value and trace.
        forward_flops: Float operations of a call of the network.
        forward_bytes: Bytes written by a call of the network.
        why: What made it so.
    """

    method: str
    network: str
    backend: str
    rows: int
    flops: int
    bytes: int
    forward_flops: int
    forward_bytes: int
    why: str

    def __repr__(self) -> str:
        """The table."""
        lines = {
            "method": self.method,
            "network": self.network,
            "backend": f"{self.backend}, {self.rows} rows at a time",
            "flops": _ratio(self.flops, self.forward_flops),
            "bytes": _ratio(self.bytes, self.forward_bytes),
            "why": self.why,
        }
        return "\n".join(f"{name:8} {text}" for name, text in lines.items())


def explain(
    fn: _checks.Score,
    x: Tensor,
    *,
    cond: Any = None,
    trace: str = "auto",
    n_probes: int = 1,
    probe: str = "rademacher",
    chunk_size: int | None = None,
    weight: Tensor | None = None,
    of: str = "divergence",
) -> Explanation:
    """What `divergence(fn, x, ...)`, or a loss over it, would run; with `of="laplacian"`, `laplacian(fn, x, ...)`.

    fn is called on a few rows, to recognise it and to count; no trace is taken.

    Args:
        fn: The score, or the energy of a Laplacian.
        x: Points `[B, *event]`; their number counts, not their values.
        cond: As in `divergence`; so are the arguments that follow.
        trace: As in `divergence`.
        n_probes: As in `divergence`.
        probe: As in `divergence`.
        chunk_size: As in `divergence`.
        weight: As in `divergence`.
        of: "divergence" or "laplacian".

    Raises:
        TypeError: As in `divergence`.
        ValueError: As in `divergence`, and for an unknown `of`.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 64), torch.nn.SiLU(), torch.nn.Linear(64, 2))
        >>> explain(net, torch.zeros(1000, 2)).method
        'closed-form'
    """
    _checks.choice("of", of, ("divergence", "laplacian"))
    how = Request(trace, n_probes, probe, chunk_size, None, None, weight=weight)
    energy = of == "laplacian"
    how.check("energy_fn" if energy else "score_fn", fn, x)
    plan = _plan.plan(fn, x, cond, how, energy=energy)
    if plan.reading is None:
        return _generic(plan, fn, x, cond, how, energy)
    return _recognised(plan, plan.reading, x, how)


def _generic(plan: Plan, fn: _checks.Score, x: Tensor, cond: Any, how: Request, energy: bool) -> Explanation:
    batch, n = len(x), features(x) if plan.exact else how.n_probes

    def call() -> object:
        row, given = x[:1].detach().clone(), _forms.cut(cond, batch, 0, 1)
        with Watch(forward=False), torch.enable_grad():  # it may take the gradient of an energy
            return energies(fn, row, given) if energy else _checks.evaluate(fn, row, given)

    flops, written = (batch * count for count in _count(call))
    times = (1 + n) * (3 if energy else 1)  # the gradient of an energy is a reverse pass more, at twice its price
    known = reader.read(fn, x, cond)
    if known is None:
        network = f"not recognised: {reader.reason(fn, x, cond)}"
    else:
        half = x.dtype in (torch.float16, torch.bfloat16)
        network = _structure(known) + (", in half precision, which the structured methods are not for" if half else "")
    rows = _forms.piece_size(x, n, how.chunk_size, cond)[0]
    costs = (times * flops, times * written, flops, written)
    return Explanation(plan.method, network, "torch", rows, *costs, plan.why)


def _recognised(plan: Plan, reading: reader.Reading, x: Tensor, how: Request) -> Explanation:
    def meta(tensor: Tensor | None) -> Any:
        return None if tensor is None else tensor.detach().to("meta")

    mlp = replace(
        reading.mlp, weights=tuple(map(meta, reading.mlp.weights)), biases=tuple(map(meta, reading.mlp.biases))
    )
    points, shifts, weight = meta(x.flatten(1)), tuple(map(meta, reading.shifts)), meta(how.weight)
    batch, d = points.shape

    def value_and_trace() -> object:
        probes = None if plan.exact else points.new_empty(batch, how.n_probes, d)
        if reading.is_energy:
            return reference.energy_terms(mlp, points, shifts, probes)
        if probes is None:
            return reference.score_and_trace(mlp, points, shifts, weight=weight)
        return reference.score_and_quadratic(mlp, points, shifts, probes, weight=weight)

    costs = (*_count(value_and_trace), *_count(lambda: reference.forward(mlp, points, shifts)))
    backend, why, rows = "torch", plan.why, _structured.piece_rows(reading, x, how)
    if rows is None:
        probes = None if plan.exact else ops.Probes(0, how.n_probes, how.probe)
        runner, rows = ops.runner(
            reading.mlp, x.flatten(1), reading.shifts, energy=reading.is_energy, probes=probes, weight=how.weight
        )
        if runner in _KERNELS:
            backend, why = "triton", f"{why}; {_KERNELS[runner]}"
    return Explanation(plan.method, _structure(reading), backend, rows, *costs, why)


# What kernels do, by module.
_KERNELS = {
    "mlp": "values in one launch, gradients in two and a product for each weight",
    "mlp_whole": "values in one launch, gradients layer by layer",
    "mlp_layers": "layer by layer, one launch between two matrix products",
}


def _structure(reading: reader.Reading) -> str:
    """Such as "MLP 2-64-64-2, silu, silu, with a condition"."""
    mlp = reading.mlp
    text = "-".join(map(str, (mlp.dim, *mlp.widths, len(mlp.weights[-1])))) + ", " + ", ".join(mlp.activations)
    parts = {
        ", residual": any(mlp.residuals),
        ", with added vectors": any(shift is not None for shift in reading.shifts),
        ", scaled": not reading.is_plain,
        ", as an energy": reading.is_energy,
    }
    return f"MLP {text}" + "".join(part for part, there in parts.items() if there)


class _Tally(TorchDispatchMode):
    """Counts the float operations of what runs under it, and the bytes that it writes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        from torch.utils.flop_counter import flop_registry  # here, for it imports Triton where that is installed

        self.registry, self.flops, self.bytes = flop_registry, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in self.registry:
            self.flops += self.registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        if not func.is_view:
            self.bytes += sum(leaf.nbytes for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor))
        return out


def _count(function: Callable[[], object]) -> tuple[int, int]:
    """Float operations and bytes of a call."""
    with torch.no_grad(), _Tally() as tally:
        function()
    return tally.flops, tally.bytes


def _ratio(cost: int, forward: int) -> str:
    times = f" = {cost / forward:.3g} times a forward pass" if forward else ""
    return f"{cost:.3g}{times}"
