"""The audit's cases of whole chains, compiled as the launcher would launch them.

The launcher's own arguments go through Triton's own specialization (`warmup`), under a driver that only names a target.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

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
Architecture = int | str
"""A compute capability (90 is 9.0), or "gfx942"."""


class Target:
    """What Triton asks a driver for before it compiles."""

    def __init__(self) -> None:
        self.arch: Architecture = 90

    def get_current_device(self) -> int:
        """A number that says which one it is."""
        return self.arch if isinstance(self.arch, int) else 942

    def get_current_stream(self, device: int) -> int:
        """None."""
        return 0

    def get_current_target(self) -> GPUTarget:
        """What to compile for."""
        return GPUTarget("cuda", self.arch, 32) if isinstance(self.arch, int) else GPUTarget("hip", self.arch, 64)


@contextlib.contextmanager
def driver(arch: Architecture) -> Iterator[None]:
    """Triton as on a machine with this GPU, except that nothing can be launched."""
    target, before = Target(), triton.runtime.driver._active
    target.arch = arch
    triton.runtime.driver.set_active(target)
    try:
        yield
    finally:
        triton.runtime.driver.set_active(before)


class Chain(NamedTuple):
    """A score with its launch options."""

    score: Any
    params: tuple[Any, ...]
    n_features: int
    options: dict[str, int]

    def compile(self, arch: Architecture, *, clamp: tuple[float, float] | None = None, freeze: bool = False) -> Any:
        """What Triton makes of the whole-chain kernel with this score in it."""
        from fastscore_kernels import chain

        x, ones = torch.zeros(64, self.n_features), torch.ones(10)
        given = {**SIZES, "clamp": clamp, "freeze": freeze, "options": self.options}
        with driver(arch):
            grid, call, _ = chain.chain_call(self.score, self.params, x, ones, ones, **given)
            return chain.chain_kernel.warmup(grid=grid, **call)

    def figures(self, built: Any) -> dict[str, float]:
        """What is recorded; an element is a feature of a chain, and the loop over steps counts once."""
        shared = built.metadata.shared
        if "cubin" not in built.asm:
            return {"shared": shared}
        registers, stack, opcodes = resources(built)
        threads = 32 * self.options["num_warps"]
        instructions = (sum(opcodes.values()) - opcodes["NOP"]) * threads
        an_element = round(instructions / (self.options["BLOCK_CHAINS"] * self.n_features), 2)
        return {"registers": registers, "stack": stack, "shared": shared, "instructions_an_element": an_element}


def resources(built: Any) -> tuple[int, int, Counter[str]]:
    """Registers, bytes of stack, and how often each opcode occurs."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        usage, sass = (audit._cuobjdump(flag, file.name) for flag in ("--dump-resource-usage", "-sass"))
    opcodes = Counter(m.group(1).split(".")[0] for m in map(audit._OPCODE.match, sass.splitlines()) if m)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    return int(found[1]), int(found[2]), opcodes


ANALYTIC = ("double well D=2", "ring K=8 D=2", "gaussian D=16", "ladder ring K=8 D=2", "ladder gaussian D=16")
NETWORKS: dict[str, tuple[Architecture, bool, str, int, int]] = {
    "score tf32 H=128 L=3": (90, False, "tf32", 128, 3),
    "score bf16 H=128 L=6": (90, False, "bf16", 128, 6),
    "score bf16 H=256 L=2": (90, False, "bf16", 256, 2),
    "score bf16x6 H=64 L=2": (90, False, "bf16x6", 64, 2),
    "energy tf32 H=64 L=2": (90, True, "tf32", 64, 2),
    "score bf16 H=128 L=5": (80, False, "bf16", 128, 5),
    "score tf32 H=64 L=3": (100, False, "tf32", 64, 3),
    "score bf16 H=128 L=3": (100, False, "bf16", 128, 3),
    "score ieee H=64 L=3": (audit.AMD, False, "ieee", 64, 3),
}
"""(architecture, whether an energy, precision, width, depth), D = 2, SiLU."""


def analytic(name: str, arch: Architecture) -> Chain | None:
    """A target in closed form, of ANALYTIC or "gaussian D=2" and the like; None where the launcher declines it."""
    from fastscore_kernels import chain_scores

    dim = int(name.rpartition("=")[2])
    full, k = "full" in name or "gaussian" in name, int((re.search(r"K=(\d+)", name) or ["", "1"])[1])
    if full and dim > 16 and arch in (80, 100):
        return None
    options = chain_scores.launch_options(dim, full, torch.device("cpu"))
    assert options is not None
    if "double well" in name:
        return Chain(chain_scores.double_well, (torch.ones(()),), dim, options)
    precision = "ieee" if full and dim > 8 and arch == audit.AMD else "bf16x6"
    levels = (10,) if "ladder" in name else ()
    precisions = torch.ones(*levels, k, dim, *[dim] * full)
    params = chain_scores.pack(torch.zeros(k, dim), precisions, torch.zeros(*levels, k), precision)
    return Chain(chain_scores.gaussian if k == 1 else chain_scores.mixture, params, dim, options)


def network(
    arch: Architecture,
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
    params[8] = triton.language.constexpr(precision in ("tf32", "bf16") and isinstance(arch, int))
    return Chain(chain_mlp.energy_mlp if energy else chain_mlp.score_mlp, tuple(params), dim, options)


def plain() -> Iterator[tuple[str, str, Callable[[], dict[str, float]]]]:
    """What is recorded, as `audit.recorded`."""
    for name in ANALYTIC:
        for arch in (*audit.NVIDIA, audit.AMD):
            found = analytic(name, arch)
            assert found is not None
            yield label(arch), f"chain {name}", functools.partial(_made, found, arch, clamp=(-1.0, 1.0), freeze=True)
    for name, (arch, *size) in NETWORKS.items():
        yield label(arch), f"chain {name}", functools.partial(_made, network(arch, *size), arch)


def _made(chain: Chain, arch: Architecture, **given: Any) -> dict[str, float]:
    return chain.figures(chain.compile(arch, **given))


def label(arch: Architecture) -> str:
    """The architecture in the record."""
    return f"sm_{arch}" if isinstance(arch, int) else arch
