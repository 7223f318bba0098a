"""Score and energy MLPs: value, exact trace, Jacobian, Hutchinson, Laplacian in plain differentiable PyTorch.

The network is `z_1 = W_1 x + b_1 + u_1`, `h_l = phi_l(z_l) (+ h_{l-1})`, `z_{l+1} = W_{l+1} h_l + b_{l+1} + u_{l+1}`,
and its output is `z_{L+1}`. With `d_l = phi_l'(z_l)` and `r_l` = 1 where layer l has a residual and 0 elsewhere,

    J = W_{L+1} A_L ... A_2 diag(d_1) W_1,    A_l = diag(d_l) W_l + r_l I.

Every function here is a composition of out-of-place torch operations, so autograd to any order, torch.func and
torch.compile see nothing special. It is the oracle of the tests, and what `fastscore.ops.mlp` runs wherever its
hand-written backward would not be enough.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from fastscore.reference.activations import ACTIVATIONS

Shifts = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class MLP:
    """The tensors and the structure of a multilayer perceptron with L hidden layers.

    Attributes:
        weights: `W_1 [H_1, D]`, ..., `W_{L+1} [D, H_L]` (`[1, H_L]` for an energy); `W_1` holds only the columns that
            multiply x.
        biases: one per weight, or None.
        activations: names in `ACTIVATIONS`, one per hidden layer.
        residuals: whether `h_l` adds `h_{l-1}`, one per hidden layer; the first is False.

    Raises:
        ValueError: the lengths or the shapes do not fit together.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]
    activations: tuple[str, ...]
    residuals: tuple[bool, ...]

    def __post_init__(self) -> None:
        """Refuse tensors and flags that do not describe one network."""
        depth = len(self.weights) - 1
        if depth < 1 or len(self.biases) != depth + 1 or not len(self.activations) == len(self.residuals) == depth:
            raise ValueError(
                f"an MLP with L hidden layers has L + 1 weights and biases, L activations and residuals; got "
                f"{len(self.weights)}, {len(self.biases)}, {len(self.activations)}, {len(self.residuals)}"
            )
        for lower, upper in pairwise(self.weights):
            if lower.shape[0] != upper.shape[1]:
                raise ValueError(f"weights do not chain: {tuple(lower.shape)} then {tuple(upper.shape)}")
        for layer, residual in enumerate(self.residuals):
            if residual and (layer == 0 or self.weights[layer].shape[0] != self.weights[layer].shape[1]):
                raise ValueError(f"residuals[{layer}] needs a square weight above the first layer")

    @property
    def depth(self) -> int:
        """The number L of hidden layers."""
        return len(self.activations)

    @property
    def dim(self) -> int:
        """The number D of inputs."""
        return self.weights[0].shape[1]

    @property
    def widths(self) -> tuple[int, ...]:
        """`H_1, ..., H_L`."""
        return tuple(weight.shape[0] for weight in self.weights[:-1])


def preactivation(mlp: MLP, layer: int, h: Tensor, shifts: Shifts) -> Tensor:
    """Return `z = W h + b + u` of a layer counted from 0, `[B, H]`."""
    z = F.linear(h, mlp.weights[layer], mlp.biases[layer])
    u = shifts[layer] if shifts else None
    return z if u is None else z + u


def propagate(mlp: MLP, x: Tensor, shifts: Shifts, order: int) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
    """Return the output and, per hidden layer, `(phi(z_l), ..., phi^(order)(z_l))`, each `[B, H_l]`."""
    h, layers = x, []
    for layer, name in enumerate(mlp.activations):
        values = ACTIVATIONS[name].derivatives(preactivation(mlp, layer, h, shifts), order)
        h = values[0] + h if mlp.residuals[layer] else values[0]
        layers.append(values)
    return preactivation(mlp, mlp.depth, h, shifts), layers


def forward(mlp: MLP, x: Tensor, shifts: Shifts = ()) -> Tensor:
    """Return the network's output, `[B, D]` for a score and `[B, 1]` for an energy.

    Args:
        mlp: the network.
        x: `[B, D]`.
        shifts: `u_1, ..., u_{L+1}`, each `[B, H_l]` or None; `()` when there are none.
    """
    return propagate(mlp, x, shifts, 0)[0]


def lift(mlp: MLP, slopes: list[Tensor], tangents: Tensor, start: int, stop: int) -> Tensor:
    """Carry tangents through hidden layers: `T_l = d_l * (T_{l-1} W_l') + r_l T_{l-1}`.

    Args:
        mlp: the network.
        slopes: `d_1, ..., d_L`, each `[B, H_l]`.
        tangents: `[B, K, H_start]`, K tangents of layer `start` (hidden layers are counted from 0).
        start: the layer where they are.
        stop: the layer to carry them to.

    Returns:
        `[B, K, H_stop]`.
    """
    for layer in range(start + 1, stop + 1):
        carried = F.linear(tangents, mlp.weights[layer]) * slopes[layer].unsqueeze(-2)
        tangents = carried + tangents if mlp.residuals[layer] else carried
    return tangents


