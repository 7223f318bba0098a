"""The audit's cases of whole networks in one launch: every entry of the launch table, at its largest sizes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

from bench.audit import Case
from bench.audit_mlp import PROBE


def entries() -> list[dict[str, Any]]:
    """Their part of the launch table."""
    from fastscore_kernels import table

    return [entry for entry in table.entries() if re.match(r"(trace|estimate|energy|curvature)_", entry["operation"])]


def cases() -> Iterator[tuple[str, Case]]:
    """Every entry on each of its architectures, for each kind of network."""
    for entry in entries():
        for architecture in entry["architectures"]:
            yield from ((architecture, one) for one in kinds(entry))


def kinds(entry: dict[str, Any]) -> Iterator[Case]:
    """An entry's kernel for the plainest network and the one that has everything."""
    yield case(entry)
    yield case(entry, residual=True, shifted=True)
    if entry["operation"].startswith("energy"):
        yield case(entry, traced=False)
    if entry["operation"].startswith(("estimate", "curvature")):
        yield case(entry, probe="normal")


def case(
    entry: dict[str, Any],
    *,
    residual: bool = False,
    activation: str = "silu",
    shifted: bool = False,
    probe: str = "rademacher",
    traced: bool = True,
) -> Case:
    """One entry's kernel of whole networks; residual from the second layer on, shifts at every layer; four probes.

    Of an energy that is not `traced`, the score alone.
    """
    from fastscore_kernels import mlp_whole_forward

    operation, width, dim, precision = (entry[key] for key in ("operation", "width", "dim", "precision"))
    family, _, number = operation.partition("_")
    depth = int(number)
    estimate, energy = family == "estimate", family in ("energy", "curvature")
    along = estimate or family == "curvature"
    kernel = mlp_whole_forward.energy_kernel if energy else mlp_whole_forward.trace_kernel
    narrow = "*bf16" if precision == "bf16" else "*fp32"
    factors = "*bf16" if precision in ("bf16", "tf32x3") else "*fp32"
    missing = () if not along else ("seeds_ptr",) if estimate else ("squares_ptr",)
    missing = missing if traced else ("squares_ptr", "laplacian_ptr")
    pointers = [n for n in kernel.arg_names if n.endswith("_ptr") and n not in missing]
    tuples = {"weights": (factors,) * (depth + estimate), "biases": ("*fp32",) * (depth + 1)}
    tuples["shifts"] = ("*fp32" if shifted else "constexpr",) * (depth + 1)
    if energy and factors == "*fp32":
        tuples["turned"] = (factors,) * (depth - 1)
    places = {name: kernel.arg_names.index(name) for name in tuples}
    absent: dict[Any, Any] = {} if shifted else {(places["shifts"], at): None for at in range(depth + 1)}
    absent |= {"turned": None} if energy and "turned" not in tuples else {}
    absent |= dict.fromkeys(missing)
    counts = (width * dim, *(width**2,) * (depth - 1), *(width * dim,) * estimate)
    begins = tuple(itertools.accumulate(counts, initial=0))  # where weights stand that are parts of one tensor
    apart = precision == "tf32x3"
    unaligned = {(places["weights"], at) for at in range(len(counts)) if apart and begins[at] % 8}
    columns = 4 if along else 0 if not traced or (energy and depth == 1) else dim
    options = dict(entry["options"])
    launch = {name: options.pop(name) for name in ("num_warps", "num_stages")}
    within = ((places[name], at) for name in tuples for at in range(len(tuples[name])))
    kind = (" residual" if residual else "") + (" shifted" if shifted else "")
    kind += "" if traced else " score"
    kind += " normal" if along and probe == "normal" else ""
    return Case(
        name=f"{family} {precision} H={width} D={dim} L={depth}{kind}",
        kernel=kernel,
        signature={
            **{name: narrow if name in ("seeds_ptr", "last_ptr") else "*fp32" for name in pointers},
            **tuples,
            "n_rows": "i32",
            **(PROBE if along else dict.fromkeys(PROBE, "i32")),  # zeros of no probe
        },
        constexprs={
            **absent,
            "D": dim,
            "K": columns,
            "PROBE": probe if along else None,
            "DEPTH": depth,
            "WIDTHS": (width,) * depth,
            "PHIS": (activation,) * depth,
            "RESIDUALS": tuple(residual and at > 0 for at in range(depth)),
            "PRECISION": "bf16x6" if apart else precision,
            "APART": begins[-1] if apart else 0,
            **options,
        },
        elements=options["COLUMNS"],
        aligned=(*pointers, *(place for place in within if place not in unaligned)),
        options=launch,
    )
