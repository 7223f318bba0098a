"""What the tables of bad input are made of: short calls of the public functions, and values that many of them refuse.

A case is (exception, what the message must say, the call); the call is given `s`, a score, which must not be called.
The tables are in `errors_*.py`, and put to the test in `test_errors.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

import fastscore as fs

X = torch.ones(4, 2)
META = torch.ones(4, 2, device="meta")
NAN, INF = float("nan"), float("inf")
Case = tuple[type[Exception], str, Callable[[Callable], object]]


def over(name: str, call: Callable, cases: list[tuple[object, type[Exception], str]]) -> list[Case]:
    """One argument, many bad values: `call(s, value)`; every message begins with the argument's name."""
    return [(error, f"{name} {text}", lambda s, v=value: call(s, v)) for value, error, text in cases]


def langevin(s: Callable, x: object = X, **arguments: object) -> object:
    return fs.langevin_dynamics(s, x, **{"step_size": 0.1, "n_steps": 3, "seed": 0, **arguments})


def step(x: object = X, score: object = X, **arguments: object) -> object:
    return fs.langevin_step(x, score, **{"step_size": 0.1, "seed": 0, "step": 0, **arguments})


def annealed(s: Callable, **arguments: object) -> object:
    settings = {"sigmas": [1.0, 0.5], "n_steps_each": 2, "step_size": 0.1, "seed": 0, **arguments}
    return fs.annealed_langevin_dynamics(s, X, **settings)


def mala(s: Callable, **arguments: object) -> object:
    return fs.mala(lambda x: s(x).sum(1), X, **{"step_size": 0.1, "n_steps": 3, "seed": 0, **arguments})


def underdamped(s: Callable, **arguments: object) -> object:
    return fs.underdamped_langevin(s, X, **{"step_size": 0.1, "n_steps": 3, "seed": 0, **arguments})


def implicit(s: Callable, **arguments: object) -> object:
    return fs.implicit_score_matching(s, X, **arguments)


def denoising(s: Callable, **arguments: object) -> object:
    return fs.denoising_score_matching(s, X, **{"sigma": 0.5, "seed": 0, **arguments})


SEEDS = [
    (True, TypeError, r"must be an int, got True"),
    (1.5, TypeError, r"must be an int, got 1\.5"),
    (torch.tensor(1), TypeError, r"must be an int, got tensor\(1\)"),
    (-1, ValueError, r"must be in \[0, 2\*\*64\), got -1"),
    (2**64, ValueError, rf"must be in \[0, 2\*\*64\), got {2**64}"),
]
STEP_SIZES = [
    (0.0, ValueError, r"must be finite and > 0, got 0\.0"),
    (-0.1, ValueError, r"must be finite and > 0, got -0\.1"),
    (NAN, ValueError, r"must be finite and > 0, got nan"),
    (INF, ValueError, r"must be finite and > 0, got inf"),
    (True, TypeError, r"must be a number or a tensor, got True"),
    ("0.1", TypeError, r"must be a number or a tensor, got '0\.1'"),
    (torch.tensor([0.1, NAN]), ValueError, r"must be finite and > 0, got nan"),
    (torch.tensor([0.1, -3.0]), ValueError, r"must be finite and > 0, got -3\.0"),
    (torch.tensor(0.1 + 0j), TypeError, r"must be a real number, got a tensor of torch\.complex64"),
    (torch.full((3,), 0.1), ValueError, r"must be .* 0-dim or of the event's shape \[2\], got shape \[3\]"),
    (torch.tensor(0.1, device="meta"), ValueError, r"is on meta, x on cpu"),
]
TEMPERATURES = [
    (-1.0, ValueError, r"must be finite and >= 0, got -1\.0"),
    (NAN, ValueError, r"must be finite and >= 0, got nan"),
    (torch.ones(2), ValueError, r"must be a number or a tensor that is 0-dim, got shape \[2\]"),
    (None, TypeError, r"must be a number or a tensor, got None"),
]
COUNTS = [
    (2.0, TypeError, r"must be an int, got 2\.0"),
    (True, TypeError, r"must be an int, got True"),
    (-1, ValueError, r"must be at least \d, got -1"),
]
DEVICES = [
    ("gpu", ValueError, "must be a device such as 'cpu' .*, got 'gpu'"),
    (1.5, ValueError, r"must be a device such as 'cpu' .*, got 1\.5"),
]
