"""What a callable's Python code can see, by identity, so that a cached reading of it can be trusted or dropped.

A reading of a network is valid while nothing its code depends on has been replaced: modules, parameters, buffers,
attributes, flags, hooks, closure variables, globals, methods. `Snapshot` walks all of that once and then tells in some
tens of microseconds whether every one of those things still is the same object. What cannot be watched (an object
of a foreign extension, a random generator, a hooked module) raises `UnwatchableError`.
"""

from __future__ import annotations

import dis
import enum
import functools
import inspect
import operator
import random
import types
import weakref
from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_LIMIT = 20_000
_TRUSTED = frozenset({"torch", "numpy", "math", "cmath", "operator", "functools", "itertools", "builtins", "typing"})
_TRUSTED_MODULES = ("torch.nn.modules.", "torch.nn.utils.parametri", "fastscore.networks")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_CONTENTS = ("_parameters", "_buffers", "_modules")
_BOOKKEEPING = frozenset(vars(nn.Module())) - {*_HOOKS, *_CONTENTS} | {"_compiled_call_impl"}
_CODE = (types.FunctionType, types.MethodType)
_CONSTANTS = (
    *(bool, int, float, complex, str, bytes, type(None), type(Ellipsis), slice, range, enum.Enum, np.generic),
    *(torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format, torch.finfo),
    *(types.MethodDescriptorType, types.WrapperDescriptorType, types.GetSetDescriptorType, np.ufunc),
    *(types.MemberDescriptorType, types.ClassMethodDescriptorType),
)
_IMPLICIT = ("__call__", "__getattr__", "__getattribute__")
_DYNAMIC = frozenset({"eval", "exec", "globals", "locals", "vars", "__import__", "compile", "input", "open"})


class UnwatchableError(Exception):
    """Something that the callable can see could change without being noticed."""


