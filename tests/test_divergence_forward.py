"""What forward mode cannot do is left to reverse mode: norms under a gradient, checkpoints, TorchScript, threads."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastscore._products import push
from fastscore.divergence import divergence, jacobian, laplacian
from fastscore.losses import implicit_score_matching
from tests.brute import Function, brute_jacobian, close, compare_with_gradients, data, gradients


def length(x: Tensor) -> Tensor:
    return x.square().sum(1, keepdim=True).sqrt()


OTHER = data(5, 3, seed=7)

NORMS: dict[str, tuple[Function, Function]] = {
    "normalize": (lambda x: F.normalize(x, dim=1), lambda x: x / length(x)),
    "norm": (lambda x: x * x.norm(dim=1, keepdim=True), lambda x: x * length(x)),
    "torch.norm": (lambda x: x * torch.norm(x, 3, dim=1, keepdim=True), lambda x: x * cubes(x)),
    "linalg.norm": (lambda x: x * torch.linalg.norm(x, dim=1, keepdim=True), lambda x: x * length(x)),
    "vector_norm": (lambda x: x * torch.linalg.vector_norm(x, dim=1, keepdim=True), lambda x: x * length(x)),
    "std": (lambda x: x * x.std(1, keepdim=True), lambda x: x * x.var(1, keepdim=True).sqrt()),
    "pairwise_distance": (
        lambda x: x * F.pairwise_distance(x, OTHER, eps=0.0, keepdim=True),
        lambda x: x * length(x - OTHER),
    ),
    "cosine_similarity": (
        lambda x: F.cosine_similarity(x, OTHER)[:, None] * x,
        lambda x: (x * OTHER).sum(1, keepdim=True) / length(OTHER) / length(x) * x,
    ),
}


def cubes(x: Tensor) -> Tensor:
    return (x.abs() ** 3).sum(1, keepdim=True) ** (1 / 3)


@pytest.mark.parametrize("name", NORMS)
def test_norms_under_a_gradient(name: str) -> None:
    """Of a gradient, torch's tangents of these write over what their own gradient needs."""
    norm, written_out = NORMS[name]
    x, y = data(5, 3).requires_grad_(), data(5, 3).requires_grad_()

    def energy(x: Tensor) -> Tensor:
        return norm(x.sin()).cos().sum(1)

    g = torch.autograd.grad(written_out(y.sin()).cos().sum(), y, create_graph=True)[0]
    h = torch.stack([torch.autograd.grad(g[:, i].sum(), y, create_graph=True)[0][:, i] for i in range(3)]).sum(0)
    expected = gradients([h], [y])
    found = laplacian(energy, x, trace="exact")
    close((found.score, found.laplacian), (-g, h), 1e-9)
    close(gradients([found.laplacian], [x]), expected, 1e-8)
    score = divergence(lambda x: -torch.func.grad(lambda x: energy(x).sum())(x), x, trace="exact")
    close(gradients([-score.trace], [x]), expected, 1e-8)
    assert divergence(lambda x: norm(x.sin()), x).method == "exact-jvp"  # which is right without a gradient


def test_norms_of_parameters_are_no_reason_for_reverse_mode() -> None:
    weight = data(3, 3, seed=2)
    assert laplacian(lambda x: (x @ F.normalize(weight)).sin().sum(1), data(5, 3)).method == "exact-jvp"


def test_running_statistics_of_a_tracking_instance_norm_go_on() -> None:
    norm, same = (nn.InstanceNorm1d(3, track_running_stats=True).double() for _ in range(2))
    x = data(2, 3, 4)
    same(x)
    push(lambda x: (norm(x), ()), x, data(5, 2, 3, 4))
    close(list(norm.buffers()), list(same.buffers()))


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_checkpoints_inside_a_score(trace: str, chunk_size: int | None) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Tanhshrink(), nn.Linear(8, 3)).double()
    how = {"trace": trace, "seed": 0, "chunk_size": chunk_size}
    found = divergence(lambda x: checkpoint(net, x, use_reentrant=False), data(5, 3), **how)
    expected = divergence(lambda x: net(x), data(5, 3), **how)
    assert (found.method, expected.method) == (f"{trace}-vjp", f"{trace}-jvp")
    close(gradients([found.trace], list(net.parameters())), gradients([expected.trace], list(net.parameters())))


def test_checkpoints_inside_an_energy() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Tanhshrink(), nn.Linear(8, 1)).double()
    found = laplacian(lambda x: checkpoint(net, x, use_reentrant=False), data(5, 3)).laplacian
    expected = laplacian(lambda x: net(x), data(5, 3)).laplacian
    close(gradients([found], list(net.parameters())), gradients([expected], list(net.parameters())))


