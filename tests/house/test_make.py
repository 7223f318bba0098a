"""The Makefile's promises: every lane runs, a failing one is not lost, a half-built environment is not trusted."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LANES = ("plain", "interpreter", "audit", "emulator")

# Stands for python, ruff, mypy and lint-imports: notes its call, fails when the call contains $FAIL_ON.
FAKE_TOOL = """#!/bin/sh
echo "${TRITON_INTERPRET:-0} $(basename "$0") $*" >> "$CALLS"
case "$(basename "$0") $*" in *"$FAIL_ON"*) exit 1;; esac
"""

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make here")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose environment is made of fake tools, complete and up to date."""
    for name in ("Makefile", "setup.py", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    tools = tmp_path / ".venv" / "bin"
    tools.mkdir(parents=True)
    for name in ("python", "ruff", "mypy", "lint-imports", "fastscore"):
        (tools / name).write_text(FAKE_TOOL)
        (tools / name).chmod(stat.S_IRWXU)
    (tmp_path / ".venv" / "ready").touch()
    return tmp_path


def make(checkout: Path, *arguments: str, fail_on: str = "never") -> tuple[int, list[str]]:
    """Runs make and returns its exit status and the tools' calls."""
    calls = checkout / "calls"
    calls.unlink(missing_ok=True)
    # Run by `make test`, these tests would otherwise hand its own variables on.
    ours = {"ARGS", "JOBS", "MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MARKS", "MFLAGS", "PART", "PYTHON"}
    inherited = {name: value for name, value in os.environ.items() if name not in ours}
    environment = inherited | {"CALLS": str(calls), "FAIL_ON": fail_on, "TRITON_INTERPRET": "1"}
    done = subprocess.run(["make", *arguments], cwd=checkout, env=environment, capture_output=True, text=True)
    return done.returncode, calls.read_text().splitlines() if calls.exists() else []


def test_the_lanes_are_processes_of_their_own(checkout: Path) -> None:
    status, calls = make(checkout, "test")
    tests = [call for call in calls if "-m pytest" in call]
    assert status == 0
    assert len(tests) == len(LANES)
    assert [call.startswith("1 ") for call in tests] == [False, True, False, False]  # the interpreter in its lane only
    assert all("not slow and not gpu" in call for call in tests)
    others = [call for call in calls if call not in tests]
    assert [call.split()[1] for call in others] == ["ruff", "ruff", "mypy", "lint-imports", "python"]
    assert "-m bench.roofline" in others[-1]


@pytest.mark.parametrize("broken", ["ruff", "mypy", "--ignore=tests/kernels", " tests/kernels", "tests/audit "])
def test_a_failing_lane_fails_the_run_and_stops_no_other(checkout: Path, broken: str) -> None:
    status, calls = make(checkout, "test", "ARGS=-x", fail_on=broken)
    assert status != 0
    assert len([call for call in calls if "-m pytest" in call]) == len(LANES)


def test_full_takes_the_slow_tests_in(checkout: Path) -> None:
    _, calls = make(checkout, "test-full")
    tests = [call for call in calls if "-m pytest" in call]
    assert len(tests) == len(LANES)
    assert all("not gpu" in call and "not slow" not in call for call in tests)


def test_a_finished_environment_is_left_alone(checkout: Path) -> None:
    _, calls = make(checkout, "demo")
    assert [call.split()[1:] for call in calls] == [["fastscore", "demo"]]


@pytest.mark.parametrize("cause", ["half-built", "out of date"])
def test_an_unfinished_environment_is_finished_first(checkout: Path, cause: str) -> None:
    ready = checkout / ".venv" / "ready"
    if cause == "half-built":
        ready.unlink()
    else:
        os.utime(ready, (0, 0))
    status, _ = make(checkout, "demo", fail_on="-e .[")
    assert status != 0  # the installation broke off, ...
    assert not ready.exists() or ready.stat().st_mtime == 0  # ... and is not taken for finished
    status, calls = make(checkout, "demo")
    installs = [call for call in calls if "pip install" in call]
    assert status == 0
    assert len(installs) == 2
    assert all("-c constraints.txt" in call for call in installs)
    assert calls[-1].endswith("fastscore demo")


def test_every_target_is_explained_by_help(checkout: Path) -> None:
    done = subprocess.run(["make", "help"], cwd=checkout, capture_output=True, text=True, check=True)
    listed = {line.split()[0] for line in done.stdout.splitlines()}
    assert listed >= {"demo", "test", "test-full", "lint", "bench", "audit", "gpu", "clean"}
    assert all(len(line.split()) > 2 for line in done.stdout.splitlines())


def test_ci_runs_what_a_person_types() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().splitlines()[-1] == "exec make test"
