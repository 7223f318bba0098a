"""What is measured: cases, which are data, and the providers that compute them.

A family of cases shares inputs, a reference in float64, a check against it and its providers. A provider builds, from a
case and its inputs, a call that does the work once and returns the result as named tensors. Nothing is timed whose
result the family's check has not accepted.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Arrays = Mapping[str, Tensor]
Call = Callable[[], Arrays]

MODULES = ("training", "chains", "energies", "steps", "mala", "noise", "laplacians")
"""In order of importance: when the time is up, what is left is not run."""


@dataclass(frozen=True)
class Case:
    """One size of one piece of work.

    Attributes:
        name: unique in its family.
        settings: what the providers need to know, as JSON has it.
        units: how many samples, elements or chain-steps one call works on.
        bytes: the least that has to move to and from memory for a unit; 0 where that says nothing.
        flops: multiplications and additions a unit; 0 where they say nothing.
        seconds: how long its providers race each other.
        headline: whether the README shows it.
    """

    name: str
    settings: Mapping[str, Any]
    units: float
    bytes: float = 0.0
    flops: float = 0.0
    seconds: float = 5.0
    headline: bool = False


def everywhere(case: Case, device: str) -> str:
    """Nothing speaks against it."""
    return ""


@dataclass(frozen=True)
class Provider:
    """One way to do the work.

    Attributes:
        build: the call, made from the case and its inputs; None where another environment has it (`bench.rivals`).
        law: what the family's check holds its results to.
        unfit: why a case is not for it, "" where it is.
        package: what it needs of the other environment.
    """

    build: Callable[[Case, Arrays], Call] | None
    law: str = "exact"
    unfit: Callable[[Case, str], str] = everywhere
    package: str = ""


@dataclass(frozen=True)
class Family:
    """Cases that differ in size only.

    Attributes:
        unit: what is counted, in the singular.
        base: the provider that the others are compared with.
        cases: those for "cpu" or "cuda".
        inputs: made from a case, on a device.
        check: raises `WrongError` for results of several calls that do not fit the reference under the provider's law.
        reference: made from a case and its inputs, once, in float64; None where the law is known.
        calls: how many results the check wants, by law.
        never: rivals that are never run, with the reason.
    """

    name: str
    title: str
    unit: str
    base: str
    cases: Callable[[str], list[Case]]
    inputs: Callable[[Case, str], dict[str, Tensor]]
    check: Callable[[Case, Arrays, Any, str, Sequence[Arrays]], None]
    providers: Mapping[str, Provider]
    reference: Callable[[Case, Arrays], Any] = lambda case, arrays: None
    calls: Mapping[str, int] = field(default_factory=lambda: {"exact": 1})
    never: Mapping[str, str] = field(default_factory=dict)


def families() -> list[Family]:
    """All of them."""
    return [importlib.import_module(f"bench.families.{name}").FAMILY for name in MODULES]


class WrongError(Exception):
    """A result that does not fit the reference."""


class NotRunError(Exception):
    """A provider that cannot run here, and why."""


def quoted(error: Exception) -> str:
    """The first line of what an error says, without the folders of this machine."""
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {re.sub(r'/(?:[^/ ]+/)+', '', said)}"[:300]
