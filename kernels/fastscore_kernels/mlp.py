"""Launchers for networks with one or two hidden layers: score with exact trace, and all gradients.

`evaluate` and `differentiate` do on a whole batch what `fastscore.ops.mlp_tiles` does tile by tile, and take the same
arguments: the network (`weights`, `biases`, `activations`), x `[B, D]`, the shifts of its layers, and the form whose
parameters are M and c of `mlp_forward`. The gradient's factors live for one chunk of the batch, so that memory beyond
inputs, outputs and gradients does not grow with it.
"""

from typing import Any, NamedTuple

import torch
import triton

from fastscore_kernels import philox, table
from fastscore_kernels.launch import device_of, float32_products
from fastscore_kernels.mlp_backward import lower_kernel, upper_kernel
from fastscore_kernels.mlp_forward import forward_kernel
from fastscore_kernels.products import accumulate, product, totals

ACTIVATIONS = frozenset(("silu", "softplus", "tanh", "gelu", "gelu_tanh", "softsign", "sine"))

# Elements of one [rows, width] factor of a gradient: 32 MB in float32, six of which live at a time.
_CHUNK = 1 << 23


Key = tuple[str, int]
Gradients = dict[Key, torch.Tensor]


class Layers(NamedTuple):
    """A network as the kernels take it: contiguous tensors, None for what it does not have."""

    weights: dict[str, torch.Tensor | None]
    """By the kernels' names for them: w1, w2, w3, b1, b2, b3, m, c; w2_t, w3_t, m_t and p_t are transposes."""
    shifts: tuple[torch.Tensor | None, ...]
    """u_1, u_2, u_3."""
    constants: dict[str, Any]
    """Sizes, activations, precision and the kind of probe."""
    probe: Any
    """What makes the probe: its seed, kind and first sample; or None."""
    number: int = 0
    """Which of a sample's probes it is."""

    @property
    def deep(self) -> bool:
        """Whether there are two hidden layers."""
        return self.weights["w2"] is not None

    @property
    def dual(self) -> bool:
        """Whether the trace is estimated along a probe."""
        return self.probe is not None

    @property
    def traced(self) -> bool:
        """Whether there is a trace beside the score."""
        return self.weights["m"] is not None or self.weights["c"] is not None

    def arguments(self, rows: slice) -> dict[str, Any]:
        """What kernels take of the network, by argument, for some of the samples."""
        given: dict[str, Any] = {f"{name}_ptr": tensor for name, tensor in self.weights.items()}
        for name, u in zip(("u1_ptr", "u2_ptr", "u3_ptr"), self.shifts, strict=True):
            given[name] = None if u is None else u[rows].contiguous()
        seed, first = (self.probe.seed, self.probe.first + rows.start) if self.dual else (0, 0)
        key_low, key_high = philox.as_int32(seed, seed >> 32)
        counters = {"first_chain": first, "key_low": key_low, "key_high": key_high, "number": self.number}
        return {**given, **self.constants, **counters}


def supported(mlp: Any, x: torch.Tensor, narrow: bool, family: str) -> bool:
    """Whether these kernels serve a network: float32, one or two hidden layers, and a tested launch for its sizes.

    The family is "mlp", or "dual" for the estimate along one probe (two hidden layers, none residual).
    """
    rounding = precision(x.device, narrow)
    return (
        x.dtype == torch.float32
        and len(mlp.activations) <= 2
        and set(mlp.activations) <= ACTIVATIONS
        and table.options(f"{family}_forward", x.device, rounding, _width(mlp.weights), x.shape[1]) is not None
    )


def precision(device: torch.device, narrow: bool) -> str:
    """What a product rounds to: bfloat16 if `narrow`, else float32 where torch is to keep all of it, else TF32.

    float32 takes three TF32 products; AMD's tensor cores multiply it as it is.
    """
    if narrow:
        return "bf16"
    if device.type == "cuda" and torch.version.hip is not None:
        return "ieee"
    return "tf32x3" if float32_products() == "highest" else "tf32"


