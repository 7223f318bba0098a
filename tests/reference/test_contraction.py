"""The contraction against matrices: `J v` of a linear score, whose forms are `v' J v`."""

from __future__ import annotations

import pytest
import torch

from fastscore.reference.contraction import contraction


def test_formula():
    matrix, x, v = torch.randn(3, 3), torch.randn(5, 3), torch.randn(2, 5, 3)
    matrix, x, v = matrix.double(), x.double(), v.double()
    squares, forms = contraction(x @ matrix.T, v @ matrix.T, v)
    torch.testing.assert_close(squares, 0.5 * torch.einsum("bi,ji,jk,bk->b", x, matrix, matrix, x), rtol=1e-13, atol=0)
    torch.testing.assert_close(forms, torch.einsum("kbi,ij,kbj->kb", v, matrix, v), rtol=1e-12, atol=1e-13)


def test_events_of_any_shape():
    s, p, v = torch.randn(4, 2, 3, 5), torch.randn(2, 4, 2, 3, 5), torch.randn(2, 4, 2, 3, 5)
    flat = contraction(s.flatten(1), p.flatten(2), v.flatten(2))
    assert all(torch.equal(a, b) for a, b in zip(contraction(s, p, v), flat, strict=True))
    assert contraction(None, p, v)[0] is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_sums_in_float32(dtype):
    s = torch.ones(1, 4099, dtype=dtype)
    squares, forms = contraction(s, s.unsqueeze(0), s.unsqueeze(0))
    assert squares.dtype == forms.dtype == torch.float32
    assert (squares.item(), forms.item()) == (4099 / 2, 4099)
