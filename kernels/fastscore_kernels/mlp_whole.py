"""Launchers for whole networks in one launch where no gradient is wanted: deeper traces, their estimates, and energies.

`evaluate` takes the arguments of `fastscore.ops.mlp_tiles` and the forms "tangents", "quadratic", "laplacian",
"curvature" and "slope", and writes nothing but values per sample. Gradients of large batches along probes of two
layers are taken one probe at a time by `mlp`, all others layer by layer (`mlp_layers`), by this count, for a trace of
three layers of H = 128:
64 samples' array of a layer takes 32 KB of the 256 KB of registers of a multiprocessor. Values need three, the slopes,
beside a factor and a sum. Gradients need three more, the sums over tangents of the gradients in the slopes, a tangent
and a cotangent to go back by, and the gradients of W_2 and W_3, twice 64 KB: 13 arrays' room where there are eight.
Written out for products elsewhere, the two factors of each weight's gradient are four passes over [B, D, H], of the
twelve that layers need.

Where all digits of float32 are to be kept, factors are sums of three bfloat16 ("bf16x6"): as exact as three products in
TF32, as fast, in three quarters of the shared memory, and split beforehand, so that weights need no registers.
"""

from typing import Any

import torch
import triton

from fastscore_kernels import mlp as mlp_on_chip
from fastscore_kernels import mlp_along, mlp_layers, philox, table
from fastscore_kernels.launch import device_of
from fastscore_kernels.mlp import ACTIVATIONS, precision
from fastscore_kernels.mlp_whole_forward import energy_kernel, trace_kernel

# Rows from which the gradient of estimates is taken probe by probe on chip. By count, not measured: a probe has some 25
# launches of some 5 us then, and spares twelve passes over [B, H], 2 ns a row of H = 128 at the 3 TB/s of an H100.
_MANY = 1 << 16

FAMILIES = {
    "tangents": "trace", "quadratic": "estimate", "laplacian": "energy", "slope": "energy", "curvature": "curvature"
}  # fmt: skip
"""The part of the launch table by form."""

_HEAVY = {
    "trace": {"sine": 5, "gelu_tanh": 6},
    "estimate": {"sine": 5, "gelu_tanh": 6},
    "energy": {"gelu_tanh": 3, "sine": 5, "softplus": 6, "softsign": 6},
    "curvature": {"gelu_tanh": 3, "gelu": 3, "softplus": 3, "sine": 3, "softsign": 5},
}
"""By family, activations that take too many registers, each with the number of layers from which on."""

_NARROW = 6
"""The number of layers from which on addresses of widths that are no multiple of 8 take too many."""


def supported(mlp: Any, x: torch.Tensor, narrow: bool, family: str) -> bool:
    """Whether these kernels serve a network: float32, and a tested launch for its sizes.

    The family is "trace" or "energy", or along probes "estimate" or "curvature".
    """
    known = x.dtype == torch.float32 and set(mlp.activations) <= ACTIVATIONS
    return known and fits(family, mlp.activations, mlp.widths) and options(mlp, x, narrow, family) is not None


def fits(family: str, activations: tuple[str, ...], widths: tuple[int, ...]) -> bool:
    """Whether activations and widths leave the registers that the table counts on; a few take more than the others."""
    depth = len(activations)
    even = depth < _NARROW or not any(width % 8 for width in widths)
    return even and all(depth < _HEAVY[family].get(activation, depth + 1) for activation in activations)


def options(mlp: Any, x: torch.Tensor, narrow: bool, family: str) -> dict[str, int] | None:
    """The launch of a network, by depth."""
    return table.options(f"{family}_{mlp.depth}", x.device, precision(x.device, narrow), max(mlp.widths), x.shape[1])


