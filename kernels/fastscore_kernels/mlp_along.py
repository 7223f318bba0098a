"""Energies layer by layer (`mlp_layers`) where D tangents are too many: their score, and second derivatives on probes.

    "slope"      -grad E, the adjoint of the energy
    "curvature"  the same, and v_k' H v_k of the probes, H = d2E/dx2, which come up with one tangent each

With u the gradient of a loss in the score, and g_k in the forms, what is to be differentiated is

    u . s + sum_k g_k v_k' H v_k = -dE/du + sum_k g_k d2E/dv_k2,

derivatives of the energy along K + 1 directions: jets with as many tangents give them in one pass up, whose adjoint is
one pass down. Neither u nor v depends on the network.
"""

from typing import Any, NamedTuple

import torch

from fastscore_kernels.jet_layers import Jet
from fastscore_kernels.mlp_ascent import Along, up
from fastscore_kernels.mlp_descent import Descent, Gradients

KINDS = frozenset(("slope", "curvature"))


class Plain(NamedTuple):
    """No form at all, for `up`: the energy alone."""

    kind: str = "value"


def values(mlp: Any, x: torch.Tensor, shifts: Any, form: Any, rows: slice) -> tuple[torch.Tensor, ...]:
    """Energy `[n, 1]`, score `[n, D]` and for "curvature" the forms `[n, K]` of some samples, given as their own."""
    here, plain, one = slice(0, len(x)), Plain(), x.new_ones(len(x), 1)
    probes = () if form.kind == "slope" else form.probes(rows).split(1, 1)
    asked: list[Any] = [Along(_parameters(form), v, one) for v in probes] or [plain]
    tapes = [up(mlp, x, shifts, each, here, kept=at == 0) for at, each in enumerate(asked)]
    first, on_x = tapes[0], torch.empty(x.shape, dtype=x.dtype, device=x.device)
    energy = first._replace(z=[Jet(z.value) for z in first.z], probes=None, p=None, met=None)
    Descent(mlp, shifts, plain, here, energy, {("x", 0): on_x}).run(torch.ones_like(first.out), (), 1.0)
    forms = (torch.stack([tape.values[1] for tape in tapes], 1),) if probes else ()
    return first.out, on_x.neg_(), *forms


def descend(
    mlp: Any,
    x: torch.Tensor,
    shifts: Any,
    form: Any,
    rows: slice,
    upstream: tuple[torch.Tensor | None, tuple[torch.Tensor, ...]],
    gradients: Gradients,
) -> None:
    """Add some samples' gradients to those of the batch, from gradients in the energy, the score and the forms."""
    on_energy, (on_score, *on_forms) = upstream
    directions, minus = on_score.unsqueeze(1), x.new_full((len(x), 1), -1.0)
    along = Along(_parameters(form), directions, None)
    if on_forms:
        g, nothing = on_forms[0], torch.zeros_like(minus)
        directions = torch.cat((form.probes(rows).to(x), directions), 1)
        along = Along(along.parameters, directions, torch.cat((g, nothing), 1))
        minus = torch.cat((torch.zeros_like(g), minus), 1)
    here, depth = slice(0, len(x)), mlp.depth
    mine = {key: g[rows] if key[0] in ("x", "shift") else g for key, g in gradients.items() if key[0] != "form"}
    for at, where in enumerate((2, *range(4, depth + 3), 3)):
        if ("form", where) in gradients:
            found = gradients["form", where]
            mine["form", at] = found if at else found.t()
    Descent(mlp, shifts, along, here, up(mlp, x, shifts, along, here, kept=True), mine).run(on_energy, (minus,), 1.0)


def _parameters(form: Any) -> tuple[torch.Tensor, ...]:
    """W_1 to W_L and w, of a form that has W_1' third, w fourth and the others after it."""
    _, _, first, last, *middle = form.parameters
    return (first.t(), *middle, last)
