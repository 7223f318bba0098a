"""Random cases for the property tests: sizes, layouts, magnitudes, gradients; and the checks that each case is put to.

An operation is described by how its inputs are made, how it is run, and what is true of it in float64. Everything else
is here, the same for all: see `verify`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

HALF = (torch.float16, torch.bfloat16)
TOLERANCE = {torch.float64: 1e-11, torch.float32: 4e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}
LAYOUTS = ("contiguous", "transposed", "sliced", "offset", "expanded", "channels last")
EVENTS = ((1,), (2,), (3,), (4,), (5,), (17,), (2, 3), (3, 2, 2))
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """One draw. `unit` is the magnitude of x: everything is scaled so that x / unit is of order 1."""

    batch: int
    event: tuple[int, ...]
    dtype: torch.dtype
    layout: str
    exponent: int
    seed: int
    first_chain: int
    subset: int
    upstream: str
    probes: int
    probe: str
    reduction: str
    variant: int

    @property
    def unit(self) -> float:
        return 2.0**self.exponent

    @property
    def dim(self) -> int:
        return math.prod(self.event)

    def randn(self, *shape: int, scale: float = 1.0) -> Tensor:
        """The same normals for the same case and shape, rounded to its dtype."""
        generator = torch.Generator().manual_seed(self.seed % 2**62 + 7 * sum(shape))
        return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(self.dtype)

    def x(self) -> Tensor:
        """The points `[B, *event]`; equal rows where the layout expands one."""
        x = self.randn(self.batch, *self.event, scale=self.unit)
        return x[:1].expand_as(x).clone() if self.layout == "expanded" else x


def cases(dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64), empty: bool = False) -> Any:
    """A strategy for cases; half precision stays near 1, where its few exponents reach.

    All of a case comes from one number: a draw of each field would cost Hypothesis more than many a check.
    """

    def make(number: int) -> Case:
        dice = random.Random(number)
        dtype = dice.choice(dtypes)
        return Case(
            batch=dice.choice((1, 2, 3, 7, 16, 33, 65) + (0,) * empty),
            event=dice.choice(EVENTS),
            dtype=dtype,
            layout=dice.choice(LAYOUTS),
            exponent=dice.randint(-3, 3) if dtype in HALF else dice.randint(-10, 15),
            seed=dice.getrandbits(64),
            first_chain=dice.choice((0, 1, 2**32 - 2, 2**56 - 65)),
            subset=dice.getrandbits(9),
            upstream=dice.choice(("random", "expanded", "zero", "one-hot")),
            probes=dice.choice((1, 2, 7)),
            probe=dice.choice(("rademacher", "normal")),
            reduction=dice.choice(("none", "mean", "sum")),
            variant=dice.randrange(6),
        )

    return st.integers(0, 2**63).map(make)


@dataclass(frozen=True)
class Operation:
    """`run(case, inputs)` gives a tuple of tensors, `truth(case, inputs in float64)` what they are, with their scales.

    `sizes` are the scales of the inputs that take a gradient. `by_row` says that outputs and inputs (but those named in
    `shared`) have one row a sample; `exact` that a row's bits do not depend on the other rows, nor on how tensors are
    laid out: so it is where nothing is summed.
    """

    inputs: Callable[[Case], Tensors]
    run: Callable[[Case, Tensors], tuple[Tensor, ...]]
    truth: Callable[[Case, Tensors], list[tuple[Tensor, float]]]
    sizes: Callable[[Case], dict[str, float]] = lambda case: {}
    by_row: Callable[[Case], bool] = lambda case: True
    shared: tuple[str, ...] = ()
    exact: bool = True
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64)
    empty: bool = False


def lay(t: Tensor, layout: str) -> Tensor:
    """The values of t laid out otherwise; what lies between them is NaN, so that a read of it shows."""
    nan = t.new_full((3,), torch.nan)
    match layout:
        case "transposed":
            return t.transpose(0, -1).contiguous().transpose(0, -1)
        case "sliced":
            return torch.stack([t, torch.full_like(t, torch.nan)], -1)[..., 0]
        case "offset":
            return torch.cat([nan, t.flatten(), nan])[3:-3].view(t.shape)
        case "expanded" if t.dim() and (t == t[:1]).all():
            return t[:1].expand_as(t)
        case "channels last" if t.dim() == 4:
            return t.contiguous(memory_format=torch.channels_last)
    return t.clone()


def bits(t: Tensor) -> bytes:
    return t.detach().clone(memory_format=torch.contiguous_format).view(-1).view(torch.uint8).numpy().tobytes()


def upstream(case: Case, out: Tensor) -> Tensor:
    """A gradient of the output: noise, one number expanded (as a sum hands on), zeros, or a single one."""
    match case.upstream:
        case "expanded":
            return out.new_full((), 0.7).expand(out.shape)
        case "zero":
            return torch.zeros_like(out)
        case "one-hot":
            one = out.new_zeros(out.shape)
            one.view(-1)[case.seed % out.numel()] = 1
            return one
    return case.randn(*out.shape).to(out.dtype)


def verify(op: Operation, case: Case) -> None:
    """All checks of one case."""
    plain = op.inputs(case)
    sizes = op.sizes(case)
    wanted = [name for i, name in enumerate(sizes) if case.subset >> i & 1]
    laid = {name: nn.Parameter(lay(t, case.layout), requires_grad=name in wanted) for name, t in plain.items()}
    before = {name: bits(t) for name, t in laid.items()}
    out = op.run(case, laid)
    if case.batch == 0:
        assert all(o.shape[0] == 0 and o.dtype.is_floating_point for o in out)
        return
    wide = {name: t.detach().double().requires_grad_(name in wanted) for name, t in laid.items()}
    true = op.truth(case, wide)
    assert len(out) == len(true)
    for o, (t, scale) in zip(out, true, strict=True):
        assert o.shape == t.shape and o.device == t.device
        assert o.dtype in (case.dtype, torch.float32 if case.dtype in HALF else case.dtype)
        close(o, t, scale, TOLERANCE[case.dtype])
    if wanted:
        _gradients(case, out, true, [laid[n] for n in wanted], [wide[n] for n in wanted], [sizes[n] for n in wanted])
    _repetitions(op, case, plain, laid, out, [scale for _, scale in true])
    assert before == {name: bits(t) for name, t in laid.items()}, "an input was changed"


def close(found: Tensor, true: Tensor, scale: float, tolerance: float) -> None:
    """Equal up to `tolerance` of the scale of the quantity; a NaN in `true` marks what is not compared."""
    found, true = found.detach(), true.detach()
    known = ~true.isnan()
    error = torch.where(known, (found.double() - true).abs(), 0.0)
    largest = float(torch.where(known, true.abs(), 0.0).max())
    assert bool(found[known].isfinite().all()) and float(error.max()) <= tolerance * max(scale, largest), (
        f"off by {float(error.max()):.3g} of {max(scale, largest):.3g}"
    )


def _gradients(case: Case, out: Any, true: Any, inputs: Any, wide: Any, sizes: list[float]) -> None:
    """Those of every wanted input against those of the truth, for the outputs that have any."""
    pairs = [(o, t) for o, t in zip(out, true, strict=True) if t[0].requires_grad]
    assert all(o.requires_grad for o, _ in pairs)
    out, true = zip(*pairs, strict=True)
    given = [upstream(case, o) for o in out]
    found = torch.autograd.grad(out, inputs, given, allow_unused=True, materialize_grads=True)
    right = torch.autograd.grad(
        [t for t, _ in true], wide, [g.double() for g in given], allow_unused=True, materialize_grads=True
    )
    natural = sum(scale * float(g.abs().max()) for (_, scale), g in zip(true, given, strict=True))
    for f, r, x, size in zip(found, right, inputs, sizes, strict=True):
        assert f.shape == x.shape and f.dtype == x.dtype
        close(f, r, natural / size, 4 * TOLERANCE[case.dtype])
        assert case.upstream != "zero" or not f.any()


def _repetitions(
    op: Operation, case: Case, plain: Tensors, laid: Tensors, out: tuple[Tensor, ...], scales: list[float]
) -> None:
    """The same bits again and of a contiguous twin; and of a row alone, or of the other rows when one is NaN."""
    tolerance = 0.0 if op.exact else TOLERANCE[case.dtype]

    def same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float) -> None:
        for f, e, scale in zip(found, expected, scales, strict=True):
            if tolerance == 0.0:
                assert f.dtype == e.dtype and bits(f) == bits(e)
            else:
                close(f, e.double(), scale, tolerance)

    if not op.exact and case.seed % 3:
        same(op.run(case, laid), out, 0.0)
    else:
        same(op.run(case, {name: nn.Parameter(t, False) for name, t in plain.items()}), out, tolerance)
    if not op.by_row(case):
        return
    b = case.seed % case.batch
    if case.probes == 1 or case.batch == 1:
        row = {name: t if name in op.shared else t[b : b + 1] for name, t in plain.items()}
        alone = op.run(replace(case, batch=1, first_chain=case.first_chain + b), row)
        same(alone, tuple(o[b : b + 1] for o in out), tolerance)
    else:
        poisoned = {name: t.clone() for name, t in plain.items()}
        poisoned["x"][b] = torch.nan
        others = [i for i in range(case.batch) if i != b]
        same(tuple(o[others] for o in op.run(case, poisoned)), tuple(o[others] for o in out), tolerance)
