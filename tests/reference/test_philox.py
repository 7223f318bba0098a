"""The noise contract: words against Random123 and an integer oracle, the maps from words, a frozen stream."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from fastscore.reference import philox

MASK = 0xFFFFFFFF
GOLDEN = Path(__file__).parent / "golden_noise_v1.json"

# Random123, tests/kat_vectors, lines "philox4x32 10" (D. E. Shaw Research): counter, key, words.
VECTORS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((MASK,) * 4, (MASK,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def oracle(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """Philox-4x32-10 in Python integers, written from the paper."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c0, 1 << 32)
        high1, low1 = divmod(0xCD9E8D57 * c2, 1 << 32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3


def oracle_words(seed: int, stream: int, step: int, chain: int, group: int) -> tuple[int, ...]:
    counter = (group, chain & MASK, step, stream + 256 * (chain >> 32))
    return oracle(counter, (seed & MASK, seed >> 32))


@pytest.mark.parametrize(("counter", "key", "words"), VECTORS)
def test_random123(counter, key, words):
    made = philox.philox(tuple(torch.tensor(c) for c in counter), key)
    assert tuple(int(w) for w in made) == words == oracle(counter, key)


EDGES = [0, 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1, 2**32, 2**32 + 1, 2**40 + 5, 2**56 - 1]


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1])
def test_words_at_the_edges_of_32_bits(seed):
    chain = torch.tensor(EDGES)
    for stream, step in ((0, 0), (5, 2**31), (2, 2**32 - 1)):
        made = torch.stack(philox.words(seed, stream, step, chain.unsqueeze(-1), torch.arange(3)), -1)
        for i, c in enumerate(EDGES):
            for g in range(3):
                assert tuple(made[i, g].tolist()) == oracle_words(seed, stream, step, c, g), (c, g)


def test_seed_and_step_may_be_tensors():
    chain, group = torch.arange(4).unsqueeze(-1), torch.arange(2)
    ints = philox.words(2**63 + 9, 0, 2**32 - 1, chain, group)
    tensors = philox.words(torch.tensor(2**63 + 9 - 2**64), 0, torch.tensor(2**32 - 1), chain, group)
    assert all(torch.equal(a, b) for a, b in zip(ints, tensors, strict=True))


def normal_oracle(even: int, odd: int) -> tuple[float, float]:
    """Box-Muller in float64 by the contract's formula; log1p keeps the digits of u near 1."""
    below = ((MASK - even) + 0.5) * 2.0**-32
    log = math.log1p(-below) if even >= 1 << 31 else math.log((even + 0.5) * 2.0**-32)
    r, theta = math.sqrt(-2.0 * log), 2.0 * math.pi * odd * 2.0**-32
    return r * math.cos(theta), r * math.sin(theta)


EXTREME = [0, 1, 2, 2**28, 2**29 - 1, 2**29, 2**30, 2**31 - 1, 2**31, 3 * 2**30, MASK - 2**28, MASK - 1, MASK]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-7), (torch.float64, 2e-15)])
def test_normals_of_extreme_words(dtype, tolerance):
    for even in EXTREME:
        for odd in EXTREME:
            r = philox.radius(torch.tensor(even), dtype)
            cos, sin = philox.direction(torch.tensor(odd), dtype)
            for made, true in zip((r * cos, r * sin), normal_oracle(even, odd), strict=True):
                assert abs(float(made) - true) <= tolerance * max(1e-3, abs(true)) + 4e-15, (even, odd)


def test_normals_to_eight_ulp():
    words = torch.randint(0, 2**32, (1 << 18,))
    near_one = MASK - torch.randint(0, 2**12, (1 << 14,))
    even = torch.cat([words, near_one, near_one - 2**20])
    below = ((MASK - even).double() + 0.5) * 2.0**-32
    true = torch.sqrt(
        -2.0 * torch.where(even >= 1 << 31, torch.log1p(-below), torch.log((even.double() + 0.5) * 2.0**-32))
    )
    assert ((philox.radius(even, torch.float32).double() / true - 1).abs() <= 8 * 2.0**-24).all()
    theta = 2.0 * math.pi * even.double() * 2.0**-32
    for made, exact in zip(philox.direction(even, torch.float32), (theta.cos(), theta.sin()), strict=True):
        close = (made.double() - exact).abs() <= 8 * 2.0**-24 * exact.abs()
        assert (close | (exact.abs() < 1e-9)).all()  # a float64 angle has no better relative accuracy at a zero


def test_the_tail_is_not_cut_and_has_no_atoms():
    smallest = torch.arange(4096)
    for dtype in (torch.float32, torch.float64):
        r = philox.radius(smallest, dtype)
        assert float(r[0]) == pytest.approx(math.sqrt(66 * math.log(2)), rel=3e-7)  # 6.7637
        assert (r[:-1] > r[1:]).all()
        assert 0 < float(philox.radius(torch.tensor(MASK), dtype)) < 2e-5
        assert torch.isfinite(philox.radius(torch.tensor(EXTREME), dtype)).all()


