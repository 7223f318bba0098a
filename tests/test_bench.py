"""The benchmark refuses wrong results, takes turns, tells what it did not run, and draws what is recorded."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bench import __main__ as command
from bench import chart, clock, compare, memory, prose, report
from bench.families import chains, networks, noise, steps, training
from bench.registry import NotRunError, Provider, WrongError, families
from bench.rivals import Rivals, worker

ROOT = Path(__file__).parent.parent
SMALL = dataclasses.replace(training._case(512, 2, 2, 16, training.FEW, True), seconds=0.0)


def spoilt(build, factor: float):
    """A provider whose loss is `factor` times too large."""

    def build_wrong(case, arrays):
        call = build(case, arrays)
        return lambda: {name: factor * value for name, value in call().items()}

    return build_wrong


def test_a_wrong_provider_is_refused_and_an_error_is_quoted() -> None:
    base, ours, estimate = (
        training.FAMILY.providers[name] for name in ("denoising, eager", "fastscore, exact", "fastscore, Hutchinson")
    )

    def broken(case, arrays):
        raise RuntimeError("\ndoes not work in /a/folder/of/mine.py\nand more")

    planted = {
        "denoising, eager": base,
        "right": ours,
        "right estimate": estimate,
        "wrong": Provider(spoilt(ours.build, 1.02)),
        "wrong estimate": Provider(spoilt(estimate.build, 1.1), "hutchinson"),
        "not a number": Provider(spoilt(ours.build, float("nan"))),
        "broken": Provider(broken),
        "absent": Provider(None, package="jax"),
    }
    found = compare.compare(dataclasses.replace(training.FAMILY, providers=planted), SMALL, "cpu", None, 0.0)
    assert set(found["rows"]) == {"denoising, eager", "right", "right estimate"}
    assert set(found["refused"]) == {"wrong", "wrong estimate", "not a number"}
    assert "off by" in found["refused"]["wrong"]
    assert found["not_run"]["broken"] == "RuntimeError: does not work in mine.py"
    assert set(found["not_run"]) >= {"broken", "absent", "curvlinops"}
    json.dumps(found, allow_nan=False)


def test_chains_are_held_to_their_law() -> None:
    case = chains._case("ring", 1024, 60, 0.02, 0, True)
    arrays = chains.inputs(case, "cpu")
    torch.manual_seed(1)
    known = chains.reference(case, arrays)
    right = [chains._naive(case, arrays)() for _ in range(2)]
    chains.check(case, arrays, known, "exact", right)
    with pytest.raises(WrongError, match="share"):
        chains.check(case, arrays, known, "exact", [right[0], right[0]])
    scale = 1.3 * (2 * 0.02) ** 0.5
    score = chains.score_of(case, arrays)
    wrong = chains.run(lambda y: y + 0.02 * score(y) + scale * torch.randn_like(y), arrays["x"], 60)
    with pytest.raises(WrongError, match="the mean of"):
        chains.check(case, arrays, known, "exact", [{"x": wrong}])
    with pytest.raises(WrongError, match="has not moved"):
        chains.check(case, arrays, known, "exact", [arrays])


@pytest.mark.parametrize(("scale", "repeated"), [(1.0, False), (1.01, False), (1.0, True)])
def test_noise_is_held_to_its_law(scale: float, repeated: bool) -> None:
    case = steps.cases("cpu")[0]
    arrays = steps.inputs(case, "cpu")
    results = []
    for seed in (5, 5 if repeated else 6):
        z = torch.randn(arrays["x"].shape, generator=networks.generator(seed))
        results.append({"x": arrays["x"] + steps.A * arrays["score"] + steps.SCALE * scale * z, "z": scale * z})
    for family in (steps, noise):
        if scale == 1.0 and not repeated:
            family.check(case, arrays, None, "exact", results)
        else:
            with pytest.raises(WrongError):
                family.check(case, arrays, None, "exact", results)


def test_contenders_take_turns_and_ratios_are_of_one_round() -> None:
    order: list[str] = []
    ticks = {"base": iter([1.0, 2.0, 4.0, 2.0, 2.0]), "twice": iter([2.0, 4.0, 8.0, 4.0, 4.0])}

    def turn_of(name: str):
        def turn() -> float:
            order.append(name)
            return next(ticks[name])

        return turn

    times = clock.race({name: turn_of(name) for name in ticks}, "base", seconds=0.0)
    assert order == 2 * ["base", "twice", "twice", "base"] + ["base", "twice"]
    rows = clock.compare(times, "base")
    assert rows["twice"]["ratio"] == 2.0 and rows["twice"]["spread"] == [2.0, 2.0]
    assert rows["base"] == {"seconds": 2.0, "ratio": 1.0, "spread": [1.0, 1.0], "rounds": 5}


def test_a_slow_contender_does_not_cost_a_fast_one_its_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])

    def turn_of(seconds: float):
        def turn() -> float:
            now[0] += seconds
            return seconds

        return turn

    times = clock.race({"base": turn_of(0.1), "slow": turn_of(5.0), "fast": turn_of(0.01)}, "base", seconds=3.0)
    assert {name: len(found) for name, found in times.items()} == {"base": 25, "slow": 5, "fast": 25}
    alone = clock.race({"base": turn_of(0.1), "slow": turn_of(5.0)}, "base", seconds=3.0)
    assert {name: len(found) for name, found in alone.items()} == {"base": 5, "slow": 5}


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="reads Linux's /proc")
def test_what_others_do_is_told_apart_from_what_we_do() -> None:
    watches = clock.Others([]), clock.Others([os.getpid()])
    begun = time.process_time()
    while time.process_time() < begun + 0.5:
        pass
    everybody, others = (watch.share() * (time.perf_counter() - watch.begun) * os.cpu_count() for watch in watches)
    assert others >= 0 and everybody - others == pytest.approx(0.5, abs=0.1)
    assert clock.Others([1 << 30]).share() is None


def test_a_number_in_a_text_is_written_into_its_sentence() -> None:
    text = "It took 3 seconds, and 1,024.5\nof them were spent. The end."
    assert prose.written(text, "took {} seconds, and {} of them", ["7", "0.5"]) == text.replace("3 s", "7 s").replace(
        "1,024.5", "0.5"
    )
    for sentence in ("took {} minutes", "{}"):
        with pytest.raises(ValueError, match="times"):
            prose.written(text, sentence, ["7"])


def test_a_wide_spread_is_told() -> None:
    rows = {"fastscore": {"ratio": 0.5, "spread": [0.4, 0.6]}, "JAX": {"ratio": 0.8, "spread": [0.79, 0.81]}}
    columns = {"ours": ("fastscore",), "JAX": ("JAX",), "none": ("torchebm",)}
    assert report.cells({"rows": rows}, columns, inverse=True) == ["2 (1.7 to 2.5)", "1.2", ""]
    assert report.cells({"rows": rows}, columns, inverse=False) == ["0.5 (0.4 to 0.6)", "0.8", ""]


def test_a_gpu_is_timed_between_events_with_its_cache_flushed(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    taken = iter([5.0, 1.0, 3.0] * 4)

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("event")

        def elapsed_time(self, end: Event) -> float:
            return next(taken)

    monkeypatch.setattr(clock, "_FLUSH", 64)
    cuda = SimpleNamespace(Event=Event, synchronize=lambda: log.append("wait"))
    seconds = clock.turn_on_gpu(lambda: log.append("call"), cuda)
    assert log == ["call", "wait", *["event", "call", "event"] * 10, "wait"]
    assert seconds == pytest.approx(3e-3)


def test_the_command_writes_one_file_a_machine_and_commit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "found.json"
    assert command.main(["--only", "one step of 16 x 64", "--quick", "--out", str(path)]) == 0
    found = json.loads(path.read_text())
    assert {"device", "torch", "python", "date", "commit", "threads", "rivals"} <= set(found["machine"])
    (case,) = found["cases"]
    assert {"naive eager", "eager in place", "fastscore"} == set(case["rows"])
    assert case["others"] is None or 0 <= case["others"] <= 1
    assert all(row["rounds"] >= clock.ROUNDS[0] and len(row["spread"]) == 2 for row in case["rows"].values())
    assert "naive eager takes" in capsys.readouterr().out
    assert command.main(["--only", "one step", "--budget", "1e-9", "--out", str(path)]) == 0
    assert len(json.loads(path.read_text())["not_reached"]) == len(steps.CPU)
    assert command.default_path({"device": "AMD EPYC", "commit": "abc+"}, "cpu").name == "cpu-amd-epyc-abc-changed.json"


def test_a_case_is_raced_and_benchmarked_by_pytest() -> None:
    options = ["-q", "bench", "-k", "steps and 157", "--benchmark-disable", "-p", "no:cacheprovider"]
    run = subprocess.run([sys.executable, "-m", "pytest", *options], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    assert "2 passed" in run.stdout
    assert re.search(r"one step of 157 x 64: naive eager takes .*\n( +[\d.]+ .*\n)*? +[\d.]+ .*  fastscore", run.stdout)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_cases_are_data_with_names_of_their_own(device: str) -> None:
    names = [case.name for family in families() for case in family.cases(device)]
    assert len(set(names)) == len(names)
    for family in families():
        assert family.base in family.providers
        assert {provider.law for provider in family.providers.values()} <= {"exact"} | set(family.calls)
        for case in family.cases(device):
            json.dumps(case.settings)
            assert family.providers[family.base].unfit(case, device) == ""


def test_every_rival_has_something_that_builds_it() -> None:
    wanted = {(f.name, name) for f in families() for name, p in f.providers.items() if p.build is None}
    there = set()
    for module in worker.MODULES.values():
        tree = ast.parse((ROOT / "bench" / "rivals" / f"{module}.py").read_text())
        keys = [key for node in ast.walk(tree) if isinstance(node, ast.Dict) for key in node.keys]
        there |= {ast.literal_eval(key) for key in keys if isinstance(key, ast.Tuple)}
    assert there == wanted


def test_rivals_that_are_not_there_are_told(tmp_path: Path) -> None:
    case = noise.cases("cpu")[0]
    with pytest.raises(NotRunError, match="make rivals"):
        Rivals(tmp_path / "python").build("noise", case, {"like": torch.zeros(1)}, "JAX, threefry", "jax")
    rivals = Rivals(Path(sys.executable))
    try:
        with pytest.raises(NotRunError, match=r"surely-absent is not installed.*make rivals"):
            rivals.build("noise", case, {"like": torch.zeros(1)}, "JAX, threefry", "surely-absent")
        with pytest.raises(NotRunError, match="KeyError"):
            rivals.turn("never built")
    finally:
        rivals.close()


def test_the_worker_builds_calls_and_times(tmp_path: Path) -> None:
    served = worker.Worker.__new__(worker.Worker)
    served.builders = {("noise", "twice"): lambda settings, inputs, device: lambda: {"z": settings["n"] * inputs["a"]}}
    inputs, results = tmp_path / "inputs.npz", tmp_path / "results.npz"
    np.savez(inputs, a=np.arange(3.0))
    served.answer({"do": "case", "family": "noise", "settings": {"n": 2}, "device": "cpu", "inputs": str(inputs)})
    served.answer({"do": "build", "name": "twice"})
    served.answer({"do": "call", "name": "twice", "results": str(results)})
    assert np.load(results)["z"].tolist() == [0.0, 2.0, 4.0]
    assert served.answer({"do": "turn", "name": "twice"})["seconds"] > 0


@pytest.mark.skipif(not memory.STATUS.exists(), reason="reads Linux's /proc")
def test_memory_is_measured_in_a_process_of_its_own() -> None:
    assert 0 <= memory.in_a_child(256, 2, "fastscore, exact") < 1000


def test_losses_against_rivals_are_found_in_the_record() -> None:
    def row(ratio: float, law: str) -> dict[str, object]:
        return {"ratio": ratio, "law": law}

    rows = {
        "denoising, eager": row(1.0, "denoising"),
        "fastscore, exact": row(2.0, "exact"),
        "JAX, closed form": row(1.6, "exact"),
        "vmap(jacrev)": row(5.0, "exact"),
        "JAX, Hutchinson by jvp": row(1.1, "hutchinson"),
        "fastscore, Hutchinson": row(1.0, "hutchinson"),
    }
    found = list(report.lost({"cases": [{"name": "case", "rows": rows}]}))
    assert found == [["case", "JAX, closed form", "1.25"]]


def test_a_gpu_is_shown_beside_the_cpu_once_it_is_measured(tmp_path: Path) -> None:
    for name, date in (("cuda-a", "2026-01-01"), ("cuda-b", "2026-02-01")):
        machine = {"device": name, "threads": 4, "torch": "2.11", "rivals": {}, "date": date, "commit": "abc"}
        (tmp_path / f"{name}.json").write_text(json.dumps({"machine": machine, "cases": [], "memory": []}))
    cpu, gpu = report.newest("cpu"), report.newest("cuda", tmp_path)
    assert cpu is not None and gpu is not None
    assert "cuda-b, 4 threads, PyTorch 2.11, 2026-02-01, commit abc" in report.front(cpu, gpu)
    assert "## cuda-b" in report.full(cpu, gpu)
    [other] = report.others()
    assert f"## AMD EPYC with {other['machine']['vectors']}" in report.full(cpu, gpu, [other])
    assert "GPU: not measured yet." in report.front(cpu, None)


def test_the_chart_tells_which_figures_it_shows(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    results = report.newest("cpu")
    assert results is not None
    path = tmp_path / "chart.svg"
    chart.draw(results, path)
    assert chart.digest(results) in path.read_text()
    results["cases"][0]["rows"]["fastscore, exact"]["ratio"] += 0.1
    assert chart.digest(results) not in path.read_text()
