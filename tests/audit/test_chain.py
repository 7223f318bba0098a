"""Whole-chain kernels, compiled as the launcher would launch them, for GPUs that need not be there.

The launcher's own arguments go through Triton's own specialization (`warmup`), under a driver that only names a target.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import tempfile
from collections import Counter

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget

from bench import audit
from fastscore_kernels import chain, chain_mlp, chain_scores

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024, "gfx942": 64 * 1024}
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

    def __init__(self) -> None:
        self.arch: int | str = 90

    def get_current_device(self) -> int:
        return self.arch if isinstance(self.arch, int) else 942

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32) if isinstance(self.arch, int) else GPUTarget("hip", self.arch, 64)


@pytest.fixture
def compiled():
    target, before = Target(), triton.runtime.driver._active
    triton.runtime.driver.set_active(target)

    def compile_for(arch, score, params, n_features, options, *, clamp=None, freeze=False, per_feature=False):
        target.arch = arch
        x = torch.zeros(64, n_features)
        a = torch.ones(10, n_features) if per_feature else torch.ones(10)
        grid, call, _ = chain.chain_call(
            score, params, x, a, torch.ones(10), **SIZES, clamp=clamp, freeze=freeze, options=options
        )
        return chain.chain_kernel.warmup(grid=grid, **call)

    yield compile_for
    triton.runtime.driver.set_active(before)


def resources(built):
    """Bytes of stack, and how often each opcode occurs."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        usage, sass = (
            subprocess.run([audit._TOOLS / "cuobjdump", flag, file.name], capture_output=True, text=True, check=True)
            for flag in ("--dump-resource-usage", "-sass")
        )
    opcodes = Counter(m.group(1).split(".")[0] for m in map(audit._OPCODE.match, sass.stdout.splitlines()) if m)
    return int(re.search(r"STACK:(\d+)", usage.stdout)[1]), opcodes


def check(built, arch):
    """What every shipped configuration keeps to; the opcodes, for more."""
    assert built.metadata.shared <= SHARED_LIMIT[arch]
    assert getattr(built.metadata, "tmem_size", 0) <= 512
    if isinstance(arch, str):
        return Counter()
    dots = re.findall(r"tt\.dot .*", built.asm["ttir"])
    assert all("inputPrecision" in dot or "bf16" in dot for dot in dots)
    stack, opcodes = resources(built)
    assert stack == 0
    assert sum(opcodes.values()) > 200, "nothing was compiled: out of some resource"
    assert opcodes["LDL"] + opcodes["STL"] == 0
    assert not re.search(r"\b(atom|red)\.", built.asm["ptx"])
    if dots:
        assert opcodes[{80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}[arch]]
    return opcodes


def analytic():
    def mixture(k, d, full):
        precisions = torch.ones(k, d, d) if full else torch.ones(k, d)
        return chain_scores.pack(torch.zeros(k, d), precisions, torch.zeros(k), "bf16x6"), d, full

    def case(name, score, k, d, full):
        params, d, full = mixture(k, d, full)
        return pytest.param(score, params, d, full, id=name)

    return [
        pytest.param(chain_scores.double_well, (torch.ones(()),), 2, False, id="double-well-2"),
        pytest.param(chain_scores.double_well, (torch.ones(()),), 32, False, id="double-well-32"),
        case("gaussian-2", chain_scores.gaussian, 1, 2, True),
        case("gaussian-16", chain_scores.gaussian, 1, 16, True),
        case("gaussian-64", chain_scores.gaussian, 1, 64, True),
        case("ring-8", chain_scores.mixture, 8, 2, False),
        case("mixture-8-full-3", chain_scores.mixture, 8, 3, True),
        case("mixture-40-8", chain_scores.mixture, 40, 8, False),
    ]


