"""The memory that a tile is worked on in."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fastscore.ops._cpu_layers import Layers
    from fastscore.ops._cpu_program import Recorder


class Scratch:
    """Buffers by name, reused from tile to tile: fresh memory costs more in page faults than the arithmetic on it.

    Attributes:
        layers: compiled passes that serve the tiles in hand, or None.
        recorder: what writes passes down, where this is one.
    """

    layers: Layers | None = None
    recorder: Recorder | None = None

    def __init__(self, like: Tensor) -> None:
        self.like = like.new_empty(())
        self.buffers: dict[str, Tensor] = {}
        self.views: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        """Return a contiguous tensor of `shape` with anything in it; the same memory for the same name."""
        view = self.views.get((name, shape))
        if view is None:
            size = math.prod(shape)
            buffer = self.buffers.get(name)
            with torch.inference_mode(False):  # whose tensors nothing else may write to
                if buffer is None or len(buffer) < size:
                    buffer = self.buffers[name] = self.like.new_empty(size)
                    self.views = {key: old for key, old in self.views.items() if key[0] != name}
                view = self.views[name, shape] = buffer[:size].view(shape)
        return view

    def nbytes(self) -> int:
        """The memory held."""
        return sum(buffer.nbytes for buffer in self.buffers.values())
