"""The fused step against the reference: every branch of the tile, dtypes, layouts, splits, in place, gradients."""

from __future__ import annotations

import math

import pytest
import torch

from fastscore import langevin_step, use_backend
from fastscore_kernels import langevin, launch

COUNTERS = {"seed": 2**63 + 11, "step": 2**32 - 1, "first_chain": 2**32 - 2}
# Ragged in chains, groups and lanes; one and several programs in each direction.
SHAPES = [(1, 1), (3, 2), (5, 3), (2, 4), (33, 17), (7, 64), (3, 130), (1025, 3), (2, 4099), (2, 3, 4, 5)]


def pair(shape, dtype, device):
    """Apart in memory: what is read past one is not the other."""
    return [torch.randn(*shape, dtype=torch.float64).to(dtype).to(device) for _ in range(2)]


def reference(x, score, **options):
    with use_backend("torch"):
        return langevin_step(x.cpu(), score.cpu(), **COUNTERS, **options)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_value(device, shape, dtype):
    x, score = pair(shape, dtype, device)
    made = langevin_step(x, score, step_size=0.1, temperature=1.7, **COUNTERS)
    true = reference(x, score, step_size=0.1, temperature=1.7)
    assert made.dtype == dtype
    assert made.shape == x.shape
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(
        made.cpu(), true, rtol=2 * eps, atol=8 * torch.finfo(torch.float32).eps if eps > 1e-10 else 1e-14
    )


def test_bfloat16(device):
    """Within one unit in the last place: Triton's interpreter truncates where a GPU rounds."""
    x, score = pair((33, 17), torch.bfloat16, device)
    made = langevin_step(x, score, step_size=0.1, **COUNTERS)
    exact = reference(x.float(), score.float(), step_size=0.1)
    assert made.dtype == torch.bfloat16
    assert ((made.cpu().float() - exact).abs() <= 2.0**-7 * exact.abs() + 1e-6).all()


def test_a_float64_step_size_keeps_its_digits(device):
    x, score = (
        torch.zeros(4, 3, dtype=torch.float64, device=device),
        torch.ones(4, 3, dtype=torch.float64, device=device),
    )
    made = langevin_step(x, score, step_size=0.1, temperature=0.0, **COUNTERS)
    assert torch.equal(made.cpu(), torch.full((4, 3), 0.1, dtype=torch.float64))


def test_mixed_dtypes(device):
    x = torch.randn(9, 5, device=device)
    score = torch.randn(9, 5, device=device).half()
    made = langevin_step(x, score, step_size=0.1, **COUNTERS)
    torch.testing.assert_close(made.cpu(), reference(x, score, step_size=0.1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(5, 3), (7, 64), (3, 2, 5)])
def test_a_step_size_a_feature(device, shape):
    x, score = pair(shape, torch.float32, device)
    a = torch.rand(shape[1:], device=device) + 0.1
    made = langevin_step(x, score, step_size=a, **COUNTERS)
    torch.testing.assert_close(made.cpu(), reference(x, score, step_size=a.cpu()), rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded", "offset"])
def test_layouts_give_the_same_bits(device, layout):
    made = {
        "transposed": lambda t: t.t().contiguous().t(),
        "sliced": lambda t: torch.stack([t, -t], 1)[:, 0],
        "expanded": lambda t: t[:1].expand(t.shape),
        "offset": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
    }[layout]
    x, score = (made(t) for t in pair((6, 5), torch.float32, device))
    one = langevin_step(x, score, step_size=0.1, **COUNTERS)
    assert torch.equal(one, langevin_step(x.contiguous(), score.contiguous(), step_size=0.1, **COUNTERS))


@pytest.mark.parametrize("tile", [1, 16, 256])
def test_no_block_size_changes_a_bit(device, tile, monkeypatch):
    x, score = pair((6, 37), torch.float32, device)
    usual = langevin_step(x, score, step_size=0.1, **COUNTERS)
    monkeypatch.setattr(launch, "_TILE", tile)
    assert torch.equal(langevin_step(x, score, step_size=0.1, **COUNTERS), usual)


def test_a_row_alone_is_the_row_in_its_batch(device):
    x, score = pair((37, 6), torch.float32, device)
    whole = langevin_step(x, score, step_size=0.1, seed=4, step=2, first_chain=5)
    for row in (0, 17, 36):
        alone = langevin_step(
            x[row : row + 1], score[row : row + 1], step_size=0.1, seed=4, step=2, first_chain=5 + row
        )
        assert torch.equal(whole[row], alone[0])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_row_stays_alone(device, bad):
    x, score = pair((9, 6), torch.float32, device)
    clean = langevin_step(x, score, step_size=0.1, **COUNTERS)
    score[4, 2] = bad
    made = langevin_step(x, score, step_size=0.1, **COUNTERS)
    assert not torch.isfinite(made[4, 2])
    keep = [i for i in range(9) if i != 4]
    assert torch.equal(made[keep], clean[keep])


def test_out_that_is_not_made_of_rows_is_refused(device):
    x = torch.randn(4, 6, device=device)
    one = torch.ones((), device=device)
    with pytest.raises(ValueError, match="out must be contiguous, got strides"):
        langevin.langevin_step(x, x, 0.1 * one, one, 1, 0, 0, out=torch.zeros(6, 4, device=device).t())


def test_in_place(device):
    x, score = pair((33, 17), torch.float32, device)
    apart = langevin_step(x, score, step_size=0.1, temperature=1.0, **COUNTERS)
    a, t = torch.tensor(0.1, device=device), torch.tensor(1.0, device=device)
    same = langevin.langevin_step(x, score, a, t, *(COUNTERS[k] for k in ("seed", "step", "first_chain")), out=x)
    assert same is x
    assert torch.equal(x, apart)


def test_gradients(device):
    x, score = (t.requires_grad_() for t in pair((5, 7), torch.float64, device))
    a = torch.tensor(0.3, dtype=torch.float64, device=device, requires_grad=True)
    upstream = torch.randn(5, 7, dtype=torch.float64)
    made = torch.autograd.grad(langevin_step(x, score, step_size=a, **COUNTERS), (x, score, a), upstream.to(device))
    parts = [t.detach().cpu().requires_grad_() for t in (x, score, a)]
    true = torch.autograd.grad(reference(*parts[:2], step_size=parts[2]), parts, upstream)
    for m, t in zip(made, true, strict=True):
        torch.testing.assert_close(m.cpu(), t, rtol=1e-13, atol=1e-13)


def test_more_programs_than_a_grid_holds_are_refused():
    for n, groups, width in ((2**40, 1 << 11, 4), (1, 1 << 29, 4), (1, 1 << 24, 128)):
        with pytest.raises(ValueError, match=r"exceed 2\^31 programs, or 2\^31 features"):
            launch.tile_counters(n, groups, torch.float32, width=width)
