"""The memory that a launch may touch, and who touched what since when."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests.emulator.values import Ints, Values

_NOBODY, _SEVERAL = -1, -2


class AccessError(Exception):
    """What a memory sanitizer would report."""


class ApartError(AccessError):
    """Threads that must do something together are not all there (yet)."""


class Who(NamedTuple):
    """The threads that do an instruction, each with its block and with how many barriers it has passed."""

    thread: Ints
    block: Ints
    epoch: Ints


class Touched:
    """Who last wrote, or last read, every place (two bytes, the least that a kernel of this package writes)."""

    def __init__(self, places: int) -> None:
        self.thread = np.full(places, _NOBODY)
        self.block = np.full(places, _NOBODY)
        self.epoch = np.zeros(places, np.int64)

    def unordered(self, place: Ints, who: Who) -> NDArray[np.bool_]:
        """Where another has been with no barrier since."""
        known = self.thread[place]
        return (known != _NOBODY) & (known != who.thread) & ~self._before(place, who)

    def note(self, place: Ints, who: Who) -> None:
        """Who is here now, together with those who were here since the last barrier.

        Of threads that come at once the first counts: the others may be its copies, whose work Triton drops.
        """
        stays = (self.thread[place] != _NOBODY) & ~self._before(place, who)
        for known, new in ((self.thread, who.thread), (self.block, who.block)):
            known[place[::-1]] = np.where(stays & (known[place] != new), _SEVERAL, new)[::-1]
        self.epoch[place] = who.epoch

    def _before(self, place: Ints, who: Who) -> NDArray[np.bool_]:
        return (self.block[place] == who.block) & (self.epoch[place] < who.epoch)


class Global:
    """The tensors of a launch, by first address and bytes, and nothing else."""

    def __init__(self, extents: Sequence[tuple[int, int]]) -> None:
        merged: list[list[int]] = [[0, 0]]
        for start, size in sorted(extents):
            if start > merged[-1][1]:
                merged.append([start, start])
            merged[-1][1] = max(merged[-1][1], start + size)
        self.starts, self.ends = np.array(merged).T
        self.places = np.concatenate([[0], np.cumsum((self.ends - self.starts + 1) // 2)])
        self.base = int(self.starts[1:2].sum()) & ~15
        size = -(-int(self.ends[-1] - self.base) // 16) * 16
        self.bytes = np.frombuffer((ctypes.c_char * size).from_address(self.base), np.uint8)
        self.written, self.read = Touched(int(self.places[-1])), Touched(int(self.places[-1]))

    def load(self, address: Ints, dtype: np.dtype[Any], who: Who) -> Values:
        """One value a thread."""
        for place in self._places(address, dtype):
            if (late := self.written.unordered(place, who)).any():
                raise AccessError(f"thread {who.thread[late][0]} reads what another writes, with no barrier between")
            self.read.note(place, who)
        return self.bytes.view(dtype)[(address - self.base) // dtype.itemsize]

    def store(self, address: Ints, values: Values, who: Who) -> None:
        """One value a thread. Two threads may write one place if they write the same."""
        cells, index = self.bytes.view(values.dtype), (address - self.base) // values.itemsize
        for place in self._places(address, values.dtype):
            late = self.read.unordered(place, who)
            late |= self.written.unordered(place, who) & (cells[index] != values)
            if late.any():
                raise AccessError(f"thread {who.thread[late][0]} writes where another was, with no barrier between")
            self.written.note(place, who)
        cells[index] = values
        if (cells[index] != values).any():
            raise AccessError("two threads write different values to one place")

    def _places(self, address: Ints, dtype: np.dtype[Any]) -> list[Ints]:
        extent = np.searchsorted(self.starts, address, "right") - 1
        inside = address + dtype.itemsize <= self.ends[extent]
        if not inside.all():
            raise AccessError(f"address {address[~inside][0]:#x} is outside of every tensor of the launch")
        first = self.places[extent] + (address - self.starts[extent]) // 2
        return [first + i for i in range(max(1, dtype.itemsize // 2))]


class Shared:
    """The shared memory of each block, first full of NaN."""

    def __init__(self, blocks: int, size: int) -> None:
        self.size = -(-size // 16) * 16
        self.bytes = np.full(blocks * self.size, 0xFF, np.uint8)

    def load(self, address: Ints, dtype: np.dtype[Any], block: Ints) -> Values:
        """One value a thread; `block` counts within this memory."""
        return self.bytes.view(dtype)[self._index(address, dtype, block)]

    def store(self, address: Ints, values: Values, block: Ints) -> None:
        """One value a thread."""
        self.bytes.view(values.dtype)[self._index(address, values.dtype, block)] = values

    def _index(self, address: Ints, dtype: np.dtype[Any], block: Ints) -> Ints:
        if ((address < 0) | (address + dtype.itemsize > self.size)).any():
            raise AccessError(f"offset {address.max()} is outside of {self.size} bytes of shared memory")
        return (address + block * self.size) // dtype.itemsize
