"""Runs the demonstrations one after the other, and writes down what came out."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import sklearn
import torch

import fastscore
from fastscore.demo import digits, mixture, pictures


def run(names: Sequence[str], *, seed: int, out: Path, fast: bool) -> dict[str, Any]:
    """Runs the demonstrations named ("digits", "mixture"), prints a summary and writes pictures and demo.json.

    Args:
        names: Which to run.
        seed: Of everything that is random; torch's own generator is left as it was found.
        out: Folder, made where it is missing.
        fast: A few seconds of training instead of a minute.

    Returns:
        What was written to demo.json.
    """
    out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    reports: dict[str, Any] = {}
    drawn: list[str] = []
    with torch.random.fork_rng(devices=[]):
        if "digits" in names:
            torch.manual_seed(seed)
            reports["digits"], of_digits = digits.run(seed, digits.Settings.fast() if fast else digits.Settings())
            drawn += pictures.draw_digits(of_digits, out)
            print(digits.summary(reports["digits"]))
        if "mixture" in names:
            torch.manual_seed(seed)
            reports["mixture"], plane = mixture.run(seed, mixture.Settings.fast() if fast else mixture.Settings())
            drawn += pictures.draw_mixture(plane, out)
            print(mixture.summary(reports["mixture"]))
        if len(reports) == 2:
            drawn += pictures.draw_summary(of_digits, plane, out)
    outcome = {
        "seed": seed,
        "fast": fast,
        **reports,
        "pictures": drawn,
        "versions": _versions(),
        "threads": torch.get_num_threads(),
        "seconds": time.perf_counter() - began,
    }
    (out / "demo.json").write_text(json.dumps(outcome, indent=2) + "\n")
    print(f"{outcome['seconds']:.0f} s in all; in {out}: {', '.join(drawn)}, demo.json")
    return outcome


def _versions() -> dict[str, str]:
    return {
        "fastscore": fastscore.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scikit-learn": sklearn.__version__,
        "matplotlib": matplotlib.__version__,
    }
