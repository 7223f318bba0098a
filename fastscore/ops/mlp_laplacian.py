"""The score and the Laplacian of an energy network as a form: the forward Laplacian with its adjoint, tile by tile."""

from __future__ import annotations

import torch
from torch import Tensor

from fastscore.ops import mlp_passes
from fastscore.ops._cpu import matmul
from fastscore.ops.mlp_forms import Jets, _carry
from fastscore.ops.mlp_scratch import Scratch
from fastscore.ops.mlp_tile import Form, Gradients
from fastscore.reference.mlp import MLP


class Laplacian(Form):
    """`-grad E` and `lap E = sum_l a_l . (c_l * n_l)` with `c_l = phi_l''(z_l)`, `n_l = sum_d Q_l[d]^2`.

    `Q_l = dz_l/dx` come up with the D tangents (`Q_1 = W_1` is shared by the batch, and so is `n_1`), the adjoints
    `a_l = dE/dh_l` come down: `a_L = w`, `a_{l-1} = W_l' (d_l a_l) + r_l a_l`, `grad E = W_1' (d_1 a_1)`.

    `Q_2 = W_2 diag(d_1) W_1` is a product of `T_1 = d_1 * W_1` here: of all D at once, `[B, H_1] x [H_1, D H_2]`, its
    other factor would be read anew for every tile. Kernels, whose tiles are large, ask for that factor (`shared`).
    """

    kind, order = "laplacian", 2

    def __init__(self, mlp: MLP, *, shared: bool = False) -> None:
        first = mlp.weights[0]
        self.columns, self.residuals = mlp.dim if mlp.depth > 1 else 1, mlp.residuals
        inward = first.detach()[:0]
        if shared and mlp.depth > 1:
            inward = (first.t().unsqueeze(1) * mlp.weights[1]).flatten(0, 1)  # [D H_2, H_1]
        self.parameters = (
            first.square().sum(1),
            inward,
            first.t().contiguous(),
            mlp.weights[-1],
            *mlp.weights[1:-1],
        )

    def value(self, rows: slice, jets: Jets, scratch: Scratch) -> tuple[Tensor, ...]:
        """Return the score `[n, D]` and the Laplacian `[n]`."""
        score, squares, count = self._score(jets, scratch), self.parameters[0], len(jets[0][1])
        self.norms = [squares, *self._norms(jets, scratch)]
        laplacian = score.new_zeros(count)
        for adjoint, jet, norm in zip(self.adjoints, jets, self.norms, strict=True):
            product = torch.mul(adjoint, jet[2], out=scratch("product2", *jet[2].shape))
            laplacian += product @ norm if norm.ndim == 1 else mlp_passes.row_products(product, norm, scratch)
        return score, laplacian

    def _score(self, jets: Jets, scratch: Scratch) -> Tensor:
        """Carry the adjoints down; return `-grad E`."""
        _, _, first, last, *middle = self.parameters
        depth = len(jets)
        adjoint = last.expand(len(jets[0][1]), -1)
        self.adjoints = [adjoint]  # a_l
        self.bent: list[Tensor] = []  # d_l a_l
        for layer in range(depth - 1, -1, -1):
            bent = torch.mul(adjoint, jets[layer][1], out=scratch(f"bent{layer}", *jets[layer][1].shape))
            self.bent.insert(0, bent)
            if layer:
                below = matmul(bent, middle[layer - 1], scratch(f"a{layer - 1}", *jets[layer - 1][1].shape))
                adjoint = below.add_(adjoint) if self.residuals[layer] else below
                self.adjoints.insert(0, adjoint)
        score = matmul(self.bent[0], first.t(), self.bent[0].new_empty(len(self.bent[0]), len(first)))
        return score.neg_()

    def _norms(self, jets: Jets, scratch: Scratch) -> list[Tensor]:
        """Carry the tangents up: `Q_{l+1} = W_{l+1} T_l`, `T_l = d_l Q_l + r_l T_{l-1}`; return `n_2, ..., n_L`."""
        _, _, first, _, *middle = self.parameters
        count, columns = len(jets[0][1]), self.columns
        norms: list[Tensor] = []
        self.carried: list[Tensor] = []
        self.tangents: list[Tensor] = []
        if len(jets) == 1:
            return norms
        below = torch.mul(jets[0][1].unsqueeze(1), first, out=scratch("T0", count, *first.shape))
        for layer in range(1, len(jets)):
            self.tangents.append(below)
            carried = _carry(below, middle[layer - 1].t(), scratch(f"Q{layer}", count, columns, len(middle[layer - 1])))
            self.carried.append(carried)
            norms.append(mlp_passes.contract(carried, carried, f"norm{layer}", scratch))
            if layer < len(jets) - 1:
                tangents = mlp_passes.spread(carried, jets[layer][1], scratch(f"T{layer}", *carried.shape), scratch)
                below = tangents.add_(below) if self.residuals[layer] else tangents
        return norms

    def pullback(
        self, upstream: tuple[Tensor | None, ...], jets: Jets, scratch: Scratch, sums: Gradients
    ) -> tuple[list[Tensor], list[Tensor] | None]:
        """Back through the Laplacian's sum, down the tangents, and up the adjoints with what the score adds."""
        on_score, on_laplacian = upstream
        assert on_score is not None
        g = on_laplacian.unsqueeze(1) if on_laplacian is not None else on_score.new_ones(len(on_score), 1)
        on_adjoints, on_norms, curvatures = [], [], []
        for layer, (adjoint, jet, norm) in enumerate(zip(self.adjoints, jets, self.norms, strict=True)):
            scaled = torch.mul(jet[2], g, out=scratch(f"gc{layer}", *jet[2].shape))
            on_adjoints.append(scaled * norm)
            on_norms.append(scaled.mul_(adjoint))
            curvatures.append((adjoint * norm).mul_(g))
        sums.total(("form", 0), on_norms[0])
        slopes = self._tangents_down(on_norms, jets, scratch, sums)
        self._adjoints_up(on_score, on_adjoints, slopes, jets, scratch, sums)
        return slopes, curvatures

    def _tangents_down(self, on_norms: list[Tensor], jets: Jets, scratch: Scratch, sums: Gradients) -> list[Tensor]:
        """`dQ_l = 2 Q_l dn_l + d_l dT_l`, `dT_{l-1} = W_l' dQ_l + r_l dT_l`; return the gradients in the slopes."""
        _, _, first, _, *middle = self.parameters
        slopes = [torch.zeros_like(jet[1]) for jet in jets]
        arriving: Tensor | None = None
        for layer in range(len(jets) - 1, 0, -1):
            carried, slope, below = self.carried[layer - 1], jets[layer][1], self.tangents[layer - 1]
            if arriving is not None:
                slopes[layer] = mlp_passes.contract(arriving, carried, f"dslope{layer}", scratch)
            plus = None if arriving is None else (arriving, slope)
            change = mlp_passes.spread(carried, on_norms[layer], carried, scratch, scale=2.0, plus=plus)
            sums.product(("form", 3 + layer), change.flatten(0, 1), below.flatten(0, 1))
            straight = arriving if self.residuals[layer] else None
            arriving = _carry(change, middle[layer - 1], scratch(f"dT{layer % 2}", *below.shape))
            if straight is not None:
                arriving.add_(straight)
        if arriving is not None:
            slopes[0] = mlp_passes.contract(arriving, first, "dslope_first", scratch)
            sums.total(("form", 2), arriving.mul_(jets[0][1].unsqueeze(1)))
        return slopes

    def _adjoints_up(
        self,
        on_score: Tensor,
        on_adjoints: list[Tensor],
        slopes: list[Tensor],
        jets: Jets,
        scratch: Scratch,
        sums: Gradients,
    ) -> None:
        """From `grad E = W_1' (d_1 a_1)` up: `d(d_l a_l)` gives `dd_l` and `da_l`, and that the next `d(d a)`."""
        _, _, first, _, *middle = self.parameters
        minus = -on_score
        sums.product(("form", 2), minus, self.bent[0])
        change = matmul(minus, first, scratch("dbent0", *jets[0][1].shape))
        for layer, jet in enumerate(jets):
            slopes[layer].addcmul_(change, self.adjoints[layer])
            arriving = on_adjoints[layer].addcmul_(change, jet[1])  # da_l
            if layer + 1 == len(jets):
                sums.total(("form", 3), arriving)
                return
            sums.product(("form", 4 + layer), self.bent[layer + 1], arriving)
            change = matmul(arriving, middle[layer].t(), scratch(f"dbent{layer + 1}", *jets[layer + 1][1].shape))
            if self.residuals[layer + 1]:
                on_adjoints[layer + 1].add_(arriving)
