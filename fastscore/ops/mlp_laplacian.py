"""The score of an energy network, and its Laplacian, as forms: adjoints down and tangents up, tile by tile."""

from __future__ import annotations

from torch import Tensor

from fastscore.ops import mlp_passes
from fastscore.ops._cpu import matmul
from fastscore.ops.mlp_forms import Jets, _add, _carry, _weighted
from fastscore.ops.mlp_scratch import Scratch
from fastscore.ops.mlp_tile import Form, Gradients
from fastscore.reference.mlp import MLP


class Slope(Form):
    """`-grad E`: the adjoints `a_l = dE/dh_l` come down, and `grad E = W_1' (d_1 a_1)`.

    `a_L = w`, `a_{l-1} = W_l' (d_l a_l) + r_l a_l`, with `d_l = phi_l'(z_l)`.
    """

    kind, recorded = "slope", True

    def __init__(self, mlp: MLP) -> None:
        first = mlp.weights[0]
        self.residuals, self.widths = mlp.residuals, (mlp.dim,)
        nothing = first.detach()[:0]  # what the Laplacian makes of the first layer
        self.parameters = (nothing, nothing, first.t().contiguous(), mlp.weights[-1], *mlp.weights[1:-1])

    def value(self, rows: slice, jets: Jets, scratch: Scratch) -> tuple[Tensor, ...]:
        """Return the score `[n, D]`."""
        return (self._score(jets, scratch),)

    def pullback(
        self, upstream: tuple[Tensor | None, ...], jets: Jets, scratch: Scratch, sums: Gradients
    ) -> tuple[list[Tensor], list[Tensor] | None]:
        """Up the adjoints."""
        (on_score,) = upstream
        assert on_score is not None
        return self._adjoints_up(on_score, [None] * len(jets), [None] * len(jets), jets, scratch, sums), None

    def _score(self, jets: Jets, scratch: Scratch) -> Tensor:
        """Carry the adjoints down; return `-grad E`."""
        _, _, first, last, *middle = self.parameters
        depth, top = len(jets), scratch("adjoint", *jets[-1][1].shape)
        adjoint = mlp_passes.mix(top, last.expand_as(top), None, scratch)
        self.adjoints = [adjoint]  # a_l
        self.bent: list[Tensor] = []  # d_l a_l
        for layer in range(depth - 1, -1, -1):
            bent = mlp_passes.times(adjoint, jets[layer][1], f"bent{layer}", scratch)
            self.bent.insert(0, bent)
            if layer:
                below = matmul(bent, middle[layer - 1], scratch(f"a{layer - 1}", *jets[layer - 1][1].shape))
                if self.residuals[layer]:
                    _add(below, adjoint, scratch)
                adjoint = below
                self.adjoints.insert(0, adjoint)
        score = matmul(self.bent[0], first.t(), scratch("score", len(self.bent[0]), len(first)))
        return mlp_passes.mix(score, score, None, scratch, left=-1.0)

    def _adjoints_up(
        self,
        on_score: Tensor,
        on_adjoints: list[Tensor | None],
        slopes: list[Tensor | None],
        jets: Jets,
        scratch: Scratch,
        sums: Gradients,
    ) -> list[Tensor]:
        """From `grad E = W_1' (d_1 a_1)` up: `d(d_l a_l)` gives `dd_l` and `da_l`, and that the next `d(d a)`.

        The gradients in adjoints and slopes from elsewhere, or None, are added to; those in the slopes are returned.
        """
        _, _, first, _, *middle = self.parameters
        minus = mlp_passes.mix(scratch("minus", *on_score.shape), on_score, None, scratch, left=-1.0)
        sums.product(("form", 2), minus, self.bent[0])
        change = matmul(minus, first, scratch("dbent0", *jets[0][1].shape))
        found = []
        for layer, jet in enumerate(jets):
            slope = mlp_passes.times(change, self.adjoints[layer], f"da{layer}", scratch)
            arriving = mlp_passes.times(change, jet[1], "arriving", scratch)  # da_l
            for array, other in ((slope, slopes[layer]), (arriving, on_adjoints[layer])):
                if other is not None:
                    _add(array, other, scratch)
            found.append(slope)
            if layer + 1 == len(jets):
                sums.total(("form", 3), arriving)
                break
            sums.product(("form", 4 + layer), self.bent[layer + 1], arriving)
            change = matmul(arriving, middle[layer].t(), scratch(f"dbent{layer + 1}", *jets[layer + 1][1].shape))
            if self.residuals[layer + 1]:
                other, room = on_adjoints[layer + 1], scratch(f"straight{layer + 1}", *arriving.shape)
                on_adjoints[layer + 1] = mlp_passes.mix(room, arriving, other, scratch)
        return found


