"""All threads of a launch at once, an instruction at a time, a register being an array over the threads.

Where threads part at a branch, those furthest back go first, until they have caught up with the others.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.emulator import access, arithmetic, warp
from tests.emulator.memory import ApartError, Global, Shared, Who
from tests.emulator.ptx import Instruction, Program
from tests.emulator.values import DTYPES, Mask, Step, Values, as_dtype, extended, literal

BITS = {
    1: np.dtype(np.bool_),
    8: np.dtype(np.uint8),
    16: np.dtype(np.uint16),
    32: np.dtype(np.uint32),
    64: np.dtype(np.uint64),
}
BLOCKS_AT_ONCE = 64
NEVER_WRITTEN = 0x7FC0DEAD7FC0DEAD  # not a number, in float32 and in float64


def run(program: Program, grid: Sequence[int], arguments: Sequence[int | float], memory: Global, shared: int) -> None:
    """Run a kernel: `arguments` in order, an address for a pointer; `shared` bytes a block."""
    parameters = {
        name: _parameter(value, DTYPES[kind])
        for (name, kind), value in zip(program.parameters.items(), arguments, strict=True)
    }
    blocks = int(np.prod(grid))
    for first in range(0, blocks, BLOCKS_AT_ONCE):
        Machine(program, grid, parameters, memory, shared, range(first, min(first + BLOCKS_AT_ONCE, blocks))).run()


def _parameter(value: int | float, dtype: np.dtype[Any]) -> Values:
    if isinstance(value, float):
        return np.array(value, f"f{dtype.itemsize}")
    return as_dtype(np.array(int(value) % 2**64, np.uint64), dtype)


class Machine:
    """Some blocks of a launch."""

    def __init__(
        self,
        program: Program,
        grid: Sequence[int],
        parameters: dict[str, Values],
        memory: Global,
        shared: int,
        blocks: range,
    ) -> None:
        self.program, self.parameters, self.memory = program, parameters, memory
        self.shared = Shared(len(blocks), shared)
        self.threads = program.threads
        self.n = len(blocks) * self.threads
        thread = np.arange(self.n) % self.threads
        self.local = np.arange(self.n) // self.threads
        block = self.local + blocks.start
        self.who = Who(block * self.threads + thread, block, np.zeros(self.n, np.int64))
        x, y = grid[0], grid[1] if len(grid) > 1 else 1
        self.special = {
            "%tid.x": thread,
            "%laneid": thread % 32,
            "%ctaid.x": block % x,
            "%ctaid.y": block // x % y,
            "%ctaid.z": block // (x * y),
            "%nctaid.x": np.array(x),
            "%nctaid.y": np.array(y),
            "%ntid.x": np.array(self.threads),
        }
        self.registers: dict[str, Values] = {}

    def run(self) -> None:
        """From the first instruction until every thread has returned."""
        waiting = {0: np.ones(self.n, np.bool_)}
        held: dict[int, Exception] = {}
        """Places where threads wait for others of their block or warp."""
        with np.errstate(all="ignore"):
            while waiting:
                place = min(waiting.keys() - held.keys(), default=None)
                if place is None:
                    raise next(iter(held.values()))
                mask = waiting.pop(place)
                try:
                    parts = self._run(place, mask, waiting)
                except ApartError as error:
                    held[self.place] = error
                    parts = [(self.place, mask)]
                for at, part in parts:
                    if part.any() and at in waiting:
                        waiting[at] = waiting[at] | part
                        held.pop(at, None)
                    elif part.any():
                        waiting[at] = part

    def _run(self, place: int, mask: Mask, others: dict[int, Mask]) -> list[tuple[int, Mask]]:
        """From `place` to a branch, a return, or where others wait: who goes on, and where."""
        program = self.program
        everyone = mask.all()
        while True:
            self.place = place
            instruction = program.instructions[place]
            chosen = mask
            if instruction.guard:
                chosen = mask & (self.registers[instruction.guard] != instruction.unless)
            if instruction.opcode.startswith("bra"):
                return [(program.labels[instruction.operands[0]], chosen), (place + 1, mask & ~chosen)]
            if instruction.opcode in ("ret", "exit"):
                return [(place + 1, mask & ~chosen)]
            if chosen is mask or chosen.any():
                try:
                    step(instruction)(self, None if everyone and chosen is mask else chosen)
                except Exception as error:
                    error.args = (f"{error}, at instruction {place}: {instruction}",)
                    raise
            place += 1
            if place in others:
                return [(place, mask)]

    # What an operation asks for.

    def value(self, operand: str, dtype: np.dtype[Any]) -> Values:
        """A register, a literal or a special register, its bits read as `dtype`."""
        if operand in self.special:
            return self.special[operand].astype(dtype)
        if not operand.startswith("%"):
            return literal(operand, dtype)
        if operand not in self.registers:
            width = self.program.width(operand)
            self.registers[operand] = np.full(self.n, NEVER_WRITTEN & (2**width - 1)).astype(BITS[width])
        return as_dtype(self.registers[operand], dtype)

    def array(self, operand: str, dtype: np.dtype[Any]) -> Values:
        """The same with one entry a thread, literals too."""
        return np.broadcast_to(self.value(operand, dtype), (self.n,))

    def write(self, operand: str, values: Values, mask: Mask | None) -> None:
        """Put values, of the operation's type, into a register, extended to its width."""
        if operand == "_":
            return
        bits = BITS[self.program.width(operand)]
        values = extended(values, bits)
        if not values.ndim:
            values = np.full(self.n, values)
        if mask is not None:
            values = np.where(mask, values, self.value(operand, bits))
        self.registers[operand] = values

    def split(self, mask: Mask | None) -> Mask:
        """The mask of whole warps; a warp of which a part is elsewhere is an error."""
        if mask is None:
            return np.ones(self.n, np.bool_)
        warps = mask.reshape(-1, 32)
        if (warps.any(1) != warps.all(1)).any():
            raise ApartError("only a part of a warp is here")
        return mask

    def barrier(self, mask: Mask | None) -> None:
        """All threads of a block meet; what they did before is now seen by all."""
        if mask is not None:
            blocks = mask.reshape(-1, self.threads)
            if (blocks.any(1) != blocks.all(1)).any():
                raise ApartError("only a part of a block is at its barrier")
        self.who.epoch[slice(None) if mask is None else mask] += 1


@functools.cache
def step(instruction: Instruction) -> Step:
    """What an instruction does."""
    name, *modifiers = instruction.opcode.split(".")
    for operations in (arithmetic.OPERATIONS, access.OPERATIONS, warp.OPERATIONS):
        if name in operations:
            return operations[name](modifiers, instruction.operands)
    raise NotImplementedError(str(instruction))
