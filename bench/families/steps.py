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

#    rows, features, all rivals, headline
CPU = [
    (15_625, 64, True, True),
    (500_000, 2, False, True),
    (468_750, 64, False, True),
    (16, 64, False, False),
    (157, 64, False, False),
    (1_563, 64, False, False),
]
CUDA = [
    (2**22, 64, False, True),
    (15_625, 64, True, False),
    (500_000, 2, False, False),
    *((n // 64, 64, False, False) for n in (10**3, 10**4, 10**5, 10**7, 3 * 10**8)),
]
BFLOAT16 = (2**22, 64, False, True)


def cases(device: str) -> list[Case]:
    if device == "cuda":
        return [_case(*CUDA[0]), _case(*BFLOAT16, dtype="bfloat16"), *(_case(*row) for row in CUDA[1:])]
    return [_case(*row) for row in CPU]


def _case(n: int, dim: int, everything: bool, headline: bool, dtype: str = "float32") -> Case:
    size = getattr(torch, dtype).itemsize
    return Case(
        name=f"one step of {n} x {dim}" + (f" in {dtype}" if size < 4 else ""),
        settings={"n": n, "D": dim, "all": everything, "a": A, "dtype": dtype},
        units=n * dim,
        bytes=3.0 * size,
        seconds=8.0 if n * dim > 1e7 else 4.0 if everything else 1.5,
        headline=headline,
    )


def inputs(case: Case, device: str) -> dict[str, Tensor]:
    s, draws = case.settings, torch.Generator(device).manual_seed(0)
    options = {"generator": draws, "device": device, "dtype": getattr(torch, s["dtype"])}
    return {name: torch.randn(s["n"], s["D"], **options) for name in ("x", "score")}


def check(case: Case, arrays: Arrays, reference: Any, law: str, results: Sequence[Arrays]) -> None:
    """What is left of the new state without drift is a scaled standard normal, another one in every call, and knows of
    neither the state nor the score.

    Rounding to bfloat16 adds less than a thousandth to its variance, a tenth of what the check can tell.
    """
    if law == "copy":
        if not torch.equal(results[0]["x"], arrays["x"]):
            raise checks.WrongError("a value was not copied")
        return
    rows = slice(0, 10**7 // case.settings["D"])
    x, score = arrays["x"][rows].double(), arrays["score"][rows].double()
    found = [(result["x"].to(x.device)[rows].double() - x - A * score) / SCALE for result in results]
    checks.fresh_normals(found)
    products = torch.stack([(found[0] * x).flatten(), (found[0] * score).flatten()], 1)
    checks.same_mean(["z x", "z s"], products, torch.zeros(2).to(products), torch.zeros(2).to(products))


def _naive(case: Case, arrays: Arrays, mode: str = "") -> Call:
    x, score = arrays["x"], arrays["score"]

    def step() -> Tensor:
        return x + A * score + SCALE * torch.randn_like(x)

    chosen = torch.compile(step, mode=mode) if mode else step
    return lambda: {"x": chosen()}


def _moved(case: Case, arrays: Arrays) -> Call:
    """All of the step compiled but its noise, which Inductor draws slowly on a CPU."""
    x, score = arrays["x"], arrays["score"]
    move = torch.compile(lambda noise: x + A * score + SCALE * noise)
    return lambda: {"x": move(torch.randn_like(x))}


def _in_place(case: Case, arrays: Arrays) -> Call:
    """Without temporaries, into an array that is there already."""
    made = torch.empty_like(arrays["x"])
    return lambda: {"x": made.normal_(std=SCALE).add_(arrays["x"]).add_(arrays["score"], alpha=A)}


def _ours(case: Case, arrays: Arrays) -> Call:
    steps = iter(range(1 << 32))
    x, score = arrays["x"], arrays["score"]
    return lambda: {"x": fastscore.langevin_step(x, score, step_size=A, seed=1, step=next(steps))}


def _graph(case: Case, arrays: Arrays) -> Call:
    return networks.graphed(_naive(case, arrays))


def _copy(case: Case, arrays: Arrays) -> Call:
    """A plain copy that moves as many bytes as a step has to: half a time more elements, read and written."""
    n = len(arrays["x"])
    whole = torch.cat([arrays["x"], arrays["score"][: n // 2]])
    made = torch.empty_like(whole)
    return lambda: {"x": made.copy_(whole)[:n]}


def _shown(case: Case, device: str) -> str:
    return "" if case.headline else "left out at this size"


def _float32(case: Case, device: str) -> str:
    if case.settings["dtype"] != "float32":
        return "not for this type of number"
    return _shown(case, device) or networks.portable(case.settings["n"] * case.settings["D"])


def _shown_on_cpu(case: Case, device: str) -> str:
    return networks.cpu_only(case, device) or _shown(case, device)


def _all(case: Case, device: str) -> str:
    return "" if case.settings["all"] else "left out at this size"


_compiled: Callable[..., Call] = functools.partial(_naive, mode="default")

FAMILY = Family(
    name="steps",
    title="One step of a given score, time relative to naive eager PyTorch",
    unit="element",
    base="naive eager",
    cases=cases,
    inputs=inputs,
    check=check,
    calls={"exact": 2, "copy": 1},
    providers={
        "naive eager": Provider(_naive),
        "eager in place": Provider(_in_place),
        "fastscore": Provider(_ours),
        "copy of as many bytes": Provider(_copy, "copy", _shown),
        "torch.compile": Provider(_compiled, unfit=_shown),
        "torch.compile, noise drawn outside": Provider(_moved, unfit=_shown_on_cpu),
        "torch.compile, max-autotune": Provider(
            functools.partial(_naive, mode="max-autotune-no-cudagraphs"), unfit=_all
        ),
        "CUDA graph of naive eager": Provider(_graph, unfit=networks.cuda_only),
        "JAX": Provider(None, unfit=_float32, package="jax"),
    },
)
