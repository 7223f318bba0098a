"""One tile of a batch: the network's values, a functional of its slopes, and all gradients.

A tile goes up through the layers, hands its slopes `d_l = phi'(z_l)` (and curvatures `phi''(z_l)`) to a form
(`fastscore.ops.mlp_forms`: a trace, a quadratic form, a Laplacian), asks `upstream` for the gradient of the loss in
what came out, and comes back down once:

    dz_l = dh_l phi'(z_l) + dd_l phi''(z_l) + dc_l phi'''(z_l),    dh_{l-1} = dz_l W_l (+ dh_l for a residual layer),

with `dd_l` and `dc_l` the gradients of the form in slopes and curvatures. Nothing of a tile outlives it but its
outputs and its contribution to the gradients.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

from torch import Tensor

from fastscore.ops import mlp_passes
from fastscore.ops._cpu import accumulate, matmul
from fastscore.ops._cpu_program import Noise, Recorder
from fastscore.ops.mlp_scratch import Scratch
from fastscore.reference.mlp import MLP, Shifts

Key = tuple[str, int]
Above = tuple[Tensor | None, tuple[Tensor | None, ...]]


class Gradients:
    """Sums over tiles of the wanted gradients, by key, in one array; what is not wanted is not computed."""

    def __init__(self, wanted: dict[Key, Tensor], flat: Tensor, recorder: Recorder | None = None) -> None:
        # A [H, D] sum with D < H is kept as [D, H]: the product then runs along the long side.
        self.flipped = {key for key, tensor in wanted.items() if tensor.ndim == 2 and tensor.shape[1] < tensor.shape[0]}
        self.flat, self.recorder = flat, recorder
        parts = zip(wanted.items(), flat.split([tensor.numel() for tensor in wanted.values()]), strict=True)
        self.sums = {key: part.view(t.shape[::-1] if key in self.flipped else t.shape) for (key, t), part in parts}

    def product(self, key: Key, left: Tensor, right: Tensor) -> None:
        """Add `left' right`, summed over their rows."""
        if key in self.flipped:
            accumulate(self.sums[key], right, left)
        elif key in self.sums:
            accumulate(self.sums[key], left, right)

    def total(self, key: Key, rows: Tensor, weights: Tensor | None = None) -> None:
        """Add the sum over rows, each times its weight, `[n, 1]`."""
        if key not in self.sums:
            return
        if self.recorder is not None:
            self.recorder.total(rows, weights, self.sums[key])
            return
        found = rows.sum(0) if weights is None else weights.squeeze(1) @ rows
        self.sums[key].add_(found.t() if key in self.flipped else found)

    def result(self) -> dict[Key, Tensor]:
        """The sums, shaped like what they are the gradients of."""
        return {key: total.t() if key in self.flipped else total for key, total in self.sums.items()}


class Form:
    """A functional of the slopes of a network, with its gradient.

    Attributes:
        kind: which it is, for kernels that know it.
        order: the highest derivative of the activations that `value` reads.
        columns: rows of a tile's largest array per sample: the tangents it carries.
        parameters: what it computed from the weights; gradients go to ("form", i).
        widths: of its values `[n, width]`; 0 for one that is `[n]`.
        recorded: whether all that it does to a tile are passes that can be written down.
        noise: of its probes.
    """

    kind: str
    order = 1
    columns = 1
    parameters: tuple[Tensor, ...] = ()
    widths: tuple[int, ...] = ()
    recorded = False
    noise: Noise | None = None

    def value(self, rows: slice, jets: list[tuple[Tensor, ...]], scratch: Scratch) -> tuple[Tensor, ...]:
        """The functional of a tile; `jets[l]` is `(phi, phi', ...)` of hidden layer l."""
        raise NotImplementedError

    def pullback(
        self, upstream: tuple[Tensor | None, ...], jets: list[tuple[Tensor, ...]], scratch: Scratch, sums: Gradients
    ) -> tuple[list[Tensor], list[Tensor] | None]:
        """The gradients in slopes and curvatures of the tile that `value` saw last; an upstream of None is all ones."""
        raise NotImplementedError


class Upstream:
    """The gradient of a loss in what comes out of a network (None: zero) and of a form (None: all ones).

    Attributes:
        key: what `record` depends on.
        arrays: what it reads, with a row for every sample.
        noise: that it reads.
    """

    key: Hashable
    arrays: tuple[Tensor, ...] = ()
    noise: Noise | None = None

    def __call__(self, rows: slice, out: Tensor, values: tuple[Tensor, ...]) -> Above:
        """The gradients for some rows."""
        raise NotImplementedError

    def record(self, rows: slice, out: Tensor, values: tuple[Tensor, ...], recorder: Recorder) -> Above:
        """The same as steps of a program."""
        raise NotImplementedError

    def settle(self, numbers: list[float]) -> None:
        """Take what the program summed up."""


@dataclass
class Sought:
    """The gradients that are asked of a batch: everything that its tiles have in common.

    Attributes:
        mlp: the network.
        x: `[B, D]`.
        shifts: of the network.
        form: the functional beside the network's output.
        upstream: of the output and of the form's values.
        wanted: like what, by key: ("x", 0), ("shift", l), ("weight", l), ("bias", l), ("form", i).
        scale: multiplies what `upstream` says of the form's values.
        batch: the gradients that have a row for every sample, of x and of the shifts, to be written to.
        summed: like what the others are.
        size: elements of all that is summed.
    """

    mlp: MLP
    x: Tensor
    shifts: Shifts
    form: Form
    upstream: Upstream
    wanted: dict[Key, Tensor]
    scale: float = 1.0

    def __post_init__(self) -> None:
        of_samples = [key for key in self.wanted if key[0] in ("x", "shift")]
        self.batch = {key: self.x.new_zeros(self.wanted[key].shape) for key in of_samples}
        self.summed = {key: tensor for key, tensor in self.wanted.items() if key not in self.batch}
        self.size = sum(tensor.numel() for tensor in self.summed.values())

    def of_tile(self, rows: slice, scratch: Scratch, sums: Gradients) -> None:
        """Add what some rows give to the sums, and write their rows of the others."""
        mlp, form = self.mlp, copy.copy(self.form)
        out, values, jets = ascend(mlp, self.x[rows], self.shifts, rows, form.order + 1, scratch)
        found, recorder = form.value(rows, jets, scratch), scratch.recorder
        if recorder is None:
            on_out, on_values = self.upstream(rows, out, found)
        else:
            on_out, on_values = self.upstream.record(rows, out, found, recorder)
        slopes, curvatures = form.pullback(on_values, jets, scratch, sums)
        for layer, dz in descend(mlp, on_out, values, jets, slopes, curvatures, self.scale, scratch, sums):
            if ("shift", layer) in self.batch:
                mlp_passes.mix(self.batch["shift", layer][rows], dz, None, scratch)
            if layer == 0 and ("x", 0) in self.batch:
                matmul(dz, mlp.weights[0], self.batch["x", 0][rows])

    def result(self, totals: list[Tensor]) -> dict[Key, Tensor]:
        """All gradients, of the sums of parts of the batch, whose first is overwritten."""
        for other in totals[1:]:
            totals[0].add_(other)
        result = Gradients(self.summed, totals[0]).result()
        for key in result:
            if key[0] == "form":
                result[key].mul_(self.scale)
        return {**result, **self.batch}


def ascend(
    mlp: MLP, x: Tensor, shifts: Shifts, rows: slice, order: int, scratch: Scratch
) -> tuple[Tensor, list[Tensor], list[tuple[Tensor, ...]]]:
    """Return the output of a tile, `h_0 = x, h_1, ..., h_L`, and the jets `(phi, phi', ...)` of every hidden layer."""
    values, jets = [x], []
    for layer, weight in enumerate(mlp.weights):
        bias, last = mlp.biases[layer], layer == mlp.depth
        z = matmul(values[-1], weight.t(), scratch(f"z{layer}", len(x), len(weight)), bias if last else None)
        if shifts and (shift := shifts[layer]) is not None:
            mlp_passes.mix(z, z, shift[rows], scratch)
        if last:
            break
        jet = mlp_passes.derivatives(mlp.activations[layer], z, bias, order, scratch, layer)
        jets.append(jet)
        residual = mlp.residuals[layer]
        room = scratch(f"h{layer}", *z.shape) if residual else z
        values.append(mlp_passes.mix(room, jet[0], values[-1], scratch) if residual else jet[0])
    return z, values, jets


def descend(
    mlp: MLP,
    upstream: Tensor | None,
    values: list[Tensor],
    jets: list[tuple[Tensor, ...]],
    slopes: list[Tensor],
    curvatures: list[Tensor] | None,
    scale: float,
    scratch: Scratch,
    sums: Gradients,
) -> Iterator[tuple[int, Tensor]]:
    """Add the gradients of weights and biases and yield `(l, dz_l)`, from the last layer to the first.

    `upstream` is the gradient in the output (None: zero); `slopes` and `curvatures`, times `scale`, those in
    `phi'(z_l)` and `phi''(z_l)` (no slopes: zero). Overwrites `phi'(z_l)` of the jets with `dz_l`.
    """
    dz = upstream
    above: Tensor | None = None
    for layer in range(mlp.depth, -1, -1):
        if layer < mlp.depth:
            bent = [(slopes[layer], jets[layer][2])] if slopes else []
            if curvatures is not None:
                bent.append((curvatures[layer], jets[layer][3]))
            dz = mlp_passes.pull(jets[layer][1], above, bent, scale, sums.sums.get(("bias", layer)), scratch)
        elif dz is not None:
            sums.total(("bias", layer), dz)
        if dz is not None:
            sums.product(("weight", layer), dz, values[layer])
            yield layer, dz
            if layer == 0:
                return
            straight = above if layer < mlp.depth and mlp.residuals[layer] else None
            name = "dh" if straight is None else f"dh{layer % 2}"
            above = matmul(dz, mlp.weights[layer], scratch(name, *values[layer].shape))
            if straight is not None:
                mlp_passes.mix(above, above, straight, scratch)
