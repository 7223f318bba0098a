"""The audit's cases of the fused networks: every entry of the launch table, at the largest sizes it serves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench.audit import Case

# The pointers that only some networks have, by what they have.
_DEEP = frozenset(("w2_ptr", "b2_ptr", "u2_ptr", "m_ptr", "dz2_ptr", "gd2_ptr", "w2_t_ptr", "m_t_ptr", "d1_ptr"))
_DIRECT = frozenset(("c_ptr", "gd1_sums_ptr"))
_SHIFTS = frozenset(("u1_ptr", "u2_ptr", "u3_ptr"))


def cases() -> Iterator[tuple[str, Case]]:
    """Architectures with, for every entry of theirs, networks with and without what adds to a kernel's registers."""
    from fastscore_kernels import table

    for entry in table.entries():
        for architecture in entry["architectures"]:
            yield architecture, case(entry)
            yield architecture, case(entry, residual=True)
            if entry["operation"] != "mlp_upper":
                yield architecture, case(entry, depth=1)


def case(entry: dict[str, Any], *, depth: int = 2, residual: bool = False, activation: str = "silu") -> Case:
    """One entry's kernel for one kind of network; `residual` ones have a shift at every layer, too."""
    from fastscore_kernels import mlp_backward, mlp_forward

    operation, width, dim, precision = (entry[key] for key in ("operation", "width", "dim", "precision"))
    kernel = {
        "mlp_forward": mlp_forward.forward_kernel,
        "mlp_upper": mlp_backward.upper_kernel,
        "mlp_lower": mlp_backward.lower_kernel,
    }[operation]
    absent = _DEEP if depth == 1 else frozenset(("h1_ptr",)) if operation == "mlp_lower" else frozenset()
    absent |= frozenset() if depth == 1 or residual else _DIRECT | (_LAST if operation == "mlp_lower" else frozenset())
    absent |= frozenset() if residual else _SHIFTS
    options = dict(entry["options"])
    block = min(options.pop("BLOCK"), width)
    launch = {name: options.pop(name) for name in ("num_warps", "num_stages")}
    constants = {
        "D": dim,
        "H1": width,
        "H2": width if depth == 2 else 1,
        "PHI1": activation,
        "PHI2": activation,
        "PRECISION": precision,
        "ABOVE": block if depth == 2 else 16,
        "BELOW": block,
        **options,
    }
    pointers = [name for name in kernel.arg_names if name.endswith("_ptr") and name not in absent]
    return Case(
        name=f"{operation} {precision} H={width} D={dim} L={depth}{' residual' if residual else ''}",
        kernel=kernel,
        signature={**dict.fromkeys(pointers, "*fp32"), "n_rows": "i32"},
        constexprs={
            **{name: None for name in kernel.arg_names if name in absent},
            **{name: value for name, value in constants.items() if name in kernel.arg_names},
        },
        elements=options["ROWS"],
        aligned=tuple(pointers),
        options=launch,
    )


# What `mlp_lower` reads of the output's layer, where h_1 reaches the output directly.
_LAST = frozenset(("ds_ptr", "w3_t_ptr"))
