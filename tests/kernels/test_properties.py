"""The step of Langevin dynamics in Triton, put to the random cases of `tests/test_properties.py`."""

from __future__ import annotations

import os

import pytest
import torch

# Not bfloat16, which the interpreter computes wrongly; the cases are on the CPU.
DTYPES = (torch.float32, torch.float64, torch.float16)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="its cases are on the CPU")
@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in range(1, 11))])
def test_properties(part: int) -> None:
    pytest.importorskip("hypothesis")  # a GPU machine need not have it
    from hypothesis import HealthCheck, given, seed, settings

    from tests.cases import Case, cases, verify
    from tests.test_properties import OPERATIONS

    @seed(1 + part)
    @settings(max_examples=500 if part else 30, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(cases(DTYPES, empty=True))
    def check(case: Case) -> None:
        verify(OPERATIONS["langevin_step"], case)

    check()
