"""One clock for every benchmark: contenders take turns, ratios are taken within a round, medians and spread are told.

On a CPU, a turn is two runs of which the second is timed: it finds the pages, the caches and the threads as its own
first run left them, not as another contender did. A page that nobody has touched for seconds may have gone back to the
host of a virtual machine, which the first run then pays for. On a GPU, a turn is several runs between two events each,
the second-level cache overwritten and waited for before each, so that launching counts, and their median.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
ROUNDS = (5, 25)  # at the least, at the most
LONG, SHORT = 1.0, 0.02  # seconds: longer runs are timed at once; shorter ones are repeated
_LARGEST = 32 << 20  # bytes: what glibc takes from its heap at the most
_FLUSH = 256 << 20  # bytes: several times the second-level cache of any GPU


def settle() -> None:
    """Bring the heap into the state that it has in any process which has been at work for a while.

    glibc maps fresh pages for an array until one of its size has been freed once, and gives the top of its heap back
    while that is so: whether a step of 10^6 elements touched new pages depended on what had run before. After the
    largest array that it would ever serve from the heap it touches none.
    """
    torch.empty(_LARGEST - (64 << 10), dtype=torch.uint8)


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
    first = time.perf_counter() - start
    if first > LONG / 4:
        return first
    n = max(3, min(10, int(LONG / 4 / first)))
    flush = torch.empty(_FLUSH, dtype=torch.int8, device="cuda" if cuda is torch.cuda else "cpu")
    events = [(cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)) for _ in range(n)]
    for begin, end in events:
        flush.zero_()
        cuda.synchronize()  # or the calls would be launched while the cache is overwritten, for nothing
        begin.record()
        call()
        end.record()
    cuda.synchronize()
    return 1e-3 * statistics.median(begin.elapsed_time(end) for begin, end in events)


def kept(name: str, error: Exception) -> None:
    """Nobody is dropped."""
    raise error


def race(
    turns: Mapping[str, Callable[[], float]],
    base: str,
    seconds: float,
    drop: Callable[[str, Exception], None] = kept,
) -> dict[str, list[float]]:
    """Seconds of every turn of every contender, those of the first rounds first.

    Each round begins with the next contender. Everybody has the same share of `seconds`: whoever has used it up leaves
    after the least number of rounds, so that a slow contender does not cost a fast one its rounds; `base` is in all.
    Whoever raises an error, but for `base`, is out: `drop` is told, and takes the turn away.
    """
    times: dict[str, list[float]] = {name: [] for name in turns}
    used = dict.fromkeys(turns, 0.0)
    names, share = list(turns), seconds / len(turns)
    for done in range(ROUNDS[1]):
        racing = {name for name in turns if done < ROUNDS[0] or used[name] * (1 + 1 / len(times[name])) <= share}
        if not racing - {base}:
            break
        first = done % len(names)
        for name in names[first:] + names[:first]:
            if name in racing or name == base:
                begun = time.perf_counter()
                try:
                    times[name].append(turns[name]())
                except Exception as error:
                    if name == base:
                        raise
                    del times[name]
                    drop(name, error)
                used[name] += time.perf_counter() - begun
    return times


def compare(times: Mapping[str, list[float]], base: str) -> dict[str, dict[str, Any]]:
    """For every contender: median seconds, the median ratio to `base` in the same round, and the ratio's quartiles."""
    rows = {}
    for name, measured in times.items():
        ratios = [mine / theirs for mine, theirs in zip(measured, times[base], strict=False)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else 3 * ratios
        rows[name] = {
            "seconds": rounded(statistics.median(measured)),
            "ratio": rounded(middle),
            "spread": [rounded(low), rounded(high)],
            "rounds": len(measured),
        }
    return rows


class Others:
    """How much of the machine went to others while we measured: the host, and processes that are not ours.

    They do not disturb all contenders alike: threads that wait for each other in a loop lose a hundred times more than
    threads that sleep. What was measured beside them is not worth telling.
    """

    def __init__(self, processes: Sequence[int]) -> None:
        self.processes, self.begun = processes, time.perf_counter()
        self.before = self._seconds()

    def share(self) -> float | None:
        """Of all processors' time since the beginning, None where the system does not tell."""
        now = self._seconds()
        if now is None or self.before is None:
            return None
        whole = (time.perf_counter() - self.begun) * (os.cpu_count() or 1)
        return rounded(max(0.0, now - self.before) / whole)

    def _seconds(self) -> float | None:
        """Seconds of work of everybody (user, nice, system, interrupts, stolen), less ours."""
        try:
            fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
            ours = [Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split() for process in self.processes]
        except (OSError, IndexError, ValueError):
            return None
        ticks = sum(fields[:3]) + sum(fields[5:]) - sum(int(one[11]) + int(one[12]) for one in ours)
        return ticks / os.sysconf("SC_CLK_TCK")


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
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.now(tz=timezone.utc).date().isoformat(),
        "commit": _commit(),
    }
    return found | (_of_cuda() if device == "cuda" else {})


def _of_cuda() -> dict[str, Any]:
    """The versions that kernels on a GPU depend on, and in what matrices are multiplied."""
    found = {"cuda": torch.version.cuda, "products": torch.get_float32_matmul_precision()}
    with contextlib.suppress(ImportError):
        found["triton"] = importlib.import_module("triton").__version__
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        found["driver"] = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    return found


def _commit() -> str:
    """The commit that was measured, with a plus sign where the tree has changes."""
    try:
        command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