def test_a_tensor_modified_in_place_inside_a_checkpoint_is_an_error() -> None:
    def score(x: Tensor) -> Tensor:
        y = x.exp()
        return y.add_(1) * x

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        divergence(lambda x: checkpoint(score, x, use_reentrant=False), data(5, 3)).trace.sum().backward()


def test_products_in_place() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 3)).double()
    x, y = data(5, 3).requires_grad_(), data(5, 3).requires_grad_()

    def gated(x: Tensor) -> Tensor:
        z = net(x)
        return z.mul_(torch.sigmoid(z))

    found = divergence(gated, x)
    s, j = brute_jacobian(lambda x: F.silu(net(x)), y)
    compare_with_gradients(found[:2], (s, j.diagonal(0, 1, 2).sum(1)), x, y, net)

    def scaled(x: Tensor) -> Tensor:
        z = net(x)
        z *= 2
        return z

    assert divergence(scaled, x).method == "exact-jvp"


def script(module: nn.Module, x: Tensor) -> list[nn.Module]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [torch.jit.script(module), torch.jit.trace(module, x, check_trace=False)]


def within(scripted: nn.Module) -> list[Function]:
    """The same function as it is, as a submodule and called inside a function."""
    return [scripted, nn.Sequential(nn.Identity(), scripted), lambda x: scripted(x) * 1.0]


def test_torchscript_is_left_to_reverse_mode() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.SiLU(), nn.Dropout(), nn.Linear(8, 3)).double().eval()
    x = data(6, 3)
    expected = divergence(lambda x: net(x), x)
    wanted = gradients([expected.trace], list(net.parameters()))
    for scripted in script(net, x):
        for fn in within(scripted):
            for _ in range(3):  # TorchScript profiles, then optimises
                found = divergence(fn, x)
                assert found.method == "exact-vjp"
                close(found.trace, expected.trace)
                close(gradients([found.trace], list(scripted.parameters())), wanted)
    with torch.no_grad():
        close(divergence(script(net, x)[0], x).trace, expected.trace.detach())
        assert not torch.is_grad_enabled()


def test_scripted_functions() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sine = torch.jit.trace(lambda x: x.sin(), data(4, 3))
    for _ in range(3):
        x = data(4, 3).requires_grad_()
        found = divergence(sine, x)
        assert found.method == "exact-vjp"
        close(torch.autograd.grad(found.trace.sum(), x)[0], -x.sin())


def test_tangents_that_torch_has_as_torchscript_stay_in_forward_mode() -> None:
    x = data(4, 3)
    norm = nn.BatchNorm1d(3).double().eval()
    for energy in (lambda x: F.log_softmax(x, 1).square().sum(1), lambda x: norm(x).sin().sum(1)):
        assert laplacian(energy, x).method == "exact-jvp"
        assert divergence(lambda x, e=energy: -torch.func.grad(lambda x: e(x).sum())(x), x).method == "exact-jvp"


@pytest.mark.parametrize(
    ("layer", "message"), [(nn.BatchNorm1d(3), "BatchNorm in training mode"), (nn.Dropout(), "active dropout")]
)
def test_torchscript_in_training_mode_is_refused(layer: nn.Module, message: str) -> None:
    for scripted in script(nn.Sequential(nn.Linear(3, 3), layer), torch.ones(4, 3)):
        for fn in within(scripted):
            for _ in range(2):
                with pytest.raises(ValueError, match=message):
                    divergence(fn, torch.ones(4, 3))


def test_layer_norm_in_a_scripted_energy_is_refused_where_it_would_be_wrong() -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 1)).double()
    energy, x = script(net, data(4, 3))[0], data(4, 3)
    with pytest.raises(ValueError, match="LayerNorm or InstanceNorm in TorchScript"):
        laplacian(energy, x)
    with torch.no_grad():
        close(laplacian(energy, x).laplacian, laplacian(lambda x: net(x), x).laplacian)


def test_threads() -> None:
    """Levels of forward mode belong to the process."""
    matrix, x = data(3, 3, seed=2), data(500, 3)
    calls: list[Callable[[], Tensor]] = [
        lambda: divergence(lambda x: torch.atan(x @ matrix), x).trace,
        lambda: jacobian(lambda x: torch.atan(x @ matrix), x),
        lambda: implicit_score_matching(lambda x: torch.atan(x @ matrix), x),
    ]
    expected = [call() for call in calls]
    wrong: list[object] = []

    def work() -> None:
        try:
            for _ in range(40):
                wrong.extend(e for call, e in zip(calls, expected, strict=True) if not torch.allclose(call(), e))
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
