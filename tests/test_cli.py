"""The command line: what it prints, what it writes, what it refuses."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import fastscore
from fastscore.cli import main
from fastscore.demo import run
from fastscore.ops import _cpu_build

PNG = b"\x89PNG\r\n\x1a\n"
DIGITS = {"digits.png", "digits_training.png", "digits_ladder.png"}
MIXTURE = {"mixture_field.png", "mixture_sampling.png"}


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"], ["info", "--help"]])
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 0
    assert "usage: fastscore" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"fastscore {fastscore.__version__}\n"


def test_info_names_versions_and_backend(capsys: pytest.CaptureFixture[str]) -> None:
    with fastscore.use_backend("torch"):
        assert main(["info"]) == 0
    facts = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert facts["fastscore"] == fastscore.__version__
    assert facts["backend"] == "torch"
    assert set(facts) == {"fastscore", "python", "torch", "triton", "backend", "cpu", "device"}


@pytest.mark.parametrize("compiled", [True, False])
def test_info_says_what_the_cpu_path_is(compiled, capsys, monkeypatch) -> None:
    monkeypatch.setattr(_cpu_build, "library", lambda *, build: object() if compiled else None)
    main(["info"])
    assert f"cpu        {'compiled' if compiled else 'PyTorch and NumPy'}" in capsys.readouterr().out


def test_the_package_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "fastscore", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"fastscore {fastscore.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "required"),
        (["paint"], "invalid choice: 'paint'"),
        (["demo", "--only", "faces"], "invalid choice: 'faces'"),
        (["demo", "--seed", "-1"], "must be a whole number from 0 to 2^32 - 1, got -1"),
        (["demo", "--seed", "4294967296"], "got 4294967296"),
        (["demo", "--seed", "one"], "got one"),
    ],
)
def test_refusals(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert complaint in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_an_error_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["demo", "--fast", "--only", "mixture", "--out", str(tmp_path / "file")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fastscore: error: ") and "file" in line
    monkeypatch.setattr(run, "run", interrupted)
    assert main(["demo"]) == 130


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("package", ["sklearn", "matplotlib"])
def test_missing_package_names_the_extra(
    package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("fastscore.demo")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # what import takes for "not there"
    assert main(["demo", "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert package in error and "fastscore-torch[demo]" in error
    assert not (tmp_path / "out").exists()


def read_demo(out: Path) -> dict[str, Any]:
    """demo.json, once everything that should lie beside it has been seen there."""
    outcome: dict[str, Any] = json.loads((out / "demo.json").read_text())
    assert {path.name for path in out.iterdir()} == {*outcome["pictures"], "demo.json"}
    for picture in outcome["pictures"]:
        assert (out / picture).read_bytes().startswith(PNG)
    return outcome


def test_demo_writes_pictures_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    assert main(["demo", "--fast", "--seed", "7", "--out", str(tmp_path / "deep" / "out")]) == 0
    outcome = read_demo(tmp_path / "deep" / "out")
    assert set(outcome["pictures"]) == {*DIGITS, *MIXTURE, "summary.png"}
    assert outcome["seed"] == 7 and outcome["fast"] is True
    assert outcome["versions"]["fastscore"] == fastscore.__version__

    quality = outcome["digits"]["quality"]
    assert quality["classifier_accuracy"] > 0.97
    assert len(quality["class_shares"]) == 10 and math.isclose(sum(quality["class_shares"]), 1)
    assert quality["distance_ratio"] > 1.2  # barely trained: far from the digits
    assert all(0.9 < value <= 1 for value in quality["two_sample_accuracy"].values())
    assert all(0.4 < value < 0.6 for value in quality["two_sample_baseline"].values())
    sigmas = outcome["digits"]["sigmas"]
    assert sigmas == sorted(sigmas, reverse=True)

    assert 0 < outcome["mixture"]["relative_fisher_divergence"] < 1
    for seconds in (outcome["digits"]["seconds"], outcome["mixture"]["seconds"]):
        assert all(value > 0 for value in seconds.values())
    printed = capsys.readouterr().out
    assert "classes present" in printed and "relative Fisher divergence" in printed and "demo.json" in printed


def test_one_demo_reproducibly(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    state = torch.get_rng_state()
    runs = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert main(["demo", "--fast", "--only", "mixture", "--seed", str(seed), "--out", str(tmp_path / name)]) == 0
        runs.append(read_demo(tmp_path / name))
    assert set(runs[0]["pictures"]) == MIXTURE
    assert "digits" not in runs[0]
    facts = [{key: value for key, value in run["mixture"].items() if key != "seconds"} for run in runs]
    assert facts[0] == facts[1]
    assert facts[0] != facts[2]
    assert torch.equal(torch.get_rng_state(), state)  # a demonstration leaves the program's randomness alone
