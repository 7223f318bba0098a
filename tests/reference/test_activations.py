"""The activations against float64 autograd, and their limits far out in every dtype."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from fastscore.reference.activations import ACTIVATIONS

NAMES = sorted(ACTIVATIONS)
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]

# phi(z) / z, phi', phi'', phi''' far to the right and far to the left
LIMITS = {
    "silu": ((1, 1, 0, 0), (0, 0, 0, 0)),
    "softplus": ((1, 1, 0, 0), (0, 0, 0, 0)),
    "tanh": ((0, 0, 0, 0), (0, 0, 0, 0)),
    "gelu": ((1, 1, 0, 0), (0, 0, 0, 0)),
    "gelu_tanh": ((1, 1, 0, 0), (0, 0, 0, 0)),
    "softsign": ((0, 0, 0, 0), (0, 0, 0, 0)),
    "mish": ((1, 1, 0, 0), (0, 0, 0, 0)),
    "elu": ((1, 1, 0, 0), (0, 0, 0, 0)),
    "sigmoid": ((0, 0, 0, 0), (0, 0, 0, 0)),
}


def by_autograd(name, z, order):
    z = z.clone().requires_grad_(True)
    value = ACTIVATIONS[name].function(z)
    out = [value]
    for _ in range(order):
        (value,) = torch.autograd.grad(value.sum(), z, create_graph=True)
        out.append(value)
    return [v.detach() for v in out]


def points():
    """A grid out to |z| = 19 (torch's softplus is replaced by z above 20) without 0, where softsign has a kink."""
    generator = torch.Generator().manual_seed(3)
    spread = torch.randn(400, dtype=torch.float64, generator=generator) * 3
    return torch.cat([torch.linspace(-19, 19, 400, dtype=torch.float64), spread.clamp(-19, 19)])


@pytest.mark.parametrize("name", NAMES)
def test_derivatives_equal_autograd_in_float64(name):
    z = points()
    got = ACTIVATIONS[name].derivatives(z, 3)
    assert len(got) == 4
    for order, (mine, theirs) in enumerate(zip(got, by_autograd(name, z, 3), strict=True)):
        assert (mine - theirs).abs().max() <= 1e-10, (name, order)


def test_known_values():
    """Numbers from outside torch: sigmoid(1), the normal distribution at 1, 1 / (1 + 2)^k."""
    one = torch.ones((), dtype=torch.float64)
    s = 1 / (1 + math.exp(-1))
    p, cdf = math.exp(-0.5) / math.sqrt(2 * math.pi), 0.5 * (1 + math.erf(math.sqrt(0.5)))
    expected = {
        "silu": (s, s + s * (1 - s)),
        "softplus": (math.log(1 + math.e), s, s * (1 - s)),
        "gelu": (cdf, cdf + p, p, -3 * p),
        "sine": (math.sin(1), math.cos(1), -math.sin(1), -math.cos(1)),
        "tanh": (math.tanh(1), 1 - math.tanh(1) ** 2),
        "softsign": (1 / 2, 1 / 4, -1 / 4, 3 / 8),
        "mish": (math.tanh(math.log(1 + math.e)),),
        "sigmoid": (s, s * (1 - s), s * (1 - s) * (1 - 2 * s)),
        "elu": (1, 1, 0, 0),
    }
    for name, values in expected.items():
        got = ACTIVATIONS[name].derivatives(one, len(values) - 1)
        assert [v.item() for v in got] == pytest.approx(list(values), abs=1e-14)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_lower_orders_are_prefixes(name, order):
    z = points()
    full = ACTIVATIONS[name].derivatives(z, 3)
    got = ACTIVATIONS[name].derivatives(z, order)
    assert len(got) == order + 1
    for a, b in zip(got, full, strict=False):
        torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_arguments_are_finite_and_take_their_limits(name, dtype):
    z = torch.tensor([1e2, 1e3, 1e4, -1e2, -1e3, -1e4], dtype=dtype)
    got = ACTIVATIONS[name].derivatives(z, 3)
    for v in got:
        assert v.dtype == dtype
        assert torch.isfinite(v).all()
    if name == "sine":
        assert all((v.abs() <= 1).all() for v in got)
        return
    for sign, limits in zip((1, -1), LIMITS[name], strict=True):
        far = torch.tensor([sign * 1e4], dtype=dtype)
        phi, *rest = ACTIVATIONS[name].derivatives(far, 3)
        assert abs((phi / far).item() - limits[0]) <= 2e-4
        for v, limit in zip(rest, limits[1:], strict=True):
            assert abs(v.item() - limit) <= 1e-7


@pytest.mark.parametrize("name", NAMES)
def test_extreme_gradients_are_finite(name):
    """The formulas are differentiated again by an energy network's score: no inf * 0 may hide in their graphs."""
    for dtype in (torch.float16, torch.float32, torch.float64):
        z = torch.tensor([0.0, 1.0, 12.0, -12.0, 50.0, -50.0, 1e4, -1e4], dtype=dtype, requires_grad=True)
        for v in ACTIVATIONS[name].derivatives(z, 3):
            (grad,) = torch.autograd.grad(v.sum(), z, retain_graph=True)
            assert torch.isfinite(grad).all(), (name, dtype)


@pytest.mark.parametrize("name", NAMES)
def test_formulas_can_be_differentiated(name):
    """The derivative of each formula, by autograd, is the next formula."""
    z = points().requires_grad_(True)
    values = ACTIVATIONS[name].derivatives(z, 3)
    for low, high in pairwise(values):
        (grad,) = torch.autograd.grad(low.sum(), z, retain_graph=True)
        assert (grad - high).abs().max() <= 1e-10


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", NAMES)
def test_low_precision_is_as_accurate_as_the_dtype_allows(name, dtype):
    """Within a few units of the dtype's rounding of float64 on the same arguments, relative to max(1, |value|)."""
    z = points().to(dtype)
    exact = ACTIVATIONS[name].derivatives(z.double(), 3)
    for v, e in zip(ACTIVATIONS[name].derivatives(z, 3), exact, strict=True):
        error = (v.double() - e).abs() / e.abs().clamp(min=1)
        assert error.max() <= 16 * torch.finfo(dtype).eps


def test_softsign_takes_the_middle_of_its_jump():
    zero = torch.zeros(1, dtype=torch.float64)
    phi, first, second, third = ACTIVATIONS["softsign"].derivatives(zero, 3)
    assert (phi.item(), first.item(), second.item(), third.item()) == (0, 1, 0, 6)
    assert by_autograd("softsign", zero, 2)[2].item() == 0


def test_elu_takes_the_right_of_its_jump():
    zero = torch.zeros(1, dtype=torch.float64)
    assert [v.item() for v in ACTIVATIONS["elu"].derivatives(zero, 3)] == [0, 1, 0, 0]
    assert [v.item() for v in by_autograd("elu", zero, 2)] == [0, 1, 0]


@pytest.mark.parametrize("order", [-1, 4])
def test_order_is_checked(order):
    with pytest.raises(ValueError, match=f"order must be in 0..3, got {order}"):
        ACTIVATIONS["silu"].derivatives(torch.zeros(1), order)
