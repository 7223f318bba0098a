"""What a callable's Python code can see, by identity, so that a cached reading of it can be trusted or dropped.

A reading of a network is valid while nothing its code depends on has been replaced. `Snapshot` finds all of that once
(`fastscore._reading.walk`), tells in some tens of microseconds whether every one of those things still is the same
object, and undoes what a call of the network has changed.
"""

from __future__ import annotations

import contextlib
import operator
import types
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn

from fastscore._reading.looks import CONTENTS, Look, NamesOf, attributes, cell_contents, kind_and_attributes
from fastscore._reading.walk import CONSTANTS, UnwatchableError, Walk

__all__ = ["Snapshot", "UnwatchableError"]


class Snapshot:
    """A snapshot of everything reachable from a callable, given as its roots.

    It holds tensors and constants, and of everything else the address and a weak reference. So it keeps no network
    alive, also not one that refers to itself, unless a tensor does so by an attribute or a hook of its own. A container
    without weak references is the same if it has the same contents.

    Attributes:
        tensors: every tensor found, by `id`.
    """

    def __init__(self, *roots: object) -> None:
        """Walk everything reachable from the roots.

        Raises:
            UnwatchableError: some of it cannot be watched.
        """
        walk = Walk(roots)
        self.tensors: dict[int, Tensor] = walk.tensors
        self._looks = walk.looks
        self._addresses = list(map(id, walk.found))
        self._modules = [weakref.ref(module) for module in walk.modules]
        self._modes = self._modes_now()
        self._gone: list[object] = []
        self._held: list[object] = []
        for value in {id(value): value for value in walk.found}.values():
            if isinstance(value, CONSTANTS):
                self._held.append(value)
            elif not isinstance(value, Tensor):
                with contextlib.suppress(TypeError):
                    self._held.append(weakref.ref(value, self._gone.append))

    def holds(self, *roots: object) -> bool:
        """Whether all of it still is the same."""
        try:
            found = self._found(roots)
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError):  # another kind of thing is there now
            return False
        return not self._gone and list(map(id, found)) == self._addresses

    def same_modes(self) -> bool:
        """Whether every module still is there, training or not as it was."""
        return self._modes_now() == self._modes

    @contextlib.contextmanager
    def kept(self, *roots: object) -> Iterator[list[str]]:
        """Leave namespaces, containers and closures as they are now, whatever a call of the callable does to them.

        What tensors contain is not undone; what another thread does to the same places meanwhile is.

        Yields:
            A list that will name what had to be undone.
        """
        found, changed = self._found(roots), list[str]()
        undo = [put_back for position, look in self._looks for put_back in _undo(found[position], look)]
        try:
            yield changed
        finally:
            for put_back in undo:
                changed += put_back()

    def _found(self, roots: tuple[object, ...]) -> list[Any]:
        found: list[Any] = list(roots)
        for position, look in self._looks:
            found += look(found[position])
        return found

    def _modes_now(self) -> list[Any]:
        return [getattr(module(), "training", None) for module in self._modules]


def _undo(value: Any, look: Look) -> Iterator[Callable[[], list[str]]]:
    """Functions that put back what the look finds now, and name what had been replaced."""
    if look in (list.__iter__, set.__iter__):
        yield partial(_refill, value, list(value))
    elif look is cell_contents:
        cells = dict(zip(value.__code__.co_freevars, value.__closure__, strict=True))
        yield _renaming(
            partial(_contents, cells),
            lambda name, content: setattr(cells[name], "cell_contents", content),
            lambda name: delattr(cells[name], "cell_contents"),
        )
    elif isinstance(look, NamesOf):
        space = getattr(value, look.space)
        yield _renaming(
            lambda: {name: space[name] for name in look.names if name in space}, space.__setitem__, space.__delitem__
        )
    elif isinstance(value, type):
        if look is attributes:
            put, drop = partial(type.__setattr__, value), partial(type.__delattr__, value)
            yield _renaming(lambda: dict(vars(value)), put, drop)
    elif look is dict.values:
        yield _renaming(partial(dict, value), value.__setitem__, value.__delitem__)
    elif look in (attributes, kind_and_attributes) or isinstance(value, nn.Module):
        own = vars(value)
        for space in (own, *(own[name] for name in CONTENTS if isinstance(value, nn.Module))):
            yield _renaming(partial(dict, space), space.__setitem__, space.__delitem__)


def _contents(cells: dict[str, types.CellType]) -> dict[str, Any]:
    contents = {}
    for name, cell in cells.items():
        with contextlib.suppress(ValueError):  # an empty cell
            contents[name] = cell.cell_contents
    return contents


def _refill(container: Any, before: list[Any]) -> list[str]:
    if len(container) == len(before) and all(map(operator.is_, container, before)):
        return []
    container.clear()
    (container.extend if isinstance(container, list) else container.update)(before)
    return [f"a {type(container).__name__}"]


def _renaming(
    read: Callable[[], dict[Any, Any]], put: Callable[[Any, Any], None], drop: Callable[[Any], None]
) -> Callable[[], list[str]]:
    """A function that gives names the meanings back that they have now."""
    before = read()

    def put_back() -> list[str]:
        now = read()
        added = [name for name in now if name not in before]
        changed = [name for name, value in before.items() if name not in now or now[name] is not value]
        for name in added:
            drop(name)
        for name in changed:
            put(name, before[name])
        return [str(name) for name in (*changed, *added)]

    return put_back
