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

MINUTES = {"cpu": 10.0, "cuda": 4.0}


def main(argv: list[str] | None = None) -> int:
    """Run, print, write."""
    options = _parser().parse_args(argv)
    device = options.device
    budget = compare.Budget(options.budget or 60 * MINUTES[device], options.quick)
    rivals, begun = Rivals(), time.monotonic()
    machine = clock.machine(device)
    results: list[dict[str, Any]] = []
    left: list[str] = []
    failed: dict[str, str] = {}
    print(json.dumps(machine))
    for family, case in selected(device, options.only, options.quick):
        if budget.spent:
            left.append(case.name)
            continue
        try:
            results.append(compare.compare(family, case, device, rivals, budget.race(case)))
        except Exception as error:  # one case must not take the others with it
            failed[case.name] = quoted(error)
            print(f"\n{case.name}: {failed[case.name]}", flush=True)
            continue
        print("\n".join(compare.table(results[-1])), flush=True)
    peaks: list[dict[str, Any]] = []
    if (not options.only or options.only in "memory") and not budget.spent:
        peaks = list(memory.measure(device, options.quick))
        print("\n".join(memory.table(peaks)))
    machine |= {"rivals": rivals.packages, "minutes": round((time.monotonic() - begun) / 60, 1)}
    rivals.close()
    path = options.out or default_path(machine, device)
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {"machine": machine, "cases": results, "memory": peaks, "not_reached": left, "failed": failed}
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(
        f"\n{len(results)} cases in {machine['minutes']} minutes, recorded in {path}"
        + (f"; no time for {', '.join(left)}" if left else "")
    )
    return int(bool(failed))


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
