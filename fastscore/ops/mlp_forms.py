"""Functionals of a network's slopes, tile by tile, each with its gradient: traces, quadratic forms, Laplacians.

With `d_l = phi_l'(z_l)` and `A_l = diag(d_l) W_l + r_l I`, the Jacobian `W_{L+1} A_L ... A_2 diag(d_1) W_1` depends on
the sample only through the slopes. What does not depend on it (products of weights) is formed once a call, by ordinary
differentiable torch, as the `parameters` of a form; `value` and `pullback` see one tile at a time
(`fastscore.ops.mlp_tile.Form`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fastscore.ops import mlp_passes
from fastscore.ops._cpu import matmul
from fastscore.ops._cpu_program import Noise
from fastscore.ops.mlp_scratch import Scratch
from fastscore.ops.mlp_tile import Form, Gradients
from fastscore.reference.mlp import MLP
from fastscore.reference.philox import Stream

Jets = list[tuple[Tensor, ...]]


def _weighted(array: Tensor, weights: Tensor | None, scratch: Scratch, out: Tensor | None = None) -> Tensor:
    """Multiply as many equal parts of `array` as there are weights by theirs, in place where there is no `out`."""
    if weights is None and out is None:
        return array
    out = array if out is None else out
    parts = len(array) if weights is None else weights.numel()
    factors = 1.0 if weights is None else weights.reshape(-1, 1)
    mlp_passes.mix(out.view(parts, -1), array.view(parts, -1), None, scratch, left=factors)
    return out


@dataclass(frozen=True)
class Draw:
    """How to draw probes: `rows(slice)` gives those of some rows, `[n, count, D]`; all are a function of the noise."""

    rows: Callable[[slice], Tensor]
    count: int
    noise: Noise


class Drawing(Protocol):
    """A form that draws probes."""

    columns: int
    noise: Noise | None
    probes: Callable[[slice], Tensor]


def drawn(form: Drawing, rows: slice, dim: int, scratch: Scratch) -> Tensor:
    """The probes of some rows, `[n, K, D]`."""
    if scratch.recorder is None:
        return form.probes(rows)
    assert form.noise is not None
    return scratch.recorder.draw(form.noise.kind, form.columns, dim, int(Stream.PROBES))


class Value(Form):
    """The form of a network of which nothing but its output is asked."""

    kind, order, recorded = "value", 0, True

    def value(self, rows: slice, jets: Jets, scratch: Scratch) -> tuple[()]:
        """Nothing."""
        return ()

    def pullback(
        self, upstream: tuple[Tensor | None, ...], jets: Jets, scratch: Scratch, sums: Gradients
    ) -> tuple[list[Tensor], None]:
        """No gradients."""
        return [], None


class Bilinear(Form):
    """The trace for one and two hidden layers.

    `tr(C J) = d_1 . c` for L = 1 and `d_2' M d_1 (+ d_1 . c where layer 2 is residual)` for L = 2, with
    `(W_1 C W_{L+1})' = N`, `c = diag N` and `M = W_2 * N`: one product `[B, H_1] x [H_1, H_2]` whatever D.
    """

    kind, widths, recorded = "bilinear", (1,), True

    def __init__(self, mlp: MLP, first: Tensor) -> None:
        loop = mlp.weights[-1].t() @ first.t()
        self.parameters: tuple[Tensor, ...] = ()
        if mlp.depth == 2:
            self.parameters += (mlp.weights[1] * loop,)
        if mlp.depth == 1 or mlp.residuals[1]:
            self.parameters += (loop.diagonal().contiguous(),)
        self.deep, self.direct = mlp.depth == 2, mlp.depth == 1 or mlp.residuals[1]

    def value(self, rows: slice, jets: Jets, scratch: Scratch) -> tuple[Tensor, ...]:
        """Return the trace `[n, 1]`."""
        slope, count = jets[0][1], len(jets[0][1])
        if self.direct:
            total = matmul(slope, self.parameters[-1].unsqueeze(1), scratch("direct", count, 1))
        if self.deep:
            self.carried = matmul(slope, self.parameters[0].t(), scratch("carried", *jets[1][1].shape))
            deep = mlp_passes.row_products(self.carried, jets[1][1], scratch).unsqueeze(1)
            total = mlp_passes.mix(total, total, deep, scratch) if self.direct else deep
        return (total,)

    def pullback(
        self, upstream: tuple[Tensor | None, ...], jets: Jets, scratch: Scratch, sums: Gradients
    ) -> tuple[list[Tensor], list[Tensor] | None]:
        """`dd_2 = g M d_1`, `dd_1 = (g d_2)' M + g c`, `dM = (g d_2)' d_1`, `dc = g' d_1`."""
        (g,) = upstream
        slope = jets[0][1]
        below = scratch("dslope0", *slope.shape)
        if self.direct:
            sums.total(("form", len(self.parameters) - 1), slope, g)
            _weighted(self.parameters[-1].expand_as(slope), g, scratch, below)
        if not self.deep:
            return [below], None
        above = _scaled(jets[1][1], g, scratch)
        sums.product(("form", 0), above, slope)
        through = matmul(above, self.parameters[0], scratch("dslope1", *slope.shape))
        if self.direct:
            mlp_passes.mix(through, through, below, scratch)
        return [through, _weighted(self.carried, g, scratch)], None


def _scaled(slope: Tensor, weights: Tensor | None, scratch: Scratch) -> Tensor:
    """The slope times the weights of its rows, elsewhere."""
    return slope if weights is None else _weighted(slope, weights, scratch, scratch("scaled", *slope.shape))


def _add(array: Tensor, other: Tensor, scratch: Scratch) -> None:
    """Add in place."""
    rows = array.flatten(0, -2)
    mlp_passes.mix(rows, rows, other.flatten(0, -2), scratch)


def _carry(tangents: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    """`T W` for `[n, K, H]` tangents: one matrix product over all of them."""
    return matmul(tangents.flatten(0, 1), weight, out.view(-1, out.shape[-1])).view(out.shape)


class Tangents(Form):
    """The trace for three and more hidden layers: D tangents that meet the cotangents below the last layer.

    The first layer's tangents are `d_1` times the shared `W_1 C`, so `Q_2 = W_2 diag(d_1) W_1 C` of all D is one
    product `[B, H_1] x [H_1, D H_2]`, and so is the last layer's `P = W_{L+1} A_L`. Between them `T_l = A_l T_{l-1}`;
    `tr(C J) = sum_d P[d] . T_{L-1}[d]`. As many products as for tangents carried to the end, and less to move.
    """

    kind, widths = "tangents", (1,)

    def __init__(self, mlp: MLP, first: Tensor) -> None:
        last = mlp.weights[-1]
        self.columns, self.residuals, self.meet = mlp.dim, mlp.residuals, mlp.depth - 2
        self.recorded = not any(mlp.residuals)
        inward = first.t().unsqueeze(1) * mlp.weights[1]  # [D, H_2, H_1]
        outward = last.unsqueeze(1) * mlp.weights[-2].t()  # [D, H_{L-1}, H_L]
        self.parameters = (
            inward.flatten(0, 1),
            outward.flatten(0, 1),
            first.t().contiguous(),
            last,
            *mlp.weights[2 : mlp.depth - 1],
        )

    def value(self, rows: slice, jets: Jets, scratch: Scratch) -> tuple[Tensor, ...]:
        """Return the trace `[n, 1]`."""
        inward, outward, first, last, *middle = self.parameters
        count, columns = len(jets[0][1]), self.columns
        self.below: list[Tensor | None] = [None]  # T_{l-1} of layer l
        if self.residuals[1]:
            self.below[0] = torch.mul(jets[0][1].unsqueeze(1), first, out=scratch("T0", count, *first.shape))
        carried = matmul(jets[0][1], inward.t(), scratch("Q1", count, len(inward))).view(count, columns, -1)
        self.carried = [carried]  # Q_l of layers 1 to meet
        for layer, weight in enumerate(middle, 2):
            room = scratch(f"T{layer - 1}", *carried.shape)
            tangents = mlp_passes.spread(carried, jets[layer - 1][1], room, scratch)
            if self.residuals[layer - 1]:
                tangents.add_(self.below[-1])  # type: ignore[arg-type]
            self.below.append(tangents)
            carried = _carry(tangents, weight.t(), scratch(f"Q{layer}", count, columns, len(weight)))
            self.carried.append(carried)
        self.cotangents = matmul(jets[-1][1], outward.t(), scratch("P", count, len(outward))).view(carried.shape)
        if self.residuals[-1]:
            self.cotangents.add_(last)
        self.met = mlp_passes.contract(self.cotangents, carried, "met", scratch)
        total = mlp_passes.row_products(self.met, jets[self.meet][1], scratch)
        if self.residuals[self.meet]:
            total = total + (self.cotangents * self.below[-1]).sum((1, 2))  # type: ignore[operator]
        return (total.unsqueeze(1),)

    def pullback(
        self, upstream: tuple[Tensor | None, ...], jets: Jets, scratch: Scratch, sums: Gradients
    ) -> tuple[list[Tensor], list[Tensor] | None]:
        """Up from the meeting point through P, then down through the tangents."""
        (g,) = upstream
        slopes = [jet[1] for jet in jets]
        gradients = list(slopes)
        inward, outward, first, _, *middle = self.parameters
        layer, cotangents, carried = self.meet, self.cotangents, self.carried[-1]
        gradients[layer] = _weighted(self.met, g, scratch)
        residual = None  # the gradient in T_l that goes straight to T_{l-1}
        if self.residuals[layer]:
            residual = _weighted(cotangents, g, scratch, scratch("dT", *cotangents.shape))
        scaled = _scaled(slopes[layer], g, scratch)
        mlp_passes.spread(cotangents, scaled, cotangents, scratch)  # dQ
        if self.residuals[layer]:
            mlp_passes.spread(carried, slopes[layer], carried, scratch).add_(self.below[-1])  # type: ignore[arg-type]
            _weighted(carried, g, scratch)
        else:
            mlp_passes.spread(carried, scaled, carried, scratch)  # dP

        flat = carried.view(len(carried), -1)
        gradients[-1] = matmul(flat, outward, scratch("dslope_last", *slopes[-1].shape))
        sums.product(("form", 1), flat, slopes[-1])
        if self.residuals[-1]:
            sums.total(("form", 3), carried)

        change = cotangents
        while layer > 1:
            tangents, weight = self.below[layer - 1], middle[layer - 2]
            assert tangents is not None
            sums.product(("form", layer + 2), change.flatten(0, 1), tangents.flatten(0, 1))
            arriving = _carry(change, weight, scratch(f"dT{layer % 2}", *tangents.shape))
            if residual is not None:
                arriving.add_(residual)
            layer -= 1
            gradients[layer] = mlp_passes.contract(arriving, self.carried[layer - 1], f"dslope{layer}", scratch)
            residual = arriving if self.residuals[layer] else None
            change = mlp_passes.spread(arriving, slopes[layer], scratch("dQ", *arriving.shape), scratch)

        flat = change.view(len(change), -1)
        gradients[0] = matmul(flat, inward, scratch("dslope0", *slopes[0].shape))
        sums.product(("form", 0), flat, slopes[0])
        if residual is not None:
            gradients[0].add_(mlp_passes.contract(residual, first, "dslope_first", scratch))
            sums.total(("form", 2), residual.mul_(slopes[0].unsqueeze(1)))
        return gradients, None


class Quadratic(Form):
    """Hutchinson's `v_k' C J v_k` of K probes: the tangents `T_1 = d_1 * W_1 v`, carried through the layers once.

    The probes are a function of the rows, made anew for a tile and never kept. Kernels make them of their `source`: its
    seed, kind and first sample.
    """

    kind, recorded = "quadratic", True

    def __init__(self, mlp: MLP, last: Tensor, probes: Draw) -> None:
        self.columns, self.residuals, self.probes = probes.count, mlp.residuals, probes.rows
        self.noise, self.widths = probes.noise, (probes.count,)
        self.parameters = (*mlp.weights[:-1], last)

    def value(self, rows: slice, jets: Jets, scratch: Scratch) -> tuple[Tensor, ...]:
        """Return the quadratic forms `[n, K]`."""
        first, *middle, last = self.parameters
        self.drawn = drawn(self, rows, first.shape[1], scratch)
        count, columns = self.drawn.shape[:2]
        entering = _carry(self.drawn, first.t(), scratch("Q0", count, columns, len(first)))
        self.carried = [entering]  # Q_l = W_l T_{l-1}; W_1 v for the first layer
        self.tangents = [mlp_passes.spread(entering, jets[0][1], scratch("T0", *entering.shape), scratch)]
        for layer, weight in enumerate(middle, 1):
            carried = _carry(self.tangents[-1], weight.t(), scratch(f"Q{layer}", count, columns, len(weight)))
            tangents = mlp_passes.spread(carried, jets[layer][1], scratch(f"T{layer}", *carried.shape), scratch)
            if self.residuals[layer]:
                _add(tangents, self.tangents[-1], scratch)
            self.carried.append(carried)
            self.tangents.append(tangents)
        self.leaving = _carry(self.drawn, last, scratch("P", count, columns, last.shape[1]))
        met = mlp_passes.row_products(self.leaving.flatten(0, 1), self.tangents[-1].flatten(0, 1), scratch)
        return (met.view(count, columns),)

    def pullback(
        self, upstream: tuple[Tensor | None, ...], jets: Jets, scratch: Scratch, sums: Gradients
    ) -> tuple[list[Tensor], list[Tensor] | None]:
        """`dT_L = g W_{L+1}' v`, and down: `dd_l = sum_k dT_l Q_l`, `dQ_l = d_l dT_l`, `dT_{l-1} = W_l' dQ_l`."""
        (g,) = upstream
        weights, depth = self.parameters, len(jets)
        drawn = self.drawn
        if g is not None:
            drawn = _weighted(drawn, g, scratch, scratch("weighted", *drawn.shape))
        arriving = _weighted(self.leaving, g, scratch)
        sums.product(("form", depth), drawn.flatten(0, 1), self.tangents[-1].flatten(0, 1))
        gradients: list[Tensor] = []
        for layer in range(depth - 1, -1, -1):
            gradients.insert(0, mlp_passes.contract(arriving, self.carried[layer], f"dslope{layer}", scratch))
            straight = arriving if self.residuals[layer] else None
            room = arriving if straight is None else scratch("dQ", *arriving.shape)
            change = mlp_passes.spread(arriving, jets[layer][1], room, scratch)
            before = self.tangents[layer - 1] if layer else self.drawn
            sums.product(("form", layer), change.flatten(0, 1), before.flatten(0, 1))
            if layer:
                arriving = _carry(change, weights[layer], scratch(f"dT{layer % 2}", *before.shape))
                if straight is not None:
                    _add(arriving, straight, scratch)
        return gradients, None
