"""Peak memory of a training step, in a process of its own: it does not grow with D, the probes or the batch.

The peak is Linux's VmHWM, which starts anew with a program; ru_maxrss would start at what the test's own process has.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")

STEP = """
import re, sys, torch
from pathlib import Path
from torch import nn
from fastscore import EnergyMLP, ScoreMLP, implicit_score_matching
torch.set_num_threads(1)
kind, rows, d, width, probes = sys.argv[1], *map(int, sys.argv[2:])
net = {
    "closed": lambda: ScoreMLP(d, width),
    "tangents": lambda: ScoreMLP(d, width, 3),
    "energy": lambda: EnergyMLP(d, width),
    "generic": lambda: nn.Sequential(nn.Linear(d, width), nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, d)),
}[kind]()
optimiser = torch.optim.Adam(net.parameters())
how = {"trace": "hutchinson", "n_probes": probes} if probes else {"trace": "exact"}
def step(x):
    optimiser.zero_grad()
    implicit_score_matching(net.score if kind == "energy" else net, x, **how).backward()
    optimiser.step()
def kibibytes(field):
    return int(re.search(field + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
x = torch.randn(rows, d)
step(x[:256])
before = kibibytes("VmRSS")
step(x)
peak = kibibytes("VmHWM")
print((peak - before) / 1024, peak / 1024)
"""


def megabytes(kind: str, rows: int, d: int, width: int, probes: int = 0) -> tuple[float, float]:
    """MiB that a training step peaks above what a small one left, and the peak."""
    arguments = [sys.executable, "-c", STEP, kind, *map(str, (rows, d, width, probes))]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    grown, peak = map(float, done.stdout.split())
    return grown, peak


@pytest.mark.parametrize(
    ("kind", "d", "probes"),
    [("closed", 2, 0), ("closed", 32, 0), ("closed", 8, 8), ("tangents", 8, 0), ("energy", 8, 0)],
)
def test_a_recognised_network_works_in_tiles(kind: str, d: int, probes: int) -> None:
    """16384 rows, D = 8, H = 64: one array of every tangent would have 32 MiB."""
    assert megabytes(kind, 16384, d, 64, probes)[0] < 24


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "probes"), [("closed", 0), ("closed", 1), ("generic", 0), ("generic", 1)])
def test_a_million_rows_train_within_two_gigabytes(kind: str, probes: int) -> None:
    assert megabytes(kind, 10**6, 2, 128, probes)[1] < 2000


def test_pieces_of_an_unrecognised_network_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Freed memory goes back to the system here: glibc keeps what lies between the small results of the pieces.

    131,072 rows of the hidden layer are 64 MiB, and a step that kept its pieces would hold several such arrays.
    """
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "100000")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "100000")
    few, many = (megabytes("generic", rows, 4, 128)[0] for rows in (16384, 131072))
    assert many < few + 32
