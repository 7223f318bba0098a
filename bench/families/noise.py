"""Standard normals, nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench import check as checks
from bench.families import networks
from bench.registry import Arrays, Call, Case, Family, Provider
from fastscore import noise


def cases(device: str) -> list[Case]:
    sizes = (10**6, 10**8) if device == "cuda" else (10**6, 10**7)
    return [
        Case(name=f"{n} normals", settings={"n": n}, units=n, bytes=4.0, seconds=3.0, headline=n == 10**6)
        for n in sizes
    ]


def inputs(case: Case, device: str) -> dict[str, Tensor]:
    return {"like": torch.empty(case.settings["n"] // 64, 64, device=device)}


def check(case: Case, arrays: Arrays, found: Any, law: str, results: Sequence[Arrays]) -> None:
    """Four moments, of one call and of the difference of two, which must not be the same numbers."""
    checks.fresh_normals([result["z"][: 10**7 // 64] for result in results])


def _ours(case: Case, arrays: Arrays) -> Call:
    steps, like = iter(range(1 << 32)), arrays["like"]
    return lambda: {
        "z": noise.normal(tuple(like.shape), seed=1, stream=noise.Stream.PROBES, step=next(steps), device=like.device)
    }


def _randn(case: Case, arrays: Arrays) -> Call:
    return lambda: {"z": torch.randn_like(arrays["like"])}


def _compiled(case: Case, arrays: Arrays) -> Call:
    made = torch.compile(torch.randn_like)
    return lambda: {"z": made(arrays["like"])}


def _numpy(case: Case, arrays: Arrays) -> Call:
    shape = tuple(arrays["like"].shape)
    draws = np.random.Generator(np.random.Philox(1))
    return lambda: {"z": torch.from_numpy(draws.standard_normal(shape, dtype=np.float32))}


FAMILY = Family(
    name="noise",
    title="Standard normals, time relative to torch.randn",
    unit="normal",
    base="torch.randn",
    cases=cases,
    inputs=inputs,
    check=check,
    calls={"exact": 2},
    providers={
        "torch.randn": Provider(_randn),
        "fastscore": Provider(_ours),
        "torch.compile of torch.randn": Provider(_compiled),
        "NumPy, Philox": Provider(_numpy, unfit=lambda case, device: "for CPUs" if device == "cuda" else ""),
        "JAX, threefry": Provider(None, unfit=lambda case, _: networks.portable(case.settings["n"]), package="jax"),
    },
)
