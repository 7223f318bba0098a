"""Networks layer by layer (`mlp_layers`): up, from samples to the output and the form."""

from typing import Any, NamedTuple, cast

import torch

from fastscore_kernels.jet_layers import Jet, Layer, ascend
from fastscore_kernels.products import product


class Tape(NamedTuple):
    """What some samples left on their way up."""

    below: list[Jet]
    """The jets under each layer; the last is on top."""
    z: list[Jet]
    slopes: dict[int, torch.Tensor]
    """d of the layers whose d enters a product."""
    probes: torch.Tensor | None
    p: torch.Tensor | None
    """The weights of the form."""
    met: torch.Tensor | None
    """The tangents that the form was taken of."""
    out: torch.Tensor
    values: tuple[torch.Tensor, ...]


class Along(NamedTuple):
    """A form for `up`: derivatives of an energy along directions of its samples, and a sum of second derivatives."""

    parameters: tuple[torch.Tensor, ...]
    """W_1 to W_L, and w."""
    directions: torch.Tensor
    """`[n, K, D]`."""
    coefficients: torch.Tensor | None
    """`[n, K]`, of the second derivatives along each; None: there is no such sum."""
    kind: str = "along"


def layer_of(mlp: Any, shifts: Any, form: Any, rows: slice, at: int) -> Layer:
    """A hidden layer of some samples, beyond its product."""
    u = shifts[at] if shifts else None
    squares = form.parameters[0] if form.kind == "laplacian" and at == 0 else None
    bias = mlp.biases[at]
    return Layer(
        mlp.activations[at],
        None if bias is None else bias.contiguous(),
        None if u is None else u[rows].contiguous(),
        squares,
        form.coefficients if form.kind == "along" else None,
    )


def meeting(mlp: Any, form: Any) -> int:
    """The layer at which the form is taken."""
    return mlp.depth - (2 if form.kind == "tangents" else 1)


def middle(form: Any, at: int) -> int:
    """The parameter by which tangents (a Laplacian) enter layer `at`."""
    return {"quadratic": at, "along": at, "tangents": at + 2, "laplacian": at + 3}[form.kind]


def up(mlp: Any, x: torch.Tensor, shifts: Any, form: Any, rows: slice, *, kept: bool) -> Tape:
    """All layers of some samples, and the form; `kept` for a way down."""
    kind, last, at_form = form.kind, mlp.depth - 1, meeting(mlp, form)
    late, dtype = kind == "tangents", mlp.weights[0].dtype
    probes = weights = None
    if kind == "quadratic":
        probes = form.probes(rows).to(dtype)
        weights = probes @ form.parameters[-1]
    elif kind == "along":
        probes = form.directions.to(dtype)
    if kind in ("along", "laplacian"):
        weights = form.parameters[-1 if kind == "along" else 3][0].contiguous()
    entering = () if probes is not None or kind == "value" else (0, last) if late else (0,)
    jet, forms = Jet(x.to(dtype)), cast(Any, None)
    below: list[Jet] = []
    zs: list[Jet] = []
    slopes: dict[int, torch.Tensor] = {}
    for at in range(mlp.depth):
        layer = layer_of(mlp, shifts, form, rows, at)
        z = _carried(mlp, form, at, jet, slopes, probes)
        here = at == at_form and z.tangents is not None and not late
        if at == 1 and mlp.residuals[1] and kind in ("tangents", "laplacian"):
            jet = jet._replace(tangents=slopes[0].unsqueeze(1) * form.parameters[2])
        under = jet if mlp.residuals[at] else None
        below.append(jet)
        zs.append(z)
        rest = z._replace(tangents=None) if late and at == at_form else z
        jet, d, found = ascend(
            layer, rest, under, slope=at in entering, tangents=kept or not here, form=here,
            weights=weights if here else None,
        )  # fmt: skip
        forms = found if here else forms
        if d is not None:
            slopes[at] = d
    below.append(jet)
    met = jet.tangents
    if late:
        weights = (slopes[last] @ form.parameters[1].t()).view(len(x), *form.parameters[3].shape[:1], -1)
        if mlp.residuals[last]:
            weights += form.parameters[3]
        under = below[at_form] if mlp.residuals[at_form] else None
        layer = layer_of(mlp, shifts, form, rows, at_form)
        top, _, forms = ascend(layer, zs[at_form], under, value=False, tangents=kept, form=True, weights=weights)
        met = top.tangents
    out = _linear(mlp.weights[-1], jet.value, mlp.biases[-1], shifts[-1] if shifts else None, rows)
    if kind == "quadratic":
        values: tuple[torch.Tensor, ...] = (forms,)
    elif kind == "along":
        values = (forms,)
        if jet.laplacian is not None:
            values = (forms, product(jet.laplacian, form.parameters[-1].t()).squeeze(1))
    elif kind == "laplacian":
        if forms is None:
            forms = product(slopes[0] * form.parameters[3], form.parameters[2].t())
        values = (-forms, product(cast(torch.Tensor, jet.laplacian), form.parameters[3].t()).squeeze(1))
    elif kind == "value":
        values = ()
    else:
        total = x.new_zeros(len(x)) if forms is None else forms.sum(1)
        direct = kind == "bilinear" and form.direct
        values = (total.unsqueeze(1),)
        if direct:
            values = (values[0] + product(slopes[0], form.parameters[-1].unsqueeze(1)),)
    return Tape(below, zs, slopes, probes, weights, met, out, values)


def _linear(weight: Any, h: Any, bias: Any, shift: Any, rows: slice) -> torch.Tensor:
    out = product(h, weight.t())
    for term in (bias, None if shift is None else shift[rows]):
        out = out if term is None else out.add_(term)
    return out


def _carried(mlp: Any, form: Any, at: int, jet: Jet, slopes: dict[int, torch.Tensor], probes: Any) -> Jet:
    """The jet of a layer's matrix product, without bias and shift."""
    z, kind = jet.value @ mlp.weights[at].t(), form.kind
    laplacian = None if jet.laplacian is None else jet.laplacian @ form.parameters[middle(form, at)].t()
    if probes is not None:
        return Jet(z, (probes if at == 0 else jet.tangents) @ form.parameters[at].t(), laplacian)
    if kind == "value" or at == 0 or at > meeting(mlp, form):
        return Jet(z)
    if at == 1:
        inward = form.parameters[1 if kind == "laplacian" else 0]
        return Jet(z, (slopes[0] @ inward.t()).view(len(z), form.columns, -1), laplacian)
    assert jet.tangents is not None
    return Jet(z, jet.tangents @ form.parameters[middle(form, at)].t(), laplacian)
