"""What is asked of a structured network, and the gradients that a loss of it hands to its tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastscore.ops import _dispatch, noise
from fastscore.ops._cpu_program import Noise, Recorder
from fastscore.ops.mlp_circuit import Around
from fastscore.ops.mlp_curvature import Curvature
from fastscore.ops.mlp_forms import Bilinear, Draw, Quadratic, Tangents, Value
from fastscore.ops.mlp_laplacian import Laplacian, Slope
from fastscore.ops.mlp_tile import Above, Form, Key, Upstream
from fastscore.reference import mlp as reference
from fastscore.reference.mlp import MLP, Shifts
from fastscore.reference.philox import Stream

Outputs = tuple[Tensor, ...]

# Elements of the factors in `Tangents` that are shared by the batch, up to which they stay in a core's cache.
_SHARED = 1 << 18


@dataclass(frozen=True)
class Probes:
    """Hutchinson's probes: `count` a sample, a pure function of the seed and the sample's global index.

    Attributes:
        seed: in [0, 2^64).
        count: K.
        kind: "rademacher" or "normal".
        first_sample: the global index of the batch's first row.
    """

    seed: int
    count: int = 1
    kind: str = "rademacher"
    first_sample: int = 0

    def draw(self, rows: slice, like: Tensor) -> Tensor:
        """The probes of some rows of `like`, `[n, K, D]`."""
        make = noise.rademacher if self.kind == "rademacher" else noise.normal
        count, first = rows.stop - rows.start, self.first_sample + rows.start
        stream, dtype = int(Stream.PROBES), like.dtype
        drawn = [make(count, like.shape[1], self.seed, stream, k, first, dtype, like.device) for k in range(self.count)]
        return torch.stack(drawn, 1)


@dataclass(frozen=True)
class Problem:
    """A network without its tensors, and what is asked of it.

    Attributes:
        activations: of the network.
        residuals: of the network.
        energy: ask for (energy, score, Laplacian) rather than for (score, trace); with probes, for `v_k' H v_k`.
        probes: estimate the trace with these rather than compute it.
        traced: ask for a trace or Laplacian at all.
        narrow: round the factors of products to bfloat16, as autocast asks; sums stay in float32.
    """

    activations: tuple[str, ...]
    residuals: tuple[bool, ...]
    energy: bool = False
    probes: Probes | None = None
    narrow: bool = False
    traced: bool = True

    def split(self, tensors: Sequence[Any]) -> tuple[MLP, Shifts, Tensor | None]:
        """The network, its shifts and the weight C out of the flat `(*shifts, *weights, *biases, C)`."""
        size = len(self.activations) + 1
        shifts, weights, biases = (tuple(tensors[i * size : (i + 1) * size]) for i in range(3))
        return MLP(weights, biases, self.activations, self.residuals), shifts, tensors[3 * size]

    def keys(self) -> list[Key]:
        """Names for `(x, *shifts, *weights, *biases, C)`."""
        layers = range(len(self.activations) + 1)
        return [("x", 0), *((kind, layer) for kind in ("shift", "weight", "bias") for layer in layers), ("C", 0)]

    def form(self, mlp: MLP, x: Tensor, weight: Tensor | None) -> Form:
        """The functional of the slopes that computes it."""
        if not self.traced:
            return Slope(mlp) if self.energy else Value()
        if self.probes is not None:
            probes = self.probes
            noise = Noise(probes.kind, probes.seed, probes.first_sample)
            draw = Draw(lambda rows: probes.draw(rows, x), probes.count, noise)
            if self.energy:
                return Curvature(mlp, draw)
            last = mlp.weights[-1] if weight is None else weight @ mlp.weights[-1]
            return Quadratic(mlp, last, draw)
        on_kernels = self.kernels(mlp, x) is not None
        if self.energy:
            return Laplacian(mlp, shared=on_kernels)
        first = mlp.weights[0] if weight is None else mlp.weights[0] @ weight
        if mlp.depth <= 2:
            return Bilinear(mlp, first)
        circuit = reference.circuit(mlp, first.t())
        shared = mlp.dim * max(mlp.weights[1].numel(), mlp.weights[-2].numel())
        straight = circuit.start is None and shared <= _SHARED
        return Tangents(mlp, first) if on_kernels or straight else Around(mlp, circuit)

    def kernels(self, mlp: MLP, x: Tensor) -> ModuleType | None:
        """The Triton kernels that do what the tiles do, if they should and can: on chip, else layer by layer."""
        if self.energy:
            on_chip, family = "mlp_whole", "energy" if self.probes is None else "curvature"
        elif self.probes is None:
            on_chip, family = ("mlp", "mlp") if mlp.depth <= 2 else ("mlp_whole", "trace")
        elif self.probes.count == 1 and mlp.depth == 2 and not any(mlp.residuals):
            on_chip, family = "mlp", "dual"
        else:
            on_chip, family = "mlp_whole", "estimate"
        for name in (on_chip, "mlp_layers"):
            found = _dispatch.kernels(name, x.device)
            if found is not None and found.supported(mlp, x, self.narrow, family):
                return found
        return None

    def plain(self, x: Tensor, tensors: Sequence[Any]) -> Outputs:
        """What it means: `(score, trace [B, 1] or forms [B, K])`, or `(energy [B, 1], score, Laplacian or forms)`.

        Without the last if no trace is asked for.
        """
        mlp, shifts, weight = self.split(tensors)
        if not self.traced and not self.energy:
            return (reference.forward(mlp, x, shifts),)
        drawn = None if self.probes is None else self.probes.draw(slice(0, len(x)), x)
        if self.energy:
            energy, score, curvature = reference.energy_terms(mlp, x, shifts, drawn)
            return (energy.unsqueeze(1), score, curvature)[: 3 if self.traced else 2]
        if drawn is not None:
            return reference.score_and_quadratic(mlp, x, shifts, drawn, weight=weight)
        score, trace = reference.score_and_trace(mlp, x, shifts, weight=weight)
        return score, trace.unsqueeze(1)


@dataclass(frozen=True)
class Weights:
    """The loss `square sum_b |s_b|^2 + trace sum_b tr_b`, with `tr` the mean over probes, or `-lap E`."""

    square: float
    trace: float

    def sums(self, problem: Problem, outputs: Outputs) -> tuple[Tensor, Tensor]:
        """`sum |s|^2` and `sum tr` of some rows."""
        if problem.energy:
            count = 1 if problem.probes is None else problem.probes.count
            return outputs[1].square().sum(), -outputs[2].sum() / count
        return outputs[0].square().sum(), outputs[1].sum() / outputs[1].shape[1]


def narrow(x: Tensor) -> bool:
    """Whether autocast asks for products in bfloat16, of float32 and where there are kernels for it."""
    device = x.device.type
    if torch.compiler.is_compiling() or not torch.is_autocast_enabled(device) or x.dtype != torch.float32:
        return False
    return torch.get_autocast_dtype(device) == torch.bfloat16 and _dispatch.kernels("mlp_layers", x.device) is not None


class Given(Upstream):
    """Gradients in the outputs that are given."""

    key = "given"

    def __init__(self, upstream: Sequence[Tensor]) -> None:
        self.arrays = tuple(gradient.contiguous() for gradient in upstream)

    def __call__(self, rows: slice, out: Any, values: Any) -> Above:
        """Their rows."""
        first, *others = self.arrays
        return first[rows], tuple(other[rows] for other in others)

    def record(self, rows: slice, out: Tensor, values: Outputs, recorder: Recorder) -> Above:
        """Their rows."""
        return self(rows, out, values)


class OfLoss(Upstream):
    """The gradients of `Weights`' loss in a network's outputs, and the sums that it is made of."""

    def __init__(self, problem: Problem, weights: Weights, x: Tensor) -> None:
        self.problem, self.weights, self.like = problem, weights, x
        self.count = problem.probes.count if problem.probes is not None else 1
        self.key = ("loss", weights.square)
        if problem.energy:
            self.arrays = (x.new_full((1, 1), -weights.trace / self.count).expand(len(x), self.count),)
        self.parts: dict[int, tuple[Tensor, Tensor]] = {}  # by first row: threads come in any order

    def __call__(self, rows: slice, out: Tensor, values: Outputs) -> Above:
        """Those of some rows, whose sums are kept."""
        square, trace = self.weights.square, self.weights.trace
        self.parts[rows.start] = self.weights.sums(self.problem, (out, *values))
        if self.problem.energy:
            score, laplacian = values
            return None, (score * (2 * square), torch.full_like(laplacian, -trace / self.count))
        return out * (2 * square), (None,)

    def record(self, rows: slice, out: Tensor, values: Outputs, recorder: Recorder) -> Above:
        """The same as steps of a program."""
        score, traces = values if self.problem.energy else (out, values[0])
        recorder.number(score, score)
        recorder.number(traces.view(len(score), -1))
        recorder.mix(scaled := recorder("upstream", *score.shape), score, left=2 * self.weights.square)
        if not self.problem.energy:
            return scaled, (None,)
        on_traces = self.arrays[0][rows]
        return None, (scaled, on_traces.squeeze(1) if traces.ndim == 1 else on_traces)

    def settle(self, numbers: list[float]) -> None:
        """Take the sums over all rows."""
        square, trace = numbers[0], -numbers[1] if self.problem.energy else numbers[1]
        self.parts[0] = self.like.new_tensor(square), self.like.new_tensor(trace / self.count)

    def sums(self) -> tuple[Tensor, Tensor]:
        """`sum |s|^2` and `sum tr`."""
        squares, traces = zip(*(self.parts[row] for row in sorted(self.parts)), strict=True)
        return torch.stack(squares).sum(), torch.stack(traces).sum()
