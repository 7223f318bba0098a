"""The compiled passes over a layer: against float64, at the ends of the range, and where there is no compiler."""

from __future__ import annotations

import math

import pytest
import torch

from fastscore import _config
from fastscore.ops import _cpu_build, _cpu_layers
from fastscore.reference.activations import ACTIVATIONS

NAMES = [name for name in ACTIVATIONS if _cpu_layers.knows(name)]


@pytest.fixture(scope="module")
def layers() -> _cpu_layers.Layers:
    if _cpu_build.library(build=True) is None:
        pytest.skip("no C compiler here")
    found = _cpu_layers.layers(torch.zeros(1), 1 << 30)
    assert found is not None
    return found


def jets(layers, name: str, z: torch.Tensor, order: int = 3, bias: torch.Tensor | None = None) -> list[torch.Tensor]:
    outputs = [torch.full_like(z, 7.0) for _ in range(order + 1)]
    layers.jets(name, z, torch.zeros(z.shape[1]) if bias is None else bias, outputs)
    return outputs


def test_the_usual_activations_are_known():
    assert {"silu", "tanh", "softplus", "softsign", "gelu", "gelu_tanh"} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_jets_err_at_most_twice_as_much_as_torch(layers, name):
    """In every octave, but for half a unit in the last place, and for what float64 itself loses at the far end."""
    for sign in (1, -1):
        for power in range(-10, 16):
            z = (sign * 2.0**power * (1 + torch.arange(1024) / 1024)).reshape(8, 128)
            exact = ACTIVATIONS[name].derivatives(z.double(), 3)
            for got, theirs, want in zip(
                jets(layers, name, z), ACTIVATIONS[name].derivatives(z, 3), exact, strict=True
            ):
                rounding = 2.0**-24 * float(want.abs().max()) + 1e-25
                mine, torchs = ((v.double() - want).abs().max().item() for v in (got, theirs))
                assert mine <= 2 * torchs + rounding, (sign, power, mine, torchs)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("order", range(4))
def test_jets_of_every_order_and_shape_add_the_bias(layers, name, order):
    for rows, width in ((1, 1), (3, 7), (5, 64), (2, 131)):
        generator = torch.Generator().manual_seed(rows)
        z, bias = torch.randn(rows, width, generator=generator), torch.randn(width, generator=generator)
        got, want = jets(layers, name, z, order, bias), ACTIVATIONS[name].derivatives((z + bias).double(), order)
        assert len(got) == order + 1
        for value, expected in zip(got, want, strict=True):
            torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-6)
        again = z.clone()
        layers.jets(name, again, bias, [again, *got[1:]])
        assert torch.equal(again, got[0])


@pytest.mark.parametrize("name", NAMES)
def test_the_bits_of_an_element_do_not_depend_on_where_it_is(layers, name):
    z = 3 * torch.randn(1, 1001, generator=torch.Generator().manual_seed(1))
    for one, other in zip(jets(layers, name, z), jets(layers, name, z.t().contiguous()), strict=True):
        assert torch.equal(one.flatten(), other.flatten())


@pytest.mark.parametrize("name", NAMES)
def test_special_values(layers, name):
    z = torch.tensor([[0.0, -0.0, math.nan, math.inf, -math.inf, 3e38, -3e38]])
    got = torch.cat(jets(layers, name, z))
    at_zero = torch.stack(ACTIVATIONS[name].derivatives(torch.zeros(2, dtype=torch.float64), 3))
    torch.testing.assert_close(got[:, :2].double(), at_zero, rtol=1e-6, atol=0)
    assert got[:, 2].isnan().all()
    known = ACTIVATIONS[name].function(z.double())[0, 3:].float()
    torch.testing.assert_close(got[0, 3:], known, equal_nan=True)


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 130), (64, 64), (131, 65), (200, 7)])
@pytest.mark.parametrize("pairs", [1, 2])
@pytest.mark.parametrize("above", [True, False])
def test_pull(layers, rows, width, pairs, above):
    generator = torch.Generator().manual_seed(rows)
    made = [torch.randn(rows, width, generator=generator) for _ in range(2 + 2 * pairs)]
    d, a, bent = made[0], made[1] if above else None, list(zip(made[2::2], made[3::2], strict=True))
    want = sum(-0.7 * left.double() * right.double() for left, right in bent)
    want = want + d.double() * a.double() if a is not None else want
    total = torch.ones(width)
    got = d.clone()
    layers.pull(got, a, bent, -0.7, total)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(total.double(), 1 + want.sum(0), rtol=1e-5, atol=1e-5 * rows**0.5)
    unsummed = d.clone()
    layers.pull(unsummed, a, bent, -0.7, None)
    assert torch.equal(unsummed, got)


@pytest.mark.parametrize("width", [1, 8, 31, 32, 100, 257])
def test_row_products(layers, width):
    left, right = torch.randn(2, 5, width, generator=torch.Generator().manual_seed(width))
    want = (left.double() * right.double()).sum(1)
    torch.testing.assert_close(layers.row_products(left, right).double(), want, rtol=1e-5, atol=1e-5)


def test_what_is_not_contiguous_is_copied(layers):
    left, right, d = torch.randn(3, 9, 12, generator=torch.Generator().manual_seed(0))
    turned = [array.t().contiguous().t() for array in (left, right)]
    assert torch.equal(layers.row_products(*turned), layers.row_products(left, right))
    for above in (left, turned[0]):
        got = d.clone()
        layers.pull(got, above, [(turned[1], left)], 1.0, None)
        torch.testing.assert_close(got, d * left + right * left)
    one, other = torch.empty(9, 12), torch.empty(9, 12)
    layers.jets("silu", left, torch.zeros(12), [one])
    layers.jets("silu", turned[0], torch.zeros(24)[::2], [other])
    assert torch.equal(one, other)


