"""The benchmark refuses wrong results, takes turns, tells what it did not run, and draws what is recorded."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import fastscore
from bench import __main__ as command
from bench import chart, clock, compare, memory, prose, report
from bench import rivals as rivals_of
from bench.families import chains, mala, networks, noise, steps, targets, training
from bench.registry import NotRunError, Provider, WrongError, families
from bench.rivals import Rivals, worker

ROOT = Path(__file__).parent.parent
SMALL = dataclasses.replace(training.case_of(512, 2, 2, 16, training.FEW, True), seconds=0.0)


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
    case = targets.case_of("ring", 1024, 60, 0.02, 0, True)
    arrays = targets.inputs(case, "cpu")
    torch.manual_seed(1)
    known = chains.reference(case, arrays)
    right = [chains._naive(case, arrays)() for _ in range(2)]
    targets.check(case, arrays, known, "exact", right)
    with pytest.raises(WrongError, match="share"):
        targets.check(case, arrays, known, "exact", [right[0], right[0]])
    scale = 1.3 * (2 * 0.02) ** 0.5
    score = targets.score_of(case, arrays)
    wrong = chains.run(lambda y: y + 0.02 * score(y) + scale * torch.randn_like(y), arrays["x"], 60)
    with pytest.raises(WrongError, match="the mean of"):
        targets.check(case, arrays, known, "exact", [{"x": wrong}])
    with pytest.raises(WrongError, match="has not moved"):
        targets.check(case, arrays, known, "exact", [arrays])


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
    assert report.cells({"rows": rows}, {"best": ("JAX", "fastscore")}, inverse=False) == ["0.5 (0.4 to 0.6)"]


def test_what_a_record_does_not_speak_of_is_told() -> None:
    case, *others = (case.name for family in families() for case in family.cases("cuda"))
    failed, reached, *rest = others
    record = {"machine": {"cuda": "13"}, "not_reached": [reached], "failed": {failed: "it broke"}}
    told = report.not_run(record | {"cases": [{"name": case, "family": "f", "not_run": {}}]})
    assert told == [
        f"- No time for {reached}.",
        f"- Failed: {failed}: it broke",
        f"- Newer than this record: {'; '.join(rest)}.",
    ]


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
    assert log == ["call", "wait", *["wait", "event", "call", "event"] * 10, "wait"]
    assert seconds == pytest.approx(3e-3)


def test_who_breaks_in_the_race_is_out_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(100))

    def breaking(case, arrays):
        def call():
            if next(calls) > 3:
                raise RuntimeError("CUDA out of memory")
            return training.FAMILY.providers["fastscore, exact"].build(case, arrays)()

        return call

    planted = {"denoising, eager": training.FAMILY.providers["denoising, eager"], "breaking": Provider(breaking)}
    emptied: list[str] = []
    monkeypatch.setattr(compare, "emptied", emptied.append)
    found = compare.compare(dataclasses.replace(training.FAMILY, providers=planted), SMALL, "cpu", None, 0.0)
    assert set(found["rows"]) == {"denoising, eager"} and found["rows"]["denoising, eager"]["rounds"] >= 1
    assert found["not_run"]["breaking"] == "RuntimeError: CUDA out of memory"
    assert emptied == ["cpu", "cpu"]
    with pytest.raises(RuntimeError, match="out of memory"):
        clock.race({"base": breaking(SMALL, {}), "other": lambda: 1.0}, "base", 0.0)


def test_a_case_out_of_time_builds_the_base_and_fastscore_only() -> None:
    found = compare.compare(training.FAMILY, SMALL, "cpu", None, 0.0, patience=-1.0)
    assert set(found["rows"]) == {name for name in training.FAMILY.providers if name.startswith("fastscore")} | {
        "denoising, eager"
    }
    assert found["not_run"]["sliced score matching, double backward"] == "no time was left for it"


def test_races_share_half_of_the_time_there_is() -> None:
    case = noise.cases("cpu")[0]
    assert compare.Budget(100.0, 10.0).race(case) == case.seconds
    assert compare.Budget(100.0, 500.0).race(case) == pytest.approx(0.1 * case.seconds)
    assert compare.Budget(100.0, None).race(case) == 0.0


def test_a_broken_gpu_takes_one_case_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child ends in the second of three cases; the next one goes on behind it with what is left of the time."""
    path, budgets = tmp_path / "cuda.json", []

    def child(command: list[str], **options: object) -> SimpleNamespace:
        assert "--resume" in command and command[command.index("--out") + 1] == str(path)
        budgets.append(float(command[-1]))
        found = json.loads(path.read_text()) if path.exists() else {"cases": [], "failed": {}}
        for name in "abc":
            if name in [*found["cases"], *found["failed"]]:
                continue
            if name == "b":
                path.write_text(json.dumps(found | {"running": name}))
                return SimpleNamespace(returncode=-11)
            found["cases"].append(name)
        path.write_text(json.dumps(found))
        return SimpleNamespace(returncode=1)

    monkeypatch.setattr(command.subprocess, "run", child)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert command.main(["--device", "cuda", "--budget", "50", "--out", str(path)]) == 1
    assert json.loads(path.read_text()) == {"cases": ["a", "c"], "failed": {"b": "its process ended with status -11"}}
    assert len(budgets) == 2 and 50 >= budgets[0] > budgets[1]


