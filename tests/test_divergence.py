"""Divergence, Jacobian and Laplacian of any callable: against loops of autograd.grad in float64 and closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastscore import noise
from fastscore.divergence import Divergence, divergence, jacobian, laplacian
from fastscore.networks import EnergyMLP, ScoreMLP

Function = Callable[[Tensor], Tensor]


def data(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return noise.normal(shape, seed=seed, stream=noise.Stream.DATA, dtype=dtype)


class Convolutions(nn.Module):
    """A small image score network."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.SiLU(), nn.Conv2d(8, 2, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)


class Attention(nn.Module):
    """A transformer block over a set of points."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(3), nn.Linear(3, 12), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (2, 2)).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, -1))
        return x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Cube(torch.autograd.Function):
    """x^3 as a legacy Function without a forward rule."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 3 * gradient * x**2


@torch.library.custom_op("fastscore_tests::square", mutates_args=())
def square(x: Tensor) -> Tensor:
    return x * x


square.register_autograd(
    lambda ctx, gradient: 2 * gradient * ctx.saved_tensors[0],
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
)


class Through(nn.Module):
    """A linear layer followed by an operation."""

    def __init__(self, operation: Function) -> None:
        super().__init__()
        self.linear, self.operation = nn.Linear(3, 3), operation

    def forward(self, x: Tensor) -> Tensor:
        return self.operation(self.linear(x))


