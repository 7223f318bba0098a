"""Hutchinson's estimate of an energy network's Laplacian as a form: second derivatives along probes, tile by tile."""

from __future__ import annotations

from torch import Tensor

from fastscore.ops import mlp_passes
from fastscore.ops.mlp_forms import Draw, Jets, _add, _carry, _weighted, drawn
from fastscore.ops.mlp_laplacian import Slope
from fastscore.ops.mlp_scratch import Scratch
from fastscore.ops.mlp_tile import Gradients
from fastscore.reference.mlp import MLP


class Curvature(Slope):
    """`-grad E` and `v_k' H v_k = sum_l a_l . (c_l * Q_l[k]^2)`, `H = d2E/dx2`, of K probes.

    As the Laplacian, with the probes for the unit vectors: `Q_1 = W_1 v`, `T_l = d_l Q_l + r_l T_{l-1}`,
    `Q_{l+1} = W_{l+1} T_l`. The probes are a function of the rows, made anew for a tile and never kept.
    """

    kind, order = "curvature", 2

    def __init__(self, mlp: MLP, probes: Draw) -> None:
        super().__init__(mlp)
        self.columns, self.probes, self.noise = probes.count, probes.rows, probes.noise
        self.widths = (mlp.dim, probes.count)

    def value(self, rows: slice, jets: Jets, scratch: Scratch) -> tuple[Tensor, ...]:
        """Return the score `[n, D]` and the quadratic forms `[n, K]`."""
        _, _, first, _, *middle = self.parameters
        score, self.drawn = self._score(jets, scratch), drawn(self, rows, len(first), scratch)
        tangents, shape = self.drawn, self.drawn.shape[:2]
        total = None
        self.carried, self.tangents = [], []
        for layer, (adjoint, jet) in enumerate(zip(self.adjoints, jets, strict=True)):
            room = scratch(f"Q{layer}", *shape, jet[1].shape[1])
            carried = _carry(tangents, middle[layer - 1].t() if layer else first, room)
            bend = mlp_passes.times(adjoint, jet[2], "bend", scratch)
            bent = mlp_passes.spread(carried, bend, scratch("bends", *carried.shape), scratch)
            made = mlp_passes.row_products(bent.flatten(0, 1), carried.flatten(0, 1), scratch).view(shape)
            if total is not None:
                _add(made, total, scratch)
            total = made
            self.carried.append(carried)
            if layer + 1 < len(jets):
                below, room = tangents, scratch(f"T{layer}", *carried.shape)
                tangents = mlp_passes.spread(carried, jet[1], room, scratch)
                if self.residuals[layer]:
                    _add(tangents, below, scratch)
                self.tangents.append(tangents)
        assert total is not None
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
        middle = self.parameters[4:]
        on_adjoints: list[Tensor | None] = []
        slopes: list[Tensor | None] = []
        curvatures: list[Tensor] = []
        arriving: Tensor | None = None
        for layer in range(len(jets) - 1, -1, -1):
            adjoint, (_, slope, bend, *_), carried = self.adjoints[layer], jets[layer], self.carried[layer]
            change = _weighted(carried, g, scratch, scratch("dQ", *carried.shape))
            norm = mlp_passes.contract(change, carried, "norm", scratch)
            on_adjoints.insert(0, mlp_passes.times(bend, norm, f"gcn{layer}", scratch))
            curvatures.insert(0, mlp_passes.times(adjoint, norm, f"an{layer}", scratch))
            factor, plus = mlp_passes.times(adjoint, bend, "bend", scratch), None
            slopes.insert(0, None)
            if arriving is not None:
                slopes[0], plus = mlp_passes.contract(arriving, carried, f"dslope{layer}", scratch), (arriving, slope)
            mlp_passes.spread(change, factor, change, scratch, scale=2.0, plus=plus)
            straight = arriving if self.residuals[layer] else None
            if layer == 0:
                sums.product(("form", 2), self.drawn.flatten(0, 1), change.flatten(0, 1))
                break
            below = self.tangents[layer - 1]
            sums.product(("form", 3 + layer), change.flatten(0, 1), below.flatten(0, 1))
            arriving = _carry(change, middle[layer - 1], scratch(f"dT{layer % 2}", *below.shape))
            if straight is not None:
                _add(arriving, straight, scratch)
        return self._adjoints_up(on_score, on_adjoints, slopes, jets, scratch, sums), curvatures
