"""The audit's cases of the fused networks: every entry of the launch table, at the largest sizes it serves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton

from bench.audit import Case

FAMILIES = ("mlp_", "dual_")
"""How their operations' names begin."""

# The pointers that only some networks have, by what they have.
_DEEP = frozenset(("w2_ptr", "b2_ptr", "u2_ptr", "m_ptr", "dz2_ptr", "gd2_ptr", "w2_t_ptr", "m_t_ptr", "d1_ptr"))
_DIRECT = frozenset(("c_ptr", "gd1_sums_ptr"))
_TRACE = frozenset(("m_ptr", "m_t_ptr", "c_ptr", "g_ptr", "d1_ptr", "gd1_sums_ptr", "gd2_ptr", "trace_ptr"))
_DUAL = frozenset(("v_ptr", "p_t_ptr", "hd2_ptr", "dzd1_ptr"))
_SHIFTS = frozenset(("u1_ptr", "u2_ptr", "u3_ptr"))


def entries() -> list[dict[str, Any]]:
    """Their part of the launch table."""
    from fastscore_kernels import table

    return [entry for entry in table.entries() if entry["operation"].startswith(FAMILIES)]


def cases() -> Iterator[tuple[str, Case]]:
    """Every entry on each of its architectures, for each kind of network."""
    for entry in entries():
        for architecture in entry["architectures"]:
            yield from ((architecture, one) for one in kinds(entry))


def kinds(entry: dict[str, Any]) -> Iterator[Case]:
    """An entry's kernel for networks with and without what adds to its registers."""
    yield case(entry)
    if entry["operation"].startswith("dual"):
        yield case(entry, probe="normal")
        return
    yield case(entry, residual=True)
    yield case(entry, traced=False)
    if not entry["operation"].endswith("upper"):
        yield case(entry, depth=1)


def case(
    entry: dict[str, Any],
    *,
    depth: int = 2,
    residual: bool = False,
    activation: str = "silu",
    traced: bool = True,
    probe: str = "rademacher",
) -> Case:
    """One entry's kernel for one kind of network; `residual` ones (and a probe's) have shifts at every layer."""
    from fastscore_kernels import mlp_backward, mlp_forward

    operation, width, dim, precision = (entry[key] for key in ("operation", "width", "dim", "precision"))
    family, _, operation = operation.partition("_")
    dual = family == "dual"
    kernel = {
        "forward": mlp_forward.forward_kernel,
        "upper": mlp_backward.upper_kernel,
        "lower": mlp_backward.lower_kernel,
    }[operation]
    absent = _DEEP if depth == 1 else frozenset(("h1_ptr",)) if operation == "lower" else frozenset()
    absent |= frozenset() if depth == 1 or residual else _DIRECT | (_LAST if operation == "lower" else frozenset())
    absent |= frozenset() if residual or dual else _SHIFTS
    absent |= frozenset() if dual else _DUAL
    absent |= frozenset() if traced else _TRACE
    options = dict(entry["options"])
    block = min(options.pop("BLOCK"), max(16, triton.next_power_of_2(width)))
    launch = {name: options.pop(name) for name in ("num_warps", "num_stages")}
    constants = {
        "D": dim,
        "H1": width,
        "H2": width if depth == 2 else 1,
        "PHI1": activation,
        "PHI2": activation,
        "DIRECT": depth == 1 or residual,
        "PROBE": probe if dual else None,
        "PRECISION": precision,
        "ABOVE": block if depth == 2 else 16,
        "BELOW": block,
        **options,
    }
    pointers = [name for name in kernel.arg_names if name.endswith("_ptr") and name not in absent]
    kind = (" residual" if residual else "") + ("" if traced else " score")
    kind += " normal" if dual and probe == "normal" else ""
    return Case(
        name=f"{family}_{operation} {precision} H={width} D={dim} L={depth}{kind}",
        kernel=kernel,
        signature={**{name: _pointer(name, precision) for name in pointers}, "n_rows": "i32", **PROBE, "number": "i32"},
        constexprs={
            **{name: None for name in kernel.arg_names if name in absent},
            **{name: value for name, value in constants.items() if name in kernel.arg_names},
        },
        elements=options["ROWS"],
        aligned=tuple(pointers),
        options=launch,
    )


# What a probe is made of.
PROBE = {"first_chain": "i64", "key_low": "i32", "key_high": "i32"}

# What stays in float32 beside bfloat16 products: samples and what is summed.
_WIDE = (
    frozenset(("x_ptr", "ds_ptr", "g_ptr", "b1_ptr", "b2_ptr", "b3_ptr", "c_ptr", "score_ptr", "trace_ptr")) | _SHIFTS
)


def _pointer(name: str, precision: str) -> str:
    return "*bf16" if precision == "bf16" and name not in _WIDE and not name.endswith("_sums_ptr") else "*fp32"


# What `mlp_lower` reads of the output's layer, where h_1 reaches the output directly.
_LAST = frozenset(("ds_ptr", "w3_t_ptr"))
