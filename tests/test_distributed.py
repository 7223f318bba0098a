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
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
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

    def forward(self, x: Tensor, first_chain: int = 0) -> Tensor:
        return implicit_score_matching(self.net, x, trace=self.trace, n_probes=2, seed=5, first_chain=first_chain)


def network() -> ScoreMLP:
    torch.manual_seed(0)
    return ScoreMLP(2, 8).double()


def expected(trace: str) -> list[Tensor]:
    """The whole batch in one process."""
    net = network()
    return list(torch.autograd.grad(Loss(net, trace)(X), list(net.parameters())))


def work(rank: int, folder: str) -> None:
    warnings.simplefilter("ignore")  # of torch's, about views and CPU
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    mine, first = X.chunk(RANKS)[rank], rank * ROWS
    for trace in ("exact", "hutchinson"):
        for kind in ("loss", "score", "fsdp"):
            net = network()
            if kind == "score":
                wrapped: nn.Module = DistributedDataParallel(net)
                loss = implicit_score_matching(wrapped, mine, trace=trace, n_probes=2, seed=5, first_chain=first)
            else:
                whole = Loss(net, trace)
                mesh = init_device_mesh("cpu", (RANKS,))
                wrapped = DistributedDataParallel(whole) if kind == "loss" else fully_shard(whole, mesh=mesh)
                loss = wrapped(mine, first)
            loss.backward()
            found = [p.grad.full_tensor() if kind == "fsdp" else p.grad for p in net.parameters()]
            torch.testing.assert_close(found, expected(trace), rtol=1e-10, atol=1e-10)
    mesh = init_device_mesh("cpu", (RANKS,))
    inside = network()
    for layer in inside.layers:
        fully_shard(layer, mesh=mesh)
    old = FullyShardedDataParallel(network(), device_id=torch.device("cpu"))
    for sharded in (fully_shard(network(), mesh=mesh), inside, old):
        with pytest.raises(ValueError, match=r"sharded by FSDP.* shard only the module that holds the loss"):
            implicit_score_matching(sharded, mine)
    Path(folder, f"passed {rank}").touch()
    dist.destroy_process_group()


def test_two_processes_have_the_gradients_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", os.environ.get("GLOO_SOCKET_IFNAME", "lo"))
    mp.spawn(work, (str(tmp_path),), nprocs=RANKS)
    assert sum(path.name.startswith("passed") for path in tmp_path.iterdir()) == RANKS
