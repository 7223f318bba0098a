"""The tracked files name neither the machine they were written on nor where its packages came from."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# A path counts when nothing that could make it relative or part of an address stands before it.
MACHINE_PATH = re.compile(r"(?<![\w.~$)}>*/-])/(?:home|root|work|tmp|mnt|Users)/[\w.]")
REGISTRY = re.compile(
    r"(?:py[p]i|python[h]osted|ana[c]onda|npm[j]s)\.(?:org|com)|download\.py[t]orch\.org|find[-]links|index[-]url"
)


def tracked_texts() -> list[tuple[str, str]]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    paths = [ROOT / name for name in listing.split("\0") if name]
    return [(str(p.relative_to(ROOT)), p.read_text("utf-8", errors="replace")) for p in paths if p.is_file()]


def offences(pattern: re.Pattern[str], texts: list[tuple[str, str]]) -> list[str]:
    lines = [(name, n, line) for name, text in texts for n, line in enumerate(text.splitlines(), 1)]
    return [f"{name}:{n}: {line.strip()}" for name, n, line in lines if pattern.search(line)]


def test_no_path_of_a_machine() -> None:
    assert offences(MACHINE_PATH, tracked_texts()) == []


def test_no_package_registry() -> None:
    assert offences(REGISTRY, tracked_texts()) == []


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("see /" + "home/someone/notes", True),
        ('open("/' + 'tmp/x.pt")', True),
        ("out=/" + "work/out", True),
        ("https://example.org/" + "work/page", False),
        ("$HOME/" + "tmp/x", False),
        ("and/or, work/home", False),
    ],
)
def test_the_path_pattern_finds_what_it_should(line: str, found: bool) -> None:
    assert bool(offences(MACHINE_PATH, [("f", line)])) is found
