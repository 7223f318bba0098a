"""One real call of a network, watched operation by operation.

`Recorder` is a torch function mode: it sees every torch operation that the author's code makes, whatever the code
looks like, with the live parameters as arguments. Values that do not depend on x become the steps of a `Program`,
replayed later with the current parameters and condition; values that do are followed in the algebra of
`fastscore._reading.symbols`. Whatever could make a replay differ from the call ends the recording: reading a value into
Python, writing in place, hidden or random computation, switching autograd off, autocast.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fastscore._reading.symbols import OPAQUE, Input, Opaque, Ref, Symbol

_SIZES = frozenset({"size", "numel", "nelement", "__len__", "shape"})
_METADATA = frozenset(
    {"dim", "ndimension", "ndim", "dtype", "layout", "device", "is_cuda", "is_meta", "is_floating_point", "is_complex"}
)
_DETACHED = frozenset({"detach", "data", "zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones"})
_LIKE = frozenset({"zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"})
_LASTING = frozenset({"backward", "register_hook", "__set__"})
_FITTED = frozenset({"to", "type_as", "expand_as", "view_as", "reshape_as"})


class DeclinedError(Exception):
    """The call cannot be replayed."""


@dataclass(frozen=True)
class Step:
    """`values[index] = function(*arguments, **keywords)`, where a `Ref` among the arguments stands for its value."""

    index: int
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]


def name_of(function: Callable[..., Any]) -> str:
    """The operation's name: `add`, or `shape` for the getter of an attribute."""
    name = getattr(function, "__name__", "")
    return getattr(getattr(function, "__self__", None), "__name__", "") if name == "__get__" else name


def tensors_in(value: object) -> Iterator[Tensor]:
    """The tensors among nested arguments."""
    return (leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor))


