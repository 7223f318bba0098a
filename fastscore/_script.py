"""TorchScript inside a score: no mode of PyTorch's functions sees it, so it is found by the graph it leaves behind.

Its tangents are of no use (they lose the graph of the gradient, or are wrong as in `fastscore._watch`), so that such a
score is differentiated in reverse mode, with an eye on its operations.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

DROPOUT = "score_fn has active dropout: its Jacobian is not defined; call .eval() on the network or set p = 0"
BATCH_NORM = (
    "score_fn has BatchNorm in training mode, which couples the samples of a batch: call .eval() on the network "
    "or use GroupNorm or LayerNorm"
)
_NORM_IN_SCRIPT = (
    "score_fn takes the gradient of a LayerNorm or InstanceNorm in TorchScript, whose third derivative is wrong in "
    "torch: give the module itself, or call it under torch.no_grad()"
)

Made = TypeVar("Made")

last_graph = torch._C._last_executed_optimized_graph
"""What TorchScript last ran in this thread."""
_TANGENTS = os.path.dirname(torch._decomp.__file__)


def is_tangent(graph: object) -> bool:
    """Whether it is a tangent of torch's own, some of which are TorchScript."""
    return _TANGENTS in str(graph)


def inside_script(fn: Callable[[Tensor], Made], x: Tensor, differentiable: bool) -> Made:
    """`fn(x)`, which calls TorchScript; `differentiable` if gradients of its Jacobian are wanted.

    Raises:
        ValueError: It does inside what a `Watch` refuses or has to write out.
    """
    with _Inside(differentiable) as inside:
        made = fn(x)
    if inside.refusal is not None:  # an error raised inside would arrive as one of TorchScript's
        raise ValueError(inside.refusal)
    return made


class _Inside(TorchDispatchMode):
    """Sees the operations of TorchScript, and why they are to be refused, if they are."""

    def __init__(self, differentiable: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.refusal: str | None = None
        self.differentiable = differentiable

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        names = [argument.name for argument in func._schema.arguments]
        given = dict(zip(names, args, strict=False)) | (kwargs or {})
        draws = torch.Tag.nondeterministic_seeded in func.tags
        if draws and given.get("train", given.get("dropout_p", "dropout_p" not in names)):
            self.refusal = DROPOUT
        elif given.get("training") and len(given["input"]) > 1:  # InstanceNorm is a BatchNorm of one row
            self.refusal = BATCH_NORM
        elif self.differentiable and (func is _LAYER_NORM_BACKWARD or given.get("train")):
            self.refusal = _NORM_IN_SCRIPT
        with torch._C.DisableTorchFunction():  # this is no call for a Watch
            return func(*args, **(kwargs or {}))


_LAYER_NORM_BACKWARD = torch.ops.aten.native_layer_norm_backward.default


@functools.cache
def no_script() -> Callable[[], None]:
    """A graph that does nothing, to be the last one executed."""
    graph = torch._C.parse_ir("graph():\n  %0 : NoneType = prim::Constant()\n  return (%0)")
    done: Callable[[], None] = torch._C._create_function_from_graph("nothing", graph)
    return done
