"""Checks of arguments, made before any work: the error names the argument, its value and what was expected."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Score = Callable[..., Tensor]
"""score_fn(x) or score_fn(x, cond): `[B, *event]` -> the same shape."""

_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def integer(name: str, value: object, minimum: int, end: int) -> int:
    """`value` as an int in [minimum, end)."""
    found = whole(name, value)
    if not minimum <= found < end:
        written = f"2**{end.bit_length() - 1}" if end & (end - 1) == 0 and end > 2**16 else str(end)
        raise ValueError(f"{name} must be in [{minimum}, {written}), got {value}")
    return found


def count(name: str, value: object, minimum: int = 1) -> int:
    """`value` as an int of at least `minimum`."""
    found = whole(name, value)
    if found < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")
    return found


def whole(name: str, value: object) -> int:
    """`value`, an integer of Python's or NumPy's, as an int."""
    if isinstance(value, bool) or not isinstance(value, (int, numbers.Integral)):
        raise TypeError(f"{name} must be an int, got {value!r} ({type(value).__name__})")
    return value if isinstance(value, int) else int(value)


def real(name: str, value: object) -> None:
    """A number of Python's or NumPy's or a tensor of numbers, neither boolean nor complex."""
    if isinstance(value, Tensor):
        if not (value.is_floating_point() or value.dtype in (torch.int32, torch.int64)):
            raise TypeError(f"{name} must be a real number, got a tensor of {value.dtype}")
    elif isinstance(value, bool) or not isinstance(value, (int, float, numbers.Real)):
        raise TypeError(f"{name} must be a number or a tensor, got {value!r} ({type(value).__name__})")


def number(name: str, value: object, *, positive: bool) -> None:
    """A finite number, or a tensor (on a CPU its values are checked), above 0 or at least 0."""
    wanted = "finite and > 0" if positive else "finite and >= 0"
    real(name, value)
    if isinstance(value, Tensor):
        if value.device.type != "cpu" or torch.compiler.is_compiling() or _transformed(value):
            return  # reading it would wait for the device, or is impossible while tracing
        bad = ~(torch.isfinite(value) & ((value > 0) if positive else (value >= 0)))
        if bool(bad.any()):
            raise ValueError(
                f"{name} must be {wanted}, got {value[bad].flatten()[0].item() if value.dim() else value.item()}"
            )
        return
    assert isinstance(value, (int, float, numbers.Real))
    if not math.isfinite(value) or value < 0 or (positive and value == 0):
        raise ValueError(f"{name} must be {wanted}, got {value}")


def positive(name: str, value: object) -> None:
    """A finite number or tensor above 0."""
    number(name, value, positive=True)


def nonnegative(name: str, value: object) -> None:
    """A finite number or tensor of at least 0."""
    number(name, value, positive=False)


def scalar(name: str, value: object) -> None:
    """A number or a 0-dim tensor, finite and above 0."""
    positive(name, value)
    if isinstance(value, Tensor) and value.dim():
        raise ValueError(f"{name} must be a number or a tensor that is 0-dim, got shape {list(value.shape)}")


def flag(name: str, value: object) -> None:
    """True or False: a string such as "no" would count as true."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def choice(name: str, value: object, choices: Sequence[str]) -> None:
    """One of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def floating(name: str, x: object) -> None:
    """A tensor of a floating point dtype."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"{name} must be a floating point tensor, got {x.dtype}")
    if x.dtype not in _FLOATING:
        raise TypeError(f"{name} must be a floating point tensor of 16 bits or more, got {x.dtype}")
    if x.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got {x.layout}")


def floating_dtype(name: str, dtype: object) -> None:
    """A floating point dtype."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"{name} must be a floating point dtype, got {dtype!r}")


def device(name: str, value: torch.device | str | None) -> None:
    """None, or what torch takes for a device."""
    if value is None:
        return
    try:
        torch.device(value)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"{name} must be a device such as 'cpu' or 'cuda:0', got {value!r}") from error


def batch(name: str, x: object, *, allow_empty: bool = True) -> None:
    """A floating point tensor `[B, *event]` with at least one event dimension."""
    floating(name, x)
    assert isinstance(x, Tensor)
    if x.is_meta:
        raise ValueError(f"{name} must hold numbers, got a tensor on the meta device, {list(x.shape)}")
    if x.dim() < 2:
        raise ValueError(f"{name} must have shape [B, *event] with at least 2 dimensions, got {list(x.shape)}")
    if not allow_empty and x.shape[0] == 0:
        raise ValueError(f"{name} must have at least one row: the batch is empty, got {list(x.shape)}")
    if x.shape[0] > 0 and x.numel() == 0:
        raise ValueError(f"{name} must have at least one feature, got {list(x.shape)}")


def same_shape(name: str, a: Tensor, other: str, b: Tensor) -> None:
    """Two tensors of one shape."""
    if a.shape != b.shape:
        raise ValueError(f"{name} must have the shape of {other} {list(b.shape)}, got {list(a.shape)}")


def same_device(name: str, a: Tensor, other: str, b: Tensor) -> None:
    """Two tensors on one device."""
    if a.device != b.device:
        raise ValueError(f"{name} is on {a.device}, {other} on {b.device}: they must be on one device")


def callable_(name: str, fn: object) -> None:
    """Something that can be called."""
    if not callable(fn):
        raise TypeError(f"{name} must be callable, got {type(fn).__name__}")


def evaluate(score_fn: Score, x: Tensor, cond: Tensor | None = None) -> Tensor:
    """score_fn(x) or score_fn(x, cond), checked to be a tensor of the shape and device of x.

    A score that differentiates by x finds no graph where x needs no gradient, and is then called again.
    """
    needs_graph = x.requires_grad  # before a score that sets it is called
    try:
        score = score_fn(x) if cond is None else score_fn(x, cond)
    except RuntimeError as error:
        if "does not require grad" not in str(error) or needs_graph or _transformed(x):
            raise
        if torch.is_grad_enabled():
            return evaluate(score_fn, x.detach().requires_grad_(), cond)
        raise RuntimeError(
            f"score_fn is called without a graph here: let it call autograd under torch.enable_grad() ({error})"
        ) from error
    if not isinstance(score, Tensor):
        raise TypeError(f"score_fn must return a tensor, got {type(score).__name__}")
    if score.shape != x.shape:
        energy = "; of an energy, give minus its gradient, such as EnergyMLP.score" if score.numel() == len(x) else ""
        raise ValueError(
            f"score_fn must return a tensor of the shape of x {list(x.shape)}, got {list(score.shape)}{energy}"
        )
    if not score.is_floating_point():
        raise TypeError(f"score_fn must return a floating point tensor, got {score.dtype}")
    same_device("the score", score, "x", x)
    return score


def _transformed(x: Tensor) -> bool:
    """Whether x is seen by a functorch transform, where its values cannot be read."""
    return torch._C._functorch.is_functorch_wrapped_tensor(x)
