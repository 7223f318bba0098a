"""Which implementation runs: the one place that reads the environment and the one global setting."""

from __future__ import annotations

import contextlib
import contextvars
import os
from collections.abc import Iterator

from fastscore import _checks

BACKENDS = ("auto", "torch", "triton")


def _default() -> str:
    name = os.environ.get("FASTSCORE_BACKEND", "auto")
    _checks.choice("FASTSCORE_BACKEND", name, BACKENDS)
    return name


_backend: contextvars.ContextVar[str] = contextvars.ContextVar("fastscore_backend", default=_default())  # noqa: B039


def backend() -> str:
    """The backend in force: "auto", "torch" or "triton"."""
    return _backend.get()


def interpreting() -> bool:
    """Whether Triton kernels run in Triton's interpreter, on CPU tensors (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "y", "yes")


def environment(**changes: str) -> dict[str, str]:
    """The environment for a program to be started, with `changes`."""
    return os.environ | changes


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Choose the implementation inside a `with` block.

    "auto" (the default, or what FASTSCORE_BACKEND said at import) runs Triton kernels on GPU tensors where Triton is
    installed, compiled C on CPU tensors where it can be had, and plain PyTorch elsewhere; "torch" never uses Triton,
    and on CPU tensors does what "auto" does: nothing switches the C off; "triton" raises instead of falling back (on
    CPU tensors it needs Triton's interpreter, TRITON_INTERPRET=1). The setting is local to the thread or async task.

    Raises:
        ValueError: an unknown name.
    """
    _checks.choice("backend", name, BACKENDS)
    token = _backend.set(name)
    try:
        yield
    finally:
        _backend.reset(token)
