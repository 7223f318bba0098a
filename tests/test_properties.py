"""Properties of every public operation over random sizes, dtypes, layouts, magnitudes, gradients and probes.

Each operation is put to 300 cases here and to ten times 500 in `make test-full`, always the same;
`tests/cases.py` has the checks. What is true is written out in float64, in plain tensor operations.
"""

from __future__ import annotations

import functools
import zlib
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from torch import Tensor, nn

import fastscore
from fastscore import noise
from fastscore.noise import Stream
from tests.cases import Case, Operation, Tensors, cases, verify

N_STEPS, HIDDEN = 2, 5
WIDE = (torch.float32, torch.float64)
ALL = (*WIDE, torch.float16, torch.bfloat16)


def normals(case: Case, stream: int, step: int) -> Tensor:
    """The noise an operation is to use, in the precision it computes in."""
    kind = torch.float64 if case.dtype == torch.float64 else torch.float32
    shape = (case.batch, *case.event)
    return noise.normal(
        shape, seed=case.seed, stream=stream, step=step, first_chain=case.first_chain, dtype=kind
    ).double()


def points(case: Case) -> Tensors:
    return {"x": case.x()}


# One step, and the samplers, towards the score (-u + sin u) / unit, u = x / unit.


def pull(case: Case) -> Any:
    return lambda x, *_: (torch.sin(x / case.unit) - x / case.unit) / case.unit


def step_inputs(case: Case) -> Tensors:
    a = 0.3 * case.unit**2 * torch.exp(0.3 * case.randn(*(case.event if case.variant % 2 else ())).double())
    kind = torch.float64 if case.dtype == torch.float64 else torch.float32
    return points(case) | {"score": case.randn(case.batch, *case.event, scale=1 / case.unit), "a": a.to(kind)}


def step_run(case: Case, t: Tensors) -> tuple[Tensor, ...]:
    named: dict[str, Any] = {"seed": case.seed, "step": case.probes, "first_chain": case.first_chain}
    return (fastscore.langevin_step(t["x"], t["score"], step_size=t["a"], temperature=0.5, **named),)


def step_truth(case: Case, t: Tensors) -> list[tuple[Tensor, float]]:
    e = normals(case, Stream.LANGEVIN, case.probes)
    return [(t["x"] + t["a"] * t["score"] + (2 * t["a"] * 0.5).sqrt() * e, case.unit)]


def named(case: Case) -> dict[str, Any]:
    return {"n_steps": N_STEPS, "first_chain": case.first_chain, "on_nonfinite": "ignore"}


def ula_run(case: Case, t: Tensors) -> tuple[Tensor, ...]:
    a = 0.3 * case.unit**2
    return (fastscore.langevin_dynamics(pull(case), t["x"], step_size=a, seed=case.seed, **named(case)),)


def ula_truth(case: Case, t: Tensors, temperature: float = 1.0) -> list[tuple[Tensor, float]]:
    x, a = t["x"], 0.3 * case.unit**2
    for k in range(N_STEPS):
        x = x + a * pull(case)(x) + (2 * a * temperature) ** 0.5 * normals(case, Stream.LANGEVIN, k)
    return [(x, case.unit)]


def ascent_run(case: Case, t: Tensors) -> tuple[Tensor, ...]:
    return (fastscore.gradient_ascent(pull(case), t["x"], step_size=0.3 * case.unit**2, **named(case)),)


def annealed_run(case: Case, t: Tensors) -> tuple[Tensor, ...]:
    found = fastscore.annealed_langevin_dynamics(
        lambda x, sigma: pull(case)(x) / sigma.view(-1, *[1] * len(case.event)),
        t["x"],
        sigmas=[2.0, 1.0],
        n_steps_each=1,
        step_size=0.1 * case.unit**2,
        seed=case.seed,
        denoise=bool(case.variant % 2),
        first_chain=case.first_chain,
        on_nonfinite="ignore",
    )
    return (found,)


