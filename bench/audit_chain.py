"""The audit's cases of whole chains, compiled as the launcher would launch them.

The launcher's own arguments go through Triton's own specialization (`warmup`), under a driver that only names a target.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

from bench import audit

SIZES = {
    "n_steps": 100,
    "burn_in": 10,
    "thin": 3,
    "n_kept": 30,
    "steps_each": 10,
    "ladder_step": 0,
    "seed": 2**63 + 5,
    "first_step": 0,
    "first_chain": 2**40,
}


class Target:
    """What Triton asks a driver for before it compiles."""

    def __init__(self, architecture: str = "sm_90") -> None:
        self.target = audit.target(architecture)

    def get_current_device(self) -> int | str:
        """What tells it from others."""
        return self.target.arch

    def get_current_stream(self, device: int) -> int:
        """None."""
        return 0

    def get_current_target(self) -> GPUTarget:
        """What to compile for."""
        return self.target


@contextlib.contextmanager
def driver(architecture: str) -> Iterator[None]:
    """Triton as on a machine with this GPU, except that nothing can be launched."""
    before = triton.runtime.driver._active
    triton.runtime.driver.set_active(Target(architecture))
    try:
        yield
    finally:
        triton.runtime.driver.set_active(before)


@dataclass(frozen=True)
class Chain:
    """A score with its launch options, and what else is asked of the sampler."""

    name: str
    score: Any
    params: tuple[Any, ...]
    n_features: int
    options: dict[str, int]
    precision: str
    """What its products are made in; "" where there are none."""
    clamp: tuple[float, float] | None = None

    def made_of(self) -> str:
        """What its machine code depends on, as a digest."""
        from fastscore_kernels import chain

        given = _kinds(self.params), self.n_features, self.options, self.clamp, SIZES
        return audit.digest(chain.chain_kernel, audit.text(self.score), *given)

    def lowered(self, architecture: str) -> str:
        """Nothing that could be known without compiling it."""
        return ""

    def compile(self, architecture: str) -> audit.Report | audit.Amd:
        """The whole-chain kernel with this score in it; an element is a feature of a chain, the loop counts once."""
        from fastscore_kernels import chain

        x, ones = torch.zeros(64, self.n_features), torch.ones(10)
        given = {**SIZES, "clamp": self.clamp, "options": self.options}
        with driver(architecture):
            grid, call, _ = chain.chain_call(self.score, self.params, x, ones, ones, **given)
            built = chain.chain_kernel.warmup(grid=grid, **call)
        return audit.read(built, self.options["BLOCK_CHAINS"] * self.n_features, self.precision)


def _kinds(param: Any) -> Any:
    """Tensors by their dtypes and shapes, constants by their values."""
    if isinstance(param, tuple):
        return tuple(map(_kinds, param))
    if isinstance(param, torch.Tensor):
        return str(param.dtype), tuple(param.shape)
    return param.value if isinstance(param, triton.language.constexpr) else param


ANALYTIC = (
    "double well D=2",
    "double well D=32",
    "ring K=8 D=2",
    "gaussian D=2",
    "gaussian D=16",
    "gaussian D=64",
    "full mixture K=8 D=3",
    "mixture K=40 D=8",
    "ladder ring K=8 D=2",
    "ladder gaussian D=16",
    "ladder gaussian D=64",
    "ladder full mixture K=8 D=3",
    "ladder mixture K=40 D=8",
)
NETWORKS: tuple[tuple[str, bool, str, int, int], ...] = (
    ("sm_90", False, "tf32", 128, 3),
    ("sm_90", False, "bf16", 128, 6),
    ("sm_90", False, "bf16x6", 64, 2),
    ("sm_90", True, "tf32", 64, 2),
    ("sm_80", False, "bf16", 128, 5),
    ("sm_100", False, "tf32", 64, 3),
    ("sm_100", False, "bf16", 128, 3),
    (audit.AMD, False, "ieee", 64, 3),
)
"""(architecture, whether an energy, precision, width, depth), D = 2, SiLU."""


def cases() -> Iterator[tuple[str, Chain]]:
    """All of them by architecture: targets in closed form, and networks as deep as the launcher takes them."""
    for name, architecture in itertools.product(ANALYTIC, audit.ARCHITECTURES):
        if (found := analytic(name, architecture)) is not None:
            yield architecture, found
    for size in NETWORKS:
        yield size[0], network(*size)
    yield from _deepest()


def _deepest() -> Iterator[tuple[str, Chain]]:
    """Every entry of the launcher's table; residuals too, except where they count as heavy or a GELU is enough."""
    from fastscore_kernels import chain_mlp

    for (energy, precision), row in chain_mlp.DEEPEST.items():
        architecture = audit.AMD if precision == "ieee" else "sm_90"
        for width, depths in row.items():
            for activation, depth in zip(("silu", "gelu"), depths, strict=True):
                if not depth:
                    continue
                residual = not (energy or precision == "bf16x6" or width == 256)
                if activation == "gelu":
                    residual = width < 128 or precision in ("tf32", "bf16")
                size = (architecture, energy, precision, width, depth)
                yield architecture, network(*size, activation=activation, residual=residual)
    for energy, precision in ((False, "bf16x6"), (False, "tf32"), (True, "tf32")):
        yield "sm_90", network("sm_90", energy, precision, 32, 3, per_chain=True)


