"""What the kernels that take their tiles from sizes compute and cost, as Triton and the record say."""

from __future__ import annotations

import re

import pytest

from bench import audit, audit_plain, audit_record

CASES = list(audit_plain.cases())


@pytest.mark.parametrize(("dtype", "limit"), [("fp32", 56), ("bf16", 48), ("fp16", 48)])
def test_the_fused_step_is_bound_by_memory(dtype, limit):
    """An H200 at 4.3 TB/s leaves about 93 instructions an fp32 element and 47 a bf16 element; the aim is well under."""
    for features in (4096, 64):
        row = audit_record.kernels()[f"langevin_step {dtype} D={features}"]["sm_90"]
        assert row["instructions_an_element"] <= limit


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
