"""Hutchinson's estimate of an energy network's Laplacian as a form: second derivatives along probes, tile by tile."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastscore.ops import mlp_passes
from fastscore.ops.mlp_forms import Jets, _carry
from fastscore.ops.mlp_laplacian import Laplacian
from fastscore.ops.mlp_scratch import Scratch
from fastscore.ops.mlp_tile import Gradients
from fastscore.reference.mlp import MLP


class Curvature(Laplacian):
    """`-grad E` and `v_k' H v_k = sum_l a_l . (c_l * Q_l[k]^2)`, `H = d2E/dx2`, of K probes.

    As the Laplacian, with the probes for the unit vectors: `Q_1 = W_1 v`, `T_l = d_l Q_l + r_l T_{l-1}`,
    `Q_{l+1} = W_{l+1} T_l`. The probes are a function of the rows, made anew for a tile and never kept.
    """

    def __init__(self, mlp: MLP, probes: Callable[[slice], Tensor], columns: int) -> None:
        first = mlp.weights[0]
        self.columns, self.residuals, self.probes = columns, mlp.residuals, probes
        nothing = first.detach()[:0]  # what the Laplacian makes of the unit vectors
        self.parameters = (nothing, nothing, first.t().contiguous(), mlp.weights[-1], *mlp.weights[1:-1])

    def value(self, rows: slice, jets: Jets, scratch: Scratch) -> tuple[Tensor, ...]:
        """Return the score `[n, D]` and the quadratic forms `[n, K]`."""
        _, _, first, _, *middle = self.parameters
        score, self.drawn = self._score(jets, scratch), self.probes(rows)
        tangents, total = self.drawn, score.new_zeros(self.drawn.shape[:2])
        self.carried, self.tangents = [], []
        for layer, (adjoint, jet) in enumerate(zip(self.adjoints, jets, strict=True)):
            room = scratch(f"Q{layer}", *self.drawn.shape[:2], jet[1].shape[1])
            carried = _carry(tangents, middle[layer - 1].t() if layer else first, room)
            bend = torch.mul(adjoint, jet[2], out=scratch("product2", *jet[2].shape)).unsqueeze(1)
            total += torch.mul(carried, carried, out=scratch("product3", *carried.shape)).mul_(bend).sum(2)
            self.carried.append(carried)
            if layer + 1 < len(jets):
                below, room = tangents, scratch(f"T{layer}", *carried.shape)
                tangents = torch.mul(carried, jet[1].unsqueeze(1), out=room)
                self.tangents.append(tangents.add_(below) if self.residuals[layer] else tangents)
        return score, total

    def pullback(
        self, upstream: tuple[Tensor | None, ...], jets: Jets, scratch: Scratch, sums: Gradients
    ) -> tuple[list[Tensor], list[Tensor] | None]:
        """Back through the sum over layers, down the tangents, and up the adjoints with what the score adds.

        With `n_l = sum_k g_k Q_l[k]^2`: `da_l = c_l n_l`, `dc_l = a_l n_l`, and
        `dQ_l[k] = 2 g_k a_l c_l Q_l[k] + d_l dT_l[k]`, `dT_{l-1} = W_l' dQ_l + r_l dT_l`.
        """
        on_score, g = upstream
        assert on_score is not None and g is not None
        g, middle = g.unsqueeze(2), self.parameters[4:]
        on_adjoints: list[Tensor] = []
        curvatures: list[Tensor] = []
        slopes = [torch.zeros_like(jet[1]) for jet in jets]
        arriving: Tensor | None = None
        for layer in range(len(jets) - 1, -1, -1):
            adjoint, (_, slope, bend, *_), carried = self.adjoints[layer], jets[layer], self.carried[layer]
            change = torch.mul(carried, g, out=scratch("dQ", *carried.shape))
            norm = mlp_passes.contract(change, carried, f"norm{layer}", scratch)
            on_adjoints.insert(0, bend * norm)
            curvatures.insert(0, adjoint * norm)
            change.mul_((2 * adjoint * bend).unsqueeze(1))
            if arriving is not None:
                slopes[layer] = mlp_passes.contract(arriving, carried, f"dslope{layer}", scratch)
                change.addcmul_(arriving, slope.unsqueeze(1))
            straight = arriving if self.residuals[layer] else None
            if layer == 0:
                sums.product(("form", 2), self.drawn.flatten(0, 1), change.flatten(0, 1))
                break
            below = self.tangents[layer - 1]
            assert below is not None
            sums.product(("form", 3 + layer), change.flatten(0, 1), below.flatten(0, 1))
            arriving = _carry(change, middle[layer - 1], scratch(f"dT{layer % 2}", *below.shape))
            if straight is not None:
                arriving.add_(straight)
        self._adjoints_up(on_score, on_adjoints, slopes, jets, scratch, sums)
        return slopes, curvatures
