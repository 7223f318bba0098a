"""The cases of `python -m bench` under pytest-benchmark: whether a change made fastscore slower.

    pytest bench -k "divergence and exact" --benchmark-autosave
    pytest bench -k "divergence and exact" --benchmark-compare

Nothing is timed here either whose results are not right.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from bench import compare
from bench.registry import Arrays, Case, Family, NotRunError, families

FAMILIES = {family.name: family for family in families()}


def every() -> list[Any]:
    """Our providers of all cases for a CPU, which is what a change is tried on."""
    return [
        pytest.param(family, case, name, id=f"{family.name}: {case.name}: {name}")
        for family in FAMILIES.values()
        for case in family.cases("cpu")
        for name in family.providers
        if name.startswith("fastscore")
    ]


@functools.lru_cache(1)
def prepared(family: str, name: str) -> tuple[Arrays, Any]:
    """Inputs and reference of a case, kept for its next provider."""
    (case,) = (case for case in FAMILIES[family].cases("cpu") if case.name == name)
    arrays = FAMILIES[family].inputs(case, "cpu")
    torch.manual_seed(20)
    return arrays, FAMILIES[family].reference(case, arrays)


@pytest.mark.parametrize(("family", "case", "name"), every())
def test_case(family: Family, case: Case, name: str, benchmark) -> None:
    provider = family.providers[name]
    if reason := provider.unfit(case, "cpu"):
        pytest.skip(reason)
    arrays, reference = prepared(family.name, case.name)
    assert provider.build is not None
    try:
        call = provider.build(case, arrays)
    except NotRunError as error:
        pytest.skip(str(error))
    compare.accept(family, case, arrays, reference, provider, call)
    benchmark.pedantic(call, rounds=7, warmup_rounds=1)
    benchmark.extra_info.update(case.settings, units=case.units)
