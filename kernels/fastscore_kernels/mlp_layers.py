"""Networks of any depth and width, layer by layer: products of the BLAS on jets, and one launch between two of them.

For what no kernel holds on chip: gradients of estimates, of the trace of three and more hidden layers and of
energies (`mlp_whole` has their values), and wide networks. `evaluate` and `differentiate` take the arguments of
`fastscore.ops.mlp_tiles` and do the same sums, with the parameters of the same forms (`fastscore.ops.mlp_forms`,
`mlp_laplacian`), which they know by their `kind`:

    "quadratic"  zd_1 = W_1 v;                       the form v'C W_{L+1} hd_L at the last layer
    "tangents"   zd_2 = W_2 diag(d_1) W_1 C of all D; meets the cotangents P = W_{L+1} A_L at the last layer but one
    "bilinear"   zd_2 = M d_1, one column;           its sum at the last layer, and d_1 . c
    "value"      no tangents
    "laplacian"  zd_2 as above, hl_1 = e_1 * |W_1|^2; the gradient w'hd_L and the Laplacian w'hl_L
    "slope", "curvature"  derivatives of an energy along directions: `mlp_along`

Weights of bfloat16 make jets of bfloat16 with sums and outputs in float32. What a gradient needs is kept for one chunk
of the batch, so that memory does not grow with it.
"""

from typing import Any

import torch

from fastscore_kernels import mlp_along
from fastscore_kernels.mlp import ACTIVATIONS
from fastscore_kernels.mlp_ascent import up
from fastscore_kernels.mlp_descent import Descent, Gradients
from fastscore_kernels.products import totals

# Elements of a chunk's largest array, the tangents of a layer: 32 MB in float32, of which a layer keeps two.
_CHUNK = 1 << 23


def supported(mlp: Any, x: torch.Tensor, narrow: bool, family: str) -> bool:
    """Whether these kernels serve a network: any family, float32 (its products narrower or not), known activations."""
    return x.dtype == torch.float32 and set(mlp.activations) <= ACTIVATIONS


def rows(mlp: Any, columns: int) -> int:
    """How many samples are worked on at a time."""
    return max(1, _CHUNK // (max(*mlp.widths, mlp.dim) * columns))


def evaluate(mlp: Any, x: torch.Tensor, shifts: Any, form: Any) -> tuple[torch.Tensor, ...]:
    """The network's output and the form's values."""
    done: list[tuple[torch.Tensor, ...]] = []
    for part in _chunks(mlp, x, form):
        if form.kind in mlp_along.KINDS:
            done.append(mlp_along.values(mlp, x[part], _of(shifts, part), form, part))
        else:
            tape = up(mlp, x[part], shifts, form, part, kept=False)
            done.append((tape.out, *tape.values))
    return tuple(done[0] if len(done) == 1 else map(torch.cat, zip(*done, strict=True)))


def differentiate(
    mlp: Any,
    x: torch.Tensor,
    shifts: Any,
    form: Any,
    upstream: Any,
    wanted: Any,
    scale: float,
    reads: bool,
    outputs: tuple[torch.Tensor, ...] | None = None,
) -> Gradients:
    """Gradients of `sum(upstream * outputs)` in everything wanted, by key; `reads`: upstream looks at the outputs.

    If the outputs are there already, a form that does not make them on the way takes them.
    """
    gradients = totals(wanted)
    along = form.kind in mlp_along.KINDS
    if along and reads and outputs is None:
        outputs = evaluate(mlp, x, shifts, form)
    for part in _chunks(mlp, x, form):
        if along:
            out, *values = (None, None) if outputs is None else (values[part] for values in outputs)
            above = upstream(part, out, tuple(values))
            mlp_along.descend(mlp, x[part], _of(shifts, part), form, part, above, gradients)
        else:
            tape = up(mlp, x[part], shifts, form, part, kept=True)
            on_out, on_values = upstream(part, tape.out, tape.values)
            Descent(mlp, shifts, form, part, tape, gradients).run(on_out, on_values, scale)
    return gradients


def _of(shifts: Any, rows: slice) -> Any:
    """The shifts of some samples."""
    return tuple(None if u is None else u[rows] for u in shifts or ())


def _chunks(mlp: Any, x: torch.Tensor, form: Any) -> list[slice]:
    size = rows(mlp, form.columns)
    return [slice(start, min(start + size, len(x))) for start in range(0, len(x), size)]
