"""What is done to a tile between its matrix products, compiled where it can be, and the memory that it is done in."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from fastscore.ops import _cpu_layers
from fastscore.ops.mlp_scratch import Scratch
from fastscore.reference.activations import ACTIVATIONS
from fastscore.reference.mlp import MLP

# What a thread keeps between calls: enough for the usual network, and the shapes of a few batch sizes.
_KEPT_BYTES = 64 << 20
_KEPT_VIEWS = 1000


_local = threading.local()


def kept(x: Tensor, mlp: MLP) -> Scratch:
    """This thread's scratch for a batch x of a network, kept between calls while it is small.

    On another device it is new: torch's allocator keeps that memory, and knows of streams.
    """
    if x.device.type != "cpu":
        return Scratch(x)
    known: dict[tuple[torch.dtype, torch.device], Scratch] = _local.__dict__.setdefault("known", {})
    found = known.get((x.dtype, x.device))
    if found is None or found.nbytes() > _KEPT_BYTES or len(found.views) > _KEPT_VIEWS:
        found = known[x.dtype, x.device] = Scratch(x)
    found.layers = _cpu_layers.layers(x, len(x) * max(mlp.widths))
    return found


def derivatives(
    name: str, z: Tensor, bias: Tensor | None, order: int, scratch: Scratch, layer: int
) -> tuple[Tensor, ...]:
    """`ACTIVATIONS[name].derivatives(z + bias, order)` in as few passes as can be; may overwrite z.

    Without compiled passes, SiLU up to the second: with `s = sigmoid(z)` and `h = z s`, `phi' = s + h - h s` and
    `phi'' = s + phi' - 2 s phi'`.
    """
    if scratch.layers is not None and _cpu_layers.knows(name):
        outputs = (z, *(scratch(f"phi{k}{layer}", *z.shape) for k in range(order)))
        scratch.layers.jets(name, z, bias, outputs)
        return outputs
    if bias is not None:
        z.add_(bias)
    if name != "silu" or not 1 <= order <= 2:
        return ACTIVATIONS[name].derivatives(z, order)
    s = torch.sigmoid(z, out=scratch("temporary", *z.shape))
    h = torch.mul(z, s, out=scratch(f"phi0{layer}", *z.shape))
    slope = torch.add(s, h, out=scratch(f"phi1{layer}", *z.shape)).addcmul_(h, s, value=-1)
    if order == 1:
        return h, slope
    return h, slope, torch.add(slope, s, out=z).addcmul_(slope, s, value=-2)


def pull(
    slope: Tensor,
    above: Tensor | None,
    bent: list[tuple[Tensor, Tensor]],
    scale: float,
    total: Tensor | None,
    scratch: Scratch,
) -> Tensor:
    """`slope above + scale sum(a b for a, b in bent)`, in place of the slope; its sum over rows is added to total."""
    if scratch.layers is not None:
        scratch.layers.pull(slope, above, bent, scale, total)
        return slope
    dz = slope.zero_() if above is None else slope.mul_(above)
    for left, right in bent:
        dz.addcmul_(left, right, value=scale)
    if total is not None:
        total.add_(dz.sum(0))
    return dz


def row_products(left: Tensor, right: Tensor, scratch: Scratch) -> Tensor:
    """`sum_j left[:, j] right[:, j]`."""
    if scratch.layers is not None:
        return scratch.layers.row_products(left, right)
    return torch.mul(left, right, out=scratch("temporary", *left.shape)).sum(1)


def mix(
    out: Tensor,
    a: Tensor,
    b: Tensor | None,
    scratch: Scratch,
    *,
    left: float | Tensor = 1.0,
    right: float | Tensor = 1.0,
) -> Tensor:
    """`out = left a (+ right b)` on `[n, width]`, with left and right a number or `[n, 1]`."""
    if scratch.recorder is not None:
        scratch.recorder.mix(out, a, b, left, right)
        return out
    if b is None:
        return torch.mul(a, left, out=out)
    a = a if isinstance(left, float) and left == 1.0 else a * left
    b = b if isinstance(right, float) and right == 1.0 else b * right
    return torch.add(a, b, out=out)


def contract(left: Tensor, right: Tensor, name: str, scratch: Scratch) -> Tensor:
    """`sum_k left[:, k] right[:, k]`, from `[n, K, H]` to `[n, H]`; right may be shared by the rows, `[K, H]`."""
    count, columns, width = left.shape
    if scratch.layers is not None:
        scratch.layers.contract(left, right, out := scratch(name, count, width))
        return out
    if columns == 1:
        return torch.mul(left, right, out=scratch(name, count, 1, width)).view(count, width)
    product = torch.mul(left, right, out=scratch("contracted", *left.shape))
    return torch.sum(product, 1, out=scratch(name, count, width))


def times(left: Tensor, right: Tensor, name: str, scratch: Scratch) -> Tensor:
    """`left right`, element by element; right may be one row `[H]` for all."""
    return contract(left.unsqueeze(1), right.unsqueeze(-2), name, scratch)


def spread(
    array: Tensor,
    factor: Tensor,
    out: Tensor,
    scratch: Scratch,
    *,
    scale: float = 1.0,
    plus: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """`out[:, k] = scale array[:, k] factor (+ b[:, k] e for plus = (b, e))`, of `[n, K, H]` and `[n, H]`.

    The array may be shared by the rows, `[K, H]`.
    """
    if scratch.layers is not None:
        scratch.layers.spread(out, scale, [(array, factor)] if plus is None else [(array, factor), plus])
        return out
    torch.mul(array, factor.unsqueeze(1), out=out)
    if scale != 1.0:
        out.mul_(scale)
    return out if plus is None else out.addcmul_(plus[0], plus[1].unsqueeze(1))
