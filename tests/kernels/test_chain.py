"""Whole chains in one launch against the same chain step by step: states, kept states, flags, ladders, cuts, laws."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import triton
import triton.language as tl

from fastscore import EnergyMLP, ScoreMLP, langevin_dynamics, noise, use_backend
from fastscore.ops import chain
from fastscore.reader import read
from fastscore.reference.mlp import MLP, energy_terms, forward
from fastscore.samplers import annealed_langevin_dynamics
from fastscore.targets import DoubleWell, Gaussian, GaussianMixture
from fastscore_kernels import chain_scores

COUNTERS = {"seed": 2**63 + 5, "first_step": 2**32 - 20, "first_chain": 2**32 - 8}
CUT = {"n_steps": 8, "burn_in": 2, "thin": 3}
KEPT = {"n_steps": 8, "keep": chain.Keep(5, 3, 2)}  # the same, as a kernel is told it


@triton.jit
def leaves(x, at, params):
    """Not finite outside |x| < limit."""
    return tl.where(tl.abs(x) < params[0], -x, params[1])


@triton.jit
def tilted_wells(x, at, params):
    """-4 b x (x^2 - 1) - tilt: as a user would write it."""
    barrier, tilt = params
    return -4.0 * barrier * x * (x * x - 1.0) - tilt


def covariance(d: int, k: int = 1) -> torch.Tensor:
    root = torch.randn(k, d, d, dtype=torch.float64) / d**0.5
    return root @ root.mT + 0.5 * torch.eye(d, dtype=torch.float64)


def source(target: GaussianMixture) -> chain.Mixture:
    means, inverse, constants = target._exact
    precisions = inverse.squeeze(-1).square() if inverse.shape[-1] == 1 else inverse.mT @ inverse
    return chain.Mixture(means.squeeze(-1), precisions, constants.squeeze(-1))


def constant(x, a=0.02, t=0.7):
    return chain.Schedule(torch.tensor([a]).to(x), torch.tensor([t]).to(x), steps_each=2**30)


def states(n, d, device, dtype=torch.float32):
    return torch.randn(n, d, dtype=torch.float64).to(device, dtype)


def reference(score_fn, x, **options):
    """The last state and the kept states by the plain PyTorch loop."""
    options = {"step_size": 0.02, "temperature": 0.7, "on_nonfinite": "ignore", **CUT, **COUNTERS, **options}
    with use_backend("torch"):
        kept = langevin_dynamics(score_fn, x.cpu(), return_trajectory=True, **options)
        last = langevin_dynamics(score_fn, x.cpu(), **options)
    return last, kept


def check(made, true, tolerance=2e-6):
    assert made is not None
    for one, other in zip(made, true, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=tolerance, atol=tolerance)


TARGETS = {
    "line": lambda: Gaussian([0.3], 0.5),
    "plane": lambda: Gaussian([1.0, -1.0], [0.5, 2.0]),
    "correlated": lambda: Gaussian([0.0, 1.0, 2.0, 3.0, 4.0], covariance(5)[0]),
    "correlated-wide": lambda: Gaussian(torch.randn(18), covariance(18)[0]),
    "ring": lambda: GaussianMixture.ring(radius=1.0),
    "many-modes": lambda: GaussianMixture(torch.randn(20, 4), torch.rand(20) + 0.5),
    "unequal": lambda: GaussianMixture(torch.randn(3, 3), covariance(3, 3), [0.2, 0.5, 0.3]),
    "far-modes": lambda: GaussianMixture([[-60.0] * 9, [60.0] * 9], [0.3, 0.4]),
}


@pytest.mark.parametrize("name", TARGETS)
def test_analytic_targets(name, device):
    target = TARGETS[name]()
    x = states(37, target.dim, device)
    made = chain.run(source(target), x, constant(x), **KEPT, **COUNTERS)
    check(made, reference(target.score, x), 1e-5)


@pytest.mark.parametrize("name", ["correlated", "ring"])
def test_float64_keeps_its_digits(name, device):
    target = TARGETS[name]()
    x = states(5, target.dim, device, torch.float64)
    step = constant(x)
    step = chain.Schedule(step.step_size.fill_(0.02), step.temperature.fill_(0.7), 2**30)
    check(chain.run(source(target), x, step, **KEPT, **COUNTERS), reference(target.score, x), 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_double_wells(dtype, device):
    target, x = DoubleWell(5, barrier=0.3), states(33, 5, device, dtype)
    step = constant(x)
    step = chain.Schedule(step.step_size.fill_(0.02), step.temperature.fill_(0.7), 2**30)
    made = chain.run(chain.DoubleWell(0.3), x, step, **KEPT, **COUNTERS)
    check(made, reference(target.score, x), 1e-12 if dtype == torch.float64 else 2e-6)


@pytest.mark.parametrize("dim", [1, 2, 3, 6, 33])
def test_a_score_of_ones_own(dim, device):
    score = chain.TritonScore(tilted_wells, (0.5, 0.1), lambda x: -2.0 * x * (x * x - 1.0) - 0.1)
    x = states(35, dim, device)
    made = chain.run(score, x, constant(x), **KEPT, **COUNTERS)
    check(made, reference(score, x))


@pytest.mark.parametrize("dim", [1, 2, 3, 5, 9])
def test_the_noise_is_the_contract_word_for_word(dim, device):
    still = chain.TritonScore(tilted_wells, (0.0, 0.0), torch.zeros_like)
    x = torch.zeros(33, dim, device=device)
    made = chain.run(still, x, constant(x, 0.5, 1.0), n_steps=1, seed=7, first_step=3, first_chain=2**33)
    true = noise.normal((33, dim), seed=7, stream=0, step=3, first_chain=2**33, device=device)
    if device.type == "cpu":
        assert torch.equal(made.x, true)
    else:  # a kernel of its own, with multiplications and additions contracted in its own way
        torch.testing.assert_close(made.x, true)


def networks():
    for activation in ("silu", "softplus", "tanh", "gelu", "gelu_tanh", "softsign", "sine"):
        yield pytest.param(activation, 3, (24,), False, id=f"{activation}-1")
        yield pytest.param(activation, 2, (40, 24), False, id=f"{activation}-2")
    yield pytest.param("silu", 18, (32, 32, 32), True, id="residual-wide")
    yield pytest.param("tanh", 1, (20, 20, 20, 20), True, id="residual-deep")


def network(activation, dim, widths, residual, outputs):
    sizes = [dim, *widths, outputs]
    weights = tuple(torch.randn(n, k) * (1.5 / k**0.5) for k, n in itertools.pairwise(sizes))
    biases = tuple(torch.randn(n) for n in sizes[1:])
    residuals = tuple(residual and i > 0 for i in range(len(widths)))
    return MLP(weights, biases, (activation,) * len(widths), residuals)


def on(mlp, device):
    biases = tuple(None if b is None else b.to(device) for b in mlp.biases)
    return MLP(tuple(w.to(device) for w in mlp.weights), biases, mlp.activations, mlp.residuals)


@pytest.mark.parametrize(("activation", "dim", "widths", "residual"), list(networks()))
@pytest.mark.parametrize("energy", [False, True], ids=["score", "energy"])
def test_networks(energy, activation, dim, widths, residual, device):
    mlp = network(activation, dim, widths, residual, 1 if energy else dim)
    x = states(9, dim, device)
    cut, kept = {"n_steps": 3, "burn_in": 0, "thin": 2}, {"n_steps": 3, "keep": chain.Keep(2, 2, 1)}
    made = chain.run(chain.Network(on(mlp, device), energy=energy), x, constant(x), **kept, **COUNTERS)
    true = reference((lambda x: energy_terms(mlp, x)[1]) if energy else (lambda x: forward(mlp, x)), x, **cut)
    check(made, true, 5e-6)


@pytest.mark.parametrize("energy", [False, True], ids=["score", "energy"])
def test_every_chain_has_its_own_condition(energy, device):
    mlp = network("silu", 2, (32, 32), True, 1 if energy else 2)
    shifts = tuple(torch.randn(9, w.shape[0]) if i != 1 else None for i, w in enumerate(mlp.weights))
    c_in, c_out, skip = (torch.rand(9, 1) for _ in range(3))
    x = states(9, 2, device)
    if energy:
        scales, true_score = (c_in, c_out, None), lambda x: c_out * c_in * energy_terms(mlp, c_in * x, shifts)[1]
    else:
        scales, true_score = (c_in, c_out, skip), lambda x: c_out * forward(mlp, c_in * x, shifts) + skip * x
    moved = [tuple(None if t is None else t.to(device) for t in tensors) for tensors in (shifts, scales)]
    net = chain.Network(on(mlp, device), *moved, energy=energy, per_chain=True)
    cut, kept = {"n_steps": 3, "burn_in": 0, "thin": 2}, {"n_steps": 3, "keep": chain.Keep(2, 2, 1)}
    check(chain.run(net, x, constant(x), **kept, **COUNTERS), reference(true_score, x, **cut), 5e-6)


def test_a_ladder_of_noise_levels(device):
    model = ScoreMLP(2, width=32, depth=2, cond_dim=1)
    sigmas = [3.0, 1.0, 0.3]

    def score_fn(x, sigma):
        return model(x / sigma[:, None], sigma[:, None].log()) / sigma[:, None] - 0.1 * x

    x = states(9, 2, "cpu")
    with torch.no_grad():
        readings = [read(score_fn, x, torch.full((9,), sigma)) for sigma in sigmas]
        with use_backend("torch"):
            options = {"step_size": 0.01, "n_steps_each": 2, "denoise": False, "thin": 1, "seed": 3}
            true = annealed_langevin_dynamics(score_fn, x, sigmas=sigmas, return_trajectory=True, **options)
    shifts = tuple(
        None if u[0] is None else torch.cat([rows[:1] for rows in u]).to(device)
        for u in zip(*(reading.shifts for reading in readings), strict=True)
    )
    scales = tuple(
        torch.cat([c[:1] for c in factors]).to(device)
        for factors in zip(*((r.in_scale, r.out_scale, r.skip) for r in readings), strict=True)
    )
    net = chain.Network(on(readings[0].mlp, device), shifts, scales)
    a = 0.01 * (torch.tensor(sigmas, device=device) / sigmas[-1]) ** 2
    t = torch.ones(3, device=device)
    x = x.to(device)
    made = chain.run(net, x, chain.Schedule(a, t, 2), n_steps=6, keep=chain.Keep(1, 1, 6), seed=3)
    torch.testing.assert_close(made.kept.cpu(), true, rtol=1e-5, atol=1e-5)
    first = chain.run(net, x, chain.Schedule(a, t, 2), n_steps=3, seed=3)
    rest = chain.run(net, first.x, chain.Schedule(a, t, 2, 3), n_steps=3, first_step=3, seed=3)
    assert torch.equal(rest.x, made.x)


def test_schedules_a_step_and_a_feature(device):
    target = TARGETS["correlated"]()
    x = states(9, 5, device)
    a, t = torch.rand(8, 5) * 0.05 + 0.01, torch.rand(8)
    made = chain.run(
        source(target), x, chain.Schedule(a.to(device), t.to(device)), clamp=(-1.0, 1.25), **KEPT, **COUNTERS
    )
    first = COUNTERS["first_step"]
    true = reference(
        target.score,
        x,
        step_size=lambda k: a[k - first],
        temperature=lambda k: float(t[k - first]),
        clamp=(-1.0, 1.25),
    )
    check(made, true)
    assert made.kept.max() == 1.25


@triton.jit
def student(x, at, params):
    return -3.0 * x / (1.0 + tl.sum(x * x, 0)[None, :])


@pytest.mark.parametrize("dim", [3, 5, 9, 33])
def test_a_score_sees_zeros_in_the_gaps(dim, device):
    score = chain.TritonScore(student, (), lambda x: -3.0 * x / (1.0 + (x * x).sum(1, keepdim=True)))
    x = states(35, dim, device)
    check(chain.run(score, x, constant(x, 0.2), **KEPT, **COUNTERS), reference(score, x, step_size=0.2))


@pytest.mark.parametrize("blow", [math.inf, -math.inf, math.nan])
def test_a_clamp_takes_in_infinity_and_leaves_a_nan(blow, device):
    score = chain.TritonScore(leaves, (1.4, blow), lambda x: torch.where(x.abs() < 1.4, -x, torch.full_like(x, blow)))
    x = states(33, 3, device).clamp(-1.3, 1.3)
    made = chain.run(score, x, constant(x, 0.05), clamp=(-1.5, 1.5), **KEPT, **COUNTERS)
    assert made.x.isnan().any() == math.isnan(blow)
    last, kept = reference(score, x, step_size=0.05, clamp=(-1.5, 1.5))
    torch.testing.assert_close(made.x.cpu(), last, equal_nan=True)
    torch.testing.assert_close(made.kept.cpu(), kept, equal_nan=True)


@pytest.mark.parametrize("kind", ["mixture", "network"])
def test_cuts_in_time_and_in_the_batch_change_no_bit(kind, device):
    if kind == "mixture":
        score = source(TARGETS["unequal"]())
    else:
        score = chain.Network(on(network("silu", 3, (32,), False, 3), device))
    x = states(70, 3, device)
    whole = chain.run(score, x, constant(x), n_steps=5, keep=chain.Keep(1, 1, 5), **COUNTERS)
    first = chain.run(score, x, constant(x), n_steps=2, **COUNTERS)
    later = {**COUNTERS, "first_step": COUNTERS["first_step"] + 2}
    assert torch.equal(chain.run(score, first.x, constant(x), n_steps=3, **later).x, whole.x)
    assert torch.equal(first.x, whole.kept[:, 1])
    # NumPy's products, in the interpreter, depend on the place in the tile: the cut is between two tiles.
    part = {**COUNTERS, "first_chain": COUNTERS["first_chain"] + 64}
    assert torch.equal(chain.run(score, x[64:], constant(x), n_steps=5, **part).x, whole.x[64:])


def test_the_law_of_an_ornstein_uhlenbeck_chain(device, monkeypatch):
    """Mean and variance after k steps in closed form (MATHS 5), within 5 standard errors."""
    monkeypatch.setattr(chain_scores, "launch_options", lambda *_: {"BLOCK_CHAINS": 8192, "num_warps": 4})
    n, k, a, t, lam = 8192, 20, 0.2, 0.5, 2.0
    x = torch.full((n, 2), 3.0, device=device)
    made = chain.run(source(Gaussian([1.0, -1.0], 1 / lam)), x, constant(x, a, t), n_steps=k, seed=11).x.double().cpu()
    r = (1 - a * lam) ** 2
    mean = torch.tensor([1.0, -1.0]) + (1 - a * lam) ** k * torch.tensor([2.0, 4.0])
    var = 2 * a * t * (1 - r**k) / (1 - r)
    assert ((made.mean(0) - mean).abs() < 5 * (var / n) ** 0.5).all()
    assert ((made.var(0) - var).abs() < 5 * var * (2 / n) ** 0.5).all()
    assert abs(float(torch.corrcoef(made.t())[0, 1])) < 5 / n**0.5


def test_inputs_are_not_changed_and_layout_does_not_matter(device):
    score = source(TARGETS["ring"]())
    x = states(2, 33, device).t()
    before = x.clone()
    made = chain.run(score, x, constant(x), n_steps=2, seed=1)
    assert torch.equal(x, before)
    assert torch.equal(made.x, chain.run(score, x.contiguous(), constant(x), n_steps=2, seed=1).x)


def test_what_is_declined(device):
    def declined(source, *shape, dtype=torch.float32):
        x = torch.zeros(shape, dtype=dtype, device=device)
        return chain.run(source, x, constant(torch.zeros(1, device=device)), n_steps=1, seed=0) is None

    own = chain.TritonScore(tilted_wells, (1.0, 0.0), torch.zeros_like)
    assert declined(own, 3, 65)
    assert declined(own, 3, 2, dtype=torch.float16)
    assert declined(own, 0, 2)
    assert declined(own, 3, 2, 2)
    assert not declined(own, 3, 64)
    assert declined(chain.Network(on(network("silu", 2, (300,), False, 2), device)), 3, 2)
    with use_backend("torch"):
        assert declined(own, 3, 2)


def test_an_energy_as_users_write_it(device):
    model = EnergyMLP(3, width=32, depth=2).to(device)
    x = states(9, 3, device)
    with torch.no_grad():
        reading = read(model.score, x)
    net = chain.Network(reading.mlp, reading.shifts, energy=True)
    kept = {"n_steps": 3, "keep": chain.Keep(1, 1, 3)}
    made = chain.run(net, x, constant(x), **kept, **COUNTERS)
    check(made, reference(model.cpu().score, x, n_steps=3, burn_in=0, thin=1), 5e-6)
