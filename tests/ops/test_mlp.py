"""The hand-written passes against the plain reference (itself held to brute force), in every way they can be called."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor

from fastscore.ops import _cpu, _cpu_layers, _cpu_program, mlp_passes, mlp_problem, mlp_tiles
from fastscore.ops import mlp as ops
from fastscore.ops.mlp import Probes
from fastscore.reference import mlp as reference
from fastscore.reference.mlp import MLP

ACTIVATIONS = ("silu", "tanh", "softplus", "silu", "gelu", "sine", "softsign", "silu", "gelu_tanh")
# dim, widths, residual layers
SHAPES = [
    (1, (5,), ()),
    (3, (4,), ()),
    (2, (7, 7), (1,)),
    (4, (5, 3), ()),
    (3, (6, 6, 4), (1,)),
    (2, (3, 5, 5), (2,)),
    (1, (4, 4, 4), (1, 2)),
    (5, (4, 6, 6, 6), (2, 3)),
    (1, (3, 3, 3, 3), (1, 3)),
    (3, (2, 4, 3, 5), ()),
    (2, (3, 3, 3, 3, 3), (1, 2, 3)),
    (5, (3, 3, 3), (1, 2)),
    (6, (5, 2, 4), ()),
    (6, (5, 2, 2, 4), (2,)),
    (7, (5, 5, 3, 2, 2), (1, 4)),
    (7, (2, 2, 2, 5, 5, 5), (1, 2, 4, 5)),
    (6, (6, 5, 5, 2), (2,)),
]
KINDS = ("trace", "weighted", "quadratic", "weighted quadratic", "energy", "loss", "quadratic loss", "energy loss")
SQUARE, TRACE = 0.7, -1.3


class Case:
    """A random network, its inputs, and one operation on them in its two forms."""

    def __init__(self, shape, kind: str, seed: int = 0, batch: int = 7, dtype: torch.dtype = torch.float64) -> None:
        dim, widths, residual = shape
        self.kind, self.generator, self.dtype = kind, torch.Generator().manual_seed(seed), dtype
        sizes = (dim, *widths, 1 if "energy" in kind else dim)
        self.tensors: dict[str, Tensor | None] = {"x": self.random(batch, dim)}
        for layer, (before, after) in enumerate(itertools.pairwise(sizes), 1):
            self.tensors[f"W{layer}"] = self.random(after, before) / before**0.5
            self.tensors[f"b{layer}"] = None if (seed + layer) % 4 == 3 else self.random(after)
            self.tensors[f"u{layer}"] = self.random(batch, after) if (seed + layer) % 2 else None
        self.tensors["C"] = self.random(dim, dim) if "weighted" in kind else None
        count = len(sizes) - 1
        self.activations = tuple(ACTIVATIONS[(seed + layer) % len(ACTIVATIONS)] for layer in range(count - 1))
        self.residuals = tuple(layer in residual for layer in range(count - 1))
        self.probes = Probes(seed=seed, count=1 + seed % 3, kind="normal" if seed % 2 else "rademacher", first_sample=5)

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64).to(self.dtype)

    def given(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self.tensors.items() if tensor is not None}

    def parts(self, tensors: dict[str, Tensor]):
        layers = range(1, len(self.activations) + 2)
        weights, biases, shifts = (tuple(tensors.get(f"{kind}{layer}") for layer in layers) for kind in "Wbu")
        return MLP(weights, biases, self.activations, self.residuals), tensors["x"], shifts, tensors.get("C")

    def fast(self, tensors: dict[str, Tensor]) -> tuple[Tensor, ...]:
        mlp, x, shifts, weight = self.parts(tensors)
        if self.kind == "energy":
            return ops.energy_terms(mlp, x, shifts)
        if self.kind == "energy loss":
            return ops.implicit_loss(mlp, x, shifts, square=SQUARE, trace=TRACE, energy=True)
        probes = self.probes if "quadratic" in self.kind else None
        if "loss" in self.kind:
            return ops.implicit_loss(mlp, x, shifts, square=SQUARE, trace=TRACE, probes=probes)
        if probes is not None:
            return ops.score_and_quadratic(mlp, x, shifts, probes=probes, weight=weight)
        return ops.score_and_trace(mlp, x, shifts, weight=weight)

    def plain(self, tensors: dict[str, Tensor]) -> tuple[Tensor, ...]:
        mlp, x, shifts, weight = self.parts(tensors)
        if "energy" in self.kind:
            energy, score, laplacian = reference.energy_terms(mlp, x, shifts)
            values, trace = (energy, score, laplacian), -laplacian
        elif "quadratic" in self.kind:
            drawn = self.probes.draw(slice(0, len(x)), x)
            score, trace = values = reference.score_and_quadratic(mlp, x, shifts, drawn, weight=weight)
            trace = trace.mean(1)
        else:
            score, trace = values = reference.score_and_trace(mlp, x, shifts, weight=weight)
        if "loss" not in self.kind:
            return values
        square, trace = score.square().sum(), trace.sum()
        return SQUARE * square + TRACE * trace, square.detach(), trace.detach()

    def gradients(self, function, names: tuple[str, ...]) -> tuple[tuple[Tensor, ...], dict[str, Tensor | None]]:
        """Outputs and gradients of a random combination of them in the named tensors; the others need none."""
        tensors = {name: t.detach().clone().requires_grad_(name in names) for name, t in self.given().items()}
        outputs = function(tensors)
        total = sum(
            (
                torch.randn(out.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64).to(out.dtype)
                * out
            ).sum()
            for i, out in enumerate(outputs)
            if out.requires_grad
        )
        found = torch.autograd.grad(total, [tensors[name] for name in names], allow_unused=True)
        return tuple(out.detach() for out in outputs), dict(zip(names, found, strict=True))


def assert_same(case: Case, names: tuple[str, ...], rtol: float = 1e-10) -> None:
    values, gradients = case.gradients(case.fast, names)
    expected_values, expected = case.gradients(case.plain, names)
    for value, want in zip(values, expected_values, strict=True):
        torch.testing.assert_close(value, want, rtol=rtol, atol=rtol)
    for name in names:
        want = expected[name]
        got = gradients[name]
        if want is None:
            assert got is None or not got.any(), name
        else:
            assert got.shape == want.shape
            torch.testing.assert_close(got, want, rtol=rtol, atol=rtol * max(1.0, float(want.abs().max())), msg=name)


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of 16 rows whatever the widths, the least there is."""
    monkeypatch.setitem(mlp_tiles._TILE, "cpu", 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("seed", "shape"), list(enumerate(SHAPES)))
