"""Trains and samples on any number of processes, as on one: every rank has a part of the data and of the chains.

    torchrun --nproc-per-node=2 examples/sample_distributed.py [--save weights.safetensors]
    python examples/sample_distributed.py                        the same in one process

The only thing a rank says about itself is the global index of its first row or chain. DDP wraps a module whose forward
returns the loss; each rank's loss is a mean over its rows, so it is weighted by its share of them: DDP then averages
gradients to those of the whole batch. Given the weights, the samples of all ranks together are those of one process to
the bit.
"""

from __future__ import annotations

import argparse
import itertools
import os

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import fastscore
from fastscore import noise, targets

ROWS, UPDATES = 1027, 20  # 1027 rows do not divide evenly, and need not
CHAINS, STEPS, SEED = 4099, 200, 7


class Loss(nn.Module):
    """The loss in a module's forward."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, first_chain: int) -> Tensor:
        """Implicit score matching with probes that are those of the whole batch."""
        return fastscore.implicit_score_matching(
            self.net, x, trace="hutchinson", n_probes=2, seed=SEED, first_chain=first_chain
        )


def parts(n: int, size: int) -> list[tuple[int, int]]:
    """(first, last) of every rank's share of n."""
    return list(itertools.pairwise(n * i // size for i in range(size + 1)))


def train(net: nn.Module, device: str) -> None:
    """A few updates of this rank's copy; all copies stay the same."""
    rank, size = dist.get_rank(), dist.get_world_size()
    first, last = parts(ROWS, size)[rank]
    data = targets.GaussianMixture.ring().sample(ROWS, seed=SEED)[first:last].to(device)
    # In a group of its own: DDP keeps its group's threads beyond `destroy_process_group`, and one that still holds a
    # tensor as Python ends aborts the process (pytorch/pytorch#179291). Those of the other group are joined.
    loss_of = DistributedDataParallel(Loss(net), process_group=dist.new_group())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for _ in range(UPDATES):
        optimizer.zero_grad()
        loss = loss_of(data, first) * (size * (last - first) / ROWS)
        loss.backward()
        optimizer.step()


def sample(net: nn.Module, first: int, last: int, device: str) -> Tensor:
    """Chains first to last - 1."""
    n = last - first
    x = noise.normal((n, 2), seed=SEED, stream=noise.Stream.INITIAL, first_chain=first, device=device)
    return fastscore.langevin_dynamics(net, x, step_size=0.1, n_steps=STEPS, seed=SEED, first_chain=first)


def main() -> None:
    """Train, sample this rank's chains, gather all of them, and compare with one process."""
    options = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    options.add_argument("--save", help="a file for the trained network")
    path = options.parse_args().save
    alone = {} if "RANK" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", **alone)
    rank, size = dist.get_rank(), dist.get_world_size()
    if torch.cuda.is_available():
        torch.cuda.set_device(rank % torch.cuda.device_count())
    device = "cuda" if torch.cuda.is_available() else "cpu"

    torch.manual_seed(SEED)
    net = fastscore.ScoreMLP(dim=2, width=64, depth=2).to(device)
    train(net, device)

    edges = parts(CHAINS, size)
    gathered = [torch.empty(last - first, 2, device=device) for first, last in edges]
    gathered[rank] = sample(net, *edges[rank], device)
    for source, part in enumerate(gathered):
        dist.broadcast(part, source)
    together = torch.cat(gathered)
    if rank == 0:
        if path:
            fastscore.save_network(path, net)
        same = torch.equal(together, sample(net, 0, CHAINS, device))
        print(f"{UPDATES} updates and {CHAINS} chains on {size} processes; samples as of one, bit for bit: {same}")
        assert same
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