def evaluate(mlp: Any, x: torch.Tensor, shifts: Any, form: Any) -> tuple[torch.Tensor, ...]:
    """Score `[B, D]` and trace `[B, 1]` or forms `[B, K]`; or energy `[B, 1]`, score and what is asked of second order.

    That is the Laplacian `[B]`, forms `[B, K]`, or with "slope" nothing.
    """
    family = FAMILIES[form.kind]
    energy, along = family in ("energy", "curvature"), family in ("estimate", "curvature")
    narrow = mlp.weights[0].dtype == torch.bfloat16
    launch: Any = options(mlp, x, narrow, family)
    rounding = precision(x.device, narrow)
    weights, apart = [w.detach().contiguous() for w in mlp.weights], 0
    made: dict[str, Any] = {"energy_ptr": _empty(x, len(x), 1)} if energy else {}
    made["score_ptr"] = _empty(x, *x.shape)
    if form.kind != "slope":
        shape = {"energy": (), "trace": (1,)}.get(family, (form.columns,))
        made["laplacian_ptr" if energy else "trace_ptr"] = _empty(x, len(x), *shape)
    given: dict[str, Any] = {"x_ptr": x.contiguous(), "last_ptr": weights.pop(), **made}
    given["seeds_ptr"] = None if family == "estimate" else form.parameters[2].contiguous()
    if energy:
        given.setdefault("laplacian_ptr", None)
        given["squares_ptr"] = form.parameters[0] if form.kind == "laplacian" else None
        turned = tuple(w.t().contiguous() for w in weights[1:])
        given["turned"] = None if rounding in ("bf16", "tf32x3") else turned
    elif along:
        weights.append(form.parameters[-1].detach().t().contiguous())
    nothing = form.kind == "slope" or (form.kind == "laplacian" and mlp.depth == 1)
    seed, first = (form.noise.seed, form.noise.first) if along else (0, 0)
    key_low, key_high = philox.as_int32(seed, seed >> 32)
    factors = tuple(weights)
    if rounding == "tf32x3":
        factors, apart = _parts(weights)
    with device_of(x):
        (energy_kernel if energy else trace_kernel)[(triton.cdiv(len(x), launch["COLUMNS"]),)](
            **given,
            weights=factors,
            biases=tuple(None if b is None else b.detach().contiguous() for b in mlp.biases),
            shifts=tuple(None if u is None else u.contiguous() for u in shifts or (None,) * len(mlp.weights)),
            n_rows=len(x),
            first_chain=first,
            key_low=key_low,
            key_high=key_high,
            D=x.shape[1],
            K=0 if nothing else form.columns,
            PROBE=form.noise.kind if along else None,
            DEPTH=mlp.depth,
            WIDTHS=mlp.widths,
            PHIS=mlp.activations,
            RESIDUALS=mlp.residuals,
            PRECISION="bf16x6" if apart else rounding,
            APART=apart,
            **launch,
        )
    return tuple(made.values())


def differentiate(
    mlp: Any, x: torch.Tensor, shifts: Any, form: Any, upstream: Any, wanted: Any, scale: float, reads: bool
) -> dict[Any, torch.Tensor]:
    """Gradients of `sum(upstream * outputs)` in everything wanted, by key; `reads`: upstream looks at the outputs."""
    narrow = mlp.weights[0].dtype == torch.bfloat16
    dual = form.kind == "quadratic" and mlp.depth == 2 and not any(mlp.residuals) and len(x) >= _MANY
    dual = dual and mlp_on_chip.supported(mlp, x, narrow, "dual")
    ahead = reads and (dual or form.kind in mlp_along.KINDS)
    outputs = evaluate(mlp, x, shifts, form) if ahead else None
    module = mlp_on_chip if dual else mlp_layers
    return module.differentiate(mlp, x, shifts, form, upstream, wanted, scale, reads, outputs)


def _parts(weights: list[torch.Tensor]) -> tuple[tuple[torch.Tensor, ...], int]:
    """The largest of the three bfloat16 that each weight is the sum of, and how far behind it lie the others."""
    flat = torch.cat([w.flatten() for w in weights])
    high = flat.bfloat16()
    middle = (flat - high).bfloat16()
    parts = torch.stack((high, middle, (flat - high - middle).bfloat16()))
    return tuple(parts[0].split([w.numel() for w in weights])), len(flat)


def _empty(like: torch.Tensor, *shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device)