def annealed_truth(case: Case, t: Tensors) -> list[tuple[Tensor, float]]:
    x = t["x"]
    for k, sigma in enumerate((2.0, 1.0)):
        a = 0.1 * case.unit**2 * sigma**2
        x = x + a * pull(case)(x) / sigma + (2 * a) ** 0.5 * normals(case, Stream.LANGEVIN, k)
    return [(x + pull(case)(x) if case.variant % 2 else x, max(case.unit, 1 / case.unit))]


def log_density(case: Case) -> Any:
    return lambda x: (-(x / case.unit).square() / 2 - torch.cos(x / case.unit)).flatten(1).sum(1)


def mala_run(case: Case, t: Tensors) -> tuple[Tensor, ...]:
    given: dict[str, Any] = {"step_size": 0.3 * case.unit**2, "seed": case.seed, **named(case)}
    return (fastscore.mala(log_density(case), t["x"], score_fn=pull(case), **given),)


def mala_truth(case: Case, t: Tensors) -> list[tuple[Tensor, float]]:
    """Rows whose acceptance hangs on rounding are NaN: not compared."""
    x, a, close = t["x"], 0.3 * case.unit**2, torch.zeros(case.batch, dtype=torch.bool)
    score, density = pull(case), log_density(case)
    for k in range(N_STEPS):
        y = x + a * score(x) + (2 * a) ** 0.5 * normals(case, Stream.LANGEVIN, k)
        forth, back = (y - x - a * score(x)).flatten(1), (x - y - a * score(y)).flatten(1)
        ratio = density(y) - density(x) + (forth.square().sum(1) - back.square().sum(1)) / (4 * a)
        kind = torch.float64 if case.dtype == torch.float64 else torch.float32
        u = noise.uniform(
            case.batch, seed=case.seed, stream=Stream.ACCEPT, step=k, first_chain=case.first_chain, dtype=kind
        )
        margin = ratio - u.double().log()
        close |= margin.abs() < 1e-3
        x = torch.where((margin >= 0).view(-1, *[1] * len(case.event)), y, x)
    return [(x.masked_fill(close.view(-1, *[1] * len(case.event)), torch.nan), case.unit)]


def underdamped_run(case: Case, t: Tensors) -> tuple[Tensor, ...]:
    given: dict[str, Any] = {"step_size": 0.3 * case.unit, "friction": 0.7 / case.unit, "velocity": t["velocity"]}
    return (fastscore.underdamped_langevin(pull(case), t["x"], seed=case.seed, **given, **named(case)),)


def underdamped_truth(case: Case, t: Tensors) -> list[tuple[Tensor, float]]:
    x, v, a = t["x"], t["velocity"], 0.3 * case.unit
    keep = torch.exp(torch.tensor(-0.7 * 0.3, dtype=torch.float64))
    for k in range(N_STEPS):
        x = x + a / 2 * (v := v + a / 2 * pull(case)(x))
        v = keep * v + (1 - keep**2).sqrt() * normals(case, Stream.LANGEVIN, k)
        v = v + a / 2 * pull(case)(x := x + a / 2 * v)
    return [(x, case.unit)]


# A score whose features act on each other, and networks, whose derivatives are known in closed form.


def coupled(case: Case) -> Any:
    return _coupled(case.unit)


@functools.cache
def _coupled(unit: float) -> Any:
    def score(x: Tensor) -> Tensor:
        u = (x * (1 / unit)).flatten(1)
        return ((torch.sin(u) - u + 0.5 * torch.sin(u.roll(1, 1))) * (1 / unit)).view(x.shape)

    return score


def probes(case: Case, exact: bool) -> Tensor:
    """The probes of an estimate, `[K, B, D]`, over sqrt(K): their forms add up to a mean. Exact: unit vectors."""
    if exact:
        return torch.eye(case.dim, dtype=torch.float64).unsqueeze(1).expand(-1, case.batch, -1)
    make: Any = noise.rademacher if case.probe == "rademacher" else noise.normal
    kind = torch.float64 if case.dtype == torch.float64 else torch.float32
    run: dict[str, Any] = {"seed": case.seed, "stream": Stream.PROBES, "first_chain": case.first_chain, "dtype": kind}
    drawn = torch.stack([make((case.batch, case.dim), step=k, **run) for k in range(case.probes)])
    return drawn.double() / case.probes**0.5