@pytest.mark.parametrize("offset", [0, 1])
def test_values_and_all_gradients(seed, shape, kind, offset):
    case = Case(shape, kind, seed + offset)
    assert_same(case, tuple(case.given()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[2], SHAPES[4]])
@pytest.mark.parametrize("batch", [1, 16, 17, 47])
def test_tiles_of_any_number_add_up(shape, kind, batch, small_tiles):
    case = Case(shape, kind, 4, batch)
    assert_same(case, tuple(case.given()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[3], (2, (3, 3, 3), (1, 2))])
def test_every_subset_of_what_requires_grad(shape, kind):
    case = Case(shape, kind, 0, batch=2)
    names = tuple(case.given())
    # All single ones, all but one, and every combination of x, a shift, an inner weight and a bias.
    subsets = {(name,) for name in names} | {tuple(n for n in names if n != name) for name in names}
    chosen = [name for name in ("x", "u1", "W1", "W2", "b1", "C") if name in names]
    for size in range(1, len(chosen) + 1):
        subsets |= set(itertools.combinations(chosen, size))
    for subset in sorted(subsets):
        if subset in {("b2",), ("u2",), ("u3",)} and len(shape[1]) == 1:
            continue
        mine = case.gradients(case.fast, subset)[1] if _reaches(case, subset) else {}
        theirs = case.gradients(case.plain, subset)[1] if mine else {}
        for name, got in mine.items():
            if theirs[name] is None:
                assert got is None or not got.any()
            else:
                torch.testing.assert_close(got, theirs[name], rtol=1e-10, atol=1e-10)


