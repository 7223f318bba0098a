"""A provider that is wrong is refused, in every family and under every law: each is planted beside a right one.

The errors are those that are made: a trace divided by D, a noise that is five percent too large, a term of a gradient
that is missing.
"""

from __future__ import annotations

import pytest
import torch

from bench import compare
from bench.families import chains, energies, laplacians, losses, mala, networks, noise, steps, targets, training
from bench.registry import Provider, WrongError, families

OFF = 1.05  # a scale of the noise


def step(loss_of):
    """A training step with this loss of (score, x), a score network's or an energy's."""

    def build(case, arrays):
        weights, x = networks.split(arrays)
        model = networks.network(weights)
        score = model if model[-1].out_features == x.shape[1] else losses.score_of(model)
        return networks.training_step(model, loss_of(score, x))

    return build


def exact(score, x, *, part=1.0, detached=False):
    def loss():
        y = x.detach().requires_grad_()
        s = score(y)
        rows = [torch.autograd.grad(s[:, i].sum(), y, create_graph=True)[0][:, i] for i in range(x.shape[1])]
        trace = part * sum(rows)
        return (0.5 * s.square().sum(-1) + (trace.detach() if detached else trace)).mean()

    return loss


def sliced(score, x, *, probes, reduced, part=1.0, scale=1.0, detached=False):
    def loss():
        y = x.detach().repeat(probes, 1).requires_grad_()
        s, v = score(y), scale * torch.randn_like(y).sign()
        product = part * (torch.autograd.grad(s, y, v, create_graph=True)[0] * v).sum(-1)
        squares = s.square().sum(-1) if reduced else (s * v).sum(-1).square()
        return (0.5 * squares + (product.detach() if detached else product)).mean()

    return loss


def denoising(score, x, *, scale=1.0, detached=False):
    def loss():
        e = scale * torch.randn_like(x)
        s = losses.SIGMA * score(x + losses.SIGMA * e)
        cross = (s * e).sum(-1)
        return (0.5 * s.square().sum(-1) + (cross.detach() if detached else cross) + 0.5 * e.square().sum(-1)).mean()

    return loss


def planted(loss, **wrong):
    return step(lambda score, x: loss(score, x, **wrong))


def spoilt(build, change):
    """The same provider with its results changed."""

    def wrong(case, arrays):
        call = build(case, arrays)
        return lambda: change({name: value.clone() for name, value in call().items()})

    return wrong


def without_a_bias(found):
    found["b0"] = torch.zeros_like(found["b0"])
    return found


def chain(noise=1.0, drift=1.0):
    def build(case, arrays):
        a, score = case.settings["step_size"], targets.score_of(case, arrays)

        def one(y):
            return y + a * drift * score(y) + noise * (2 * a) ** 0.5 * torch.randn_like(y)

        return lambda: {"x": chains.run(one, arrays["x"], case.settings["steps"])}

    return build


def one_way(case, arrays):
    """Metropolis's rule as if a proposal were as likely as its reverse."""
    a, evaluate = case.settings["step_size"], mala.evaluator(mala.density_of(case, arrays))

    def step(x, value, slope):
        proposal = x + a * slope + (2 * a) ** 0.5 * torch.randn_like(x)
        to_value, to_slope = evaluate(proposal)
        accept = torch.rand_like(value).log() < to_value - value
        kept = accept[:, None]
        return torch.where(kept, proposal, x), torch.where(accept, to_value, value), torch.where(kept, to_slope, slope)

    return lambda: {"x": mala.run(evaluate, step, arrays["x"], case.settings["steps"])}


def langevin(noise=1.0, drift=1.0, seed=None):
    def build(case, arrays):
        x, score = arrays["x"], arrays["score"]

        def call():
            draws = None if seed is None else networks.generator(seed)
            z = torch.randn(x.shape, generator=draws, dtype=x.dtype)
            return {"x": x + drift * steps.A * score + noise * steps.SCALE * z}

        return call

    return build


