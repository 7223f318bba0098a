"""What a function may call while its Jacobian is taken: `Watch`, a mode that sees every call of torch.

Measured on torch 2.13: a reverse pass over forward-mode tangents (`torch.func.jvp`, then `backward`) is *silently
wrong* for layer_norm, instance_norm and several functions of linear algebra, whose tangents treat saved statistics or
factors as constants; and the tangent of a `torch.library.custom_op` is silently zero. So is a third reverse pass over
layer_norm, which the gradient of a Laplacian needs. Values and lower derivatives are right, so nothing warns.
Normalisations are therefore written out (`fastscore._replacements`), and the rest is left to reverse mode: the calls
listed at the end, and TorchScript as a whole, whose operations cannot be replaced.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fastscore import _script
from fastscore._replacements import OPERATORS, REPLACED, by_name

Made = TypeVar("Made")


class NoForwardRuleError(RuntimeError):
    """A call whose forward-mode derivative, or its gradient, would silently be wrong."""


class Watch(TorchFunctionMode):
    """Keeps the Jacobian of the functions called under it well defined and differentiable.

    Refuses what couples the samples of a batch or draws a new function at every call, sends attention to the backend
    with second derivatives, and writes normalisations out. With `forward`, rejects what forward mode gets wrong.

    Raises:
        ValueError: Active dropout, BatchNorm in training mode.
        NoForwardRuleError: With `forward`, a call to leave to reverse mode.
    """

    def __init__(self, forward: bool) -> None:
        super().__init__()
        self.forward = forward
        self.levels = len(_levels()) if forward else 0
        self.hooks = _hooks()
        self.graph: object = None
        self.recorded = torch.is_grad_enabled()
        self.switches: list[bool] = []

    def noticing_scripts(self, fn: Callable[[Tensor], Made], x: Tensor) -> Made:
        """`fn(x)`, where TorchScript is rejected: no mode sees its calls, but torch knows what graph it last ran."""
        _script.no_script()()
        self.graph = _script.last_graph()
        made = fn(x)
        self.graph = None
        return made

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        func = by_name(func)
        call, hooked = REPLACED.get(func, func), _hooks() not in (None, self.hooks)
        if func in _KINKED and self.recorded and args and _depends(args[:1]):
            _warn_of_kinks(func)
        if not self.forward:
            if not hooked:
                return call(*args, **kwargs)
            with saved_tensors_hooks(_pack, _unpack):  # what torch.utils.checkpoint calls again would not be watched
                return call(*args, **kwargs)
        if self.graph is not None and args and isinstance(args[0], Tensor):  # not where a state is being put back
            self._reject_scripts()
        if hooked or func in _LEFT_TO_REVERSE or _foreign(func) or self._fails_in_backward(func, args, kwargs):
            raise NoForwardRuleError(str(func))
        if func == _REQUIRES_GRAD and sys._getframe(1).f_globals.get("__name__") == "torch.utils.hooks":
            raise NoForwardRuleError("a backward hook of a module")
        made = call(*args, **kwargs)
        if self._cut_off() and any(map(_has_tangent, pytree.tree_leaves(made))):
            raise NoForwardRuleError("torch.no_grad")
        if func is torch._C._set_grad_enabled and not self.recorded:
            self._switch(args[0])
        return made

    def _cut_off(self) -> bool:
        """Whether the function has switched gradients off, which says nothing of itself where none are recorded."""
        return not torch.is_grad_enabled() if self.recorded else self.switches[-1:] == [False]

    def _switch(self, on: bool) -> None:
        """Follow `torch.no_grad` and `torch.enable_grad` into a block and out of it again."""
        caller = sys._getframe(2)
        if self.switches and "__exit__" in (caller.f_code.co_name, caller.f_back and caller.f_back.f_code.co_name):
            self.switches.pop()
        else:
            self.switches.append(on)

    def _reject_scripts(self) -> None:
        graph = _script.last_graph()
        if graph is not self.graph and not _script.is_tangent(graph):
            raise NoForwardRuleError("TorchScript")
        self.graph = graph

    def _fails_in_backward(self, func: Any, args: Any, kwargs: Any) -> bool:
        """Whether the tangent of this call writes over what the gradient of the tangent needs."""
        if func in _IN_PLACE_PRODUCTS:
            return _depends(args[1:])
        if func not in _FAIL_OVER_GRADIENTS or not _depends((*args, *kwargs.values())):
            return False
        return any(level.key() == torch._C._functorch.TransformType.Grad for level in _levels()[self.levels :])


def _warn_of_kinks(func: Any) -> None:
    """Warn of an activation whose slope jumps: the gradient of a trace of its network misses the jumps."""
    warnings.warn(
        f"the score calls {func.__name__}, whose second derivative is zero but for its kinks, which the gradient of a "
        "trace leaves out: following it does not minimise a loss with it; use a smooth activation, such as SiLU",
        stacklevel=2,
    )


def _levels() -> list[Any]:
    """The transforms of torch.func that are at work, the outermost first."""
    return torch._C._functorch.get_interpreter_stack() or []


def _hooks() -> object:
    """The hooks of saved tensors that are in force."""
    return None if torch.compiler.is_compiling() else torch._C._autograd._top_saved_tensors_default_hooks(False)


def _pack(tensor: Tensor) -> tuple[Tensor, int]:
    return tensor, tensor._version


def _unpack(saved: tuple[Tensor, int]) -> Tensor:
    tensor, version = saved
    if tensor._version != version:
        raise RuntimeError("a tensor that the gradient needs has been modified by an inplace operation")
    return tensor


def _depends(values: Any) -> bool:
    """Whether any of these depends on what is being differentiated."""
    return any(isinstance(v, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(v) for v in values)


def _has_tangent(value: Any) -> bool:
    """Whether forward mode carries a derivative along with it, at this level of torch.func or one below."""
    level = torch._C._functorch.maybe_current_level()
    if level is None or not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    if forward_ad.unpack_dual(value).tangent is not None:
        return True
    wrapped = torch._C._functorch.maybe_get_level(value) == level
    with temporarily_pop_interpreter_stack():
        return _has_tangent(torch._C._functorch.get_unwrapped(value) if wrapped else value)


def _foreign(func: Any) -> bool:
    """Whether func is called as an operator, `torch.ops.*`: PyTorch's own may lack the rules of its functions."""
    return isinstance(func, OPERATORS)