def _reaches(case: Case, subset: tuple[str, ...]) -> bool:
    """Whether the plain outputs depend on any of the named tensors."""
    tensors = {name: t.detach().clone().requires_grad_(name in subset) for name, t in case.given().items()}
    return any(out.requires_grad for out in case.plain(tensors))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[2], SHAPES[4]])
def test_first_and_second_derivatives_by_finite_differences(shape, kind):
    dim, widths, residual = shape
    case = Case((min(dim, 2), tuple(3 for _ in widths), residual), kind, 0, batch=2)
    names = tuple(case.given())

    def function(*tensors):
        return [out for out in case.fast(dict(zip(names, tensors, strict=True))) if out.requires_grad]

    inputs = [case.given()[name].requires_grad_() for name in names]
    batched = len(widths) == 2
    assert torch.autograd.gradcheck(function, inputs, check_batched_grad=batched, check_undefined_grad=False)
    assert torch.autograd.gradgradcheck(function, inputs, gen_non_contig_grad_outputs=True, fast_mode=True)


@pytest.mark.parametrize("kind", KINDS)
def test_second_derivative_with_constant_upstream(kind):
    """The pattern under which a plain Function is silently wrong: grad_outputs that need no gradient."""
    case = Case(SHAPES[2], kind, 3)
    found = []
    for function in (case.fast, case.plain):
        tensors = {name: t.detach().clone().requires_grad_() for name, t in case.given().items()}
        first = [out for out in function(tensors) if out.requires_grad]
        (dx,) = torch.autograd.grad(first, tensors["x"], [torch.ones_like(out) for out in first], create_graph=True)
        found.append(torch.autograd.grad(dx.square().sum(), [tensors["W1"], tensors["W2"], tensors["x"]]))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("create_graph", [False, True])
