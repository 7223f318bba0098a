"""Divergence, Jacobian and Laplacian of any callable: against loops of autograd.grad in float64 and closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastscore import noise
from fastscore.divergence import divergence, jacobian, laplacian
from tests.brute import (
    Convolutions,
    Cube,
    Energy,
    Function,
    Through,
    brute_jacobian,
    close,
    compare_with_gradients,
    data,
    gradients,
    mlp,
)


class Attention(nn.Module):
    """A transformer block over a set of points."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(3), nn.Linear(3, 12), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (2, 2)).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, -1))
        return x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@torch.library.custom_op("fastscore_tests::square", mutates_args=())
def square(x: Tensor) -> Tensor:
    return x * x


square.register_autograd(
    lambda ctx, gradient: 2 * gradient * ctx.saved_tensors[0],
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
)


class EnergyScore(nn.Module):
    """A score that calls autograd itself, as energy models written by hand do; of a square, which is not read."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x if x.requires_grad else x.requires_grad_()
            return -torch.autograd.grad(self.energy(x).square().sum(), x, create_graph=True)[0]


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "mlp": (lambda: mlp(3), (5, 3), "jvp"),
    "one feature": (lambda: mlp(1), (5, 1), "jvp"),
    "convolutions": (Convolutions, (3, 2, 4, 3), "jvp"),
    "attention": (Attention, (3, 4, 3), "jvp"),
    "legacy function": (lambda: Through(Cube.apply), (4, 3), "vjp"),
    "custom operator": (lambda: Through(lambda x: square(x)), (4, 3), "vjp"),
    "autograd inside": (EnergyScore, (4, 3), "vjp"),
}


@pytest.fixture(params=NETWORKS)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, str]:
    make, shape, mode = NETWORKS[request.param]
    torch.manual_seed(3)
    return make().double(), data(*shape), mode


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_exact_trace_and_all_gradients(case: tuple[nn.Module, Tensor, str], chunk_size: int | None) -> None:
    net, points, mode = case
    x, y = points.clone().requires_grad_(), points.clone().requires_grad_()
    found = divergence(net, x, trace="exact", chunk_size=chunk_size)
    s, j = brute_jacobian(net, y)
    assert found.method == f"exact-{mode}"
    assert found.stderr is None
    compare_with_gradients(found[:2], (s, j.diagonal(0, 1, 2).sum(1)), x, y, net)


@pytest.mark.parametrize("probe", ["rademacher", "normal"])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_hutchinson_and_all_gradients(case: tuple[nn.Module, Tensor, str], chunk_size: int | None, probe: str) -> None:
    net, points, mode = case
    x, y = points.clone().requires_grad_(), points.clone().requires_grad_()
    found = divergence(net, x, trace="hutchinson", n_probes=3, probe=probe, seed=5, chunk_size=chunk_size)
    s, j = brute_jacobian(net, y)
    draw = getattr(noise, probe)
    v = torch.stack([draw(y.shape, seed=5, stream=noise.Stream.PROBES, step=k, dtype=y.dtype) for k in range(3)])
    each = torch.einsum("kbi,bij,kbj->kb", v.flatten(2), j, v.flatten(2))
    assert found.method == f"hutchinson-{mode}"
    compare_with_gradients(found[:2], (s, each.mean(0)), x, y, net)
    close(found.stderr, each.detach().std(0) / math.sqrt(3))
    assert not found.stderr.requires_grad


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_weighted_trace(case: tuple[nn.Module, Tensor, str], per_sample: bool, trace: str) -> None:
    net, x, mode = case
    batch, d = x.shape[0], x[0].numel()
    c = data(batch, d, d, seed=2) if per_sample else data(d, d, seed=2)
    c.requires_grad_()
    found = divergence(net, x, trace=trace, n_probes=2, seed=5, weight=c, chunk_size=2)
    product = c @ brute_jacobian(net, x)[1]
    if trace == "exact":
        expected = product.diagonal(0, 1, 2).sum(1)
    else:
        v = [noise.rademacher((batch, d), seed=5, stream=noise.Stream.PROBES, step=k, dtype=x.dtype) for k in (0, 1)]
        expected = sum(torch.einsum("bi,bij,bj->b", u, product, u) for u in v) / 2
    assert found.method == f"{trace}-{mode}"
    close(found.trace, expected)
    close(gradients([found.trace], [c, *net.parameters()]), gradients([expected], [c, *net.parameters()]))


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_jacobian_and_all_gradients(case: tuple[nn.Module, Tensor, str], chunk_size: int | None) -> None:
    net, points, _ = case
    x, y = points.clone().requires_grad_(), points.clone().requires_grad_()
    found, expected = jacobian(net, x, chunk_size=chunk_size), brute_jacobian(net, y)[1]
    close(found, expected)
    close(gradients([found], [x, *net.parameters()]), gradients([expected], [y, *net.parameters()]))


LAYERS: dict[str, tuple[Function, tuple[int, ...], str]] = {
    "layer_norm": (lambda x: F.layer_norm(x, (2, 3), WEIGHT, BIAS), (4, 2, 3), "jvp"),
    "torch.layer_norm": (lambda x: torch.layer_norm(x, (3,)), (4, 2, 3), "jvp"),
    "rms_norm": (lambda x: F.rms_norm(x, (2, 3), WEIGHT, 1e-3), (4, 2, 3), "jvp"),
    "rms_norm default": (lambda x: F.rms_norm(x, (3,)), (4, 2, 3), "jvp"),
    "group_norm": (lambda x: F.group_norm(x, 2, WEIGHT.flatten()[:4], BIAS.flatten()[:4], 1e-3), (3, 4, 2), "jvp"),
    "torch.group_norm": (lambda x: torch.group_norm(x, 1, eps=1e-3), (3, 2, 2, 2), "jvp"),
    "instance_norm": (lambda x: F.instance_norm(x, weight=WEIGHT[0], bias=BIAS[0]), (2, 3, 4), "jvp"),
    "instance_norm eval": (
        lambda x: F.instance_norm(x.sin(), BIAS[0].clone(), WEIGHT[0].clone(), use_input_stats=False).sin(),
        (2, 3, 4),
        "jvp",
    ),
    "instance_norm tracked": (lambda x: F.instance_norm(x, BIAS[0].clone(), WEIGHT[0].clone()), (2, 3, 4), "jvp"),
    "torch.instance_norm": (
        lambda x: torch.instance_norm(x, WEIGHT[0], BIAS[0], None, None, True, 0.1, 1e-5, False),
        (2, 3, 4),
        "jvp",
    ),
    "torch.native_layer_norm": (lambda x: torch.native_layer_norm(x, [2, 3], WEIGHT, BIAS, 1e-5)[0], (4, 2, 3), "jvp"),
    "torch.native_group_norm": (
        lambda x: torch.native_group_norm(x, WEIGHT[0], BIAS[0], 2, 3, 4, 3, 1e-5)[0],
        (2, 3, 4),
        "jvp",
    ),
    "aten.layer_norm": (lambda x: torch.ops.aten.layer_norm(x, [2, 3], WEIGHT, BIAS), (4, 2, 3), "jvp"),
    "aten.native_layer_norm": (
        lambda x: torch.ops.aten.native_layer_norm.default(x, [2, 3], WEIGHT, BIAS, 1e-5)[0],
        (4, 2, 3),
        "jvp",
    ),
    "aten.linalg_solve": (lambda x: torch.ops.aten.linalg_solve(x + 4 * torch.eye(3), x), (2, 3, 3), "vjp"),
    "triangular_solve": (lambda x: torch.triangular_solve(x, x + 4 * torch.eye(3))[0], (2, 3, 3), "vjp"),
    "select_scatter": (lambda x: torch.select_scatter(x, x[:, 0].sin(), 1, -1), (4, 3), "jvp"),
    "Tensor.select_scatter": (lambda x: x.select_scatter(x[:, 0].sin(), 1, 2), (4, 3), "jvp"),
    "scatter_reduce": (lambda x: torch.scatter_reduce(x, 1, INDEX, x.sin(), "prod"), (4, 3), "vjp"),
    "Tensor.scatter_reduce": (lambda x: x.scatter_reduce(1, INDEX, x.sin(), "prod"), (4, 3), "vjp"),
    "Tensor.scatter_reduce_": (lambda x: x.clone().scatter_reduce_(1, INDEX, x.sin(), "prod"), (4, 3), "vjp"),
    "batch_norm eval": (lambda x: F.batch_norm(x.sin(), BIAS[0], WEIGHT[0]).sin(), (4, 3), "jvp"),
    "glu": (lambda x: F.glu(torch.cat([x, x.sin()], 1), 1), (4, 3), "jvp"),
    "multi_head_attention": (lambda x: ATTENTION(x, x, x)[0], (2, 3, 4), "jvp"),
    "layer_norm in reverse mode": (lambda x: F.layer_norm(Cube.apply(x), (3,)), (4, 3), "vjp"),
    "det": (lambda x: x * torch.linalg.det(x + 2 * torch.eye(3))[:, None, None], (2, 3, 3), "vjp"),
    "logdet": (lambda x: x * torch.logdet(x @ x.mT + torch.eye(3))[:, None, None], (2, 3, 3), "vjp"),
    "solve": (lambda x: torch.linalg.solve(x + 4 * torch.eye(3), x), (2, 3, 3), "vjp"),
}


def standard(x: Tensor, *dims: int) -> Tensor:
    return (x - x.mean(dims, keepdim=True)) / (x.var(dims, correction=0, keepdim=True) + 1e-5).sqrt()


# A third autograd.grad through torch's own layer_norm is wrong, too: these are what the Laplacian is compared with.
WRITTEN_OUT: dict[str, Function] = {
    "layer_norm": lambda x: standard(x, 1, 2) * WEIGHT + BIAS,
    "torch.layer_norm": lambda x: standard(x, 2),
    "instance_norm tracked": lambda x: standard(x, 2),
    "instance_norm": lambda x: standard(x, 2) * WEIGHT[0, :, None] + BIAS[0, :, None],
    "layer_norm in reverse mode": lambda x: standard(Cube.apply(x), 1),
}
WRITTEN_OUT |= dict.fromkeys(["torch.instance_norm", "torch.native_group_norm"], WRITTEN_OUT["instance_norm"])
WRITTEN_OUT |= dict.fromkeys(
    ["torch.native_layer_norm", "aten.layer_norm", "aten.native_layer_norm"], WRITTEN_OUT["layer_norm"]
)
INDEX = torch.tensor([[0, 1, 1]]).expand(4, 3)
WEIGHT, BIAS = 1 + data(2, 3, seed=3).abs(), data(2, 3, seed=4)
ATTENTION = nn.MultiheadAttention(4, 2, batch_first=True).double()


@pytest.mark.parametrize("name", LAYERS)
def test_layers_that_forward_mode_gets_wrong_or_refuses(name: str) -> None:
    """In torch 2.13 the tangents of many of these have silently wrong gradients."""
    layer, shape, mode = LAYERS[name]
    written_out = WRITTEN_OUT.get(name, layer)
    x, y = data(*shape).requires_grad_(), data(*shape).requires_grad_()
    found = divergence(layer, x, trace="exact")
    s, j = brute_jacobian(written_out, y)
    assert found.method == f"exact-{mode}"
    close(found[:2], (s, j.diagonal(0, 1, 2).sum(1)))
    close(found[:2], (layer(x), brute_jacobian(layer, y)[1].diagonal(0, 1, 2).sum(1)))
    expected = gradients([s, j.diagonal(0, 1, 2).sum(1)], [y])
    close(gradients(list(found[:2]), [x]), expected, 1e-9)

    def energy(x: Tensor) -> Tensor:
        return written_out(x).square().flatten(1).sum(1)

    lap = laplacian(lambda x: layer(x).square().flatten(1).sum(1), x, trace="exact")
    assert lap.method == f"exact-{mode}"
    g = torch.autograd.grad(energy(y).sum(), y, create_graph=True)[0]
    h = brute_jacobian(lambda x: torch.autograd.grad(energy(x).sum(), x, create_graph=True)[0], y)[1]
    close(lap.score, -g, 1e-9)
    close(lap.laplacian, h.diagonal(0, 1, 2).sum(1), 1e-9)
    close(gradients([lap.laplacian], [x]), gradients([h.diagonal(0, 1, 2).sum(1)], [y]), 1e-8)


@pytest.mark.parametrize(
    ("operation", "method"),
    [(torch.tanh, "forward-laplacian"), (F.tanhshrink, "exact-jvp"), (Cube.apply, "exact-vjp")],
    ids=["recognised", "jvp", "vjp"],
)
@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("chunk_size", [None, 3])
def test_laplacian_and_all_gradients(operation: Function, method: str, column: bool, chunk_size: int | None) -> None:
    torch.manual_seed(4)
    net = Energy(operation, column).double()
    points, cond = data(4, 2, 3), data(4, 5, seed=2)
    x, y = points.clone().requires_grad_(), points.clone().requires_grad_()
    found = laplacian(net, x, cond=cond, trace="exact", chunk_size=chunk_size)
    energy = net(y, cond).reshape(4)
    gradient = torch.autograd.grad(energy.sum(), y, create_graph=True)[0]
    rows = [torch.autograd.grad(gradient.flatten(1)[:, i].sum(), y, create_graph=True)[0] for i in range(6)]
    total = sum(row.flatten(1)[:, i] for i, row in enumerate(rows))
    close(found[:3], (energy, -gradient, total))
    assert found.stderr is None
    expected = gradients([energy, -gradient, total], [y, *net.parameters()])
    close(gradients(list(found[:3]), [x, *net.parameters()]), expected)
    if chunk_size is None or method == "forward-laplacian":  # checkpointing has no forward mode over a gradient
        assert found.method == method


def test_signs_and_scales_on_closed_forms() -> None:
    matrix = torch.tensor([[2.0, 0.5, 0.0], [0.5, 3.0, 0.1], [0.0, 0.1, 1.0]], dtype=torch.float64)
    x = data(4, 3)
    found = divergence(lambda x: -x @ matrix, x)
    close(found.score, -x @ matrix)
    close(found.trace, torch.full((4,), -6.0, dtype=torch.float64))
    energy = laplacian(lambda x: 0.5 * ((x @ matrix) * x).sum(1), x)
    close(energy.score, -x @ matrix)
    close(energy.laplacian, torch.full((4,), 6.0, dtype=torch.float64))
    close(jacobian(lambda x: x @ matrix.triu().T, x), matrix.triu().expand(4, 3, 3))
    estimate = laplacian(lambda x: 0.5 * ((x @ matrix) * x).sum(1), x, trace="hutchinson", n_probes=4, seed=1)
    close(estimate.laplacian, -divergence(lambda x: -x @ matrix, x, trace="hutchinson", n_probes=4, seed=1).trace)
    assert estimate.method == "hutchinson-jvp"


@pytest.mark.parametrize("n_probes", [1, 2, 7])
@pytest.mark.parametrize("probe", ["rademacher", "normal"])
def test_hutchinson_mean_and_variance_are_their_formulas(n_probes: int, probe: str) -> None:
    n = 2**16
    matrix = torch.tensor([[-2.0, 1.5, 0.3], [-0.4, -1.0, 0.8], [0.6, 0.2, -3.0]], dtype=torch.float64)
    found = divergence(
        lambda x: x @ matrix.T, torch.zeros(n, 3, dtype=torch.float64),
        trace="hutchinson", n_probes=n_probes, probe=probe, seed=17,
    )  # fmt: skip
    symmetric = (matrix + matrix.T) / 2
    square = symmetric.square().sum() - (symmetric.diagonal().square().sum() if probe == "rademacher" else 0)
    variance = 2 * float(square) / n_probes
    deviations = found.trace - matrix.trace()
    assert abs(float(deviations.mean())) < 5 * math.sqrt(variance / n)
    squares = deviations.square()
    assert abs(float(squares.mean()) - variance) < 5 * float(squares.std()) / math.sqrt(n)
    if n_probes == 1:
        assert found.stderr is None
    else:
        errors = found.stderr.square()
        assert abs(float(errors.mean()) - variance) < 5 * float(errors.std()) / math.sqrt(n)
