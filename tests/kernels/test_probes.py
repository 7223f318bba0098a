"""The probes that kernels make for themselves, against `Probes.draw`."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from fastscore.ops import mlp as ops
from fastscore_kernels import philox, probes


@triton.jit(do_not_specialize=["first_chain", "key_low", "key_high"])
def write(
    out_ptr, first_chain, key_low, key_high, D: tl.constexpr, KIND: tl.constexpr, ROWS: tl.constexpr, N: tl.constexpr
):
    rows, features = tl.arange(0, ROWS), tl.arange(0, N)
    chain = first_chain + tl.program_id(0).to(tl.int64) * ROWS + rows
    v = probes.tile(key_low, key_high, chain, features, D, KIND)
    tl.store(out_ptr + (rows * D)[:, None] + features[None, :], v, mask=features[None, :] < D)


@pytest.mark.parametrize("first", [0, 2**32 - 3, 2**56 - 8])
@pytest.mark.parametrize("dim", [1, 2, 3, 4, 7, 16, 31, 33, 64, 127, 128, 129])
@pytest.mark.parametrize("kind", ["rademacher", "normal"])
def test_a_tile_has_the_values_of_a_drawn_probe(kind, dim, first, device):
    """Signs to the bit, and normals too where both kernels are compiled alike."""
    asked = ops.Probes(seed=2**64 - 9, kind=kind, first_sample=first)
    drawn = asked.draw(slice(0, 8), torch.empty(8, dim, device=device))[:, 0]
    made, keys = torch.empty(8, dim, device=device), philox.as_int32(asked.seed, asked.seed >> 32)
    write[(1,)](made, first, *keys, D=dim, KIND=kind, ROWS=8, N=triton.next_power_of_2(dim))
    if kind == "rademacher" or device.type == "cpu":
        assert torch.equal(made, drawn)
    else:
        eps = torch.finfo(torch.float32).eps
        torch.testing.assert_close(made, drawn, rtol=8 * eps, atol=1e-6 * eps)
