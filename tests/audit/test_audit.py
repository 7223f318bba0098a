"""Every shipped kernel and configuration, compiled ahead of time for GPUs that need not be there."""

from __future__ import annotations

import re

import pytest

from bench import audit, audit_plain

CASES = list(audit_plain.cases())
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}


@pytest.fixture(scope="module")
def compiled():
    """Each kernel is compiled once for all tests of it."""
    made: dict[tuple[str, int], audit.Report] = {}

    def get(case: audit.Case, arch: int) -> audit.Report:
        if (case.name, arch) not in made:
            made[case.name, arch] = audit.compile_nvidia(case, arch)
        return made[case.name, arch]

    return get


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_nvidia(case, compiled):
    for arch in audit.NVIDIA:
        report = compiled(case, arch)
        assert report.stack == 0, f"sm_{arch}: local memory"
        assert not report.opcodes["LDL"] + report.opcodes["STL"], f"sm_{arch}: spills"
        assert report.shared <= SHARED_LIMIT[arch]
        assert not re.search(r"\btrap;", report.ptx), "the compiler gave up and left a kernel that stops"
        assert not re.search(r"\b(atom|red)\.", report.ptx), "an atomic: the order of additions would vary"
        dots = re.findall(r"tt\.dot .*", report.ttir)
        assert all("inputPrecision" in dot for dot in dots) or "f32" not in " ".join(dots)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_amd(case):
    assert audit.compile_amd(case) <= 64 * 1024


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_no_figure_rises_unnoticed(case, compiled):
    """`python -m bench.audit --write` records the figures of the pinned Triton; they may fall, not rise."""
    for arch in audit.NVIDIA:
        risen = audit.risen(case.name, f"sm_{arch}", compiled(case, arch).figures())
        assert not risen, f"sm_{arch}: {risen}"


def test_everything_is_recorded_and_nothing_else():
    found = {(name, architecture) for name, row in audit.record()["kernels"].items() for architecture in row}
    assert found == {(name, architecture) for architecture, name, _ in audit.recorded()}


@pytest.mark.parametrize(("dtype", "limit"), [("fp32", 56), ("bf16", 48), ("fp16", 48)])
def test_the_fused_step_is_bound_by_memory(dtype, limit, compiled):
    """An H200 at 4.3 TB/s leaves about 93 instructions an fp32 element and 47 a bf16 element; the aim is well under."""
    for case in CASES:
        if case.name in (f"langevin_step {dtype} D=4096", f"langevin_step {dtype} D=64"):
            assert compiled(case, 90).instructions_an_element <= limit


def test_rows_are_addressed_in_64_bits():
    """The product of a row number and the width of a row is where 2^31 elements overflow an int32."""
    for case in CASES:
        if case.name.startswith(("langevin_step", "normal", "rademacher", "contraction", "pullback")):
            ttir = audit.ttir(case)
            assert re.search(r"arith\.muli %first_row\w*, %\w+ : i64", ttir), case.name


def test_chunks_of_networks_are_addressed_in_64_bits():
    """The number of a program is made wide before it is multiplied by anything."""
    for case in CASES:
        if case.name.startswith("jets"):
            ttir = audit.ttir(case)
            program = re.search(r"(%\w+) = tt\.get_program_id x : i32", ttir)[1]
            uses = re.findall(rf"= (.*{program}\b.*)", ttir)
            assert uses and all("arith.extsi" in use and "i32 to i64" in use for use in uses), (case.name, uses)
