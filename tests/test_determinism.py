"""Two runs give the same bits, under torch.use_deterministic_algorithms too, and a row does not feel the others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastscore
from fastscore import noise, targets
from tests.cases import Case, bits
from tests.test_properties import OPERATIONS

N = 33


@pytest.fixture(params=[False, True], ids=["default", "deterministic"])
def deterministic(request: pytest.FixtureRequest) -> Iterator[bool]:
    """torch refuses, with an error, what it cannot do deterministically, and fills fresh memory with NaN."""
    torch.use_deterministic_algorithms(request.param)
    yield request.param
    torch.use_deterministic_algorithms(False)


def case(variant: int, reduction: str) -> Case:
    settled: dict[str, Any] = {"event": (3, 2), "dtype": torch.float32, "layout": "sliced", "exponent": 1, "seed": 9}
    return Case(
        batch=N, first_chain=5, subset=255, upstream="random", probes=2, probe="normal", variant=variant,
        reduction=reduction, **settled,
    )  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_two_runs_give_the_same_bits(name: str, deterministic: bool) -> None:
    op = OPERATIONS[name]
    for variant, reduction in ((0, "none"), (3, "mean"), (5, "sum")):
        chosen, runs = case(variant, reduction), []
        for _ in range(2):
            given = {n: nn.Parameter(t, n in op.sizes(chosen)) for n, t in op.inputs(chosen).items()}
            out = op.run(chosen, given)
            wanted = [t for t in given.values() if t.requires_grad]
            if wanted:
                out += torch.autograd.grad([o.sum() for o in out if o.requires_grad], wanted, allow_unused=True)
            runs.append([bits(o) for o in out if o is not None])
        assert runs[0] == runs[1]
        assert all(bool(o.isfinite().all()) for o in out if o is not None)


def start(n: int = N) -> Tensor:
    return noise.normal((n, 2), seed=3, stream=noise.Stream.INITIAL)


def elementwise(x: Tensor, *_: Any) -> Tensor:
    return -x - x * x * x


MIXTURE = targets.GaussianMixture.ring()
RUNS: dict[str, Any] = {
    "langevin_dynamics": lambda x, **o: fastscore.langevin_dynamics(elementwise, x, step_size=0.1, n_steps=9, **o),
    "of a mixture": lambda x, **o: fastscore.langevin_dynamics(MIXTURE.score, x, step_size=0.1, n_steps=9, **o),
    "annealed_langevin_dynamics": lambda x, **o: fastscore.annealed_langevin_dynamics(
        elementwise, x, sigmas=[2.0, 1.0], n_steps_each=4, step_size=0.01, **o
    ),
    "mala": lambda x, **o: fastscore.mala(MIXTURE, x, step_size=0.1, n_steps=9, **o),
    "underdamped_langevin": lambda x, **o: fastscore.underdamped_langevin(
        elementwise, x, step_size=0.1, n_steps=9, **o
    ),
    "gradient_ascent": lambda x, seed, **o: fastscore.gradient_ascent(elementwise, x, step_size=0.1, n_steps=9, **o),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_row_of_a_batch_is_that_row_alone(name: str, deterministic: bool) -> None:
    run, x = RUNS[name], start()
    whole = run(x, seed=1, first_chain=40)
    for b in (0, 1, 15, 16, 31, 32):
        assert torch.equal(run(x[b : b + 1], seed=1, first_chain=40 + b), whole[b : b + 1]), b


def test_a_row_of_a_networks_batch_is_that_row_alone_to_rounding() -> None:
    # A matrix product's order of sums depends on the number of rows, and so do the last bits: no more is promised.
    net, x = fastscore.ScoreMLP(2, width=32), start()
    run: dict[str, Any] = {"step_size": 0.1, "n_steps": 9, "seed": 1}
    whole = fastscore.langevin_dynamics(net, x, first_chain=40, **run)
    alone = torch.cat([fastscore.langevin_dynamics(net, x[b : b + 1], first_chain=40 + b, **run) for b in range(N)])
    torch.testing.assert_close(alone, whole, rtol=1e-5, atol=1e-5)
