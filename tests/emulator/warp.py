"""What the instructions do that 32 threads do together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tests.emulator.access import addresses, nothing
from tests.emulator.values import DTYPES, Mask, Step, Values, from_bfloat16, vector

if TYPE_CHECKING:
    from tests.emulator.machine import Machine

_Matrices = tuple[Mask, list[Values], Values]
"""The warps that take part, the places of each lane's first and second number, the blocks they are in."""


def _shuffle(modifiers: list[str], operands: Sequence[str]) -> Step:
    """shfl.sync: a register of another lane."""
    how = modifiers[1]
    (to, *valid), source, lanes, limits = operands[0].split("|"), *operands[1:4]

    def step(machine: Machine, mask: Mask | None) -> None:
        machine.split(mask)
        lane = np.arange(machine.n) % 32
        b = machine.value(lanes, DTYPES["s32"]).astype(np.int64) & 31
        c = machine.value(limits, DTYPES["s32"]).astype(np.int64)
        segment, clamp = (c >> 8) & 31, c & 31
        low, high = lane & segment, (lane & segment) | (clamp & ~segment)
        other = {"bfly": lane ^ b, "idx": low | (b & ~segment), "up": lane - b, "down": lane + b}[how]
        inside = other >= high if how == "up" else other <= high
        other = np.where(inside, other, lane)
        values = machine.array(source, DTYPES["b32"])
        machine.write(to, values[np.arange(machine.n) - lane + other], mask)
        for operand in valid:
            machine.write(operand, np.broadcast_to(inside, (machine.n,)), mask)

    return step


def _reduce(modifiers: list[str], operands: Sequence[str]) -> Step:
    """redux.sync: one integer of a warp."""
    reduce = {"max": np.max, "min": np.min, "add": np.sum, "and": np.bitwise_and.reduce, "or": np.bitwise_or.reduce}
    function, dtype = reduce[modifiers[1]], DTYPES[modifiers[2]]

    def step(machine: Machine, mask: Mask | None) -> None:
        machine.split(mask)
        values = machine.array(operands[1], dtype).reshape(-1, 32)
        machine.write(operands[0], np.repeat(function(values, axis=1).astype(dtype), 32), mask)

    return step


def _matrices(modifiers: list[str], names: list[str], operand: str) -> Callable[[Machine, Mask | None], _Matrices]:
    """Where the numbers of 8 x 8 matrices lie, of two bytes each, whose rows eight lanes each give the address of."""
    group, pair = np.arange(32) // 4, np.arange(32) % 4 * 2

    def locate(machine: Machine, mask: Mask | None) -> _Matrices:
        warps = machine.split(mask).reshape(-1, 32)[:, 0]
        giving = np.zeros((len(warps), 32), np.bool_)
        giving[warps, : 8 * len(names)] = True
        rows = addresses(machine, operand, giving.reshape(-1), 16).reshape(-1, len(names), 8)
        both = (((pair + half, group) if "trans" in modifiers else (group, pair + half)) for half in (0, 1))
        places = [rows[:, :, row] + 2 * column for row, column in both]
        return warps, places, np.broadcast_to(machine.local[::32][warps][:, None, None], places[0].shape)

    return locate


def _load_matrix(modifiers: list[str], operands: Sequence[str]) -> Step:
    """ldmatrix: 8 x 8 matrices from shared memory, two numbers of each to a lane."""
    names = vector(operands[0])
    locate = _matrices(modifiers, names, operands[1])

    def step(machine: Machine, mask: Mask | None) -> None:
        warps, places, block = locate(machine, mask)
        low, high = (machine.shared.load(place, DTYPES["u16"], block).astype(np.uint32) for place in places)
        values = np.zeros((len(names), len(warps), 32), np.uint32)
        values[:, warps] = (low | (high << np.uint32(16))).transpose(1, 0, 2)
        for name, value in zip(names, values, strict=True):
            machine.write(name, value.reshape(-1), mask)

    return step


def _store_matrix(modifiers: list[str], operands: Sequence[str]) -> Step:
    """stmatrix: the other way."""
    names = vector(operands[1])
    locate = _matrices(modifiers, names, operands[0])

    def step(machine: Machine, mask: Mask | None) -> None:
        warps, places, block = locate(machine, mask)
        values = np.stack([machine.array(name, DTYPES["b32"]).reshape(-1, 32)[warps] for name in names], 1)
        for place, half in zip(places, (values, values >> np.uint32(16)), strict=True):
            machine.shared.store(place, half.astype(np.uint16), block)

    return step


def towards_zero(exact: Values) -> Values:
    """float64 cut off to float32, as the accumulator of a tensor core does (Fasi et al. 2021)."""
    nearest = exact.astype(np.float32)
    beyond = np.abs(nearest) > np.abs(exact)
    return np.where(beyond, np.nextafter(nearest, np.float32(0)), nearest)


def _numbers(bits: Values, kind: str) -> Values:
    """float64 from the bits of registers, `[..., numbers a register]`."""
    if kind in ("tf32", "f32"):
        return (
            (bits & np.uint32(0xFFFFE000 if kind == "tf32" else 0xFFFFFFFF))
            .view(np.float32)
            .astype(np.float64)[..., None]
        )
    halves = np.ascontiguousarray(bits)[..., None].view(np.uint16)
    return (from_bfloat16(halves) if kind == "bf16" else halves.view(np.float16)).astype(np.float64)


