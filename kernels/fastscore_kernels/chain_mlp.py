"""Score and energy networks as scores of the whole-chain kernel: the hidden layers of a tile of chains in registers.

z_1 = W_1 c_in x + b_1, h_l = phi_l(z_l) (+ h_{l-1}), z_{l+1} = W_{l+1} h_l + b_{l+1}. Chains are rows here,
`[BLOCK_CHAINS, WIDTH]`, so that the hidden state is the left factor of every product and stays in registers; the
weights are read before the loop over steps and stay in shared memory (that loop stores nothing, so the compiler moves
their loads out).

params, made by `pack`: weights, biases, scales, then constants. A row of biases, and of the scales (c_in, c_out,
c_skip), belongs to a level of a ladder or, PER_CHAIN, to a chain. Products in full precision are "bf16x6": both factors
as sums of three bfloat16, the six largest of their nine products. That is as exact as float32, needs three quarters of
the shared memory of "tf32x3", and the hidden state goes from one product to the next without changing threads.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from fastscore_kernels import activations as functions
from fastscore_kernels.chain import generation, tile_order, to_tile

ACTIVATIONS = ("silu", "softplus", "tanh", "gelu", "gelu_tanh", "softsign", "sine")
# The deepest network of a padded width whose tile spills no register on sm_90, by (energy, precision): a plain one, and
# one with the exact gelu or, in "bf16x6", an energy or a width of 256, residuals. An energy keeps the slopes of all its
# layers.
DEEPEST = {
    (False, "bf16x6"): {32: (6, 6), 64: (6, 6), 128: (3, 0)},
    (False, "tf32"): {32: (6, 6), 64: (6, 6), 128: (4, 4)},
    (False, "bf16"): {32: (6, 6), 64: (6, 6), 128: (6, 6), 256: (2, 0)},
    (False, "ieee"): {32: (6, 6), 64: (3, 3)},
    (True, "bf16x6"): {32: (4, 4), 64: (3, 2)},
    (True, "tf32"): {32: (4, 4), 64: (3, 2), 128: (2, 0)},
    (True, "bf16"): {32: (4, 4), 64: (3, 2)},
    (True, "ieee"): {32: (4, 4), 64: (2, 2)},
}
_BYTES = {"bf16x6": 6, "tf32": 4, "ieee": 4, "bf16": 2}  # of a weight, in shared memory


@triton.jit
def score_mlp(x, at, params):
    """c_out z_{L+1} + c_skip x."""
    WIDTH: tl.constexpr = params[3]
    INPUTS: tl.constexpr = params[4]
    ACTIVATIONS: tl.constexpr = params[5]
    RESIDUALS: tl.constexpr = params[6]
    FAST: tl.constexpr = params[8]
    DEPTH: tl.constexpr = params[12]
    row = params_row(at, params)
    biases = params[1] + row * (DEPTH * WIDTH + INPUTS)
    weights = params[0]
    z = product(widened(tl.trans(scaled(x, row, 0, params)), INPUTS), weights, WIDTH, INPUTS, params)
    z += bias(biases, 0, WIDTH, params)
    h = functions.value(z, tl.constexpr(ACTIVATIONS[0]), FAST)
    weights += WIDTH * INPUTS
    for layer in tl.static_range(1, DEPTH):
        z = product(h, weights, WIDTH, WIDTH, params) + bias(biases, layer * WIDTH, WIDTH, params)
        new = functions.value(z, tl.constexpr(ACTIVATIONS[layer]), FAST)
        h = new + h if RESIDUALS[layer] else new
        weights += WIDTH * WIDTH
    out = product(h, weights, INPUTS, WIDTH, params) + bias(biases, DEPTH * WIDTH, INPUTS, params)
    score = scaled(tl.trans(narrowed(out, x.shape[0])), row, 1, params)
    return score + scaled(x, row, 2, params) if params[10] else score


@triton.jit
def energy_mlp(x, at, params):
    """-c_out c_in dz_{L+1}/dy at y = c_in x, by the reverse pass: a_L = w, a_{l-1} = W_l' (phi_l'(z_l) a_l) (+ a_l)."""
    WIDTH: tl.constexpr = params[3]
    INPUTS: tl.constexpr = params[4]
    ACTIVATIONS: tl.constexpr = params[5]
    RESIDUALS: tl.constexpr = params[6]
    FAST: tl.constexpr = params[8]
    DEPTH: tl.constexpr = params[12]
    row = params_row(at, params)
    biases = params[1] + row * ((DEPTH + 1) * WIDTH)
    weights = params[0]
    z = product(widened(tl.trans(scaled(x, row, 0, params)), INPUTS), weights, WIDTH, INPUTS, params)
    z += bias(biases, 0, WIDTH, params)
    h, slope = functions.value_and_slope(z, tl.constexpr(ACTIVATIONS[0]), FAST)
    slopes = (slope,)
    weights += WIDTH * INPUTS
    for layer in tl.static_range(1, DEPTH):
        z = product(h, weights, WIDTH, WIDTH, params) + bias(biases, layer * WIDTH, WIDTH, params)
        new, slope = functions.value_and_slope(z, tl.constexpr(ACTIVATIONS[layer]), FAST)
        h = new + h if RESIDUALS[layer] else new
        slopes = slopes + (slope,)  # type: ignore[assignment]  # noqa: RUF005
        weights += WIDTH * WIDTH
    a = bias(biases, DEPTH * WIDTH, WIDTH, params) + tl.zeros([x.shape[1], WIDTH], tl.float32)
    for back in tl.static_range(1, DEPTH):
        weights -= WIDTH * WIDTH
        below = product_transposed(a * slopes[DEPTH - back], weights, WIDTH, WIDTH, params)
        a = below + a if RESIDUALS[DEPTH - back] else below
    weights -= WIDTH * INPUTS
    gradient = product_transposed(a * slopes[0], weights, WIDTH, INPUTS, params)
    return scaled(scaled(tl.trans(narrowed(-gradient, x.shape[0])), row, 0, params), row, 1, params)


@triton.jit
def params_row(at, params):
    """The row of biases and scales: this level's (a scalar), or each chain's `[1, BLOCK_CHAINS]`."""
    if params[9]:
        return tl.minimum(at[2], params[11] - 1)
    else:
        return at[3].to(tl.int64)


@triton.jit
def scaled(x, row, which: tl.constexpr, params):
    """X times c_in (0), c_out (1) or c_skip (2), for x `[P, BLOCK_CHAINS]`."""
    if params[10]:
        return x * tl.load(params[2] + row * 3 + which)
    else:
        return x


@triton.jit
def bias(biases, start: tl.constexpr, N: tl.constexpr, params):
    """Biases of a layer, `[1, N]`, or `[BLOCK_CHAINS, N]` where each chain has its own."""
    columns = start + tl.arange(0, N)[None, :]
    if params[9]:
        return tl.load(tl.trans(biases) + columns)
    else:
        return tl.load(biases + columns)


@triton.jit
def product(h, weight, N: tl.constexpr, K: tl.constexpr, params):
    """h W' for W `[N, K]`: `[BLOCK_CHAINS, N]` in float32."""
    return multiply(h, tl.trans(tl.load(weight + tl.arange(0, N)[:, None] * K + tl.arange(0, K)[None, :])), params)


