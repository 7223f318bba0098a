"""Matrix products on whichever library is fast on this machine's CPU.

MKL, behind `torch.mm`, takes its AVX2 code path on an AMD processor that has AVX-512, at half the speed of oneDNN,
which torch uses for convolutions: there a large product is written as a 1x1 convolution. The choice follows the
processor, not a timing, so results do not change from run to run.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from fastscore.ops import _cpu_layers

# Below these a convolution's set-up costs more than the product gains.
_ROWS, _SIDE = 512, 64
# A product of K terms has few columns where K is at least this many times their number.
_NARROW = 8
# Up to here a pass over the other side beats a library's product.
_FEW = 3


def matmul(left: Tensor, right: Tensor, out: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `left right (+ bias)`, `[n, K] x [K, N]`, in `out` or in new memory."""
    if (compiled := _few(left, left.shape[1], right.shape[1], out)) is not None:
        compiled.few_terms(left, right, bias, out)
        return out
    if _convolves(left, right.shape[1]):
        made = F.conv2d(_image(left), right.t()[:, :, None, None], bias)
        return made.permute(0, 2, 3, 1).reshape(len(left), -1)
    if _NARROW * right.shape[1] <= right.shape[0] and left.device.type == "cpu":
        made = torch.mm(right.t(), left.t()).t()  # along the long side: MKL is slow at few columns
        return out.copy_(made) if bias is None else torch.add(made, bias, out=out)
    if bias is None:
        return torch.mm(left, right, out=out)
    return torch.addmm(bias, left, right, out=out)


def accumulate(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add `left' right`, `[n, N]' x [n, K]`, to `total` in place."""
    if (compiled := _few(left, left.shape[1], right.shape[1], total)) is not None:
        compiled.few_rows(total, left, right)
    elif _convolves(left, right.shape[1]):
        size = (left.shape[1], right.shape[1], 1, 1)
        total.add_(conv2d_weight(_image(right), size, _image(left)).view(size[:2]))
    else:
        total.addmm_(left.t(), right)


def _few(rows: Tensor, side: int, other: int, out: Tensor) -> _cpu_layers.Layers | None:
    """The compiled passes that serve a product with so short a side, if there are any."""
    if not 0 < side <= _FEW or not out.is_contiguous():
        return None
    return _cpu_layers.layers(rows, len(rows) * other)


def _image(rows: Tensor) -> Tensor:
    """`[n, C]` as an image `[1, C, n, 1]` with its channels together in memory, strides of torch.channels_last."""
    return rows.contiguous().view(1, len(rows), 1, -1).permute(0, 3, 1, 2)


def _convolves(left: Tensor, side: int) -> bool:
    """Whether a product of `left`, with another side of this length, is large, and faster as a convolution."""
    if not mkl_is_slow() or left.device.type != "cpu" or left.dtype != torch.float32:
        return False
    return len(left) >= _ROWS and min(left.shape[1], side) >= _SIDE


@functools.cache
def mkl_is_slow() -> bool:
    """Whether the processor is an AMD one with AVX-512."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkldnn.is_available():
        return False
    known = Path("/proc/cpuinfo")
    return known.exists() and "AuthenticAMD" in known.read_text()