_KINKED: frozenset[Any] = frozenset(
    {
        *(F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu6, F.leaky_relu, F.leaky_relu_),
        *(F.prelu, torch.prelu, F.hardtanh, F.hardtanh_, F.threshold, F.hardsigmoid, F.hardshrink),
        *(torch.threshold, F.softshrink),
    }
)
"""Functions that are straight in pieces."""

_DATA: Any = Tensor.data
_REQUIRES_GRAD: Any = Tensor.requires_grad.__get__  # type: ignore[attr-defined]
_LEFT_TO_REVERSE: frozenset[Any] = frozenset(
    {
        # Scores that call torch.autograd.grad themselves begin by cutting x off: their tangent would be zero.
        *(Tensor.detach, Tensor.detach_, torch.detach, torch.detach_, _DATA.__get__),
        Tensor.register_hook,  # which sees gradients alone
        # The tangents of these treat LU factors, or the matrix, as constants.
        *(torch.det, torch.logdet, torch.slogdet, Tensor.det, Tensor.logdet, Tensor.slogdet),
        *(torch.linalg.det, torch.linalg.slogdet),
        *(torch.linalg.solve, torch.linalg.solve_ex, torch.linalg.tensorsolve),
        *(torch.cholesky_inverse, Tensor.cholesky_inverse),
        *(torch.linalg.householder_product, torch.orgqr, Tensor.orgqr),
        # The tangents of these are wrong in other ways.
        *(torch.triangular_solve, Tensor.triangular_solve),
        *(torch.scatter_reduce, Tensor.scatter_reduce, Tensor.scatter_reduce_),
    }
)

# Of a gradient, the tangents of these write in place: the gradient of a Laplacian would be an error.
_FAIL_OVER_GRADIENTS: frozenset[Any] = frozenset(
    {
        *(torch.norm, Tensor.norm, torch.linalg.norm, torch.linalg.vector_norm, torch.linalg.matrix_norm),
        *(F.normalize, F.cosine_similarity, F.pairwise_distance, torch.dist, Tensor.dist),
        *(F.triplet_margin_loss, F.triplet_margin_with_distance_loss),
        *(torch.renorm, Tensor.renorm, Tensor.renorm_, torch.copysign, Tensor.copysign, Tensor.copysign_),
        *(torch.std, Tensor.std, torch.std_mean),
    }
)
# Likewise these, of a tangent that an earlier call needs: z.mul_(torch.sigmoid(z)).
_IN_PLACE_PRODUCTS: frozenset[Any] = frozenset({Tensor.mul_, Tensor.multiply_, Tensor.__imul__})
