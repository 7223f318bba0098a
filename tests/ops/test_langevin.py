"""langevin_step through the public function: values, noise, gradients, transforms, errors."""

from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vmap

from fastscore import langevin_step, noise

SEED, STEP, FIRST = 2**63 + 5, 2**31, 2**32 - 2


def step(x, score, step_size, **options):
    return langevin_step(x, score, step_size=step_size, seed=SEED, step=STEP, first_chain=FIRST, **options)


def draws(shape, dtype=torch.float64):
    return noise.normal(shape, seed=SEED, stream=noise.Stream.LANGEVIN, step=STEP, first_chain=FIRST, dtype=dtype)


def inputs(*shape):
    x, score = torch.randn(2, *shape, dtype=torch.float64)
    return x.requires_grad_(), score.requires_grad_(), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 4, 4), (1, 1), (3, 130)])
@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.5])
def test_value(shape, temperature):
    x, score, a = inputs(*shape)
    expected = x + a * score + torch.sqrt(2 * a * temperature) * draws(shape)
    torch.testing.assert_close(step(x, score, a, temperature=temperature), expected, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(step(x, score, 0.3, temperature=temperature), expected, rtol=1e-14, atol=1e-14)


def test_the_event_shape_only_names_the_features():
    x, score, _ = inputs(3, 2, 5)
    assert torch.equal(step(x, score, 0.1).flatten(1), step(x.flatten(1), score.flatten(1), 0.1))


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded", "offset", "flipped"])
def test_layouts_give_the_same_bits(layout):
    made = {
        "transposed": lambda t: t.t().contiguous().t(),
        "sliced": lambda t: torch.stack([t, -t], 1)[:, 0],
        "expanded": lambda t: t[:1].expand(t.shape),
        "offset": lambda t: torch.cat([torch.zeros(1), t.flatten()])[1:].view(t.shape),
        "flipped": lambda t: t.flip(0).flip(0),
    }[layout]
    x, score = made(torch.randn(6, 5)), made(torch.randn(6, 5))
    assert torch.equal(step(x, score, 0.1), step(x.contiguous(), score.contiguous(), 0.1))


def test_batches_may_be_split():
    x, score = torch.randn(2, 9, 5)
    whole = langevin_step(x, score, step_size=0.1, seed=1, step=4, first_chain=100)
    parts = [
        langevin_step(x[i:j], score[i:j], step_size=0.1, seed=1, step=4, first_chain=100 + i)
        for i, j in ((0, 1), (1, 6), (6, 9))
    ]
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype):
    x, score = torch.randn(2, 7, 6, dtype=torch.float64)
    x, score = x.to(dtype), score.to(torch.float32)
    made = step(x, score, 0.1)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    exact = x.double() + 0.1 * score.double() + math.sqrt(0.2) * draws(x.shape)
    assert made.dtype == dtype
    eps = torch.finfo(dtype).eps / 2 + 4 * torch.finfo(compute).eps
    assert ((made.double() - exact).abs() <= eps * (x.double().abs() + 0.1 * score.abs() + 3)).all()


def test_inputs_are_left_alone():
    x, score = torch.randn(2, 4, 3)
    before = x.clone(), score.clone()
    step(x, score, 0.1)
    assert torch.equal(x, before[0])
    assert torch.equal(score, before[1])


def test_gradients_against_the_formula():
    x, score, a = inputs(4, 3)
    upstream = torch.randn(4, 3, dtype=torch.float64)
    made = torch.autograd.grad(step(x, score, a), (x, score, a), upstream)
    e = draws((4, 3))
    torch.testing.assert_close(made[0], upstream)
    torch.testing.assert_close(made[1], 0.3 * upstream)
    torch.testing.assert_close(made[2], (upstream * (score + e / math.sqrt(2 * 0.3))).sum())


@pytest.mark.parametrize("needs", list(itertools.product([False, True], repeat=3)))
def test_every_subset_of_gradients(needs):
    args = [t.detach().requires_grad_(n) for t, n in zip(inputs(4, 3), needs, strict=True)]
    if not any(needs):
        assert not step(*args).requires_grad
        return
    assert gradcheck(step, args, check_forward_ad=True, check_batched_grad=True, check_undefined_grad=True)
    assert gradgradcheck(step, args, gen_non_contig_grad_outputs=True)


