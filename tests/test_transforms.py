"""One contract for every public differentiable function: derivatives right to second order under every transform.

Each entry of `REGISTRY` is held to: gradcheck (forward mode and batched too), gradgradcheck, jacfwd = jacrev = the
Jacobian of autograd, vmap = a loop, `torch.compile(fullgraph=True)` = eager with its gradients, two backward passes
through one graph, and inputs left alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

import fastscore.metrics
from fastscore import noise, targets
from fastscore.divergence import divergence, jacobian, laplacian
from fastscore.losses import (
    denoising_score_matching,
    explicit_score_matching,
    implicit_score_matching,
    sliced_score_matching,
)
from fastscore.metrics import fisher_divergence, kernel_stein_discrepancy
from fastscore.samplers import langevin_step

Function = Callable[[Tensor], Tensor]


class Score(nn.Module):
    """A score with normalisation, which the reader does not recognise: the generic way."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        return x.sin() + self.net(x)


torch.manual_seed(5)
SCORE = Score().double()
MLP = nn.Sequential(nn.Linear(2, 4), nn.SiLU(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).double()
ENERGY = nn.Sequential(nn.Linear(2, 4), nn.Softplus(), nn.Linear(4, 1)).double()
GAUSSIAN = targets.Gaussian(torch.tensor([0.5, -1.0], dtype=torch.float64), [[1.0, 0.3], [0.3, 0.5]])
WELLS = targets.DoubleWell(2, barrier=0.5)
MIXTURE = targets.GaussianMixture(
    torch.tensor([[1.0, 0.0], [-1.0, 0.5]], dtype=torch.float64), [[0.5, 1.0], [1.0, 0.3]]
)
POINTS = noise.normal((3, 2), seed=1, stream=noise.Stream.DATA, dtype=torch.float64)

REGISTRY: dict[str, Function] = {
    "divergence": lambda x: divergence(SCORE, x).trace,
    "divergence: closed form": lambda x: divergence(MLP, x).trace,
    "divergence: hutchinson": lambda x: divergence(SCORE, x, trace="hutchinson", n_probes=2, seed=1).trace,
    "divergence: hutchinson, dual": lambda x: divergence(MLP, x, trace="hutchinson", n_probes=2, seed=1).trace,
    "jacobian": lambda x: jacobian(SCORE, x),
    "laplacian": lambda x: laplacian(lambda x: ENERGY(x.sin()), x).laplacian,
    "laplacian: forward": lambda x: laplacian(ENERGY, x).laplacian,
    "laplacian: hutchinson, dual": lambda x: laplacian(ENERGY, x, trace="hutchinson", n_probes=2, seed=1).laplacian,
    "implicit_score_matching": lambda x: implicit_score_matching(SCORE, x),
    "implicit_score_matching: closed form": lambda x: implicit_score_matching(MLP, x),
    "sliced_score_matching": lambda x: sliced_score_matching(SCORE, x, seed=1),
    "explicit_score_matching": lambda x: explicit_score_matching(SCORE, x, target=MIXTURE),
    "denoising_score_matching": lambda x: denoising_score_matching(SCORE, x, sigma=0.5, seed=1),
    "langevin_step": lambda x: langevin_step(x, x.sin(), step_size=0.1, seed=1, step=2),
    "metrics.fisher_divergence": lambda x: fisher_divergence(SCORE, MIXTURE, x),
    "metrics.kernel_stein_discrepancy": lambda x: kernel_stein_discrepancy(SCORE, x),
    "targets.Gaussian.score": GAUSSIAN.score,
    "targets.Gaussian.log_prob": GAUSSIAN.log_prob,
    "targets.GaussianMixture.score": MIXTURE.score,
    "targets.GaussianMixture.log_prob": MIXTURE.log_prob,
    "targets.GaussianMixture.noisy_score": lambda x: MIXTURE.noisy_score(x, x.new_full(x.shape[:1], 0.4)),
    "targets.DoubleWell.score": WELLS.score,
    "targets.DoubleWell.log_prob": WELLS.log_prob,
}
NOT_DIFFERENTIABLE = {
    "use_backend", "explain", "langevin_dynamics", "gradient_ascent", "annealed_langevin_dynamics",
    "LangevinDynamics", "NonFiniteError", "Interrupted", "ScoreMLP", "EnergyMLP",
    "mala", "underdamped_langevin", "TritonScore", "diagnose", "save_network", "load_network", "CheckpointError",
}  # fmt: skip


def autograd_jacobian(fn: Function, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    y = fn(x)
    rows = [torch.autograd.grad(value, x, retain_graph=True)[0] for value in y.reshape(-1)]
    return torch.stack(rows).reshape(*y.shape, *x.shape)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.fixture(params=REGISTRY)
def fn(request: pytest.FixtureRequest) -> Function:
    return REGISTRY[request.param]


def test_gradients_to_second_order(fn: Function) -> None:
    x = POINTS.clone().requires_grad_()
    assert gradcheck(fn, (x,), check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=False)
    assert gradgradcheck(fn, (x,), gen_non_contig_grad_outputs=True)
    assert torch.equal(x, POINTS)


def test_functional_jacobians(fn: Function) -> None:
    expected = autograd_jacobian(fn, POINTS)
    close(torch.func.jacfwd(fn)(POINTS), expected)
    close(torch.func.jacrev(fn)(POINTS), expected)


def test_vmap(fn: Function) -> None:
    many = torch.stack([POINTS, POINTS.sin(), POINTS.flip(0)])
    close(torch.func.vmap(fn)(many), torch.stack([fn(x) for x in many]))


def test_a_graph_is_used_twice(fn: Function) -> None:
    x = POINTS.clone().requires_grad_()
    y = fn(x)
    first = torch.autograd.grad(y.sum(), x, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], first)


@pytest.mark.slow
def test_compile(fn: Function) -> None:
    torch._dynamo.reset()
    x, y = POINTS.clone().requires_grad_(), POINTS.clone().requires_grad_()
    compiled, eager = torch.compile(fn, fullgraph=True, backend="aot_eager")(x), fn(y)
    close(compiled, eager)
    leaves = [*SCORE.parameters(), *MLP.parameters(), *ENERGY.parameters()]
    found = torch.autograd.grad(compiled.square().sum(), [x, *leaves], allow_unused=True, materialize_grads=True)
    expected = torch.autograd.grad(eager.square().sum(), [y, *leaves], allow_unused=True, materialize_grads=True)
    for a, b in zip(found, expected, strict=True):
        close(a, b)


def test_every_public_differentiable_function_is_here() -> None:
    names = {
        name for name in vars(fastscore) if not name.startswith("_") and not inspect.ismodule(getattr(fastscore, name))
    }
    assert names - NOT_DIFFERENTIABLE <= set(REGISTRY)
    for module in (targets, fastscore.metrics):
        short = module.__name__.removeprefix("fastscore.")
        for name, value in vars(module).items():
            if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
                continue
            members = ("score", "log_prob") if inspect.isclass(value) else ()
            wanted = {f"{short}.{name}.{member}" for member in members} or {f"{short}.{name}"}
            assert wanted <= set(REGISTRY)
