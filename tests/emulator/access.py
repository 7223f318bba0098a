"""What the instructions do that touch memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.emulator.memory import AccessError, Who
from tests.emulator.values import DTYPES, Ints, Mask, Step, Values, as_dtype, extended, vector

if TYPE_CHECKING:
    from tests.emulator.machine import Machine

_ADDRESS = re.compile(r"\[\s*([$%\w]+)\s*(?:\+\s*(-?\w+))?\s*\]")


def addresses(machine: Machine, operand: str, chosen: Any, alignment: int) -> Ints:
    """What `[register + offset]` is for the threads chosen."""
    register, offset = _ADDRESS.fullmatch(operand).groups()  # type: ignore[union-attr]
    dtype = DTYPES["s64"] if register.startswith("%") and machine.program.width(register) == 64 else DTYPES["s32"]
    address = machine.array(register, dtype)[chosen].astype(np.int64) + int(offset or "0", 0)
    if (address % alignment).any():
        raise AccessError(f"address {address[address % alignment != 0][0]:#x} is not a multiple of {alignment}")
    return address


def _who(machine: Machine, chosen: Any) -> Who:
    return Who(*(part[chosen] for part in machine.who))


def _everyone(mask: Mask | None) -> Any:
    return slice(None) if mask is None else mask


def _read(machine: Machine, space: str, address: Ints, dtype: np.dtype[Any], chosen: Any) -> Values:
    if space == "global":
        return machine.memory.load(address, dtype, _who(machine, chosen))
    return machine.shared.load(address, dtype, machine.local[chosen])


def _put(machine: Machine, space: str, address: Ints, values: Values, chosen: Any) -> None:
    if space == "global":
        machine.memory.store(address, values, _who(machine, chosen))
    else:
        machine.shared.store(address, values, machine.local[chosen])


def _load(modifiers: list[str], operands: Sequence[str]) -> Step:
    """ld: from memory, or a parameter of the kernel."""
    space, dtype, names = modifiers[0], DTYPES[modifiers[-1]], vector(operands[0])
    if space == "param":
        parameter = operands[1].strip("[] ")

        def param(machine: Machine, mask: Mask | None) -> None:
            machine.write(
                operands[0],
                as_dtype(extended(machine.parameters[parameter], np.dtype(f"u{dtype.itemsize}")), dtype),
                mask,
            )

        return param

    def step(machine: Machine, mask: Mask | None) -> None:
        chosen = _everyone(mask)
        address = addresses(machine, operands[1], chosen, dtype.itemsize * len(names))
        for i, name in enumerate(names):
            values = np.zeros(machine.n, dtype)
            values[chosen] = _read(machine, space, address + i * dtype.itemsize, dtype, chosen)
            machine.write(name, values, mask)

    return step


def _store(modifiers: list[str], operands: Sequence[str]) -> Step:
    space, dtype, names = modifiers[0], DTYPES[modifiers[-1]], vector(operands[1])

    def step(machine: Machine, mask: Mask | None) -> None:
        chosen = _everyone(mask)
        address = addresses(machine, operands[0], chosen, dtype.itemsize * len(names))
        for i, name in enumerate(names):
            values = machine.array(name, dtype)[chosen]
            _put(machine, space, address + i * dtype.itemsize, values, chosen)

    return step


def _copy(modifiers: list[str], operands: Sequence[str]) -> Step:
    """cp.async: from global to shared memory, done at once; what the source has not is 0."""
    if not operands or "wait_group" in modifiers:
        return nothing(modifiers, operands)
    to, source, size, *given = operands

    def step(machine: Machine, mask: Mask | None) -> None:
        chosen = _everyone(mask)
        into = addresses(machine, to, chosen, int(size, 0))
        address = addresses(machine, source, chosen, int(size, 0))
        bytes_given = machine.array(given[0] if given else size, DTYPES["u32"])[chosen]
        for offset in range(0, int(size, 0), 4):
            has = bytes_given > offset
            values = np.zeros(len(address), np.uint32)
            who = _who(machine, chosen)
            values[has] = machine.memory.load(address[has] + offset, DTYPES["u32"], Who(*(part[has] for part in who)))
            machine.shared.store(into + offset, values, machine.local[chosen])

    return step


def _barrier(modifiers: list[str], operands: Sequence[str]) -> Step:
    if modifiers[0] == "warp":
        return nothing(modifiers, operands)
    return lambda machine, mask: machine.barrier(mask)


def nothing(modifiers: list[str], operands: Sequence[str]) -> Step:
    """What orders accesses that are in order here."""
    return lambda machine, mask: None


OPERATIONS: dict[str, Callable[[list[str], Sequence[str]], Step]] = {
    "ld": _load,
    "st": _store,
    "cp": _copy,
    "bar": _barrier,
    "barrier": _barrier,
    "fence": nothing,
}