def estimated(case: Case) -> dict[str, Any]:
    if case.variant % 2 == 0:
        return {"trace": "exact"}
    return {"trace": "hutchinson", **sampled(case)}


def sampled(case: Case) -> dict[str, Any]:
    return {"n_probes": case.probes, "probe": case.probe, "seed": case.seed, "first_chain": case.first_chain}


def coupled_product(case: Case, x: Tensor, v: Tensor) -> Tensor:
    """J v, `[K, B, D]`."""
    u = (x / case.unit).flatten(1)
    return ((torch.cos(u) - 1) * v + 0.5 * torch.cos(u.roll(1, 1)) * v.roll(1, 2)) / case.unit**2


def coupled_trace(case: Case, x: Tensor, exact: bool) -> Tensor:
    v = probes(case, exact)
    return (v * coupled_product(case, x, v)).sum((0, 2))


def divergence_run(case: Case, t: Tensors) -> tuple[Tensor, ...]:
    return fastscore.divergence(coupled(case), t["x"], **estimated(case))[:2]


def divergence_truth(case: Case, t: Tensors) -> list[tuple[Tensor, float]]:
    size = case.dim / case.unit**2 * (4 if case.variant % 2 else 1)
    return [(coupled(case)(t["x"]), 1 / case.unit), (coupled_trace(case, t["x"], case.variant % 2 == 0), size)]


def jacobian_run(case: Case, t: Tensors) -> tuple[Tensor, ...]:
    return (fastscore.jacobian(coupled(case), t["x"]).reshape(case.batch, case.dim, case.dim),)


def jacobian_truth(case: Case, t: Tensors) -> list[tuple[Tensor, float]]:
    u = (t["x"] / case.unit).flatten(1)
    own, before = torch.diag_embed(torch.cos(u) - 1), torch.diag_embed(0.5 * torch.cos(u.roll(1, 1))).roll(-1, 2)
    return [((own + before) / case.unit**2, 1 / case.unit**2)]


def energy(case: Case) -> Any:
    return _energy(case.unit)


@functools.cache
def _energy(unit: float) -> Any:
    def function(x: Tensor) -> Tensor:
        u = (x * (1 / unit)).flatten(1)
        return (u.square() / 2 + torch.cos(u) * (1 + 0.25 * u.roll(1, 1))).sum(1)

    return function


def laplacian_run(case: Case, t: Tensors) -> tuple[Tensor, ...]:
    return fastscore.laplacian(energy(case), t["x"], **estimated(case))[:3]


def laplacian_truth(case: Case, t: Tensors) -> list[tuple[Tensor, float]]:
    u, v = (t["x"] / case.unit).flatten(1), probes(case, case.variant % 2 == 0)
    before, after = u.roll(1, 1), u.roll(-1, 1)
    slope = u - torch.sin(u) * (1 + 0.25 * before) + 0.25 * torch.cos(after)
    bent = (1 - torch.cos(u) * (1 + 0.25 * before)) * v
    bent = bent - 0.25 * (torch.sin(u) * v.roll(1, 2) + torch.sin(after) * v.roll(-1, 2))
    size = case.dim / case.unit**2 * (4 if case.variant % 2 else 1)
    return [
        (energy(case)(t["x"]), case.dim),
        (-(slope / case.unit).view(t["x"].shape), 1 / case.unit),
        ((v * bent).sum((0, 2)) / case.unit**2, size),
    ]


def reduced(case: Case, loss: Tensor, size: float) -> list[tuple[Tensor, float]]:
    if case.reduction == "none":
        return [(loss, size)]
    return [(loss.sum(), size * case.batch)] if case.reduction == "sum" else [(loss.mean(), size)]


