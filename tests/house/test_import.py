"""`import fastscore` is light, works without Triton, and every name it offers says what it is."""

from __future__ import annotations

import ast
import functools
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INIT = ROOT / "fastscore" / "__init__.py"

WITHOUT_TRITON = """
import sys
from importlib.abc import MetaPathFinder

class NoTriton(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "triton":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoTriton())
"""

USE_ON_CPU = """
import torch
import fastscore

x = torch.linspace(-1.0, 1.0, 12).reshape(4, 3)
result = fastscore.divergence(lambda x: -2.0 * x, x)
torch.testing.assert_close(result.score, -2.0 * x)
torch.testing.assert_close(result.trace, torch.full((4,), -6.0))

stepped = fastscore.langevin_step(x, -x, step_size=0.1, seed=1, step=0, temperature=0.0)
torch.testing.assert_close(stepped, 0.9 * x)

chains = fastscore.langevin_dynamics(lambda x: -x, x, step_size=0.1, n_steps=5, seed=1)
assert chains.shape == x.shape and torch.isfinite(chains).all()
"""

# Compared with what torch loads by itself, which differs from version to version.
NEWLY_LOADED = """
import sys
import torch

before = set(sys.modules)
import fastscore

print(*sorted(set(sys.modules) - before))
"""


@functools.cache
def run(script: str) -> str:
    """Runs a script in an interpreter of its own, which sees the checkout and whatever is installed here."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def public_names() -> list[str]:
    """What `__init__` says it offers."""
    statements = ast.parse(INIT.read_text(encoding="utf-8")).body
    (listed,) = (node for node in statements if isinstance(node, ast.Assign) and node.targets[0].id == "__all__")
    return ast.literal_eval(listed.value)


def test_blocking_triton_blocks_it() -> None:
    # Otherwise the next test would prove nothing.
    run(WITHOUT_TRITON + "try:\n    import triton\nexcept ModuleNotFoundError:\n    pass\nelse:\n    sys.exit(1)\n")


def test_works_on_a_cpu_without_triton() -> None:
    run(WITHOUT_TRITON + USE_ON_CPU)


def test_import_loads_nothing_heavy() -> None:
    loaded = {name.partition(".")[0] for name in run(NEWLY_LOADED).split()}
    assert "fastscore" in loaded
    assert not loaded & {"triton", "fastscore_kernels", "sklearn", "scipy", "matplotlib", "sympy"}


def test_import_does_not_wake_the_compiler() -> None:
    # torch._dynamo and torch._inductor take seconds to load; only a compiled path may ask for them.
    loaded = run(NEWLY_LOADED).split()
    assert not [name for name in loaded if name.startswith(("torch._dynamo", "torch._inductor"))]


def test_init_offers_the_package() -> None:
    assert {"divergence", "implicit_score_matching", "langevin_dynamics", "langevin_step"} <= set(public_names())


@pytest.mark.parametrize("name", public_names() if INIT.exists() else [])
def test_public_names_are_documented(name: str) -> None:
    import fastscore

    value = getattr(fastscore, name)
    # Not inherited (`inspect.getdoc` would find a base class's), and not the signature NamedTuple writes by itself.
    text = inspect.cleandoc(value.__doc__ or "")
    assert text
    assert not text.startswith(f"{name}(")