@pytest.mark.parametrize("arch", [80, 90, 100, "gfx942"])
@pytest.mark.parametrize(("score", "params", "n_features", "full"), analytic())
def test_analytic(score, params, n_features, full, arch, compiled):
    if full and n_features > 16 and arch in (80, 100):
        pytest.skip("declined")
    options = chain_scores.launch_options(n_features, full, torch.device("cpu"))
    if full and n_features > 8 and arch == "gfx942":
        params = (*params[:5], triton.language.constexpr("ieee"))
    built = compiled(arch, score, params, n_features, options, clamp=(-1.0, 1.0), freeze=True)
    opcodes = check(built, arch)
    if n_features == 2:  # a thread holds whole chains: nothing goes through another thread or shared memory
        assert opcodes["SHFL"] + opcodes["LDS"] + opcodes["BAR"] == 0
    assert re.search(r"arith\.muli %\w+, %\w+ : i64", built.asm["ttir"]), "rows are addressed in 64 bits"


def weights(width, depth, dim, energy):
    sizes = [dim, *[width] * depth, 1 if energy else dim]
    return tuple(torch.zeros(n, k) for k, n in itertools.pairwise(sizes))


def compile_network(compiled, arch, energy, precision, width, depth, dim, activation, residual, per_chain=False):
    """The kernel of a network with scales, at its shipped tile."""
    w = weights(width, depth, dim, energy)
    activations, residuals = (activation,) * depth, tuple(residual and i > 0 for i in range(depth))
    how = {"energy": energy, "per_chain": per_chain, "precision": precision}
    options = chain_mlp.launch_options(w, activations, residuals, **how, device=torch.device("cpu"))
    assert options is not None
    scales = (torch.ones(1, 1), torch.ones(1, 1), None)
    params = list(chain_mlp.pack(w, (None,) * (depth + 1), activations, residuals, (), scales, **how))
    params[8] = triton.language.constexpr(precision in ("tf32", "bf16") and isinstance(arch, int))
    return compiled(arch, chain_mlp.energy_mlp if energy else chain_mlp.score_mlp, tuple(params), dim, options)


@pytest.mark.parametrize(
    ("arch", "energy", "precision", "width", "depth"),
    [
        (90, False, "tf32", 128, 3),
        (90, False, "bf16", 128, 6),
        (90, False, "bf16", 256, 2),
        (90, False, "bf16x6", 64, 2),
        (90, True, "tf32", 64, 2),
        (80, False, "bf16", 128, 5),
        (100, False, "tf32", 64, 3),
        (100, False, "bf16", 128, 3),
        ("gfx942", False, "ieee", 64, 3),
    ],
)
def test_networks(arch, energy, precision, width, depth, compiled):
    built = compile_network(compiled, arch, energy, precision, width, depth, 2, "silu", residual=False)
    opcodes = check(built, arch)
    if precision in ("tf32", "bf16") and not energy:  # one special function a unit, and those of the noise
        assert opcodes["MUFU"] <= depth * width // 2 + 8


def table():
    for (energy, precision), row in chain_mlp.DEEPEST.items():
        for width, depths in row.items():
            for heavy, depth in enumerate(depths):
                if depth:
                    yield energy, precision, width, depth, bool(heavy)


@pytest.mark.slow
@pytest.mark.parametrize(("energy", "precision", "width", "depth", "heavy"), list(table()))
def test_every_entry_of_the_table(energy, precision, width, depth, heavy, compiled):
    """At its deepest; residuals too, except where they count as heavy or a gelu is enough."""
    arch = "gfx942" if precision == "ieee" else 90
    activation = "gelu" if heavy else "silu"
    residual = (
        (width < 128 or precision in ("tf32", "bf16"))
        if heavy
        else not (energy or precision == "bf16x6" or width == 256)
    )
    check(compile_network(compiled, arch, energy, precision, width, depth, 2, activation, residual), arch)


@pytest.mark.slow
@pytest.mark.parametrize(("energy", "precision"), [(False, "bf16x6"), (False, "tf32"), (True, "tf32")])
def test_a_condition_a_chain(energy, precision, compiled):
    check(compile_network(compiled, 90, energy, precision, 32, 3, 2, "silu", False, per_chain=True), 90)