def test_a_run_is_taken_up_where_it_broke(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    arguments = ["--only", "one step of 16", "--quick", "--out", str(path), "--resume"]
    earlier = {"machine": {"minutes": 2.0}, "cases": [], "memory": [], "not_reached": ["x"], "running": "one step"}
    path.write_text(json.dumps(earlier | {"failed": {"one step of 16 x 64": "its process ended with status -11"}}))
    assert command.main(arguments) == 1
    found = json.loads(path.read_text())
    assert not found["cases"] and not found["not_reached"] and "running" not in found
    assert found["machine"]["minutes"] >= 2.0 and found["machine"]["device"]


def test_a_capture_that_breaks_off_leaves_the_stream_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[object] = []
    stream, current = (SimpleNamespace(wait_stream=lambda other: None) for _ in range(2))

    @contextlib.contextmanager
    def entered(*_: object):
        yield

    fake = {"stream": entered, "CUDAGraph": object, "graph": entered, "set_stream": log.append}
    fake |= {"Stream": lambda: stream, "current_stream": lambda: current}
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(**fake))
    calls = iter(range(10))

    def call():
        if next(calls) == 3:
            raise RuntimeError("not while capturing")
        return {}

    with pytest.raises(RuntimeError, match="capturing"):
        networks.graphed(call)
    assert log == [current]


@pytest.mark.parametrize("target", ["ring", "network", "energy"])
def test_a_hidden_score_is_not_read(target: str) -> None:
    case = targets.case_of(target, 64, 2, 0.005, 2, True)
    arrays = targets.inputs(case, "cpu")
    score = targets.score_of(case, arrays)
    hidden = targets.Hidden(score, arrays["x"])
    assert fastscore.reader.read(hidden, arrays["x"]) is None
    assert (fastscore.reader.read(score, arrays["x"]) is not None) == (target == "network")
    assert chains._ours(case, arrays, plain=True)()["x"].shape == arrays["x"].shape


