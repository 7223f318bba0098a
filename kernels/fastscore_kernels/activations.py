"""Activations and their slopes on loaded values, counted in results of the special-function unit (16 a clock and SM).

With FAST (precision below float32's, NVIDIA only) a sigmoid is `1/2 + 1/2 tanh(z/2)` by the hardware's tanh: one
result a unit, absolute error 2^-11, as much as TF32 rounds away. Otherwise it is an exponential and a reciprocal: two.
"""

import triton
import triton.language as tl

_HIGH = tl.constexpr(1.5703125)  # pi/2 in three parts (Cephes, S. Moshier: sinf.c), products with integers exact
_MIDDLE = tl.constexpr(4.837512969970703e-4)
_LOW = tl.constexpr(7.549789948768648e-8)
_ROUND = tl.constexpr(12582912.0)  # 1.5 2^23: adding it rounds to the nearest integer and leaves that in the low bits


@triton.jit
def sigmoid(z, FAST: tl.constexpr):
    """1 / (1 + e^-z)."""
    if FAST:
        half = tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [0.5 * z], tl.float32, True, 1)
        return 0.5 * half + 0.5
    else:
        return 1.0 / (1.0 + tl.exp(-z))


@triton.jit
def sine_and_cosine(z):
    """For |z| <= 8192: polynomials of the rest to the nearest quarter turn. No special function, no slow path."""
    turns = z * 0.6366197723675814 + _ROUND
    quarter = turns.to(tl.int32, bitcast=True)
    turns -= _ROUND
    rest = ((z - turns * _HIGH) - turns * _MIDDLE) - turns * _LOW
    square = rest * rest
    sine = rest * (((-1.9515295891e-4 * square + 8.3321608736e-3) * square - 1.6666654611e-1) * square + 1.0)
    p = (2.443315711809948e-5 * square - 1.388731625493765e-3) * square + 4.166664568298827e-2
    cosine = (p * square - 0.5) * square + 1.0
    odd = (quarter & 1) != 0
    s, c = tl.where(odd, cosine, sine), tl.where(odd, sine, cosine)
    return tl.where((quarter & 2) != 0, -s, s), tl.where(((quarter + 1) & 2) != 0, -c, c)


