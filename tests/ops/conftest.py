"""What the tests of the operations share."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastscore.ops import _cpu_build


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A process that knows of no library, and an empty home."""
    unknown = {"library": None, "looked": False, "built": False, "work": 0}
    monkeypatch.setattr(_cpu_build, "_Found", type("_Found", (_cpu_build._Found,), unknown))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path
