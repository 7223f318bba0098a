"""The compiled CPU kernels: the reference's bits for every shape, split and number of threads; and doing without."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing._internal.two_tensor import TwoTensor

import fastscore
from fastscore import noise, targets
from fastscore.ops import _cpu_build, _cpu_call, _cpu_chain, _cpu_numpy
from fastscore.reference import langevin as reference
from fastscore.reference import philox

SEED, STEP = 0xA4093822299F31D0, 2**31 + 5
EYE = torch.eye(3, dtype=torch.float64)
MIXTURES = {
    "ring": targets.GaussianMixture.ring(),
    "each": targets.GaussianMixture([[0.0], [3.0], [-2.0]], [0.3, 0.5, 2.0], [1.0, 2.0, 3.0]),
    "full": targets.GaussianMixture(
        torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), (EYE + 0.3).expand(5, 3, 3)
    ),
    "gaussian": targets.Gaussian([1.0, -1.0, 0.0, 2.0, 3.0], [0.2, 0.5, 1.0, 2.0, 0.1]),
}
mixtures = pytest.mark.parametrize("target", MIXTURES.values(), ids=MIXTURES)


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    if _cpu_build.library(build=True) is None:
        pytest.skip("no C compiler")


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(_cpu_build, "library", lambda *, build: None)
    return monkeypatch


@pytest.mark.parametrize("first", [0, 2**32 - 3, 2**56 - 200])
@pytest.mark.parametrize(
    ("n", "width"), [(1, 1), (70, 1), (70, 2), (65, 3), (9, 4), (33, 5), (20, 64), (3, 257), (1, 1000)]
)
def test_normals_are_the_references_bits(n: int, width: int, first: int) -> None:
    expected = philox.normals(SEED, 3, STEP, torch.arange(first, first + n), width, torch.float32)
    made = _cpu_chain.normal(n, width, SEED, 3, STEP, first)
    assert made is not None and torch.equal(made, expected)
    assert torch.equal(torch.from_numpy(_cpu_numpy.normals(n, width, SEED, 3, STEP, first)), expected)
    paths = _cpu_numpy.paths(n, width, SEED, 3, STEP - 1, 3, first)
    assert torch.equal(torch.from_numpy(paths[1].T.copy()), expected)


@pytest.mark.parametrize(
    "word", [0, 1, 2**31 - 1, 2**31, 2**32 - 2**27, 2**32 - 1, 2**29, 2**29 - 1, 3 * 2**30, 0xB504F333]
)
def test_extreme_words_make_the_references_normals(word: int) -> None:
    # A block of ordinary words around it, so that vector paths see it too.
    even = torch.randint(0, 2**32, (64,), generator=torch.Generator().manual_seed(word))
    odd = even.flip(0)
    even[17] = odd[40] = word
    r, (cosine, sine) = philox.radius(even, torch.float32), philox.direction(odd, torch.float32)
    made = _cpu_numpy._box_muller(even.numpy().astype("uint32"), odd.numpy().astype("uint32"))
    assert torch.equal(torch.from_numpy(made[0]), r * cosine) and torch.equal(torch.from_numpy(made[1]), r * sine)
    exact = torch.sqrt(-2.0 * torch.log((even.double() + 0.5) * 2.0**-32))
    torch.testing.assert_close(r.double(), exact, rtol=4e-7, atol=0)


@pytest.mark.parametrize("varies", [False, True])
@pytest.mark.parametrize(("n", "width"), [(70, 1), (70, 2), (65, 3), (33, 5), (20, 64), (3, 257)])
def test_a_step_is_the_references_bits(n: int, width: int, varies: bool) -> None:
    x, score = (noise.normal((n, width), seed=s, stream=4) for s in (1, 2))
    a = 0.01 * (1 + torch.arange(width)) if varies else torch.tensor(0.3)
    made = _cpu_chain.langevin_step(x, score, a, torch.tensor(0.7), SEED, STEP, 11)
    e = philox.normals(SEED, 0, STEP, torch.arange(11, 11 + n), width, torch.float32)
    assert made is not None
    assert torch.equal(made, reference.langevin_step(x, score, a, torch.tensor(0.7), e))


def test_a_large_step_is_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cpu_chain, "_LARGE", 1 << 20)
    x, score = (noise.normal((16_411, 66), seed=s, stream=4) for s in (1, 2))  # more than two large pages
    a, t = torch.tensor(0.3), torch.tensor(0.7)
    whole = _cpu_chain.langevin_step(x, score, a, t, SEED, STEP, 11)
    parts = [
        _cpu_chain.langevin_step(x[s], score[s], a, t, SEED, STEP, 11 + s.start)
        for s in (slice(0, 99), slice(99, 16_411))
    ]
    assert whole is not None and torch.equal(torch.cat([part for part in parts if part is not None]), whole)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_threads_change_nothing(threads: int) -> None:
    expected = [_cpu_chain.normal(1 << 14, width, 1, 0, 0, 0) for width in (2, 17)]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert all(
            torch.equal(_cpu_chain.normal(1 << 14, width, 1, 0, 0, 0), e)
            for width, e in zip((2, 17), expected, strict=True)
        )
    finally:
        torch.set_num_threads(before)


def run(target: targets.GaussianMixture, x: Tensor, n_steps: int = 30, **options: object) -> Tensor:
    return fastscore.langevin_dynamics(target.score, x, **{"step_size": 0.005, "n_steps": n_steps, "seed": 5} | options)


@mixtures
@pytest.mark.parametrize("compiler", [True, False])
def test_chains_towards_a_mixture_are_the_generic_ones(
    target: targets.GaussianMixture, compiler: bool, without: pytest.MonkeyPatch
) -> None:
    x = 3 * noise.normal((100, target.dim), seed=0, stream=5)
    options: dict[str, object] = {
        "step_size": lambda k: 0.02 / (1 + k) * torch.ones(target.dim),
        "temperature": lambda k: 1.0 + k,
        "clamp": (-6.0, 4.5),
        "first_chain": 2**32 - 50,
        "first_step": 17,
    }
    generic = fastscore.langevin_dynamics(lambda x: target.score(x), x, n_steps=30, seed=5, **options)  # type: ignore[arg-type]
    if compiler:
        without.undo()
    torch.testing.assert_close(run(target, x, **options), generic, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("compiler", [True, False])
def test_a_mixtures_exponentials_are_as_accurate_as_pytorchs(compiler: bool, without: pytest.MonkeyPatch) -> None:
    # One step without noise, so long that the score is all there is of it. Between two components it goes as the
    # difference of their weights, whose logits are small: the largest error is that of the exponential.
    target, x = targets.GaussianMixture([[-1.0], [1.0]], 1.0), torch.linspace(-6, 6, 20_001).unsqueeze(1)
    if compiler:
        without.undo()
    made = run(target, x, 1, step_size=lambda _: 2.0**40, temperature=0.0) / 2.0**40
    exact = target.score(x.double())
    errors = [
        float(((value.double() - exact) / exact.abs().clamp_min(1)).abs().max()) for value in (made, target.score(x))
    ]
    assert errors[0] <= 2 * errors[1]


@mixtures
@pytest.mark.parametrize("compiler", [True, False])
def test_chains_have_the_same_bits_however_they_are_cut(
    target: targets.GaussianMixture, compiler: bool, without: pytest.MonkeyPatch
) -> None:
    if compiler:
        without.undo()
    x = 3 * noise.normal((100, target.dim), seed=0, stream=5)
    path = run(target, x, return_trajectory=True)
    assert torch.equal(run(target, x), path[:, -1])
    assert torch.equal(run(target, x, thin=7, burn_in=2, return_trajectory=True), path[:, 2:][:, 6::7])
    assert torch.equal(run(target, path[:, 12], 17, first_step=13), path[:, -1])
    parts = [run(target, part, first_chain=start) for part, start in zip(x.split([1, 64, 35]), (0, 1, 65), strict=True)]
    assert torch.equal(torch.cat(parts), path[:, -1])
    single = [fastscore.samplers.Langevin(target.score, step_size=0.005, seed=5)]
    state = single[0].init(x)
    for k in range(30):
        state = single[0].step(state, k)
    assert torch.equal(state.x, path[:, -1])


def test_what_is_kept_may_be_further_apart_than_a_leap() -> None:
    target, x = MIXTURES["ring"], noise.normal((10, 2), seed=0, stream=5)
    path = run(target, x, 620, thin=300, burn_in=10, return_trajectory=True)
    assert path.shape[1] == 2
    for kept, n_steps in zip(path.unbind(1), (310, 610), strict=True):
        assert torch.equal(kept, run(target, x, n_steps))


@pytest.mark.parametrize("compiler", [True, False])
@pytest.mark.parametrize("policy", ["raise", "freeze", "ignore"])
def test_a_bad_chain_is_found_inside_a_leap(policy: str, compiler: bool, without: pytest.MonkeyPatch) -> None:
    if compiler:
        without.undo()
    target = MIXTURES["ring"]
    x = noise.normal((100, 2), seed=0, stream=5)
    x[70, 1] = 1e30  # |x - m|^2 overflows: the score is not a number
    clean = run(target, x[:70], 600)
    if policy == "raise":
        with pytest.raises(fastscore.NonFiniteError, match="chain 75 is not finite after step 3"):
            run(target, x, 600, first_step=3, first_chain=5)
        return
    found, diagnostics = run(target, x, 600, on_nonfinite=policy, return_diagnostics=True, thin=600)
    assert torch.equal(found[:70], clean)
    assert torch.equal(found[70], x[70]) if policy == "freeze" else bool(torch.isnan(found[70]).any())
    assert int(diagnostics["first_nonfinite"][70]) == (0 if policy == "freeze" else -1)


@mixtures
@pytest.mark.parametrize("compiler", [True, False])
def test_a_clamp_does_not_hide_a_bad_chain(
    target: targets.GaussianMixture, compiler: bool, without: pytest.MonkeyPatch
) -> None:
    if compiler:
        without.undo()
    x = noise.normal((100, target.dim), seed=0, stream=5)
    clean = run(target, x, 5, clamp=(-6.0, 6.0))
    x[70, 0] = torch.nan
    found = run(target, x, 5, clamp=(-6.0, 6.0), on_nonfinite="ignore")
    assert bool(found[70].isnan().any()) and torch.equal(found[:70], clean[:70]) and torch.equal(found[71:], clean[71:])


def test_an_interrupt_between_leaps_can_be_gone_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    target, x = MIXTURES["ring"], noise.normal((10, 2), seed=0, stream=5)
    whole = run(target, x, 600)
    leap = fastscore.samplers.Langevin.leap

    def stop(self: fastscore.samplers.Langevin, state: object, k: int, *asked: object) -> object:
        if k >= 256:
            raise KeyboardInterrupt
        return leap(self, state, k, *asked)  # type: ignore[arg-type]

    monkeypatch.setattr(fastscore.samplers.Langevin, "leap", stop)
    with pytest.raises(fastscore.Interrupted) as caught:
        run(target, x, 600)
    monkeypatch.undo()
    assert caught.value.step == 256
    assert torch.equal(run(target, caught.value.x, 600 - 256, first_step=256), whole)


@pytest.mark.parametrize("first", [0, 2**32 - 3, 2**56 - 200])
@pytest.mark.parametrize(("n", "width"), [(1, 1), (70, 2), (65, 31), (9, 32), (33, 33), (20, 128), (3, 129), (2, 700)])
def test_signs_are_the_references_bits(n: int, width: int, first: int) -> None:
    expected = philox.rademacher(SEED, 2, STEP, torch.arange(first, first + n), width, torch.float32)
    _cpu_build.library(build=True)
    made = _cpu_chain.signs(n, width, SEED, 2, STEP, first)
    assert made is not None
    assert torch.equal(made, expected)


def test_many_small_calls_repay_a_compilation(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cpu_chain, "REPAYS", 100)
    for calls in range(1, 8):
        noise.rademacher((5, 4), seed=1, stream=2, step=calls)
        assert bool(list(fresh.rglob("*.so"))) == (20 * calls >= 100)


def test_nothing_is_compiled_for_little_work(fresh: Path) -> None:
    fastscore.langevin_dynamics(lambda x: -x, torch.zeros(4, 2), step_size=0.1, n_steps=3, seed=0)
    assert _cpu_build._Found.looked and not list(fresh.rglob("*.so"))


def test_a_mixture_is_compiled_at_once_so_that_parts_are_the_whole(fresh: Path) -> None:
    target, x = MIXTURES["ring"], torch.randn(7, 2)
    part = run(target, x, 3)
    assert len(list(fresh.rglob("*.so"))) == 1
    whole = torch.cat([run(target, x[:3], 9), run(target, x[3:], 9, first_chain=3)])
    assert torch.equal(run(target, part, 6, first_step=3), whole)


def test_what_is_compiled_is_kept_and_found_again(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _cpu_build.library(build=False) is None
    assert _cpu_build.library(build=True) is not None
    assert [path.suffix for path in fresh.rglob("*") if path.is_file()] == [".so"]
    monkeypatch.setattr(_cpu_build._Found, "library", None)
    monkeypatch.setattr(_cpu_build._Found, "looked", False)
    monkeypatch.setattr(_cpu_build._Found, "built", False)
    monkeypatch.setattr(_cpu_build, "_compilers", lambda: iter(()))
    assert _cpu_build.library(build=False) is not None


@pytest.mark.parametrize("fault", ["none", "fails", "missing", "hangs", "wrong", "garbage"])
def test_a_compiler_that_does_not_help_is_done_without(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    compilers = {
        "none": [],
        "fails": [("false",)],
        "missing": [(str(fresh / "nowhere"),)],
        "hangs": [("sh", "-c", "sleep 60")],
        "garbage": [("sh", "-c", 'until [ "$1" = -o ]; do shift; done; echo no library > "$2"', "sh")],
    }
    if fault == "wrong":
        monkeypatch.setattr(_cpu_build, "_repeats_the_reference", lambda loaded: False)
    else:
        monkeypatch.setattr(_cpu_build, "_compilers", lambda: iter(compilers[fault]))
        monkeypatch.setattr(_cpu_build, "_SECONDS", 0.5)
    assert _cpu_build.library(build=True) is None
    assert _cpu_build.library(build=True) is None
    assert run(MIXTURES["ring"], torch.zeros(4, 2), 3).shape == (4, 2)


def test_a_home_that_cannot_be_written_is_no_obstacle(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (fresh / ".cache").write_text("a file where the folder would be")
    assert _cpu_build.library(build=True) is not None


def test_threads_survive_a_fork() -> None:
    code = """