def analytic(name: str, architecture: str) -> Chain | None:
    """A target in closed form, of ANALYTIC or "gaussian D=2" and the like; None where the launcher declines it."""
    from fastscore_kernels import chain_scores

    dim = int(name.rpartition("=")[2])
    full, k = "full" in name or "gaussian" in name, int((re.search(r"K=(\d+)", name) or ["", "1"])[1])
    if full and dim > 16 and architecture in ("sm_80", "sm_100"):
        return None
    options = chain_scores.launch_options(dim, full, torch.device("cpu"))
    assert options is not None
    asked: dict[str, Any] = {"n_features": dim, "options": options, "clamp": (-1.0, 1.0)}
    if "double well" in name:
        return Chain(f"chain {name}", chain_scores.double_well, (torch.ones(()),), precision="", **asked)
    precision = "ieee" if full and dim > 8 and architecture == audit.AMD else "bf16x6"
    levels = (10,) if "ladder" in name else ()
    precisions = torch.ones(*levels, k, dim, *[dim] * full)
    params = chain_scores.pack(torch.zeros(k, dim), precisions, torch.zeros(*levels, k), precision)
    return Chain(
        f"chain {name}", chain_scores.gaussian if k == 1 else chain_scores.mixture, params, precision=precision, **asked
    )


def network(
    architecture: str,
    energy: bool,
    precision: str,
    width: int,
    depth: int,
    *,
    dim: int = 2,
    activation: str = "silu",
    residual: bool = False,
    per_chain: bool = False,
) -> Chain:
    """A network with scales, at its shipped tile."""
    from fastscore_kernels import chain_mlp

    sizes = [dim, *[width] * depth, 1 if energy else dim]
    weights = tuple(torch.zeros(n, k) for k, n in itertools.pairwise(sizes))
    activations, residuals = (activation,) * depth, tuple(residual and i > 0 for i in range(depth))
    how: dict[str, Any] = {"energy": energy, "per_chain": per_chain, "precision": precision}
    options = chain_mlp.launch_options(weights, activations, residuals, **how, device=torch.device("cpu"))
    assert options is not None
    scales = (torch.ones(1, 1), torch.ones(1, 1), None)
    params = list(chain_mlp.pack(weights, (None,) * (depth + 1), activations, residuals, (), scales, **how))
    params[8] = triton.language.constexpr(precision in ("tf32", "bf16") and architecture != audit.AMD)
    name = f"chain {'energy' if energy else 'score'} {precision} H={width} L={depth}"
    name += (
        (f" {activation}" if activation != "silu" else "") + " residual" * residual + " condition a chain" * per_chain
    )
    score = chain_mlp.energy_mlp if energy else chain_mlp.score_mlp
    return Chain(name, score, tuple(params), dim, options, precision)
