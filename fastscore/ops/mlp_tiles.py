"""One pass over a batch in cache-sized tiles: the network's values, a functional of its slopes, and all gradients.

A tile goes up through the layers, hands its slopes `d_l = phi'(z_l)` (and curvatures `phi''(z_l)`) to a form
(`fastscore.ops.mlp_forms`: a trace, a quadratic form, a Laplacian), asks `upstream` for the gradient of the loss in
what came out, and comes back down once:

    dz_l = dh_l phi'(z_l) + dd_l phi''(z_l) + dc_l phi'''(z_l),    dh_{l-1} = dz_l W_l (+ dh_l for a residual layer),

with `dd_l` and `dc_l` the gradients of the form in slopes and curvatures. Nothing of a tile outlives it but its
outputs and its contribution to the gradients, so memory does not depend on the batch, on D or on the probes. Where
everything that is done to a tile is compiled, it is written down once and C does it to small tiles
(`fastscore.ops._cpu_program`); else Python goes from tile to tile.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fastscore.ops import _cpu_build, _cpu_layers, _cpu_program, _cpu_threads, mlp_passes
from fastscore.ops._cpu import accumulate, matmul
from fastscore.ops._cpu_program import Arrays, Noise, Recorder
from fastscore.ops.mlp_scratch import Scratch
from fastscore.reference.mlp import MLP, Shifts

Key = tuple[str, int]
Above = tuple[Tensor | None, tuple[Tensor | None, ...]]

# Elements of one [rows, width] array of a tile: 1 MiB in float32, so that the handful a layer touches stay in the
# cache; a GPU wants its arrays large instead.
_TILE = {"cpu": 1 << 18}
_TILE_ELSEWHERE = 1 << 24


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
        widths: of its values.
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


def evaluate(mlp: MLP, x: Tensor, shifts: Shifts, form: Form) -> tuple[Tensor, ...]:
    """Return the network's output and the form's values, without gradients."""
    if _is_programmed(mlp, x, form):
        return _evaluate(*_in_rows(mlp, x, shifts), form)
    size = tile_rows(x, mlp, form.columns)

    def run(part: slice) -> list[Tensor]:
        scratch, own, outputs = mlp_passes.kept(x, mlp), copy.copy(form), None
        for rows in tiles(part, size):
            out, _, jets = ascend(mlp, x[rows], shifts, rows, own.order, scratch)
            outputs = _store(outputs, rows, part, (out, *own.value(rows, jets, scratch)))
        return outputs or []

    found = _cpu_threads.over(x, size, run)
    return tuple(found[0] if len(found) == 1 else map(torch.cat, zip(*found, strict=True)))


def _evaluate(mlp: MLP, x: Tensor, shifts: Shifts, form: Form) -> tuple[Tensor, ...]:
    """The same by a program."""
    outputs = tuple(x.new_empty(len(x), width) for width in (len(mlp.weights[-1]), *form.widths))
    arrays = _arrays(mlp, form, (x, *shifts, *outputs))

    def record(recorder: Recorder) -> None:
        own, rows = copy.copy(form), slice(0, recorder.tile)
        out, _, jets = ascend(mlp, x[rows], shifts, rows, own.order, recorder)
        for output, made in zip(outputs, (out, *own.value(rows, jets, recorder)), strict=True):
            recorder.mix(output[rows], made)

    program = _cpu_program.program(("evaluate", _key(mlp, form)), arrays, record)
    _cpu_threads.over(x, _cpu_program.ROWS, lambda part: program.run(part, arrays, form.noise, mlp_passes.kept(x, mlp)))
    return outputs


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
    batch = {key: x.new_zeros(wanted[key].shape) for key in wanted if key[0] in ("x", "shift")}
    summed = {key: tensor for key, tensor in wanted.items() if key not in batch}
    size = sum(tensor.numel() for tensor in summed.values())

    def of_tile(rows: slice, own: Form, scratch: Scratch, sums: Gradients) -> None:
        out, values, jets = ascend(mlp, x[rows], shifts, rows, own.order + 1, scratch)
        found, recorder = own.value(rows, jets, scratch), scratch.recorder
        above = upstream(rows, out, found) if recorder is None else upstream.record(rows, out, found, recorder)
        slopes, curvatures = own.pullback(above[1], jets, scratch, sums)
        for layer, dz in descend(mlp, above[0], values, jets, slopes, curvatures, scale, scratch, sums):
            if ("shift", layer) in batch:
                mlp_passes.mix(batch["shift", layer][rows], dz, None, scratch)
            if layer == 0 and ("x", 0) in batch:
                matmul(dz, mlp.weights[0], batch["x", 0][rows])

    def run(part: slice) -> Tensor:
        scratch, own, sums = mlp_passes.kept(x, mlp), copy.copy(form), Gradients(summed, x.new_zeros(size))
        for rows in tiles(part, tile_rows(x, mlp, form.columns)):
            of_tile(rows, own, scratch, sums)
        return sums.flat

    if _is_programmed(mlp, x, form):
        mlp, x, shifts = _in_rows(mlp, x, shifts)
        arrays = _arrays(mlp, form, (x, *shifts, *upstream.arrays, *batch.values()))
        key = (_key(mlp, form), tuple((key, t.shape) for key, t in summed.items()), tuple(batch), scale, upstream.key)

        def record(recorder: Recorder) -> None:
            of_tile(
                slice(0, recorder.tile), copy.copy(form), recorder, Gradients(summed, recorder.sums(size), recorder)
            )

        program = _cpu_program.program(key, arrays, record)
        noise = form.noise or upstream.noise
        parts = _cpu_threads.over(
            x, _cpu_program.ROWS, lambda part: program.run(part, arrays, noise, mlp_passes.kept(x, mlp))
        )
        upstream.settle([sum(numbers) for numbers in zip(*(numbers for _, numbers in parts), strict=True)])
        totals = [sums for sums, _ in parts]
    else:
        totals = _cpu_threads.over(x, tile_rows(x, mlp, form.columns), run)
    for other in totals[1:]:
        totals[0].add_(other)
    result = Gradients(summed, totals[0]).result()
    for name in result:
        if name[0] == "form":
            result[name].mul_(scale)
    return {**result, **batch}


def _is_programmed(mlp: MLP, x: Tensor, form: Form) -> bool:
    """Whether all that is done to tiles of x is compiled."""
    if not form.recorded or len(x) < _cpu_program.ROWS or not _cpu_build.tuned():
        return False
    return all(map(_cpu_layers.knows, mlp.activations)) and bool(_cpu_layers.layers(x, len(x) * max(mlp.widths)))


def _key(mlp: MLP, form: Form) -> Hashable:
    """What a program depends on beside the shapes of its arrays."""
    probes = None if form.noise is None else form.noise.kind
    return form.kind, form.columns, probes, mlp.activations, mlp.residuals


def _in_rows(mlp: MLP, x: Tensor, shifts: Shifts) -> tuple[MLP, Tensor, Shifts]:
    """The same with contiguous rows, of which several may be one."""
    biases, shifts = (
        tuple(t if t is None or t.stride(-1) == 1 else t.contiguous() for t in tensors)
        for tensors in (mlp.biases, shifts)
    )
    return replace(mlp, biases=biases), x.contiguous(), shifts


def _arrays(mlp: MLP, form: Form, batch: Sequence[Tensor | None]) -> Arrays:
    return Arrays((*mlp.weights, *mlp.biases, *form.parameters), batch)


def _store(outputs: list[Tensor] | None, rows: slice, part: slice, values: tuple[Tensor, ...]) -> list[Tensor]:
    """Write the values of a tile to its rows of the outputs of a part of the batch, made at the first tile."""
    if outputs is None:
        outputs = [value.new_empty((part.stop - part.start, *value.shape[1:])) for value in values]
    for output, value in zip(outputs, values, strict=True):
        output[rows.start - part.start : rows.stop - part.start] = value
    return outputs
