"""The emulator sees what it is there to see, on kernels made for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from fastscore.reference.activations import ACTIVATIONS
from fastscore_kernels import activations
from tests import emulator
from tests.emulator.memory import AccessError


@pytest.fixture(autouse=True, params=[80, 90], ids=["sm_80", "sm_90"])
def emulated(request):
    with emulator.installed(request.param):
        yield


@triton.jit
def copy_kernel(out_ptr, x_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + i, tl.load(x_ptr + i, mask=i < n, other=0.0), mask=i < n)


def test_a_copy():
    x, out = torch.randn(1000), torch.full((1000,), torch.nan)
    copy_kernel[(8,)](out, x, 1000, 128)
    assert torch.equal(out, x)


@pytest.mark.parametrize("n", [1001, 1024])
def test_a_step_over_the_edge(n):
    with pytest.raises(AccessError, match="outside of every tensor"):
        copy_kernel[(8,)](torch.empty(2000), torch.randn(1000), n, 128)


@triton.jit
def reversed_kernel(x_ptr, N: tl.constexpr, BARRIER: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(x_ptr + i, i.to(tl.float32))
    if BARRIER:
        tl.debug_barrier()
    tl.store(x_ptr + N + i, tl.load(x_ptr + N - 1 - i))


def test_a_race_within_a_block():
    x = torch.zeros(256)
    reversed_kernel[(1,)](x, 128, True)
    assert torch.equal(x[128:], torch.arange(127.0, -1, -1))
    with pytest.raises(AccessError, match="no barrier between"):
        reversed_kernel[(1,)](x, 128, False)


@triton.jit
def neighbour_kernel(x_ptr, BLOCK: tl.constexpr, AHEAD: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x_ptr + i, tl.load(x_ptr + i + AHEAD) + 1)


def test_a_race_between_blocks():
    neighbour_kernel[(4,)](torch.zeros(1024), 128, 0)
    with pytest.raises(AccessError, match="no barrier between"):
        neighbour_kernel[(4,)](torch.zeros(1024), 128, 128)


@triton.jit
def product_kernel(out_ptr, a_ptr, b_ptr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr):
    m, n, k = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :], tl.arange(0, K)
    a, b = tl.load(a_ptr + m * K + k[None, :]), tl.load(b_ptr + k[:, None] * N + n)
    tl.store(out_ptr + m * N + n, tl.dot(a, b, input_precision=PRECISION))


@pytest.mark.parametrize("shape", [(64, 16, 32), (128, 64, 64)])
@pytest.mark.parametrize("precision", ["bf16", "tf32", "tf32x3"])
def test_products_have_the_digits_of_their_precision(shape, precision):
    """And only these: a product in more digits than the hardware's would hide what it loses."""
    m, n, k = shape
    a, b, out = torch.randn(m, k), torch.randn(k, n), torch.empty(m, n)
    if precision == "bf16":
        a, b = a.bfloat16(), b.bfloat16()
    product_kernel[(1,)](out, a, b, m, n, k, "ieee" if precision == "bf16" else precision)
    error = (out - a.double() @ b.double()).abs().max().item() / (a.abs().double() @ b.abs().double()).max().item()
    low, high = {"tf32": (2**-15, 2**-10)}.get(precision, (0, 2**-21))
    assert low <= error < high


@triton.jit
def rounded_kernel(out_ptr, x_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out_ptr + i, tl.load(x_ptr + i).to(tl.bfloat16))


def test_bfloat16_is_rounded_to_nearest_even():
    bits = np.random.default_rng(0).integers(0, 2**32, 1024, np.uint32)
    x = torch.from_numpy(np.concatenate([bits, (bits & 0xFFFF0000) | 0x8000]).view(np.float32))
    out = torch.empty(2048, dtype=torch.bfloat16)
    rounded_kernel[(1,)](out, x, 2048)
    torch.testing.assert_close(out, x.bfloat16(), rtol=0, atol=0, equal_nan=True)


@triton.jit
def legs_kernel(out_ptr, n_legs, CARRIED: tl.constexpr):
    steps = 0
    start = 0
    for leg in range(n_legs):
        if not CARRIED:
            start = leg * 10
        for _ in range(start, (leg + 1) * 10):
            steps += 1
        if CARRIED:
            start = (leg + 1) * 10
    tl.store(out_ptr + tl.arange(0, 1), tl.full([1], 0, tl.int32) + steps)


@pytest.mark.parametrize("carried", [False, pytest.param(True, marks=pytest.mark.xfail(reason="Triton's own fault"))])
def test_what_triton_makes_of_a_loop_in_a_loop(carried):
    """It drops what a loop carries and what only bounds an inner loop, so that no kernel here does that."""
    out = torch.zeros(1, dtype=torch.int32)
    legs_kernel[(1,)](out, 3, carried)
    assert out.item() == 30


@triton.jit
def fast_kernel(value_ptr, slope_ptr, z_ptr, NAME: tl.constexpr, N: tl.constexpr):
    at = tl.arange(0, N)
    h, d = activations.value_and_slope(tl.load(z_ptr + at), NAME, True)
    tl.store(value_ptr + at, h)
    tl.store(slope_ptr + at, d)


@pytest.mark.parametrize("name", ["silu", "tanh", "gelu_tanh"])
def test_the_fast_sigmoid(name):
    """Where products are in TF32 or bfloat16: good to 2^-10, which no interpreter can run."""
    z, value, slope = torch.linspace(-8, 8, 1024), torch.empty(1024), torch.empty(1024)
    with emulator.installed(90):
        fast_kernel[(1,)](value, slope, z, name, 1024)
    h, d = ACTIVATIONS[name].derivatives(z.double(), 1)
    assert ((value - h).abs() <= 2.0**-10 * z.abs().clamp(min=2)).all()
    assert ((slope - d).abs() <= 2.0**-9 * z.abs().clamp(min=2)).all()
