"""One Langevin step of any network as a CUDA graph: its many launches become one call, replayed with new noise.

The state, the number of the step, the step size and the temperature live on the device and are read and written by the
captured step itself, so that a replay is the next step. A network whose step cannot be captured, or that gives other
values when replayed, is stepped launch by launch as before, and a warning says so once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from fastscore.ops import _dispatch

SHORTEST = 16  # steps; capturing costs about as much as that many
LARGEST = 1 << 22  # entries of the state, beyond which a step takes longer than its launches


Schedule = Callable[[int], tuple[Tensor, Tensor] | None]


class ReplayedSteps:
    """x <- clamp(x + a score(x) + sqrt(2 a T) e), captured once and replayed in place.

    Args:
        score: what is captured, `[B, *event]` to the same shape.
        x: a state of the shape, dtype and device of all that will be stepped.
        step_size: a, 0-dim or of the event's shape.
        temperature: T, 0-dim.
        clamp: (low, high) or None.
        seed: of the noise.
        first_chain: the global index of row 0.
    """

    def __init__(
        self,
        score: Callable[[Tensor], Tensor],
        x: Tensor,
        step_size: Tensor,
        temperature: Tensor,
        clamp: tuple[float, float] | None,
        seed: int,
        first_chain: int,
    ) -> None:
        self.score, self.clamp, self.counters = score, clamp, (seed, first_chain)
        self.x = x.clone(memory_format=torch.contiguous_format)  # the kernel writes rows
        self.step_size, self.temperature = step_size.clone(), temperature.clone()
        self.number = torch.zeros((), dtype=torch.int32, device=x.device)
        self.kernels: Any = _dispatch.kernels("langevin", x.device)
        self.replay = self._checked(_capture(self._step, x.device))

    def run(self, x: Tensor, k: int, n: int, schedule: Schedule | None = None) -> Tensor:
        """The state after steps k to k + n - 1; `schedule` gives a and T of a step, None if as before."""
        self.x.copy_(x)
        self.number.fill_(_bits(k))
        for step in range(k, k + n):
            if schedule is not None and (settings := schedule(step)) is not None:
                self.step_size.copy_(settings[0])
                self.temperature.copy_(settings[1])
            self.replay()
        return self.x.clone()

    def _step(self) -> None:
        """One step in place, and the number of the next."""
        rows = (self.x.shape[0], -1)
        seed, first_chain = self.counters
        state, a = self.x.view(rows), self.step_size.flatten() if self.step_size.dim() else self.step_size
        score = self.score(self.x).reshape(rows)
        self.kernels.langevin_step(state, score, a, self.temperature, seed, self.number, first_chain, out=state)
        if self.clamp is not None:
            self.x.clamp_(*self.clamp)
        self.number.add_(1)

    def _checked(self, replay: Callable[[], None]) -> Callable[[], None]:
        """`replay`, if two replays are two steps: what a network does in Python happens only while it is captured.

        Raises:
            RuntimeError: they are not.
        """
        start, ends = self.x.clone(), []
        for step in (self._step, replay):
            self.x.copy_(start)
            self.number.zero_()
            step()
            step()
            ends.append(self.x.clone())
        self.x.copy_(start)
        (moved, again), rounding = (end - start for end in ends), torch.finfo(start.dtype).eps * start.abs()
        allowed = 1e-3 * moved.abs() + 1e-3 * moved.abs().nan_to_num().max() + 4 * rounding
        if not bool(((moved - again).abs() <= allowed).logical_or(moved.isnan() & again.isnan()).all()):
            raise RuntimeError("it gives other values when it is replayed")
        return replay


@dataclass
class Capture:
    """The step of an algorithm, captured when a run is first long enough; where it cannot be, that is found once."""

    steps: ReplayedSteps | None = None
    tried: bool = False

    def find(self, n: int, capture: Callable[[], ReplayedSteps | None]) -> ReplayedSteps | None:
        """What makes n steps, or None: they are too few, or cannot be captured."""
        if not self.tried and n >= SHORTEST:
            self.tried, self.steps = True, capture()
        return self.steps if n > 1 else None


def replayed(
    owner: object,
    score: Callable[[Tensor], Tensor],
    x: Tensor,
    step_size: Tensor,
    temperature: Tensor,
    clamp: tuple[float, float] | None,
    seed: int,
    first_chain: int,
) -> ReplayedSteps | None:
    """The steps as a graph, or None; a warning says why they cannot be captured.

    Only the scores of modules are (`owner`): what they do is taken to depend on their arguments alone.
    """
    if not (_dispatch.graphs(x.device) and 0 < x.numel() <= LARGEST and isinstance(owner, nn.Module)) or _changes(
        owner
    ):
        return None
    try:
        return ReplayedSteps(score, x, step_size, temperature, clamp, seed, first_chain)
    except RuntimeError as error:
        reason = str(error).strip().split("\n")[0]
        warnings.warn(
            f"the step of {type(owner).__name__} cannot be captured in a CUDA graph and is launched part by part "
            f"({reason})",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def _changes(module: nn.Module) -> bool:
    """Whether a call may change the module, draw numbers, or run hooks."""
    return any(
        (isinstance(part, _DropoutNd | _NormBase) and part.training)
        or part._forward_hooks
        or part._forward_pre_hooks
        or part._backward_hooks
        for part in module.modules()
    )


def _capture(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """`step` as a CUDA graph, after two runs on a side stream that compile its kernels and fill its caches."""
    side, current = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    side.wait_stream(current)
    with torch.cuda.stream(side):
        step()
        _without_waiting(step)
    current.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # On the side stream: without one, torch takes that of the device on which it captured first.
    try:
        with torch.cuda.device(device), torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            step()
    finally:
        torch.cuda.set_stream(current)  # a capture that breaks off leaves its own
    return graph.replay


def _without_waiting(step: Callable[[], None]) -> None:
    """Run the step.

    Raises:
        RuntimeError: it waits for the device, which would break a capture off and leave torch's state behind.
    """
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as told:  # not errors, which would be other threads' too
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    if any("called a synchronizing" in str(warning.message) for warning in told):
        raise RuntimeError("it waits for the device")


def _bits(k: int) -> int:
    """The number of a step as an int32 of the same 32 bits."""
    return (k ^ 0x80000000) - 0x80000000
