"""A network that was recognised as an MLP: the program that makes it, and the reading made for given arguments."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fastscore._reading.record import DeclinedError, Recorder, Step, fill, refs_in
from fastscore._reading.symbols import Affine, Descent, Hidden, Input, Ref, Scale
from fastscore.reference.mlp import MLP, forward


@dataclass(frozen=True)
class Reading:
    """A callable as an MLP: `value(x) = out_scale * net(in_scale * x) + skip * x` on flattened rows `[B, D]`.

    Here `net(y) = forward(mlp, y, shifts)`, so that the trace of the Jacobian of the value is
    `in_scale * out_scale * tr(net) + skip * D`.

    Attributes:
        mlp: the network, made of the live parameters.
        shifts: `u_1, ..., u_{L+1}` for this x and condition, each `[B, H_l]` or None.
        in_scale: `[B, 1]` or `[1, 1]`, or None for 1.
        out_scale: likewise.
        skip: likewise, or None for 0.
        kind: "score": `fn(x)` is the value, shaped like x. "energy": `fn(x)` is the value, `[B]` or `[B, 1]`.
            "energy_score": the value is an energy and `fn(x)` is minus its gradient, shaped like x.
    """

    mlp: MLP
    shifts: tuple[Tensor | None, ...]
    in_scale: Tensor | None
    out_scale: Tensor | None
    skip: Tensor | None
    kind: str

    @property
    def gives_score(self) -> bool:
        """Whether `fn(x)` is a score."""
        return self.kind != "energy"

    @property
    def is_energy(self) -> bool:
        """Whether the network's only output is an energy."""
        return self.kind != "score"

    @property
    def scales(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Those of x, of the output, and of x added to it."""
        return self.in_scale, self.out_scale, self.skip

    @property
    def is_plain(self) -> bool:
        """Whether the value is the network's own, without scales."""
        return all(scale is None for scale in self.scales)

    def value(self, x: Tensor) -> Tensor:
        """Return the value on rows `[B, D]` by the reference: `[B, D]`, or `[B, 1]` for an energy."""
        y = x if self.in_scale is None else self.in_scale * x
        out = forward(self.mlp, y, self.shifts)
        out = out if self.out_scale is None else self.out_scale * out
        return out if self.skip is None else out + self.skip * x


_Layout = tuple[torch.Size, torch.dtype, torch.device]


@dataclass(frozen=True)
class Layer:
    """One Linear layer: what its weight, its bias and the vectors added to it are."""

    weight: Ref
    bias: Ref | None
    shifts: tuple[Ref | float, ...]


@dataclass(frozen=True)
class Program:
    """How to make a `Reading` from the current parameters and condition."""

    size: int
    leaves: tuple[tuple[int, Tensor], ...]
    steps: tuple[Step, ...]
    layers: tuple[Layer, ...]
    activations: tuple[str, ...]
    residuals: tuple[bool, ...]
    scales: tuple[Scale, Scale, Scale]
    kind: str
    trained: tuple[bool, ...]
    _made: list[tuple[Reading, tuple[_Layout, ...]]] = field(default_factory=list, repr=False)

    def stale(self) -> bool:
        """Whether a tensor was frozen or freed since, so that a custom differentiation rule might have been missed."""
        return bool(self.steps) and self.trained != tuple(leaf.requires_grad for _, leaf in self.leaves)

    def run(self, x: Tensor, cond: Tensor | None) -> Reading:
        """Return the reading for x and a condition.

        Raises:
            DeclinedError: the parameters no longer fit x or each other.
        """
        if self._made:
            reading, layouts = self._made[0]
            if layouts == tuple((leaf.shape, leaf.dtype, leaf.device) for _, leaf in self.leaves):
                return reading
            self._made.clear()
        reading = self._run(x, cond)
        if not self.steps and not any(layer.shifts for layer in self.layers):  # nothing in it is of this call
            self._made.append((reading, tuple((leaf.shape, leaf.dtype, leaf.device) for _, leaf in self.leaves)))
        return reading

    def _run(self, x: Tensor, cond: Tensor | None) -> Reading:
        values: list[Any] = [None] * self.size
        if cond is not None:
            values[0] = cond
        for index, leaf in self.leaves:
            values[index] = leaf
        for step in self.steps:
            values[step.index] = step.function(*fill(step.arguments, values), **fill(step.keywords, values))
        weights = tuple(values[layer.weight.index] for layer in self.layers)
        biases = tuple(None if layer.bias is None else values[layer.bias.index] for layer in self.layers)
        _check(x, weights, biases, self.kind)
        shifts = tuple(
            _shift(x, weight.shape[0], [fill(u, values) for u in layer.shifts]) if layer.shifts else None
            for layer, weight in zip(self.layers, weights, strict=True)
        )
        mlp = MLP(weights, biases, self.activations, self.residuals)
        in_scale, out_scale, skip = (_scale(x, fill(scale, values)) for scale in self.scales)
        return Reading(mlp, shifts, in_scale, out_scale, skip, self.kind)


def assemble(recorder: Recorder, symbol: Affine | Descent, value: Tensor) -> Program | None:
    """The chain of layers below an output, as a program."""
    layers, activations, residuals = [], [], []
    z = output = symbol.energy if isinstance(symbol, Descent) else symbol
    layers.append(Layer(z.weight, z.bias, z.shifts))
    while isinstance(z.base, Hidden):
        hidden, z = z.base, z.base.z
        layers.append(Layer(z.weight, z.bias, z.shifts))
        activations.append(hidden.activation)
        residuals.append(hidden.residual)
    x = recorder.x
    one_a_sample = value.shape in (x.shape[:1], (x.shape[0], 1))
    kind = "score" if value.shape == x.shape else "energy" if one_a_sample else None
    if isinstance(symbol, Descent):
        kind = "energy_score" if kind == "score" else None
    if kind is None or not activations or not isinstance(z.base, Input):
        return None
    scales = (z.base.scale, output.scale, output.skip)
    wanted = {
        ref.index for layer in layers for ref in (layer.weight, layer.bias, *layer.shifts) if isinstance(ref, Ref)
    }
    wanted |= {scale.index for scale in scales if isinstance(scale, Ref)}
    steps = []
    for step in reversed(recorder.steps):
        if step.index in wanted:
            steps.append(step)
            wanted |= {ref.index for ref in refs_in((step.arguments, step.keywords))}
    used = tuple((index, tensor) for index, tensor in recorder.leaves if index in wanted)
    return Program(
        size=len(recorder.values),
        leaves=used,
        trained=tuple(tensor.requires_grad for _, tensor in used),
        steps=tuple(reversed(steps)),
        layers=tuple(reversed(layers)),
        activations=tuple(reversed(activations)),
        residuals=tuple(reversed(residuals)),
        scales=scales,
        kind=kind,
    )


def _check(x: Tensor, weights: tuple[Tensor, ...], biases: tuple[Tensor | None, ...], kind: str) -> None:
    """Refuse parameters that were given other shapes, dtypes or devices than a network for x has."""
    features = x.shape[1:].numel()
    for below, weight in pairwise((None, *weights)):
        if weight is None or weight.dim() != 2 or weight.shape[1] != (features if below is None else below.shape[0]):
            raise DeclinedError("the weights do not chain")
    if weights[-1].shape[0] != (features if kind == "score" else 1):
        raise DeclinedError("the output does not fit x")
    for weight, bias in zip(weights, biases, strict=True):
        if weight.dtype != x.dtype or weight.device != x.device:
            raise DeclinedError("a weight has another type or device than x")
        if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != x.dtype or bias.device != x.device):
            raise DeclinedError("a bias does not fit its weight")


def _shift(x: Tensor, width: int, terms: list[Tensor | float]) -> Tensor:
    """The sum of what is added to a preactivation, `[B, width]`."""
    total = sum(terms[1:], start=terms[0])
    rows = total.to(x.dtype) if isinstance(total, Tensor) else x.new_full((1, 1), total)
    if rows.dim() == 2 and rows.shape[0] not in (1, x.shape[0]):
        raise DeclinedError("what is added has another number of rows than x")
    return rows.expand(x.shape[0], width)


def _scale(x: Tensor, scale: Tensor | float | None) -> Tensor | None:
    """A factor as `[B, 1]` or `[1, 1]`, or None."""
    if scale is None:
        return None
    if isinstance(scale, Tensor) and scale.shape[0] not in (1, x.shape[0]):
        raise DeclinedError("a factor has another number of rows than x")
    return scale.to(x.dtype) if isinstance(scale, Tensor) else x.new_full((1, 1), scale)