def rows(mlp: Any, columns: int) -> int:
    """How many samples a gradient works on at a time."""
    return max(1, _CHUNK // _width(mlp.weights))


def evaluate(mlp: Any, x: torch.Tensor, shifts: Any, form: Any) -> tuple[torch.Tensor, ...]:
    """Score `[B, D]` and trace `[B, 1]`, or with the form "value" the score alone."""
    return _forward(_layers(mlp, x, shifts, form, ()), x.contiguous(), slice(0, len(x)))


def differentiate(
    mlp: Any,
    x: torch.Tensor,
    shifts: Any,
    form: Any,
    upstream: Any,
    wanted: Any,
    scale: float,
    reads: bool,
    outputs: tuple[torch.Tensor, ...] | None = None,
) -> Gradients:
    """Gradients of `sum(upstream * outputs)` in everything wanted, by key; `reads`: upstream looks at the outputs.

    Of several probes the outputs, if they are read, are made elsewhere; their gradients add up, one after the other.
    """
    layers, x = _layers(mlp, x, shifts, form, ("w2", "w3", "m")), x.contiguous()
    gradients = totals(wanted)
    count = form.columns if layers.dual else 1
    samples = [key for key in gradients if key[0] in ("x", "shift")] if count > 1 else []
    spare = {**gradients, **{key: _empty(x, *gradients[key].shape) for key in samples}}
    size = rows(mlp, form.columns)
    for start in range(0, len(x), size):
        part = slice(start, min(start + size, len(x)))
        made: tuple[Any, ...] = (None,)
        if outputs is not None:
            made = tuple(values[part] for values in outputs)
        elif reads:
            made = _forward(layers, x[part], part)
        ds, on_trace = upstream(part, made[0], made[1:])
        ds = torch.zeros_like(x[part]) if ds is None else ds
        g: Any = [None]
        if form.kind != "value":
            given = x.new_full((len(ds), 1), scale) if on_trace[0] is None else on_trace[0] * scale
            g = given.reshape(len(ds), -1).expand(-1, count).t().contiguous()
        _backward(layers, x[part], part, ds, g[0], gradients)
        for number in range(1, count):
            _backward(layers._replace(number=number), x[part], part, torch.zeros_like(ds), g[number], spare)
            for key in samples:
                gradients[key][part] += spare[key][part]
    return gradients


def _forward(layers: Layers, x: torch.Tensor, rows: slice) -> tuple[torch.Tensor, ...]:
    score, trace = _empty(x, *x.shape), _empty(x, len(x), 1) if layers.traced else None
    _launch(forward_kernel, "forward", layers, rows, {"score_ptr": score, "trace_ptr": trace, "x_ptr": x})
    return (score,) if trace is None else (score, trace)


def _backward(
    layers: Layers,
    x: torch.Tensor,
    rows: slice,
    ds: torch.Tensor,
    g: torch.Tensor | None,
    gradients: Gradients,
) -> None:
    """Write the gradients of some samples, and add theirs to the gradients of weights."""
    first, last, deep = layers.constants["H1"], layers.constants["H2"], layers.deep
    w1: Any = layers.weights["w1"]
    factors = any(key[0] not in ("x", "shift") for key in gradients)
    given: dict[str, Any] = {"x_ptr": x, "ds_ptr": ds, "g_ptr": g}

    def array(width: int, wanted: bool, key: Key | None = None) -> Any:
        """What a kernel writes `[rows, width]` to: the gradient that it is, else something to multiply by, or None."""
        if key in gradients:
            return gradients[key][rows]
        return torch.empty((len(x), width), dtype=w1.dtype, device=x.device) if wanted else None

    bent = layers.weights["m"] is not None
    dz2, gd2, phi2 = array(last, deep, ("shift", 1) if deep else None), array(last, bent), array(last, deep and factors)
    h1, d1, dz1 = array(first, factors), array(first, bent and factors), array(first, True, ("shift", 0))
    v, ghd2, dzd1 = (array(width, layers.dual and factors) for width in (x.shape[1], last, first))
    sums: dict[str, torch.Tensor] = {}
    if deep:
        written = {"dz2_ptr": dz2, "gd2_ptr": gd2, "phi2_ptr": phi2, "hd2_ptr": ghd2, "h1_ptr": h1, "d1_ptr": d1}
        written["v_ptr"] = v
        sums |= _launch(upper_kernel, "upper", layers, rows, {**given, **written}, {"dz2_sums_ptr": last})
        given |= {"dz2_ptr": dz2, "gd2_ptr": gd2}
    given |= {"dz1_ptr": dz1, "dzd1_ptr": dzd1, "h1_ptr": None if deep else h1}
    sums |= _launch(lower_kernel, "lower", layers, rows, given, dict.fromkeys(("dz1_sums_ptr", "gd1_sums_ptr"), first))

    out = 2 if deep else 1
    residual = deep and layers.constants["DIRECT"]
    products: list[tuple[Key, Any, Any]] = [(("weight", 0), dz1, x), (("weight", out), ds, phi2 if deep else h1)]
    if deep:
        products += [(("weight", 1), dz2, h1), (("form", 1 if layers.dual else 0), gd2, d1)]
    if layers.dual:
        products += [(("form", 0), dzd1, v), (("form", 2), v, ghd2)]
    if residual:
        products += [(("weight", out), ds, h1)]
    for key, left, right in products:
        if key in gradients:
            accumulate(gradients[key], left, right)
    totals = {("bias", 0): "dz1_sums_ptr"}
    if layers.weights["c"] is not None:
        totals["form", 1 if deep else 0] = "gd1_sums_ptr"
    if deep:
        totals[("bias", 1)] = "dz2_sums_ptr"
    for key, name in totals.items():
        if key in gradients:
            gradients[key].add_(sums[name].sum(0))
    if ("bias", out) in gradients:
        gradients["bias", out].add_(ds.sum(0))
    if ("x", 0) in gradients:
        gradients["x", 0][rows] = product(dz1, w1)
    if ("shift", out) in gradients:
        gradients["shift", out][rows] = ds


def _launch(
    kernel: Any,
    operation: str,
    layers: Layers,
    rows: slice,
    arrays: dict[str, Any],
    sums: dict[str, int] | None = None,
) -> dict[str, torch.Tensor]:
    """Run a kernel over some samples; returns its sums over samples, one row a program, which it makes by name."""
    n_rows, x = rows.stop - rows.start, arrays["x_ptr"]
    options = _options(operation, layers, x.device)
    programs, blocks = triton.cdiv(n_rows, options["ROWS"]), 1
    if operation != "forward":
        name, size = ("ABOVE", "H2") if operation == "upper" else ("BELOW", "H1")
        blocks = triton.cdiv(layers.constants[size], options[name])
    made = {name: _empty(x, programs, width) for name, width in (sums or {}).items()}
    given = {**layers.arguments(rows), **arrays, **made, "n_rows": n_rows}
    with device_of(x):
        kernel[(programs, blocks)](
            **{name: given.get(name) for name in kernel.arg_names if name not in options}, **options
        )
    return made


def _options(operation: str, layers: Layers, device: torch.device) -> dict[str, int]:
    """Launch options, with the tile of a layer no wider than the layer."""
    constants = layers.constants
    width = max(constants["H1"], constants["H2"])
    entry = f"{'dual' if layers.dual else 'mlp'}_{operation}"
    found = dict(table.options(entry, device, constants["PRECISION"], width, constants["D"]) or {})
    name, size = ("BELOW", constants["H1"]) if operation == "lower" else ("ABOVE", constants["H2"])
    found[name] = min(found.pop("BLOCK"), max(16, triton.next_power_of_2(size)))
    return found


def _layers(mlp: Any, x: torch.Tensor, shifts: Any, form: Any, turned: tuple[str, ...]) -> Layers:
    """The network as the kernels take it; `turned` matrices are also wanted transposed, by the backward pass."""
    deep = len(mlp.activations) == 2
    order = (0, 1, 2) if deep else (0, None, 1)
    pick = [lambda values, at=at: None if at is None or not values else values[at] for at in order]
    weights: dict[str, Any] = {f"w{i}": get(mlp.weights) for i, get in enumerate(pick, 1)}
    weights |= {f"b{i}": get(mlp.biases) for i, get in enumerate(pick, 1)}
    dual = form.kind == "quadratic"
    parameters = [form.parameters[1]] if dual else list(form.parameters)
    weights["m"] = parameters.pop(0) if deep and parameters else None
    weights["c"] = parameters.pop(0) if parameters else None
    weights = {name: None if w is None else w.detach().contiguous() for name, w in weights.items()}
    weights |= {f"{name}_t": None if weights[name] is None else weights[name].t().contiguous() for name in turned}
    weights["p_t"] = form.parameters[2].detach().t().contiguous() if dual else None
    rounding = precision(x.device, weights["w1"].dtype == torch.bfloat16)
    constants = {
        "D": x.shape[1],
        "H1": mlp.weights[0].shape[0],
        "H2": mlp.weights[1].shape[0] if deep else 1,
        "PHI1": mlp.activations[0],
        "PHI2": mlp.activations[-1],
        "DIRECT": not deep or mlp.residuals[1],
        "PROBE": form.noise.kind if dual else None,
        "PRECISION": rounding,
    }
    return Layers(weights, tuple(get(shifts) for get in pick), constants, form.noise if dual else None)


def _empty(like: torch.Tensor, *shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device)


def _width(weights: Any) -> int:
    return max(weight.shape[0] for weight in weights[:-1])
