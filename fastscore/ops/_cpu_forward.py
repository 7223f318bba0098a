"""A structured network's value on a CPU, without gradients, in tiles of the batch that stay in the cache."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from fastscore.ops import _cpu_threads
from fastscore.ops._cpu import matmul
from fastscore.ops.mlp_passes import kept
from fastscore.ops.mlp_scratch import Scratch
from fastscore.ops.mlp_tiles import tile_rows, tiles
from fastscore.reference.activations import ACTIVATIONS
from fastscore.reference.mlp import MLP, Shifts


def forward(mlp: MLP, x: Tensor, shifts: Shifts = ()) -> Tensor:
    """The output `[B, D]` at rows `[B, D]`, equal to `reference.mlp.forward` up to rounding; no autograd.

    Buffers are reused from tile to tile and call to call: a fresh one costs more in page faults than it saves.
    """
    size, out = tile_rows(x, mlp, 1), x.new_empty(len(x), len(mlp.weights[-1]))

    def run(part: slice) -> None:
        scratch = kept(x, mlp)
        for rows in tiles(part, size):
            _tile(mlp, x[rows], shifts, rows, out[rows], scratch)

    _cpu_threads.over(x, size, run)
    return out


def _tile(mlp: MLP, h: Tensor, shifts: Shifts, rows: slice, out: Tensor, scratch: Scratch) -> None:
    for layer, weight in enumerate(mlp.weights):
        last = layer == mlp.depth
        into = out if last else scratch(f"forward{layer}", len(h), len(weight))
        z = matmul(h, weight.t(), into, mlp.biases[layer])
        if shifts and (shift := shifts[layer]) is not None:
            z.add_(shift[rows] if len(shift) > 1 else shift)
        if last:
            break
        name = mlp.activations[layer]
        value = F.silu(z, inplace=True) if name == "silu" else ACTIVATIONS[name].derivatives(z, 0)[0]
        h = value + h if mlp.residuals[layer] else value
