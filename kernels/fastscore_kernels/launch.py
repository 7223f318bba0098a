"""What every launcher needs: the right device, and how an array of counters is cut into programs."""

import contextlib

import torch
import triton

# Counters a program of 4 warps: 8 a thread, in flight together to hide the latency of memory; 2 a thread in float64,
# whose logarithm would spill with more.
_TILE, _TILE_DOUBLE = 1024, 256


def device_of(x: torch.Tensor) -> contextlib.AbstractContextManager:
    """Makes the device of x current (Triton launches on the current device); nothing to do on a CPU."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def float32_products() -> str:
    """How torch is told to multiply float32 on a GPU, by either of its interfaces: "highest", "high" or "medium"."""
    if torch.backends.cuda.matmul.fp32_precision != "tf32":
        return "highest"
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # told by the newer interface, of which this one does not know
        return "high"


def tile_counters(
    n_chains: int, n_groups: int, dtype: torch.dtype, tile: int | None = None, width: int = 4
) -> tuple[tuple[int], dict[str, int]]:
    """Grid and launch options of a kernel over `[n_chains, n_groups]` counters, cut into tiles of powers of two.

    A counter has `width` features.
    """
    tile = tile or (_TILE_DOUBLE if dtype == torch.float64 else _TILE)
    block_groups = min(tile, triton.next_power_of_2(n_groups))
    block_chains = min(tile // block_groups, triton.next_power_of_2(n_chains))
    programs = triton.cdiv(n_chains, block_chains) * triton.cdiv(n_groups, block_groups)
    if programs >= 2**31 or n_groups * width >= 2**31:
        raise ValueError(f"{n_chains} chains of {n_groups} counters exceed 2^31 programs, or 2^31 features")
    return (programs,), {"BLOCK_CHAINS": block_chains, "BLOCK_GROUPS": block_groups, "num_warps": 4}
