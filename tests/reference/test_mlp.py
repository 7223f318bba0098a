"""The plain meaning of the structured network against brute-force autograd in float64."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fastscore.reference import mlp as reference
from fastscore.reference.activations import ACTIVATIONS
from fastscore.reference.mlp import MLP

NAMES = tuple(sorted(ACTIVATIONS))
# dim, widths, residual layers
SHAPES = [
    (1, (5,), ()),
    (3, (4,), ()),
    (2, (7, 7), (1,)),
    (4, (5, 3), ()),
    (3, (6, 6, 4), (1,)),
    (2, (3, 5, 5), (2,)),
    (1, (4, 4, 4), (1, 2)),
    (5, (4, 6, 6, 6), (2, 3)),
    (3, (2, 4, 3, 5), ()),
    (6, (5, 2, 4), ()),
    (7, (5, 5, 3, 2, 2), (1, 4)),
    (7, (2, 2, 2, 5, 5, 5), (1, 2, 4, 5)),
    (6, (6, 5, 5, 2), (2,)),
]


def network(dim: int, widths: tuple[int, ...], residual: tuple[int, ...], seed: int, outputs: int | None = None) -> MLP:
    """A random network; the activations rotate with the seed and one bias is absent."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (dim, *widths, dim if outputs is None else outputs)
    weights = tuple(
        torch.randn(after, before, generator=generator, dtype=torch.float64) / before**0.5
        for before, after in pairwise(sizes)
    )
    biases = tuple(torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes[1:])
    return MLP(
        weights,
        (*biases[:-1], None) if seed % 2 else biases,
        tuple(NAMES[(seed + layer) % len(NAMES)] for layer in range(len(widths))),
        tuple(layer in residual for layer in range(len(widths))),
    )


def inputs(mlp: MLP, seed: int, batch: int = 3) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """A batch and shifts of every other layer."""
    generator = torch.Generator().manual_seed(1000 + seed)
    x = torch.randn(batch, mlp.dim, generator=generator, dtype=torch.float64)
    shifts = tuple(
        torch.randn(batch, weight.shape[0], generator=generator, dtype=torch.float64) if (seed + layer) % 2 else None
        for layer, weight in enumerate(mlp.weights)
    )
    return x, shifts


def by_hand(mlp: MLP, x: Tensor, shifts: tuple[Tensor | None, ...]) -> Tensor:
    """One sample through the network, written without the library's loops."""
    h = x
    for layer, name in enumerate(mlp.activations):
        z = mlp.weights[layer] @ h
        for term in (mlp.biases[layer], shifts[layer]):
            z = z if term is None else z + term
        h = ACTIVATIONS[name](z) + (h if mlp.residuals[layer] else 0)
    out = mlp.weights[-1] @ h
    for term in (mlp.biases[-1], shifts[-1]):
        out = out if term is None else out + term
    return out


def jacobians(mlp: MLP, x: Tensor, shifts: tuple[Tensor | None, ...]) -> Tensor:
    rows = [tuple(None if u is None else u[b] for u in shifts) for b in range(len(x))]
    jacobian = torch.autograd.functional.jacobian
    return torch.stack([jacobian(lambda v, row=row: by_hand(mlp, v, row), v) for v, row in zip(x, rows, strict=True)])


CASES = [(*shape, seed) for seed, shape in enumerate(SHAPES + SHAPES[::-1])]


@pytest.mark.parametrize(("dim", "widths", "residual", "seed"), CASES)
def test_score_trace_and_jacobian_equal_brute_force(dim, widths, residual, seed):
    mlp = network(dim, widths, residual, seed)
    x, shifts = inputs(mlp, seed)
    expected = jacobians(mlp, x, shifts)
    rows = [by_hand(mlp, v, tuple(None if u is None else u[b] for u in shifts)) for b, v in enumerate(x)]
    score, trace = reference.score_and_trace(mlp, x, shifts)
    torch.testing.assert_close(score, torch.stack(rows), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(reference.forward(mlp, x, shifts), score, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(trace, expected.diagonal(dim1=1, dim2=2).sum(-1), rtol=1e-11, atol=1e-11)
    same_score, jacobian = reference.score_and_jacobian(mlp, x, shifts)
    torch.testing.assert_close(same_score, score)
    torch.testing.assert_close(jacobian, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize(("dim", "widths", "residual", "seed"), CASES[: len(SHAPES)])
def test_weighted_trace_equals_brute_force(dim, widths, residual, seed, per_sample):
    mlp = network(dim, widths, residual, seed)
    x, shifts = inputs(mlp, seed)
    shape = (len(x), dim, dim) if per_sample else (dim, dim)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    _, trace = reference.score_and_trace(mlp, x, shifts, weight=weight)
    expected = torch.einsum("...ij,bji->b" if not per_sample else "bij,bji->b", weight, jacobians(mlp, x, shifts))
    torch.testing.assert_close(trace, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("dim", "widths", "residual", "seed"), CASES[: len(SHAPES)])
def test_every_probe_gives_its_quadratic_form(dim, widths, residual, seed, weighted):
    mlp = network(dim, widths, residual, seed)
    x, shifts = inputs(mlp, seed)
    generator = torch.Generator().manual_seed(seed)
    probes = torch.randn(len(x), 2, dim, generator=generator, dtype=torch.float64)
    weight = torch.randn(dim, dim, generator=generator, dtype=torch.float64) if weighted else None
    score, quadratic = reference.score_and_quadratic(mlp, x, shifts, probes, weight=weight)
    matrix = jacobians(mlp, x, shifts) if weight is None else weight @ jacobians(mlp, x, shifts)
    expected = torch.einsum("bki,bij,bkj->bk", probes, matrix, probes)
    torch.testing.assert_close(quadratic, expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(score, reference.forward(mlp, x, shifts))


@pytest.mark.parametrize(("dim", "widths", "residual", "seed"), CASES)
def test_energy_terms_equal_brute_force(dim, widths, residual, seed):
    mlp = network(dim, widths, residual, seed, outputs=1)
    x, shifts = inputs(mlp, seed)
    energy, score, laplacian = reference.energy_terms(mlp, x, shifts)
    for b, v in enumerate(x):
        row = tuple(None if u is None else u[b] for u in shifts)

        def scalar(v, row=row):
            return by_hand(mlp, v, row).squeeze(0)

        hessian = torch.autograd.functional.hessian(scalar, v)
        torch.testing.assert_close(energy[b], scalar(v), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(score[b], -torch.autograd.functional.jacobian(scalar, v), rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(laplacian[b], hessian.trace(), rtol=1e-10, atol=1e-10)


def test_second_order_autograd_and_transforms_see_plain_operations():
    mlp = network(2, (3, 3, 3), (1,), 4)
    x, shifts = inputs(mlp, 4)

    def total(x, *weights):
        score, trace = reference.score_and_trace(MLP(weights, mlp.biases, mlp.activations, mlp.residuals), x, shifts)
        return score, trace

    arguments = tuple(t.clone().requires_grad_() for t in (x, *mlp.weights))
    assert torch.autograd.gradcheck(total, arguments, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(total, arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"biases": (None,)}, "L \\+ 1 weights and biases"),
        ({"weights": (torch.ones(3, 2), torch.ones(2, 4))}, "do not chain"),
        ({"residuals": (True,)}, "residuals\\[0\\]"),
    ],
)
def test_inconsistent_networks_are_refused(change, message):
    fields = {"weights": (torch.ones(3, 2), torch.ones(2, 3)), "biases": (None, None), "activations": ("tanh",)}
    with pytest.raises(ValueError, match=message):
        MLP(**{**fields, "residuals": (False,), **change})
