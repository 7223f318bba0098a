"""Score and energy networks: multilayer perceptrons with smooth activations, conditioned or not.

Both keep to the structure that every exact formula of fastscore is written for (`fastscore.reference.mlp`):
`z_1 = W_1 x + b_1 + u_1`, `h_l = phi(z_l)`, `z_{l+1} = W_{l+1} h_l + b_{l+1} + u_{l+1}`. A condition enters only
through the per-sample vectors `u_l`, so the closed-form trace is the same with and without one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function_unary

from fastscore import _checks
from fastscore._layers import activation_of, gain_of, named, plain, plain_linear
from fastscore._products import leaf, traced
from fastscore.reference.activations import ACTIVATIONS
from fastscore.reference.mlp import MLP

_FREQUENCIES = 7  # 0.25 to 16: periods from 25 down to 0.4


class _Condition(nn.Module):
    """`cond [B, C]` -> `u_1 .. u_L`: Fourier features, one SiLU layer, and a linear map for every hidden layer."""

    def __init__(self, cond_dim: int, width: int, depth: int) -> None:
        super().__init__()
        features = cond_dim * (1 + 2 * _FREQUENCIES)
        self.embed = nn.Linear(features, width)
        self.maps = nn.ModuleList([nn.Linear(width, width, bias=False) for _ in range(depth)])
        self._draw_weights()

    def reset_parameters(self) -> None:
        """Draw new weights: features, embedding and shifts of about unit variance."""
        self._draw_weights()
        bound = plain_linear("condition.embed", self.embed).in_features ** -0.5
        nn.init.uniform_(self.embed.bias, -bound, bound)

    def _draw_weights(self) -> None:
        for name, layer in (("condition.embed", self.embed), *named("condition.maps", self.maps)):
            linear = plain_linear(name, layer, biased=False)
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)

    def forward(self, cond: Tensor) -> list[Tensor]:
        like = next(self.parameters(), cond)
        # Made here: a buffer that no checkpoint has would be lost where a network is built on the meta device.
        frequencies = (1 << torch.arange(_FREQUENCIES, device=like.device)).to(like.dtype) / 4
        angles = (cond.unsqueeze(-1) * frequencies).flatten(1)
        features = torch.cat([cond, torch.sin(angles), torch.cos(angles)], dim=-1)
        embedding = F.silu(self.embed(features))
        return [layer(embedding) for layer in self.maps]


class _MLP(nn.Module):
    """What the two networks share: the layers, the condition, and the hidden layers' values."""

    def __init__(self, dim: int, width: int, depth: int, activation: str, cond_dim: int, outputs: int = 0) -> None:
        dim, width, depth = _checks.count("dim", dim), _checks.count("width", width), _checks.count("depth", depth)
        cond_dim = _checks.count("cond_dim", cond_dim, minimum=0)
        super().__init__()
        self.activation = activation_of(activation).name
        self.dim, self.cond_dim = dim, cond_dim
        sizes = [dim] + [width] * depth
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, [*sizes[1:], outputs or dim], strict=True))
        self.condition = _Condition(cond_dim, width, depth) if cond_dim else None
        self._draw_layers()

    def reset_parameters(self) -> None:
        """Draw new weights: preactivations of about unit variance, an output near 0.

        Hidden weights have the standard deviation `g / sqrt(fan_in)` with `g^2 E phi(Z)^2 = 1` for a normal Z; the last
        layer has a tenth of `1 / sqrt(fan_in)`, so that training starts near the flat density, where score and trace
        are small.

        Raises:
            TypeError: a layer that is no plain `nn.Linear`, by name.
        """
        if self.condition is not None:
            self.condition.reset_parameters()
        self._draw_layers()

    def _draw_layers(self) -> None:
        gain = gain_of(ACTIVATIONS[self.activation])
        *hidden, last = self._linears()
        for index, layer in enumerate(hidden):
            fan_in = layer.in_features
            nn.init.normal_(layer.weight, std=(gain if index else 1.0) / math.sqrt(fan_in))
            nn.init.uniform_(layer.bias, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))
        nn.init.normal_(last.weight, std=0.1 / math.sqrt(last.in_features))
        nn.init.zeros_(last.bias)

    def structure(self) -> MLP:
        """The network as its live tensors, for the closed forms.

        Raises:
            TypeError: a layer that is no plain `nn.Linear`, by name.
        """
        linears, hidden = self._linears(), len(self.layers) - 1
        weights, biases = tuple(layer.weight for layer in linears), tuple(layer.bias for layer in linears)
        return MLP(weights, biases, (self.activation,) * hidden, (False,) * hidden)

    def _linears(self, *, biased: bool = True) -> list[nn.Linear]:
        return [plain_linear(name, layer, biased=biased) for name, layer in named("layers", self.layers)]

    def shifts(self, cond: Tensor | float | None, like: Tensor) -> list[Tensor] | None:
        """Return `u_1, ..., u_L`, `[B, width]` or `[1, width]`, for a condition; None for a network without one.

        Args:
            cond: `[B]` (for `cond_dim` 1), `[B, cond_dim]`, or one condition for the whole batch: a number or a tensor
                of shape `[]` or `[cond_dim]`.
            like: `[B, dim]`, whose dtype, device and batch size the condition is fitted to.

        Raises:
            ValueError: a condition is missing, unexpected, or of another shape.
        """
        if self.condition is None:
            if cond is not None:
                raise ValueError("cond was given to a network without a condition: build it with cond_dim=...")
            return None
        if cond is None:
            raise ValueError(f"cond is missing: the network was built with cond_dim={self.cond_dim}")
        _checks.real("cond", cond)
        if isinstance(cond, Tensor) and cond.is_meta and not like.is_meta:
            raise ValueError(f"cond is on {cond.device}, x on {like.device}: it holds no numbers")
        given = torch.as_tensor(cond, dtype=like.dtype, device=like.device)
        if given.dim() == 2:
            rows = given
        elif self.cond_dim == 1 and given.dim() < 2:
            rows = given.reshape(-1, 1)
        else:
            rows = given.unsqueeze(0)
        if rows.dim() != 2 or rows.shape[1] != self.cond_dim or rows.shape[0] not in (1, like.shape[0]):
            wanted = f"[{like.shape[0]}, {self.cond_dim}]"
            raise ValueError(f"cond must have shape {wanted} or broadcast to it, got {list(given.shape)}")
        shifts: list[Tensor] = self.condition(rows)
        return shifts

    def _flat(self, x: Tensor) -> Tensor:
        """`[B, *event]` -> `[B, dim]`; one sample `[dim]`, as `torch.func` transforms pass it, -> `[1, dim]`."""
        _checks.floating("x", x)
        rows = x.unsqueeze(0) if x.dim() < 2 else x.flatten(1)
        if rows.shape[1] != self.dim:
            raise ValueError(f"x must have shape [B, *event] with {self.dim} features, got {list(x.shape)}")
        dtype = next(self.layers[0].parameters(), x).dtype
        if x.dtype != dtype and not torch.is_autocast_enabled(x.device.type):
            raise TypeError(f"x is {x.dtype}, the network {dtype}: make them one by x.to(...) or network.to(...)")
        return rows

    def _pass(self, rows: Tensor, shifts: list[Tensor] | None, order: int) -> tuple[Tensor, list[Tensor]]:
        """The output `z_{L+1}` and, for `order` 1, the slopes `d_l = phi'(z_l)` of the hidden layers."""
        activation = ACTIVATIONS[self.activation]
        *hidden, last = self.layers
        h, slopes = rows, []
        for layer, shift in zip(hidden, [None] * len(hidden) if shifts is None else shifts, strict=True):
            z = layer(h)
            h, *rest = activation.derivatives(z if shift is None else z + shift, order)
            slopes += rest
        output: Tensor = last(h)
        return output, slopes


