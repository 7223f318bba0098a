"""What `explain` says is what runs, and its costs are those of the formulas."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fastscore import EnergyMLP, ScoreMLP, divergence, explain, laplacian

B, D, H = 100, 4, 16
X = torch.randn(B, D, generator=torch.Generator().manual_seed(1))
ENERGY = EnergyMLP(D, H, 2)
NORMALISED = nn.Sequential(nn.Linear(D, H), nn.LayerNorm(H), nn.SiLU(), nn.Linear(H, D))
WIDE = nn.Sequential(nn.Linear(70, H), nn.Tanh(), nn.Linear(H, 70))

CASES: dict[str, tuple[Callable[..., Tensor], Tensor, dict[str, object]]] = {
    "closed": (ScoreMLP(D, H), X, {}),
    "condition": (ScoreMLP(D, H, cond_dim=1), X, {"cond": torch.tensor(0.5)}),
    "tangents": (ScoreMLP(D, H, 3), X, {}),
    "dual": (ScoreMLP(D, H), X, {"trace": "hutchinson", "n_probes": 3}),
    "weight": (ScoreMLP(D, H), X, {"weight": torch.eye(D)}),
    "weights": (ScoreMLP(D, H), X, {"weight": torch.eye(D).expand(B, D, D)}),
    "energy": (ENERGY.score, X, {}),
    "energy, estimated": (ENERGY.score, X, {"trace": "hutchinson"}),
    "generic": (NORMALISED, X, {}),
    "generic, estimated": (NORMALISED, X, {"trace": "hutchinson", "probe": "normal"}),
    "wide": (WIDE, torch.zeros(B, 70), {}),
    "wide, generic": (lambda x: -x, torch.zeros(B, 70), {}),
    "half": (ScoreMLP(70, H).bfloat16(), torch.zeros(B, 70, dtype=torch.bfloat16), {}),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_explained_is_what_runs(name: str) -> None:
    fn, x, how = CASES[name]
    said, ran = explain(fn, x, **how), divergence(fn, x, seed=1, **how)
    assert said.method == ran.method
    assert said.method in str(said)
    assert 0 < said.rows <= B
    assert said.flops >= said.forward_flops
    assert said.bytes >= said.forward_bytes > 0


@pytest.mark.parametrize(("fn", "network"), [(ENERGY, "MLP 4-16-16-1"), (lambda x: x.square().sum(1), "not recog")])
@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_laplacians(fn: Callable[..., Tensor], network: str, trace: str) -> None:
    said = explain(fn, X, trace=trace, of="laplacian")
    assert said.method == laplacian(fn, X, trace=trace).method
    assert said.network.startswith(network)


def test_costs_are_those_of_the_formulas() -> None:
    net, forward = ScoreMLP(D, H), 2 * B * (D * H + H * H + H * D)
    exact = explain(net, X)
    assert exact.forward_flops == forward
    assert exact.flops == forward + 2 * B * H * H + 2 * H * H * D  # d_1 M', and M itself from the weights
    dual = explain(net, X, trace="hutchinson", n_probes=3)
    assert dual.flops == 4 * forward
    generic = explain(NORMALISED, X)
    assert generic.forward_flops == 2 * B * 2 * D * H
    assert generic.flops == (1 + D) * generic.forward_flops
    energy = explain(lambda x: NORMALISED(x).sum(1), X, trace="hutchinson", n_probes=2, of="laplacian")
    assert energy.flops == 3 * 3 * energy.forward_flops


def test_a_trace_starts_at_the_narrowest_layer() -> None:
    d, wide, narrow = 32, 24, 3
    sizes = (d, wide, narrow, wide, d)
    layers = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.Tanh())][:-1]
    said = explain(nn.Sequential(*layers), torch.zeros(B, d))
    loop = 2 * wide * d * wide  # W_1 W_4, from the weights
    assert said.flops == said.forward_flops + 2 * B * narrow * wide * wide + loop


def test_laplacians_in_pieces_are_taken_in_reverse_mode() -> None:
    """Checkpointing has no forward mode over a gradient; without gradients nothing is recomputed."""

    def energy(x: Tensor) -> Tensor:
        return NORMALISED(x).sum(1)

    for context, mode in ((torch.enable_grad, "exact-vjp"), (torch.no_grad, "exact-jvp")):
        with context():
            ran = laplacian(energy, X, trace="exact", chunk_size=7)
            assert explain(energy, X, trace="exact", chunk_size=7, of="laplacian").method == ran.method == mode


def test_what_the_kernels_do_not_serve_is_torch() -> None:
    said = explain(ScoreMLP(D, H), X)
    assert (said.backend, said.rows) == ("torch", B)
    with torch.autocast("cpu"):
        assert explain(ScoreMLP(D, H), X).backend == "torch"


def test_pieces() -> None:
    assert explain(NORMALISED, X, chunk_size=7).rows == 7
    assert explain(ScoreMLP(D, H), X, chunk_size=7, weight=torch.eye(D).expand(B, D, D)).rows == 7
    assert explain(ScoreMLP(D, 128, 3), torch.zeros(10**5, D)).rows < 10**4


@pytest.mark.parametrize(
    ("fn", "reason"),
    [
        (NORMALISED, "layer_norm"),
        (nn.Linear(D, D), "not a chain of layers"),
        (lambda x: x * float(x.sum()), "leaves the tensors"),
        (torch.jit.trace(nn.Linear(D, D), X), "does more than compute"),
    ],
)
def test_the_reason_why_a_network_is_not_recognised(fn: Callable[..., Tensor], reason: str) -> None:
    assert reason in explain(fn, X).network


def test_nothing_runs_but_a_few_rows() -> None:
    rows = []

    def watched(x: Tensor) -> Tensor:
        rows.append(len(x))
        return NORMALISED(x)

    state = torch.get_rng_state()
    explain(watched, X)
    assert max(rows) <= 3
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("fn", "how", "message"),
    [
        (ENERGY, {"of": "energy"}, "of must be one of 'divergence', 'laplacian', got 'energy'"),
        (nn.Dropout(), {}, "active dropout"),
        (ENERGY, {}, "score_fn must return a tensor of the shape of x"),
        (NORMALISED, {"of": "laplacian"}, "energy_fn must return one energy a sample"),
        (NORMALISED, {"n_probes": 0}, "n_probes must be at least 1, got 0"),
    ],
)
def test_errors_are_those_of_the_trace(fn: Callable[..., Tensor], how: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        explain(fn, X, **how)
