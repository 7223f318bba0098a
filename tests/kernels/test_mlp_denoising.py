"""The denoising loss whose noise and gradients kernels make, against the same on the PyTorch path in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fastscore
from fastscore.ops import noise as ops
from fastscore.reference import philox

pytest.importorskip("triton")
from fastscore_kernels import mlp, mlp_layers, mlp_whole

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def taken(monkeypatch) -> list[str]:
    """Which kernels were asked for gradients; whole networks ask those of the layers in their turn."""
    asked: list[str] = []
    for module in (mlp, mlp_layers, mlp_whole):

        def differentiate(*args, real=module.differentiate, name=module.__name__):
            asked.append(name.rpartition(".")[2])
            return real(*args)

        monkeypatch.setattr(module, "differentiate", differentiate)
    return asked


def residual_network() -> torch.nn.Module:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Linear(3, 20), torch.nn.Linear(20, 20)
            self.last = torch.nn.Linear(20, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.first(x))
            return self.last(h + torch.nn.functional.silu(self.second(h)))

    return Net()


NETWORKS = {
    "one": (lambda: fastscore.ScoreMLP(dim=3, width=20, depth=1), "mlp"),
    "two": (lambda: fastscore.ScoreMLP(dim=3, width=33, depth=2), "mlp"),
    "two-residual": (residual_network, "mlp"),
    "two-wide": (lambda: fastscore.ScoreMLP(dim=3, width=257, depth=2), "mlp_layers"),
    "four": (lambda: fastscore.ScoreMLP(dim=3, width=20, depth=4), "mlp_whole"),
    "told": (lambda: fastscore.ScoreMLP(dim=3, width=20, depth=2, cond_dim=1), "mlp"),
    "energy-one": (lambda: fastscore.EnergyMLP(dim=3, width=20, depth=1), "mlp_whole"),
    "energy-three": (lambda: fastscore.EnergyMLP(dim=3, width=20, depth=3), "mlp_whole"),
    "energy-wide": (lambda: fastscore.EnergyMLP(dim=3, width=257, depth=2), "mlp_layers"),
    "energy-told": (lambda: fastscore.EnergyMLP(dim=3, width=20, depth=2, cond_dim=1), "mlp_whole"),
}


def gradients(net: torch.nn.Module, backend: str, dtype: torch.dtype, **how: object) -> list[Tensor]:
    """The loss and its gradients."""
    device = "cpu" if dtype == torch.float64 else DEVICE
    net.to(device, dtype).zero_grad()
    x = torch.linspace(-2, 2, 3 * 37, dtype=torch.float64).view(37, 3).sin().to(device, dtype)
    sigma = torch.linspace(0.1, 1.0, 37, dtype=torch.float64).to(device, dtype)
    if how.pop("told", False):
        how["cond"] = sigma[:, None]
    how["sigma"] = sigma if how.pop("many", False) else 0.4
    with fastscore.use_backend(backend):
        score = net.score if isinstance(net, fastscore.EnergyMLP) else net
        loss = fastscore.denoising_score_matching(score, x, seed=5, first_chain=2**32 - 9, **how)
        (3 * loss).backward()
    # An energy's last bias is in no score: None of autograd, zero of the kernels.
    return [loss.detach(), *(torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in net.parameters())]


@pytest.mark.parametrize("name", NETWORKS)
def test_loss_and_gradients(name, taken):
    make, module = NETWORKS[name]
    torch.manual_seed(0)
    net, how = make(), {"many": name in ("two", "four", "told", "energy-told"), "told": name.endswith("told")}
    how |= {"weighting": "none", "reduction": "sum"} if name == "one" else {}
    exact = gradients(net, "torch", torch.float64, **how)
    assert not taken
    found = gradients(net, "triton", torch.float32, **how)
    assert taken == ([module, "mlp_layers"] if module == "mlp_whole" else [module])
    for f, e in zip(found, exact, strict=True):
        assert (f.cpu().double() - e).abs().max() <= 5e-6 * e.abs().max().clamp(min=1)


def test_chunks_add_up(monkeypatch, taken):
    torch.manual_seed(0)
    nets = fastscore.ScoreMLP(3, 20, 2), fastscore.ScoreMLP(3, 20, 3), fastscore.EnergyMLP(3, 20, 2)
    for net, module in zip(nets, (mlp, mlp_layers, mlp_layers), strict=True):
        monkeypatch.setattr(module, "_CHUNK", 20 * 10)
        exact = gradients(net, "torch", torch.float64, many=True)
        for f, e in zip(gradients(net, "triton", torch.float32, many=True), exact, strict=True):
            assert (f.cpu().double() - e).abs().max() <= 5e-6 * e.abs().max().clamp(min=1)
    assert taken == ["mlp", *["mlp_whole", "mlp_layers"] * 2]


def test_what_else_is_asked_takes_the_plain_way(taken):
    """Gradients in x or in sigma, samples' own losses, no gradient; and second derivatives are right."""
    net = fastscore.ScoreMLP(dim=2, width=8, depth=2).to(DEVICE)
    x = torch.ones(5, 2, device=DEVICE)
    dsm = fastscore.denoising_score_matching
    dsm(net, x.clone().requires_grad_(), sigma=0.5, seed=1)
    dsm(net, x, sigma=torch.tensor(0.5, device=DEVICE, requires_grad=True), seed=1)
    dsm(net, x, sigma=0.5, seed=1, reduction="none")
    with torch.no_grad():
        dsm(net, x, sigma=0.5, seed=1)
    assert not taken
    found = []
    for backend in ("torch", "triton"):
        with fastscore.use_backend(backend):
            first = torch.autograd.grad(dsm(net, x, sigma=0.5, seed=1), list(net.parameters()), create_graph=True)
            found.append(torch.autograd.grad(sum(f.square().sum() for f in first), list(net.parameters())))
    assert taken == ["mlp"]
    for plain, fused in zip(*found, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (33, 5), (1025, 2), (3, 300)])
@pytest.mark.parametrize("rows", [False, True])
def test_mixed_noise_is_the_contract(shape, rows):
    """alpha x + beta e, with the bits of the words of (seed, stream, row); each scale one for all or one a row."""
    x = torch.arange(shape[0] * shape[1], dtype=torch.float32, device=DEVICE).view(shape)
    alpha = torch.linspace(1, 2, shape[0], device=DEVICE)[:, None] if rows else 2.0
    beta = 0.5 if rows else torch.linspace(1, 2, shape[0], device=DEVICE)[:, None]
    made = ops.mixed(x, alpha, beta, 2**40 + 3, 4, 2**33)
    chain = torch.arange(2**33, 2**33 + shape[0])
    e = philox.normals(2**40 + 3, 4, 0, chain, shape[1], torch.float64).to(DEVICE)
    torch.testing.assert_close(made.double(), alpha * x.double() + beta * e, rtol=1e-6, atol=4e-6)
