"""One pass over a batch in cache-sized tiles: the network's values, a functional of its slopes, and all gradients.

A tile goes up through the layers, hands its slopes `d_l = phi'(z_l)` (and curvatures `phi''(z_l)`) to a form
(`fastscore.ops.mlp_forms`: a trace, a quadratic form, a Laplacian), asks `upstream` for the gradient of the loss in
what came out, and comes back down once:

    dz_l = dh_l phi'(z_l) + dd_l phi''(z_l) + dc_l phi'''(z_l),    dh_{l-1} = dz_l W_l (+ dh_l for a residual layer),

with `dd_l` and `dc_l` the gradients of the form in slopes and curvatures. Nothing of a tile outlives it but its
outputs and its contribution to the gradients, so memory does not depend on the batch, on D or on the probes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from fastscore.ops import _cpu_threads, mlp_passes
from fastscore.ops._cpu import accumulate, matmul
from fastscore.ops.mlp_passes import Scratch
from fastscore.reference.mlp import MLP, Shifts

Key = tuple[str, int]
Upstream = Callable[[slice, Tensor, tuple[Tensor, ...]], tuple[Tensor | None, tuple[Tensor | None, ...]]]

# Elements of one [rows, width] array of a tile: 1 MiB in float32, so that the handful a layer touches stay in the
# cache; a GPU wants its arrays large instead.
_TILE = {"cpu": 1 << 18}
_TILE_ELSEWHERE = 1 << 24


class Gradients:
    """Sums over tiles of the wanted gradients, by key; what is not wanted is not computed."""

    def __init__(self, wanted: dict[Key, Tensor]) -> None:
        # A [H, D] sum with D < H is kept as [D, H]: the product then runs along the long side.
        self.flipped = {key for key, tensor in wanted.items() if tensor.ndim == 2 and tensor.shape[1] < tensor.shape[0]}
        self.sums = {
            key: (tensor.new_zeros(tensor.shape[::-1]) if key in self.flipped else torch.zeros_like(tensor))
            for key, tensor in wanted.items()
        }

    def product(self, key: Key, left: Tensor, right: Tensor) -> None:
        """Add `left' right`, summed over their rows."""
        if key in self.flipped:
            accumulate(self.sums[key], right, left)
        elif key in self.sums:
            accumulate(self.sums[key], left, right)

    def total(self, key: Key, rows: Tensor, weights: Tensor | None = None) -> None:
        """Add the sum over rows, each times its weight."""
        if key in self.sums:
            found = rows.sum(0) if weights is None else weights @ rows
            self.sums[key].add_(found.t() if key in self.flipped else found)

    def add(self, other: Gradients) -> None:
        """Add the sums of another part of the batch."""
        for key, total in other.sums.items():
            self.sums[key].add_(total)

    def result(self) -> dict[Key, Tensor]:
        """The sums, shaped like what they are the gradients of."""
        return {key: total.t() if key in self.flipped else total for key, total in self.sums.items()}


class Form(Protocol):
    """A functional of the slopes of a network, with its gradient."""

    kind: str  # which it is, for kernels that know it
    order: int  # the highest derivative of the activations that `value` reads
    columns: int  # rows of a tile's largest array per sample: the tangents it carries
    parameters: tuple[Tensor, ...]  # what it computed from the weights; gradients go to ("form", i)

    def value(self, rows: slice, jets: list[tuple[Tensor, ...]], scratch: Scratch) -> tuple[Tensor, ...]:
        """The functional of a tile; `jets[l]` is `(phi, phi', ...)` of hidden layer l."""

    def pullback(
        self, upstream: tuple[Tensor | None, ...], jets: list[tuple[Tensor, ...]], scratch: Scratch, sums: Gradients
    ) -> tuple[list[Tensor], list[Tensor] | None]:
        """The gradients in slopes and curvatures of the tile that `value` saw last; an upstream of None is all ones."""


def tile_rows(x: Tensor, mlp: MLP, columns: int) -> int:
    """Rows of a tile: its largest array has about `_TILE` elements."""
    width = max(*mlp.widths, mlp.dim) * max(1, columns)
    rows = max(16, _TILE.get(x.device.type, _TILE_ELSEWHERE) // width)
    return _cpu_threads.share(x, rows, width)


def tiles(part: slice, size: int) -> Iterator[slice]:
    """Slices of `size` rows of a part of the batch."""
    return (slice(start, min(start + size, part.stop)) for start in range(part.start, part.stop, size))


def ascend(
    mlp: MLP, x: Tensor, shifts: Shifts, rows: slice, order: int, scratch: Scratch
) -> tuple[Tensor, list[Tensor], list[tuple[Tensor, ...]]]:
    """Return the output of a tile, `h_0 = x, h_1, ..., h_L`, and the jets `(phi, phi', ...)` of every hidden layer."""
    values, jets = [x], []
    for layer, weight in enumerate(mlp.weights):
        bias, last = mlp.biases[layer], layer == mlp.depth
        z = matmul(values[-1], weight.t(), scratch(f"z{layer}", len(x), len(weight)), bias if last else None)
        if shifts and (shift := shifts[layer]) is not None:
            z.add_(shift[rows])
        if last:
            break
        jet = mlp_passes.derivatives(mlp.activations[layer], z, bias, order, scratch, layer)
        jets.append(jet)
        residual = mlp.residuals[layer]
        values.append(torch.add(jet[0], values[-1], out=scratch(f"h{layer}", *z.shape)) if residual else jet[0])
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
                above.add_(straight)


def evaluate(mlp: MLP, x: Tensor, shifts: Shifts, form: Form) -> tuple[Tensor, ...]:
    """Return the network's output and the form's values, without gradients."""
    size = tile_rows(x, mlp, form.columns)

    def run(part: slice) -> list[Tensor]:
        scratch, own, outputs = mlp_passes.kept(x, mlp), copy.copy(form), None
        for rows in tiles(part, size):
            out, _, jets = ascend(mlp, x[rows], shifts, rows, own.order, scratch)
            outputs = _store(outputs, rows, part, (out, *own.value(rows, jets, scratch)))
        return outputs or []

    found = _cpu_threads.over(x, size, run)
    return tuple(found[0] if len(found) == 1 else map(torch.cat, zip(*found, strict=True)))


def differentiate(
    mlp: MLP,
    x: Tensor,
    shifts: Shifts,
    form: Form,
    upstream: Upstream,
    wanted: dict[Key, Tensor],
    scale: float = 1.0,
) -> dict[Key, Tensor]:
    """Return the gradients of `sum(upstream * outputs)` in everything `wanted`.

    Args:
        mlp: the network.
        x: `[B, D]`.
        shifts: of the network.
        form: the functional beside the network's output.
        upstream: `(rows, output, values) -> (d output, d values)`; None for d output is zero, for a value all ones.
        wanted: like what, by key: ("x", 0), ("shift", l), ("weight", l), ("bias", l), ("form", i).
        scale: multiplies what `upstream` says of the form's values.
    """
    batch = {key: torch.zeros_like(wanted[key]) for key in wanted if key[0] in ("x", "shift")}
    size = tile_rows(x, mlp, form.columns)

    def run(part: slice) -> Gradients:
        scratch, own = mlp_passes.kept(x, mlp), copy.copy(form)
        sums = Gradients({key: tensor for key, tensor in wanted.items() if key not in batch})
        for rows in tiles(part, size):
            out, values, jets = ascend(mlp, x[rows], shifts, rows, own.order + 1, scratch)
            above, on_values = upstream(rows, out, own.value(rows, jets, scratch))
            slopes, curvatures = own.pullback(on_values, jets, scratch, sums)
            for layer, dz in descend(mlp, above, values, jets, slopes, curvatures, scale, scratch, sums):
                if ("shift", layer) in batch:
                    batch["shift", layer][rows] = dz
                if layer == 0 and ("x", 0) in batch:
                    matmul(dz, mlp.weights[0], batch["x", 0][rows])
        return sums

    sums, *others = _cpu_threads.over(x, size, run)
    for other in others:
        sums.add(other)
    result = sums.result()
    for key in result:
        if key[0] == "form":
            result[key].mul_(scale)
    return {**result, **batch}


def _store(outputs: list[Tensor] | None, rows: slice, part: slice, values: tuple[Tensor, ...]) -> list[Tensor]:
    """Write the values of a tile to its rows of the outputs of a part of the batch, made at the first tile."""
    if outputs is None:
        outputs = [value.new_empty((part.stop - part.start, *value.shape[1:])) for value in values]
    for output, value in zip(outputs, values, strict=True):
        output[rows.start - part.start : rows.stop - part.start] = value
    return outputs
