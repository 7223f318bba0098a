"""The one place that decides between the plain PyTorch reference and a Triton kernel."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import Any, TypeVar

import torch

from fastscore import _config


def kernels(name: str, device: torch.device) -> ModuleType | None:
    """The module `fastscore_kernels.<name>` if its kernels should run on `device`, else None: use the reference.

    Raises:
        RuntimeError: the backend is "triton" and no Triton kernel can run there.
    """
    if torch.compiler.is_compiling():
        return None
    backend = _config.backend()
    if backend == "torch" or (backend == "auto" and device.type != "cuda"):
        return None
    module = _load(name)
    if backend == "triton":
        if module is None:
            raise RuntimeError('backend "triton" needs Triton, which is not installed; use backend "auto" or "torch"')
        if device.type == "cpu" and not _config.interpreting():
            raise RuntimeError(
                'backend "triton" cannot run on CPU tensors without Triton\'s interpreter (TRITON_INTERPRET=1); '
                'move the tensors to a GPU, or use backend "auto" or "torch"'
            )
    return module


Function = TypeVar("Function", bound=type[torch.autograd.Function])


def carried(function: Function) -> Function:
    """An autograd Function whose backward has the backend of its forward.

    Autograd runs the backward of what is on a GPU in a thread of its own, in which no `with use_backend(...)` is.
    """
    recording = "forward" if function.setup_context is torch.autograd.Function.setup_context else "setup_context"
    record, back = getattr(function, recording), function.backward

    @functools.wraps(record)
    def recorded(ctx: Any, *given: Any) -> Any:
        ctx.backend = _config.backend()
        return record(ctx, *given)

    @functools.wraps(back)
    def backward(ctx: Any, *upstream: Any) -> Any:
        if ctx.backend == _config.backend():
            return back(ctx, *upstream)
        with _config.use_backend(ctx.backend):
            return back(ctx, *upstream)

    setattr(function, recording, staticmethod(recorded))
    function.backward = staticmethod(backward)  # type: ignore[method-assign]
    return function


def graphs(device: torch.device) -> bool:
    """Whether steps made of kernels on `device` can be captured in a graph and replayed."""
    return device.type == "cuda" and kernels("langevin", device) is not None


@functools.cache
def _load(name: str) -> ModuleType | None:
    try:
        triton = importlib.import_module("triton")
    except ImportError:
        return None
    try:
        return importlib.import_module(f"fastscore_kernels.{name}")
    except Exception as error:  # whatever a Triton of another time raises when it sees our source
        version = getattr(triton, "__version__", "of no version")
        raise RuntimeError(
            f"the Triton kernels cannot be loaded with Triton {version} (3.6 and 3.7 are tested): {error!r}; "
            'install one of these, or use backend "torch"'
        ) from error
