"""Measure, record in bench/results/science.json, and draw bench/figures from that file and from nothing else.

python -m bench.science                 # all of it: minutes
python -m bench.science descent         # one part; the others stay as they are
python -m bench.science figures         # draw only, with the seconds of a step that bench/results/cpu.json has now
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import clock
from bench.science import descent, figures, gradients, ula

RESULTS = Path(__file__).parents[1] / "results" / "science.json"
PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "noise": gradients.noise,
    "small_sigma": gradients.small_sigma,
    "ula": ula.bias,
    "descent": descent.curves,
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.science", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("part", nargs="*", help=", ".join([*PARTS, "figures"]) + "; all without one")
    chosen = parser.parse_args(argv).part or [*PARTS]
    if unknown := set(chosen) - {*PARTS, "figures"}:
        parser.error(f"unknown part {', '.join(sorted(unknown))}")
    for name in chosen:
        if name in PARTS:
            _write(_recorded() | {name: {"machine": clock.machine(), "found": PARTS[name]()}})
    results = costed(_recorded())
    _write(results)
    figures.draw(results)
    return 0


def costed(results: dict[str, Any]) -> dict[str, Any]:
    """The same with the seconds of a step that cpu.json has now."""
    parts = {"noise": gradients, "descent": descent}
    return {
        name: part | ({"found": parts[name].costed(part["found"])} if name in parts else {})
        for name, part in results.items()
    }


def _recorded() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return found


def _write(results: dict[str, Any]) -> None:
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
