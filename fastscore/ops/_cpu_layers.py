"""Compiled products of matrices and passes over a layer of a network (`_cpu_source_products`, `_cpu_source_layers`).

Whether they serve a batch depends on its size and on the machine, never on what ran before: what a training run
computes does not change from one run to the next.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fastscore.ops import _cpu_build, _cpu_chain
from fastscore.reference.activations import ACTIVATIONS

_REPAYS = 1 << 14  # elements of a layer of a batch: some thousand steps of it repay the compilation, once a machine
# In the table of C's `jets`.
INDEX = {"silu": 0, "softplus": 1, "tanh": 2, "softsign": 3, "gelu": 4, "gelu_tanh": 5}
_UINT, _SIZE, _POINTER, _FLOAT = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_float


class Layers:
    """The functions of the library, on tensors; what is not contiguous is copied first."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._jets, self._pull, self._row_products = library.jets, library.pull, library.row_products
        self._contract, self._spread = library.contract, library.spread
        self._product = library.product
        self._jets.argtypes = (_UINT, _UINT, _SIZE, _SIZE, *[_POINTER] * 6)
        self._pull.argtypes = (_SIZE, _SIZE, *[_POINTER] * 5, _FLOAT, _POINTER, _POINTER)
        self._row_products.argtypes = (_SIZE, _SIZE, *[_POINTER] * 3)
        self._contract.argtypes = (_SIZE, _SIZE, _SIZE, _POINTER, _POINTER, ctypes.c_int, _POINTER)
        self._spread.argtypes = (_SIZE, _SIZE, _SIZE, _FLOAT, _POINTER, _POINTER, ctypes.c_int, *[_POINTER] * 3)
        operand = (_POINTER, _SIZE, _SIZE)
        self._product.argtypes = (_SIZE, _SIZE, _SIZE, *operand, *operand, _POINTER, ctypes.c_int, _POINTER, _SIZE)
        functions = (self._jets, self._pull, self._row_products, self._contract, self._spread)
        for function in functions:
            function.restype = None

    def jets(self, name: str, z: Tensor, bias: Tensor | None, outputs: Sequence[Tensor]) -> None:
        """`phi(z + bias), phi'(z + bias), ...` into as many outputs, 1 to 4, of which one may be z."""
        addresses = [output.data_ptr() for output in outputs] + [None] * (4 - len(outputs))
        n, width = z.shape
        z, bias = z.contiguous(), zeros(width) if bias is None else bias.contiguous()
        self._jets(INDEX[name], len(outputs) - 1, n, width, z.data_ptr(), bias.data_ptr(), *addresses)

    def pull(
        self, d: Tensor, above: Tensor | None, bent: Sequence[tuple[Tensor, Tensor]], scale: float, total: Tensor | None
    ) -> None:
        """`d = d above + scale sum(a b for a, b in bent)` in place, up to two pairs; adds the sum of rows to total."""
        kept = [array.contiguous() for pair in bent for array in pair]
        first = None if above is None else above.contiguous()
        addresses = [array.data_ptr() for array in kept] + [None] * (4 - len(kept))
        summed = None if total is None else total.data_ptr()
        self._pull(*d.shape, None if first is None else first.data_ptr(), *addresses, scale, d.data_ptr(), summed)

    def contract(self, left: Tensor, right: Tensor, out: Tensor) -> None:
        """`sum_k left[:, k] right[:, k]`, of `[n, K, H]` to `[n, H]`; right may be shared by the rows, `[K, H]`."""
        left, right = left.contiguous(), right.contiguous()
        self._contract(*left.shape, left.data_ptr(), right.data_ptr(), right.ndim == 2, out.data_ptr())

    def spread(self, out: Tensor, scale: float, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """`out[:, k] = scale a[:, k] d (+ b[:, k] e)` for one or two pairs of `[n, K, H]` and `[n, H]`.

        The first array may be shared by the rows, `[K, H]`.
        """
        kept = [array.contiguous() for pair in pairs for array in pair]
        addresses = [array.data_ptr() for array in kept] + [None] * (4 - len(kept))
        self._spread(*out.shape, scale, *addresses[:2], pairs[0][0].ndim == 2, *addresses[2:], out.data_ptr())

    def row_products(self, left: Tensor, right: Tensor) -> Tensor:
        """`sum_j left[:, j] right[:, j]`."""
        left, right, out = left.contiguous(), right.contiguous(), left.new_empty(len(left))
        self._row_products(*left.shape, left.data_ptr(), right.data_ptr(), out.data_ptr())
        return out

    def product(
        self, out: Tensor, left: Tensor, right: Tensor, bias: Tensor | None = None, *, add: bool = False
    ) -> None:
        """`out = left right (+ bias)`, or added to out: any strides, but rows of out that are contiguous."""
        added = None if bias is None else bias.contiguous()
        address = None if added is None else added.data_ptr()
        operands = (left.data_ptr(), *left.stride(), right.data_ptr(), *right.stride())
        if self._product(*out.shape, len(right), *operands, address, add, out.data_ptr(), out.stride(0)):
            raise MemoryError("no memory for a product of matrices")


_local = threading.local()


@contextlib.contextmanager
def recording(recorder: Any) -> Iterator[None]:
    """Give out, in this thread, what writes the passes down (`_cpu_program.Recorder`) in place of the passes."""
    _local.recorder = recorder
    try:
        yield
    finally:
        _local.recorder = None


@functools.lru_cache(maxsize=64)
def zeros(width: int) -> Tensor:
    """No bias."""
    return torch.zeros(width, dtype=torch.float32, device="cpu")


def layers(x: Tensor, elements: int) -> Layers | None:
    """The compiled passes for a batch like x whose layers have so many elements, or None: do it in torch."""
    if (recorder := getattr(_local, "recorder", None)) is not None:
        return recorder  # type: ignore[no-any-return]
    if elements < _REPAYS or not _cpu_chain.plain(x):
        return None
    library = _cpu_build.library(build=True)
    return None if library is None else _wrapped(library)


def knows(name: str) -> bool:
    """Whether `Layers.jets` has this activation."""
    return name in INDEX


@functools.cache
def _wrapped(library: ctypes.CDLL) -> Layers | None:
    """The functions of a library, if they compute what they should."""
    made, z = Layers(library), torch.linspace(-30.0, 30.0, 1001, dtype=torch.float32, device="cpu").view(7, 143)
    for name in INDEX:
        outputs = [torch.empty_like(z) for _ in range(4)]
        made.jets(name, z, zeros(z.shape[1]), outputs)
        expected = ACTIVATIONS[name].derivatives(z, 3)
        if not all(torch.allclose(got, want, rtol=0, atol=1e-5) for got, want in zip(outputs, expected, strict=True)):
            return None
    made.product(product := z.new_empty(7, 7), z, z.t())
    return made if torch.allclose(product, z @ z.t(), rtol=1e-5, atol=0) else None
