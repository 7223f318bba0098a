"""Measures fastscore against everything else on this machine, prints tables and records them.

python -m bench                          the whole comparison on this CPU, some 10 minutes
python -m bench --device cuda            the same on a GPU, some 5 minutes
python -m bench --only divergence        one family, or the cases whose names contain this
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import clock, compare, memory
from bench.registry import Case, Family, families, quoted
from bench.rivals import Rivals

MINUTES = {"cpu": 9.5, "cuda": 3.5}


def main(argv: list[str] | None = None) -> int:
    """Run and print; what there is so far is written after every case, so that a stopped run is not lost."""
    options = _parser().parse_args(argv)
    device = options.device
    budget = compare.Budget(options.budget or 60 * MINUTES[device], options.quick)
    clock.settle()
    rivals, begun, machine = Rivals(), time.monotonic(), clock.machine(device)
    found: dict[str, Any] = {"machine": machine, "cases": [], "memory": [], "not_reached": [], "failed": {}}
    path = options.out or default_path(machine, device)

    def write() -> None:
        machine.update(rivals=rivals.packages, minutes=round((time.monotonic() - begun) / 60, 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")

    print(json.dumps(machine))
    for family, case in selected(device, options.only, options.quick):
        if budget.spent:
            found["not_reached"].append(case.name)
            continue
        try:
            found["cases"].append(compare.compare(family, case, device, rivals, budget.race(case)))
            print("\n".join(compare.table(found["cases"][-1])), flush=True)
        except Exception as error:  # one case must not take the others with it
            found["failed"][case.name] = quoted(error)
            print(f"\n{case.name}: {quoted(error)}", flush=True)
        write()
    if not options.only or options.only in "memory":
        found["memory"] = list(memory.measure(device, options.quick))
        print("\n".join(memory.table(found["memory"])))
    rivals.close()
    write()
    left = f"; no time for {', '.join(found['not_reached'])}" if found["not_reached"] else ""
    print(f"\n{len(found['cases'])} cases in {machine['minutes']} minutes, recorded in {path}{left}")
    return int(bool(found["failed"]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to measure")
    parser.add_argument("--only", default="", metavar="NAME", help="a family, or a part of cases' names")
    parser.add_argument("--quick", action="store_true", help="the first case of every family, as few rounds as can be")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="begin no case after so long")
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
