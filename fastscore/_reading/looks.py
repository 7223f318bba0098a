"""Ways to look into an object: what a module, a class, a function or a namespace holds.

A walk (`fastscore._reading.walk`) follows them once from a callable to everything that its code can see. A snapshot
(`fastscore._reading.snapshot`) repeats them, to find out whether something has been replaced.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterable
from operator import attrgetter, itemgetter
from typing import Any

from torch import nn

Look = Callable[[Any], Iterable[Any]]
"""A way to look into an object: what it holds, anew at every call, in the same order while nothing has changed."""

CONTENTS = ("_parameters", "_buffers", "_modules")
_WRAPPED = (types.FunctionType, types.MethodType, dict, functools.partial, nn.Module)


class NamesOf:
    """Looks at some names in a namespace of an object; a name that is not there counts as None."""

    def __init__(self, space: str, names: Iterable[str]) -> None:
        self.space, self.names = space, sorted(names)

    def __call__(self, value: Any) -> Iterable[Any]:
        """Return what the names stand for."""
        space = getattr(value, self.space)
        return map(space.get, self.names)


def attributes(value: Any) -> Iterable[Any]:
    """The values of an object's or a class's own attributes."""
    return value.__dict__.values()  # type: ignore[no-any-return]


def kind_and_attributes(value: Any) -> tuple[Any, ...]:
    """The class of an object, and the values of its attributes."""
    return (type(value), *value.__dict__.values())


def cell_contents(function: types.FunctionType) -> list[Any]:
    """What a function has closed over."""
    return [cell.cell_contents for cell in function.__closure__ or ()]


def inside(names: list[str]) -> Look:
    """What a module with attributes of these names has inside, and whether it has others or hooks."""
    named = itemgetter("training", *names)  # of two names or more, so that it returns a tuple

    def look(module: nn.Module) -> tuple[Any, ...]:
        own = module.__dict__
        hooks = own["_forward_hooks"] or own["_forward_pre_hooks"]
        return (
            type(module),
            len(own),
            bool(hooks or own["_backward_hooks"] or own["_backward_pre_hooks"]),
            *named(own),
            *own["_parameters"].values(),  # of CONTENTS
            *own["_buffers"].values(),
            *own["_modules"].values(),
        )

    return look


def class_of(value: object) -> tuple[type]:
    """The class of an object."""
    return (type(value),)


def forward_of(kind: type) -> tuple[Any]:
    """The method `forward` of a class, or None."""
    return (getattr(kind, "forward", None),)


def wrapped(function: types.FunctionType) -> list[Any]:
    """What a decorator's function has closed over, where code can be in it."""
    return [content for content in cell_contents(function) if isinstance(content, _WRAPPED)]


def parts_of(value: object) -> Look | None:
    """How to look into a callable or a descriptor that is made of other things."""
    if isinstance(value, types.MethodType):
        return attrgetter("__func__", "__self__")
    if isinstance(value, (types.BuiltinFunctionType, types.MethodWrapperType)):
        return lambda value: (value.__self__,)
    if isinstance(value, functools.partial):
        return attrgetter("func", "args", "keywords")
    if isinstance(value, (staticmethod, classmethod)):
        return lambda value: (value.__func__,)
    return (lambda value: (value.fget,)) if isinstance(value, property) else None
