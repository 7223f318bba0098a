"""The same work in JAX, jit-compiled, as its users write it; the closed form with the algebra that fastscore uses."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SIGMA = 0.1
STD, BARRIER = 0.5, 2.0


def keys() -> Iterator[jax.Array]:
    """A new key for every call."""
    return (jax.random.key(seed) for seed in itertools.count())


def layers(inputs: dict[str, np.ndarray]) -> list[tuple[jax.Array, jax.Array]]:
    """Weights and biases, in order."""
    depth = sum(name.startswith("w") for name in inputs)
    return [(jnp.asarray(inputs[f"w{i}"]), jnp.asarray(inputs[f"b{i}"])) for i in range(depth)]


def mlp(parameters: Any, x: jax.Array, activation: Any = jax.nn.silu) -> jax.Array:
    """The network, for a batch or one sample."""
    *hidden, (weight, bias) = parameters
    for w, b in hidden:
        x = activation(x @ w.T + b)
    return x @ weight.T + bias


def training_step(loss: Any, inputs: dict[str, np.ndarray]) -> Any:
    """Loss and gradients of the parameters in one compiled function; a new key for every call."""
    parameters, x = layers(inputs), jnp.asarray(inputs["x"])
    step = jax.jit(jax.value_and_grad(loss))
    draws = keys()
    gradients = [f"{kind}{i}" for i in range(len(parameters)) for kind in "wb"]

    def call() -> dict[str, Any]:
        value, found = jax.block_until_ready(step(parameters, x, next(draws)))
        return {"loss": value} | dict(zip(gradients, jax.tree.leaves(found), strict=True))

    return call


def half_square(s: jax.Array) -> jax.Array:
    return 0.5 * jnp.square(s).sum(-1)


def denoising(parameters: Any, x: jax.Array, key: jax.Array) -> jax.Array:
    noise = jax.random.normal(key, x.shape)
    return half_square(SIGMA * mlp(parameters, x + SIGMA * noise) + noise).mean()


def by_jacobian(jacobian: Any, parameters: Any, x: jax.Array, key: jax.Array) -> jax.Array:
    def one(v: jax.Array) -> jax.Array:
        return half_square(mlp(parameters, v)) + jnp.trace(jacobian(functools.partial(mlp, parameters))(v))

    return jax.vmap(one)(x).mean()


def hutchinson(parameters: Any, x: jax.Array, key: jax.Array) -> jax.Array:
    v = jax.random.rademacher(key, x.shape, x.dtype)
    s, product = jax.jvp(functools.partial(mlp, parameters), (x,), (v,))
    return (half_square(s) + (product * v).sum(-1)).mean()


def closed_form(parameters: Any, x: jax.Array, key: jax.Array) -> jax.Array:
    """The trace from the slopes of the hidden layers; three of them meet in the middle."""
    slopes, h = [], x
    for w, b in parameters[:-1]:
        z = h @ w.T + b
        gate = jax.nn.sigmoid(z)
        h = z * gate
        slopes.append(gate * (1 + z * (1 - gate)))
    weights = [w for w, _ in parameters]
    s = h @ weights[-1].T + parameters[-1][1]
    if len(slopes) == 1:
        trace = slopes[0] @ (weights[0] * weights[1].T).sum(1)
    elif len(slopes) == 2:
        trace = (slopes[1] * (slopes[0] @ (weights[1] * (weights[0] @ weights[2]).T).T)).sum(1)
    elif len(slopes) == 3:
        below = jnp.einsum("ij,bj,jd->bdi", weights[1], slopes[0], weights[0])
        above = jnp.einsum("di,bi,ij->bdj", weights[3], slopes[2], weights[2])
        trace = jnp.einsum("bdi,bi,bdi->b", above, slopes[1], below)
    else:
        raise NotImplementedError("no closed form for more than three hidden layers")
    return (half_square(s) + trace).mean()


def energy_jacfwd(parameters: Any, x: jax.Array, key: jax.Array) -> jax.Array:
    def energy(v: jax.Array) -> jax.Array:
        return mlp(parameters, v)[0]

    def one(v: jax.Array) -> jax.Array:
        return half_square(jax.grad(energy)(v)) - jnp.trace(jax.jacfwd(jax.grad(energy))(v))

    return jax.vmap(one)(x).mean()


def trained(loss: Any) -> Any:
    return lambda settings, inputs, device: training_step(loss, inputs)


def score_of(settings: dict[str, Any], inputs: dict[str, np.ndarray]) -> Any:
    """The score of a chain's target, for a batch; a mixture in the form that needs matrix products only."""
    if settings["target"] == "network":
        return functools.partial(mlp, layers({k: v for k, v in inputs.items() if k != "x"}))
    if settings["target"] == "energy":
        parameters = layers({k: v for k, v in inputs.items() if k != "x"})
        return lambda y: -jax.grad(lambda v: mlp(parameters, v).sum())(y)
    if settings["target"] == "double well":
        return lambda y: -4 * BARRIER * y * (jnp.square(y) - 1)
    means = jnp.asarray(inputs["means"])
    offsets = jnp.square(means).sum(1) * (-0.5 / STD**2)

    def score(y: jax.Array) -> jax.Array:
        weights = jax.nn.softmax(y @ means.T / STD**2 + offsets, -1)
        return (weights @ means - y) / STD**2

    return score


