"""`1/2 |s|^2` and `v_k . p_k` in one pass over s and the products, with the probes made again where they are needed.

Where there is a kernel, per element of a sample in units of one read or write, for one probe:

    forward    reads s and p (2)          against 7: p v written and summed (4), s^2 written and summed (3)
    backward   reads s, writes ds, dp (3) against 8: g v (2), and g (2 s^1), which autograd takes in three steps (6)

and two launches against a dozen; no v is kept for the backward. Elsewhere the reference is taken as it is.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastscore.ops import _dispatch, noise
from fastscore.ops.mlp_functions import transformed
from fastscore.reference import contraction as reference
from fastscore.reference.contraction import wide
from fastscore.reference.philox import Stream


class Drawn(NamedTuple):
    """Which probes: those from `first_probe` on, of the samples from `first_chain` on, rounded to `dtype`."""

    kind: str
    """ "rademacher" or "normal"."""
    dtype: torch.dtype
    seed: int
    first_probe: int
    first_chain: int

    def draw(self, shape: torch.Size | tuple[int, ...], device: torch.device) -> Tensor:
        """Probes of `shape` `[K, B, *event]`."""
        count, batch, *event = shape
        make = noise.rademacher if self.kind == "rademacher" else noise.normal
        given = (self.first_chain, self.dtype, device)
        width = torch.Size(event).numel()
        steps = range(self.first_probe, self.first_probe + count)
        made = [make(batch, width, self.seed, int(Stream.PROBES), step, *given) for step in steps]
        return (made[0].unsqueeze(0) if count == 1 else torch.stack(made)).view(tuple(shape))


def contraction(score: Tensor | None, products: Tensor, probes: Tensor, drawn: Drawn) -> tuple[Tensor | None, Tensor]:
    """`reference.contraction` of a score and the products with these probes, which `drawn` would draw again."""
    plain = all(type(tensor) is Tensor for tensor in (score, products) if tensor is not None)
    if not plain or _dispatch.kernels("contraction", products.device) is None:
        return reference.contraction(score, products, probes)
    return Contraction.apply(score, products, drawn)  # type: ignore[no-untyped-call, no-any-return]


@_dispatch.carried
class Contraction(torch.autograd.Function):
    """`(s, p, drawn) -> (1/2 |s|^2, v_k . p_k)`; ds = g s, dp_k = g_k v_k.

    Where a gradient must itself be differentiated, it is made of torch operations on probes drawn again.
    """

    @staticmethod
    def forward(score: Tensor | None, products: Tensor, drawn: Drawn) -> tuple[Tensor | None, Tensor]:
        kernels = _dispatch.kernels("contraction", products.device)
        if kernels is None or not products.numel():
            return reference.contraction(score, products, drawn.draw(products.shape, products.device))
        return kernels.contraction(_rows(score, 1), _rows(products, 2), *drawn)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        score, products, ctx.drawn = inputs
        # Products are kept only as what to shape gradients like: an expanded scalar holds no memory of the batch.
        like = products.new_empty(()).expand(products.shape)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(score, like)
        ctx.save_for_forward(score, like)

    @staticmethod
    def backward(ctx: Any, on_squares: Tensor | None, on_forms: Tensor | None) -> tuple[Tensor | None, ...]:
        (score, like), (need_score, need_products, _) = ctx.saved_tensors, ctx.needs_input_grad
        on_squares = on_squares if need_score else None
        on_forms = on_forms if need_products else None
        given = [g for g in (on_squares, on_forms) if g is not None]
        if not given:
            return None, None, None
        kernels = _dispatch.kernels("contraction", like.device)
        if torch.is_grad_enabled() or transformed(given) or kernels is None or not like.numel():
            ds = None if on_squares is None else (_padded(on_squares, score) * wide(score)).to(score.dtype)
            dp = None
            if on_forms is not None:
                dp = (_padded(on_forms, like) * wide(ctx.drawn.draw(like.shape, like.device))).to(like.dtype)
            return ds, dp, None
        size = (*like.shape[:2], like[0, 0].numel())
        ds, dp = kernels.pullback(_rows(score, 1), on_squares, on_forms, size, like.dtype, *ctx.drawn)
        return None if ds is None else ds.view(score.shape), None if dp is None else dp.view(like.shape), None

    @staticmethod
    def jvp(ctx: Any, ds: Tensor | None, dp: Tensor | None, _: Any) -> tuple[Tensor | None, Tensor]:
        score, like = ctx.saved_tensors
        v = wide(ctx.drawn.draw(like.shape, like.device))
        forms = torch.zeros_like(v) if dp is None else wide(dp) * v
        if score is None:
            return None, forms.flatten(2).sum(2)
        squares = torch.zeros_like(wide(score)) if ds is None else wide(score) * wide(ds)
        return squares.flatten(1).sum(1), forms.flatten(2).sum(2)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], score: Tensor | None, products: Tensor, drawn: Drawn
    ) -> tuple[tuple[Tensor | None, Tensor], tuple[int | None, int]]:
        # Every slice is the function of its own rows, so all slices share one set of probes.
        products = products.unsqueeze(0) if in_dims[1] is None else products.movedim(in_dims[1], 0)
        forms = wide(products) * wide(drawn.draw(products.shape[1:], products.device))
        forms = forms.flatten(3).sum(3).expand(info.batch_size, -1, -1)
        if score is None:
            return (None, forms), (None, 0)
        score = score.unsqueeze(0) if in_dims[0] is None else score.movedim(in_dims[0], 0)
        squares = 0.5 * wide(score).square().flatten(2).sum(2).expand(info.batch_size, -1)
        return (squares, forms), (0, 0)


def _rows(x: Tensor | None, batch_dims: int) -> Tensor | None:
    """x with its event flattened."""
    return None if x is None else x.reshape(*x.shape[:batch_dims], -1)


def _padded(g: Tensor, like: Tensor) -> Tensor:
    """g with ones for the dimensions of the event."""
    return g.view(g.shape + (1,) * (like.dim() - g.dim()))
