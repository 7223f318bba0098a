"""The trace for three and more hidden layers whose tangents are many: around the network from its narrowest layer.

`fastscore.ops.mlp_forms.Tangents` has the first and the last layer's tangents as one product, of all D, with factors
that are shared by the batch. Here nothing is formed but the tangents: D of them, where those factors would not fit a
cache, or those of a layer with fewer units than x has features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastscore.ops import mlp_passes
from fastscore.ops.mlp_forms import Jets, _carry, _weighted
from fastscore.ops.mlp_scratch import Scratch
from fastscore.ops.mlp_tile import Form, Gradients
from fastscore.reference.mlp import MLP, Circuit


class Around(Form):
    """`tr(C J) = sum_k P[k] . T_{n-1}[k]` with the layers in the order of a `Circuit`.

    From its entry come `Q_1 = E`, `T_l = d_l Q_l + r_l T_{l-1}` and `Q_l = W_l T_{l-1}`, from its exit
    `P = (X * d_n) W_n + r_n X`, where X is weighted by the slopes of the layer at which the circuit starts.
    """

    kind = "around"

    def __init__(self, mlp: MLP, circuit: Circuit) -> None:
        self.residuals, self.layers, self.start = mlp.residuals, circuit.order, circuit.start
        self.columns = len(circuit.entry)
        self.parameters = (circuit.entry.contiguous(), circuit.exit.contiguous(), *circuit.edges)

    def value(self, rows: slice, jets: Jets, scratch: Scratch) -> tuple[Tensor, ...]:
        """Return the trace `[n, 1]`."""
        entry, leaving, *edges, final = self.parameters
        count, columns, last = len(jets[0][1]), self.columns, self.layers[-1]
        carried, below = scratch("E", count, *entry.shape).copy_(entry), None
        if self.residuals[self.layers[0]]:
            below = torch.eye(columns, dtype=entry.dtype, device=entry.device).expand(count, -1, -1)
        self.carried, self.below = [carried], [below]  # Q_l and T_{l-1} of each layer of the circuit but the last
        for place, (layer, weight) in enumerate(zip(self.layers, edges, strict=False)):
            room = scratch(f"T{place}", *carried.shape)
            tangents = mlp_passes.spread(carried, jets[layer][1], room, scratch)
            if self.residuals[layer] and below is not None:
                tangents.add_(below)
            carried = _carry(tangents, weight.t(), scratch(f"Q{place}", count, columns, len(weight)))
            below = tangents
            self.carried.append(carried)
            self.below.append(below)
        self.leaving = scratch("X", count, *leaving.shape).copy_(leaving)
        if self.start is not None:
            self.leaving.mul_(jets[self.start][1].unsqueeze(2))
        room = scratch("C", *self.leaving.shape)
        self.outgoing = mlp_passes.spread(self.leaving, jets[last][1], room, scratch)
        self.cotangents = _carry(self.outgoing, final, scratch("P", *carried.shape))
        if self.residuals[last]:
            self.cotangents.add_(self.leaving)
        meet = self.layers[-2]
        self.met = mlp_passes.contract(self.cotangents, carried, "met", scratch)
        total = mlp_passes.row_products(self.met, jets[meet][1], scratch)
        if self.residuals[meet] and below is not None:
            total = total + (self.cotangents * below).sum((1, 2))
        return (total.unsqueeze(1),)

    def pullback(
        self, upstream: tuple[Tensor | None, ...], jets: Jets, scratch: Scratch, sums: Gradients
    ) -> tuple[list[Tensor], list[Tensor] | None]:
        """From the meeting point down the cotangents to the exit, and down the tangents to the entry."""
        (g,) = upstream
        slopes = [jet[1] for jet in jets]
        gradients = list(slopes)
        place, layer, cotangents, carried = len(self.layers) - 2, self.layers[-2], self.cotangents, self.carried[-1]
        gradients[layer] = _weighted(self.met, g, scratch)
        scaled = slopes[layer] if g is None else slopes[layer] * g
        meeting = mlp_passes.spread(carried, scaled, scratch("dP", *cotangents.shape), scratch)
        straight: Tensor | None = None  # the gradient in T_l that goes straight to T_{l-1}
        below = self.below[-1]
        if self.residuals[layer] and below is not None:
            meeting.add_(below if g is None else below * g.unsqueeze(2))
            straight = _weighted(cotangents, g, scratch, scratch("dT", *cotangents.shape))
        self._exit(meeting, gradients, slopes, scratch, sums)

        change = mlp_passes.spread(cotangents, scaled, cotangents, scratch)  # dQ
        while place:
            below, weight = self.below[place], self.parameters[1 + place]
            assert below is not None
            sums.product(("form", 1 + place), change.flatten(0, 1), below.flatten(0, 1))
            arriving = _carry(change, weight, scratch(f"dT{place % 2}", *below.shape))
            if straight is not None:
                arriving.add_(straight)
            place -= 1
            layer = self.layers[place]
            gradients[layer] = mlp_passes.contract(arriving, self.carried[place], f"dslope{layer}", scratch)
            straight = arriving if self.residuals[layer] else None
            change = mlp_passes.spread(arriving, slopes[layer], scratch("dQ", *arriving.shape), scratch)
        sums.total(("form", 0), change)
        return gradients, None

    def _exit(
        self, meeting: Tensor, gradients: list[Tensor], slopes: list[Tensor], scratch: Scratch, sums: Gradients
    ) -> None:
        """`dC = dP W_n'`, `dX = d_n dC + r_n dP`, and what these give to the last layer and to the one of the start."""
        layer, final, key = self.layers[-1], self.parameters[-1], ("form", len(self.parameters) - 1)
        sums.product(key, self.outgoing.flatten(0, 1), meeting.flatten(0, 1))
        change = _carry(meeting, final.t(), scratch("dC", *self.leaving.shape))
        gradients[layer] = mlp_passes.contract(change, self.leaving, f"dslope{layer}", scratch)
        mlp_passes.spread(change, slopes[layer], change, scratch)
        if self.residuals[layer]:
            change.add_(meeting)
        if self.start is not None:
            gradients[self.start] = torch.mul(change, self.parameters[1], out=self.leaving).sum(2)
            change.mul_(slopes[self.start].unsqueeze(2))
        sums.total(("form", 1), change)