def test_tied_weights_get_one_gradient_each_way(kind, create_graph):
    if "energy" in kind:
        pytest.skip("an energy's last weight has another shape")
    case = Case((3, (3, 3), (1,)), kind, 4)
    found = []
    for function in (case.fast, case.plain):
        tensors = {name: t.detach().clone() for name, t in case.given().items()}
        tensors["W1"].requires_grad_()
        tensors["W2"] = tensors["W3"] = tensors["W1"]
        outputs = [out.sum() for out in function(tensors) if out.requires_grad]
        found.append(torch.autograd.grad(sum(outputs), tensors["W1"], create_graph=create_graph)[0])
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_transforms_of_torch_func(kind):
    case = Case((2, (3, 3), (1,)), kind, 3, batch=3)
    given = case.given()

    def first(function):
        def of(x, weight):
            values = function({**given, "x": x, "W2": weight})
            return values[0] if "loss" in kind else values[-1]

        return of

    mine, theirs = first(case.fast), first(case.plain)
    x, weight = given["x"], given["W2"]
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        for got, want in zip(transform(mine, (0, 1))(x, weight), transform(theirs, (0, 1))(x, weight), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    weights = torch.stack([weight, 2 * weight])
    torch.testing.assert_close(torch.vmap(mine, (None, 0))(x, weights), torch.vmap(theirs, (None, 0))(x, weights))
    got = torch.autograd.functional.jacobian(mine, (x, weight), vectorize=True)
    want = torch.autograd.functional.jacobian(theirs, (x, weight))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_forward_mode(kind):
    case = Case((2, (3, 3), ()), kind, 0, batch=3)
    given = case.given()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(given["x"], torch.ones_like(given["x"]))
        for got, want in zip(case.fast({**given, "x": dual}), case.plain({**given, "x": dual}), strict=True):
            tangents = [torch.autograd.forward_ad.unpack_dual(out).tangent for out in (got, want)]
            if tangents[1] is not None:
                torch.testing.assert_close(*tangents, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["trace", "quadratic loss", "energy loss"])
def test_compiled_whole_and_backward(kind):
    case = Case((2, (4, 4), (1,)), kind, 0)
    compiled = torch.compile(case.fast, fullgraph=True, backend="aot_eager")
    names = tuple(case.given())
    values, gradients = case.gradients(compiled, names)
    expected_values, expected = case.gradients(case.plain, names)
    for got, want in zip((*values, *gradients.values()), (*expected_values, *expected.values()), strict=True):
        if want is not None:
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_layouts_do_not_matter(kind):
    case = Case((4, (6, 6), (1,)), kind, 3)
    given = case.given()
    expected, wanted = case.gradients(case.plain, tuple(given))
    strided = {name: torch.stack([t, t + 1], -1)[..., 0].requires_grad_() for name, t in given.items()}
    outputs = case.fast(strided)
    for got, want in zip(outputs, expected, strict=True):
        torch.testing.assert_close(got.detach(), want, rtol=1e-10, atol=1e-10)
    turned = {
        name: t.t().contiguous().t().detach().requires_grad_() if t.ndim == 2 else t.detach()
        for name, t in given.items()
    }
    turned["u2"] = turned.get("u2", given["x"][:, :1]).detach()[:1].expand(7, -1) if "u2" in given else None
    mine = [t for t in case.fast({n: t for n, t in turned.items() if t is not None}) if t.requires_grad]
    theirs = [t for t in case.plain({n: t for n, t in turned.items() if t is not None}) if t.requires_grad]
    for name in ("x", "W1", "W2", "W3"):
        # sum() hands an expanded upstream with stride 0
        got, want = (
            torch.autograd.grad(sum(o.sum() for o in out), turned[name], retain_graph=True)[0] for out in (mine, theirs)
        )
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    assert wanted.keys() == given.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_saved_but_inputs_and_their_gradients(kind):
    case = Case((2, (8, 8), ()), kind, 0, batch=64)
    tensors = {name: t.requires_grad_(name not in ("x", "u1", "u2", "u3")) for name, t in case.given().items()}
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        case.fast(tensors)
    own = {t.data_ptr() for t in tensors.values()}
    extra = [t for t in saved if t.data_ptr() not in own]
    # The fused loss keeps gradients of the parameters; nothing of the size of the batch.
    assert all(len(t) < 64 for t in extra if t.ndim)
    saved.clear()
    with torch.no_grad(), torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        outputs = case.fast(tensors)
    assert not saved
    assert not any(out.requires_grad for out in outputs)


@pytest.mark.parametrize("kind", KINDS)
def test_no_grad_and_inference_give_the_same_values(kind):
    case = Case((2, (5, 4), ()), kind, 1)
    expected = case.plain(case.given())
    for mode in (torch.no_grad(), torch.inference_mode(), torch.enable_grad()):
        with mode:
            for got, want in zip(case.fast(case.given()), expected, strict=True):
                torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_stay_and_outputs_are_nobody_elses_memory(kind):
    case = Case((2, (5, 5), (1,)), kind, 3)
    given = case.given()
    before = {name: t.clone() for name, t in given.items()}
    _, first = case.gradients(case.fast, tuple(given))
    kept = {name: None if t is None else t.clone() for name, t in first.items()}
    outputs = case.fast(given)
    copies = [out.clone() for out in outputs]
    other = Case((2, (5, 5), (1,)), kind, 5)
    other.gradients(other.fast, tuple(other.given()))
    for name, t in given.items():
        assert torch.equal(t, before[name])
    for out, copy in zip(outputs, copies, strict=True):
        assert torch.equal(out, copy)
    for name, t in first.items():
        assert t is None or torch.equal(t, kept[name])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "loss" not in kind])
