"""What a type checker is told of the samplers: a tensor, or with diagnostics a pair; and whose arguments these are."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from mypy import api

from fastscore import samplers
from fastscore.samplers import signatures

CODE = """
import torch
from fastscore import LangevinDynamics, annealed_langevin_dynamics, gradient_ascent, langevin_dynamics, mala
from fastscore import underdamped_langevin

x, many = torch.zeros(3, 2), bool(input())
def score(x: torch.Tensor) -> torch.Tensor: return -x
def noisy(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor: return -x
def log_prob(x: torch.Tensor) -> torch.Tensor: return -x.sum(1)
def both(of: bool) -> None:
"""
CALLS = (
    "langevin_dynamics(score, x, step_size=0.1, n_steps=3, temperature=0.5{})",
    "gradient_ascent(score, x, step_size=0.1, n_steps=3{})",
    "annealed_langevin_dynamics(noisy, x, sigmas=[1.0], n_steps_each=2, step_size=0.1{})",
    "mala(log_prob, x, step_size=0.1, n_steps=3{})",
    "underdamped_langevin(score, x, step_size=0.1, n_steps=3, friction=2.0{})",
    "LangevinDynamics(score, 0.1).sample(x, n_steps=3, seed=1{})",
)
PAIR = "tuple[torch._tensor.Tensor, dict[str, torch._tensor.Tensor]]"
ENDS = {
    "": "torch._tensor.Tensor",
    ", return_trajectory=True": "torch._tensor.Tensor",
    ", return_diagnostics=False": "torch._tensor.Tensor",
    ", return_diagnostics=True": PAIR,
    ", return_diagnostics=of": f"torch._tensor.Tensor | {PAIR}",
}


@pytest.mark.slow
def test_diagnostics_make_a_pair(tmp_path: Path) -> None:
    lines = [f"    reveal_type({call.format(end)})" for call in CALLS for end in ENDS]
    wrong = [f"    {call.format(', no_such=1')}" for call in CALLS]
    source = tmp_path / "calls.py"
    source.write_text(CODE + "\n".join(lines + wrong) + "\n")
    out, problems, _ = api.run([str(source), "--cache-dir", str(tmp_path), "--config-file", "", "--no-color-output"])
    revealed = re.findall(r'Revealed type is "(.+)"', out)
    shown = [text.replace("builtins.", "") for text in revealed]
    found = [re.sub(r"^Union\[(.+?), (tuple.+)\]$", r"\1 | \2", text) for text in shown]
    assert found == list(ENDS.values()) * len(CALLS), out + problems
    assert len(re.findall(r"No overload variant", out)) == len(CALLS), out


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("langevin_dynamics", signatures.LangevinArguments),
        ("gradient_ascent", signatures.AscentArguments),
        ("annealed_langevin_dynamics", signatures.AnnealedArguments),
        ("mala", signatures.MalaArguments),
        ("underdamped_langevin", signatures.KineticArguments),
    ],
)
def test_the_types_name_every_argument(name: str, arguments: Any) -> None:
    """The overloads take their arguments from a dictionary of types: it and the function may not part."""
    parameters = set(inspect.signature(getattr(samplers, name)).parameters) - {"score_fn", "log_prob", "x"}
    declared = set(arguments.__annotations__) | {"return_diagnostics"}
    assert declared - {"score_fn"} == parameters
