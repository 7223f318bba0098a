"""Passes written down once and done by C to every tile: what is taken, what must not be mixed up, what is refused."""

from __future__ import annotations

import itertools
import threading
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fastscore.ops import _cpu_layers, _cpu_program, _cpu_threads, mlp_passes, mlp_tile
from fastscore.ops import mlp as ops
from fastscore.ops.mlp import Probes
from fastscore.reference import mlp as reference
from fastscore.reference.mlp import MLP


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 8 rows, for any batch of as many."""
    monkeypatch.setattr(_cpu_layers, "_REPAYS", 0)
    monkeypatch.setattr(_cpu_program, "ROWS", 8)
    monkeypatch.setattr(_cpu_program, "_programs", {})


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[_cpu_program.Program]:
    """The programs run, in order."""
    seen: list[_cpu_program.Program] = []
    real = _cpu_program.Program.run

    def run(self: _cpu_program.Program, *args: object) -> object:
        seen.append(self)
        return real(self, *args)

    monkeypatch.setattr(_cpu_program.Program, "run", run)
    return seen


def network(seed: int, depth: int = 2, dim: int = 3, width: int = 6, residual: bool = False, outputs: int = 3) -> MLP:
    generator = torch.Generator().manual_seed(seed)
    sizes = (dim, *[width] * depth, outputs)
    weights = [torch.randn(b, a, generator=generator) / a**0.5 for a, b in itertools.pairwise(sizes)]
    biases = [torch.randn(b, generator=generator) for b in sizes[1:]]
    tensors = [[t.requires_grad_() for t in group] for group in (weights, biases)]
    residuals = tuple(residual and layer > 0 for layer in range(depth))
    return MLP(tuple(tensors[0]), tuple(tensors[1]), ("silu", "tanh", "softplus")[:depth], residuals)


def leaves(mlp: MLP) -> list[Tensor]:
    return [*mlp.weights, *(b for b in mlp.biases if b is not None)]


def exact(mlp: MLP, x: Tensor, shifts: tuple[Tensor | None, ...] = ()) -> list[Tensor]:
    """Loss and gradients in float64, of the network's tensors."""
    double = wide(mlp)
    score, trace = reference.score_and_trace(double, x.double(), [None if s is None else s.double() for s in shifts])
    loss = 0.5 * score.square().sum() + trace.sum()
    return [loss, *torch.autograd.grad(loss, list({id(t): t for t in leaves(double)}.values()))]


def wide(mlp: MLP) -> MLP:
    """The network in float64; a tensor given twice is one there too."""
    made = {id(t): t.detach().double().requires_grad_() for t in leaves(mlp)}
    biases = tuple(None if b is None else made[id(b)] for b in mlp.biases)
    return replace(mlp, weights=tuple(made[id(w)] for w in mlp.weights), biases=biases)


def made(mlp: MLP, x: Tensor, shifts: tuple[Tensor | None, ...] = ()) -> list[Tensor]:
    loss = ops.implicit_loss(mlp, x, shifts, square=0.5, trace=1.0)[0]
    return [loss, *torch.autograd.grad(loss, list({id(t): t for t in leaves(mlp)}.values()))]


def assert_close(found: list[Tensor], wanted: list[Tensor]) -> None:
    for f, w in zip(found, wanted, strict=True):
        torch.testing.assert_close(f.double(), w, rtol=0, atol=1e-5 * max(1.0, float(w.detach().abs().max())))


def data(n: int, dim: int = 3) -> Tensor:
    return torch.linspace(-2, 2, n * dim, dtype=torch.float64).sin().view(n, dim).float()


@pytest.mark.parametrize("probes", [None, Probes(3, 2, first_sample=4)])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("residual", [False, True])
def test_energies(depth: int, residual: bool, probes: Probes | None, runs: list[_cpu_program.Program]) -> None:
    mlp, x = network(depth, depth, residual=residual, outputs=1), data(29)
    found = ops.energy_terms(mlp, x, probes=probes)
    loss, square, trace = ops.implicit_loss(mlp, x, square=0.5, trace=1.0, probes=probes, energy=True)
    assert len(set(runs)) == 2
    drawn = None if probes is None else probes.draw(slice(0, 29), x).double()
    double = wide(mlp)
    wanted = reference.energy_terms(double, x.double(), (), drawn)
    on_trace = -wanted[2] if probes is None else -wanted[2].mean(1)
    assert_close([*found, square, trace], [*wanted, wanted[1].square().sum(), on_trace.sum()])
    exact_loss = 0.5 * wanted[1].square().sum() + on_trace.sum()
    for mine, theirs in ((loss, exact_loss), (found[1].sum() + found[2].sum(), wanted[1].sum() + wanted[2].sum())):
        first = torch.autograd.grad(mine, leaves(mlp), allow_unused=True, retain_graph=True)
        second = torch.autograd.grad(theirs, leaves(double), allow_unused=True, retain_graph=True)
        nothing = [torch.zeros_like(leaf) for leaf in leaves(mlp)]
        assert_close(
            [z if f is None else f for f, z in zip(first, nothing, strict=True)],
            [z.double() if w is None else w for w, z in zip(second, nothing, strict=True)],
        )


@pytest.mark.parametrize("n", [8, 9, 15, 16, 17, 64, 101])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_any_number_of_rows(n: int, depth: int, runs: list[_cpu_program.Program]) -> None:
    mlp = network(0, depth)
    assert_close(made(mlp, data(n)), exact(mlp, data(n)))
    assert runs