@pytest.mark.parametrize("module", [chains, mala, steps])
def test_the_better_form_of_torch_compile_is_the_same_step(module, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled is given its noise; with the compiler left out it is the naive step to the bit."""
    monkeypatch.setattr(torch, "compile", lambda fn, **_: fn)
    case = {
        chains: lambda: targets.case_of("ring", 64, 3, 0.005, 2, True),
        mala: lambda: mala._case("energy", 64, 3, 0.2),
        steps: lambda: steps._case(16, 64, True, True),
    }[module]()
    arrays = module.FAMILY.inputs(case, "cpu")
    found = []
    for build in (module._naive, module._moved):
        torch.manual_seed(3)
        found.append(build(case, arrays)()["x"])
    assert torch.equal(*found)


def test_arrays_too_large_for_another_process_are_unfit() -> None:
    large, small = steps.cases("cuda")[0], steps.cases("cpu")[0]
    assert steps.FAMILY.providers["JAX"].unfit(large, "cuda").startswith("too large")
    assert steps.FAMILY.providers["JAX"].unfit(small, "cpu") == ""
    assert noise.FAMILY.providers["JAX, threefry"].unfit(noise.cases("cuda")[1], "cuda").startswith("too large")


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


def test_what_cannot_be_done_is_refused_in_a_line_before_any_file_is_touched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "found.json"
    monkeypatch.setattr(command, "measured", lambda options: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def told(text: str, *arguments: str) -> str:
        path.write_text(text)
        status = command.main(["--out", str(path), *arguments])
        out, line = capsys.readouterr()
        assert path.read_text() == text and out == "" and line.count("\n") == (status == 2) and status in (0, 2)
        return line

    record = json.dumps({"cases": [{"name": steps.cases("cpu")[0].name}], "memory": []})
    chains_too = json.dumps({"cases": [{"name": name} for name in ("some chains", "others", "one step of 16 x 64")]})
    assert "chainz: no family and no case has this in its name" in told(record, "--only", "chainz")
    assert "torch sees no CUDA device" in told(record, "--device", "cuda")
    assert "would drop, some chains and 1 more: give --resume" in told(chains_too, "--only", "steps")
    assert "would drop, memory: give --resume" in told('{"memory": [1]}', "--quick", "--only", "steps")
    assert "is no record" in told("a text", "--only", "steps")
    for arguments in ([], ["--only", "steps", "--resume"]):
        assert told(chains_too, *arguments) == ""
    assert told(record, "--only", "steps") == told('{"memory": [1]}', "--only", "memory") == ""


def test_a_word_that_names_no_mutant_is_an_error() -> None:
    mutants = [sys.executable, "tests/mutants.py", "philox", "nosuch"]
    run = subprocess.run(mutants, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1 and run.stdout == "no mutant has in its file or name: nosuch\n"


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
    with pytest.raises(NotRunError, match="its process ended"):
        rivals.turn("of a process that is gone")


def test_a_python_that_has_jax_itself_is_the_rivals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals_of, "PYTHON", tmp_path / "python")
    monkeypatch.setattr(rivals_of.importlib.util, "find_spec", lambda name: None)
    assert rivals_of.interpreter() == tmp_path / "python"
    monkeypatch.setattr(rivals_of.importlib.util, "find_spec", lambda name: name == "jax")
    assert rivals_of.interpreter() == Path(sys.executable)
    (tmp_path / "python").touch()
    assert rivals_of.interpreter() == tmp_path / "python"


def test_the_worker_builds_calls_and_times(tmp_path: Path) -> None:
    served = worker.Worker.__new__(worker.Worker)
    served.clocks = {}
    served.builders = {("noise", "twice"): lambda settings, inputs, device: lambda: {"z": settings["n"] * inputs["a"]}}
    inputs, results = tmp_path / "inputs.npz", tmp_path / "results.npz"
    np.savez(inputs, a=np.arange(3.0))
    served.answer({"do": "case", "family": "noise", "settings": {"n": 2}, "device": "cpu", "inputs": str(inputs)})
    served.answer({"do": "build", "name": "twice"})
    served.answer({"do": "call", "name": "twice", "results": str(results)})
    assert np.load(results)["z"].tolist() == [0.0, 2.0, 4.0]
    assert served.answer({"do": "turn", "name": "twice"})["seconds"] > 0


def test_a_rival_on_a_gpu_is_timed_by_its_clock_and_one_that_is_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = worker.Worker.__new__(worker.Worker)
    jax = SimpleNamespace(devices=lambda: [SimpleNamespace(platform="gpu")])
    host = SimpleNamespace(devices=lambda: [SimpleNamespace(platform="cpu")])
    served.device, served.clocks = "cuda", {}
    served.calls = {"torch": lambda: {"z": torch.zeros(1, requires_grad=True)}, "jax": lambda: {"z": jax}}
    served.calls["host"] = lambda: {"z": host}
    clocks: list[str] = []
    monkeypatch.setattr(worker.clock, "turn", lambda call, device: clocks.append(device) or 1.0)
    for name in ("torch", "host"):
        with pytest.raises(NotRunError, match="does not see the GPU"):
            served.answer({"do": "call", "name": name, "results": str(tmp_path / "results.npz")})
    assert worker.array(served.calls["torch"]()["z"]).tolist() == [0.0]
    monkeypatch.setattr(worker, "array", lambda value: np.zeros(1))
    served.answer({"do": "call", "name": "jax", "results": str(tmp_path / "results.npz")})
    served.calls["torch"] = lambda: {"z": SimpleNamespace(is_cuda=True, devices=jax.devices)}
    served.answer({"do": "call", "name": "torch", "results": str(tmp_path / "results.npz")})
    for name in ("jax", "torch"):
        served.answer({"do": "turn", "name": name})
    assert clocks == ["cpu", "cuda"]


PYTHON_OF_A_GPU = """#!/bin/sh
echo "$SHARD $*" >> "$CALLS"
case "$*" in *pytest*) case "$SHARD" in $FAILING) echo '1 failed'; exit 1;; 1/*) exit 5;; esac; echo '2 passed';; esac
"""


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
@pytest.mark.parametrize("failing", ["none", "0/*"])
def test_make_gpu_measures_whether_or_not_a_test_fails(tmp_path: Path, failing: str) -> None:
    python, calls, out = tmp_path / "python", tmp_path / "calls", tmp_path / "out"
    python.write_text(PYTHON_OF_A_GPU)
    python.chmod(0o755)
    shutil.copy(ROOT / "Makefile", tmp_path)
    ours = {"ARGS", "DEST", "MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MFLAGS", "SECONDS", "SHARD", "SHARDS"}
    inherited = {name: value for name, value in os.environ.items() if name not in ours}
    environment = inherited | {"CALLS": str(calls), "FAILING": failing, "OUT": str(out)}
    run = subprocess.run(
        ["make", "gpu", f"PYTHON={python}", "SHARDS=2"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    made = calls.read_text().splitlines()
    tests = sorted(call for call in made if "pytest -q" in call)
    assert [call.split()[0] for call in tests] == [f"{k}/{len(tests)}" for k in range(len(tests))]
    assert all(f"--junitxml={out}/gpu-tests-{k}.xml tests/kernels" in call for k, call in enumerate(tests))
    assert f"--out {out}/cuda.json" in made[-1] and "-m bench --device cuda --budget 4" in made[-1]
    assert (run.returncode != 0) == (failing != "none"), run.stdout + run.stderr
    assert f"gpu-tests-0: status {int(failing != 'none')}, " in run.stdout


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
    rows = {
        "naive eager": row(1.0, "exact"),
        "fastscore": row(0.5, "exact"),
        "fastscore, a score it does not know": row(1.2, "exact"),
        "torch.compile": row(1.5, "exact"),
    }
    found = list(report.lost({"cases": [{"name": "case", "rows": rows}]}))
    assert found == [["case, a score it cannot read", "naive eager", "1.2"]]


def test_memory_that_is_held_is_told() -> None:
    ours, theirs = "fastscore, exact", "loop of autograd.grad"
    points = [{"B": b, "D": 8, "mebibytes": {ours: 120.0 + b, theirs: 50.0 * b}} for b in (2, 1)]
    record = {"machine": {}, "memory": [*points, {"B": 9, "D": 9, "mebibytes": {ours: 121.0}}]}
    told = report.held(record)
    assert "in 121 to 122 MiB" in told and f"{theirs} takes 50 at B=1 D=8" in told
    for unlike in ({"machine": {"cuda": "13"}, "memory": points}, {"machine": {}, "memory": []}):
        assert report.held(unlike) == ""


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
