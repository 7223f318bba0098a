"""The distributed example: two processes over gloo make the samples of one, bit for bit."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed

EXAMPLE = Path(__file__).parents[1] / "examples" / "sample_distributed.py"


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="no gloo")
def test_two_processes_make_the_samples_of_one() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += [f"--master-port={port}", str(EXAMPLE)]
    root = EXAMPLE.parents[1]
    paths = {"PYTHONPATH": os.pathsep.join([str(root), str(root / "kernels"), os.environ.get("PYTHONPATH", "")])}
    found = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=os.environ | paths)
    assert found.returncode == 0, found.stderr[-2000:]
    assert "2 processes, 4099 chains" in found.stdout and "bit for bit: True" in found.stdout
