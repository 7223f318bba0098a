"""Finding everything that a callable's Python code can see: what a snapshot of it has to watch.

Modules, parameters, buffers, attributes, flags, closures, defaults, globals, containers, methods and class attributes.
Of a class everything is watched, and what it holds under a name that some code found so far uses is followed, as are
the special methods, which Python calls by itself. What cannot be watched (an object of a foreign extension, a random
generator, a hooked module) raises `UnwatchableError`. Every look into an object (`fastscore._reading.looks`) is noted,
for a snapshot to repeat.
"""

from __future__ import annotations

import dis
import enum
import random
import types
from collections import OrderedDict, _tuplegetter, defaultdict  # type: ignore[attr-defined]
from collections.abc import Iterable
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastscore._reading.looks import (
    Look,
    NamesOf,
    attributes,
    cell_contents,
    class_of,
    forward_of,
    inside,
    kind_and_attributes,
    parts_of,
    wrapped,
)

CONSTANTS = (
    *(bool, int, float, complex, str, bytes, type(None), type(Ellipsis), slice, range, enum.Enum, np.generic),
    *(torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format, torch.finfo),
    *(types.MethodDescriptorType, types.WrapperDescriptorType, types.GetSetDescriptorType, np.ufunc),
    *(types.MemberDescriptorType, types.ClassMethodDescriptorType, types.CodeType, _tuplegetter),
)
_LIMIT = 20_000
_TRUSTED = frozenset({"torch", "numpy", "math", "cmath", "operator", "functools", "itertools", "builtins", "typing"})
_TRUSTED_MODULES = ("torch.nn.modules.", "torch.nn.utils.parametri")
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_BOOKKEEPING = frozenset(vars(nn.Module())) - {"training"}
_SEQUENCES = (list, set, tuple, frozenset)
_DYNAMIC = frozenset({"eval", "exec", "globals", "locals", "vars", "__import__", "compile", "input", "open"})
_ANY_ATTRIBUTE = frozenset({"getattr", "__dict__", "__getattribute__"})
_SETUP = frozenset({"__init__", "__new__", "__init_subclass__", "__set_name__", "__del__", "__repr__", "__str__"})
_COPYING = frozenset({"__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__copy__", "__deepcopy__"})


class UnwatchableError(Exception):
    """Something that the callable can see could change without being noticed."""


