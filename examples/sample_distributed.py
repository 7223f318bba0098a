"""Samples on any number of processes, the same bits as on one: every rank runs a part of the chains.

    torchrun --nproc-per-node=2 examples/sample_distributed.py

The only thing a rank says about itself is the global index of its first chain.
"""

from __future__ import annotations

import itertools

import torch
import torch.distributed as dist

import fastscore
from fastscore import noise, targets

CHAINS, STEPS, SEED = 4099, 200, 7  # 4099 chains do not divide evenly, and need not


def main() -> None:
    """Sample this rank's chains, gather all of them, and compare with one process."""
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    if torch.cuda.is_available():
        torch.cuda.set_device(rank % torch.cuda.device_count())
    device = "cuda" if torch.cuda.is_available() else "cpu"

    edges = [CHAINS * i // size for i in range(size + 1)]
    first, n = edges[rank], edges[rank + 1] - edges[rank]
    target = targets.Gaussian([1.0, -1.0], [0.5, 2.0])

    def sample(first: int, n: int) -> torch.Tensor:
        x = noise.normal((n, 2), seed=SEED, stream=noise.Stream.INITIAL, first_chain=first, device=device)
        run = {"step_size": 0.1, "n_steps": STEPS, "seed": SEED, "first_chain": first}
        return fastscore.langevin_dynamics(target.score, x, **run)

    parts = [torch.empty(b - a, 2, device=device) for a, b in itertools.pairwise(edges)]
    parts[rank] = sample(first, n)
    for source, part in enumerate(parts):
        dist.broadcast(part, source)
    together = torch.cat(parts)
    if rank == 0:
        same = torch.equal(together, sample(0, CHAINS))
        mean, var = together.mean(0).tolist(), together.var(0).tolist()
        print(f"{size} processes, {CHAINS} chains: mean {mean}, variance {var}; as one process, bit for bit: {same}")
        assert same
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
