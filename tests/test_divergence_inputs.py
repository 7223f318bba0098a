"""Seeds, conditions, layouts, modes and dtypes of a divergence, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastscore import noise
from fastscore.divergence import Divergence, divergence, jacobian, laplacian
from fastscore.losses import implicit_score_matching, sliced_score_matching
from tests.brute import Convolutions, Cube, Energy, Function, Through, brute_jacobian, close, data, mlp


def test_a_weight_for_all_is_not_cut_with_a_batch_of_as_many_rows() -> None:
    net, x, c = mlp(3).double(), data(3, 3), data(3, 3, seed=2)
    close(divergence(net, x, weight=c, chunk_size=2).trace, divergence(net, x, weight=c).trace)


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16])
def test_a_weight_of_another_dtype_is_rounded_to_that_of_x(kind: torch.dtype) -> None:
    c = torch.eye(3).to(kind) * 2
    for x in (data(4, 3), data(4, 3, dtype=torch.float32)):
        for net in (lambda x: x.sin(), mlp(3).to(x.dtype)):
            for how in ({"trace": "exact"}, {"trace": "hutchinson", "seed": 1}):
                found = divergence(net, x, weight=c, **how)
                close(found.trace, 2 * divergence(net, x, **how).trace, 1e-5)
                assert found.trace.dtype == x.dtype


@pytest.mark.parametrize("chunk_size", [3, 5])  # three rows are read to recognise a network
def test_a_chunk_has_at_most_the_rows_it_is_allowed(chunk_size: int) -> None:
    seen: list[int] = []

    def score(x: Tensor) -> Tensor:
        seen.append(x.shape[0])
        return x.sin()

    def energy(x: Tensor) -> Tensor:
        return score(x).sum(1)

    for how in ({"trace": "exact"}, {"trace": "hutchinson", "n_probes": 2, "seed": 1}):
        divergence(score, data(7, 3), chunk_size=chunk_size, **how)
        laplacian(energy, data(7, 3), chunk_size=chunk_size, **how)
        implicit_score_matching(score, data(7, 3), chunk_size=chunk_size, **how).item()
    sliced_score_matching(score, data(7, 3), chunk_size=chunk_size, seed=1).item()
    jacobian(score, data(7, 3), chunk_size=chunk_size)
    assert max(seen) == chunk_size


def test_probes_depend_on_seed_probe_and_row_alone() -> None:
    net = mlp(3)
    x = data(9, 3, dtype=torch.float32)

    def estimate(**how: object) -> Divergence:
        return divergence(net, x, trace="hutchinson", **how)

    whole = estimate(n_probes=2, seed=7).trace
    torch.testing.assert_close(estimate(n_probes=2, seed=7, chunk_size=4).trace, whole)
    torch.testing.assert_close((estimate(seed=7).trace + 0 * whole)[:5], divergence(
        net, x[:5], trace="hutchinson", seed=7).trace)  # fmt: skip
    assert not torch.allclose(estimate(n_probes=2, seed=8).trace, whole)
    generator = torch.Generator().manual_seed(3)
    seed = noise.resolve_seed(None, torch.Generator().manual_seed(3))
    assert torch.equal(estimate(generator=generator).trace, estimate(seed=seed).trace)
    torch.manual_seed(1)
    first = estimate().trace
    torch.manual_seed(1)
    assert torch.equal(estimate().trace, first)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_conditions_are_passed_and_cut_with_the_batch(chunk_size: int | None) -> None:
    x, cond = data(5, 3), data(5, 1, seed=2)
    found = divergence(lambda x, c: c * x**2, x, cond=cond, chunk_size=chunk_size)
    close(found.score, cond * x**2)
    close(found.trace, (2 * cond * x).sum(1))
    shared = torch.tensor(2.0, dtype=torch.float64)
    close(divergence(lambda x, c: c * x**2, x, cond=shared, chunk_size=chunk_size).trace, 4 * x.sum(1))
    close(jacobian(lambda x, c: c * x**2, x, cond=3, chunk_size=chunk_size), torch.diag_embed(6 * x))


def test_a_condition_made_of_x_is_held_fixed() -> None:
    x = data(4, 3).requires_grad_()
    for function in (lambda x, c: x * c, lambda x, c: Cube.apply(x) / x**2 * c):
        close(divergence(function, x, cond=x * x, trace="exact").trace, (x * x).sum(1))


def test_layouts() -> None:
    net = Convolutions().double()
    x = data(4, 2, 3, 4)
    expected = divergence(net, x, trace="exact")
    for same in (
        x.contiguous(memory_format=torch.channels_last),
        x.transpose(2, 3).contiguous().transpose(2, 3),
        x.repeat_interleave(2, 0)[::2],
        torch.cat([x, x], 1)[:, :2],
    ):
        close(divergence(net, same, trace="exact")[:2], expected[:2], 1e-13)
    row = x[:1].expand(4, -1, -1, -1)
    close(divergence(net, row, trace="exact").trace, expected.trace[:1].expand(4), 1e-13)


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_an_empty_batch_gives_empty_results(trace: str) -> None:
    x = torch.zeros(0, 3)
    found = divergence(mlp(3), x, trace=trace, n_probes=2)
    assert (found.score.shape, found.trace.shape) == ((0, 3), (0,))
    assert jacobian(mlp(3), x).shape == (0, 3, 3)
    energy = laplacian(lambda x: x.square().sum(1), x, trace=trace)
    assert (energy.energy.shape, energy.score.shape, energy.laplacian.shape) == ((0,), (0, 3), (0,))


def test_one_bad_row_stays_alone() -> None:
    net, x = mlp(3), data(6, 3, dtype=torch.float32)
    bad = x.clone()
    bad[2, 1] = float("nan")
    expected, found = divergence(net, x), divergence(net, bad)
    keep = [0, 1, 3, 4, 5]
    assert torch.equal(found.trace[keep], expected.trace[keep])
    assert bool(found.trace[2].isnan())


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("operation", [torch.tanh, Cube.apply], ids=["jvp", "vjp"])
def test_without_gradients_nothing_is_kept(context: Callable[[], object], operation: Function) -> None:
    net = Through(operation).double()
    x = data(4, 3)
    expected = divergence(net, x)
    energy = Energy(operation).double()
    with context():
        found = divergence(net, x.clone())
        assert not found.trace.requires_grad
        assert not found.score.requires_grad
        assert not jacobian(net, x).requires_grad
        assert not laplacian(energy, data(4, 2, 3)).laplacian.requires_grad
    close(found[:2], tuple(t.detach() for t in expected[:2]))


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("operation", [torch.atan, torch.tanh])
def test_an_outer_forward_mode_is_not_lost(operation: Function, grad: bool) -> None:
    net, x, v = Through(operation).double(), data(4, 3), data(4, 3, seed=2)
    y = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(brute_jacobian(net, y)[1].diagonal(0, 1, 2).sum(), y)
    with torch.autograd.forward_ad.dual_level(), torch.set_grad_enabled(grad):
        dual = divergence(net, torch.autograd.forward_ad.make_dual(x, v)).trace
        tangent = torch.autograd.forward_ad.unpack_dual(dual).tangent
    close(tangent.detach(), (gradient * v).sum(1))


def test_inputs_are_left_alone() -> None:
    for operation in (torch.tanh, Cube.apply):
        x = data(4, 3)
        kept = x.clone()
        divergence(Through(operation).double(), x)
        assert torch.equal(x, kept)
        assert not x.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums_in_float32(dtype: torch.dtype) -> None:
    x = torch.zeros(2, 4096, dtype=dtype)
    found = divergence(lambda x: 1.5 * x, x, trace="hutchinson", n_probes=3, seed=1)
    assert found.score.dtype == dtype
    assert found.trace.dtype == torch.float32
    assert torch.equal(found.trace, torch.full((2,), 6144.0))


def test_autocast() -> None:
    net, x = mlp(3), data(8, 3, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = divergence(net, x)
    exact = divergence(net, x)
    assert found.trace.dtype == torch.float32
    torch.testing.assert_close(found.trace, exact.trace, rtol=0.05, atol=0.05)
    found.trace.sum().backward()


def test_frozen_parameters_get_no_gradient() -> None:
    net = mlp(3)
    net[0].requires_grad_(False)
    divergence(net, data(4, 3, dtype=torch.float32)).trace.sum().backward()
    assert net[0].weight.grad is None
    assert net[3].weight.grad is not None


def test_peak_of_a_chunked_backward_does_not_grow_with_the_batch() -> None:
    """Counts what autograd saves: with chunks, the activations of no chunk outlive its forward."""
    net = mlp(3)

    def saved(chunk_size: int | None) -> int:
        total = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            divergence(net, data(512, 3, dtype=torch.float32), chunk_size=chunk_size)
        return total

    assert saved(64) < saved(None) / 20


@pytest.mark.parametrize(
    ("error", "call", "message"),
    [
        (TypeError, lambda x: divergence(3, x), "score_fn must be callable, got int"),
        (TypeError, lambda x: divergence(torch.tanh, [1.0]), "x must be a tensor, got list"),
        (TypeError, lambda x: divergence(torch.tanh, x.long()), "x must be a floating point tensor, got torch.int64"),
        (ValueError, lambda x: divergence(torch.tanh, x[0]), r"x must have shape \[B, \*event\]"),
        (ValueError, lambda x: divergence(torch.tanh, x, trace="exakt"), "trace must be one of .* got 'exakt'"),
        (ValueError, lambda x: divergence(torch.tanh, x, probe="gauss"), "probe must be one of .* got 'gauss'"),
        (ValueError, lambda x: divergence(torch.tanh, x, n_probes=0), "n_probes must be at least 1, got 0"),
        (TypeError, lambda x: divergence(torch.tanh, x, n_probes=1.5), "n_probes must be an int, got 1.5"),
        (ValueError, lambda x: divergence(torch.tanh, x, chunk_size=0), "chunk_size must be at least 1, got 0"),
        (TypeError, lambda x: divergence(torch.tanh, x, trace="hutchinson", seed=1.0), "seed must be an int"),
        (ValueError, lambda x: divergence(torch.tanh, x, trace="hutchinson", seed=-1), "seed must be in"),
        (
            ValueError,
            lambda x: divergence(torch.tanh, x, trace="hutchinson", seed=1, generator=torch.Generator()),
            "seed or generator, not both",
        ),
        (ValueError, lambda x: divergence(torch.tanh, x, weight=torch.eye(2)), r"weight must have shape \[3, 3\]"),
        (TypeError, lambda x: divergence(torch.tanh, x, weight=3.0), "weight must be a tensor, got float"),
        (ValueError, lambda x: divergence(lambda x: x[:, :2], x), r"score_fn must return .* got \[4, 2\]"),
        (TypeError, lambda x: divergence(lambda x: None, x), "score_fn must return a tensor, got NoneType"),
        (ValueError, lambda x: divergence(lambda x: x.detach(), x), "does not depend on x for autograd"),
        (ValueError, lambda x: divergence(nn.BatchNorm1d(3), x), "BatchNorm in training mode"),
        (ValueError, lambda x: divergence(nn.Dropout(), x), "active dropout"),
        (ValueError, lambda x: divergence(lambda x: F.dropout(x, 0.1), x, trace="hutchinson"), "active dropout"),
        (ValueError, lambda x: divergence(lambda x: torch.dropout(x, 0.1, True), x), "active dropout"),
        (ValueError, lambda x: divergence(lambda x: torch.ops.aten.dropout(x, 0.1, True), x), "active dropout"),
        (
            ValueError,
            lambda x: divergence(lambda x: torch.native_batch_norm(x, None, None, None, None, True, 0.1, 1e-5)[0], x),
            "BatchNorm in training mode",
        ),
        (
            ValueError,
            lambda x: divergence(lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5), x[:, None]),
            "active dropout",
        ),
        (ValueError, lambda x: divergence(lambda x: x + torch.randn_like(x), x), "score_fn draws random numbers"),
        (TypeError, lambda x: jacobian(3, x), "score_fn must be callable, got int"),
        (ValueError, lambda x: jacobian(torch.tanh, x, chunk_size=-1), "chunk_size must be at least 1, got -1"),
        (TypeError, lambda x: laplacian(3, x), "energy_fn must be callable, got int"),
        (
            ValueError,
            lambda x: laplacian(torch.tanh, x),
            r"energy_fn must return one energy a sample, \[4\] or \[4, 1\]",
        ),
        (TypeError, lambda x: laplacian(lambda x: 1.0, x), "energy_fn must return a tensor, got float"),
        (ValueError, lambda x: laplacian(lambda x: x.sum(1), x, weight=torch.eye(2)), "weight must have shape"),
    ],
)
def test_errors_name_the_argument(error: type[Exception], call: Callable[[Tensor], object], message: str) -> None:
    with pytest.raises(error, match=message):
        call(torch.ones(4, 3))


def test_eval_mode_is_welcome() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 3)).double()
    net(data(16, 3))  # running statistics that are not the initial ones
    net.eval()
    x = data(5, 3)
    close(divergence(net, x).trace, brute_jacobian(net, x)[1].diagonal(0, 1, 2).sum(1))


def test_errors_of_the_function_itself_are_shown() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        divergence(lambda x: x @ torch.ones(4, 4), torch.ones(4, 3))
