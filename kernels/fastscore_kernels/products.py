"""Matrix products of the BLAS, summed in float32 whatever their factors are."""

from typing import Any

import torch

_ALIGNED = 64  # elements, so that no array loses the alignment that vector loads want


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """`left right`, `[M, K] [K, N]`, in float32; bfloat16 where either factor is."""
    if torch.bfloat16 not in (left.dtype, right.dtype):
        return left @ right
    left, right = left.bfloat16(), right.bfloat16()
    if left.is_cuda and torch.version.hip is None:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


def accumulate(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add `left' right`, summed over all dimensions but the last."""
    left, right = left.flatten(0, -2), right.flatten(0, -2)
    if torch.bfloat16 in (left.dtype, right.dtype):
        total.add_(product(left.t(), right))
    else:
        total.addmm_(left.t(), right)


def totals(wanted: dict[Any, torch.Tensor]) -> dict[Any, torch.Tensor]:
    """What the wanted gradients are summed up in, zeroed in one launch; those of samples are only written to."""
    made = {}
    for dtype in dict.fromkeys(t.dtype for t in wanted.values()):
        summed = {key: t for key, t in wanted.items() if t.dtype == dtype and key[0] not in ("x", "shift")}
        sizes = [-(-t.numel() // _ALIGNED) * _ALIGNED for t in summed.values()]
        if summed:
            flat = torch.zeros(sum(sizes), dtype=dtype, device=next(iter(summed.values())).device)
            parts = zip(summed.items(), flat.split(sizes), strict=True)
            made.update({key: part[: t.numel()].view(t.shape) for (key, t), part in parts})
    written = {key: t for key, t in wanted.items() if key not in made}
    return {**made, **{key: torch.empty(t.shape, dtype=t.dtype, device=t.device) for key, t in written.items()}}
