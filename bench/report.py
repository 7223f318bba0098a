"""The tables of the README, drawn from the committed results and from nothing else.

python -m bench.report          write them into README.md
python -m bench.report --check  exit with status 1 if the README says something else
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "cpu.json"
BEGIN, END = "<!-- figures: python -m bench.report -->", "<!-- end of figures -->"
TRAINING = {
    "exact": "exact, fastscore",
    "hutchinson": "Hutchinson, fastscore",
    "sliced double backward": "Hutchinson, double backward",
    "autograd loop": "exact, loop of `autograd.grad`",
    "vmap(jacrev)": "exact, `vmap(jacrev)`",
    "compiled vmap(jacrev)": "the same, `torch.compile`",
}


def tables(results: dict[str, Any]) -> str:
    """The two tables, and the machine they were measured on."""
    machine, cases = results["machine"], results["cases"]
    training = {label: case for label, case in cases.items() if case["base"] == "denoising"}
    sampling = {label: case for label, case in cases.items() if case["base"] == "naive eager"}
    lines = [
        "**A training step**, time relative to an eager denoising step of the same network (lower is better; 1 is the",
        "price of denoising score matching):",
        "",
        "| | " + " | ".join(TRAINING.values()) + " |",
        "|---" * (len(TRAINING) + 1) + "|",
    ]
    for label, case in training.items():
        cells = [f"{case['ratios'][name]:.2g}" if name in case["ratios"] else "" for name in TRAINING]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "**Sampling**, how many times as fast as naive eager PyTorch (higher is better):",
        "",
        "| | fastscore | torch.compile |",
        "|---|---|---|",
    ]
    for label, case in sampling.items():
        cells = [
            f"{1 / case['ratios'][name]:.2g}" if name in case["ratios"] else ""
            for name in ("fastscore", "torch.compile")
        ]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"*{machine['processor']}, {machine['threads']} threads, PyTorch {machine['torch']}, {machine['date']}; "
        "B rows, D dimensions, L hidden layers of 128. GPU: not measured yet.*",
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Write the tables into the README, or check that they are there."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit with status 1 if something would")
    check = parser.parse_args(argv).check
    readme = ROOT / "README.md"
    text = readme.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    made = f"{before}{BEGIN}\n{tables(json.loads(RESULTS.read_text()))}\n{END}{after}"
    if check:
        return int(made != text)
    readme.write_text(made)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
