"""Whole Langevin chains in one launch, where a Triton kernel takes the score; there is nothing to differentiate.

`run` answers None wherever no kernel fits, and the caller goes on step by step. `_find` alone knows what fits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from fastscore import _checks
from fastscore.ops import _dispatch
from fastscore.reference.mlp import MLP

MAX_DIM = 64


@dataclass(frozen=True)
class Mixture:
    """`-sum_k r_k P_k (x - m_k)`, `r_k = softmax_k(c_k - 1/2 (x - m_k)' P_k (x - m_k))`; one component is a Gaussian.

    Attributes:
        means: m, `[K, D]`.
        precisions: P, diagonals `[K, D]` or symmetric matrices `[K, D, D]`; `[R, ...]`, one row a level, of a ladder.
        constants: c, `[K]`: the logarithm of weight times normaliser; `[R, K]` of a ladder.
    """

    means: Tensor
    precisions: Tensor
    constants: Tensor


@dataclass(frozen=True)
class DoubleWell:
    """`-4 b x (x^2 - 1)` in every coordinate."""

    barrier: float


@dataclass(frozen=True)
class Network:
    """`c_out net(c_in x) + c_skip x`, or `-grad (c_out net(c_in x))` for an energy.

    Attributes:
        mlp: the network, float32.
        shifts: `u_1, ..., u_{L+1}` added to its preactivations, each `[R, H_l]` or None.
        scales: c_in, c_out, c_skip, each `[R, 1]` or None.
        energy: whether net is an energy.
        per_chain: whether row r of shifts and scales belongs to chain r; else to level r of the schedule.
    """

    mlp: MLP
    shifts: tuple[Tensor | None, ...] = ()
    scales: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None)
    energy: bool = False
    per_chain: bool = False

    @property
    def has_rows(self) -> bool:
        """Whether anything goes by level."""
        return not self.per_chain and any(rows is not None for rows in (*self.shifts, *self.scales))


@dataclass(frozen=True)
class TritonScore:
    """A score of one's own, inlined into the whole-chain kernel; also an ordinary score function.

    Attributes:
        kernel: a `@triton.jit` function `(x, at, params) -> score` of the tile of states `[P, BLOCK_CHAINS]`, features
            first. `at` is (feature of each row `[P, 1]`, mask of the entries that are real, chain of each column
            `[1, BLOCK_CHAINS]`, level).
        params: what it is given: tensors arrive as pointers, numbers as float32 or integers, `tl.constexpr(n)` as
            constants (read by `N: tl.constexpr = params[i]`).
        reference: the same score in PyTorch, `[B, D] -> [B, D]`, used wherever no kernel runs.

    Example::

        @triton.jit
        def funnel_free_double_well(x, at, params):
            barrier, tilt = params
            return -4.0 * barrier * x * (x * x - 1.0) - tilt

        score = TritonScore(
            funnel_free_double_well, (0.5, 0.1), lambda x: -2.0 * x * (x * x - 1.0) - 0.1
        )
        samples = langevin_dynamics(score, torch.randn(4096, 2, device="cuda"), step_size=1e-2, n_steps=1000)
    """

    kernel: Any
    params: tuple[Any, ...]
    reference: Callable[[Tensor], Tensor]

    def __post_init__(self) -> None:
        _checks.callable_("kernel", self.kernel)
        _checks.callable_("reference", self.reference)
        if not isinstance(self.params, tuple):
            raise TypeError(f"params must be a tuple, got {self.params!r}")

    def __call__(self, x: Tensor) -> Tensor:
        """The score at x by the reference."""
        return self.reference(x)


Source: TypeAlias = Mixture | DoubleWell | Network | TritonScore


@dataclass(frozen=True)
class Schedule:
    """Step k of the run (from 0) takes the row `(offset + k) div steps_each` of the tables.

    Attributes:
        step_size: a, `[levels]`, or `[levels, D]` for a step size a feature.
        temperature: T, `[levels]`.
        steps_each: steps at a level.
        offset: steps of the ladder that were made before this run.
    """

    step_size: Tensor
    temperature: Tensor
    steps_each: int = 1
    offset: int = 0


@dataclass(frozen=True)
class Keep:
    """Which states on the way of some steps are kept: those after steps first, first + thin, ..., count of them."""

    first: int
    thin: int
    count: int

    @property
    def burn_in(self) -> int:
        """Steps before the first is counted, as a whole-chain kernel has it; below 0 where some were counted before."""
        return self.first - self.thin

    def index(self, steps: int) -> int | None:
        """The place of the state after so many steps, or None where it is not kept."""
        index, rest = divmod(steps - self.first, self.thin)
        return index if rest == 0 and 0 <= index < self.count else None

    def part(self, begin: int, end: int) -> Keep:
        """Those of them that are after steps begin + 1 to end, counted from begin."""
        skipped = max(0, -((self.first - 1 - begin) // self.thin))
        count = min(self.count, (end - self.first) // self.thin + 1) - skipped
        return Keep(self.first + skipped * self.thin - begin, self.thin, max(0, count))


NOTHING = Keep(1, 1, 0)


class Result(NamedTuple):
    """What a run leaves."""

    x: Tensor
    """The last state, `[B, D]`."""
    kept: Tensor
    """The states kept, `[B, keep.count, D]`."""


def run(
    source: Source,
    x: Tensor,
    schedule: Schedule,
    *,
    n_steps: int,
    seed: int,
    keep: Keep = NOTHING,
    first_step: int = 0,
    first_chain: int = 0,
    clamp: tuple[float, float] | None = None,
) -> Result | None:
    """`n_steps` of x + a s(x) + sqrt(2 a T) e on every row of x `[B, D]` in one launch, or None.

    The noise is that of `langevin_step` for the same seed, step and chain.

    Args:
        source: the score.
        x: starting points, float32, or float64 for other scores than networks; not changed.
        schedule: step sizes and temperatures, on the device of x.
        n_steps: how many steps.
        seed: in [0, 2^64).
        keep: which states to keep.
        first_step: the number of the first step in the noise.
        first_chain: the global index of row 0.
        clamp: (low, high), applied to the state after every step.
    """
    if x.numel() == 0 or (found := _find(source, x)) is None:
        return None
    module, score, params, options = found
    last, kept = module.run_chain(
        score,
        params,
        x.detach(),
        schedule.step_size,
        schedule.temperature,
        n_steps=n_steps,
        burn_in=keep.burn_in,
        thin=keep.thin,
        n_kept=keep.count,
        steps_each=schedule.steps_each,
        ladder_step=schedule.offset,
        seed=seed,
        first_step=first_step,
        first_chain=first_chain,
        clamp=clamp,
        options=options,
    )
    return Result(last, kept)


def available(x: Tensor) -> bool:
    """Whether whole-chain kernels run on the device of x at all."""
    return _dispatch.kernels("chain", x.device) is not None


def _find(source: Source, x: Tensor) -> tuple[Any, Any, tuple[Any, ...], dict[str, int]] | None:
    """The skeleton's module, the score and its params, and the launch options; None where nothing fits."""
    chain = _dispatch.kernels("chain", x.device)
    if chain is None or x.dim() != 2 or x.shape[1] > MAX_DIM or x.dtype not in (torch.float32, torch.float64):
        return None
    if isinstance(source, Network):
        networks = _dispatch.kernels("chain_mlp", x.device)
        assert networks is not None
        if x.dtype != torch.float32 or source.mlp.weights[0].dtype != torch.float32:
            return None
        precision = _precision(x)
        if not set(source.mlp.activations) <= set(networks.ACTIVATIONS):
            return None
        options = networks.launch_options(
            source.mlp.weights,
            source.mlp.activations,
            source.mlp.residuals,
            energy=source.energy,
            per_chain=source.per_chain,
            precision=precision,
            device=x.device,
        )
        if options is None:
            return None
        params = networks.pack(
            source.mlp.weights,
            source.mlp.biases,
            source.mlp.activations,
            source.mlp.residuals,
            source.shifts,
            source.scales,
            energy=source.energy,
            per_chain=source.per_chain,
            precision=precision,
        )
        return chain, networks.energy_mlp if source.energy else networks.score_mlp, params, options
    scores = _dispatch.kernels("chain_scores", x.device)
    assert scores is not None
    if isinstance(source, TritonScore):
        options = scores.launch_options(x.shape[1], False, x.device)
        return None if options is None else (chain, source.kernel, source.params, options)
    if isinstance(source, DoubleWell):
        options = scores.launch_options(x.shape[1], False, x.device)
        barrier = torch.full((), source.barrier, dtype=x.dtype, device=x.device)
        return None if options is None else (chain, scores.double_well, (barrier,), options)
    full = source.precisions.dim() == source.constants.dim() + 2
    options = scores.launch_options(x.shape[1], full, x.device)
    if options is None or (full and x.dtype == torch.float64 and x.shape[1] > 8):
        return None
    means, precisions, constants = (t.to(x) for t in (source.means, source.precisions, source.constants))
    params = scores.pack(means, precisions, constants, _precision(x))
    return chain, scores.gaussian if len(means) == 1 else scores.mixture, params, options


def _precision(x: Tensor) -> str:
    """How the products of a kernel are computed: as torch's own are told to be on a GPU.

    "bf16x6" is float32 in effect, on tensor cores; AMD's have float32 itself, and so has the interpreter.
    """
    if x.device.type != "cuda" or torch.version.hip is not None or x.dtype == torch.float64:
        return "ieee"
    launch: Any = _dispatch.kernels("launch", x.device)
    return {"highest": "bf16x6", "high": "tf32", "medium": "bf16"}[launch.float32_products()]
