"""PTX, the assembly that Triton writes for NVIDIA's GPUs, as a list of instructions.

Of the language this knows what Triton writes: one function, virtual registers, no calls. Source: NVIDIA, "Parallel
Thread Execution ISA", version 8.7.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_COMMENT = re.compile(r"//.*")
_LABEL = re.compile(r"^([$%\w]+):\s*$")
_GUARD = re.compile(r"^@(!?)(%\w+)\s+")
_REGISTERS = re.compile(r"^\.reg\s+\.(\w+)\s+(.*)$")
_PARAMETER = re.compile(r"\.param\s+\.(\w+)\s+(?:\.ptr\s+\S+\s+\.align\s+\d+\s+)?(\w+)")
_THREADS = re.compile(r"\.reqntid\s+(\d+)")
_OPERANDS = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*")

WIDTHS = {"pred": 1, "b16": 16, "b32": 32, "b64": 64, "f32": 32, "f64": 64, "u32": 32, "s32": 32, "u64": 64}


@dataclass(frozen=True)
class Instruction:
    """One line, such as `@%p1 add.s32 %r1, %r2, 4`."""

    opcode: str
    operands: tuple[str, ...]
    guard: str = ""
    """The predicate register under which it is done; "" for always."""
    unless: bool = False
    """Whether it is done where the predicate is false."""

    def __str__(self) -> str:
        guard = f"@{'!' if self.unless else ''}{self.guard} " if self.guard else ""
        return f"{guard}{self.opcode} {', '.join(self.operands)}"


@dataclass(frozen=True)
class Program:
    """A kernel."""

    parameters: dict[str, str]
    """Types by name, in order."""
    threads: int
    """Of a block."""
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]
    """Places in `instructions`."""
    widths: dict[str, int]
    """Bits of a register, by the letters its name begins with or by its whole name."""

    def width(self, register: str) -> int:
        """Bits of a register: 1, 16, 32 or 64."""
        return self.widths[register] if register in self.widths else self.widths[register.rstrip("0123456789")]


def parse(text: str) -> Program:
    """The one kernel of a PTX module."""
    entry = text.partition(".visible .entry")[2].partition("// -- End function")[0]
    head, _, body = _COMMENT.sub("", entry).partition("{")
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    widths: dict[str, int] = {}
    for line in _statements(body):
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif declared := _REGISTERS.match(line):
            for name in declared[2].split(","):
                widths[name.strip().partition("<")[0]] = WIDTHS[declared[1]]
        elif not line.startswith("."):
            instructions.append(_instruction(line))
    parameters = {name: kind for kind, name in _PARAMETER.findall(head)}
    return Program(parameters, int(_THREADS.findall(head)[0]), tuple(instructions), labels, widths)


def _statements(body: str) -> Iterator[str]:
    """A label, a declaration or an instruction each. A brace that one begins with only opens or closes a scope."""
    for line in body.splitlines():
        for statement in line.split(";"):
            if part := statement.lstrip("{} \t").rstrip():
                yield part


def _instruction(line: str) -> Instruction:
    guard = _GUARD.match(line)
    opcode, *rest = line[guard.end() if guard else 0 :].split(None, 1)
    operands = tuple(operand.strip() for operand in _OPERANDS.findall(rest[0])) if rest else ()
    return Instruction(opcode, operands, guard[2] if guard else "", bool(guard and guard[1]))
