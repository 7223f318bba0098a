"""What whole-chain kernels are made of, beyond what every kernel is held to."""

from __future__ import annotations

import re

import pytest

from bench import audit, audit_chain

CHAINS = [(architecture, chain) for architecture, chain in audit_chain.cases() if architecture != audit.AMD]


def chosen(pattern):
    """Those whose names fit."""
    fitting = ((architecture, chain) for architecture, chain in CHAINS if re.fullmatch(pattern, chain.name))
    return [pytest.param(*found, id=" ".join((found[0], found[1].name)).replace(" ", "-")) for found in fitting]


@pytest.mark.parametrize(("architecture", "chain"), chosen(r"chain (double well|ring|gaussian|ladder ring).* D=2"))
def test_a_thread_holds_whole_chains_of_two_features(architecture, chain):
    """Nothing goes through another thread or shared memory."""
    opcodes = chain.compile(architecture).opcodes
    assert opcodes["SHFL"] + opcodes["LDS"] + opcodes["BAR"] == 0


@pytest.mark.parametrize(("architecture", "chain"), chosen(r"chain score (tf32|bf16) H=\d+ L=\d"))
def test_a_unit_costs_one_special_function(architecture, chain):
    """And those of the noise."""
    width, depth = map(int, re.findall(r"[HL]=(\d+)", chain.name))
    assert chain.compile(architecture).opcodes["MUFU"] <= depth * width // 2 + 8
