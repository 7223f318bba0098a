"""The Triton twin of Philox, word for word, and its maps from words."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from fastscore.reference import philox as reference
from fastscore_kernels import philox

MASK = 0xFFFFFFFF


@triton.jit
def philox_kernel(out_ptr, counter_ptr, N: tl.constexpr):
    at = tl.arange(0, N)
    c0 = tl.load(counter_ptr + at).to(tl.uint32)
    c1 = tl.load(counter_ptr + N + at).to(tl.uint32)
    c2 = tl.load(counter_ptr + 2 * N + at).to(tl.uint32)
    c3 = tl.load(counter_ptr + 3 * N + at).to(tl.uint32)
    k0 = tl.load(counter_ptr + 4 * N + at).to(tl.uint32)
    k1 = tl.load(counter_ptr + 5 * N + at).to(tl.uint32)
    w0, w1, w2, w3 = philox.philox(c0, c1, c2, c3, k0, k1)
    tl.store(out_ptr + at, w0.to(tl.int64))
    tl.store(out_ptr + N + at, w1.to(tl.int64))
    tl.store(out_ptr + 2 * N + at, w2.to(tl.int64))
    tl.store(out_ptr + 3 * N + at, w3.to(tl.int64))


@triton.jit(do_not_specialize=["key_low", "key_high", "step"])
def words_kernel(out_ptr, chain_ptr, key_low, key_high, step, STREAM: tl.constexpr, N: tl.constexpr, G: tl.constexpr):
    rows = tl.arange(0, N)[:, None]
    groups = tl.arange(0, G)[None, :]
    chain = tl.load(chain_ptr + rows)
    w0, w1, w2, w3 = philox.words(key_low, key_high, STREAM, step, chain, groups)
    at = (rows * G + groups) * 4
    tl.store(out_ptr + at, w0.to(tl.int64))
    tl.store(out_ptr + at + 1, w1.to(tl.int64))
    tl.store(out_ptr + at + 2, w2.to(tl.int64))
    tl.store(out_ptr + at + 3, w3.to(tl.int64))


@triton.jit
def map_kernel(radius_ptr, cos_ptr, sin_ptr, word_ptr, N: tl.constexpr):
    DOUBLE: tl.constexpr = radius_ptr.dtype.element_ty == tl.float64
    at = tl.arange(0, N)
    word = tl.load(word_ptr + at).to(tl.uint32)
    cos, sin = philox.direction(word, DOUBLE)
    tl.store(radius_ptr + at, philox.radius(word, DOUBLE))
    tl.store(cos_ptr + at, cos)
    tl.store(sin_ptr + at, sin)


def test_random123(device):
    rows = torch.tensor(
        [
            [0, 0, 0, 0, 0, 0],
            [MASK] * 6,
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0],
            [1, 2**31 - 1, 2**31, MASK, 5, 2**31],
        ],
        device=device,
    )
    out = torch.zeros(4, 4, dtype=torch.int64, device=device)
    philox_kernel[(1,)](out, rows.t().contiguous(), N=4)
    assert out[:, 0].tolist() == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert out[:, 1].tolist() == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    assert out[:, 2].tolist() == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]
    last = reference.philox(tuple(rows[3, :4].cpu()), tuple(rows[3, 4:].cpu()))
    assert out[:, 3].tolist() == [int(w) for w in last]


@pytest.mark.parametrize("seed", [0, 2**31, 2**32 + 7, 2**63, 2**64 - 1])
@pytest.mark.parametrize("step", [0, 1, 2**31 - 1, 2**31, 2**32 - 1])
def test_words_of_the_contract(device, seed, step):
    chain = torch.tensor([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40 + 3, 2**56 - 1], device=device)
    out = torch.zeros(8, 4, 4, dtype=torch.int64, device=device)
    low, high, low_step = philox.as_int32(seed, seed >> 32, step)
    words_kernel[(1,)](out, chain, low, high, low_step, STREAM=5, N=8, G=4)
    true = reference.words(seed, 5, step, chain.cpu().unsqueeze(-1), torch.arange(4))
    assert torch.equal(out.cpu(), torch.stack(true, -1))


@pytest.mark.parametrize(("dtype", "ulp"), [(torch.float32, 8), (torch.float64, 16)])
def test_maps_from_words(device, dtype, ulp):
    extreme = [0, 1, 2, 2**28, 2**29 - 1, 2**29, 2**30, 2**31 - 1, 2**31, 3 * 2**30, MASK - 2**28, MASK - 1, MASK]
    word = torch.randint(0, 2**32, (8192,))
    word[: len(extreme)] = torch.tensor(extreme)
    word[100:1100] = MASK - torch.arange(1000) * 37
    radius, cos, sin = (torch.full((8192,), torch.nan, dtype=dtype, device=device) for _ in range(3))
    map_kernel[(1,)](radius, cos, sin, word.to(device), N=8192)
    below = ((MASK - word).double() + 0.5) * 2.0**-32
    log = torch.where(word >= 1 << 31, torch.log1p(-below), torch.log((word.double() + 0.5) * 2.0**-32))
    exact = torch.sqrt(-2.0 * log), *reference.direction(word, torch.float64)
    for made, true in zip((radius, cos, sin), exact, strict=True):
        error = (made.cpu().double() - true).abs()
        assert (error <= ulp * torch.finfo(dtype).eps / 2 * true.abs() + 1e-15).all(), error.max()
    assert float(radius.max()) == pytest.approx(6.7637, abs=1e-4)