def loss_size(case: Case) -> float:
    return 4 * case.dim / case.unit**2


def implicit_run(case: Case, t: Tensors) -> tuple[Tensor, ...]:
    convention = "fisher" if case.variant >= 3 else "half"
    run: dict[str, Any] = {"reduction": case.reduction, "convention": convention, **estimated(case)}
    return (fastscore.implicit_score_matching(coupled(case), t["x"], **run),)


def implicit_truth(case: Case, t: Tensors) -> list[tuple[Tensor, float]]:
    squares = coupled(case)(t["x"]).flatten(1).square().sum(1)
    loss = (0.5 * squares + coupled_trace(case, t["x"], case.variant % 2 == 0)) * (2 if case.variant >= 3 else 1)
    return reduced(case, loss, 2 * loss_size(case))


def sliced_run(case: Case, t: Tensors) -> tuple[Tensor, ...]:
    run: dict[str, Any] = {"reduction": case.reduction, **sampled(case)}
    return (fastscore.sliced_score_matching(coupled(case), t["x"], **run),)


def sliced_truth(case: Case, t: Tensors) -> list[tuple[Tensor, float]]:
    projected = (coupled(case)(t["x"]).flatten(1) * probes(case, exact=False)).sum(2).square().sum(0)
    return reduced(case, 0.5 * projected + coupled_trace(case, t["x"], exact=False), 4 * loss_size(case))


def explicit_inputs(case: Case) -> Tensors:
    return points(case) | {"target": case.randn(case.batch, *case.event, scale=1 / case.unit)}


def explicit_run(case: Case, t: Tensors) -> tuple[Tensor, ...]:
    return (fastscore.explicit_score_matching(coupled(case), t["x"], target=t["target"], reduction=case.reduction),)


def explicit_truth(case: Case, t: Tensors) -> list[tuple[Tensor, float]]:
    return reduced(case, 0.5 * (coupled(case)(t["x"]) - t["target"]).flatten(1).square().sum(1), loss_size(case))


def denoising_run(case: Case, t: Tensors) -> tuple[Tensor, ...]:
    run: dict[str, Any] = {"reduction": case.reduction, "seed": case.seed, "first_chain": case.first_chain}
    sigma = 0.5 * case.unit
    return (fastscore.denoising_score_matching(coupled(case), t["x"], sigma=sigma, **run),)


def denoising_truth(case: Case, t: Tensors) -> list[tuple[Tensor, float]]:
    e, sigma = normals(case, Stream.DATA, 0), 0.5 * case.unit
    residual = sigma * coupled(case)(t["x"] + sigma * e) + e
    return reduced(case, 0.5 * residual.flatten(1).square().sum(1), 4.0 * case.dim)


def fisher_run(case: Case, t: Tensors) -> tuple[Tensor, ...]:
    run: dict[str, Any] = {"relative": bool(case.variant % 2)}
    return (fastscore.metrics.fisher_divergence(coupled(case), lambda x: -x / case.unit**2, t["x"], **run),)


def fisher_truth(case: Case, t: Tensors) -> list[tuple[Tensor, float]]:
    true = -(t["x"] / case.unit**2).flatten(1)
    error, size = (coupled(case)(t["x"]).flatten(1) - true).square().sum(1).mean(), true.square().sum(1).mean()
    return [(error / size, float(error.detach() / size.detach())) if case.variant % 2 else (error, loss_size(case))]


def stein_run(case: Case, t: Tensors) -> tuple[Tensor, ...]:
    return (fastscore.metrics.kernel_stein_discrepancy(pull(case), t["x"], bandwidth=2.0 * case.unit),)


def stein_truth(case: Case, t: Tensors) -> list[tuple[Tensor, float]]:
    x, s, h2 = t["x"].flatten(1), pull(case)(t["x"]).flatten(1), (2.0 * case.unit) ** 2
    d = x.unsqueeze(1) - x.unsqueeze(0)
    r2 = d.square().sum(2)
    k, g = (1 + r2 / h2).rsqrt(), 1 / (h2 + r2)
    cross = ((s.unsqueeze(1) - s.unsqueeze(0)) * d).sum(2)
    terms = s @ s.T * k + k * g * cross + k * g * (case.dim - 3 * g * r2)
    return [(terms.mean(), float(terms.detach().abs().mean()) + case.dim / case.unit**2)]


