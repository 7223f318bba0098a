"""The benchmarks that `make bench` runs are there and run: one of them, once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_one_benchmark_runs_and_is_recorded(tmp_path):
    record = tmp_path / "figures.json"
    command = [sys.executable, "-m", "pytest", "-q", "bench", "-k", "of_an_energy and 8", "--benchmark-disable"]
    environment = {**os.environ, "FASTSCORE_BENCH_RECORD": str(record)}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    (case,) = json.loads(record.read_text())["cases"].values()
    assert case["base"] == "denoising"
    assert {"exact", "autograd loop"} <= set(case["ratios"])
