"""What a run keeps of its states, and the file it is written to and goes on from.

The file of a run (`checkpoint`) holds the whole state of the algorithm, what was kept so far, the next step and the
arguments. A run that is given a file that exists goes on from there, to the bits of a run that was never stopped, also
in half precision and with a velocity; one that is finished gives its result again, or goes on where `n_steps` has
grown. A file of other arguments, another algorithm or another stream of noise is refused; the score itself and
functions of the step are not compared. Of x, only shape, dtype and device count then. What is kept of the trajectory is
written anew each time. Every process of a distributed run has a file of its own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from fastscore import _checks
from fastscore import checkpoint as files
from fastscore.noise import STREAM_VERSION
from fastscore.ops.noise import computed

if TYPE_CHECKING:
    from fastscore.samplers.chain import Run

State = TypeVar("State", bound=tuple[Tensor, ...])


class Record:
    """The trajectory, the moments and the file of one run.

    What runs on from state to state, the mean of a chain's kept states and their squared deviations from it, is not
    kept here but handed from call to call: an interrupt then finds that of the state it finds.
    """

    def __init__(self, run: Run, algorithm: str, x: Tensor) -> None:
        self.run, self.device = run, x.device
        event = x.shape[1:]
        self.trajectory = x.new_empty(x.shape[0], run.keep.count, *event) if run.return_trajectory else None
        shape = (2, run.keep.count, *event)
        self.moments = x.new_empty(shape, dtype=computed(x.dtype)) if run.return_diagnostics else None
        self.path = run.checkpoint
        same = ("seed", "first_chain", "first_step", "burn_in", "thin", "on_nonfinite")
        self.about: dict[str, Any] = {"algorithm": algorithm, "stream": STREAM_VERSION}
        self.about |= {"dtype": str(x.dtype), "shape": list(x.shape)} | {name: getattr(run, name) for name in same}
        self.about |= {"return_trajectory": run.return_trajectory, "return_diagnostics": run.return_diagnostics}
        if self.path is not None:
            self.about |= {name: _described(value) for name, value in run.settings.items()}

    def running(self, x: Tensor) -> tuple[Tensor, ...]:
        """The running mean and squared deviations `[B, *event]` of no states, or nothing where none is asked for."""
        parts = range(0 if self.moments is None else 2)
        wide = (
            torch.float32 if x.device.type == "mps" else torch.float64
        )  # the mean of 10^5 states adds up its rounding
        return tuple(torch.zeros(x.shape, dtype=wide, device=x.device) for _ in parts)

    def keep(self, position: Tensor, steps: int, running: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Keep the position after so many steps, if it is one to be kept; what is running then."""
        if self.run.keep.index(steps) is None:
            return running
        return self.keep_path(position.unsqueeze(1), steps, running)

    def keep_path(self, path: Tensor, steps: int, running: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Keep positions `[B, n, *event]`, the first of them after so many steps, the others `thin` steps apart."""
        first = self.run.keep.index(steps)
        assert first is not None
        if self.trajectory is not None:
            self.trajectory[:, first : first + path.shape[1]] = path
        if self.moments is not None:
            for kept, position in enumerate(path.unbind(1), first):
                running = self._observe(position, kept, running)
        return running

    def _observe(self, position: Tensor, kept: int, running: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Take down the moments of the state of this index; what is running then (Welford 1962)."""
        assert self.moments is not None
        self.moments[0, kept], self.moments[1, kept] = position.mean(0), position.var(0, correction=0)
        mean, squares = running
        difference = position.to(mean.dtype) - mean
        mean = mean + difference / (kept + 1)
        return mean, squares + difference * (position.to(mean.dtype) - mean)

    def diagnostics(self, running: tuple[Tensor, ...], first_bad: Tensor) -> dict[str, Tensor]:
        """What a run that was asked for diagnostics gives."""
        assert self.moments is not None
        n, dtype = self.run.keep.count, self.moments.dtype
        mean, var = (running[0], running[1] / n) if n else (torch.full_like(part, torch.nan) for part in running)
        chains = {"chain_mean": mean.to(dtype), "chain_var": var.to(dtype)}
        return {"mean": self.moments[0], "var": self.moments[1], **chains, "first_nonfinite": first_bad}

    def kept(self, steps: int) -> dict[str, Tensor]:
        """What was kept in so many steps."""
        n = self.run.keep.part(0, steps).count
        held = {"trajectory": self.trajectory, "moments": self.moments}
        return {name: tensor[:, :n] for name, tensor in held.items() if tensor is not None}

    def due(self, steps: int) -> bool:
        """Whether the file is written after so many steps."""
        return self.path is not None and (steps % self.run.checkpoint_every == 0 or steps == self.run.n_steps)

    def write(self, state: tuple[Tensor, ...], steps: int, running: tuple[Tensor, ...], first_bad: Tensor) -> None:
        """Write the run after so many steps, if it has a file."""
        if self.path is not None:
            tensors = _named("state", state) | _named("running", running) | self.kept(steps)
            tensors["first_nonfinite"] = first_bad
            files.write(self.path, "chain", self.about | {"step": self.run.first_step + steps}, tensors)

    def restore(self, state: State, first_bad: Tensor) -> tuple[tuple[State, int, tuple[Tensor, ...]], Tensor]:
        """((state, steps made, running), first step not finite): of the file if there is one; else of the beginning."""
        running = self.running(state[0])
        if self.path is None or not os.path.exists(self.path):
            return (state, 0, running), first_bad
        about, tensors = files.read(self.path, "chain")
        for name, value in self.about.items():
            if about.get(name) != value:
                raise files.CheckpointError(
                    f"{self.path} was written by a run with {name} {about.get(name)!r}, this one has {value!r}: give "
                    "the arguments of that run, or another file"
                )
        first = self.run.first_step
        try:
            steps = _checks.integer("step", about.get("step"), first, first + self.run.n_steps + 1) - first
            kept = self.kept(steps)
            wanted = _named("state", state) | _named("running", running) | kept | {"first_nonfinite": first_bad}
            found = {name: self._like(name, tensors[name], like) for name, like in wanted.items()}
        except (KeyError, TypeError, ValueError) as error:
            raise files.CheckpointError(f"{self.path} does not fit this run: {error}") from error
        for name, tensor in kept.items():
            tensor.copy_(found[name])
        ran = tuple(found[name] for name in _named("running", running))
        made = type(state)(*(found[name] for name in _named("state", state)))
        return (made, steps, ran), found["first_nonfinite"]

    def _like(self, name: str, tensor: Tensor, like: Tensor) -> Tensor:
        if tensor.dtype != like.dtype:
            raise ValueError(f"{name} must be of {like.dtype}, got {tensor.dtype}")
        _checks.same_shape(name, tensor, "this run's", like)
        return tensor.to(self.device)


def check_file(path: str | os.PathLike[str] | None, every: int) -> None:
    """A path in a folder that exists, and a number of steps."""
    _checks.count("checkpoint_every", every)
    if path is None:
        return
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"checkpoint must be a path, got {type(path).__name__}")
    if not Path(path).parent.is_dir() or Path(path).is_dir():
        raise ValueError(f"checkpoint must be a file in a folder that exists, got {os.fspath(path)!r}")


def _named(name: str, fields: tuple[Tensor, ...]) -> dict[str, Tensor]:
    return {f"{name}.{i}": field for i, field in enumerate(fields)}


def _described(value: Any) -> Any:
    """An argument as JSON, the same where it is the same to the bit."""
    if isinstance(value, Tensor):
        return files.digest(value)
    if callable(value):
        return "a function"
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return {str(name): _described(entry) for name, entry in value.items()}
    if isinstance(value, Sequence):
        return [_described(entry) for entry in value]
    if not isinstance(value, (int, float)):
        kinds = "tensors, numbers, strings, or sequences or mappings of these"
        raise TypeError(f"a run with a checkpoint takes arguments that are {kinds}, got {type(value).__name__}")
    return repr(float(value))