def inlet(mlp: MLP, weight: Tensor | None) -> Tensor:
    """Return `(W_1 C)'`, the tangents that enter the first layer: `[D, H_1]`, or `[B, D, H_1]` for a C per sample."""
    first = mlp.weights[0]
    return first.mT if weight is None else (first @ weight).mT


@dataclass(frozen=True)
class Circuit:
    """The products of a trace, in the order in which tangents go through them.

    `tr(C J) = sum_k w_k X[k] . A_n ... A_2 (d_1 * E[k])` over the layers of `order`; the trace is cyclic, so the
    tangents may start at any layer m, whose slopes are then the weights w, and pass `N = W_1 C W_{L+1}` on their way.

    Attributes:
        order: the layers, by their place in the network; n of them.
        start: the layer whose slopes are the weights w; None for the input, and weights of 1.
        entry: E, `[K, H_1]`.
        exit: X, `[K, H_n]`.
        edges: the weights between two layers of the order, n - 1 of them.
    """

    order: tuple[int, ...]
    start: int | None
    entry: Tensor
    exit: Tensor
    edges: tuple[Tensor, ...]

    @property
    def cost(self) -> int:
        """Multiply-adds of a sample's trace."""
        return self.entry.shape[-2] * sum(edge.numel() for edge in self.edges)


def circuit(mlp: MLP, seeds: Tensor) -> Circuit:
    """The cheapest circuit: K = D tangents of the input's features, or the H_m of a narrow layer.

    Args:
        mlp: the network, of two hidden layers or more.
        seeds: `(W_1 C)'`, `[D, H_1]`, or `[B, D, H_1]`, which can only be where the circuit starts.
    """
    depth, last = mlp.depth, mlp.weights[-1]
    straight = Circuit(tuple(range(depth)), None, seeds, last, mlp.weights[1:-1])
    if depth == 2 or seeds.ndim == 3:
        return straight
    # The first of the narrowest layers has no residual: that would come from a layer as wide.
    start = min(range(depth), key=mlp.widths.__getitem__)
    order = (*range(start + 1, depth), *range(start))
    into = ((last.mT @ seeds).mT, *mlp.weights[1:-1])  # what leads into each layer; N into the first
    around = Circuit(order, start, into[order[0]].mT, into[start], tuple(into[layer] for layer in order[1:]))
    return around if around.cost < straight.cost else straight


def trace(mlp: MLP, slopes: list[Tensor], weight: Tensor | None = None) -> Tensor:
    """Return `tr(C J)`, `[B]`, from the slopes `d_l = phi'(z_l)`.

    One hidden layer: `d_1 . diag(W_1 C W_2)`. Two: `d_2' M d_1 + r_2 d_1 . diag(W_1 C W_3)` with
    `M = W_2 * (W_1 C W_3)'`. More, or a C of each sample: the K tangents of a circuit, which meet on the layer below
    its last the cotangents `X A_n`; its first and last layer are shared by the batch, so the matrix products are as
    many as for tangents carried all the way.
    """
    seeds, last = inlet(mlp, weight), mlp.weights[-1]
    if mlp.depth <= 2 and seeds.ndim == 2:
        loop = last.mT @ seeds  # (W_1 C W_{L+1})', [H_L, H_1]
        if mlp.depth == 1:
            return slopes[0] @ loop.diagonal()
        total = (slopes[1] * F.linear(slopes[0], mlp.weights[1] * loop)).sum(-1)
        return total + slopes[0] @ loop.diagonal() if mlp.residuals[1] else total
    if mlp.depth == 1:
        return (seeds * slopes[0].unsqueeze(-2) * last).sum((-2, -1))
    around = circuit(mlp, seeds)
    first, *middle, final = around.order
    tangents = around.entry * slopes[first].unsqueeze(-2)
    if mlp.residuals[first]:
        tangents = tangents + torch.eye(len(around.entry), dtype=seeds.dtype, device=seeds.device)
    for layer, edge in zip(middle, around.edges, strict=False):
        carried = F.linear(tangents, edge) * slopes[layer].unsqueeze(-2)
        tangents = carried + tangents if mlp.residuals[layer] else carried
    leaving = around.exit if around.start is None else around.exit * slopes[around.start].unsqueeze(-1)
    cotangents = (leaving * slopes[final].unsqueeze(-2)) @ around.edges[-1]
    return (tangents * (cotangents + leaving if mlp.residuals[final] else cotangents)).sum((-2, -1))


