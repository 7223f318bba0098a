"""What is known of the callables that were read: one `Entry` for each, kept no longer than the callable itself."""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Hashable
from typing import Any

from fastscore._reading.program import Program
from fastscore._reading.snapshot import Snapshot, UnwatchableError

_PATIENCE = 3  # what a first call sets up, a later one may leave alone


class Entry:
    """What is known of one callable: a snapshot over it, and a program (or None) for every kind of argument.

    Attributes:
        changes: how many recordings in a row changed what the callable sees. After `_PATIENCE` of them it is given up
            until one of its modules changes between training and evaluation.
    """

    def __init__(self, snapshot: Snapshot, changes: int) -> None:
        self.snapshot = snapshot
        self.changes = changes
        self.programs: dict[Hashable, Program | None] = {}
        self.sized: set[Hashable] = set()

    def changed(self) -> None:
        """Note that a recording changed what the callable sees."""
        self.changes += 1
        if self.given_up():
            self.programs.clear()

    def given_up(self) -> bool:
        """Whether nothing is recorded any more."""
        return self.changes >= _PATIENCE

    def holds(self, roots: tuple[Any, ...]) -> bool:
        """Whether what is known still is true."""
        return self.snapshot.same_modes() if self.given_up() else self.snapshot.holds(*roots)


_cache: dict[int, tuple[weakref.ref[Any], dict[object, Entry]]] = {}
"""By the `id` of its owner, the first of a callable's roots: the owner, and an entry for each `id` of a last root."""


def roots_of(fn: Any) -> tuple[Any, ...]:
    """What a callable is made of and lives as long as it does: a bound method is another one at every look."""
    return (fn.__self__, fn.__func__) if isinstance(fn, types.MethodType) else (fn,)


def entry_of(roots: tuple[Any, ...]) -> Entry:
    """The cache entry of a callable, as long as nothing it can see has changed."""
    owner, part = roots[0], id(roots[-1])
    known = _cache.get(id(owner))
    if known is None or known[0]() is not owner:
        try:
            reference = weakref.ref(owner, functools.partial(_forget, id(owner)))
        except TypeError as error:
            raise UnwatchableError("a callable without weak references") from error
        known = _cache[id(owner)] = (reference, {})
    entry = known[1].get(part)
    if entry is None or not entry.holds(roots):
        changes = 0 if entry is None or entry.given_up() else entry.changes
        entry = known[1][part] = Entry(Snapshot(*roots), changes)
    return entry


def _forget(key: int, _: object) -> None:
    _cache.pop(key, None)