@triton.jit
def clipped(z, limit):
    """z in [-limit, limit], NaN of NaN: a GPU's minimum takes the number unless it is told."""
    above = tl.maximum(z, -limit, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(above, limit, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def value(z, NAME: tl.constexpr, FAST: tl.constexpr):
    """phi(z)."""
    if NAME == "silu":
        return z * sigmoid(z, FAST)
    elif NAME == "tanh":
        return 2.0 * sigmoid(2.0 * z, FAST) - 1.0
    elif NAME == "gelu_tanh":
        y = clipped(z, 10.0)  # the sigmoid is 0 or 1 beyond
        return z * sigmoid(1.5957691216057308 * y * (1.0 + 0.044715 * y * y), FAST)
    elif NAME == "softplus":
        return tl.maximum(z, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(z)))
    elif NAME == "gelu":
        return 0.5 * z * (1.0 + tl.erf(0.7071067811865476 * z))
    elif NAME == "softsign":
        return z / (1.0 + tl.abs(z))
    else:
        tl.static_assert(NAME == "sine")
        sine, _ = sine_and_cosine(z)
        return sine


@triton.jit
def value_and_slope(z, NAME: tl.constexpr, FAST: tl.constexpr):
    """phi(z) and phi'(z)."""
    if NAME == "silu":
        s = sigmoid(z, FAST)
        return z * s, s * (1.0 + z * (1.0 - s))
    elif NAME == "tanh":
        t = 2.0 * sigmoid(2.0 * z, FAST) - 1.0
        return t, 1.0 - t * t
    elif NAME == "gelu_tanh":
        y = clipped(z, 10.0)
        s = sigmoid(1.5957691216057308 * y * (1.0 + 0.044715 * y * y), FAST)
        return z * s, s + y * s * (1.0 - s) * (1.5957691216057308 + 0.2140644488 * y * y)
    elif NAME == "softplus":
        e = tl.exp(-tl.abs(z))
        return tl.maximum(z, 0.0) + tl.log(1.0 + e), tl.where(z >= 0.0, 1.0, e) / (1.0 + e)
    elif NAME == "gelu":
        cdf = 0.5 * (1.0 + tl.erf(0.7071067811865476 * z))
        return z * cdf, cdf + z * (0.3989422804014327 * tl.exp(-0.5 * z * z))
    elif NAME == "softsign":
        r = 1.0 / (1.0 + tl.abs(z))
        return z * r, r * r
    else:
        tl.static_assert(NAME == "sine")
        return sine_and_cosine(z)


@triton.jit
def value_slope_and_curvature(z, NAME: tl.constexpr, FAST: tl.constexpr):
    """phi(z), phi'(z) and phi''(z)."""
    if NAME == "silu":
        s = sigmoid(z, FAST)
        slope = s * (1.0 + z * (1.0 - s))
        return z * s, slope, s + slope - 2.0 * s * slope
    elif NAME == "tanh":
        t = 2.0 * sigmoid(2.0 * z, FAST) - 1.0
        q = 1.0 - t * t
        return t, q, -2.0 * t * q
    elif NAME == "gelu_tanh":
        y = clipped(z, 10.0)
        double_u = 1.5957691216057308 * y * (1.0 + 0.044715 * y * y)
        e = tl.exp(-tl.abs(double_u))
        r = 1.0 / (1.0 + e)
        s = tl.where(double_u >= 0.0, r, e * r)
        q = e * r * r  # s (1 - s), without its cancellation, which u^2 would magnify
        u = 1.5957691216057308 + 0.2140644488 * y * y
        return z * s, s + y * q * u, q * (2.0 * u + y * (0.4281288976 * y + (1.0 - 2.0 * s) * u * u))
    elif NAME == "softplus":
        e = tl.exp(-tl.abs(z))
        r = 1.0 / (1.0 + e)
        return tl.maximum(z, 0.0) + tl.log(1.0 + e), tl.where(z >= 0.0, r, e * r), e * r * r
    elif NAME == "gelu":
        y = clipped(z, 15.0)
        cdf = 0.5 * (1.0 + tl.erf(0.7071067811865476 * z))
        density = 0.3989422804014327 * tl.exp(-0.5 * y * y)
        return z * cdf, cdf + y * density, density * (2.0 - y * y)
    elif NAME == "softsign":
        r = 1.0 / (1.0 + tl.abs(z))
        cubed = 2.0 * r * r * r
        return z * r, r * r, tl.where(z > 0.0, -cubed, tl.where(z < 0.0, cubed, 0.0))
    else:
        tl.static_assert(NAME == "sine")
        sine, cosine = sine_and_cosine(z)
        return sine, cosine, -sine


@triton.jit
def third(z, NAME: tl.constexpr):
    """phi'''(z)."""
    if NAME == "silu":
        s = sigmoid(z, False)
        q = s * (1.0 - s)
        return 3.0 * q * (1.0 - 2.0 * s) + z * (q * (1.0 - 6.0 * q))
    elif NAME == "tanh":
        t = 2.0 * sigmoid(2.0 * z, False) - 1.0
        return (1.0 - t * t) * (6.0 * t * t - 2.0)
    elif NAME == "gelu_tanh":
        y = clipped(z, 10.0)
        double_u = 1.5957691216057308 * y * (1.0 + 0.044715 * y * y)
        e = tl.exp(-tl.abs(double_u))
        r = 1.0 / (1.0 + e)
        q = e * r * r
        t = tl.where(double_u >= 0.0, (1.0 - e) * r, (e - 1.0) * r)  # 2 s - 1
        u, v = 1.5957691216057308 + 0.2140644488 * y * y, 0.4281288976 * y
        second = q * (v - t * u * u)
        return 3.0 * second + y * (q * ((1.0 - 6.0 * q) * u * u * u - 3.0 * t * u * v + 0.4281288976))
    elif NAME == "softplus":
        e = tl.exp(-tl.abs(z))
        r = 1.0 / (1.0 + e)
        return e * r * r * r * tl.where(z >= 0.0, e - 1.0, 1.0 - e)
    elif NAME == "gelu":
        y = clipped(z, 15.0)
        return 0.3989422804014327 * tl.exp(-0.5 * y * y) * (y * (y * y - 4.0))
    elif NAME == "softsign":
        r = 1.0 / (1.0 + tl.abs(z))
        return 6.0 * (r * r) * (r * r)
    else:
        tl.static_assert(NAME == "sine")
        _, cosine = sine_and_cosine(z)
        return -cosine