class ScoreMLP(_MLP):
    """A score network `s(x)` or `s(x, cond)` of `depth` hidden layers, for `x [B, *event]` with `dim` features.

    A condition (a noise level, a time, a position) is embedded once, `e = silu(A [c, sin(f c), cos(f c)] + a)` with
    seven fixed frequencies from 0.25 to 16, and every hidden layer adds its own linear map of it: `z_l += V_l e`. The
    hidden layers can so change with the noise level, which a condition concatenated to x offers to the first layer
    only; and the trace of ds/dx keeps its closed form, because the addition does not depend on x. The frequencies
    suit conditions of order one: pass the logarithm of a noise level that spans decades, and divide the network's
    output by it (`s(x, sigma) = net(x, log sigma) / sigma`), as the true score grows so.

    Args:
        dim: features of an event.
        width: units of a hidden layer.
        depth: hidden layers, at least 1.
        activation: "silu", "softplus", "tanh", "gelu", "gelu_tanh", "softsign", "sine", "mish", "elu" or "sigmoid".
        cond_dim: features of the condition; 0 for none.

    Raises:
        ValueError: a size below its minimum, or an activation whose second derivative score matching cannot use.
        TypeError: a size that is not an int.
    """

    def __init__(self, dim: int, width: int = 128, depth: int = 2, activation: str = "silu", cond_dim: int = 0) -> None:
        super().__init__(dim, width, depth, activation, cond_dim)

    def forward(self, x: Tensor, cond: Tensor | float | None = None) -> Tensor:
        """Return the score, shaped like x.

        Args:
            x: `[B, *event]` with `dim` features (or one sample `[dim]`).
            cond: `[B]`, `[B, cond_dim]`, or one for the batch: a number or a tensor `[]` or `[cond_dim]`.

        Raises:
            ValueError: x or cond has another shape, or cond is missing or unexpected.
        """
        rows = self._flat(x)
        return self._pass(rows, self.shifts(cond, rows), 0)[0].reshape(x.shape)