def chain(settings: dict[str, Any], inputs: dict[str, np.ndarray], device: str) -> Any:
    """All steps in one lax.scan."""
    score, x, a = score_of(settings, inputs), jnp.asarray(inputs["x"]), settings["step_size"]

    def step(y: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
        return y + a * score(y) + jnp.sqrt(2 * a) * jax.random.normal(key, y.shape), None

    @jax.jit
    def whole(y: jax.Array, key: jax.Array) -> jax.Array:
        return jax.lax.scan(step, y, jax.random.split(key, settings["steps"]))[0]

    draws = keys()
    return lambda: {"x": jax.block_until_ready(whole(x, next(draws)))}


def density_of(settings: dict[str, Any], inputs: dict[str, np.ndarray]) -> Any:
    """log p of a chain's target for a batch, `[n]`, up to a constant."""
    if settings["target"] == "energy":
        parameters = layers({k: v for k, v in inputs.items() if k != "x"})
        return lambda y: -mlp(parameters, y)[..., 0]
    means = jnp.asarray(inputs["means"])
    offsets = jnp.square(means).sum(1) * (-0.5 / STD**2)

    def log_prob(y: jax.Array) -> jax.Array:
        return jax.nn.logsumexp(y @ means.T / STD**2 + offsets, -1) - half_square(y) / STD**2

    return log_prob


def adjusted(settings: dict[str, Any], inputs: dict[str, np.ndarray], device: str) -> Any:
    """All Metropolis-adjusted steps in one lax.scan."""
    log_prob, start, a = density_of(settings, inputs), jnp.asarray(inputs["x"]), settings["step_size"]
    slope_of = jax.grad(lambda y: log_prob(y).sum())

    def step(state: Any, key: jax.Array) -> tuple[Any, None]:
        x, value, slope = state
        normal, uniform = jax.random.split(key)
        proposal = x + a * slope + jnp.sqrt(2 * a) * jax.random.normal(normal, x.shape)
        to_value, to_slope = log_prob(proposal), slope_of(proposal)
        forth, back = half_square(proposal - x - a * slope), half_square(x - proposal - a * to_slope)
        draw = jnp.log(jax.random.uniform(uniform, value.shape))
        accept = draw < to_value - value + (forth - back) / (2 * a)
        kept = accept[:, None]
        moved = jnp.where(kept, proposal, x), jnp.where(accept, to_value, value), jnp.where(kept, to_slope, slope)
        return moved, None

    @jax.jit
    def whole(x: jax.Array, key: jax.Array) -> jax.Array:
        state = x, log_prob(x), slope_of(x)
        return jax.lax.scan(step, state, jax.random.split(key, settings["steps"]))[0][0]

    draws = keys()
    return lambda: {"x": jax.block_until_ready(whole(start, next(draws)))}


def one_step(settings: dict[str, Any], inputs: dict[str, np.ndarray], device: str) -> Any:
    x, score, a = jnp.asarray(inputs["x"]), jnp.asarray(inputs["score"]), settings["a"]
    draws = keys()
    step = jax.jit(lambda x, s, key: x + a * s + jnp.sqrt(2 * a) * jax.random.normal(key, x.shape))
    return lambda: {"x": jax.block_until_ready(step(x, score, next(draws)))}


def normals(settings: dict[str, Any], inputs: dict[str, np.ndarray], device: str) -> Any:
    draws = keys()
    draw = jax.jit(lambda key: jax.random.normal(key, inputs["like"].shape))
    return lambda: {"z": jax.block_until_ready(draw(next(draws)))}


def laplacian(settings: dict[str, Any], inputs: dict[str, np.ndarray], device: str) -> Any:
    parameters, x = layers({k: v for k, v in inputs.items() if k != "x"}), jnp.asarray(inputs["x"])
    energy = lambda v: mlp(parameters, v, jnp.tanh)[0]  # noqa: E731
    traces = jax.jit(jax.vmap(lambda v: jnp.trace(jax.hessian(energy)(v))))
    return lambda: {"laplacian": jax.block_until_ready(traces(x))}


BUILDERS = {
    ("divergence", "JAX, denoising"): trained(denoising),
    ("divergence", "JAX, jacrev"): trained(functools.partial(by_jacobian, jax.jacrev)),
    ("divergence", "JAX, jacfwd"): trained(functools.partial(by_jacobian, jax.jacfwd)),
    ("divergence", "JAX, closed form"): trained(closed_form),
    ("divergence", "JAX, Hutchinson by jvp"): trained(hutchinson),
    ("divergence of energies", "JAX, jacfwd of grad"): trained(energy_jacfwd),
    ("chains", "JAX, lax.scan"): chain,
    ("mala", "JAX, lax.scan"): adjusted,
    ("steps", "JAX"): one_step,
    ("noise", "JAX, threefry"): normals,
    ("divergence of gradients", "JAX, hessian"): laplacian,
}