def test_gradient_of_a_step_size_a_feature():
    x, score, _ = inputs(4, 2, 3)
    a = torch.rand(2, 3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(step, (x, score, a), check_forward_ad=True, check_batched_grad=True)


@pytest.mark.parametrize("upstream", ["sum", "mean", "transposed", "expanded"])
def test_odd_upstream_gradients(upstream):
    x, score, a = inputs(4, 4)
    reduce = {
        "sum": lambda y: y.sum(),
        "mean": lambda y: y.mean(),
        "transposed": lambda y: (y.t() * torch.arange(16.0, dtype=torch.float64).view(4, 4)).sum(),
        "expanded": lambda y: y.expand(3, 4, 4).sum(),
    }[upstream]
    plain = x + a * score + torch.sqrt(2 * a) * draws((4, 4))
    for made, true in zip(
        torch.autograd.grad(reduce(step(x, score, a)), (x, score, a)),
        torch.autograd.grad(reduce(plain), (x, score, a)),
        strict=True,
    ):
        torch.testing.assert_close(made, true)


def test_functorch():
    x, score, a = (t.detach() for t in inputs(3, 2))
    for argnum in (0, 1, 2):
        forward, reverse = jacfwd(step, argnum)(x, score, a), jacrev(step, argnum)(x, score, a)
        torch.testing.assert_close(forward, reverse)
        plain = torch.autograd.functional.jacobian(lambda *args: step(*args), (x, score, a))[argnum]
        torch.testing.assert_close(forward, plain)
    _, tangent = jvp(lambda a: step(x, score, a), (a,), (torch.ones_like(a),))
    torch.testing.assert_close(tangent, score + draws((3, 2)) / torch.sqrt(2 * a))
    second = grad(grad(lambda a: step(x, score, a).square().sum()))(a)
    plain_second = grad(grad(lambda a: (x + a * score + torch.sqrt(2 * a) * draws((3, 2))).square().sum()))(a)
    torch.testing.assert_close(second, plain_second)


@pytest.mark.parametrize("in_dims", [(0, 0, None), (1, None, None), (None, 2, 0), (0, 0, 0), (None, None, 0)])
def test_vmap_is_the_function_of_each_slice(in_dims):
    n, shape = 4, (3, 2)
    args = []
    for dim, base in zip(in_dims, (shape, shape, ()), strict=True):
        size = list(base) if dim is None else [*base[:dim], n, *base[dim:]]
        args.append(torch.rand(size, dtype=torch.float64) + 0.1)
    made = vmap(step, in_dims)(*args)
    for i in range(n):
        slices = [t if dim is None else t.select(dim, i) for t, dim in zip(args, in_dims, strict=True)]
        torch.testing.assert_close(made[i], step(*slices))


def test_vmap_over_step_sizes_a_feature():
    x, score = torch.randn(2, 3, 2, dtype=torch.float64)
    a = torch.rand(4, 2, dtype=torch.float64) + 0.1
    made = vmap(step, (None, None, 0))(x, score, a)
    for i in range(4):
        torch.testing.assert_close(made[i], step(x, score, a[i]))


def test_the_noise_is_regenerated_not_stored():
    x = torch.randn(64, 256, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        step(x, x.detach() * -1, 0.1)
    assert sum(t.untyped_storage().nbytes() for t in saved) < 64


def test_one_graph_used_twice():
    x, score, a = inputs(3, 2)
    y = step(x, score, a).square().sum()
    first = torch.autograd.grad(y, (x, score, a), retain_graph=True)
    second = torch.autograd.grad(y, (x, score, a))
    assert all(torch.equal(p, q) for p, q in zip(first, second, strict=True))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_whole(backend):
    torch._dynamo.reset()
    x, score = torch.randn(2, 5, 6)
    x.requires_grad_()

    def loss(x, score, a):
        return step(x, score, a).square().mean()

    a = torch.tensor(0.2, requires_grad=True)
    compiled = torch.compile(loss, fullgraph=True, backend=backend)(x, score, a)
    eager = loss(x, score, a)
    torch.testing.assert_close(compiled, eager)
    for made, true in zip(torch.autograd.grad(compiled, (x, a)), torch.autograd.grad(eager, (x, a)), strict=True):
        torch.testing.assert_close(made, true)


def test_a_score_network_is_trained_through_a_step():
    net = torch.nn.Linear(2, 2).double()
    x = torch.randn(5, 2, dtype=torch.float64)

    def loss(parameters):
        return step(x, functional_call(net, parameters, (x,)), 0.1).square().sum()

    parameters = dict(net.named_parameters())
    by_func = grad(loss)({k: p.detach() for k, p in parameters.items()})
    loss(parameters).backward()
    for name, p in parameters.items():
        torch.testing.assert_close(p.grad, by_func[name])


def test_empty_batch():
    assert langevin_step(torch.zeros(0, 3), torch.zeros(0, 3), step_size=0.1, seed=0, step=0).shape == (0, 3)


GOOD = {"step_size": 0.1, "seed": 1, "step": 0}
BAD = [
    ({"x": [1.0]}, TypeError, "x must be a tensor, got list"),
    ({"x": torch.zeros(3, 2, dtype=torch.int64)}, TypeError, "x must be a floating point tensor, got torch.int64"),
    ({"x": torch.zeros(3)}, ValueError, r"x must have shape \[B, \*event\] with at least 2 dimensions, got \[3\]"),
    ({"score": torch.zeros(3, 1)}, ValueError, r"score must have the shape of x \[3, 2\], got \[3, 1\]"),
    ({"score": None}, TypeError, "score must be a tensor, got NoneType"),
    ({"score": torch.zeros(3, 2, device="meta")}, ValueError, "score is on meta, x on cpu"),
    ({"step_size": -0.1}, ValueError, "step_size must be finite and > 0, got -0.1"),
    ({"step_size": 0}, ValueError, "step_size must be finite and > 0, got 0"),
    ({"step_size": math.nan}, ValueError, "step_size must be finite and > 0, got nan"),
    ({"step_size": math.inf}, ValueError, "step_size must be finite and > 0, got inf"),
    ({"step_size": "0.1"}, TypeError, "step_size must be a number or a tensor, got '0.1'"),
    ({"step_size": torch.tensor(-1.0)}, ValueError, "step_size must be finite and > 0, got -1.0"),
    ({"step_size": torch.ones(3)}, ValueError, r"step_size must be .* got shape \[3\]"),
    ({"temperature": -1.0}, ValueError, "temperature must be finite and >= 0, got -1.0"),
    ({"temperature": torch.ones(2)}, ValueError, r"temperature must be .* 0-dim, got shape \[2\]"),
    ({"seed": -1}, ValueError, r"seed must be in \[0, 2\*\*64\), got -1"),
    ({"seed": 2**64}, ValueError, r"seed must be in \[0, 2\*\*64\), got 18446744073709551616"),
    ({"seed": 1.0}, TypeError, "seed must be an int, got 1.0"),
    ({"seed": True}, TypeError, "seed must be an int, got True"),
    ({"step": 2**32}, ValueError, r"step must be in \[0, 2\*\*32\), got 4294967296"),
    ({"first_chain": -1}, ValueError, "first_chain must be in"),
    ({"first_chain": 2**56 - 2}, ValueError, "first_chain must be in"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_errors(change, error, message):
    arguments = {"x": torch.zeros(3, 2), "score": torch.zeros(3, 2), **GOOD, **change}
    with pytest.raises(error, match=message):
        langevin_step(arguments.pop("x"), arguments.pop("score"), **arguments)


def test_a_step_without_a_derivative_has_the_bits_of_one_with() -> None:
    x, score = torch.randn(5, 3), torch.randn(5, 3)
    step = partial(langevin_step, step_size=0.1, seed=1, step=2)
    plain = step(x, score)
    tracked = step(x.clone().requires_grad_(), score)
    assert plain.grad_fn is None and tracked.grad_fn is not None
    assert torch.equal(plain, tracked.detach())
    with torch.no_grad():
        assert step(x.clone().requires_grad_(), score).grad_fn is None
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        made = torch.autograd.forward_ad.unpack_dual(step(dual, score))
        assert made.tangent is not None and torch.equal(made.primal, plain)
