"""Whole-chain kernels, compiled as the launcher would launch them, for GPUs that need not be there."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from bench import audit, audit_chain
from bench.audit_chain import Target as Target
from fastscore_kernels import chain_mlp

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024, "gfx942": 64 * 1024}


def check(built, arch):
    """What every shipped configuration keeps to; the opcodes, for more."""
    assert built.metadata.shared <= SHARED_LIMIT[arch]
    assert getattr(built.metadata, "tmem_size", 0) <= 512
    if isinstance(arch, str):
        return Counter()
    dots = re.findall(r"tt\.dot .*", built.asm["ttir"])
    assert all("inputPrecision" in dot or "bf16" in dot for dot in dots)
    _, stack, opcodes = audit_chain.resources(built)
    assert stack == 0
    assert sum(opcodes.values()) > 200, "nothing was compiled: out of some resource"
    assert opcodes["LDL"] + opcodes["STL"] == 0
    assert not re.search(r"\b(atom|red)\.", built.asm["ptx"])
    if dots:
        assert opcodes[{80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}[arch]]
    return opcodes


def no_figure_rises(name, arch, chain, built):
    """`python -m bench.audit --write` records the figures of the pinned Triton; they may fall, not rise."""
    assert not audit.risen(f"chain {name}", audit_chain.label(arch), chain.figures(built))


ANALYTIC = (
    *audit_chain.ANALYTIC,
    "double well D=32",
    "gaussian D=2",
    "gaussian D=64",
    "full mixture K=8 D=3",
    "mixture K=40 D=8",
    "ladder gaussian D=64",
    "ladder full mixture K=8 D=3",
    "ladder mixture K=40 D=8",
)


@pytest.mark.parametrize("arch", [80, 90, 100, "gfx942"])
@pytest.mark.parametrize("name", ANALYTIC, ids=lambda name: name.replace(" ", "-"))
def test_analytic(name, arch):
    if (chain := audit_chain.analytic(name, arch)) is None:
        pytest.skip("declined")
    built = chain.compile(arch, clamp=(-1.0, 1.0), freeze=True)
    opcodes = check(built, arch)
    if chain.n_features == 2:  # a thread holds whole chains: nothing goes through another thread or shared memory
        assert opcodes["SHFL"] + opcodes["LDS"] + opcodes["BAR"] == 0
    assert re.search(r"arith\.muli %\w+, %\w+ : i64", built.asm["ttir"]), "rows are addressed in 64 bits"
    if name in audit_chain.ANALYTIC:
        no_figure_rises(name, arch, chain, built)


@pytest.mark.parametrize("name", audit_chain.NETWORKS, ids=lambda name: name.replace(" ", "-"))
def test_networks(name):
    arch, energy, precision, width, depth = audit_chain.NETWORKS[name]
    chain = audit_chain.network(arch, energy, precision, width, depth)
    built = chain.compile(arch)
    opcodes = check(built, arch)
    if precision in ("tf32", "bf16") and not energy:  # one special function a unit, and those of the noise
        assert opcodes["MUFU"] <= depth * width // 2 + 8
    no_figure_rises(name, arch, chain, built)


def table():
    for (energy, precision), row in chain_mlp.DEEPEST.items():
        for width, depths in row.items():
            for heavy, depth in enumerate(depths):
                if depth:
                    yield energy, precision, width, depth, bool(heavy)


@pytest.mark.slow
@pytest.mark.parametrize(("energy", "precision", "width", "depth", "heavy"), list(table()))
def test_every_entry_of_the_table(energy, precision, width, depth, heavy):
    """At its deepest; residuals too, except where they count as heavy or a gelu is enough."""
    arch = "gfx942" if precision == "ieee" else 90
    activation = "gelu" if heavy else "silu"
    residual = (
        (width < 128 or precision in ("tf32", "bf16"))
        if heavy
        else not (energy or precision == "bf16x6" or width == 256)
    )
    chain = audit_chain.network(arch, energy, precision, width, depth, activation=activation, residual=residual)
    check(chain.compile(arch), arch)


@pytest.mark.slow
@pytest.mark.parametrize(("energy", "precision"), [(False, "bf16x6"), (False, "tf32"), (True, "tf32")])
def test_a_condition_a_chain(energy, precision):
    check(audit_chain.network(90, energy, precision, 32, 3, per_chain=True).compile(90), 90)
