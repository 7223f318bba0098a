"""blackjax: overdamped Langevin dynamics, which it has as SGLD with the whole density's gradient, and MALA."""

from __future__ import annotations

from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import numpy as np

from bench.rivals.in_jax import density_of, keys, score_of


def chain(settings: dict[str, Any], inputs: dict[str, np.ndarray], device: str) -> Any:
    """All chains under vmap, all steps in one lax.scan."""
    score, x, a = score_of(settings, inputs), jnp.asarray(inputs["x"]), settings["step_size"]
    sampler = blackjax.sgld(lambda position, batch: score(position))

    def step(y: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
        each = jax.random.split(key, y.shape[0])
        return jax.vmap(lambda key, one: sampler.step(key, one, 0, a))(each, y), None

    @jax.jit
    def whole(y: jax.Array, key: jax.Array) -> jax.Array:
        return jax.lax.scan(step, y, jax.random.split(key, settings["steps"]))[0]

    draws = keys()
    return lambda: {"x": jax.block_until_ready(whole(x, next(draws)))}


def adjusted(settings: dict[str, Any], inputs: dict[str, np.ndarray], device: str) -> Any:
    """Likewise."""
    x, draws = jnp.asarray(inputs["x"]), keys()
    sampler = blackjax.mala(density_of(settings, inputs), settings["step_size"])

    def step(state: Any, key: jax.Array) -> tuple[Any, None]:
        each = jax.random.split(key, x.shape[0])
        return jax.vmap(lambda key, one: sampler.step(key, one)[0])(each, state), None

    @jax.jit
    def whole(y: jax.Array, key: jax.Array) -> jax.Array:
        state = jax.vmap(sampler.init)(y)
        return jax.lax.scan(step, state, jax.random.split(key, settings["steps"]))[0].position

    return lambda: {"x": jax.block_until_ready(whole(x, next(draws)))}


BUILDERS = {("chains", "blackjax, overdamped Langevin"): chain, ("mala", "blackjax, mala"): adjusted}
