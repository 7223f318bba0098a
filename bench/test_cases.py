"""The cases of `python -m bench` under pytest: each raced against all its rivals, and ours under pytest-benchmark.

    pytest bench -k divergence                                  all of these, or
    pytest bench -k "race and divergence"                       the ratios beside naive PyTorch, torch.compile, JAX, ...
    pytest bench -k "ours and divergence" --benchmark-autosave  before a change, and
    pytest bench -k "ours and divergence" --benchmark-compare   after it: whether it made fastscore slower

Nothing is timed here either whose results are not right.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import torch

from bench import clock, compare
from bench.registry import Arrays, Case, Family, NotRunError, families
from bench.rivals import Rivals

FAMILIES = {family.name: family for family in families()}
CASES = [(family, case) for family in FAMILIES.values() for case in family.cases("cpu")]
"""A change is tried on a CPU; `python -m bench --device cuda` measures on a GPU."""
OURS = [(*pair, name) for pair in CASES for name in pair[0].providers if name.startswith("fastscore")]


def named(*of: Family | Case | str) -> str:
    """What `-k` finds a test by."""
    return ": ".join(one if isinstance(one, str) else one.name for one in of)


@pytest.fixture(scope="module")
def rivals() -> Iterator[Rivals]:
    """The other environment's worker, and the heap of a process that has been at work for a while."""
    clock.settle()
    found = Rivals()
    yield found
    found.close()


@pytest.mark.parametrize(("family", "case"), [pytest.param(*pair, id=named(*pair)) for pair in CASES])
def test_race(family: Family, case: Case, rivals: Rivals, capsys, pytestconfig) -> None:
    seconds = 0.0 if pytestconfig.getoption("benchmark_disable") else case.seconds
    result = compare.compare(family, case, "cpu", rivals, seconds)
    with capsys.disabled():
        print("\n".join(compare.table(result)))
    assert not [name for name in result["refused"] if name.startswith("fastscore")]


@functools.lru_cache(1)
def prepared(family: str, name: str) -> tuple[Arrays, object]:
    """Inputs and reference of a case, kept for its next provider."""
    (case,) = (case for case in FAMILIES[family].cases("cpu") if case.name == name)
    arrays = FAMILIES[family].inputs(case, "cpu")
    torch.manual_seed(20)
    return arrays, FAMILIES[family].reference(case, arrays)


@pytest.mark.parametrize(("family", "case", "name"), [pytest.param(*one, id=named(*one)) for one in OURS])
def test_ours(family: Family, case: Case, name: str, benchmark) -> None:
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
