"""One clock for every benchmark: contenders take turns, medians are compared, results are recorded with the machine.

FASTSCORE_BENCH_RECORD names the JSON file that `record` adds to; without it nothing is written.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

Contender = Callable[[], object]


def race(contenders: Mapping[str, Contender], benchmark: Any, *, rounds: int) -> dict[str, list[float]]:
    """Seconds of every round of every contender; they take turns, so a busy machine disturbs all alike.

    A turn is two runs of which the second is timed: nobody pays for the heap, the caches or the spinning OpenMP threads
    that another left behind.

    Args:
        contenders: what is timed, by name.
        benchmark: the fixture of pytest-benchmark, which runs the rounds after two to warm up.
        rounds: how many rounds are timed.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}

    def everything() -> None:
        for name, contender in contenders.items():
            contender()
            start = time.perf_counter()
            contender()
            times[name].append(time.perf_counter() - start)

    benchmark.pedantic(everything, rounds=rounds, warmup_rounds=1)
    return {name: measured[-rounds:] for name, measured in times.items()}


def compare(
    label: str, times: Mapping[str, list[float]], *, base: str, work: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Each contender's median time relative to that of `base`, per unit of `work` (1 each by default); recorded."""
    medians = {name: statistics.median(measured) / (work or {}).get(name, 1.0) for name, measured in times.items()}
    ratios = {name: median / medians[base] for name, median in medians.items()}
    print(f"\n{label}: {base} {1e3 * medians[base]:.3g} ms; " + ", ".join(f"{n} {r:.3g}" for n, r in ratios.items()))
    _record(label, base, medians[base], ratios)
    return ratios


def _record(label: str, base: str, seconds: float, ratios: Mapping[str, float]) -> None:
    if not (named := os.environ.get("FASTSCORE_BENCH_RECORD")):
        return
    path = Path(named)
    known = json.loads(path.read_text()) if path.exists() else {"machine": machine(), "cases": {}}
    rounded = {name: float(f"{ratio:.3g}") for name, ratio in ratios.items()}
    known["cases"][label] = {"base": base, "base_ms": float(f"{1e3 * seconds:.3g}"), "ratios": rounded}
    path.write_text(json.dumps(known, indent=1) + "\n")


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {
        "processor": named,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat(),
    }