def _fragment(machine: Machine, names: Sequence[str], kind: str) -> Values:
    """What registers hold, `[registers, warps, 8, 4, numbers]`, by lanes of a warp."""
    bits = np.stack([machine.array(name, DTYPES["b32"]) for name in names])
    return _numbers(bits.reshape(len(names), -1, 8, 4), kind)


def _left(machine: Machine, names: Sequence[str], kind: str) -> Values:
    """The left factor of a warp's product, `[warps, 16, depth]`."""
    a = _fragment(machine, names, kind)
    a = a.reshape(len(names) // 2, 2, *a.shape[1:]).transpose(2, 1, 3, 0, 4, 5)
    return a.reshape(len(a), 16, -1)


def _sums(machine: Machine, names: Sequence[str]) -> Values:
    """The sums that a warp's registers hold, `[warps, 16, columns]`."""
    c = _fragment(machine, names, "f32").reshape(-1, 2, 2, machine.n // 32, 8, 4)
    return c.transpose(3, 1, 4, 0, 5, 2).reshape(machine.n // 32, 16, -1)


def _keep(machine: Machine, names: Sequence[str], sums: Values, mask: Mask | None) -> None:
    """The other way."""
    c = towards_zero(sums).reshape(-1, 2, 8, len(names) // 4, 4, 2).transpose(3, 1, 5, 0, 2, 4)
    for name, values in zip(names, c.reshape(len(names), -1), strict=True):
        machine.write(name, values, mask)


def _multiply(modifiers: list[str], operands: Sequence[str]) -> Step:
    """mma.sync: m16n8k8 of TensorFloat-32, m16n8k16 of 16-bit numbers, with sums in float32."""
    kind = modifiers[6]
    to, left, right, start = map(vector, operands)

    def step(machine: Machine, mask: Mask | None) -> None:
        machine.split(mask)
        b = _fragment(machine, right, kind).transpose(1, 0, 3, 4, 2).reshape(machine.n // 32, -1, 8)
        _keep(machine, to, _sums(machine, start) + _left(machine, left, kind) @ b, mask)

    return step


def _described(machine: Machine, operand: str, kind: str, shape: tuple[int, int], along_k: bool) -> Values:
    """A factor `[groups, size, depth]` in shared memory, by the descriptor that each group of four warps has of it."""
    size, depth = shape
    width = 4 if kind == "tf32" else 2
    descriptor = machine.array(operand, DTYPES["u64"])[::128].astype(np.int64)[:, None, None]
    start, lead, stride = ((descriptor >> shift & 0x3FFF) << 4 for shift in (0, 16, 32))
    mode = int(descriptor.flat[0] >> 62 & 3)
    row, k = np.arange(size)[:, None], np.arange(depth)[None, :]
    span = {0: 16, 1: 128, 2: 64, 3: 32}[mode]
    if along_k:
        within = row % 8 * span + k * width % span
        place = start + row // 8 * stride + k * width // span * lead + within
    else:
        place = start + row * width // span * lead + k // 8 * stride + k % 8 * span + row * width % span
    if mode:
        place ^= (place >> 7 & (span // 16 - 1)) << 4
    block = np.broadcast_to(machine.local[::128][:, None, None], place.shape)
    return _numbers(machine.shared.load(place, DTYPES["u32" if width == 4 else "u16"], block).astype(np.uint32), kind)[
        ..., 0
    ]


def _multiply_by_four(modifiers: list[str], operands: Sequence[str]) -> Step:
    """wgmma: a product of four warps, done at once here; its factors are in shared memory, or the left in registers."""
    if modifiers[0] != "mma_async":
        return nothing(modifiers, operands)
    kind = modifiers[5]
    columns, depth = map(int, modifiers[3].removeprefix("m64n").split("k"))
    to, (left, right, more, _, _, *turned) = vector(operands[0]), operands[1:]
    turned = ["0"] * (2 - len(turned)) + turned

    def step(machine: Machine, mask: Mask | None) -> None:
        machine.split(mask)
        groups = machine.n // 128
        if left.startswith("{"):
            a = _left(machine, vector(left), kind).reshape(groups, 64, depth)
        else:
            a = _described(machine, left, kind, (64, depth), turned[0] == "0")
        b = _described(machine, right, kind, (columns, depth), turned[1] == "0")
        product = (a @ b.transpose(0, 2, 1)).reshape(-1, 16, columns)
        added = machine.array(more, DTYPES["pred"])[::32][:, None, None]
        _keep(machine, to, product + np.where(added, _sums(machine, to), 0), mask)

    return step


OPERATIONS: dict[str, Callable[[list[str], Sequence[str]], Step]] = {
    "shfl": _shuffle,
    "redux": _reduce,
    "ldmatrix": _load_matrix,
    "stmatrix": _store_matrix,
    "mma": _multiply,
    "wgmma": _multiply_by_four,
}