class Snapshot:
    """A snapshot of everything reachable from a callable.

    It never holds the callable itself, so it can be stored in a cache that is keyed weakly by it.

    Attributes:
        tensors: every tensor found, by `id`.
    """

    def __init__(self, root: object) -> None:
        """Walk everything reachable from `root`.

        Raises:
            UnwatchableError: some of it cannot be watched.
        """
        self.tensors: dict[int, Tensor] = {}
        self._contents: list[Iterable[Any]] = []  # live views of dicts, and lists and sets themselves
        self._hooks: list[dict[Any, Any]] = []
        self._cells: list[types.CellType] = []
        self._names: list[tuple[dict[str, Any], str]] = []
        self._class_names: list[tuple[type, str]] = []
        self._functions: list[weakref.ref[types.FunctionType]] = []
        self._seen: dict[object, object] = {}
        self._visit(root)
        self._seen.clear()
        self._expected = self._now()

    def holds(self) -> bool:
        """Whether all of it still is the same."""
        if any(self._hooks):
            return False
        try:
            now = self._now()
        except ValueError:  # a closure cell was emptied
            return False
        return len(now) == len(self._expected) and all(map(operator.is_, now, self._expected))

    def _now(self) -> list[object]:
        functions = [function() for function in self._functions]
        return [
            *chain.from_iterable(self._contents),
            *[cell.cell_contents for cell in self._cells],
            *[names.get(name) for names, name in self._names],
            *[vars(owner).get(name) for owner, name in self._class_names],
            *[None if function is None else function.__code__ for function in functions],
        ]

    def _visit(self, value: object) -> None:
        if isinstance(value, _CONSTANTS) or id(value) in self._seen:
            return
        if len(self._seen) >= _LIMIT:
            raise UnwatchableError("too many objects")
        self._seen[id(value)] = value
        if isinstance(value, Tensor):
            if type(value) not in (Tensor, nn.Parameter):
                raise UnwatchableError(f"a tensor of type {type(value).__name__}")
            self.tensors[id(value)] = value
            if vars(value):
                self._visit(vars(value))
        elif isinstance(value, nn.Module):
            self._visit_module(value)
        elif isinstance(value, types.FunctionType):
            self._visit_function(value)
        elif isinstance(value, (types.BuiltinFunctionType, types.MethodWrapperType)):
            if not isinstance(value.__self__, types.ModuleType):
                self._visit(value.__self__)
        elif isinstance(value, type):
            if not _trusted(value.__module__) and not issubclass(value, enum.Enum):
                self._visit_class(value, *vars(value))
        elif isinstance(value, types.MethodType):
            self._visit(value.__func__)
            self._visit(value.__self__)
        elif isinstance(value, functools.partial):
            self._visit_all(value.func, value.args, value.keywords)
        elif isinstance(value, dict):
            self._contents.append(value.values())
            self._visit_container(value, value.values())
        elif isinstance(value, (list, set)):
            self._contents.append(value)
            self._visit_container(value, value)
        elif isinstance(value, (tuple, frozenset)):
            self._visit_container(value, value)
        elif isinstance(value, types.ModuleType):
            if not _trusted(value.__name__):
                raise UnwatchableError(f"the module {value.__name__}")
        else:
            self._visit_object(value)

    def _visit_all(self, *values: object) -> None:
        for value in values:
            self._visit(value)

    def _visit_container(self, container: object, items: Iterable[object]) -> None:
        self._visit_all(*items)
        if hasattr(container, "__dict__") and not isinstance(container, OrderedDict):
            self._visit_object(container)

    def _visit_module(self, module: nn.Module) -> None:
        kind = type(module)
        if kind.__module__.startswith("torch.") and not kind.__module__.startswith(_TRUSTED_MODULES):
            raise UnwatchableError(f"a module of type {kind.__name__}, which does more than compute")
        attributes = vars(module)
        if any(attributes.get(name) for name in _HOOKS) or attributes.get("_compiled_call_impl") is not None:
            raise UnwatchableError("a module with hooks, or compiled in place")
        self._contents.append(attributes.values())
        self._hooks += [attributes[name] for name in _HOOKS]
        for name, value in attributes.items():
            if name not in _HOOKS and name not in _BOOKKEEPING:
                self._visit(value)
        self._visit_class(kind, "forward", *_IMPLICIT)

    def _visit_object(self, value: object) -> None:
        """A plain Python object: its attributes, and its class from `__call__` on."""
        kind = type(value)
        slots = any(vars(base).get("__slots__") for base in kind.__mro__)
        if not hasattr(value, "__dict__") or slots or _trusted(kind.__module__) or isinstance(value, random.Random):
            raise UnwatchableError(f"an object of type {kind.__name__}")
        self._contents.append(vars(value).values())
        self._visit_all(*vars(value).values())
        self._visit_class(kind, *(name for name, item in vars(kind).items() if inspect.isfunction(item)))

    def _visit_class(self, kind: type, *entries: str) -> None:
        """The methods and class attributes that the named methods, and the methods they name, can reach."""
        waiting, done = list(entries), set()
        while waiting:
            name = waiting.pop()
            if name in done or not hasattr(kind, name):
                continue
            done.add(name)
            for base in kind.__mro__:
                if base in (object, nn.Module) or name not in vars(base):
                    continue
                item = vars(base)[name]
                self._class_names.append((base, name))
                getter = item.fget if isinstance(item, property) else getattr(item, "__func__", item)
                self._visit(getter)
                if isinstance(getter, types.FunctionType) and not _trusted(getter.__globals__.get("__name__")):
                    waiting += getter.__code__.co_names
                    waiting += dir(kind) if "getattr" in getter.__code__.co_names else []

    def _visit_function(self, function: types.FunctionType) -> None:
        if _trusted(function.__globals__.get("__name__")):
            # torch's own function, or a decorator of torch around an author's.
            contents = (cell.cell_contents for cell in function.__closure__ or ())
            self._visit_all(*(c for c in contents if isinstance(c, (*_CODE, dict, functools.partial, nn.Module))))
            return
        self._functions.append(weakref.ref(function))
        self._visit_all(function.__defaults__, function.__kwdefaults__)
        for cell in function.__closure__ or ():
            try:
                content = cell.cell_contents
            except ValueError as empty:
                raise UnwatchableError("an empty closure cell") from empty
            self._cells.append(cell)
            self._visit(content)
        names = function.__globals__
        for code in _codes(function.__code__):
            used: dict[str, set[str]] = defaultdict(set)
            for instruction in dis.get_instructions(code):
                used[instruction.opname].add(str(instruction.argval))
            if used["LOAD_GLOBAL"] & _DYNAMIC or not all(map(_trusted, used["IMPORT_NAME"])):
                raise UnwatchableError(f"{function.__name__} looks up or imports what cannot be foreseen")
            for name in used["LOAD_GLOBAL"] & names.keys():
                self._visit_global(names, name, code)

    def _visit_global(self, names: dict[str, Any], name: str, code: types.CodeType) -> None:
        self._names.append((names, name))
        value = names[name]
        if isinstance(value, types.ModuleType) and not _trusted(value.__name__):
            for attribute in code.co_names:
                if attribute in vars(value) and id(value) not in self._seen:
                    self._visit_global(vars(value), attribute, code)
        else:
            self._visit(value)


def _codes(code: types.CodeType) -> list[types.CodeType]:
    """The code and that of the functions and comprehensions inside it."""
    inner = [c for constant in code.co_consts if isinstance(constant, types.CodeType) for c in _codes(constant)]
    return [code, *inner]


def _trusted(module: str | None) -> bool:
    return module is not None and module.partition(".")[0] in _TRUSTED | {"fastscore"}
