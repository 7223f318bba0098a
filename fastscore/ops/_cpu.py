"""Matrix products of a tile: compiled where there is a compiler, torch's otherwise.

Our own are there for two reasons. On an AMD processor the library behind `torch.mm` runs at half the speed that the
processor has; and a tile's products are small and many, so that a call must cost little.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastscore.ops import _cpu_build, _cpu_layers

# Without a compiler: a product of K terms has few columns where K is at least this many times their number.
_NARROW = 8


def matmul(left: Tensor, right: Tensor, out: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `left right (+ bias)`, `[n, K] x [K, N]`, in `out`."""
    if (compiled := _compiled(left, right, out)) is not None:
        compiled.product(out, left, right, bias)
        return out
    if _NARROW * right.shape[1] <= right.shape[0] and left.device.type == "cpu":
        made = torch.mm(right.t(), left.t()).t()  # along the long side: MKL is slow at few columns
        return out.copy_(made) if bias is None else torch.add(made, bias, out=out)
    if bias is None:
        return torch.mm(left, right, out=out)
    return torch.addmm(bias, left, right, out=out)


def accumulate(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add `left' right`, `[n, N]' x [n, K]`, to `total` in place."""
    if (compiled := _compiled(left, right, total)) is not None:
        compiled.product(total, left.t(), right, add=True)
    else:
        total.addmm_(left.t(), right)


def _compiled(left: Tensor, right: Tensor, out: Tensor) -> _cpu_layers.Layers | None:
    """The compiled product for the rows of left, if there is one and rows of out are contiguous."""
    if out.stride(-1) != 1 or not _cpu_build.tuned():
        return None
    return _cpu_layers.layers(left, len(left) * max(left.shape[1], right.shape[1]))
