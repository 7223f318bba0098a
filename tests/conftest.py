"""Shared by all tests: fixed seeds, and which lane a test belongs to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
EMULATING = bool(os.environ.get("EMULATE"))
LANES = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Kernel tests need a GPU, Triton's interpreter or the emulator; the audit the compiler, which the first hides.

    With SHARD=k/N in the environment every N-th test runs, from the k-th on: N processes share the work so without a
    plugin.
    """
    first, step = map(int, os.environ.get("SHARD", "0/1").split("/"))
    items[:] = items[first::step]
    for item in items:
        if LANES / "kernels" in item.path.parents and not (INTERPRETING or EMULATING or torch.cuda.is_available()):
            item.add_marker(pytest.mark.skip(reason="needs a GPU, or TRITON_INTERPRET=1, or EMULATE=90"))
        if LANES / "audit" in item.path.parents and INTERPRETING:
            item.add_marker(pytest.mark.skip(reason="Triton's compiler cannot share a process with its interpreter"))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
