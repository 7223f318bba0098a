"""Multilayer perceptrons in compiled code: whole chains of one, and its value, in float32 on a CPU.

A chain's bits are those of a sum in the order of the inputs, by fused multiply-adds where the processor has them, and
do not depend on the batch it is in.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fastscore.ops import _cpu_call, _cpu_chain
from fastscore.reference.mlp import MLP, Shifts

_KINDS = {"silu": 1, "tanh": 2, "softplus": 3, "gelu_tanh": 4, "softsign": 5, "gelu": 6}  # as the source numbers them


@dataclass(frozen=True)
class Network:
    """`c_out net(c_in x) + c_skip x`, or minus the gradient of an energy, packed for the kernels by `pack`."""

    sizes: tuple[int, ...]  # D, H_1, ..., H_L, D; of an energy D, H_1, ..., H_L, ..., H_1, D
    kinds: tuple[int, ...]
    residuals: tuple[bool, ...]
    panels: Tensor
    shifts: Tensor | None  # [sum of all layers' outputs, rows], rows B and what fills the last block
    scales: Tensor | None  # [3, rows]
    turn: int = 0  # hidden layers of an energy, whose other layers are their transposes; 0 for a score
    top: Tensor | None = None  # [H_L], minus the weights of an energy's output
    base: float = 0.0  # minus its bias

    def constants(self) -> tuple[object, ...]:
        """What the kernels take it as."""
        layers, rows = len(self.kinds), self.shifts if self.scales is None else self.scales
        return (
            ctypes.c_int(layers),
            (ctypes.c_int * (layers + 1))(*self.sizes),
            (ctypes.c_int * layers)(*self.kinds),
            (ctypes.c_int * layers)(*self.residuals),
            *map(_cpu_call.pointer, (self.panels, self.shifts, self.scales)),
            ctypes.c_uint64(0 if rows is None else rows.shape[1]),
            ctypes.c_int(self.turn),
            _cpu_call.pointer(self.top),
            ctypes.c_float(self.base),
        )

    def descends(self, other: Network) -> bool:
        """Whether the other is an energy of the same gradient, none of them with shifts of its own for a chain."""
        if self.top is None or other.top is None or self.shifts is not None or other.shifts is not None:
            return False
        alike = (self.sizes, self.kinds) == (other.sizes, other.kinds)
        return alike and torch.equal(self.panels, other.panels) and torch.equal(self.top, other.top)

    def work(self) -> int:
        """How many exponentials cost as much as one feature of the value."""
        return max(1, self.panels.numel() // (16 * self.sizes[0]))


def pack(
    mlp: MLP, x: Tensor, shifts: Shifts = (), scales: Sequence[Tensor | None] = (), *, energy: bool = False
) -> Network | None:
    """The network for rows of x, or None where nothing compiled can run it.

    Args:
        mlp: the network of a score, or of an energy, of the dtype and device of x.
        x: `[B, D]`.
        shifts: one `[B, H_l]`, `[1, H_l]` or None for each of the linear layers, or `()`.
        scales: c_in, c_out and c_skip of a score, each `[B, 1]`, `[1, 1]` or None, or `()`.
        energy: the network is an energy's, whose score (and logarithm of the density) is asked for; its output's shift
            is not looked at.
    """
    if not set(mlp.activations) <= set(_KINDS) or (found := _cpu_chain.library(x)) is None:
        return None
    if energy and (any(mlp.residuals) or any(scale is not None for scale in scales)):
        return None
    hidden = len(mlp.weights) - energy
    layers = list(zip(mlp.weights, mlp.biases, shifts or (None,) * len(mlp.weights), strict=True))[:hidden]
    kinds = [*(_KINDS[name] for name in mlp.activations), 0]
    if energy:
        layers += [(weight.t(), None, None) for weight in reversed(mlp.weights[:-1])]
        kinds[-1:] = [0] * hidden
    panel, panels, added = found.network_panel(), [], []
    with torch.no_grad():
        for weight, bias, shift in layers:
            first = weight.new_zeros(len(weight)) if bias is None else bias
            if shift is not None and (len(shift) == 1 or shift.stride(0) == 0):
                first, shift = first + shift[0], None
            added.append(shift)
            rows = F.pad(torch.cat([first.unsqueeze(1), weight], 1), (0, 0, 0, -len(weight) % panel))
            panels.append(rows.view(-1, panel, rows.shape[1]).transpose(1, 2).flatten())
        widths = [len(weight) for weight, _, _ in layers]
        return Network(
            sizes=(x.shape[1], *widths),
            kinds=tuple(kinds),
            residuals=(False,) * len(kinds) if energy else (*mlp.residuals, False),
            panels=torch.cat(panels),
            shifts=_columns(x, added[:hidden], widths[:hidden], [0.0] * hidden),
            scales=_columns(x, scales, [1, 1, 1], [1.0, 1.0, 0.0]),
            turn=hidden if energy else 0,
            top=-mlp.weights[-1][0] if energy else None,
            base=-float(mlp.biases[-1]) if energy and mlp.biases[-1] is not None else 0.0,
        )


def _columns(x: Tensor, parts: Sequence[Tensor | None], widths: list[int], absent: list[float]) -> Tensor | None:
    """Parts `[B or 1, width]` as one `[sum of widths, rows]`, a row for every row of x and of the last block."""
    if all(part is None for part in parts):
        return None
    found = x.new_zeros(sum(widths), -(-len(x) // _cpu_chain.BLOCK) * _cpu_chain.BLOCK)
    for into, part, value in zip(found[:, : len(x)].split(widths), parts, absent, strict=True):
        into.copy_(part.t()) if part is not None else into.fill_(value)
    return found