# Networks of one to three hidden layers; the first layer takes x / unit, the last gives 1 / unit.


@functools.cache
def network(kind: str, dim: int, depth: int, dtype: torch.dtype) -> nn.Module:
    made = {"score": fastscore.ScoreMLP, "energy": fastscore.EnergyMLP}[kind]
    return made(dim, width=HIDDEN, depth=depth, activation="tanh").to(dtype)


def layer_sizes(case: Case, kind: str) -> list[tuple[str, tuple[int, ...], float]]:
    depth, outputs = 1 + case.variant // 2, case.dim if kind == "score" else 1
    widths = [case.dim, *[HIDDEN] * depth, outputs]
    first, last = 1 / case.unit, 1 / case.unit if kind == "score" else 1.0
    found = []
    for i in range(depth + 1):
        size = first if i == 0 else last if i == depth else 1.0
        found += [(f"W{i}", (widths[i + 1], widths[i]), size)]
        found += [(f"b{i}", (widths[i + 1],), last if i == depth else 1.0)]
    return found


def network_inputs(kind: str) -> Any:
    def inputs(case: Case) -> Tensors:
        return points(case) | {n: case.randn(*shape, scale=0.5 * size) for n, shape, size in layer_sizes(case, kind)}

    return inputs


def network_scales(kind: str) -> Any:
    return lambda case: {"x": case.unit} | {name: size for name, _, size in layer_sizes(case, kind)}


