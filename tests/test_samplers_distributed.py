"""The distributed example: two processes over gloo train to the weights of one, and sample the same bits."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed

import fastscore

EXAMPLE = Path(__file__).parents[1] / "examples" / "sample_distributed.py"


def run(processes: int, path: Path) -> str:
    """What the example prints on so many processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    command += [f"--master-port={port}", str(EXAMPLE), "--save", str(path)]
    root = EXAMPLE.parents[1]
    paths = {"PYTHONPATH": os.pathsep.join([str(root), str(root / "kernels"), os.environ.get("PYTHONPATH", "")])}
    paths["GLOO_SOCKET_IFNAME"] = os.environ.get("GLOO_SOCKET_IFNAME", "lo")
    found = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=os.environ | paths)
    assert found.returncode == 0, found.stderr
    assert f"4099 chains on {processes} processes" in found.stdout
    return found.stdout


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="no gloo")
def test_two_processes_train_and_sample_as_one(tmp_path: Path) -> None:
    """Samples to the bit given the weights; the weights after twenty updates to 1e-6."""
    weights = []
    for processes in (1, 2):
        path = tmp_path / f"{processes}.safetensors"
        assert "bit for bit: True" in run(processes, path)
        weights.append(fastscore.load_network(path).state_dict())
    torch.manual_seed(7)
    start = fastscore.ScoreMLP(dim=2, width=64, depth=2).state_dict()
    for name, one in weights[0].items():
        assert not torch.equal(one, start[name]), f"{name} was not trained"
        torch.testing.assert_close(weights[1][name], one, rtol=1e-6, atol=1e-6)
