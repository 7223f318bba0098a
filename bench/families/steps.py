"""One Langevin step where the score is given: all there is to do is to move memory and to make noise."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import fastscore
from bench import check as checks
from bench.families import networks
from bench.registry import Arrays, Call, Case, Family, Provider

A = 0.01
SCALE = math.sqrt(2 * A)

#       rows, features, all rivals, headline
CPU = [
    (15_625, 64, True, True),
    (500_000, 2, False, True),
    (468_750, 64, False, True),
    (16, 64, False, False),
    (157, 64, False, False),
    (1_563, 64, False, False),
]
CUDA = [(n // 64, 64, n == 10**6, n in (10**6, 10**8)) for n in (10**3, 10**4, 10**5, 10**6, 10**7, 10**8, 3 * 10**8)]


def cases(device: str) -> list[Case]:
    rows = [*CUDA, (500_000, 2, False, True)] if device == "cuda" else CPU
    return [
        Case(
            name=f"one step of {n} x {dim}",
            settings={"n": n, "D": dim, "all": everything, "a": A},
            units=n * dim,
            bytes=12.0,
            seconds=4.0 if everything or n * dim > 1e7 else 1.5,
            headline=headline,
        )
        for n, dim, everything, headline in rows
    ]


def inputs(case: Case, device: str) -> dict[str, Tensor]:
    draws = networks.generator(0)
    shape = case.settings["n"], case.settings["D"]
    return {name: torch.randn(shape, generator=draws).to(device) for name in ("x", "score")}


def check(case: Case, arrays: Arrays, reference: Any, law: str, results: Sequence[Arrays]) -> None:
    """What is left of the new state without drift is a scaled standard normal, another one in every call."""
    rows = slice(0, 10**7 // case.settings["D"])
    x, score = arrays["x"][rows].double(), arrays["score"][rows].double()
    found = [(result["x"].to(x.device)[rows].double() - x - A * score) / SCALE for result in results]
    checks.standard_normal(found[0])
    if len(found) > 1:
        checks.standard_normal((found[0] - found[1]) / math.sqrt(2))


def _naive(case: Case, arrays: Arrays, mode: str = "") -> Call:
    x, score = arrays["x"], arrays["score"]

    def step() -> Tensor:
        return x + A * score + SCALE * torch.randn_like(x)

    chosen = torch.compile(step, mode=mode) if mode else step
    return lambda: {"x": chosen()}


def _in_place(case: Case, arrays: Arrays) -> Call:
    """Without temporaries, into an array that is there already."""
    made = torch.empty_like(arrays["x"])
    return lambda: {"x": made.normal_(std=SCALE).add_(arrays["x"]).add_(arrays["score"], alpha=A)}


def _ours(case: Case, arrays: Arrays) -> Call:
    steps = iter(range(1 << 32))
    x, score = arrays["x"], arrays["score"]
    return lambda: {"x": fastscore.langevin_step(x, score, step_size=A, seed=1, step=next(steps))}


def _graph(case: Case, arrays: Arrays) -> Call:
    return networks.graphed(_naive(case, arrays))  # type: ignore[return-value]


def _shown(case: Case, device: str) -> str:
    return "" if case.headline else "left out at this size"


def _all(case: Case, device: str) -> str:
    return "" if case.settings["all"] else "left out at this size"


def reference(case: Case, arrays: Arrays) -> None:
    """None is needed: the law of the noise is known."""


_compiled: Callable[..., Call] = functools.partial(_naive, mode="default")

FAMILY = Family(
    name="steps",
    title="One step of a given score, time relative to naive eager PyTorch",
    unit="element",
    base="naive eager",
    cases=cases,
    inputs=inputs,
    reference=reference,
    check=check,
    calls={"exact": 2},
    providers={
        "naive eager": Provider(_naive),
        "eager in place": Provider(_in_place),
        "fastscore": Provider(_ours),
        "torch.compile": Provider(_compiled, unfit=_shown),
        "torch.compile, max-autotune": Provider(
            functools.partial(_naive, mode="max-autotune-no-cudagraphs"), unfit=_all
        ),
        "CUDA graph of naive eager": Provider(_graph, unfit=networks.cuda_only),
        "JAX": Provider(None, unfit=_shown, package="jax"),
    },
)
