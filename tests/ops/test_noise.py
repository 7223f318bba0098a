"""Noise as an operator: what torch.compile is told of it is true, and it is the reference's."""

from __future__ import annotations

import pytest
import torch

from fastscore.ops import noise
from fastscore.reference import philox

CPU = torch.device("cpu")
WHICH = {"normal": (noise._normal_opaque, philox.normals), "rademacher": (noise._rademacher_opaque, philox.rademacher)}


@pytest.mark.parametrize("shape", [(5, 3), (1, 130), (0, 4)])
@pytest.mark.parametrize("name", WHICH)
def test_the_operator_is_what_the_compiler_is_told(name, shape):
    operator, meaning = WHICH[name]
    arguments = (*shape, 7, 2, 3, 2**32 - 2, torch.float64, CPU)
    torch.library.opcheck(operator, arguments)
    chain = torch.arange(2**32 - 2, 2**32 - 2 + shape[0])
    assert torch.equal(operator(*arguments), meaning(7, 2, 3, chain, shape[1], torch.float64))


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1])
def test_a_seed_of_64_bits_reaches_the_key_whole(seed):
    made = noise.normal(3, 5, seed, 1, 2**32 - 1, 2**56 - 3, torch.float64, CPU)
    chain = torch.arange(2**56 - 3, 2**56)
    assert torch.equal(made, philox.normals(seed, 1, 2**32 - 1, chain, 5, torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_uniform_is_never_0(dtype):
    chain = 12358254  # whose word of seed 1 and stream 5 is so small that float16 rounds it to 0
    (u,) = noise.uniform(1, 1, 5, 0, chain, dtype, CPU).tolist()
    exact = float(philox.uniforms(1, 5, 0, torch.tensor(chain), torch.float64))
    assert 0 < exact < 2.0**-25 and u == (2.0**-24 if dtype == torch.float16 else pytest.approx(exact, rel=4e-3))
    least = noise.uniform(1 << 16, 1, 5, 0, 0, dtype, CPU).min()
    assert least == philox.uniforms(1, 5, 0, torch.arange(1 << 16), noise.computed(dtype)).min().to(dtype)


def test_blocks_of_rows_join(monkeypatch):
    whole = noise.normal(50, 6, 3, 0, 0, 10, torch.float64, CPU)
    monkeypatch.setattr(noise, "_BLOCK", 64)
    assert torch.equal(noise.normal(50, 6, 3, 0, 0, 10, torch.float64, CPU), whole)
