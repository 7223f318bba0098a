"""All tiles of a batch, one after the other, in as many threads as there are.

Memory does not depend on the batch, on D or on the probes. Where everything that is done to a tile is compiled, C goes
from tile to tile (`fastscore.ops.mlp_programs`), else Python does.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from fastscore.ops import _cpu_threads, mlp_passes, mlp_programs
from fastscore.ops.mlp_tile import Form, Gradients, Key, Sought, ascend
from fastscore.reference.mlp import MLP, Shifts

# Elements of one [rows, width] array of a tile: 1 MiB in float32, so that the handful a layer touches stay in the
# cache; a GPU wants its arrays large instead.
_TILE = {"cpu": 1 << 18}
_TILE_ELSEWHERE = 1 << 24


def tile_rows(x: Tensor, mlp: MLP, columns: int) -> int:
    """Rows of a tile: its largest array has about `_TILE` elements."""
    width = mlp_programs.width(mlp, columns)
    rows = max(16, _TILE.get(x.device.type, _TILE_ELSEWHERE) // width)
    return _cpu_threads.share(x, rows, width)


def rows(x: Tensor, mlp: MLP, form: Form) -> int:
    """Rows of a tile as the functions below choose them."""
    served = mlp_programs.serve(mlp, x, (), form)
    return mlp_programs.rows(x, mlp, form) if served else tile_rows(x, mlp, form.columns)


def tiles(part: slice, size: int) -> Iterator[slice]:
    """Slices of `size` rows of a part of the batch."""
    return (slice(start, min(start + size, part.stop)) for start in range(part.start, part.stop, size))


def evaluate(mlp: MLP, x: Tensor, shifts: Shifts, form: Form) -> tuple[Tensor, ...]:
    """Return the network's output and the form's values, without gradients."""
    if mlp_programs.serve(mlp, x, shifts, form):
        return mlp_programs.evaluate(mlp, x, shifts, form)
    size = tile_rows(x, mlp, form.columns)

    def run(part: slice) -> list[Tensor]:
        scratch, own, outputs = mlp_passes.kept(x, mlp), copy.copy(form), None
        for rows in tiles(part, size):
            out, _, jets = ascend(mlp, x[rows], shifts, rows, own.order, scratch)
            outputs = _store(outputs, rows, part, (out, *own.value(rows, jets, scratch)))
        return outputs or []

    found = _cpu_threads.over(x, size, run)
    return tuple(found[0] if len(found) == 1 else map(torch.cat, zip(*found, strict=True)))


def differentiate(sought: Sought) -> dict[Key, Tensor]:
    """Return the gradients of `sum(upstream * outputs)` in everything wanted."""
    mlp, x, form = sought.mlp, sought.x, sought.form
    if mlp_programs.serve(mlp, x, sought.shifts, form):
        return mlp_programs.differentiate(sought)
    size = tile_rows(x, mlp, form.columns)

    def run(part: slice) -> Tensor:
        scratch, sums = mlp_passes.kept(x, mlp), Gradients(sought.summed, x.new_zeros(sought.size))
        for rows in tiles(part, size):
            sought.of_tile(rows, scratch, sums)
        return sums.flat

    return sought.result(_cpu_threads.over(x, size, run))


def _store(outputs: list[Tensor] | None, rows: slice, part: slice, values: tuple[Tensor, ...]) -> list[Tensor]:
    """Write the values of a tile to its rows of the outputs of a part of the batch, made at the first tile."""
    if outputs is None:
        outputs = [value.new_empty((part.stop - part.start, *value.shape[1:])) for value in values]
    for output, value in zip(outputs, values, strict=True):
        output[rows.start - part.start : rows.stop - part.start] = value
    return outputs
