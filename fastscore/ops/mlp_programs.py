"""Tiles of a batch on a CPU by programs (`fastscore.ops._cpu_program`): for networks and forms compiled throughout."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from dataclasses import replace

from torch import Tensor

from fastscore.ops import _cpu_build, _cpu_layers, _cpu_program, _cpu_threads, mlp_passes
from fastscore.ops._cpu_program import Arrays, Noise, Program, Recorder
from fastscore.ops.mlp_tile import Form, Gradients, Key, Sought, ascend
from fastscore.reference.mlp import MLP, Shifts


def width(mlp: MLP, columns: int) -> int:
    """The columns of a tile's largest array."""
    return max(*mlp.widths, mlp.dim) * max(1, columns)


def rows(x: Tensor, mlp: MLP, form: Form) -> int:
    """Rows of a tile; of a small batch no more than leave one for every thread."""
    wide = width(mlp, form.columns)
    return _cpu_threads.share(x, _cpu_program.rows(wide), wide)


def serve(mlp: MLP, x: Tensor, shifts: Shifts, form: Form) -> bool:
    """Whether all that is done to tiles of x is compiled."""
    if not form.recorded or len(x) < _cpu_program.ROWS or not _cpu_build.tuned() or _ambiguous(mlp, x, shifts):
        return False
    return all(map(_cpu_layers.knows, mlp.activations)) and bool(_cpu_layers.layers(x, len(x) * max(mlp.widths)))


def evaluate(mlp: MLP, x: Tensor, shifts: Shifts, form: Form) -> tuple[Tensor, ...]:
    """As `mlp_tiles.evaluate`."""
    mlp, x, shifts = _in_rows(mlp, x, shifts)
    widths = (len(mlp.weights[-1]), *form.widths)
    outputs = tuple(x.new_empty(len(x), width) if width else x.new_empty(len(x)) for width in widths)
    arrays, tile = _arrays(mlp, form, (x, *shifts, *outputs)), rows(x, mlp, form)

    def record(recorder: Recorder) -> None:
        own, first = copy.copy(form), slice(0, tile)
        out, _, jets = ascend(mlp, x[first], shifts, first, own.order, recorder)
        for output, made in zip(outputs, (out, *own.value(first, jets, recorder)), strict=True):
            recorder.mix(*(array.view(len(array), -1) for array in (output[first], made)))

    program = _cpu_program.program(("evaluate", _key(mlp, form)), arrays, tile, record)
    _run(program, arrays, form.noise, mlp, x, form)
    return outputs


def differentiate(sought: Sought) -> dict[Key, Tensor]:
    """As `mlp_tiles.differentiate`."""
    mlp, x, shifts = sought.mlp, sought.x, sought.shifts = _in_rows(sought.mlp, sought.x, sought.shifts)
    form, upstream = sought.form, sought.upstream
    arrays = _arrays(mlp, form, (x, *shifts, *upstream.arrays, *sought.batch.values()))
    tile = rows(x, mlp, form)
    summed = tuple((key, tensor.shape) for key, tensor in sought.summed.items())

    def record(recorder: Recorder) -> None:
        sums = Gradients(sought.summed, recorder.sums(sought.size), recorder)
        sought.of_tile(slice(0, tile), recorder, sums)

    key = (_key(mlp, form), summed, tuple(sought.batch), sought.scale, upstream.key)
    program, noise = _cpu_program.program(key, arrays, tile, record), form.noise or upstream.noise
    parts = _run(program, arrays, noise, mlp, x, form)
    upstream.settle([sum(numbers) for numbers in zip(*(numbers for _, numbers in parts), strict=True)])
    return sought.result([sums for sums, _ in parts])


def _run(
    program: Program, arrays: Arrays, noise: Noise | None, mlp: MLP, x: Tensor, form: Form
) -> list[tuple[Tensor, list[float]]]:
    """The sums and numbers of parts of the batch, on as many threads as it repays."""
    rows = program.tile if _cpu_threads.repays(x, width(mlp, form.columns)) else len(x)
    return _cpu_threads.over(x, rows, lambda part: program.run(part, arrays, noise, mlp_passes.kept(x, mlp)))


def _ambiguous(mlp: MLP, x: Tensor, shifts: Shifts) -> bool:
    """Whether one address is that of rows here and of something shared there, as of x and a condition that is x[0]."""
    shared = [(t.data_ptr(), 0) for t in (*mlp.weights, *mlp.biases) if t is not None]
    steps = dict(shared)
    return any(steps.setdefault(t.data_ptr(), t.stride(0)) != t.stride(0) for t in (x, *shifts) if t is not None)


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