def test_who_is_served(layers, monkeypatch):
    x, many = torch.zeros(1), 1 << 30
    assert _cpu_layers.layers(x, many) is layers
    assert _cpu_layers.layers(x, 100) is None
    assert _cpu_layers.layers(x.double(), many) is None
    assert _cpu_layers.layers(x.to("meta"), many) is None
    monkeypatch.setattr(_config, "backend", lambda: "triton")
    assert _cpu_layers.layers(x, many) is None


def test_nobody_is_served_without_a_compiler(monkeypatch):
    monkeypatch.setattr(_cpu_build, "library", lambda *, build: None)
    assert _cpu_layers.layers(torch.zeros(1), 1 << 30) is None


def test_nobody_is_served_by_a_library_that_computes_something_else(layers, monkeypatch):
    monkeypatch.setattr(_cpu_layers.Layers, "jets", lambda self, name, z, bias, outputs: outputs[0].zero_())
    assert _cpu_layers._wrapped.__wrapped__(_cpu_build.library(build=True)) is None


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 4, 130), (5, 1, 64), (2, 9, 7)])
def test_contract_and_spread(layers, shape):
    generator = torch.Generator().manual_seed(shape[1])
    a, b = (torch.randn(*shape, generator=generator) for _ in range(2))
    d, e = (torch.randn(shape[0], shape[2], generator=generator) for _ in range(2))
    out = torch.full_like(d, 7.0)
    layers.contract(a, b.transpose(0, 2).contiguous().transpose(0, 2), out)
    torch.testing.assert_close(out.double(), (a.double() * b.double()).sum(1), rtol=1e-5, atol=1e-5)
    layers.contract(a, b[0], out)
    torch.testing.assert_close(out.double(), (a.double() * b[0].double()).sum(1), rtol=1e-5, atol=1e-5)
    once, twice = torch.full_like(a, 7.0), a.clone()
    layers.spread(once, -1.5, [(a, d)])
    torch.testing.assert_close(once, -1.5 * a * d.unsqueeze(1))
    layers.spread(twice, 2.0, [(twice, d), (b, e)])
    torch.testing.assert_close(twice, 2.0 * a * d.unsqueeze(1) + b * e.unsqueeze(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("terms", [1, 2, 255, 256, 257, 600])
@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True), (True, True)])
def test_product(layers, terms, turned):
    """Sizes about every block's edge, either side transposed, with a bias, added, and beside memory of others."""
    generator = torch.Generator().manual_seed(terms)

    def made(rows: int, columns: int, transposed: bool) -> torch.Tensor:
        shape = (columns, rows) if transposed else (rows, columns)
        return torch.randn(*shape, generator=generator).t() if transposed else torch.randn(*shape, generator=generator)

    for rows in (1, 5, 6, 8, 95, 96, 97, 200):
        for columns in (1, 2, 8, 15, 16, 17, 31, 32, 33, 255, 256, 257):
            left, right = made(rows, terms, turned[0]), made(terms, columns, turned[1])
            exact = left.double() @ right.double()
            bias, beside = torch.randn(2, columns, generator=generator)[1], torch.full((rows + 1, columns + 5), 7.0)
            for b, add in ((None, False), (bias, False), (None, True)):
                out = beside.clone()
                layers.product(out[:rows, 2:-3], left, right, b, add=add)
                want = exact + (b.double() if b is not None else 7.0 if add else 0.0)
                torch.testing.assert_close(out[:rows, 2:-3].double(), want, rtol=1e-5, atol=3e-6 * terms**0.5 + 1e-6)
                out[:rows, 2:-3] = 7.0
                assert torch.equal(out, beside), "it wrote beside its result"


def test_a_product_errs_at_most_twice_as_much_as_torchs(layers):
    generator = torch.Generator().manual_seed(3)
    for rows, columns, terms in ((512, 128, 128), (128, 128, 2048), (300, 768, 768)):
        left, right = torch.randn(rows, terms, generator=generator), torch.randn(terms, columns, generator=generator)
        exact = left.double() @ right.double()
        layers.product(out := torch.empty(rows, columns), left, right)
        mine, theirs = ((v.double() - exact).square().mean().sqrt() for v in (out, left @ right))
        assert mine <= 2 * theirs


@pytest.mark.parametrize("columns", [8, 40, 300])
def test_the_bits_of_a_row_of_a_product_do_not_depend_on_the_others(layers, columns):
    generator = torch.Generator().manual_seed(columns)
    left, right = torch.randn(203, 300, generator=generator), torch.randn(300, columns, generator=generator)
    whole = torch.empty(203, columns)
    layers.product(whole, left, right)
    for rows in (slice(0, 1), slice(7, 8), slice(96, 203), slice(50, 150), slice(202, 203)):
        part = torch.empty(len(left[rows]), columns)
        layers.product(part, left[rows], right)
        assert torch.equal(part, whole[rows])


def test_what_is_not_finite_stays_in_its_row_of_a_product(layers):
    left, right = torch.ones(20, 9), torch.ones(9, 21)
    left[3, 4], left[11, 0] = math.nan, math.inf
    layers.product(out := torch.empty(20, 21), left, right)
    assert out[3].isnan().all()
    assert out[11].isposinf().all()
    assert (out[[i for i in range(20) if i not in (3, 11)]] == 9).all()
