"""One clock for every benchmark: contenders take turns, ratios are taken within a round, medians and spread are told.

On a CPU, a turn is two runs of which the second is timed: nobody pays for the heap, the caches or the spinning threads
that another left behind. On a GPU, a turn is several runs between two events each, the second-level cache overwritten
before each, and its median.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
ROUNDS = (3, 15)
LONG, SHORT = 0.2, 0.002  # seconds: longer runs need no warming up; shorter ones are repeated
_FLUSH = 256 << 20  # bytes: several times the second-level cache of any GPU


def turn(call: Callable[[], object], device: str = "cpu") -> float:
    """Seconds of one call."""
    return turn_on_gpu(call, torch.cuda) if device == "cuda" else turn_on_cpu(call)


def turn_on_cpu(call: Callable[[], object]) -> float:
    """Seconds of one call, the second of two, or one of many where it is short."""
    start = time.perf_counter()
    call()
    first = time.perf_counter() - start
    if first > LONG:
        return first
    n = max(1, min(1000, round(SHORT / first)))
    start = time.perf_counter()
    for _ in range(n):
        call()
    return (time.perf_counter() - start) / n


def turn_on_gpu(call: Callable[[], object], cuda: Any) -> float:
    """Seconds of one call, the median of several between events, after a flush of the cache each."""
    start = time.perf_counter()
    call()
    cuda.synchronize()
    n = 3 if time.perf_counter() - start > LONG / 4 else 10
    flush = torch.empty(_FLUSH, dtype=torch.int8, device="cuda" if cuda is torch.cuda else "cpu")
    events = [(cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)) for _ in range(n)]
    for begin, end in events:
        flush.zero_()
        begin.record()
        call()
        end.record()
    cuda.synchronize()
    return 1e-3 * statistics.median(begin.elapsed_time(end) for begin, end in events)


def race(turns: Mapping[str, Callable[[], float]], seconds: float) -> dict[str, list[float]]:
    """Seconds of every turn of every contender, for about so long; each round begins with the next contender."""
    times: dict[str, list[float]] = {name: [] for name in turns}
    names, begun = list(turns), time.perf_counter()
    for done in range(ROUNDS[1]):
        for name in names[done % len(names) :] + names[: done % len(names)]:
            times[name].append(turns[name]())
        if done + 1 >= ROUNDS[0] and time.perf_counter() - begun > seconds * (done + 1) / (done + 2):
            break
    return times


def compare(times: Mapping[str, list[float]], base: str) -> dict[str, dict[str, Any]]:
    """For every contender: median seconds, the median ratio to `base` in the same round, and the ratio's quartiles."""
    rows = {}
    for name, measured in times.items():
        ratios = sorted(mine / theirs for mine, theirs in zip(measured, times[base], strict=True))
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else 3 * ratios
        rows[name] = {
            "seconds": rounded(statistics.median(measured)),
            "ratio": rounded(middle),
            "spread": [rounded(low), rounded(high)],
            "rounds": len(measured),
        }
    return rows


def rounded(value: float) -> float:
    """To four digits: more would be noise."""
    return float(f"{value:.4g}")


def machine(device: str = "cpu") -> dict[str, Any]:
    """What the figures were measured on, and with."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    found = {
        "device": torch.cuda.get_device_name() if device == "cuda" else named,
        "processor": named,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.now(tz=timezone.utc).date().isoformat(),
        "commit": _commit(),
    }
    return found | ({"cuda": torch.version.cuda} if device == "cuda" else {})


def _commit() -> str:
    """The commit that was measured, with a plus sign where the tree has changes."""
    try:
        command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
