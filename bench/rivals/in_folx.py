"""folx: the forward Laplacian in JAX."""

from __future__ import annotations

from typing import Any

import folx
import jax
import jax.numpy as jnp
import numpy as np

from bench.rivals.in_jax import half_square, layers, mlp, trained


def training(parameters: Any, x: jax.Array, key: jax.Array) -> jax.Array:
    """`1/2 |grad E|^2 - laplacian E`, both from one forward pass."""

    def one(v: jax.Array) -> jax.Array:
        found, slope = folx.ForwardLaplacianOperator(0)(lambda v: mlp(parameters, v)[0])(v)
        return half_square(slope) - found

    return jax.vmap(one)(x).mean()


def laplacian(settings: dict[str, Any], inputs: dict[str, np.ndarray], device: str) -> Any:
    parameters, x = layers({k: v for k, v in inputs.items() if k != "x"}), jnp.asarray(inputs["x"])
    operator = folx.ForwardLaplacianOperator(0)(lambda v: mlp(parameters, v, jnp.tanh)[0])
    traces = jax.jit(jax.vmap(lambda v: operator(v)[0]))
    return lambda: {"laplacian": jax.block_until_ready(traces(x))}


BUILDERS = {
    ("divergence of energies", "JAX, folx"): trained(training),
    ("divergence of gradients", "JAX, folx"): laplacian,
}
