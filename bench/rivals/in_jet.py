"""jet-for-pytorch: collapsed Taylor mode."""

from __future__ import annotations

from typing import Any

import jet
import numpy as np
import torch
from torch.func import vmap

from bench.families.networks import network, tensors


def laplacian(settings: dict[str, Any], inputs: dict[str, np.ndarray], device: str) -> Any:
    arrays = tensors(inputs, device)
    x = arrays.pop("x")
    model = network(arrays, "tanh").requires_grad_(False)
    found = vmap(jet.laplacian(model, (torch.zeros_like(x[0]),)))
    return lambda: {"laplacian": found(x).squeeze(-1)}


BUILDERS = {("divergence of gradients", "jet-for-pytorch, collapsed"): laplacian}
