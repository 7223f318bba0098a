"""Matrix products of the BLAS, summed in float32 whatever their factors are."""

import torch


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