def test_fewer_rows_than_a_tile_go_the_other_way(runs: list[_cpu_program.Program]) -> None:
    made(network(0), data(7))
    assert not runs


def test_values_without_gradients(runs: list[_cpu_program.Program]) -> None:
    mlp, x, probes = network(1, residual=True), data(29), Probes(3, 2, first_sample=4)
    with torch.no_grad():
        score, trace = ops.score_and_trace(mlp, x)
        again, forms = ops.score_and_quadratic(mlp, x, probes=probes)
        wanted = reference.score_and_trace(wide(mlp), x.double())
        _, drawn = reference.score_and_quadratic(wide(mlp), x.double(), (), probes.draw(slice(0, 29), x).double())
    assert runs
    assert_close([score, trace, again, forms], [*wanted, wanted[0], drawn])


def test_another_network_of_the_same_shape_has_the_same_program(runs: list[_cpu_program.Program]) -> None:
    for seed in range(3):
        mlp = network(seed)
        assert_close(made(mlp, data(20 + seed)), exact(mlp, data(20 + seed)))
    assert len(set(runs)) == 1


def test_tied_weights_have_a_program_of_their_own(runs: list[_cpu_program.Program]) -> None:
    """By addresses alone, two layers with one weight could not be told from two with their own."""
    tied = network(0, depth=3)
    tied = replace(tied, weights=(tied.weights[0], tied.weights[1], tied.weights[1], tied.weights[3]))
    for mlp in (tied, network(1, depth=3), tied):
        assert_close(made(mlp, data(20)), exact(mlp, data(20)))
    assert len(set(runs)) == 2


def test_conditions_that_all_rows_share_or_none_do() -> None:
    mlp, x = network(2), data(20)
    rows, one = data(20, 6) + 0.3, data(1, 6) - 0.2
    for shift in (rows, one.expand(20, 6), rows.t().contiguous().t(), data(20, 12)[:, 3:9]):
        assert_close(made(mlp, x, (shift, None, None)), exact(mlp, x, (shift, None, None)))
        assert_close(made(mlp, x, (None, shift, None)), exact(mlp, x, (None, shift, None)))


def test_a_condition_that_shares_memory_with_what_it_is_added_to() -> None:
    """Every row of it the first of x, or of a bias; or x itself."""
    mlp, x = network(2, dim=6, outputs=6), data(20, 6)
    for shift in (
        x,
        x[:1].expand(20, 6),
        mlp.biases[0].detach().expand(20, 6),
        mlp.weights[1].detach()[:1].expand(20, 6),
    ):
        assert_close(made(mlp, x, (shift, None, None)), exact(mlp, x, (shift, None, None)))


def test_torchs_defaults_are_left_alone() -> None:
    mlp, x = network(2), data(20)
    mlp = replace(mlp, biases=(None, *mlp.biases[1:]))
    wanted = made(mlp, x)
    _cpu_layers.zeros.cache_clear()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            found = made(mlp, x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(map(torch.equal, found, wanted))


def test_points_and_gradients_of_any_layout() -> None:
    mlp = network(3, residual=True)
    for x in (data(60)[::3], data(3, 20).t(), data(1).expand(20, 3), data(20, 5)[:, 1:4]):
        assert_close(made(mlp, x), exact(mlp, x))
        for on_trace in (torch.ones(20), torch.tensor(2.0).expand(20), data(40, 1)[::2, 0]):
            score, trace = ops.score_and_trace(mlp, x)
            found = torch.autograd.grad(score.sum() + (on_trace * trace).sum(), leaves(mlp))
            score, trace = reference.score_and_trace(mlp, x)
            wanted = torch.autograd.grad(score.sum() + (on_trace * trace).sum(), leaves(mlp))
            assert_close(list(found), [w.double() for w in wanted])


def test_the_same_bits_again_and_from_other_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given as many threads to work on: while one thread computes, torch tells another that there is one."""
    monkeypatch.setattr(_cpu_threads, "_threads", lambda x: 2)
    mlp, x = network(4), data(101)
    first, failed = made(mlp, x), []

    def again() -> None:
        for _ in range(20):
            if not all(map(torch.equal, first, made(mlp, x))):
                failed.append(1)

    threads = [threading.Thread(target=again) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_programs_are_kept_up_to_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cpu_program, "_KEPT", 3)
    for width in range(2, 9):
        mlp = network(0, width=width)
        assert_close(made(mlp, data(20)), exact(mlp, data(20)))
    assert len(_cpu_program._programs) == 3


def test_what_is_not_written_down_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch operation on the first tile would be lost on all others."""

    def mix(out: Tensor, a: Tensor, b: Tensor, scratch: object, **how: object) -> Tensor:
        return torch.add(a, b, out=out)

    monkeypatch.setattr(mlp_passes, "mix", mix)
    with pytest.raises(AssertionError, match="not a step of a program"):
        made(network(0), data(20), (None, data(20, 6), None))


def test_no_memory_for_a_product_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    mlp, x = network(0), data(20)
    made(mlp, x)
    monkeypatch.setattr(_cpu_program._cpu_build.library(build=True), "run_program", lambda *_: 1)
    with pytest.raises(MemoryError, match="no memory"):
        made(mlp, x)


def test_forms_that_are_not_written_down_go_the_other_way(runs: list[_cpu_program.Program]) -> None:
    deep = network(0, depth=3, residual=True)
    assert_close(made(deep, data(20)), exact(deep, data(20)))
    ops.implicit_loss(network(0, dim=7, outputs=1), data(20, 7), square=0.5, trace=1.0, energy=True)
    assert not runs
    assert mlp_tile.Form.recorded is False
