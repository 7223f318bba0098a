"""The layers of the networks: which are plain, what they are called in errors, the activations between them."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from fastscore.reference.activations import ACTIVATIONS, Activation

_ONCE_DIFFERENTIABLE = ("relu", "relu6", "leaky_relu", "prelu", "rrelu", "hardtanh", "hardswish", "selu")


def plain(layer: nn.Module) -> bool:
    """Whether a layer is an `nn.Linear` and nothing else, so that its weight and bias say what it does."""
    hooked = layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer)
    return type(layer) is nn.Linear and not hooked


def plain_linear(name: str, layer: nn.Module, *, biased: bool = True) -> nn.Linear:
    """The layer, if it is plain and, where `biased`, has a bias; a TypeError with its name if not."""
    if isinstance(layer, nn.Linear) and plain(layer) and (not biased or layer._parameters["bias"] is not None):
        return layer
    what = type(layer).__name__ if type(layer) is not nn.Linear else "Linear with a hook or without a bias"
    raise TypeError(f"{name} must be a plain nn.Linear here, got a {what}")


def named(prefix: str, layers: nn.ModuleList) -> list[tuple[str, nn.Module]]:
    """The layers with their names in the network."""
    return [(f"{prefix}.{index}", layer) for index, layer in enumerate(layers)]


def activation_of(name: str) -> Activation:
    """The activation of that name, or a ValueError that says why and what instead."""
    if isinstance(name, str) and name in ACTIVATIONS:
        return ACTIVATIONS[name]
    choices = ", ".join(map(repr, ACTIVATIONS))
    if name in _ONCE_DIFFERENTIABLE:
        raise ValueError(
            f"activation {name!r} cannot be used: score matching differentiates the score, and the gradient of the "
            f"loss needs a second derivative of the activation, which is 0 or undefined for it; use one of {choices}"
        )
    raise ValueError(f"activation must be one of {choices}, got {name!r}")


def gain_of(activation: Activation) -> float:
    """`1 / sqrt(E phi(Z)^2)` for a standard normal Z, by the trapezoidal rule on [-8, 8]."""
    with _disable_current_modes():  # a number also where networks are built of fake tensors
        z = torch.linspace(-8, 8, 1601, dtype=torch.float64, device="cpu")
        density = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
        second_moment = float((activation(z).square() * density).sum() * 0.01)
    return 1 / math.sqrt(second_moment)
