"""Bilinear forms `u' J v` of a Jacobian along many directions, in pieces that fit a memory budget.

The trace, its Hutchinson estimate, weighted traces and the whole Jacobian differ only in their directions and in what
is kept of the products. Pieces are rows of the batch first (all directions then share one evaluation) and directions
only where a single row does not fit. Where gradients are recorded, pieces are recomputed in the backward, not kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from fastscore import _config
from fastscore._products import Aux, Differentiated, products
from fastscore.ops import contraction
from fastscore.ops._cpu_memory import give_back
from fastscore.reference import contraction as reference
from fastscore.reference.contraction import wide as wide

_BUDGET = 2**28  # bytes that the activations of one piece may take, by the estimate of `piece_size`
_GIVE_BACK = 4  # pieces between two times that freed memory is given back; after each, that would cost a third more

Directions: TypeAlias = Callable[[Tensor, int, int, int], Tensor]
"""(x, first_row, start, stop) -> directions start..stop-1 for the rows of x, `[stop - start, B, *event]`."""

Made = TypeVar("Made")

Twice: TypeAlias = tuple[Differentiated, Differentiated]
"""One function, written for forward mode and for reverse mode (see `products`)."""


def basis(x: Tensor, first_row: int, start: int, stop: int) -> Tensor:
    """The unit vectors of the event, the same for every row."""
    eye = torch.eye(math.prod(x.shape[1:]), dtype=x.dtype, device=x.device)
    return eye[start:stop].reshape(stop - start, 1, *x.shape[1:]).expand(-1, *x.shape)


class Probes(NamedTuple):
    """Independent directions with `E[v v'] = I`, a pure function of (seed, probe, row)."""

    kind: str
    seed: int
    first_chain: int = 0

    def __call__(self, x: Tensor, first_row: int, start: int, stop: int) -> Tensor:
        """Probes start..stop-1 for the rows of x, which are rows `first_row` and on of the batch."""
        return self.drawn(x, first_row, start).draw((stop - start, *x.shape), x.device)

    def drawn(self, x: Tensor, first_row: int, start: int) -> contraction.Drawn:
        """Which probes those are."""
        return contraction.Drawn(self.kind, x.dtype, self.seed, start, self.first_chain + first_row)


class Forms(NamedTuple):
    """What `forms` returns: value `[B, *event]`, aux, kept `[n, B, ...]` and the mode that ran, "jvp" or "vjp".

    With `squares`, the value is half the squared norm of the function's, `[B]`.
    """

    value: Tensor
    aux: Aux
    kept: Tensor
    mode: str


def forms(
    function: Callable[[Any], Twice],
    x: Tensor,
    cond: Any,
    directions: Directions,
    n: int,
    *,
    weight: Tensor | None = None,
    chunk_size: int | None = None,
    whole: bool = False,
    squares: bool = False,
) -> Forms:
    """The forms `v_i' C J v_i` `[n, B]` along n directions, or with `whole` the products with J themselves.

    Args:
        function: cond -> the function to differentiate, in both its writings.
        x: Points `[B, *event]`.
        cond: Condition; where the batch is cut, tensors whose first dimension is B are cut with it.
        directions: Where the v_i come from.
        n: How many.
        weight: C, `[D, D]` or `[B, D, D]`; the identity when not given.
        chunk_size: Rows in a piece; chosen by the memory budget when not given.
        whole: Keep `J v_i` (mode "jvp") or `J' v_i` (mode "vjp"), `[n, B, *event]`, and not the forms.
        squares: Return `1/2 |value|^2` in place of the value; not with `whole`.
    """

    def piece(x: Tensor, cond: Any, weight: Tensor | None, first: int, start: int, stop: int) -> Forms:
        if x.device.type == "cpu" and first and first // len(x) % _GIVE_BACK == 0:
            give_back()
        right = directions(x, first, start, stop)
        left = right if weight is None else weighted(right, weight)
        value, aux, product, mode = products(*function(cond), x, left, right)
        if whole:
            return Forms(value, aux, product, mode)
        met, score = left if mode == "jvp" else right, value if squares else None
        if isinstance(directions, Probes) and weight is None:  # which a kernel makes again rather than reads
            half, kept = contraction.contraction(score, product, met, directions.drawn(x, first, start))
        else:
            half, kept = reference.contraction(score, product, met)
        return Forms(value if half is None else half, aux, kept, mode)

    if torch.compiler.is_compiling():  # which keeps what it likes, and would make a graph for every batch size
        return piece(x, cond, weight, 0, 0, n)
    batch = x.shape[0]
    rows, columns = piece_size(x, n, chunk_size, cond)
    remake = remade(x, n, chunk_size, cond)
    done = []
    for first in range(0, max(batch, 1), rows):
        last = min(first + rows, batch)
        own: list[Any] = [x, cond, weight]
        if rows < batch:
            each = weight is not None and weight.dim() == 3  # a C for all may have as many rows as the batch
            own = [x[first:last], cut(cond, batch, first, last), cut(weight, batch, first, last) if each else weight]
        starts = range(0, max(n, 1), columns)
        parts = [run(remake, piece, *own, first, start, min(start + columns, n)) for start in starts]
        done.append(parts[0] if len(parts) == 1 else parts[0]._replace(kept=torch.cat([p.kept for p in parts])))
    if len(done) == 1:
        return done[0]
    aux = tuple(torch.cat(column) for column in zip(*(p.aux for p in done), strict=True))
    return Forms(torch.cat([p.value for p in done]), aux, torch.cat([p.kept for p in done], dim=1), done[0].mode)


def weighted(v: Tensor, weight: Tensor) -> Tensor:
    """`C' v` for v `[K, B, *event]` and C `[D, D]` or `[B, D, D]`."""
    return torch.matmul(v.flatten(2).unsqueeze(2), weight).reshape(v.shape)


def piece_size(x: Tensor, n: int, chunk_size: int | None, cond: Any) -> tuple[int, int]:
    """Rows and directions in a piece.

    A tangent of one row is taken to need 64 times the event or 1024 numbers, whichever is more: a guess that fits small
    networks and convolutions with some tens of channels, made because nothing is known of the callable.
    """
    each = x.element_size() * max(64 * math.prod(x.shape[1:]), 1024)
    fit = _BUDGET // each
    if chunk_size is not None:
        rows = chunk_size
    elif not all(leaf is None or isinstance(leaf, (Tensor, int, float)) for leaf in pytree.tree_leaves(cond)):
        rows = x.shape[0]
    else:
        rows = fit // (n + 1)
    rows = max(1, min(rows, x.shape[0]))
    return rows, max(1, min(n, fit // rows))


def remade(x: Tensor, n: int, chunk_size: int | None, cond: Any) -> bool:
    """Whether there are pieces, which are recomputed in the backward."""
    rows, columns = piece_size(x, n, chunk_size, cond)
    recorded = torch.is_grad_enabled() and torch._C._functorch.peek_interpreter_stack() is None
    return recorded and (rows < x.shape[0] or columns < n)


def cut(value: Any, batch: int, first: int, last: int) -> Any:
    """Rows first..last-1 of a tensor that has a row for each sample, also in tuples, lists and dicts; else as it is."""
    if isinstance(value, Tensor):
        return value[first:last] if value.dim() > 0 and value.shape[0] == batch else value
    return pytree.tree_map_only(Tensor, lambda tensor: cut(tensor, batch, first, last), value)


def run(remake: bool, piece: Callable[..., Made], *args: Any) -> Made:
    """`piece(*args)`, to be recomputed in the backward, with the random numbers it drew, if `remake`."""
    if not remake:
        return piece(*args)
    backend = _config.backend()

    def again(*args: Any) -> Made:
        with _config.use_backend(backend):  # what the backward of a GPU's thread does not know
            return piece(*args)

    captured = torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()  # has no state to be read
    done: Made = checkpoint(again, *args, use_reentrant=False, preserve_rng_state=not captured)
    return done