class Recorder(TorchFunctionMode):
    """Records one call.

    Attributes:
        steps: the operations that do not depend on x, in order.
        leaves: `(index, tensor)` of the parameters and other lasting tensors used.
        sized: the code read a size of a tensor, so that the record is valid for these shapes only.
        trusted: the operation at hand is made by fastscore's own networks, which read sizes only to check them.
        reason: why the recording was given up, or None.
        lost: the first operation on x that left the algebra, or None.
    """

    def __init__(self, x: Tensor, cond: Tensor | None, known: dict[int, Tensor], rules: Rules) -> None:
        super().__init__()
        self.x, self.rows, self.known, self.rules = x, x.shape[0], known, rules
        self.steps: list[Step] = []
        self.leaves: list[tuple[int, Tensor]] = []
        self.values: list[Any] = []
        self.sized = False
        self.trusted = False
        self.reason: str | None = None
        self.lost: str | None = None
        self._kept: list[Tensor] = []  # so that no id is used twice
        self._symbols: dict[int, tuple[Symbol | Ref, int, object]] = {}
        self.put(x, Input())
        if cond is not None:
            self.put(cond, self._new(cond))

    def put(self, tensor: Tensor, symbol: Symbol | Ref) -> None:
        """Remember what a tensor is, with the marks that betray a change or an unseen differentiation rule."""
        self._kept.append(tensor)
        self._symbols[id(tensor)] = (symbol, tensor._version, tensor.grad_fn)

    def symbol(self, tensor: Tensor) -> Symbol | Ref:
        """What a tensor is.

        Raises:
            DeclinedError: it came from computation that was not seen, or was changed since.
        """
        entry = self._symbols.get(id(tensor))
        if entry is None:
            if id(tensor) not in self.known:
                self.decline("a tensor of unseen origin")
            ref = self._new(tensor)
            self.leaves.append((ref.index, tensor))
            self.put(tensor, ref)
            return ref
        symbol, version, grad_fn = entry
        if tensor._version != version or tensor.grad_fn is not grad_fn:
            self.decline("a tensor changed in place or differentiated by a custom rule")
        return symbol

    def emit(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Ref:
        """Add a step of our own, over `Ref`s and constants."""
        value = function(*self.fill(arguments), **self.fill(keywords))
        ref = self._new(value)
        self.steps.append(Step(ref.index, function, arguments, keywords))
        return ref

    def fill(self, arguments: Any) -> Any:
        """Arguments with the values in place of the `Ref`s."""
        return fill(arguments, self.values)

    def decline(self, reason: str) -> None:
        """Give up; the reason outlives an author's `except Exception`."""
        self.reason = self.reason or reason
        raise DeclinedError(reason)

    def _template(self, tensor: Tensor) -> Tensor:
        """A constant with the shape and type of a tensor that depends on x; another tensor as it is."""
        if isinstance(self.symbol(tensor), Ref):
            return tensor
        template = tensor.new_zeros(()).expand(tensor.shape)
        self.put(template, self._new(template))
        self.leaves.append((len(self.values) - 1, template))
        return template

    def _new(self, value: Any) -> Ref:
        self.values.append(value)
        return Ref(len(self.values) - 1)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation and note what it was."""
        keywords, name = kwargs or {}, name_of(func)
        self.trusted = sys._getframe(1).f_globals.get("__name__", "").startswith("fastscore.")
        if torch.is_autocast_enabled(self.x.device.type):
            self.decline("autocast")
        tensors = list(tensors_in((args, keywords)))
        symbols = [self.symbol(tensor) for tensor in tensors]
        given = pytree.tree_map_only(Tensor, self.symbol, (args, keywords))
        idle = _changes_nothing(func, args)
        if name in _LASTING and not idle:
            self.decline(f"{name} leaves a trace")
        result = func(*args, **keywords)
        if idle:
            return result
        if any(tensor._version != self._symbols[id(tensor)][1] for tensor in tensors):
            self._overwrite(func, name, args, given, result)
            return result
        if name in _SIZES or name in _METADATA:
            self.sized |= name in _SIZES and not self.trusted
            return result
        outputs = [result] if isinstance(result, Tensor) else result
        if not isinstance(outputs, (list, tuple)) or not all(isinstance(output, Tensor) for output in outputs):
            self.decline(f"{name} leaves the tensors")
        dependent = [not isinstance(symbol, Ref) for symbol in symbols]
        if (any(dependent) and name in _LIKE) or (name in _FITTED and dependent == [False, True]):
            self.sized = True  # only the shape and type of x count
            args, keywords = pytree.tree_map_only(Tensor, self._template, (args, keywords))
            self._note(func, name, args, keywords, result)
        elif any(dependent):
            symbol = self._follow(func, args, given, result)
            if symbol is OPAQUE and self.lost is None:
                self.lost = name
            for output in outputs:
                if id(output) not in self._symbols:
                    self.put(output, symbol)
        elif not (len(outputs) == 1 and id(outputs[0]) in self._symbols):
            self._note(func, name, args, keywords, result)
        return result

    def _overwrite(self, func: Callable[..., Any], name: str, args: Any, given: Any, result: Any) -> None:
        """An operation that writes its result over its first argument, a value that depends on x.

        Views of that value, and values of which it is a view, share its version and are declined when they are used.
        """
        changed = [t for t in tensors_in(args) if t._version != self._symbols[id(t)][1]]
        symbol: Symbol = OPAQUE
        if len(changed) == 1 and changed[0] is result and result is args[0] and not isinstance(given[0][0], Ref):
            symbol = self._follow(func, args, given, result)
        if symbol is OPAQUE:
            self.decline(f"{name} writes in place")
        self.put(result, symbol)

    def _follow(self, func: Callable[..., Any], args: Any, given: Any, result: Any) -> Symbol:
        """What an operation makes of x."""
        rule = self.rules.get(func)
        if func is torch.autograd.grad and len(result) == 1:
            (result,) = result
        if rule is None or not isinstance(result, Tensor):
            return OPAQUE
        if result.dtype != self.x.dtype or result.device != self.x.device or not result.requires_grad:
            return OPAQUE
        if any(isinstance(leaf, Opaque) for leaf in pytree.tree_leaves(given)):
            return OPAQUE
        try:
            return rule(Call(self, result, args, *given))
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            TypeError,
            ValueError,
        ):  # an overload that the rule does not know
            return OPAQUE

    def _note(self, func: Callable[..., Any], name: str, args: Any, keywords: dict[str, Any], result: Any) -> None:
        """A step that does not depend on x."""
        outputs = [result] if isinstance(result, Tensor) else list(result)
        needed = any(tensor.requires_grad for tensor in tensors_in((args, keywords)))
        cut = any(output.is_floating_point() and not output.requires_grad for output in outputs)
        if needed and cut and name not in _DETACHED:
            self.decline(f"{name} was not differentiated")
        given = pytree.tree_map_only(Tensor, self.symbol, (args, keywords))
        leaves = pytree.tree_leaves(given)
        if len(refs_in(given)) != sum(isinstance(leaf, Ref) for leaf in leaves):
            self.decline(f"{name} has tensors in an unusual container")
        if any(isinstance(leaf, (torch.Generator, slice)) and not _constant(leaf) for leaf in leaves):
            self.decline(f"{name} draws random numbers, or slices by a tensor")
        ref = self._new(result)
        self.steps.append(Step(ref.index, func, *given))
        if isinstance(result, Tensor):
            self.put(result, ref)
            return
        for position, output in enumerate(outputs):
            if id(output) not in self._symbols:
                self.put(output, self.emit(_item, ref, position))


@dataclass(frozen=True)
class Call:
    """One operation on a value that depends on x, as a rule sees it."""

    recorder: Recorder
    result: Tensor
    tensors: tuple[Any, ...]
    args: tuple[Any, ...]
    keywords: dict[str, Any]


def _changes_nothing(function: Callable[..., Any], args: tuple[Any, ...]) -> bool:
    """Whether a call switches autograd on where it is on, for a tensor or for what follows."""
    if function is torch._C._set_grad_enabled:
        return args == (True,) and torch.is_grad_enabled()
    named = getattr(function, "__self__", None) is Tensor.requires_grad or function is Tensor.requires_grad_
    return named and args[1:] in ((), (True,)) and args[0].requires_grad


Rules = dict[Callable[..., Any], Callable[[Call], Symbol]]


def _constant(leaf: object) -> bool:
    """Whether a slice has Python numbers for bounds."""
    return isinstance(leaf, slice) and not any(isinstance(i, Tensor) for i in (leaf.start, leaf.stop, leaf.step))


def _item(values: Any, position: int) -> Any:
    return values[position]


def fill(arguments: Any, values: Any) -> Any:
    """Nested arguments with `values[ref.index]` in place of every `Ref`."""
    if isinstance(arguments, Ref):
        return values[arguments.index]
    if type(arguments) in (tuple, list):
        return type(arguments)(fill(item, values) for item in arguments)
    if type(arguments) is dict:
        return {key: fill(item, values) for key, item in arguments.items()}
    return arguments


def refs_in(arguments: Any) -> list[Ref]:
    """The `Ref`s that `fill` would replace."""
    if isinstance(arguments, Ref):
        return [arguments]
    if type(arguments) is dict:
        arguments = list(arguments.values())
    return [ref for item in arguments for ref in refs_in(item)] if type(arguments) in (tuple, list) else []
