"""Shared by all tests: fixed seeds, and which lane a test belongs to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
LANES = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Kernel tests need a GPU or Triton's interpreter; the audit needs the compiler, which the interpreter hides."""
    for item in items:
        if LANES / "kernels" in item.path.parents and not (INTERPRETING or torch.cuda.is_available()):
            item.add_marker(pytest.mark.skip(reason="needs a GPU, or TRITON_INTERPRET=1"))
        if LANES / "audit" in item.path.parents and INTERPRETING:
            item.add_marker(pytest.mark.skip(reason="Triton's compiler cannot share a process with its interpreter"))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
