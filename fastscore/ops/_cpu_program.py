"""Passes over tiles as programs: Python goes through one tile and writes down what it would do, C does it to them all.

A tile small enough for a core's own cache takes some hundred microseconds, and Python as long to ask for its passes,
one thread at a time. So the tile is asked for once: to `Recorder`, which has the methods of `_cpu_layers.Layers`, every
pass is a step of a `Program`. That is kept for the next batch, by the shapes of all arrays.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastscore.ops import _cpu_build, _cpu_call, _cpu_layers
from fastscore.ops.mlp_scratch import Scratch
from fastscore.reference import philox

ROWS = 128  # of a tile: as many terms as a product sums up at a time
_ELEMENTS = 1 << 20  # of a tile's largest array, at most
_ALIGNED = 64  # bytes
_PRODUCT, _JETS, _PULL, _CONTRACT, _SPREAD, _ROW_PRODUCTS, _MIX, _TOTAL, _NUMBER, _SIGNS, _NORMALS = range(11)
_KEPT = 64  # programs


class _Slot(ctypes.Structure):
    _fields_ = (("at", ctypes.c_void_p), ("row", ctypes.c_uint64))


class _Ref(ctypes.Structure):
    _fields_ = (("slot", ctypes.c_uint64), ("offset", ctypes.c_uint64))


class _Step(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_uint64),
        ("many", ctypes.c_uint64),
        ("sizes", ctypes.c_uint64 * 8),
        ("scales", ctypes.c_double * 2),
        ("refs", _Ref * 7),
    )


class Noise(NamedTuple):
    """The noise of a program: Rademacher or normal numbers, by seed and global index of the first row."""

    kind: str
    seed: int
    first: int


class Arrays(NamedTuple):
    """The arrays of a program: what all tiles share, and what has a row for every sample."""

    shared: Sequence[Tensor | None]
    batch: Sequence[Tensor | None]

    def key(self) -> Hashable:
        """What a program depends on: shapes, and which are one and the same."""
        met: dict[int, int] = {}
        return tuple(
            None if t is None else (t.shape[k:], t.stride(), met.setdefault(t.data_ptr(), i))
            for k, arrays in enumerate(self)
            for i, t in enumerate(arrays, k * len(self.shared))
        )

    def slots(self) -> list[tuple[int, int]]:
        """Address and step of every array."""
        shared = [(0, 0) if t is None else (_cpu_call.address(t), 0) for t in self.shared]
        return shared + [(0, 0) if t is None else (_cpu_call.address(t), t.stride(0)) for t in self.batch]


class Recorder(Scratch):
    """Writes down, as steps of a program, what is asked of it for the first tile of a batch."""

    def __init__(self, arrays: Arrays, tile: int) -> None:
        self.tile = tile
        self.layers = self.recorder = cast(Any, self)  # where passes look for what does them
        self.steps: list[_Step] = []
        self.constants: list[Tensor] = []
        self.n_numbers = self.size = self.total_size = 0
        self._own: list[tuple[int, int, int, int]] = []  # begin, end, slot, offset of what a thread has for itself
        self._rooms: dict[tuple[str, int], Tensor] = {}
        self._slots = {0: 0}
        for i, (address, _) in enumerate(arrays.slots()):
            self._slots.setdefault(address, i + 3)
        self._like = next(t for t in arrays.batch if t is not None).new_empty(0)
        self._next = len(arrays.shared) + len(arrays.batch) + 3

    def __call__(self, name: str, *shape: int) -> Tensor:
        """A buffer of a thread, as `mlp_passes.Scratch` gives one."""
        size = torch.Size(shape).numel()
        if (name, size) not in self._rooms:
            made = self._rooms[name, size] = self._like.new_empty(size)
            self._own.append((made.data_ptr(), made.data_ptr() + made.nbytes, 1, self.size))
            self.size += -(-size // 16) * 16
        return self._rooms[name, size].view(shape)

    def sums(self, size: int) -> Tensor:
        """The array of sums that a thread has for itself."""
        self._flat = self._like.new_empty(size)
        self._own.append((self._flat.data_ptr(), self._flat.data_ptr() + self._flat.nbytes, 2, 0))
        self.total_size = size
        return self._flat

    def product(
        self, out: Tensor, left: Tensor, right: Tensor, bias: Tensor | None = None, *, add: bool = False
    ) -> None:
        """As `Layers.product`: a sum over the samples if it is added, else rows for the samples."""
        (m, k), n = left.shape, right.shape[1]
        many, sizes = (k // self.tile, (m, n, 0)) if add else (m // self.tile, (0, n, k))
        strides = (*left.stride(), *right.stride(), out.stride(0))
        self._step(_PRODUCT, many, (*sizes, *strides), (left, right, bias, out), (float(add), 0.0))

    def jets(self, name: str, z: Tensor, bias: Tensor | None, outputs: Sequence[Tensor]) -> None:
        """As `Layers.jets`."""
        sizes = (_cpu_layers.INDEX[name], len(outputs) - 1, z.shape[1])
        self._step(_JETS, self._many(z), sizes, (z, self._zeros(z.shape[1]) if bias is None else bias, *outputs))

    def pull(
        self, d: Tensor, above: Tensor | None, bent: Sequence[tuple[Tensor, Tensor]], scale: float, total: Tensor | None
    ) -> None:
        """As `Layers.pull`."""
        pairs = [array for pair in bent for array in pair] + [None] * (4 - 2 * len(bent))
        self._step(_PULL, self._many(d), (d.shape[1],), (above, *pairs, d, total), (scale, 0.0))

    def contract(self, left: Tensor, right: Tensor, out: Tensor) -> None:
        """As `Layers.contract`."""
        self._step(_CONTRACT, self._many(left), (*left.shape[1:], right.ndim == 2), (left, right, out))

    def spread(self, out: Tensor, scale: float, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """As `Layers.spread`."""
        arrays = [array for pair in pairs for array in pair] + [None] * (4 - 2 * len(pairs))
        sizes = (*out.shape[1:], pairs[0][0].ndim == 2)
        self._step(_SPREAD, self._many(out), sizes, (*arrays, out), (scale, 0.0))

    def row_products(self, left: Tensor, right: Tensor) -> Tensor:
        """As `Layers.row_products`."""
        out = self(f"row_products{len(self.steps)}", len(left))
        self._step(_ROW_PRODUCTS, self._many(left), (left.shape[1],), (left, right, out))
        return out

    def mix(
        self, out: Tensor, a: Tensor, b: Tensor | None = None, left: float | Tensor = 1.0, right: float | Tensor = 1.0
    ) -> None:
        """`out = left a (+ right b)` on `[n, width]`, with left and right a number or `[n, 1]`."""
        factors = [s if isinstance(s, Tensor) else None for s in (left, right)]
        scales = tuple(1.0 if isinstance(s, Tensor) else s for s in (left, right))
        steps = [0 if t is None else t.stride(0) for t in (factors[0], a, factors[1], b, out)]
        self._step(_MIX, self._many(out), (out.shape[1], *steps), (a, b, *factors, out), scales)

    def total(self, rows: Tensor, weights: Tensor | None, out: Tensor) -> None:
        """Add the sum over rows `[n, ...]`, each times its weight, to out."""
        rows, step = rows.flatten(1), 0 if weights is None else weights.stride(0)
        self._step(_TOTAL, self._many(rows), (rows.shape[1], rows.stride(0), step), (rows, weights, out))

    def number(self, a: Tensor, b: Tensor | None = None) -> None:
        """Add `sum a b`, or that of a alone, to the next of the program's numbers."""
        self._step(_NUMBER, self._many(a), (a.shape[1], self.n_numbers), (a, b))
        self.n_numbers += 1

    def draw(self, kind: str, count: int, dim: int, stream: int) -> Tensor:
        """Rademacher or normal numbers `[n, count, dim]`, those of step k in `[:, k]`."""
        drawn, made = self("drawn", self.tile, count, dim), _SIGNS if kind == "rademacher" else _NORMALS
        for k in range(count):
            one = drawn[:, 0] if count == 1 else self("one", self.tile, dim)
            self._step(made, 1, (dim, k, stream), (one,))
            if count > 1:
                self.mix(drawn[:, k], one)
        return drawn

    def _many(self, array: Tensor) -> int:
        return len(array) // self.tile

    def _zeros(self, width: int) -> Tensor:
        self.constants.append(_cpu_layers.zeros(width))
        self._slots.setdefault(self.constants[-1].data_ptr(), self._next + len(self.constants) - 1)
        return self.constants[-1]

    def _step(
        self,
        kind: int,
        many: int,
        sizes: Sequence[int],
        arrays: Sequence[Tensor | None],
        scales: Sequence[float] = (0.0, 0.0),
    ) -> None:
        for array in arrays:  # in the arguments of `product` alone are steps from column to column
            assert kind == _PRODUCT or array is None or array.stride(-1) == 1 or array.shape[-1] == 1, array.stride()
        refs = [_Ref(0, 0) if array is None else self._ref(array) for array in arrays]
        fill = [*sizes, *[0] * (8 - len(sizes))]
        self.steps.append(
            _Step(kind, many, (ctypes.c_uint64 * 8)(*fill), (ctypes.c_double * 2)(*scales), (_Ref * 7)(*refs))
        )

    def _ref(self, array: Tensor) -> _Ref:
        address = array.data_ptr()
        for begin, end, slot, offset in self._own:
            if begin <= address < end:
                return _Ref(slot, offset + (address - begin) // 4)
        return _Ref(self._slots[address], 0)


class _OnlyRecorded(TorchDispatchMode):
    """Refuses what would be done to the first tile alone."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and func.overloadpacket not in (torch.ops.aten.new_empty, torch.ops.aten.zeros):
            raise AssertionError(f"{func} is not a step of a program")
        return func(*args, **(kwargs or {}))


class Program:
    """Steps for the tiles of any batch."""

    def __init__(self, recorder: Recorder) -> None:
        self.steps = (_Step * len(recorder.steps))(*recorder.steps)
        self.constants, self.n_numbers = tuple(recorder.constants), recorder.n_numbers
        self.tile, self.size, self.total_size = recorder.tile, recorder.size, recorder.total_size

    def run(
        self, part: slice, arrays: Arrays, noise: Noise | None, room: Callable[..., Tensor]
    ) -> tuple[Tensor, list[float]]:
        """The sums and the numbers of some samples; what else the program makes is in the arrays."""
        arena = room("program", self.size + _ALIGNED // 4)
        sums = torch.zeros(self.total_size, dtype=arena.dtype, device=arena.device)
        begin = -(-arena.data_ptr() // _ALIGNED) * _ALIGNED
        given = [(0, 0), (begin, 0), (sums.data_ptr(), 0), *arrays.slots()]
        given += [(constant.data_ptr(), 0) for constant in self.constants]
        numbers = (ctypes.c_double * max(1, self.n_numbers))()
        seed, first = (0, 0) if noise is None else (noise.seed, noise.first)
        library = _cpu_build.library(build=True)
        assert library is not None
        failed = library.run_program(
            self.steps, ctypes.c_uint64(len(self.steps)), (_Slot * len(given))(*(_Slot(*slot) for slot in given)),
            *map(ctypes.c_uint64, (part.start, part.stop, self.tile)), numbers,
            ctypes.c_uint32(seed & philox.MASK), ctypes.c_uint32(seed >> 32 & philox.MASK),
            ctypes.c_uint64(first),
        )  # fmt: skip
        if failed:
            raise MemoryError("no memory for a product of matrices")
        return sums, list(numbers)[: self.n_numbers]


_programs: dict[Hashable, Program] = {}
_lock = threading.Lock()


def rows(width: int) -> int:
    """Rows of a tile whose largest array is so wide."""
    return min(ROWS, max(16, _ELEMENTS // width))


def program(key: Hashable, arrays: Arrays, tile: int, record: Callable[[Recorder], None]) -> Program:
    """The program that `record` writes, or the one it wrote before for this key and arrays of these shapes."""
    key = (key, tile, arrays.key())
    found = _programs.get(key)
    if found is None:
        recorder = Recorder(arrays, tile)
        with _cpu_layers.recording(recorder), _OnlyRecorded():  # type: ignore[no-untyped-call]
            record(recorder)
        found = Program(recorder)
        with _lock:
            while len(_programs) >= _KEPT:
                del _programs[next(iter(_programs))]
            _programs[key] = found
    return found
