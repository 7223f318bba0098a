"""The record of what every shipped kernel costs, by kernel and architecture: how it is made, and what is held to it.

A row says by a digest which texts, argument types and launch options it is of. One of those that are shipped now was
compiled as it is now, and had no fault; so a test that compiles nothing knows that all of them compile.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import triton

from bench import audit
from bench.audit import Amd, Report

RECORD = Path(__file__).parent / "results" / "audit.json"
_SECONDS = 10.0  # between two writings of the record
Row = dict[str, Any]


class Compilable(Protocol):
    """A kernel as it is launched: a `Case`, or a whole chain's."""

    @property
    def name(self) -> str:
        """What it is called in the record."""

    def made_of(self) -> str:
        """What its machine code depends on, as a digest."""

    def lowered(self, architecture: str) -> str:
        """What the compiler proper would be given, as a digest; "" where that cannot be told."""

    def compile(self, architecture: str) -> Report | Amd:
        """What the compiler makes of it."""


class Entry(NamedTuple):
    """A kernel on one of the architectures that it is shipped for."""

    architecture: str
    case: Compilable

    def recorded(self) -> Row | None:
        """Its row, if there is one."""
        return kernels().get(self.case.name, {}).get(self.architecture)

    def is_recorded(self) -> bool:
        """Whether its row is of this very kernel, compiled by this Triton."""
        row = self.recorded()
        return row is not None and row["made_of"] == self.case.made_of() and record()["triton"] == triton.__version__

    def risen(self, report: Report | Amd) -> list[str]:
        """The figures above the recorded ones; none where the record is of another Triton."""
        row = self.recorded()
        if row is None or record()["triton"] != triton.__version__:
            return []
        return [f"{key} rose from {row[key]}" for key, value in report.figures().items() if value > row[key]]


def entries() -> Iterator[Entry]:
    """All that is shipped: every kernel, every entry of the launch table with each kind of network, and chains."""
    from bench import audit_chain, audit_mlp, audit_plain, audit_whole

    for case in audit_plain.cases():
        yield from (Entry(architecture, case) for architecture in audit.ARCHITECTURES)
    for architecture, case in (*audit_mlp.cases(), *audit_whole.cases()):
        yield Entry(architecture, case)
    for architecture, chain in audit_chain.cases():
        yield Entry(architecture, chain)


@functools.cache
def record() -> dict[str, Any]:
    """What was recorded, and with which Triton."""
    return dict(json.loads(RECORD.read_text()))


def kernels() -> dict[str, dict[str, Row]]:
    """Rows by kernel and architecture."""
    found: dict[str, dict[str, Row]] = record()["kernels"]
    return found


def _text(rows: dict[str, dict[str, Row]]) -> str:
    """As JSON, with a line for each kernel on each architecture."""
    lines = [
        f"  {json.dumps(name)}: {{\n"
        + ",\n".join(f"   {json.dumps(a)}: {json.dumps(by[a])}" for a in audit.ARCHITECTURES if a in by)
        + "\n  }"
        for name, by in rows.items()
        if by
    ]
    return f'{{\n "triton": {json.dumps(triton.__version__)},\n "kernels": {{\n' + ",\n".join(lines) + "\n }\n}\n"


_WANTED: list[tuple[Entry, bool]] = []  # what a forked process finds by its number: kernels cannot be sent to one


def _examine(number: int) -> tuple[int, Row, list[str], list[str]]:
    entry, again = _WANTED[number]
    row, lowered = entry.recorded(), entry.case.lowered(entry.architecture)
    told = {"lowered": lowered, "made_of": entry.case.made_of()}
    same = record()["triton"] == triton.__version__ and not again
    if row is not None and same and row["lowered"] == lowered != "":
        return number, row | told, [], []
    report = entry.case.compile(entry.architecture)
    return number, report.figures() | told, report.faults(), entry.risen(report)


def main(argv: list[str] | None = None) -> int:
    """Record the figures of what is not in the record as it is now; 1 if any was refused."""
    parser = argparse.ArgumentParser(prog="python -m bench.audit", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("names", nargs="*", help="regular expressions: only the kernels whose names match one")
    parser.add_argument("--all", action="store_true", help="also what is recorded as it is now")
    parser.add_argument("--risen", action="store_true", help="record figures that are above the recorded ones, too")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes that compile")
    given = parser.parse_args(argv)
    everything, refused, written = list(entries()), 0, time.monotonic()
    rows: dict[str, dict[str, Row]] = {entry.case.name: {} for entry in everything}
    for entry in everything:
        if (row := entry.recorded()) is not None:
            rows[entry.case.name][entry.architecture] = row
    named = [e for e in everything if not given.names or any(re.search(n, e.case.name) for n in given.names)]
    _WANTED[:] = [(entry, given.all) for entry in named if given.all or not entry.is_recorded()]
    with multiprocessing.get_context("fork").Pool(given.jobs) as pool:
        for number, row, faults, risen in pool.imap_unordered(_examine, range(len(_WANTED))):
            (architecture, case), _ = _WANTED[number]
            told = (f"{key}={value}" for key, value in row.items())
            print(f"{case.name:32} {architecture:<7}", *told, *faults, *risen, flush=True)
            if faults or (risen and not given.risen):
                refused += 1
                continue
            rows[case.name][architecture] = row
            if time.monotonic() - written > _SECONDS:  # what is compiled stays, whatever ends this
                RECORD.write_text(_text(rows))
                written = time.monotonic()
    RECORD.write_text(_text(rows))
    if refused:
        print(f"{refused} are not recorded: they have faults, or figures that have risen (--risen records those)")
    return int(refused > 0)
