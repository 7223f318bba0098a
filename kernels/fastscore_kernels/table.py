"""Launch options by operation, GPU, precision and sizes: one table, `launch.json`, which says where it comes from.

What has no entry goes layer by layer or to PyTorch. No batch is too small for a kernel: see the table's provenance.
"""

import functools
import json
from pathlib import Path
from typing import Any

import torch

PATH = Path(__file__).with_name("launch.json")


@functools.cache
def options(operation: str, device: torch.device, precision: str, width: int, dim: int) -> dict[str, int] | None:
    """The options of the first entry that fits: its architecture, its precision, sizes no larger than its own."""
    here = architecture(device)
    for entry in entries():
        if (
            entry["operation"] == operation
            and here in entry["architectures"]
            and entry["precision"] == precision
            and width <= entry["width"]
            and dim <= entry["dim"]
        ):
            return dict(entry["options"])
    return None


def entries() -> list[dict[str, Any]]:
    """The whole table."""
    return list(_read()["entries"])


def provenance() -> dict[str, Any]:
    """Where the options come from: with which versions, and whether they were measured."""
    return dict(_read()["provenance"])


@functools.cache
def _read() -> dict[str, Any]:
    return dict(json.loads(PATH.read_text()))


def architecture(device: torch.device) -> str:
    """Such as "sm_90" or "gfx942"; the interpreter, on a CPU, takes what an sm_90 takes."""
    if device.type != "cuda":
        return "sm_90"
    if torch.version.hip is not None:
        return str(torch.cuda.get_device_properties(device).gcnArchName).split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"
