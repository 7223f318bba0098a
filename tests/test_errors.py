"""Bad input is refused by name and value before any work: the score is never called, no kernel is ever asked for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import fastscore as fs
from fastscore import cli, metrics
from fastscore.ops import _dispatch
from tests.errors import NAN, X, annealed, langevin, underdamped
from tests.errors_losses import LOSSES, TRACES
from tests.errors_others import NETWORKS, NOISE, OTHERS, TARGETS
from tests.errors_points import POINT_CASES
from tests.errors_samplers import DYNAMICS, RUNS, STEP

TABLES = {
    "step": STEP, "runs": RUNS, "dynamics": DYNAMICS, "traces": TRACES, "losses": LOSSES, "networks": NETWORKS,
    "targets": TARGETS, "noise": NOISE, "others": OTHERS, "x": POINT_CASES,
}  # fmt: skip
ALL = [(f"{area}-{i}", *case) for area, cases in TABLES.items() for i, case in enumerate(cases)]


class Counting:
    """A score, energy and log-density in one that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: torch.Tensor, *_: object) -> torch.Tensor:
        self.calls += 1
        return -x


@pytest.mark.parametrize(("error", "text", "call"), [case[1:] for case in ALL], ids=[case[0] for case in ALL])
def test_a_bad_argument_is_named_before_any_work(error, text, call, monkeypatch) -> None:
    def launched(*_: object) -> None:
        raise AssertionError("a kernel was asked for")

    monkeypatch.setattr(_dispatch, "kernels", launched)
    score = Counting()
    with pytest.raises(error, match=f"^{text}") as raised:
        call(score)
    assert raised.type is error
    assert score.calls == 0


ANSWERS = [
    (lambda x: (x, x), TypeError, "{} must return a tensor, got tuple"),
    (lambda x: None, TypeError, "{} must return a tensor, got NoneType"),
    (lambda x: x.detach().numpy(), TypeError, "{} must return a tensor, got ndarray"),
    (lambda x: x.detach().sign().long(), TypeError, r"{} must return a floating point tensor, got torch\.int64"),
    (lambda x: torch.complex(x, x), TypeError, r"{} must return a floating point tensor, got torch\.complex64"),
    (lambda x: x[:, :1], ValueError, r"{} must return .*\[4.*got \[4, 1\]"),
    (lambda x: x.sum(0), ValueError, r"{} must return .*\[4.*got \[2\]"),
    (lambda x: x.unsqueeze(0), ValueError, r"{} must return .*\[4.*got \[1, 4, 2\]"),
]
ASKS = {
    "divergence": lambda f: fs.divergence(f, X),
    "probes": lambda f: fs.divergence(f, X, trace="hutchinson", seed=0),
    "jacobian": lambda f: fs.jacobian(f, X),
    "implicit": lambda f: fs.implicit_score_matching(f, X),
    "sliced": lambda f: fs.sliced_score_matching(f, X, seed=0),
    "explicit": lambda f: fs.explicit_score_matching(f, X, target=X),
    "denoising": lambda f: fs.denoising_score_matching(f, X, sigma=0.5, seed=0),
    "fisher": lambda f: metrics.fisher_divergence(f, X, X),
    "stein": lambda f: metrics.kernel_stein_discrepancy(f, X),
    "langevin": langevin,
    "annealed": lambda f: annealed(lambda x, sigma: f(x)),
    "underdamped": underdamped,
    "mala": lambda f: fs.mala(lambda x: x.sum(1), X, step_size=0.1, n_steps=1, seed=0, score_fn=f),
}
ENERGY_ANSWERS = [
    *ANSWERS[:3],
    (lambda x: x.detach().sum(1).long(), TypeError, r"{} must return a floating point tensor, got torch\.int64"),
    (lambda x: x, ValueError, r"{} must return one .* got \[4, 2\]"),
    (lambda x: x.sum(), ValueError, r"{} must return one .* got \[\]"),
]


@pytest.mark.parametrize("answer", range(len(ANSWERS)))
@pytest.mark.parametrize("name", ASKS)
def test_a_bad_answer_of_the_score_is_named(name, answer) -> None:
    given, error, text = ANSWERS[answer]
    with pytest.raises(error, match=text.format("score_fn")):
        ASKS[name](given)


@pytest.mark.parametrize("answer", range(len(ENERGY_ANSWERS)))
def test_a_bad_answer_of_an_energy_or_a_density_is_named(answer) -> None:
    given, error, text = ENERGY_ANSWERS[answer]
    with pytest.raises(error, match=text.format("energy_fn")):
        fs.laplacian(given, X)
    with pytest.raises(error, match=text.format("log_prob")):
        fs.mala(given, X, step_size=0.1, n_steps=1, seed=0, score_fn=torch.neg)


def test_a_value_cut_off_from_x_is_named() -> None:
    weight = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match=r"log_prob must be differentiable in x"):
        fs.mala(lambda x: x.detach().sum(1), X, step_size=0.1, n_steps=1, seed=0)
    with pytest.raises(ValueError, match=r"log_prob must be differentiable in x"):
        fs.mala(lambda x: (x.detach() * weight).sum(1), X, step_size=0.1, n_steps=1, seed=0)


@pytest.mark.parametrize("value", [NAN, 0.0, "fast", torch.ones(3)])
def test_a_schedule_is_checked_at_its_step(value) -> None:
    score = Counting()
    with pytest.raises((TypeError, ValueError), match=r"step_size(\(2\))? must be"):
        langevin(score, step_size=lambda k: 0.1 if k < 2 else value, n_steps=5)
    assert score.calls == 2


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["demo", "--seed", "-1"], "--seed"),
        (["demo", "--seed", "1.5"], "whole number from 0 to 2^32 - 1, got 1.5"),
        (["demo", "--seed", str(2**32)], f"whole number from 0 to 2^32 - 1, got {2**32}"),
        (["demo", "--only", "faces"], "invalid choice: 'faces'"),
        (["train"], "invalid choice: 'train'"),
        ([], "required"),
    ],
)
def test_the_command_line_names_what_it_cannot_read(arguments, text, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert text in capsys.readouterr().err


def test_an_unknown_backend_in_the_environment_is_named() -> None:
    run = subprocess.run(
        [sys.executable, "-c", "import fastscore"],
        env={**os.environ, "FASTSCORE_BACKEND": "cuda"}, capture_output=True, text=True,
    )  # fmt: skip
    assert "FASTSCORE_BACKEND must be one of 'auto', 'torch', 'triton', got 'cuda'" in run.stderr


def test_there_are_enough_of_them() -> None:
    assert len({text for *_, text, _ in ALL}) >= 90
