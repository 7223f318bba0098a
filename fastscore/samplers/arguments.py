"""The arguments that samplers share, checked before any work."""

from __future__ import annotations

import sys
import types
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from fastscore import _checks
from fastscore.ops.noise import computed, tensor
from fastscore.samplers import chain
from fastscore.targets import DoubleWell, GaussianMixture

if TYPE_CHECKING:
    from fastscore.reader import Reading


def prepare(score_fn: _checks.Score, x: Tensor, first_chain: int, **numbers: chain.Schedule) -> _checks.Score:
    """Check what every sampler is given, `numbers` for their shape and device; the score function to call."""
    _checks.batch("x", x)
    _checks.integer("first_chain", first_chain, 0, 2**56 - x.shape[0] + 1)
    for name, value in numbers.items():
        if not callable(value):
            chain.schedule(name, value, positive=name != "temperature")
            as_tensor(name, value, x)
    _warn_of_training(score_fn)
    return as_score(score_fn)


def _warn_of_training(score_fn: object) -> None:
    """Warn of a network whose score is another one with every call."""
    network = getattr(score_fn, "__self__", score_fn)
    modules = network.modules() if isinstance(network, torch.nn.Module) else ()
    for module in modules:
        drops = isinstance(module, _DropoutNd) and module.p > 0
        if module.training and (drops or isinstance(module, _BatchNorm)):
            warnings.warn(
                f"score_fn has {type(module).__name__} in training mode: its score differs from call to call or mixes "
                "the rows of a batch; call .eval() before sampling",
                stacklevel=_of_the_user(),
            )
            return


def checked(name: str, value: float | Tensor, x: Tensor) -> float | Tensor:
    """A number, or a tensor on the device of x, 0-dim or (step_size) of the event's shape."""
    if isinstance(value, Tensor):
        _checks.same_device(name, value, "x", x)
        if value.dim() and (name != "step_size" or value.shape != x.shape[1:]):
            wanted = "0-dim" if name != "step_size" else f"0-dim or of the event's shape {list(x.shape[1:])}"
            raise ValueError(f"{name} must be a number or a tensor that is {wanted}, got shape {list(value.shape)}")
    return value


def as_tensor(name: str, value: float | Tensor, x: Tensor) -> Tensor:
    """The same as a tensor."""
    return tensor(checked(name, value, x), x)


def table(name: str, schedule: Callable[[int], float | Tensor], steps: range, x: Tensor) -> Tensor:
    """The values at some steps, `[n, 1]`, or `[n, D]` of step sizes a feature, in the dtype that x is computed in."""
    rows = [as_tensor(name, schedule(step), x) for step in steps]
    return torch.stack(rows).view(len(steps), -1).to(computed(x.dtype))


def warn_of_divergence(score_fn: object, step_size: chain.Schedule, x: Tensor, order: int = 1) -> None:
    """Warn of a constant step size at which chains towards a mixture of one precision P, or a Gaussian, diverge.

    Far from its means the score is P (m - x), that of one Gaussian. A step of first order, x + a s(x), multiplies x - m
    by I - a P there, and is stable where a P < 2; one of second order (BAOAB, at any friction) where a^2 P < 4.
    """
    target = target_of(score_fn, "score", x)
    if callable(step_size) or not isinstance(target, GaussianMixture):
        return
    a = torch.as_tensor(step_size, dtype=torch.float64, device="cpu").detach().expand(target.dim)
    stiffness = target._stiffness(a ** (order / 2))
    if stiffness is None or stiffness <= 2**order * (1 + 1e-9):
        return
    largest, limit = float(a.max()), "2 / L" if order == 1 else "2 / sqrt(L)"
    warnings.warn(
        f"step_size {largest:.3g} is above {limit} = {largest * (2**order / stiffness) ** (1 / order):.3g}, "
        "L the largest precision of the target: chains may diverge, and their law is far from the target's",
        stacklevel=_of_the_user(),
    )


def _of_the_user() -> int:
    """The stacklevel of a warning given by the caller that names the first line outside of fastscore."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("fastscore."):
        frame, level = frame.f_back, level + 1
    return level


def counted(seed: int, first_chain: int) -> tuple[int, int]:
    """What counters are made of, checked."""
    return _checks.integer("seed", seed, 0, 2**64), _checks.integer("first_chain", first_chain, 0, 2**56)


def told(fn: Callable[..., Tensor], cond: Any) -> Callable[..., Tensor]:
    """A function with the condition as its last argument; the function itself where there is none."""
    return fn if cond is None else lambda *given: fn(*given, cond)


def same_for_all(reading: Reading) -> bool:
    """Whether what a network is told is the same for all rows, to rounding: a function may know a label for each."""

    def same(t: Tensor) -> bool:
        return t.stride(0) == 0 or float((t - t[:1]).abs().max()) <= 1e-5 * float(t.abs().max())

    rows = (*reading.shifts, *reading.scales)
    return all(t is None or len(t) < 2 or same(t.detach()) for t in rows)


def check_clamp(clamp: tuple[float, float] | None) -> tuple[float, float] | None:
    """None, or (low, high) with low < high."""
    if clamp is None:
        return None
    numbers = isinstance(clamp, (tuple, list)) and all(isinstance(end, (int, float)) for end in clamp)
    if not numbers or len(clamp) != 2:
        raise TypeError(f"clamp must be (low, high), two numbers, got {clamp!r}")
    if not clamp[0] < clamp[1]:
        raise ValueError(f"clamp must be (low, high) with low < high, got {clamp}")
    return clamp


def as_score(score_fn: Any) -> _checks.Score:
    """A callable as it is; otherwise the `score` method of an object such as a target density."""
    if not callable(score_fn) and callable(method := getattr(score_fn, "score", None)):
        return method  # type: ignore[no-any-return]
    _checks.callable_("score_fn", score_fn)
    return score_fn  # type: ignore[no-any-return]


def target_of(method: Any, name: str, x: Tensor) -> GaussianMixture | DoubleWell | None:
    """The target in closed form whose own method `name` this is, of as many dimensions as the rows of x.

    None where it is not; of another dimension the target itself complains when it is called.
    """
    owner = getattr(method, "__self__", None)
    for kind in (GaussianMixture, DoubleWell):
        if isinstance(owner, kind) and isinstance(method, types.MethodType):
            own = method.__func__ is getattr(kind, name, None)
            return owner if own and x.dim() == 2 and x.shape[1] == owner.dim else None
    return None
