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
import math
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from fastscore.ops import _cpu_threads
from fastscore.ops._cpu import accumulate, matmul
from fastscore.reference.activations import ACTIVATIONS
from fastscore.reference.mlp import MLP, Shifts

Key = tuple[str, int]
Upstream = Callable[[slice, Tensor, tuple[Tensor, ...]], tuple[Tensor | None, tuple[Tensor | None, ...]]]

# Elements of one [rows, width] array of a tile: 1 MiB in float32, so that the handful a layer touches stay in the
# cache; a GPU wants its arrays large instead.
_TILE = {"cpu": 1 << 18}
_TILE_ELSEWHERE = 1 << 24
# What a thread keeps between calls: enough for the usual network, and the shapes of a few batch sizes.
_KEPT_BYTES = 64 << 20
_KEPT_VIEWS = 1000


class Scratch:
    """Buffers by name, reused from tile to tile: fresh memory costs more in page faults than the arithmetic on it."""

    def __init__(self, like: Tensor) -> None:
        self.like = like.new_empty(())
        self.buffers: dict[str, Tensor] = {}
        self.views: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        """Return a contiguous tensor of `shape` with anything in it; the same memory for the same name."""
        view = self.views.get((name, shape))
        if view is None:
            size = math.prod(shape)
            buffer = self.buffers.get(name)
            if buffer is None or len(buffer) < size:
                buffer = self.buffers[name] = self.like.new_empty(size)
                self.views = {key: old for key, old in self.views.items() if key[0] != name}
            view = self.views[name, shape] = buffer[:size].view(shape)
        return view

    def nbytes(self) -> int:
        """The memory held."""
        return sum(buffer.nbytes for buffer in self.buffers.values())


_local = threading.local()


def _scratch(like: Tensor) -> Scratch:
    """This thread's scratch for the dtype and device of `like`, kept between calls while it is small."""
    kept: dict[tuple[torch.dtype, torch.device], Scratch] = _local.__dict__.setdefault("kept", {})
    found = kept.get((like.dtype, like.device))
    if found is None or found.nbytes() > _KEPT_BYTES or len(found.views) > _KEPT_VIEWS:
        found = kept[like.dtype, like.device] = Scratch(like)
    return found


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
            self.sums[key].add_(rows.sum(0) if weights is None else weights @ rows)

    def add(self, other: Gradients) -> None:
        """Add the sums of another part of the batch."""
        for key, total in other.sums.items():
            self.sums[key].add_(total)

    def result(self) -> dict[Key, Tensor]:
        """The sums, shaped like what they are the gradients of."""
        return {key: total.t() if key in self.flipped else total for key, total in self.sums.items()}


class Form(Protocol):
    """A functional of the slopes of a network, with its gradient."""

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


def derivatives(name: str, z: Tensor, order: int, scratch: Scratch, layer: int) -> tuple[Tensor, ...]:
    """`ACTIVATIONS[name].derivatives(z, order)`, for SiLU up to the second in few passes; may overwrite z.

    With `s = sigmoid(z)` and `h = z s`: `phi' = s + h - h s` and `phi'' = s + phi' - 2 s phi'`.
    """
    if name != "silu" or not 1 <= order <= 2:
        return ACTIVATIONS[name].derivatives(z, order)
    s = torch.sigmoid(z, out=scratch("temporary", *z.shape))
    h = torch.mul(z, s, out=scratch(f"phi{layer}", *z.shape))
    slope = torch.add(s, h, out=scratch(f"slope{layer}", *z.shape)).addcmul_(h, s, value=-1)
    if order == 1:
        return h, slope
    return h, slope, torch.add(slope, s, out=z).addcmul_(slope, s, value=-2)


def ascend(
    mlp: MLP, x: Tensor, shifts: Shifts, rows: slice, order: int, scratch: Scratch
) -> tuple[Tensor, list[Tensor], list[tuple[Tensor, ...]]]:
    """Return the output of a tile, `h_0 = x, h_1, ..., h_L`, and the jets `(phi, phi', ...)` of every hidden layer."""
    values, jets = [x], []
    for layer, weight in enumerate(mlp.weights):
        z = matmul(values[-1], weight.t(), scratch(f"z{layer}", len(x), len(weight)), mlp.biases[layer])
        if shifts and (shift := shifts[layer]) is not None:
            z.add_(shift[rows])
        if layer == mlp.depth:
            break
        jet = derivatives(mlp.activations[layer], z, order, scratch, layer)
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
    `phi'(z_l)` and `phi''(z_l)`. Overwrites `phi'(z_l)` of the jets with `dz_l`.
    """
    dz = upstream
    above: Tensor | None = None
    for layer in range(mlp.depth, -1, -1):
        if layer < mlp.depth:
            jet = jets[layer]
            dz = jet[1].zero_() if above is None else jet[1].mul_(above)
            dz.addcmul_(slopes[layer], jet[2], value=scale)
            if curvatures is not None:
                dz.addcmul_(curvatures[layer], jet[3], value=scale)
        if dz is not None:
            sums.product(("weight", layer), dz, values[layer])
            sums.total(("bias", layer), dz)
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
        scratch, own, outputs = _scratch(x), copy.copy(form), None
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
        scratch, own = _scratch(x), copy.copy(form)
        sums = Gradients({key: tensor for key, tensor in wanted.items() if key not in batch})
        for rows in tiles(part, size):
            out, values, jets = ascend(mlp, x[rows], shifts, rows, own.order + 1, scratch)
            above, on_values = upstream(rows, out, own.value(rows, jets, scratch))
            slopes, curvatures = own.pullback(on_values, jets, scratch, sums)
            for layer, dz in descend(mlp, above, values, jets, slopes, curvatures, scale, scratch, sums):
                if ("shift", layer) in batch:
                    batch["shift", layer][rows] = dz
                if layer == 0 and ("x", 0) in batch:
                    torch.mm(dz, mlp.weights[0], out=batch["x", 0][rows])
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