def test_directions_are_symmetric():
    word = torch.randint(0, 2**30, (4096,))
    for dtype in (torch.float32, torch.float64):
        cos, sin = philox.direction(word, dtype)
        for turn, (c, s) in enumerate(((-sin, cos), (-cos, -sin), (sin, -cos)), start=1):
            turned = philox.direction(word + (turn << 30), dtype)
            assert torch.equal(turned[0], c)
            assert torch.equal(turned[1], s)


@pytest.mark.parametrize("n_features", [1, 2, 3, 4, 5, 7, 8, 9, 13, 64, 130])
def test_layout_of_normals(n_features):
    made = philox.normals(77, 4, 9, torch.tensor([3, 2**33]), n_features, torch.float64)
    groups = -(-n_features // 4)
    for row, chain in enumerate((3, 2**33)):
        for d in range(n_features):
            words, lane = oracle_words(77, 4, 9, chain, d % groups), d // groups
            pair = normal_oracle(*(words[:2] if lane < 2 else words[2:]))
            assert float(made[row, d]) == pytest.approx(pair[lane % 2], rel=1e-13, abs=1e-15)
    assert made.is_contiguous()


@pytest.mark.parametrize("n_features", [1, 31, 32, 33, 127, 128, 129, 300])
def test_layout_of_signs(n_features):
    made = philox.rademacher(2**64 - 3, 2, 1, torch.tensor([0, 5]), n_features, torch.float32)
    for row, chain in enumerate((0, 5)):
        for d in range(n_features):
            word = oracle_words(2**64 - 3, 2, 1, chain, d // 128)[d % 128 // 32]
            assert float(made[row, d]) == 1 - 2 * (word >> (d % 32) & 1)


def test_uniforms():
    chain = torch.arange(5)
    made = philox.uniforms(8, 1, 3, chain, torch.float64)
    assert made.tolist() == [(oracle_words(8, 1, 3, c, 0)[0] + 0.5) * 2.0**-32 for c in range(5)]


def test_signs_are_balanced_and_uncorrelated():
    n = 1 << 14
    signs = philox.rademacher(3, 2, 0, torch.arange(n), 256, torch.float64)
    assert (signs.mean(0).abs() < 5.5 / math.sqrt(n)).all()
    correlation = signs.t() @ signs / n - torch.eye(256, dtype=torch.float64)
    assert float(correlation.abs().max()) < 6 / math.sqrt(n)


def test_normals_are_normal_and_uncorrelated():
    n, width = 1 << 15, 16
    z = philox.normals(11, 0, 0, torch.arange(n), width, torch.float64)
    after = philox.normals(11, 0, 1, torch.arange(n), width, torch.float64)
    assert (z.mean(0).abs() < 5 / math.sqrt(n)).all()
    assert ((z.var(0) - 1).abs() < 5 * math.sqrt(2 / n)).all()
    assert ((z**3).mean(0).abs() < 5 * math.sqrt(15 / n)).all()
    assert (((z**4).mean(0) - 3).abs() < 5 * math.sqrt(96 / n)).all()
    correlation = z.t() @ z / n
    assert float((correlation - torch.diag(torch.diag(correlation))).abs().max()) < 5.5 / math.sqrt(n)
    assert float((z.t() @ after / n).abs().max()) < 5.5 / math.sqrt(n)
    assert float(((z[1:] * z[:-1]).mean(0)).abs().max()) < 5 / math.sqrt(n)


def test_no_copied_lanes():
    words = torch.cat(
        [w.flatten() for w in philox.words(5, 0, 0, torch.arange(1 << 18).unsqueeze(-1), torch.arange(1))]
    )
    repeats = len(words) - len(words.unique())
    assert 80 <= repeats <= 180  # a birthday count, Poisson(128) for 2^20 words; copies would give thousands


def test_streams_seeds_and_steps_share_no_words():
    chain = torch.arange(4096).unsqueeze(-1)
    settings = [(1, 0, 0), (2, 0, 0), (1, 1, 0), (1, 0, 1), (2**32 + 1, 0, 0), (0, 0, 1), (1, 5, 7)]
    words = torch.cat([torch.cat(philox.words(*s, chain, torch.arange(1))).flatten() for s in settings])
    assert len(words) - len(words.unique()) < 12  # Poisson(1.5)


def test_stream_version_1_is_frozen():
    """Words, and normals of ten features, written down once: a change of either is a new stream version."""
    golden = json.loads(GOLDEN.read_text())
    assert golden["stream_version"] == philox.STREAM_VERSION
    for row in golden["rows"]:
        seed, stream, step, chain = int(row["seed"]), row["stream"], row["step"], torch.tensor([row["chain"]])
        words = torch.stack(philox.words(seed, stream, step, chain.unsqueeze(-1), torch.arange(3)), -1)
        assert [f"{w:08x}" for w in words.flatten().tolist()] == row["words"]
        normals = torch.tensor([float.fromhex(z) for z in row["normals"]], dtype=torch.float64)
        double = philox.normals(seed, stream, step, chain, 10, torch.float64)[0]
        single = philox.normals(seed, stream, step, chain, 10, torch.float32)[0]
        torch.testing.assert_close(double, normals, rtol=4e-15, atol=1e-15)
        torch.testing.assert_close(single.double(), normals, rtol=8 * 2.0**-24, atol=1e-9)
