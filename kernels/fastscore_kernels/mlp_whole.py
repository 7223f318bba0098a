"""Launchers for whole networks in one launch where no gradient is wanted: deeper traces, their estimates, and energies.

`evaluate` takes the arguments of `fastscore.ops.mlp_tiles` and the forms "tangents", "quadratic" and "laplacian", and
writes nothing but values per sample. `differentiate` is that of `mlp_layers`, by this count, for a trace of three
layers of H = 128:
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

from fastscore_kernels import mlp_layers, philox, table
from fastscore_kernels.launch import device_of
from fastscore_kernels.mlp import ACTIVATIONS, precision
from fastscore_kernels.mlp_whole_forward import energy_kernel, trace_kernel

differentiate = mlp_layers.differentiate


def supported(mlp: Any, x: torch.Tensor, narrow: bool, family: str) -> bool:
    """Whether these kernels serve a network: float32, and a tested launch for its sizes.

    The family is "trace", "estimate" (along probes) or "energy".
    """
    known = x.dtype == torch.float32 and set(mlp.activations) <= ACTIVATIONS
    return known and fits(family, mlp.activations) and options(mlp, x, narrow, family) is not None


def fits(family: str, activations: tuple[str, ...]) -> bool:
    """Whether activations leave the registers that the table counts on; a few take more than the others."""
    heavy, depth = ("gelu_tanh", 3) if family == "energy" else ("sine", 5)
    return heavy not in activations or len(activations) < depth


def options(mlp: Any, x: torch.Tensor, narrow: bool, family: str) -> dict[str, int] | None:
    """The launch of a network, by depth."""
    return table.options(f"{family}_{mlp.depth}", x.device, precision(x.device, narrow), max(mlp.widths), x.shape[1])


def evaluate(mlp: Any, x: torch.Tensor, shifts: Any, form: Any) -> tuple[torch.Tensor, ...]:
    """Score `[B, D]` and trace `[B, 1]` or forms `[B, K]`; or energy `[B, 1]`, score and Laplacian `[B]`."""
    family = {"laplacian": "energy", "quadratic": "estimate", "tangents": "trace"}[form.kind]
    energy, narrow = family == "energy", mlp.weights[0].dtype == torch.bfloat16
    launch: Any = options(mlp, x, narrow, family)
    rounding = precision(x.device, narrow)
    weights, apart = [w.detach().contiguous() for w in mlp.weights], 0
    score = _empty(x, *x.shape)
    given: dict[str, Any] = {"score_ptr": score, "x_ptr": x.contiguous(), "last_ptr": weights.pop()}
    given["seeds_ptr"] = None if family == "estimate" else form.parameters[2].contiguous()
    if energy:
        total = _empty(x, len(x))
        out, kernel = _empty(x, len(x), 1), energy_kernel
        given |= {"energy_ptr": out, "laplacian_ptr": total, "squares_ptr": form.parameters[0]}
        turned = tuple(w.t().contiguous() for w in weights[1:])
        given["turned"] = None if rounding in ("bf16", "tf32x3") else turned
    else:
        estimate = family == "estimate"
        total, kernel = _empty(x, len(x), form.columns if estimate else 1), trace_kernel
        seed, first = (form.noise.seed, form.noise.first) if estimate else (0, 0)
        key_low, key_high = philox.as_int32(seed, seed >> 32)
        given |= {"trace_ptr": total, "first_chain": first, "key_low": key_low, "key_high": key_high}
        given |= {"K": form.columns, "PROBE": form.noise.kind if estimate else None}
        weights += [form.parameters[-1].detach().t().contiguous()] if estimate else []
    factors = tuple(weights)
    if rounding == "tf32x3":
        factors, apart = _parts(weights)
    with device_of(x):
        kernel[(triton.cdiv(len(x), launch["COLUMNS"]),)](
            **given,
            weights=factors,
            biases=tuple(None if b is None else b.detach().contiguous() for b in mlp.biases),
            shifts=tuple(None if u is None else u.contiguous() for u in shifts or (None,) * len(mlp.weights)),
            n_rows=len(x),
            D=x.shape[1],
            DEPTH=mlp.depth,
            WIDTHS=mlp.widths,
            PHIS=mlp.activations,
            RESIDUALS=mlp.residuals,
            PRECISION="bf16x6" if apart else rounding,
            APART=apart,
            **launch,
        )
    return (out, score, total) if energy else (score, total)


def _parts(weights: list[torch.Tensor]) -> tuple[tuple[torch.Tensor, ...], int]:
    """The largest of the three bfloat16 that each weight is the sum of, and how far behind it lie the others."""
    flat = torch.cat([w.flatten() for w in weights])
    high = flat.bfloat16()
    middle = (flat - high).bfloat16()
    parts = torch.stack((high, middle, (flat - high - middle).bfloat16()))
    return tuple(parts[0].split([w.numel() for w in weights])), len(flat)


def _empty(like: torch.Tensor, *shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device)