class Laplacian(Slope):
    """`-grad E` and `lap E = sum_l a_l . (c_l * n_l)` with `c_l = phi_l''(z_l)`, `n_l = sum_d Q_l[d]^2`.

    `Q_l = dz_l/dx` come up with the D tangents (`Q_1 = W_1` is shared by the batch, and so is `n_1`).

    `Q_2 = W_2 diag(d_1) W_1` is a product of `T_1 = d_1 * W_1` here: of all D at once, `[B, H_1] x [H_1, D H_2]`, its
    other factor would be read anew for every tile. Kernels, whose tiles are large, ask for that factor (`shared`).
    """

    kind, order = "laplacian", 2

    def __init__(self, mlp: MLP, *, shared: bool = False) -> None:
        super().__init__(mlp)
        first = mlp.weights[0]
        self.columns, self.widths = mlp.dim if mlp.depth > 1 else 1, (mlp.dim, 0)
        self.recorded = mlp.dim <= len(first)  # or sums of the first layer would be kept the other way round
        nothing, _, *others = self.parameters
        if shared and mlp.depth > 1:
            nothing = (first.t().unsqueeze(1) * mlp.weights[1]).flatten(0, 1)  # [D H_2, H_1]
        self.parameters = (first.square().sum(1), nothing, *others)

    def value(self, rows: slice, jets: Jets, scratch: Scratch) -> tuple[Tensor, ...]:
        """Return the score `[n, D]` and the Laplacian `[n]`."""
        score, squares = self._score(jets, scratch), self.parameters[0]
        bend = mlp_passes.times(self.adjoints[0], jets[0][2], "bend", scratch)
        laplacian = matmul(bend, squares.unsqueeze(1), scratch("laplacian", len(bend), 1))
        self.norms = [squares, *self._norms(jets, scratch)]
        for adjoint, jet, norm in zip(self.adjoints[1:], jets[1:], self.norms[1:], strict=True):
            bend = mlp_passes.times(adjoint, jet[2], "bend", scratch)
            _add(laplacian, mlp_passes.row_products(bend, norm, scratch).unsqueeze(1), scratch)
        return score, laplacian.squeeze(1)

    def _norms(self, jets: Jets, scratch: Scratch) -> list[Tensor]:
        """Carry the tangents up: `Q_{l+1} = W_{l+1} T_l`, `T_l = d_l Q_l + r_l T_{l-1}`; return `n_2, ..., n_L`."""
        _, _, first, _, *middle = self.parameters
        count, columns = len(jets[0][1]), self.columns
        norms: list[Tensor] = []
        self.carried: list[Tensor] = []
        self.tangents: list[Tensor] = []
        if len(jets) == 1:
            return norms
        below = mlp_passes.spread(first, jets[0][1], scratch("T0", count, *first.shape), scratch)
        for layer in range(1, len(jets)):
            self.tangents.append(below)
            carried = _carry(below, middle[layer - 1].t(), scratch(f"Q{layer}", count, columns, len(middle[layer - 1])))
            self.carried.append(carried)
            norms.append(mlp_passes.contract(carried, carried, f"norm{layer}", scratch))
            if layer < len(jets) - 1:
                tangents = mlp_passes.spread(carried, jets[layer][1], scratch(f"T{layer}", *carried.shape), scratch)
                if self.residuals[layer]:
                    _add(tangents, below, scratch)
                below = tangents
        return norms

    def pullback(
        self, upstream: tuple[Tensor | None, ...], jets: Jets, scratch: Scratch, sums: Gradients
    ) -> tuple[list[Tensor], list[Tensor] | None]:
        """Back through the Laplacian's sum, down the tangents, and up the adjoints with what the score adds."""
        on_score, on_laplacian = upstream
        assert on_score is not None and on_laplacian is not None
        on_adjoints: list[Tensor | None] = []
        on_norms, curvatures = [], []
        for layer, (adjoint, jet, norm) in enumerate(zip(self.adjoints, jets, self.norms, strict=True)):
            scaled = _weighted(jet[2], on_laplacian, scratch, scratch(f"gc{layer}", *jet[2].shape))
            on_adjoints.append(mlp_passes.times(scaled, norm, f"gcn{layer}", scratch))
            on_norms.append(mlp_passes.times(scaled, adjoint, f"gca{layer}", scratch))
            curvature = mlp_passes.times(adjoint, norm, f"an{layer}", scratch)
            curvatures.append(_weighted(curvature, on_laplacian, scratch))
        sums.total(("form", 0), on_norms[0])
        slopes = self._tangents_down(on_norms, jets, scratch, sums)
        return self._adjoints_up(on_score, on_adjoints, slopes, jets, scratch, sums), curvatures

    def _tangents_down(
        self, on_norms: list[Tensor], jets: Jets, scratch: Scratch, sums: Gradients
    ) -> list[Tensor | None]:
        """`dQ_l = 2 Q_l dn_l + d_l dT_l`, `dT_{l-1} = W_l' dQ_l + r_l dT_l`; return the gradients in the slopes."""
        _, _, first, _, *middle = self.parameters
        slopes: list[Tensor | None] = [None] * len(jets)
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
                _add(arriving, straight, scratch)
        if arriving is not None:
            slopes[0] = mlp_passes.contract(arriving, first, "dslope_first", scratch)
            sums.total(("form", 2), mlp_passes.spread(arriving, jets[0][1], arriving, scratch))
        return slopes