def test_a_bad_row_stays_alone(kind):
    case = Case((3, (6, 5), ()), kind, 0, batch=9)
    given = case.given()
    clean = case.fast(given)
    for bad in (float("nan"), float("inf")):
        x = given["x"].clone()
        x[4, 1] = bad
        for got, want in zip(case.fast({**given, "x": x}), clean, strict=True):
            others = torch.arange(9) != 4
            assert torch.equal(got[others], want[others])
            assert not got[4].isfinite().all()


@pytest.mark.parametrize("kind", ["loss", "quadratic loss", "energy loss"])
def test_a_loss_scales_with_its_upstream_and_backs_up_twice(kind):
    case = Case((2, (5, 5), (1,)), kind, 0)
    names = tuple(case.given())
    tensors = {name: t.requires_grad_() for name, t in case.given().items()}
    loss, square, trace = case.fast(tensors)
    assert not square.requires_grad and not trace.requires_grad
    once = torch.autograd.grad(loss, [tensors[n] for n in names], retain_graph=True, allow_unused=True)
    scaled = torch.autograd.grad(65536 * loss, [tensors[n] for n in names], allow_unused=True)
    for a, b in zip(once, scaled, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(65536 * a, b)


def test_probes_are_the_contract_noise_of_global_rows():
    from fastscore import noise

    x = torch.zeros(6, 3)
    drawn = Probes(seed=9, count=2, first_sample=10).draw(slice(2, 5), x)
    for k in range(2):
        want = noise.rademacher((3, 3), seed=9, stream=noise.Stream.PROBES, step=k, first_chain=12)
        assert torch.equal(drawn[:, k], want)
    normal = Probes(seed=9, kind="normal").draw(slice(0, 6), x)
    assert torch.equal(normal[:, 0], noise.normal((6, 3), seed=9, stream=noise.Stream.PROBES))


def test_an_estimate_does_not_depend_on_the_split(small_tiles):
    case = Case((3, (6, 6), ()), "quadratic", 0, batch=40)
    mlp, x, _, _ = case.parts(case.given())
    _, whole = ops.score_and_quadratic(mlp, x, probes=Probes(3, 2))
    parts = [ops.score_and_quadratic(mlp, x[i:j], probes=Probes(3, 2, first_sample=i))[1] for i, j in ((0, 7), (7, 40))]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_the_plain_reference(kind, dtype):
    case = Case((2, (4, 4), ()), kind, 0, dtype=dtype)
    for got, want in zip(case.fast(case.given()), case.plain(case.given()), strict=True):
        assert got.dtype == dtype
        assert torch.equal(got, want)


def test_autocast_is_the_plain_reference():
    case = Case((2, (4, 4), ()), "loss", 0, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for got, want in zip(case.fast(case.given()), case.plain(case.given()), strict=True):
            assert torch.equal(got, want)


def test_a_weight_for_each_sample():
    case = Case((3, (4, 4), ()), "trace", 0)
    mlp, x, shifts, _ = case.parts(case.given())
    weight = case.random(7, 3, 3)
    got, want = (module.score_and_trace(mlp, x, shifts, weight=weight) for module in (ops, reference))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    _, jacobian = reference.score_and_jacobian(mlp, x, shifts)
    torch.testing.assert_close(got[1], torch.einsum("bij,bji->b", weight, jacobian))


def test_an_empty_batch_gives_empty_values():
    case = Case((3, (4, 4, 4), ()), "trace", 2, batch=0)
    score, trace = case.fast(case.given())
    assert score.shape == (0, 3)
    assert trace.shape == (0,)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ["silu", "tanh"])
def test_float32_is_as_exact_as_the_plain_reference(kind, activation):
    case = Case((4, (64, 64, 64), (1,)), kind, 0, batch=256, dtype=torch.float32)
    case.activations = (activation,) * 3
    names = tuple(case.given())
    double = Case((4, (64, 64, 64), (1,)), kind, 0, batch=256)
    double.activations = case.activations
    double.tensors = {name: None if t is None else t.double() for name, t in case.tensors.items()}
    exact = double.gradients(double.plain, names)
    fast, plain = (case.gradients(function, names) for function in (case.fast, case.plain))
    for got, same, want in zip(
        (*fast[0], *fast[1].values()), (*plain[0], *plain[1].values()), (*exact[0], *exact[1].values()), strict=True
    ):
        if want is not None:
            size = want.abs().max()
            assert (got - want).abs().max() <= 2 * (same - want).abs().max() + 1e-6 * size


def test_extreme_inputs_keep_silu_finite():
    x = torch.tensor([[-1e4], [-100.0], [-20.0], [0.0], [20.0], [100.0], [1e4]])
    one = torch.ones(1, 1)
    mlp = MLP((one, one), (None, None), ("silu",), (False,))
    x.requires_grad_()
    score, trace = ops.score_and_trace(mlp, x)
    (curvature,) = torch.autograd.grad(trace.sum(), x)
    z = x.detach().double()
    s = torch.sigmoid(z)
    torch.testing.assert_close(score.detach().double(), z * s)
    torch.testing.assert_close(trace.detach().double(), (s * (1 + z * (1 - s))).squeeze(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(curvature.double(), s * (1 - s) * (2 + z * (1 - 2 * s)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_activation_checkpointing(kind):
    case = Case((2, (4, 4, 4), (1,)), kind, 0)
    names = tuple(case.given())

    def checkpointed(tensors: dict[str, Tensor]) -> tuple[Tensor, ...]:
        def function(*values: Tensor) -> tuple[Tensor, ...]:
            return case.fast(dict(zip(names, values, strict=True)))

        return torch.utils.checkpoint.checkpoint(function, *tensors.values(), use_reentrant=False)

    got, want = (case.gradients(function, names)[1] for function in (checkpointed, case.fast))
    for name in names:
        assert torch.equal(got[name], want[name])


def test_threads_do_not_share_scratch():
    cases = [Case((3, (32, 32), ()), "loss", seed, batch=500) for seed in range(2)]
    expected = [case.gradients(case.plain, tuple(case.given()))[1] for case in cases]
    wrong: list[str] = []

    def work(case: Case, want: dict[str, Tensor]) -> None:
        for _ in range(20):
            got = case.gradients(case.fast, tuple(want))[1]
            wrong.extend(n for n, t in want.items() if t is not None and not torch.allclose(got[n], t, rtol=1e-9))

    threads = [threading.Thread(target=work, args=pair) for pair in zip(cases, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("kind", ["trace", "weighted", "loss"])
@pytest.mark.parametrize(("seed", "shape"), [(i, shape) for i, shape in enumerate(SHAPES) if len(shape[1]) > 2])
def test_many_tangents_without_factors_shared_by_the_batch(monkeypatch, seed, shape, kind):
    monkeypatch.setattr(mlp_problem, "_SHARED", 0)
    case = Case(shape, kind, seed, batch=37)
    assert_same(case, tuple(case.given()))


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("sizes", [(600, 64, 80), (600, 200, 3), (511, 5, 64), (30, 16, 2), (1500, 2, 64)])
def test_a_product_either_way(monkeypatch, sizes, compiled):
    monkeypatch.setattr(_cpu_layers, "_REPAYS", 0 if compiled else 1 << 60)
    n, k, m = sizes
    generator = torch.Generator().manual_seed(0)
    left, right, other = (torch.randn(*s, generator=generator) for s in ((n, k), (k, m), (n, m)))
    bias = torch.randn(m, generator=generator)
    for b, weight in ((None, right), (bias, right.t().contiguous().t())):
        want = left.double() @ right.double() + (0 if b is None else b.double())
        got = _cpu.matmul(left, weight, torch.empty(n, m), b)
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5 * k**0.5)
        into = torch.empty(m, n).t()  # rows that are not contiguous
        torch.testing.assert_close(_cpu.matmul(left, weight, into, b).double(), want, rtol=1e-5, atol=1e-5 * k**0.5)
    total = torch.ones(k, m)
    _cpu.accumulate(total, left, other)
    torch.testing.assert_close(total.double(), 1 + left.double().t() @ other.double(), rtol=1e-5, atol=1e-5 * n**0.5)


@pytest.mark.parametrize("how", ["programs", "passes", "torch"])
@pytest.mark.parametrize("kind", KINDS)
def test_float32_with_and_without_compiled_passes(kind, how, small_tiles, monkeypatch):
    monkeypatch.setattr(_cpu_layers, "_REPAYS", 1 << 60 if how == "torch" else 0)
    monkeypatch.setattr(_cpu_program, "ROWS", 8 if how == "programs" else 1 << 60)
    for seed, shape in enumerate(SHAPES):
        case = Case(shape, kind, seed, batch=37)
        if how == "programs":  # or they would take the passes
            case.activations = tuple(a if _cpu_layers.knows(a) else "silu" for a in case.activations)
        exact = case.gradients(case.plain, tuple(case.given()))
        case.tensors = {name: None if t is None else t.float() for name, t in case.tensors.items()}
        values, gradients = case.gradients(case.fast, tuple(case.given()))
        for got, want in zip((*values, *gradients.values()), (*exact[0], *exact[1].values()), strict=True):
            if got is not None:
                want = torch.zeros_like(got, dtype=torch.float64) if want is None else want
                assert got.dtype == torch.float32
                torch.testing.assert_close(got.double(), want, rtol=0, atol=2e-5 * max(1.0, float(want.abs().max())))


def test_large_scratch_is_given_back(monkeypatch):
    monkeypatch.setattr(mlp_passes, "_KEPT_BYTES", 1000)
    case = Case((2, (64, 64), ()), "loss", 0)
    case.fast(case.given())
    first = mlp_passes.kept(case.given()["x"], case.parts(case.given())[0])
    assert first.nbytes() <= 1000


MEMORY = """
import resource, torch
from fastscore.ops import _cpu
from fastscore.ops import mlp as ops
from fastscore.reference.mlp import MLP

torch.manual_seed(0)
def network(dim, width, depth, outputs):
    sizes = (dim, *(width,) * depth, outputs)
    weights = tuple((torch.randn(b, a) / a**0.5).requires_grad_() for a, b in zip(sizes, sizes[1:]))
    biases = tuple(torch.zeros(b, requires_grad=True) for b in sizes[1:])
    return MLP(weights, biases, ("silu",) * depth, (False,) * depth)

def step(kind, batch):
    x = torch.randn(batch, 2)
    mlp = network(2, 64, 3, 1 if kind == "energy" else 2)
    if kind == "energy":
        ops.implicit_loss(mlp, x, square=0.5, trace=1.0, energy=True)[0].backward()
    elif kind == "loss":
        ops.implicit_loss(mlp, x, square=0.5, trace=1.0, probes=PROBES)[0].backward()
    else:
        score, trace = ops.score_and_trace(mlp, x)
        (score.square().sum() + trace.sum()).backward()

PROBES = None
step(KIND, 2048)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
step(KIND, BATCH)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("kind", ["loss", "terms", "energy"])
def test_memory_does_not_grow_with_the_batch(kind):
    """One `[B, H]` array would be 64 MiB and a plain pass keeps dozens; inputs, outputs and gradients are 5 MiB."""
    batch = 1 << 18
    code = MEMORY.replace("KIND", repr(kind)).replace("BATCH", str(batch))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert int(done.stdout) < 40_000, f"peak memory grew by {done.stdout.strip()} KiB"
