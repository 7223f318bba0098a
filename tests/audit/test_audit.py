"""What the kernels that take their tiles from sizes compute and cost, as Triton and the record say."""

from __future__ import annotations

import pytest

from bench import audit, audit_plain, audit_record
from bench.audit_hazards import hazards

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
        assert not hazards(audit.ttir(case)), case.name
