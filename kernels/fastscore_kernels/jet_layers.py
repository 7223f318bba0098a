"""Launchers of `jets`: a hidden layer's activation on the jets of some samples, and its adjoint."""

from typing import Any, NamedTuple

import torch
import triton

from fastscore_kernels.jets import backward_kernel, forward_kernel
from fastscore_kernels.launch import device_of

# A program's tile of rows and units: 8 elements a thread in each of the arrays it holds, eight in an energy's adjoint.
_TILE, _UNITS, _WARPS = 1024, 128, 4


class Jet(NamedTuple):
    """What goes through a layer of some samples; None for what is not there."""

    value: torch.Tensor
    """`[n, H]`."""
    tangents: torch.Tensor | None = None
    """`[n, K, H]`."""
    laplacian: torch.Tensor | None = None
    """`[n, H]`."""


class Layer(NamedTuple):
    """A hidden layer beyond its matrix product."""

    activation: str
    bias: torch.Tensor | None
    shift: torch.Tensor | None
    """Of these samples, `[n, H]`."""
    squares: torch.Tensor | None = None
    """q `[H]`, where the tangents below are the same for all samples and a Laplacian begins."""
    coefficients: torch.Tensor | None = None
    """c of these samples, `[n, K]`: the weights of second derivatives along tangents in their sum."""

    @property
    def bends(self) -> bool:
        """Whether second derivatives begin here."""
        return self.squares is not None or self.coefficients is not None


def launch_options(width: int) -> dict[str, int]:
    """The tile of a layer."""
    units = min(_UNITS, max(16, triton.next_power_of_2(width)))
    return {"ROWS": _TILE // units, "UNITS": units, "num_warps": _WARPS}


def ascend(
    layer: Layer,
    z: Jet,
    below: Jet | None = None,
    *,
    value: bool = True,
    slope: bool = False,
    tangents: bool = True,
    form: bool = False,
    weights: torch.Tensor | None = None,
) -> tuple[Jet, torch.Tensor | None, torch.Tensor | None]:
    """The jet above an activation (added to the one below it), and where asked for, d and the form `[n, K]`.

    Args:
        layer: the layer.
        z: the jet of its matrix product.
        below: the jet that a residual layer adds.
        value: whether h is wanted.
        slope: whether d is wanted.
        tangents: whether hd is wanted, if there are tangents.
        form: whether the form is wanted.
        weights: its p, `[n, K, H]` or for all alike `[H]`; ones when None.
    """
    n, width, columns = _sizes(z)
    grid, options = _grid(n, width)
    out = Jet(
        _new(z.value, value, n, width),
        _new(z.value, tangents and z.tangents is not None, n, columns, width),
        _new(z.value, z.laplacian is not None or layer.bends, n, width),
    )
    d, forms = _new(z.value, slope, n, width), _sums(z.value, form, grid[1], n, columns)
    arrays = {"h_ptr": out.value, "d_ptr": d, "hd_ptr": out.tangents, "hl_ptr": out.laplacian, "form_ptr": forms}
    if below is not None:
        arrays |= {"h_below_ptr": below.value, "hd_below_ptr": below.tangents, "hl_below_ptr": below.laplacian}
    _launch(forward_kernel, grid, options, layer, z, {**arrays, "p_ptr": weights})
    if forms is not None:
        forms = forms[0] if len(forms) == 1 else forms.sum(0)
    return out, d, forms


def descend(
    layer: Layer,
    z: Jet,
    upstream: Jet,
    slope: torch.Tensor | None = None,
    form: tuple[torch.Tensor, torch.Tensor | None] | None = None,
) -> tuple[Jet, torch.Tensor, torch.Tensor | None]:
    """The adjoint of `ascend`: gradients in z, their sums over samples `[H]`, and those in q.

    Args:
        layer: the layer.
        z: the jet of its matrix product.
        upstream: gradients in the jet above.
        slope: the gradient in d, `[n, H]`.
        form: the gradient in the form, `[n, K]`, and its p: then there is none in tangents above.
    """
    n, width, columns = _sizes(z)
    grid, options = _grid(n, width)
    tangents = upstream.tangents is not None or form is not None
    out = Jet(
        _new(z.value, True, n, width),
        _new(z.value, tangents, n, columns, width),
        _new(z.value, z.laplacian is not None, n, width),
    )
    sums = _sums(z.value, True, grid[0], width)
    on_squares = _sums(z.value, layer.squares is not None, grid[0], width)
    g, p = form or (None, None)
    arrays = {
        "dz_ptr": out.value, "dzd_ptr": out.tangents, "dzl_ptr": out.laplacian,
        "dz_sums_ptr": sums, "dq_sums_ptr": on_squares,
        "dh_ptr": upstream.value, "dd_ptr": slope, "dhd_ptr": upstream.tangents, "dhl_ptr": upstream.laplacian,
        "g_ptr": g, "p_ptr": p,
    }  # fmt: skip
    _launch(backward_kernel, grid, options, layer, z if tangents else z._replace(tangents=None), arrays)
    return out, sums.sum(0), None if on_squares is None else on_squares.sum(0)


def _launch(kernel: Any, grid: Any, options: dict[str, int], layer: Layer, z: Jet, arrays: dict[str, Any]) -> None:
    p = arrays["p_ptr"]
    given = {
        "z_ptr": z.value, "zd_ptr": z.tangents, "zl_ptr": z.laplacian, "q_ptr": layer.squares,
        "c_ptr": layer.coefficients, "b_ptr": layer.bias, "u_ptr": layer.shift, **arrays,
    }  # fmt: skip
    n, width, columns = _sizes(z)
    with device_of(z.value):
        kernel[grid](
            **{name: given.get(name) for name in kernel.arg_names if name.endswith("_ptr")},
            n_rows=n,
            H=width,
            K=columns,
            PHI=layer.activation,
            SHARED=p is not None and p.ndim == 1,
            **options,
        )


def _sizes(z: Jet) -> tuple[int, int, int]:
    return *z.value.shape, 1 if z.tangents is None else z.tangents.shape[1]


def _grid(n: int, width: int) -> tuple[tuple[int, int], dict[str, int]]:
    options = launch_options(width)
    return (triton.cdiv(n, options["ROWS"]), triton.cdiv(width, options["UNITS"])), options


def _new(like: torch.Tensor, wanted: bool, *shape: int) -> Any:
    return torch.empty(shape, dtype=like.dtype, device=like.device) if wanted else None


def _sums(like: torch.Tensor, wanted: bool, *shape: int) -> Any:
    return torch.empty(shape, dtype=torch.float32, device=like.device) if wanted else None
