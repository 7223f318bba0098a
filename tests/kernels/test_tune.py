"""Launch options are measured near the table's, and adopted where they are faster and nothing is against them."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch

from tests.kernels.test_mlp_layers import DEVICE

pytest.importorskip("triton")
from bench import clock, tune
from fastscore_kernels import mlp_whole, table
from fastscore_kernels.mlp_forward import forward_kernel

HERE = table.architecture(torch.device(DEVICE))
ENTRIES = [entry for entry in table.entries() if HERE in entry["architectures"]]


@pytest.fixture
def own_table(tmp_path, monkeypatch):
    """A copy of the launch table that may be written to."""
    path = tmp_path / "launch.json"
    shutil.copy(table.PATH, path)
    monkeypatch.setattr(table, "PATH", path)
    yield path
    table._read.cache_clear()
    table.options.cache_clear()


@pytest.mark.parametrize("operation", sorted({entry["operation"] for entry in ENTRIES}))
def test_every_entry_is_asked_for_by_the_public_loss(operation, monkeypatch):
    """None is dead, and it is its kernel that is timed."""
    asked, options = [], table.options
    monkeypatch.setattr(mlp_whole, "_MANY", 1)
    monkeypatch.setattr(tune, "LEAST", {})
    monkeypatch.setattr(table, "options", lambda *of: asked.append(of) or options(*of))
    monkeypatch.setattr(type(forward_kernel), "__getitem__", lambda kernel, grid: lambda **given: None)
    before: list[dict] = []
    for entry in (one for one in ENTRIES if one["operation"] == operation):
        tune.work(entry, 4, DEVICE)()
        assert tuple(entry[key] for key in tune.KEYS[:4]) in {(of[0], *of[2:]) for of in asked}
        same = (one for one in before if one["precision"] == entry["precision"])
        assert not any(one["width"] >= entry["width"] and one["dim"] >= entry["dim"] for one in same)
        before.append(entry)


def test_options_are_one_place_away():
    entry = {"options": {"ROWS": 16, "BLOCK": 64, "num_warps": 8, "WIDTH": 64}}
    found = [{k: v for k, v in options.items() if v != entry["options"][k]} for options in tune.near(entry)]
    assert found == [{"ROWS": 32}, {"BLOCK": 32}, {"BLOCK": 128}, {"num_warps": 4}]


@pytest.mark.skipif("EMULATE" in os.environ, reason="the emulator is in this process only")
def test_an_entry_is_timed_and_what_is_wrong_or_fails_is_refused(tmp_path, monkeypatch):
    """In processes of their own; what was measured is gone on from."""
    monkeypatch.setenv("FASTSCORE_BACKEND", "triton")
    monkeypatch.setattr(tune, "PROCESSES", 1)
    monkeypatch.setattr(tune, "FEW", 4)
    monkeypatch.setattr(tune, "ROWS", 4)
    monkeypatch.setattr(clock, "ROUNDS", (2, 2))
    entry = next(one for one in ENTRIES if one["operation"] == "mlp_forward" and one["width"] == 64)
    monkeypatch.setattr(table, "entries", lambda: [entry])
    monkeypatch.setattr(tune, "near", lambda entry: [{**entry["options"], "ROWS": rows} for rows in (32, 24)])
    out = tmp_path / "made" / "tune.json"
    tune.measure("mlp_", 1e9, out, DEVICE)
    (found,) = json.loads(out.read_text())["entries"]
    assert [row["options"]["ROWS"] for row in found["timed"]] == [32]
    assert found["timed"][0]["ratio"] > 0
    ((refused, why),) = found["refused"].items()
    assert json.loads(refused)["ROWS"] == 24, why
    monkeypatch.setattr(tune, "timed", None)
    tune.measure("mlp_", 1e9, out, DEVICE)
    assert len(json.loads(out.read_text())["entries"]) == 1


def test_where_all_are_refused_nothing_is_timed():
    assert tune.timed(ENTRIES[0], [], DEVICE, 4) == []


def test_a_wrong_result_is_refused(monkeypatch):
    entry = dict(ENTRIES[0])
    calls = iter((torch.ones(4), 1.1 * torch.ones(4)))
    monkeypatch.setattr(tune, "work", lambda *_: lambda: {"loss": next(calls)})
    assert (
        tune.refusal(entry, entry["options"], DEVICE, 4)
        == "WrongError: loss is off by 1.0e-01 of its norm, allowed 1e-02"
    )


def test_the_fastest_that_the_audit_takes_is_adopted(own_table, monkeypatch):
    """For the architecture that it was measured on; the others keep what they have."""
    entry = next(one for one in ENTRIES if len(one["architectures"]) > 1)
    slower, spilling, better, unsure = ({**entry["options"], "num_stages": n} for n in (4, 5, 6, 7))
    ratios = [(slower, 0.98, 1.0), (better, 0.8, 0.9), (spilling, 0.5, 0.6), (unsure, 0.4, 1.1)]
    rows = [{"options": options, "ratio": ratio, "spread": [ratio, high]} for options, ratio, high in ratios]
    measured = {**{key: entry[key] for key in tune.KEYS}, "timed": rows, "refused": {}}
    monkeypatch.setattr(tune, "faults", lambda entry, _: ["spills"] if entry["options"] == spilling else [])
    whole, at = table.entries(), table.entries().index(entry)
    tune.adopt({"architecture": "sm_90", "machine": {"device": "H"}, "entries": [measured]})
    table._read.cache_clear()
    others = [name for name in entry["architectures"] if name != "sm_90"]
    made = [{**entry, "architectures": ["sm_90"], "options": better}, {**entry, "architectures": others}]
    assert table.entries() == [*whole[:at], *made, *whole[at + 1 :]]
    assert table.provenance()["measured"]["sm_90"]["device"] == "H"
    assert own_table.read_text().count("\n") == len(whole) + 6


def test_the_table_is_written_as_it_is_when_nothing_is_faster(own_table):
    before = own_table.read_text()
    tune.adopt({"architecture": "sm_90", "machine": {}, "entries": []})
    provenance, entries = before.splitlines()[1], before.splitlines()[2:]
    assert own_table.read_text().splitlines()[2:] == entries
    assert own_table.read_text().splitlines()[1] != provenance