def as_network(case: Case, kind: str, t: Tensors) -> Any:
    net = network(kind, case.dim, 1 + case.variant // 2, case.dtype)
    for i, layer in enumerate(net.layers):
        for attribute, name in (("weight", f"W{i}"), ("bias", f"b{i}")):
            value = t[name]
            setattr(layer, attribute, value if isinstance(value, nn.Parameter) else nn.Parameter(value, False))
    return net


def layers(t: Tensors) -> tuple[Tensor, Tensor]:
    """Output and Jacobian `[B, O, D]` of the network, written out."""
    h, depth = t["x"].flatten(1), sum(name.startswith("W") for name in t) - 1
    jacobian = t["W0"].expand(len(h), -1, -1)
    for i in range(depth):
        h = torch.tanh(h @ t[f"W{i}"].T + t[f"b{i}"])
        jacobian = t[f"W{i + 1}"] @ ((1 - h.square()).unsqueeze(2) * jacobian)
    return h @ t[f"W{depth}"].T + t[f"b{depth}"], jacobian


def net_forward_run(case: Case, t: Tensors) -> tuple[Tensor, ...]:
    return (as_network(case, "score", t)(t["x"]),)


def net_forward_truth(case: Case, t: Tensors) -> list[tuple[Tensor, float]]:
    return [(layers(t)[0].view(t["x"].shape), 1 / case.unit)]


def net_energy_run(case: Case, t: Tensors) -> tuple[Tensor, ...]:
    net = as_network(case, "energy", t)
    return net(t["x"]), net.score(t["x"])


def net_energy_truth(case: Case, t: Tensors) -> list[tuple[Tensor, float]]:
    value, jacobian = layers(t)
    return [(value[:, 0], 1.0), (-jacobian[:, 0].view(t["x"].shape), 1 / case.unit)]


def net_divergence_run(case: Case, t: Tensors) -> tuple[Tensor, ...]:
    return fastscore.divergence(as_network(case, "score", t), t["x"], **estimated(case))[:2]


def net_divergence_truth(case: Case, t: Tensors) -> list[tuple[Tensor, float]]:
    value, jacobian = layers(t)
    v = probes(case, case.variant % 2 == 0)
    trace = torch.einsum("kbi,bij,kbj->b", v, jacobian, v)
    return [(value.view(t["x"].shape), 1 / case.unit), (trace, loss_size(case))]


def net_implicit_run(case: Case, t: Tensors) -> tuple[Tensor, ...]:
    run: dict[str, Any] = {"reduction": case.reduction, **estimated(case)}
    return (fastscore.implicit_score_matching(as_network(case, "score", t), t["x"], **run),)


def net_implicit_truth(case: Case, t: Tensors) -> list[tuple[Tensor, float]]:
    (value, _), (trace, _) = net_divergence_truth(case, t)
    return reduced(case, 0.5 * value.flatten(1).square().sum(1) + trace, loss_size(case))


def by_reduction(case: Case) -> bool:
    return case.reduction == "none"


def of_x(case: Case) -> dict[str, float]:
    return {"x": case.unit}


def step_sizes(case: Case) -> dict[str, float]:
    return {"x": case.unit, "score": 1 / case.unit, "a": case.unit**2}


def loss(run: Any, truth: Any, inputs: Any = points, **options: Any) -> Operation:
    return Operation(inputs, run, truth, **{"sizes": of_x, "by_row": by_reduction, "exact": False} | options)


def net(kind: str, run: Any, truth: Any, **options: Any) -> Operation:
    shared = tuple(f"{letter}{i}" for letter in "Wb" for i in range(4))
    return Operation(network_inputs(kind), run, truth, network_scales(kind), shared=shared, exact=False, **options)


OPERATIONS = {
    "langevin_step": Operation(step_inputs, step_run, step_truth, step_sizes, shared=("a",), dtypes=ALL, empty=True),
    "langevin_dynamics": Operation(points, ula_run, ula_truth, dtypes=ALL, empty=True),
    "gradient_ascent": Operation(points, ascent_run, functools.partial(ula_truth, temperature=0.0), dtypes=ALL),
    "annealed_langevin_dynamics": Operation(points, annealed_run, annealed_truth, dtypes=ALL, empty=True),
    "mala": Operation(points, mala_run, mala_truth, empty=True),
    "underdamped_langevin": Operation(
        lambda case: points(case) | {"velocity": case.randn(case.batch, *case.event)},
        underdamped_run,
        underdamped_truth,
        dtypes=ALL,
        empty=True,
    ),
    "divergence": Operation(points, divergence_run, divergence_truth, of_x, exact=False, empty=True),
    "jacobian": Operation(points, jacobian_run, jacobian_truth, of_x, exact=False),
    "laplacian": Operation(points, laplacian_run, laplacian_truth, of_x, exact=False),
    "implicit_score_matching": loss(implicit_run, implicit_truth),
    "sliced_score_matching": loss(sliced_run, sliced_truth),
    "explicit_score_matching": loss(
        explicit_run,
        explicit_truth,
        inputs=explicit_inputs,
        sizes=lambda case: {"x": case.unit, "target": 1 / case.unit},
    ),
    "denoising_score_matching": loss(denoising_run, denoising_truth),
    "fisher_divergence": loss(fisher_run, fisher_truth, by_row=lambda case: False),
    "kernel_stein_discrepancy": loss(stein_run, stein_truth, by_row=lambda case: False),
    "ScoreMLP": net("score", net_forward_run, net_forward_truth),
    "EnergyMLP": net("energy", net_energy_run, net_energy_truth),
    "divergence of a network": net("score", net_divergence_run, net_divergence_truth),
    "implicit_score_matching of a network": net("score", net_implicit_run, net_implicit_truth, by_row=by_reduction),
}


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in range(1, 11))])
@pytest.mark.parametrize("name", OPERATIONS)
def test_properties(name: str, part: int) -> None:
    op = OPERATIONS[name]

    @seed(zlib.crc32(name.encode()) + part)
    @settings(max_examples=500 if part else 300, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(cases(op.dtypes, op.empty))
    def check(case: Case) -> None:
        verify(op, case)

    check()
