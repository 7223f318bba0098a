"""Measures fastscore against everything else on this machine, prints tables and records them.

python -m bench                          the whole comparison on this CPU, some 10 minutes
python -m bench --device cuda            the same on a GPU, some 4 minutes
python -m bench --only divergence        one family, or the cases whose names contain this

The file that is written holds this run alone; with --resume, also what it held before.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bench import clock, compare, memory, rivals
from bench.registry import Case, Family, families, quoted

MINUTES = {"cpu": 9.5, "cuda": 3.5}
PATIENCE = {"cpu": math.inf, "cuda": 15.0}
"""Seconds after which a case builds no more rivals before its race, compilation included."""
RESERVE = {"cpu": 0.0, "cuda": 30.0}
"""Seconds at the end in which no case is begun, so that memory, too, is measured within the budget."""
HANGING = 90.0
"""Seconds, beside those of its race, after which a case on a GPU is taken to hang."""


def main(argv: list[str] | None = None) -> int:
    """Run and print; what there is so far is written after every case, so that a stopped run is not lost."""
    options = _parser().parse_args(argv)
    if complaint := refused(options):
        print(f"python -m bench: {complaint}", file=sys.stderr)
        return 2
    if options.device == "cuda" and not options.resume:
        return in_children(options)
    return measured(options)


def refused(options: argparse.Namespace) -> str:
    """What is wrong with what was asked for, found before any file is touched; nothing if it can be done."""
    if options.device == "cuda" and not torch.cuda.is_available():
        return "--device cuda: torch sees no CUDA device"
    chosen = {case.name for _, case in selected(options.device, options.only, options.quick)}
    chosen |= {"memory"} if with_memory(options.only) else set()
    if not chosen:
        return f"--only {options.only}: no family and no case has this in its name"
    if options.resume or not (options.only or options.quick):
        return ""
    path = options.out or default_path(clock.machine(options.device), options.device)
    try:
        found = begun_with(path, {})
        held = [case["name"] for case in found["cases"]] + ["memory"] * bool(found["memory"])
    except (LookupError, TypeError, ValueError):
        return f"{path} is no record of a benchmark: give another --out"
    if lost := [name for name in held if name not in chosen]:
        many = f"{lost[0]} and {len(lost) - 1} more" if lost[1:] else lost[0]
        return f"{path} has what this run would drop, {many}: give --resume, which keeps it, or another --out"
    return ""


def with_memory(only: str) -> bool:
    """Whether memory is measured, too."""
    return only in "memory"


def in_children(options: argparse.Namespace) -> int:
    """Measure in a process, and go on in another one where it broke: an illegal address leaves a process no GPU."""
    begun = time.monotonic()
    path = options.out or default_path(clock.machine("cuda"), "cuda")
    path.unlink(missing_ok=True)
    whole = options.budget or 60 * MINUTES["cuda"]
    arguments = ["--device", "cuda", "--only", options.only, *(["--quick"] if options.quick else [])]
    command = [sys.executable, "-m", "bench", *arguments, "--out", str(path.resolve()), "--resume", "--budget"]
    while True:
        left = max(1e-9, whole - time.monotonic() + begun)
        status = subprocess.run([*command, str(left)], cwd=clock.ROOT, check=False).returncode
        found = json.loads(path.read_text()) if path.exists() else {}
        if (broken := found.pop("running", None)) is None:
            return status
        found["failed"].setdefault(broken, f"its process ended with status {status}")
        path.write_text(json.dumps(found, indent=1) + "\n")
        print(f"\n{broken}: {found['failed'][broken]}; going on in another process", flush=True)


def measured(options: argparse.Namespace) -> int:
    """All of it in this process, or what the file lacks that is to be gone on from."""
    device = options.device
    clock.settle()
    worker = rivals.Rivals(patience=min(rivals.PATIENCE, 2 * PATIENCE[device]))
    begun, machine = time.monotonic(), clock.machine(device)
    path = options.out or default_path(machine, device)
    found = begun_with(path if options.resume else None, machine)
    machine = found["machine"]
    earlier = machine.get("minutes", 0.0)
    told = {case["name"] for case in found["cases"]} | {*found["failed"]}
    cases = [(family, case) for family, case in selected(device, options.only, options.quick) if case.name not in told]
    wanted = None if options.quick else sum(case.seconds for _, case in cases)
    budget = compare.Budget(options.budget or 60 * MINUTES[device], wanted)

    def write(running: str = "") -> None:
        minutes = round(earlier + (time.monotonic() - begun) / 60, 1)
        machine.update(rivals=machine.get("rivals", {}) | worker.packages, minutes=minutes)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found | ({"running": running} if running else {}), indent=1) + "\n")

    def watched(name: str, seconds: float) -> None:
        """Write down what is run now, and end this process if the GPU hangs in it."""
        if device == "cuda":
            write(name)
            faulthandler.dump_traceback_later(seconds + HANGING, exit=True)

    print(json.dumps(machine))
    for family, case in cases:
        if budget.left < RESERVE[device]:
            found["not_reached"].append(case.name)
            continue
        watched(case.name, budget.race(case))
        try:
            result = compare.compare(family, case, device, worker, budget.race(case), PATIENCE[device])
            found["cases"].append(result)
            print("\n".join(compare.table(result)), flush=True)
        except Exception as error:  # one case must not take the others with it
            found["failed"][case.name] = quoted(error)
            print(f"\n{case.name}: {quoted(error)}", flush=True)
        if device == "cuda" and broken():
            write(case.name)
            worker.close()
            return 1
        write()
    worker.close()
    if with_memory(options.only) and "memory" not in found["failed"]:
        watched("memory", 0.0)
        if device == "cuda" and budget.left < 0:
            found["not_reached"].append("memory")
        else:
            found["memory"] = list(memory.measure(device, options.quick))
            print("\n".join(memory.table(found["memory"])))
    faulthandler.cancel_dump_traceback_later()
    write()
    left = f"; no time for {'; '.join(found['not_reached'])}" if found["not_reached"] else ""
    print(f"\n{len(found['cases'])} cases in {machine['minutes']} minutes, recorded in {path}{left}")
    return int(bool(found["failed"]))


def begun_with(path: Path | None, machine: dict[str, Any]) -> dict[str, Any]:
    """What is recorded so far: nothing, or what is in a file; a case that was running there is not."""
    earlier = json.loads(path.read_text()) if path is not None and path.exists() else {}
    found = {"machine": {}, "cases": [], "memory": [], "not_reached": [], "failed": {}} | earlier
    found.pop("running", None)
    return found | {"machine": found["machine"] | machine, "not_reached": []}


def broken() -> bool:
    """Whether this process has lost its GPU."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to measure")
    parser.add_argument("--only", default="", metavar="NAME", help="a family, or a part of cases' names")
    parser.add_argument("--quick", action="store_true", help="the first case of every family, as few rounds as can be")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="begin no case after so long")
    parser.add_argument("--resume", action="store_true", help="go on from what is in the file, in this process")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the JSON goes (default: out/bench/...)")
    return parser


def selected(device: str, only: str, quick: bool) -> Iterator[tuple[Family, Case]]:
    """Families and cases; those that the README shows before all others."""
    chosen = [
        (family, case)
        for family in families()
        for case in [c for c in family.cases(device) if only in family.name or only in c.name][: 1 if quick else None]
    ]
    yield from sorted(chosen, key=lambda pair: not pair[1].headline)


def default_path(machine: dict[str, Any], device: str) -> Path:
    """One file a machine and commit."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", f"{device} {machine['device']}").strip("-").lower()
    return clock.ROOT / "out" / "bench" / f"{name}-{machine['commit'].replace('+', '-changed')}.json"


if __name__ == "__main__":
    raise SystemExit(main())
