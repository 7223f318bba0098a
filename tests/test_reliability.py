"""docs/reliability.md says which test holds which promise: the tests exist, the table is whole, the mutants apply."""

from __future__ import annotations

import ast
import re
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| (P?\d+) \| (.*) \|$", re.M)
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")

sys.path.insert(0, str(ROOT / "tests"))
from mutant_lines import MORE  # noqa: E402
from mutant_table import MUTANTS  # noqa: E402


@cache
def names_in(file: str) -> frozenset[str]:
    """The test functions at the top of a file."""
    path = ROOT / file
    tree = ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else ast.Module([], [])
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name[:5] == "test_")


def rows(prefix: str) -> dict[int, list[str]]:
    """The cells after the number, by number, of the rows whose number begins with the prefix."""
    return {
        int(n[len(prefix) :]): cells.split(" | ")
        for n, cells in ROW.findall(PAGE)
        if n.startswith("P") == (prefix == "P")
    }


def test_every_promise_is_held_by_tests() -> None:
    promises = rows("P")
    assert sorted(promises) == list(range(1, 11))
    assert all(TEST.search(held) for _, held in promises.values())


def test_every_class_is_there_with_its_level() -> None:
    classes = rows("")
    assert sorted(classes) == list(range(1, 59))
    assert all(re.fullmatch("[TIAEG]( [TIAEG])*", level) for _, level, _ in classes.values())
    tested = [n for n, (_, level, held) in classes.items() if set(level) & set("TIAE") and TEST.search(held)]
    assert len(tested) >= 45


@pytest.mark.parametrize(("file", "name"), sorted(set(TEST.findall(PAGE))), ids=lambda part: part.rpartition("/")[2])
def test_the_named_test_exists(file: str, name: str) -> None:
    assert name in names_in(file)


def test_whatever_looks_like_a_test_is_named_in_full() -> None:
    written = re.findall(r"`(tests/[^`]*)`", PAGE)
    other = {text for text in written if not TEST.fullmatch(f"`{text}`")}
    assert other <= {"tests/test_reliability.py", "tests/kernels", "tests/kernels/conftest.py", "tests/conftest.py"}


@pytest.mark.parametrize("mutant", [*MUTANTS, *MORE], ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_every_mutant_still_applies(mutant) -> None:
    assert (ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.old) == 1
    assert all((ROOT / name.partition("::")[0]).is_file() for name in mutant.tests)
    assert all(
        "::" not in name or name.partition("::")[2].partition("[")[0] in names_in(name.partition("::")[0])
        for name in mutant.tests
    )


def test_there_are_mutants_of_most_classes() -> None:
    assert len(MUTANTS) >= 45
    assert len({mutant.bug for mutant in MUTANTS}) >= 35
    assert {mutant.bug for mutant in MUTANTS} <= set(range(1, 59))
