"""What the values of a network mean while it runs: the small algebra in which an MLP can be written.

Every tensor that depends on x is one of these, or `OPAQUE`. A `Ref` is a value that does not depend on x: a parameter,
a condition, or something computed from them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Ref:
    """Value number `index` of a program that does not depend on x."""

    index: int


Scale = Ref | float | None
"""A factor: a number, a `[B, 1]` or `[1, 1]` value, or None for 1 (as a skip: for 0)."""


@dataclass(frozen=True, eq=False)
class Input:
    """`scale * x`."""

    scale: Scale = None


@dataclass(frozen=True, eq=False)
class Affine:
    """`scale * (weight @ base + bias + shifts) + skip * x`: a preactivation, or the output."""

    base: Input | Hidden
    weight: Ref
    bias: Ref | None
    shifts: tuple[Ref | float, ...] = ()
    scale: Scale = None
    skip: Scale = None


@dataclass(frozen=True, eq=False)
class Gate:
    """`sigmoid(z)`, which becomes silu when multiplied by z."""

    z: Affine


@dataclass(frozen=True, eq=False)
class Hidden:
    """`phi(z)`, plus the hidden values that z was computed from where there is a residual."""

    z: Affine
    activation: str
    residual: bool = False


@dataclass(frozen=True, eq=False)
class Moved:
    """`gain * base + offsets`, feature by feature, which the next linear layer takes into its weights.

    A gain is a number or `[1, D]`; an offset is a number, `[1, D]` or `[B, D]`.
    """

    base: Input | Hidden
    gain: Ref | float | None = None
    offsets: tuple[Ref | float, ...] = ()


@dataclass(frozen=True, eq=False)
class Cat:
    """Features side by side: one part depends on x, the others do not. Each part comes with its width."""

    parts: tuple[tuple[Input | Hidden | Moved | Ref, int], ...]


@dataclass(frozen=True, eq=False)
class Total:
    """The sum over the batch of an energy, one value a sample."""

    energy: Affine


@dataclass(frozen=True, eq=False)
class Descent:
    """`-grad energy(x)`: what an energy network's own score returns, or `torch.autograd.grad` makes of a `Total`."""

    energy: Affine


@dataclass(frozen=True, eq=False)
class Opaque:
    """Something that depends on x in a way that no closed form here covers."""


OPAQUE = Opaque()
Symbol = Input | Affine | Gate | Hidden | Moved | Cat | Total | Descent | Opaque
