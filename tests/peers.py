"""What docs/coming-from.md calls "there", run: `python tests/peers.py ROWS.json` in the environment of `make rivals`.

It knows nothing of fastscore. ROWS.json holds [package, line] pairs; the answer, one line of JSON, is the mean, the
variance and the number of values of each line it can run, and what `observed` sees of torchebm's sampler.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

N, A, MEAN, LAM = 1 << 14, 0.1, 0.5, 2.0


def energy(x: Tensor) -> Tensor:
    """Of N(MEAN, 1 / LAM) in every coordinate, `[B, *event]` -> `[B]`."""
    return 0.5 * LAM * (x - MEAN).square().flatten(1).sum(1)


CALLS: dict[str, dict[str, Any]] = {
    "one chain": {"dim": 2},
    "chains": {"dim": 2, "n_steps": 6, "n_samples": 4},
    "an event": {"dim": (2, 3), "n_steps": 4, "n_samples": 3},
    "starting points": {"x": torch.zeros(5, 2), "n_steps": 4},
    "no steps": {"x": torch.ones(5, 2), "n_steps": 0},
    "a trajectory": {"dim": 2, "n_steps": 6, "n_samples": 4, "return_trajectory": True},
    "every second": {"dim": 2, "n_steps": 6, "n_samples": 4, "thin": 2, "return_trajectory": True},
    "every fourth": {"dim": 2, "n_steps": 6, "n_samples": 4, "thin": 4, "return_trajectory": True},
    "none": {"dim": 2, "n_steps": 6, "n_samples": 4, "thin": 7, "return_trajectory": True},
    "diagnostics": {"dim": 2, "n_steps": 6, "n_samples": 4, "thin": 3, "return_diagnostics": True},
    "both": {"dim": 2, "n_steps": 6, "n_samples": 4, "return_trajectory": True, "return_diagnostics": True},
    "of one chain": {"dim": 2, "n_steps": 3, "return_diagnostics": True},
    "thin 0": {"dim": 2, "n_steps": 6, "thin": 0},
    "neither x nor dim": {"n_steps": 6},
}


def observed(make: Callable[[float], Any]) -> dict[str, Any]:
    """What a sampler with torchebm's `sample` answers to each of the calls, and more of its habits.

    Args:
        make: the sampler, given a step size.
    """
    sampler, seen = make(0.1), {}
    for name, call in CALLS.items():
        try:
            seen[name] = described(sampler.sample(**call))
        except Exception as error:
            seen[name] = type(error).__name__
    seen["in order"] = described(sampler.sample(None, 2, 6, 4, 3, True, True))
    x = torch.full((5, 2), 3.0)
    drawn = []
    for _ in range(2):
        torch.manual_seed(11)
        drawn.append(sampler.sample(x, n_steps=5))
    seen["x is left alone"] = bool((x == 3.0).all())
    seen["torch's seed repeats a run"] = torch.equal(*drawn)
    torch.manual_seed(11)
    path, told = sampler.sample(x, n_steps=5, return_trajectory=True, return_diagnostics=True)
    seen["the last of a trajectory is the sample"] = torch.equal(path[:, -1], drawn[0])
    seen["mean and var are over chains"] = all(
        torch.allclose(told[name], value, rtol=1e-4, atol=1e-6)
        for name, value in {"mean": path.mean(0), "var": path.var(0, unbiased=False)}.items()
    )
    with contextlib.suppress(ValueError):
        make(-0.1)
        seen["a step size below 0"] = "taken"
    return seen


def described(made: Any) -> Any:
    """Shapes; of diagnostics, those of what both have."""
    if isinstance(made, Tensor):
        return list(made.shape)
    return [list(made[0].shape), *(list(made[1][name].shape) for name in ("mean", "var"))]


def torchebm_names() -> dict[str, Any]:
    """What torchebm's lines are made of."""
    from torchebm.core import BaseModel
    from torchebm.samplers import GradientDescentSampler, LangevinDynamics

    class Model(BaseModel):
        def forward(self, x: Tensor) -> Tensor:
            return energy(x)

    return {
        "LangevinDynamics": LangevinDynamics,
        "GradientDescentSampler": GradientDescentSampler,
        "model": Model(device=torch.device("cpu")),
    }


def blackjax_run(line: str, x: Tensor) -> Tensor:
    """blackjax's own algorithms, one chain each mapped over all, in one scan."""
    import blackjax
    import jax
    import jax.numpy as jnp
    import numpy as np

    def log_prob(position: Any) -> Any:
        return -0.5 * LAM * jnp.sum((position - MEAN) ** 2)

    written = jax.custom_vjp(log_prob)
    written.defvjp(lambda p: (log_prob(p), p), lambda p, g: (g * LAM * (MEAN - p),))
    if "sgld" in line:
        sgld = blackjax.sgld(lambda position, batch: LAM * (MEAN - position))
        start, n_steps = jnp.asarray(x.numpy()), 20
        one: Any = lambda key, state: sgld.step(key, state, 0, A)  # noqa: E731
    else:
        mala = blackjax.mala(log_prob if "logdensity_fn" in line else written, step_size=A)
        start, n_steps = jax.vmap(mala.init)(jnp.asarray(x.numpy())), 200
        one = lambda key, state: mala.step(key, state)[0]  # noqa: E731

    def step(state: Any, key: Any) -> tuple[Any, None]:
        return jax.vmap(one)(jax.random.split(key, N), state), None

    last = jax.jit(lambda s, keys: jax.lax.scan(step, s, keys)[0])(start, jax.random.split(jax.random.key(3), n_steps))
    return torch.from_numpy(np.array(getattr(last, "position", last)))


def main() -> None:
    """Run the rows of the packages that are here."""
    rows, found = json.loads(Path(sys.argv[1]).read_text()), {}
    x = torch.randn(N, 2, generator=torch.Generator().manual_seed(1))
    here = {name for name in ("torchebm", "blackjax") if importlib.util.find_spec(name) is not None}
    names = torchebm_names() if "torchebm" in here else {}
    torch.manual_seed(5)
    laws = {}
    for package, line in rows:
        if package not in here:
            continue
        made = eval(line, names | {"x": x}) if package == "torchebm" else blackjax_run(line, x)
        laws[line] = [float(made.mean()), float(made.var()), made.numel()]
    if "torchebm" in here:
        found["observed"] = observed(lambda a: names["LangevinDynamics"](names["model"], step_size=a))
    print(json.dumps(found | {"packages": sorted(here), "laws": laws}))


if __name__ == "__main__":
    main()
