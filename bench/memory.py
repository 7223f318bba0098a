"""Peak memory of a training step, against the batch and against D.

On a CPU a step runs in a process of its own: the peak is Linux's VmHWM, which starts anew with a program, less what the
process held after a small step. On a GPU it is the allocator's peak, less what was allocated before.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bench.clock import ROOT
from bench.families import training
from bench.registry import Case

PROVIDERS = ("denoising, eager", "fastscore, exact", "loop of autograd.grad")
DIM, BATCH = 8, 4096
STATUS = Path("/proc/self/status")


def points(device: str, quick: bool) -> list[tuple[int, int]]:
    """Batches at one D, then D at one batch."""
    if quick:
        return [(BATCH, DIM)]
    batches = (2**14, 2**17, 2**20) if device == "cuda" else (2**10, 2**13, 2**16)
    dims, batch = (2, 16, 64), 2**14 if device == "cuda" else BATCH
    return [(b, DIM) for b in batches] + [(batch, d) for d in dims]


def measure(device: str, quick: bool = False) -> Iterator[dict[str, Any]]:
    """MiB that a step of every provider peaks above what was there, at every point; H = 128, L = 2."""
    for batch, dim in points(device, quick):
        found = {}
        for name in PROVIDERS:
            if name == "loop of autograd.grad" and batch * dim > _most(device):
                continue
            with contextlib.suppress(RuntimeError, subprocess.CalledProcessError):  # there is no room for it
                peak = in_a_child(batch, dim, name) if device == "cpu" else on_gpu(batch, dim, name)
                found[name] = float(f"{peak:.3g}")
        yield {"B": batch, "D": dim, "L": 2, "H": 128, "mebibytes": found}


def _most(device: str) -> int:
    """B x D that naive traces are tried at: the largest takes some gigabytes on a CPU, tens of them on a GPU."""
    return 2**22 if device == "cuda" else 2**18


def _case(batch: int, dim: int) -> Case:
    return training.case_of(batch, dim, 2, 128, training.ALL, False)


def on_gpu(batch: int, dim: int, name: str) -> float:
    """MiB by the allocator."""
    case = _case(batch, dim)
    arrays = training.inputs(case, "cuda")
    build = training.FAMILY.providers[name].build
    assert build is not None
    build(_case(256, dim), {**arrays, "x": arrays["x"][:256]})()
    call = build(case, arrays)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def in_a_child(batch: int, dim: int, name: str) -> float:
    """MiB by the kernel's count of a new process; not a number where there is no such count."""
    if not STATUS.exists():
        return float("nan")
    command = [sys.executable, "-m", "bench.memory", json.dumps([batch, dim, name])]
    return float(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def _child(batch: int, dim: int, name: str) -> float:
    case = _case(batch, dim)
    arrays = training.inputs(case, "cpu")
    build = training.FAMILY.providers[name].build
    assert build is not None
    small = {**arrays, "x": arrays["x"][:64]}
    build(_case(64, dim), small)()
    call = build(case, arrays)
    before = _kibibytes("VmRSS")
    call()
    return (_kibibytes("VmHWM") - before) / 1024


def _kibibytes(field: str) -> int:
    found = re.search(field + r":\s+(\d+)", STATUS.read_text())
    assert found
    return int(found[1])


def table(found: list[dict[str, Any]]) -> Iterator[str]:
    """Lines for a terminal."""
    yield "\nPeak memory of a training step above what was there, MiB"
    for point in found:
        figures = ", ".join(f"{name} {value:.3g}" for name, value in point["mebibytes"].items())
        yield f"  B={point['B']} D={point['D']}: {figures}"


if __name__ == "__main__":
    print(_child(*json.loads(sys.argv[1])))