class EnergyScore(nn.Module):
    """A score that calls autograd itself, as energy models written by hand do."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x if x.requires_grad else x.requires_grad_()
            return -torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)[0]


def mlp(d: int) -> nn.Module:
    return nn.Sequential(nn.Linear(d, 7), nn.SiLU(), nn.LayerNorm(7), nn.Linear(7, 7), nn.Softplus(), nn.Linear(7, d))


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


def brute_jacobian(fn: Function, x: Tensor) -> tuple[Tensor, Tensor]:
    """Score and Jacobian by a loop of autograd.grad over the features."""
    x = x if x.requires_grad else x.detach().clone().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        s = fn(x)
    flat = s.flatten(1)
    rows = [torch.autograd.grad(flat[:, i].sum(), x, create_graph=True)[0].flatten(1) for i in range(flat.shape[1])]
    return s, torch.stack(rows, 1)


def gradients(outputs: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """Gradients for upstream gradients that are neither uniform nor contiguous."""
    upstream = [data(*o.shape, 2, seed=9)[..., 0] for o in outputs]
    return list(torch.autograd.grad(outputs, inputs, upstream, allow_unused=True, materialize_grads=True))


def close(actual: object, expected: object, tolerance: float = 1e-11) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def compare_with_gradients(
    found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], x: Tensor, y: Tensor, net: nn.Module
) -> None:
    close(found, expected)
    close(
        gradients(list(found), [x, *net.parameters()]),
        gradients(list(expected), [y, *net.parameters()]),
    )


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
    "instance_norm": lambda x: standard(x, 2) * WEIGHT[0, :, None] + BIAS[0, :, None],
    "layer_norm in reverse mode": lambda x: standard(Cube.apply(x), 1),
}
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


class Energy(nn.Module):
    """An energy of images, with an optional condition that moves them."""

    def __init__(self, operation: Function = torch.tanh, column: bool = False) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 1)
        self.operation, self.column = operation, column

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        h = self.first(x.flatten(1))
        energy = self.last(self.operation(h if cond is None else h + cond))
        return energy if self.column else energy.squeeze(1)


@pytest.mark.parametrize(
    ("operation", "method"),
    [(torch.tanh, "forward-laplacian"), (F.mish, "exact-jvp"), (Cube.apply, "exact-vjp")],
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


SCALES: dict[str, Callable[[Function], Function]] = {
    "plain": lambda net: net,
    "in": lambda net: lambda x: net(2.0 * x),
    "out": lambda net: lambda x: -3.0 * net(x),
    "all": lambda net: lambda x: 0.5 * net(2.0 * x) - 0.3 * x,
}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("weighted", ["", "all", "each"])
def test_recognised_networks(scale: str, depth: int, weighted: str) -> None:
    """Closed forms, tangents and duals are what the generic way gives: traces, estimates, errors and gradients."""
    torch.manual_seed(6)
    hidden = [layer for _ in range(depth - 1) for layer in (nn.Linear(5, 5), nn.Softplus())]
    net = nn.Sequential(nn.Linear(3, 5), nn.SiLU(), *hidden, nn.Linear(5, 3)).double()
    function = SCALES[scale](net)
    points, c = data(4, 3), {"": None, "all": data(3, 3, seed=2), "each": data(4, 3, 3, seed=2)}[weighted]
    exact = "closed-form" if depth < 3 and weighted != "each" else "tangents"
    for how, method in (
        ({"trace": "exact"}, exact),
        ({"trace": "exact", "chunk_size": 3}, exact),
        ({"trace": "hutchinson", "n_probes": 3, "seed": 4}, "hutchinson-dual"),
        ({"trace": "hutchinson", "n_probes": 2, "seed": 4, "probe": "normal"}, "hutchinson-dual"),
    ):
        x, y = points.clone().requires_grad_(), points.clone().requires_grad_()
        found = divergence(function, x, weight=c, **how)
        assert found.method == method
        s, j = brute_jacobian(function, y)
        j = j if c is None else c @ j
        if how["trace"] == "exact":
            expected = j.diagonal(0, 1, 2).sum(1)
            assert found.stderr is None
        else:
            draw, n = getattr(noise, how.get("probe", "rademacher")), how["n_probes"]
            v = torch.stack([draw((4, 3), seed=4, stream=noise.Stream.PROBES, step=k, dtype=x.dtype) for k in range(n)])
            each = torch.einsum("kbi,bij,kbj->kb", v, j, v)
            expected = each.mean(0)
            close(found.stderr, each.detach().std(0) / math.sqrt(n))
        compare_with_gradients(found[:2], (s, expected), x, y, net)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("chunk_size", [None, 3])
def test_jacobians_of_recognised_networks(scale: str, depth: int, chunk_size: int | None) -> None:
    torch.manual_seed(6)
    net = ScoreMLP(6, 5, depth, cond_dim=1).double()
    function = SCALES[scale](lambda x: net(x, cond))
    cond = data(4, 1, seed=2).requires_grad_()
    x, y = data(4, 2, 3).requires_grad_(), data(4, 2, 3).requires_grad_()
    found, expected = jacobian(function, x, chunk_size=chunk_size), brute_jacobian(function, y)[1]
    close(found, expected)
    leaves = [cond, *net.parameters()]
    close(gradients([found], [x, *leaves]), gradients([expected], [y, *leaves]))


def test_a_weight_for_all_is_not_cut_with_a_batch_of_as_many_rows() -> None:
    net, x, c = mlp(3).double(), data(3, 3), data(3, 3, seed=2)
    close(divergence(net, x, weight=c, chunk_size=2).trace, divergence(net, x, weight=c).trace)


@pytest.mark.parametrize("scale", ["plain", "in", "out"])
def test_recognised_energies(scale: str) -> None:
    torch.manual_seed(7)
    net = Energy().double()
    energy = SCALES[scale](net)
    x, y = data(4, 2, 3).requires_grad_(), data(4, 2, 3).requires_grad_()
    found = laplacian(energy, x)
    assert found.method == "forward-laplacian"
    value = energy(y).reshape(4)
    gradient, hessian = brute_jacobian(lambda y: torch.autograd.grad(energy(y).sum(), y, create_graph=True)[0], y)
    expected = (value, -gradient, hessian.diagonal(0, 1, 2).sum(1))
    close(found[:3], expected)
    close(
        gradients(list(found[:3]), [x, *net.parameters()]),
        gradients(list(expected), [y, *net.parameters()]),
    )
    line = nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    one = laplacian(line, data(4, 1))
    assert one.method == "forward-laplacian"
    slope = jacobian(line, data(4, 1)).squeeze(2)
    close(one.score, -slope)
    close(one.laplacian, jacobian(lambda x: -laplacian(line, x).score, data(4, 1)).flatten())
    exact = EnergyMLP(3, 5).double()
    found = divergence(exact.score, data(4, 3))
    assert found.method == "forward-laplacian"
    close(found.trace, brute_jacobian(exact.score, data(4, 3))[1].diagonal(0, 1, 2).sum(1))
    assert divergence(exact.score, data(4, 3), trace="hutchinson").method == "hutchinson-jvp"


def test_auto_is_exact_while_cheap_and_says_so() -> None:
    assert divergence(lambda x: -x, torch.zeros(2, 64)).method == "exact-jvp"
    found = divergence(lambda x: -x, torch.zeros(2, 65))
    assert found.method == "hutchinson-jvp"
    assert torch.equal(found.trace, torch.full((2,), -65.0))
    assert divergence(lambda x: -x, torch.zeros(2, 65), trace="exact").method == "exact-jvp"
    wide = nn.Sequential(nn.Linear(65, 4), nn.Tanh(), nn.Linear(4, 65))
    assert divergence(wide, torch.zeros(2, 65)).method == "closed-form"
    assert laplacian(lambda x: x.square().sum(1), torch.zeros(2, 65)).method == "hutchinson-jvp"


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
