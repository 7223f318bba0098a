"""Two processes over gloo have the gradients of one: DDP, and FSDP2 with the loss in a module's forward."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from fastscore import ScoreMLP, implicit_score_matching, noise

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")

ROWS, RANKS = 6, 2
X = noise.normal((ROWS * RANKS, 2), seed=1, stream=noise.Stream.DATA, dtype=torch.float64)


class Loss(nn.Module):
    """The loss in a module's forward: what DDP and FSDP2 wrap."""

    def __init__(self, net: nn.Module, trace: str) -> None:
        super().__init__()
        self.net, self.trace = net, trace

    def forward(self, x: Tensor, seed: int) -> Tensor:
        return implicit_score_matching(self.net, x, trace=self.trace, n_probes=2, seed=seed)


def network() -> ScoreMLP:
    torch.manual_seed(0)
    return ScoreMLP(2, 8).double()


def expected(trace: str) -> list[Tensor]:
    """The mean of the ranks' losses, each with its own probes, in one process."""
    net = network()
    losses = [Loss(net, trace)(part, seed) for seed, part in enumerate(X.chunk(RANKS))]
    return list(torch.autograd.grad(sum(losses) / RANKS, list(net.parameters())))


def work(rank: int, folder: str) -> None:
    warnings.simplefilter("ignore")  # of torch's, about views and CPU
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    mine = X.chunk(RANKS)[rank]
    for trace in ("exact", "hutchinson"):
        for kind in ("loss", "score", "fsdp"):
            net = network()
            if kind == "score":
                wrapped: nn.Module = DistributedDataParallel(net)
                loss = implicit_score_matching(wrapped, mine, trace=trace, n_probes=2, seed=rank)
            else:
                whole = Loss(net, trace)
                mesh = init_device_mesh("cpu", (RANKS,))
                wrapped = DistributedDataParallel(whole) if kind == "loss" else fully_shard(whole, mesh=mesh)
                loss = wrapped(mine, rank)
            loss.backward()
            found = [p.grad.full_tensor() if kind == "fsdp" else p.grad for p in net.parameters()]
            torch.testing.assert_close(found, expected(trace), rtol=1e-10, atol=1e-10)
    sharded = fully_shard(network(), mesh=init_device_mesh("cpu", (RANKS,)))
    with pytest.raises(ValueError, match="score_fn is sharded by fully_shard"):
        implicit_score_matching(sharded, mine)
    Path(folder, f"passed {rank}").touch()
    dist.destroy_process_group()


def test_two_processes_have_the_gradients_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", os.environ.get("GLOO_SOCKET_IFNAME", "lo"))
    mp.spawn(work, (str(tmp_path),), nprocs=RANKS)
    assert sum(path.name.startswith("passed") for path in tmp_path.iterdir()) == RANKS