class EnergyMLP(_MLP):
    """An energy `E(x) = -log p(x) + const` of `depth` hidden layers; the score is `-grad E`, in closed form.

    The arguments, the condition and the errors are those of `ScoreMLP`.
    """

    def __init__(self, dim: int, width: int = 128, depth: int = 2, activation: str = "silu", cond_dim: int = 0) -> None:
        super().__init__(dim, width, depth, activation, cond_dim, outputs=1)

    def forward(self, x: Tensor, cond: Tensor | float | None = None) -> Tensor:
        """Return the energy `[B]` (a scalar for one sample `[dim]`); the arguments are those of `ScoreMLP.forward`."""
        rows = self._flat(x)
        energy = self._pass(rows, self.shifts(cond, rows), 0)[0]
        return energy.reshape(x.shape[0] if x.dim() > 1 else ())

    def score(self, x: Tensor, cond: Tensor | float | None = None) -> Tensor:
        """Return the score `-grad E(x)`, shaped like x; the arguments are those of `ScoreMLP.forward`.

        The reverse pass is written out, `g_L = W_{L+1}`, `g_{l-1} = (g_l * phi'(z_l)) W_l`, `s = -g_0`, in ordinary
        torch operations: it needs no graph, works under `torch.no_grad`, and can be differentiated and compiled. Where
        a layer is no plain `nn.Linear`, autograd takes the gradient.
        """
        if not all(map(plain, self.layers)):
            return self._descent(x, cond)
        if has_torch_function_unary(x):  # the reader is recording: it takes this call as one operation
            return handle_torch_function(EnergyMLP.score, (x,), self, x, cond)
        rows = self._flat(x)
        _, slopes = self._pass(rows, self.shifts(cond, rows), 1)
        *hidden, last = self._linears(biased=False)
        gradient = last.weight.squeeze(0)
        for layer, slope in zip(reversed(hidden), reversed(slopes), strict=True):
            gradient = (gradient * slope) @ layer.weight
        return gradient.neg().reshape(x.shape)

    def _descent(self, x: Tensor, cond: Tensor | float | None) -> Tensor:
        """The score, whatever the layers are."""
        if traced():
            gradient: Tensor = torch.func.grad(lambda x: self(x, cond).sum())(x)
            return gradient.neg()
        differentiable = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            point = leaf(x)
            (gradient,) = torch.autograd.grad(self(point, cond).sum(), point, create_graph=differentiable)
        return gradient.neg()