import os, torch
torch.set_num_threads(2)
from fastscore.ops import _cpu_build, _cpu_call, _cpu_chain, _cpu_numpy
assert _cpu_build.library(build=True) is not None
draw = lambda: _cpu_chain.normal(1 << 14, 4, 1, 0, 0, 0).numpy().tobytes()  # torch's own threads would hang
first = draw()
child = os.fork()
if child == 0:
    os._exit(0 if draw() == first else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    root = str(Path(__file__).parents[2])
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=240, cwd=root)


ODD: dict[str, Callable[[Tensor], Tensor]] = {
    "negated in place": lambda x: torch._neg_view(-x),
    "negated by a conjugate": lambda x: torch.complex(x, -x).conj().imag,
    "double": Tensor.double,
    "sparse": Tensor.to_sparse,
    "all zeros": lambda x: torch._efficientzerotensor(x.shape),
    "a wrapper": lambda x: TwoTensor(x, x.clone()),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_what_is_not_plain_memory_is_left_to_torch(odd: Callable[[Tensor], Tensor]) -> None:
    x = noise.normal((20, 3), seed=0, stream=5)
    assert _cpu_chain.plain(x, x) and not _cpu_chain.plain(odd(x)) and not _cpu_chain.plain(x, odd(x))
    assert _cpu_chain.langevin_step(x, odd(x), 0.1, 1.0, SEED, STEP, 0) is None
    assert _cpu_chain.langevin_step(odd(x), x, 0.1, 1.0, SEED, STEP, 0) is None


@pytest.mark.parametrize("name", ["negated in place", "negated by a conjugate"])
def test_a_sign_that_is_not_in_memory_is_seen(name: str) -> None:
    x, odd = noise.normal((20, 3), seed=0, stream=5), ODD[name]
    expected = fastscore.langevin_step(x, x, step_size=0.1, seed=1, step=0)
    made = fastscore.langevin_step(odd(x), odd(x), step_size=odd(torch.full((3,), 0.1)), seed=1, step=0)
    assert torch.equal(made, expected)
    a = odd(torch.full((3,), 0.1))
    assert torch.equal(fastscore.langevin_step(x, x, step_size=a, seed=1, step=0), expected)


def test_no_address_is_taken_of_what_has_no_memory() -> None:
    lost = torch.zeros(3)
    lost.untyped_storage().resize_(0)
    for tensor in (lost, torch._neg_view(torch.zeros(3))):
        with pytest.raises(RuntimeError, match="compiled code cannot read a Tensor without memory"):
            _cpu_call.pointer(tensor)
    assert _cpu_call.pointer(torch.zeros(0)).value is None
