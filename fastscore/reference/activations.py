"""The activations of score networks and their derivatives up to the third, in closed form.

Score matching differentiates a network once more than ordinary training does: the trace of the score's Jacobian
needs `phi'`, its gradient `phi''`, and the gradient of an energy's Laplacian `phi'''`. Each function here returns
`(phi, phi', ..., phi^(order))` from shared subexpressions, in plain torch operations, so that the results can
themselves be differentiated, compiled and run on any device in any floating dtype.

Every formula is finite for |z| <= 1e4 in float16 to float64 (and takes its limit there): a factor that vanishes
is never multiplied by one that overflows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_ORDER = 3


@dataclass(frozen=True)
class Activation:
    """An elementwise function `phi` and its derivatives.

    Calling it gives `phi(z)`, by the same torch function that a user's network would call.

    Attributes:
        name: the key in `ACTIVATIONS`.
        function: `phi`, alone.
        formulas: `(z, order) -> (phi, ..., phi^(order))` for `1 <= order <= 3`; use `derivatives`.
    """

    name: str
    function: Callable[[Tensor], Tensor]
    formulas: Callable[[Tensor, int], tuple[Tensor, ...]]

    def __call__(self, z: Tensor) -> Tensor:
        """Return `phi(z)`."""
        return self.function(z)

    def derivatives(self, z: Tensor, order: int) -> tuple[Tensor, ...]:
        """Return `(phi(z), phi'(z), ..., phi^(order)(z))`, each shaped like `z`.

        Args:
            z: floating point, any shape.
            order: the highest derivative, 0 to 3.

        Raises:
            ValueError: `order` is outside 0 to 3.
        """
        if not 0 <= order <= MAX_ORDER:
            raise ValueError(f"order must be in 0..{MAX_ORDER}, got {order}")
        return (self.function(z),) if order == 0 else self.formulas(z, order)


def _silu(z: Tensor, order: int) -> tuple[Tensor, ...]:
    """`z s` with `s = sigmoid(z)`: `s + z s'`, `2 s' + z s''`, `3 s'' + z s'''`."""
    s = torch.sigmoid(z)
    c = 1 - s
    out = [z * s, s * (1 + z * c)]
    if order >= 2:
        s1 = s * c
        s2 = s1 * (c - s)
        out.append(2 * s1 + z * s2)
        if order >= 3:
            out.append(3 * s2 + z * (s1 * (1 - 6 * s1)))
    return tuple(out)


def _softplus(z: Tensor, order: int) -> tuple[Tensor, ...]:
    """`log(1 + e^z)`: the sigmoid `s`, then `s (1 - s)` and `s (1 - s) (1 - 2 s)`.

    torch replaces the function by `z` above 20, and its own derivative by 1; the sigmoid differs from 1 by at most
    2e-9 there.
    """
    s = torch.sigmoid(z)
    out = [F.softplus(z), s]
    if order >= 2:
        c = 1 - s
        s1 = s * c
        out.append(s1)
        if order >= 3:
            out.append(s1 * (c - s))
    return tuple(out)


def _tanh(z: Tensor, order: int) -> tuple[Tensor, ...]:
    """`t = tanh(z)`: `q = 1 - t^2`, `-2 t q`, `q (6 t^2 - 2)`."""
    t = torch.tanh(z)
    t2 = t * t
    q = 1 - t2
    out = [t, q]
    if order >= 2:
        out.append(-2 * t * q)
        if order >= 3:
            out.append(q * (6 * t2 - 2))
    return tuple(out)


def _gelu(z: Tensor, order: int) -> tuple[Tensor, ...]:
    """`z P(z)` with the normal distribution `P` and density `p`: `P + z p`, `p (2 - z^2)`, `p z (z^2 - 4)`.

    The density is 0 in float64 from |z| = 39 on, so the polynomials beside it take `z` clamped there.
    """
    cdf = 0.5 * (1 + torch.erf(z * math.sqrt(0.5)))
    y = z.clamp(-39, 39)
    y2 = y * y
    p = torch.exp(-0.5 * y2) * (1 / math.sqrt(2 * math.pi))
    out = [z * cdf, cdf + y * p]
    if order >= 2:
        out.append(p * (2 - y2))
        if order >= 3:
            out.append(p * (y * (y2 - 4)))
    return tuple(out)


def _gelu_tanh(z: Tensor, order: int) -> tuple[Tensor, ...]:
    """`z (1 + t) / 2` with `t = tanh(u)`, `u = sqrt(2 / pi) (z + 0.044715 z^3)`.

    `t' = q u'`, `t'' = q (u'' - 2 t u'^2)`, `t''' = q (u''' - 6 t u' u'' + (6 t^2 - 2) u'^3)` with `q = 1 - t^2`,
    and then `(1 + t + z t') / 2`, `t' + z t'' / 2`, `(3 t'' + z t''') / 2`. In sigmoids `(1 + t) / 2 = S(2u)` and
    `q = 4 S(2u) S(-2u)`, which keeps its digits where `1 - t^2` cancels. `q` is below 1e-32 from |z| = 10 on, so `u`
    and the factors of `q` take `z` clamped there.
    """
    a, b = math.sqrt(2 / math.pi), 0.044715
    y = z.clamp(-10, 10)
    y2 = y * y
    double_u = (2 * a * y) * (1 + b * y2)
    s, c = torch.sigmoid(double_u), torch.sigmoid(-double_u)
    t, q = s - c, 4 * s * c
    u1 = a + (3 * a * b) * y2
    t1 = q * u1
    out = [z * s, s + 0.5 * y * t1]
    if order >= 2:
        u2 = (6 * a * b) * y
        t2 = q * (u2 - 2 * t * u1 * u1)
        out.append(t1 + 0.5 * y * t2)
        if order >= 3:
            t3 = q * (6 * a * b - 6 * t * u1 * u2 + (4 - 6 * q) * u1 * u1 * u1)
            out.append(1.5 * t2 + 0.5 * y * t3)
    return tuple(out)


def _softsign(z: Tensor, order: int) -> tuple[Tensor, ...]:
    """`z r` with `r = 1 / (1 + |z|)`: `r^2`, `-2 sign(z) r^3`, `6 r^4`.

    The second derivative jumps from 2 to -2 at 0, where this gives the middle, 0, as autograd does; the third is
    the one of either side (the jump itself is not in it), where autograd differentiates `sign` to 0 as well.
    """
    r = 1 / (1 + z.abs())
    r2 = r * r
    out = [z * r, r2]
    if order >= 2:
        out.append(-2 * torch.sign(z) * (r2 * r))
        if order >= 3:
            out.append(6 * (r2 * r2))
    return tuple(out)


def _sine(z: Tensor, order: int) -> tuple[Tensor, ...]:
    """`sin z`: `cos z`, `-sin z`, `-cos z`."""
    sine, cosine = torch.sin(z), torch.cos(z)
    return (sine, cosine, -sine, -cosine)[: order + 1]


def _mish(z: Tensor, order: int) -> tuple[Tensor, ...]:
    """`z t` with `t = tanh(softplus z)`: `t + z t'`, `2 t' + z t''`, `3 t'' + z t'''`.

    With the sigmoids `s` and `c = 1 - s`, `1 + e^z = 1 / c`, so `t = s (1 + c) / (1 + c^2)` and
    `w = 1 - t^2 = (2 c / (1 + c^2))^2` without a cancellation; then `t' = w s`, `t'' = w g`, `g = s c - 2 t s^2`, and
    `t''' = w (s c (c - s) - 2 w s^3 - 4 t s^2 c - 2 t s g)`.
    """
    s, c = torch.sigmoid(z), torch.sigmoid(-z)
    q = 1 / (1 + c * c)
    t = s * (1 + c) * q
    root = 2 * c * q
    w = root * root
    t1 = w * s
    out = [z * t, t + z * t1]
    if order >= 2:
        g = s * (c - 2 * t * s)
        t2 = w * g
        out.append(2 * t1 + z * t2)
        if order >= 3:
            t3 = w * (s * (c * (c - s) - 2 * t1 * s - 4 * t * s * c) - 2 * t * s * g)
            out.append(3 * t2 + z * t3)
    return tuple(out)


def _elu(z: Tensor, order: int) -> tuple[Tensor, ...]:
    """`z` above 0, else `e^z - 1`, whose derivatives are all `e^z`.

    The second derivative jumps from 1 to 0 at 0, where this gives the latter, as autograd does.
    """
    e, right = torch.exp(z.clamp(max=0)), z >= 0
    bent = torch.where(right, 0, e)
    return (F.elu(z), torch.where(right, 1, e), bent, bent)[: order + 1]


def _sigmoid(z: Tensor, order: int) -> tuple[Tensor, ...]:
    """`s = 1 / (1 + e^-z)`, and with `c = 1 - s`: `s c`, `s c (c - s)`, `s c (1 - 6 s c)`."""
    s, c = torch.sigmoid(z), torch.sigmoid(-z)
    p = s * c
    return (s, p, p * (c - s), p * (1 - 6 * p))[: order + 1]


def _tanh_approximated_gelu(z: Tensor) -> Tensor:
    return F.gelu(z, approximate="tanh")


ACTIVATIONS: dict[str, Activation] = {
    activation.name: activation
    for activation in (
        Activation("silu", F.silu, _silu),
        Activation("softplus", F.softplus, _softplus),
        Activation("tanh", torch.tanh, _tanh),
        Activation("gelu", F.gelu, _gelu),
        Activation("gelu_tanh", _tanh_approximated_gelu, _gelu_tanh),
        Activation("softsign", F.softsign, _softsign),
        Activation("sine", torch.sin, _sine),
        Activation("mish", F.mish, _mish),
        Activation("elu", F.elu, _elu),
        Activation("sigmoid", torch.sigmoid, _sigmoid),
    )
}