def score_and_trace(mlp: MLP, x: Tensor, shifts: Shifts = (), *, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the score and the exact trace of its Jacobian.

    Args:
        mlp: a network with as many outputs as inputs.
        x: `[B, D]`.
        shifts: `u_1, ..., u_{L+1}`, each `[B, H_l]` or None; `()` when there are none.
        weight: C, `[D, D]` or `[B, D, D]`, for `tr(C J)` in place of `tr J`.

    Returns:
        The score `[B, D]` and the trace `[B]`.
    """
    score, layers = propagate(mlp, x, shifts, 1)
    return score, trace(mlp, [values[1] for values in layers], weight)


def score_and_jacobian(mlp: MLP, x: Tensor, shifts: Shifts = ()) -> tuple[Tensor, Tensor]:
    """Return the score `[B, D]` and `J = ds/dx`, `[B, D, D]`, rows being outputs: D tangents in one pass."""
    score, layers = propagate(mlp, x, shifts, 1)
    slopes = [values[1] for values in layers]
    tangents = lift(mlp, slopes, inlet(mlp, None) * slopes[0].unsqueeze(-2), 0, mlp.depth - 1)
    return score, F.linear(tangents, mlp.weights[-1]).mT


def score_and_quadratic(
    mlp: MLP, x: Tensor, shifts: Shifts, probes: Tensor, *, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the score and Hutchinson's `v_k' C J v_k` of every probe, from one pass of dual numbers.

    For `E[v v'] = I` each has expectation `tr(C J)`: `E[v' A v] = tr(A E[v v'])` (Hutchinson 1990).

    Args:
        mlp: a network with as many outputs as inputs.
        x: `[B, D]`.
        shifts: `u_1, ..., u_{L+1}`, each `[B, H_l]` or None; `()` when there are none.
        probes: `v`, `[B, K, D]`.
        weight: C, `[D, D]` or `[B, D, D]`; the identity when None.

    Returns:
        The score `[B, D]` and the quadratic forms `[B, K]`.
    """
    score, layers = propagate(mlp, x, shifts, 1)
    slopes = [values[1] for values in layers]
    tangents = F.linear(probes, mlp.weights[0]) * slopes[0].unsqueeze(-2)
    tangents = lift(mlp, slopes, tangents, 0, mlp.depth - 1)
    left = probes if weight is None else probes @ weight
    return score, (F.linear(tangents, mlp.weights[-1]) * left).sum(-1)


def energy_terms(
    mlp: MLP, x: Tensor, shifts: Shifts = (), probes: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the energy E, the score `-grad E` and the Laplacian `lap E` of a network with one output.

    The forward Laplacian (Li et al. 2024) with its sums exchanged: with `G_l = dz_l/dx` and the adjoints
    `a_l = dE/dh_l`, `lap E = sum_l a_l . (phi_l''(z_l) * sum_d G_l[d]^2)`. Along probes, with `G_l[k] = dz_l/dx v_k`
    and without the sum, these are Hutchinson's `v_k' (d2E/dx2) v_k`.

    Args:
        mlp: a network whose last weight is `[1, H_L]`.
        x: `[B, D]`.
        shifts: `u_1, ..., u_{L+1}`, each `[B, H_l]` or None; `()` when there are none.

        probes: `v`, `[B, K, D]`.

    Returns:
        The energy `[B]`, the score `[B, D]` and the Laplacian `[B]`, or with probes the quadratic forms `[B, K]`.
    """
    energy, layers = propagate(mlp, x, shifts, 2)
    slopes = [values[1] for values in layers]
    adjoint = mlp.weights[-1].expand(x.shape[0], -1)
    adjoints = [adjoint]
    for layer in range(mlp.depth - 1, 0, -1):
        below = (adjoint * slopes[layer]) @ mlp.weights[layer]
        adjoint = below + adjoint if mlp.residuals[layer] else below
        adjoints.insert(0, adjoint)
    score = -((adjoint * slopes[0]) @ mlp.weights[0])

    if probes is not None:
        return energy.squeeze(-1), score, _curvature(mlp, layers, adjoints, F.linear(probes, mlp.weights[0]))
    squares = inlet(mlp, None).square().sum(-2)
    laplacian = (adjoint * layers[0][2]) @ squares
    tangents = inlet(mlp, None) * slopes[0].unsqueeze(-2)
    for layer in range(1, mlp.depth):
        gradients = F.linear(tangents, mlp.weights[layer])
        laplacian = laplacian + (adjoints[layer] * layers[layer][2] * gradients.square().sum(-2)).sum(-1)
        carried = gradients * slopes[layer].unsqueeze(-2)
        tangents = carried + tangents if mlp.residuals[layer] else carried
    return energy.squeeze(-1), score, laplacian


def _curvature(mlp: MLP, layers: list[tuple[Tensor, ...]], adjoints: list[Tensor], entering: Tensor) -> Tensor:
    """`sum_l a_l . (phi_l''(z_l) * G_l[k]^2)`, `[B, K]`, from `G_1 = W_1 v` `[B, K, H_1]`."""
    gradients, tangents = entering, entering * layers[0][1].unsqueeze(-2)
    total = (gradients.square() * (adjoints[0] * layers[0][2]).unsqueeze(-2)).sum(-1)
    for layer in range(1, mlp.depth):
        gradients = F.linear(tangents, mlp.weights[layer])
        total = total + (gradients.square() * (adjoints[layer] * layers[layer][2]).unsqueeze(-2)).sum(-1)
        carried = gradients * layers[layer][1].unsqueeze(-2)
        tangents = carried + tangents if mlp.residuals[layer] else carried
    return total