@triton.jit
def product_transposed(h, weight, N: tl.constexpr, K: tl.constexpr, params):
    """h W for W `[N, K]`: `[BLOCK_CHAINS, K]` in float32."""
    return multiply(h, tl.load(weight + tl.arange(0, N)[:, None] * K + tl.arange(0, K)[None, :]), params)


@triton.jit
def multiply(h, w, params):
    """H w in the precision asked for; bfloat16 weights round h as well."""
    PRECISION: tl.constexpr = params[7]
    return tl.dot(h.to(w.dtype), w, input_precision=PRECISION, out_dtype=tl.float32)


@triton.jit
def widened(x, INPUTS: tl.constexpr):
    """`[BLOCK_CHAINS, P]` repeated to the width a product needs; the weights of all but the first copy are 0."""
    CHAINS: tl.constexpr = x.shape[0]
    P: tl.constexpr = x.shape[1]
    if P == INPUTS:
        return x
    else:
        return tl.reshape(tl.broadcast_to(x[:, None, :], [CHAINS, INPUTS // P, P]), [CHAINS, INPUTS])


@triton.jit
def narrowed(s, P: tl.constexpr):
    """The first P columns of `[BLOCK_CHAINS, INPUTS]`, the others being 0."""
    CHAINS: tl.constexpr = s.shape[0]
    INPUTS: tl.constexpr = s.shape[1]
    if P == INPUTS:
        return s
    else:
        return tl.sum(tl.reshape(s, [CHAINS, INPUTS // P, P]), 1)


def pack(
    weights: tuple[torch.Tensor, ...],
    biases: tuple[torch.Tensor | None, ...],
    activations: tuple[str, ...],
    residuals: tuple[bool, ...],
    shifts: tuple[torch.Tensor | None, ...],
    scales: tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None],
    *,
    energy: bool,
    per_chain: bool,
    precision: str,
) -> tuple[Any, ...]:
    """The params of `score_mlp` or `energy_mlp`.

    Args:
        weights: W_1 `[H_1, D]` to W_{L+1} `[D or 1, H_L]`.
        biases: one per weight or None.
        activations: one per hidden layer.
        residuals: one per hidden layer.
        shifts: u_l `[R, H_l]` or None, added to the biases; R is 1, or the number of levels or of chains.
        scales: c_in, c_out, c_skip, each `[R, 1]` or None.
        energy: whether the last layer is one energy.
        per_chain: whether the rows of shifts and scales belong to chains (else to levels).
        precision: "bf16x6", "tf32" or "ieee" products of float32, or "bf16".
    """
    x_width, device = weights[0].shape[1], weights[0].device
    width, inputs = padded_width(weights), padded_inputs(x_width)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    rows = max([1, *(u.shape[0] for u in (*shifts, *scales) if u is not None)])
    first = _padded(to_tile(weights[0].detach(), 1), width, inputs)
    hidden = [_padded(w.detach(), width, width) for w in weights[1:-1]]
    last = weights[-1].detach() if energy else to_tile(weights[-1].detach(), 0)
    table = []
    for layer, (weight, b) in enumerate(zip(weights, biases, strict=True)):
        row = torch.zeros(rows, weight.shape[0], device=device)
        for term in (b, shifts[layer] if shifts else None):
            row = row if term is None else row + term.detach().float()
        is_last = layer == len(weights) - 1
        if is_last:
            row = last.float().expand(rows, -1) if energy else to_tile(row, 1)
        table.append(_padded(row, rows, inputs if is_last and not energy else width))
    matrices = [first, *hidden] + ([] if energy else [_padded(last, inputs, width)])
    constants = (width, inputs, tuple(activations), tuple(residuals))
    factors = [
        (torch.full((rows, 1), float(i < 2), device=device) if c is None else c.detach().float().expand(rows, 1))
        for i, c in enumerate(scales)
    ]
    return (
        torch.cat([m.flatten() for m in matrices]).to(dtype),
        torch.cat(table, 1).contiguous(),
        torch.cat(factors, 1).contiguous(),
        *(tl.constexpr(c) for c in constants),
        tl.constexpr("tf32" if precision == "bf16" else precision),
        tl.constexpr(precision in ("tf32", "bf16") and device.type == "cuda" and torch.version.hip is None),
        tl.constexpr(per_chain),
        tl.constexpr(any(c is not None for c in scales)),
        rows,
        tl.constexpr(len(activations)),
    )


def launch_options(
    weights: tuple[torch.Tensor, ...],
    activations: tuple[str, ...],
    residuals: tuple[bool, ...],
    *,
    energy: bool,
    per_chain: bool,
    precision: str,
    device: torch.device,
) -> dict[str, int] | None:
    """The tile of a network, or None: it would not fit in shared memory, or spill registers (see the audit)."""
    width, inputs, depth = padded_width(weights), padded_inputs(weights[0].shape[1]), len(weights) - 1
    heavy = "gelu" in activations or (any(residuals) and (energy or precision == "bf16x6" or width == 256))
    if depth > DEEPEST[energy, precision].get(width, (0, 0))[heavy] or inputs > 64 or (per_chain and width > 32):
        return None
    if inputs > 16 and width == 128 and (precision == "bf16x6" or heavy):
        return None
    if not _fits_generation(generation(device), width, depth, energy, precision, heavy):
        return None
    chains, warps = {128: (128, 8), 256: (64, 8)}.get(width, (64, 4))
    numbers = 2 * width * inputs + (depth - 1) * width * width * (1 + energy)
    if _BYTES[precision] * numbers + 4 * chains * inputs > _shared_memory(device):
        return None
    return {"BLOCK_CHAINS": chains, "num_warps": warps, "num_stages": 1}


def _fits_generation(generation: int, width: int, depth: int, energy: bool, precision: str, heavy: bool) -> bool:
    """Whether the tile of an sm_90 is one elsewhere: before it registers spill, after it tensor memory is full."""
    if generation in (0, 9):
        return True
    if generation < 9:
        return precision != "bf16x6" and not energy and (width < 128 or (width == 128 and not heavy))
    return not energy and width * depth <= {"tf32": 256, "bf16": 384}.get(precision, 0)


def _shared_memory(device: torch.device) -> int:
    """Bytes a program may have; in the interpreter, those of the GPU that the tiles were made for."""
    if device.type != "cuda":
        return 227 * 1024
    properties = torch.cuda.get_device_properties(device)
    return getattr(properties, "shared_memory_per_block_optin", properties.shared_memory_per_block)


def padded_width(weights: tuple[torch.Tensor, ...]) -> int:
    """The common width of the hidden layers in the kernel."""
    return max(32, triton.next_power_of_2(max(w.shape[0] for w in weights[:-1])))


def padded_inputs(n_features: int) -> int:
    """The width of x in a product: at least the 16 that a product sums over."""
    return max(16, len(tile_order(n_features)))


def _padded(matrix: torch.Tensor, n: int, k: int) -> torch.Tensor:
    return torch.nn.functional.pad(matrix.float(), (0, k - matrix.shape[1], 0, n - matrix.shape[0]))
