"""Noise kernels against the reference: same words, any block size, any split."""

from __future__ import annotations

import pytest
import torch

from fastscore import noise, use_backend
from fastscore_kernels import launch

SHAPES = [(1, 1), (5, 2), (3, 3), (7, 4), (33, 17), (2, 127), (2, 128), (2, 129), (3, 2, 5, 13), (1, 5000), (130, 1)]


def both(make, shape, **options):
    with use_backend("torch"):
        reference = make(shape, **{**options, "device": "cpu"})
    return make(shape, **options).cpu(), reference


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_normals(device, shape, dtype):
    options = {"seed": 2**64 - 9, "stream": 4, "step": 2**32 - 1, "first_chain": 2**32 - 3, "dtype": dtype}
    made, true = both(noise.normal, shape, **options, device=device)
    eps = torch.finfo(dtype).eps
    assert made.dtype == dtype
    torch.testing.assert_close(made, true, rtol=8 * eps if dtype != torch.float16 else eps, atol=1e-6 * eps)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_signs(device, shape, dtype):
    made, true = both(
        noise.rademacher, shape, seed=3, stream=2, step=1, first_chain=2**32 - 1, dtype=dtype, device=device
    )
    assert torch.equal(made, true)


@pytest.mark.parametrize("tile", [1, 4, 64, 1024])
def test_no_block_size_changes_a_bit(device, tile, monkeypatch):
    shape = (9, 37)
    options = {"seed": 5, "stream": 0, "step": 3, "device": device}
    normals, signs = noise.normal(shape, **options), noise.rademacher(shape, **options)
    monkeypatch.setattr(launch, "_TILE", tile)
    assert torch.equal(noise.normal(shape, **options), normals)
    monkeypatch.setattr("fastscore_kernels.noise.RADEMACHER_TILE", min(tile, 64))
    assert torch.equal(noise.rademacher(shape, **options), signs)


def test_batches_may_be_split(device):
    whole = noise.normal((11, 6), seed=1, stream=0, first_chain=40, device=device)
    parts = [
        noise.normal((j - i, 6), seed=1, stream=0, first_chain=40 + i, device=device) for i, j in ((0, 4), (4, 11))
    ]
    assert torch.equal(whole, torch.cat(parts))


def test_nothing_is_launched_for_an_empty_batch(device):
    assert noise.normal((0, 3), seed=1, stream=0, device=device).shape == (0, 3)
    assert noise.rademacher((4, 0), seed=1, stream=0, device=device).shape == (4, 0)


@pytest.mark.parametrize("make", [noise.normal, noise.rademacher])
def test_within_transforms(device, make):
    """torch.func wraps every tensor made under it, which no kernel can write to."""
    options = {"seed": 3, "stream": 2, "dtype": torch.float64, "device": device}
    x, drawn = torch.ones(3, 5, dtype=torch.float64, device=device), make((3, 5), **options)

    def dot(x):
        return (x * make((3, 5), **options)).sum()

    assert torch.equal(torch.func.grad(dot)(x), drawn)
    torch.testing.assert_close(torch.func.jvp(dot, (x,), (x,))[1], drawn.sum())
    torch.testing.assert_close(torch.func.vmap(dot)(torch.stack([x, -x])), torch.stack([drawn.sum(), -drawn.sum()]))