LOSSES = {"part": 1 / 2}  # a trace divided by D = 2
SCORE, ENERGY = training.case_of(4096, 2, 2, 16, training.FEW, True), energies._case(4096, 2, 2, 16, training.FEW, True)
HUTCHINSON, SLICED = {"probes": 1, "reduced": True}, {"probes": energies.PROJECTIONS, "reduced": False}
TARGETS = [
    targets.case_of("ring", 4096, 100, 0.02, 0, True),
    targets.case_of("mixture32", 4096, 25, 0.02, 0, True),
    targets.case_of("network", 4096, 60, 0.01, 0, True),
    targets.case_of("double well", 1024, 20, 0.001, 0, True),
]


def loss_rows(module, case):
    """Family, case, law, the right builder and the wrong ones, for each of the laws of a training step."""
    for law, loss, options, wrong in (
        ("exact", exact, {}, LOSSES),
        *(
            [("hutchinson", sliced, HUTCHINSON, LOSSES)]
            if module is training
            else [("sliced", sliced, SLICED, LOSSES), ("sliced", sliced, SLICED, {"scale": OFF})]
        ),
        ("denoising", denoising, {}, {"scale": OFF}),
    ):
        right = planted(loss, **options)
        yield (
            module,
            case,
            law,
            right,
            {
                **{f"{name} {value:.3g}": planted(loss, **options, **{name: value}) for name, value in wrong.items()},
                "a term of the gradient": planted(loss, **options, detached=True),
                "a bias": spoilt(right, without_a_bias),
            },
        )


def rows():
    yield from loss_rows(training, SCORE)
    yield from loss_rows(energies, ENERGY)
    small = laplacians._case(4)
    right = laplacians._naive
    yield (
        laplacians,
        small,
        "exact",
        right,
        {
            "divided by D": spoilt(right, lambda found: {"laplacian": found["laplacian"] / laplacians.SIZES[0]}),
            "a dimension": spoilt(
                right, lambda found: {"laplacian": found["laplacian"] * (1 - 1 / laplacians.SIZES[0])}
            ),
        },
    )
    for case in TARGETS:
        yield chains, case, "exact", chain(), {"noise": chain(noise=OFF), "no drift": chain(drift=0.0)}
    for target in ("ring", "energy"):
        case = mala._case(target, 4096, 20, 0.2)
        wrong = {"never refused": chain(), "refused without the way back": one_way}
        yield mala, case, "exact", mala._naive, wrong
    for case in (steps._case(15_625, 64, True, True), steps._case(15_625, 64, True, True, "bfloat16")):
        wrong = {"noise": langevin(OFF), "no drift": langevin(drift=0.0), "the same again": langevin(seed=3)}
        yield steps, case, "exact", langevin(), wrong
        yield steps, case, "copy", steps._copy, {"a step": langevin()}
    (case, *_) = noise.cases("cpu")
    right = noise._randn
    yield (
        noise,
        case,
        "exact",
        right,
        {
            "scale": spoilt(right, lambda found: {"z": OFF * found["z"]}),
            "a tail cut off": spoilt(right, lambda found: {"z": found["z"].clamp(-3, 3)}),
        },
    )


def named(row):
    return f"{row[0].FAMILY.name}: {row[1].name}: {row[2]}"


@pytest.mark.parametrize(
    ("module", "case", "law", "right", "wrong"), [pytest.param(*row, id=named(row)) for row in rows()]
)
def test_what_is_wrong_is_refused(module, case, law, right, wrong) -> None:
    family = module.FAMILY
    if "bfloat16" in case.name and torch.__version__ < "2.12":
        pytest.skip("what torch itself draws in bfloat16 ends at 3.3: refused, and rightly so")
    arrays = family.inputs(case, "cpu")
    reference = family.reference(case, arrays)
    compare.admit(family, case, arrays, reference, "right", Provider(right, law))
    for name, build in wrong.items():
        with pytest.raises(WrongError):
            compare.admit(family, case, arrays, reference, name, Provider(build, law))
            pytest.fail(f"{name} was accepted")


def test_every_family_and_law_has_something_planted() -> None:
    there = {(module.FAMILY.name, law) for module, _, law, _, _ in rows()}
    assert there == {(family.name, provider.law) for family in families() for provider in family.providers.values()}
