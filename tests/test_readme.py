"""The README's snippets run, its commands exist, and its table names everything there is."""

from __future__ import annotations

import re
from pathlib import Path

import fastscore
from bench import report

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
_IMPLEMENTATION = {
    "diagnostics",
    "losses",
    "networks",
    "ops",
    "reference",
    "reader",
    "cli",
    "demo",
}  # submodules, seen once imported


def test_snippets_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # they write files
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(blocks) >= 3
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert names["samples"].shape == (1000, 2)


def test_commands_are_targets_of_make():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)) | {"test-full"}
    named = set(re.findall(r"\bmake ([a-z-]+)", README))
    assert named
    assert named <= targets


def test_the_table_names_every_public_name():
    table = README.split("## What there is")[1].split("## Guarantees")[0]
    named = set(re.findall(r"`([A-Za-z_]+)`", table))
    public = {name for name in vars(fastscore) if not name.startswith("_")} - _IMPLEMENTATION
    assert public <= named, public - named


def test_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)#]+)", README):
        assert (ROOT / link).exists(), link


def test_the_figures_are_those_recorded():
    assert report.main(["--check"]) == 0