class Walk:
    """Everything that can be reached from some objects.

    Attributes:
        found: The objects, beginning with the roots; for each of `looks` in turn, `look(found[position])` is appended.
        looks: `(position, look)`.
        modules: Every module found.
        tensors: Every tensor found, by `id`.
    """

    def __init__(self, roots: Iterable[object]) -> None:
        """Walk.

        Raises:
            UnwatchableError: some of it cannot be watched.
        """
        self.found: list[Any] = list(roots)
        self.looks: list[tuple[int, Look]] = []
        self.modules: list[nn.Module] = []
        self.tensors: dict[int, Tensor] = {}
        self._seen: set[object] = set()
        self._names = {"forward"}  # that code uses
        self._members: list[tuple[str, int, bool]] = []  # of classes: name, position, whether the class may be called
        self._waiting = list(range(len(self.found)))
        while self._waiting:
            while self._waiting:
                self._visit(self._waiting.pop())
            self._visit_members()

    def _look(self, position: int, look: Look) -> range:
        """Watch what `look` finds there, and return the positions of it."""
        self.looks.append((position, look))
        start = len(self.found)
        self.found += look(self.found[position])
        if len(self.found) > _LIMIT:
            raise UnwatchableError("too many objects")
        return range(start, len(self.found))

    def _follow(self, position: int, look: Look) -> None:
        """Watch what `look` finds there, and everything that can be reached from it."""
        self._waiting += self._look(position, look)

    def _visit(self, position: int) -> None:
        value = self.found[position]
        if isinstance(value, CONSTANTS) or id(value) in self._seen:
            return
        self._seen.add(id(value))
        if isinstance(value, Tensor):
            if type(value) not in (Tensor, nn.Parameter):
                raise UnwatchableError(f"a tensor of type {type(value).__name__}")
            self.tensors[id(value)] = value
            if vars(value):
                self._follow(position, attributes)
        elif isinstance(value, nn.Module):
            self._visit_module(position, value)
        elif isinstance(value, types.FunctionType):
            self._visit_function(position, value)
        elif isinstance(value, type):
            if not _trusted(value.__module__) and not issubclass(value, enum.Enum):
                self._visit_class(position, called=True)
        elif isinstance(value, types.ModuleType):
            if not _trusted(value.__name__) or "random" in value.__name__:
                raise UnwatchableError(f"the module {value.__name__}")
        elif isinstance(value, (dict, *_SEQUENCES)):
            self._visit_container(position, value)
        elif (parts := parts_of(value)) is None:
            self._visit_object(position)
        elif not isinstance(getattr(value, "__self__", None), types.ModuleType):
            self._follow(position, parts)

    def _visit_container(self, position: int, value: Any) -> None:
        if isinstance(value, dict):
            self._look(position, dict.__iter__)
            self._follow(position, dict.values)
        else:
            self._follow(position, next(kind.__iter__ for kind in _SEQUENCES if isinstance(value, kind)))
        if hasattr(value, "__dict__") and not isinstance(value, OrderedDict):
            self._visit_object(position)
        elif type(value).__module__ not in ("builtins", "collections"):
            self._visit_class(*self._look(position, class_of))

    def _visit_module(self, position: int, module: nn.Module) -> None:
        kind = type(module)
        if kind.__module__.startswith("torch.") and not kind.__module__.startswith(_TRUSTED_MODULES):
            raise UnwatchableError(f"a module of type {kind.__name__}, which does more than compute")
        if any(vars(module).get(name) for name in HOOKS) or vars(module).get("_compiled_call_impl") is not None:
            raise UnwatchableError("a module with hooks, or compiled in place")
        self.modules.append(module)
        own, *places = self._look(position, inside([name for name in vars(module) if name not in _BOOKKEEPING]))
        self._visit_class(own)
        self._waiting += places

    def _visit_object(self, position: int) -> None:
        """A plain Python object."""
        value = self.found[position]
        kind = type(value)
        slots = any(vars(base).get("__slots__") for base in kind.__mro__)
        if not hasattr(value, "__dict__") or slots or _trusted(kind.__module__) or isinstance(value, random.Random):
            raise UnwatchableError(f"an object of type {kind.__name__}")
        own, *places = self._look(position, kind_and_attributes)
        self._visit_class(own)
        self._waiting += places

    def _visit_class(self, position: int, called: bool = False) -> None:
        """A class and its bases: whatever is set on one of them may hide what another has."""
        key: object = ("bases", id(self.found[position]), called)
        if key in self._seen:
            return
        self._seen.add(key)
        of_torch = self.found[position].__module__.startswith("torch.")
        for place in (position,) if of_torch else self._look(position, attrgetter("__mro__")):
            base = self.found[place]
            key = (id(base), called)
            if base in (object, nn.Module) or key in self._seen:
                continue
            self._seen.add(key)
            if base.__module__.startswith("torch."):
                self._follow(place, forward_of)
            elif not _trusted(base.__module__) or base.__module__.startswith("fastscore."):
                names = list(vars(base))
                self._members += [(n, at, called) for n, at in zip(names, self._look(place, attributes), strict=True)]

    def _visit_members(self) -> None:
        """What classes hold under the names that code uses."""
        any_name, unused = bool(self._names & _ANY_ATTRIBUTE), []
        for member in self._members:
            name, position, called = member
            if name.startswith("__"):
                implicit = name not in _COPYING and (called or name not in _SETUP)
                used = name in self._names or (implicit and isinstance(self.found[position], types.FunctionType))
            else:
                used = any_name or name in self._names
            if used and not name.startswith("_abc_"):
                self._waiting.append(position)
            else:
                unused.append(member)
        self._members = unused

    def _visit_function(self, position: int, function: types.FunctionType) -> None:
        if _trusted(function.__globals__.get("__name__")):
            own = vars(function)
            if "_torchdynamo_orig_callable" in own and not own.get("_torchdynamo_disable"):
                raise UnwatchableError("a function compiled by torch.compile")
            if function.__closure__:  # torch's own function, or a decorator of torch around an author's
                self._follow(position, wrapped)
            return
        self._follow(position, attrgetter("__code__", "__defaults__", "__kwdefaults__"))
        if vars(function):
            self._follow(position, attributes)
        if function.__closure__:
            try:
                self._follow(position, cell_contents)
            except ValueError as empty:
                raise UnwatchableError("an empty closure cell") from empty
        for code in _codes(function.__code__):
            used: dict[str, set[str]] = defaultdict(set)
            for instruction in dis.get_instructions(code):
                used[instruction.opname].add(str(instruction.argval))
            if used["LOAD_GLOBAL"] & _DYNAMIC or not all(map(_trusted, used["IMPORT_NAME"])):
                raise UnwatchableError(f"{function.__name__} looks up or imports what cannot be foreseen")
            if any("random" in name.split(".") for name in code.co_names):  # np.random, for one
                raise UnwatchableError(f"{function.__name__} uses random numbers of Python or NumPy")
            self._names.update(code.co_names)
            if used["LOAD_GLOBAL"]:
                self._visit_names(position, NamesOf("__globals__", used["LOAD_GLOBAL"]), code)

    def _visit_names(self, position: int, names: NamesOf, code: types.CodeType) -> None:
        """Some global names, or attributes of a module that some code loads."""
        for place in self._look(position, names):
            value = self.found[place]
            if not isinstance(value, types.ModuleType) or _trusted(value.__name__):
                self._waiting.append(place)
            elif (id(value), code) not in self._seen:
                self._seen.add((id(value), code))
                self._visit_names(place, NamesOf("__dict__", vars(value).keys() & set(code.co_names)), code)


def _codes(code: types.CodeType) -> list[types.CodeType]:
    """The code and that of the functions and comprehensions inside it."""
    inner = [c for constant in code.co_consts if isinstance(constant, types.CodeType) for c in _codes(constant)]
    return [code, *inner]


def _trusted(module: str | None) -> bool:
    return module is not None and module.partition(".")[0] in _TRUSTED | {"fastscore"}
