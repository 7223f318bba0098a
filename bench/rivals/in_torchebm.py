"""torchebm: its sampler and its losses, on an energy as its users define one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchebm.core import BaseModel, DoubleWellModel
from torchebm.losses import DenoisingScoreMatching, ScoreMatching, SlicedScoreMatching
from torchebm.samplers import LangevinDynamics

from bench.families.networks import network, tensors, training_step

STD, BARRIER, SIGMA = 0.5, 2.0, 0.1


class Mixture(BaseModel):
    """Minus the log-density of equal Gaussians, up to a constant; the library's own autograd makes the gradient."""

    def __init__(self, means: Tensor) -> None:
        super().__init__(device=means.device)
        self.means = means

    def forward(self, x: Tensor) -> Tensor:
        squares = (x[:, None, :] - self.means).square().sum(-1)
        return -torch.logsumexp(-0.5 / STD**2 * squares, -1)


class Score(BaseModel):
    """A score network stands for the gradient of an energy, which the library lets a model give itself."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        super().__init__(device=device)
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def gradient(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return -self.model(x)


class Energy(BaseModel):
    """An energy network."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        super().__init__(device=device)
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).squeeze(-1)


def chain(settings: dict[str, Any], inputs: dict[str, np.ndarray], device: str) -> Any:
    arrays = tensors(inputs, device)
    x = arrays.pop("x")
    target = settings["target"]
    if target == "network":
        model: BaseModel = Score(network(arrays), x.device)
    elif target == "energy":
        model = Energy(network(arrays), x.device)
    else:
        model = DoubleWellModel(BARRIER, device=x.device) if target == "double well" else Mixture(arrays["means"])
    sampler = LangevinDynamics(model, step_size=settings["step_size"], device=x.device)
    return lambda: {"x": sampler.sample(x=x, n_steps=settings["steps"])}


def loss(kind: Any, weight: float = 1.0, **options: Any) -> Any:
    """A training step; `weight` brings the loss to the scale of everybody else's."""

    def build(settings: dict[str, Any], inputs: dict[str, np.ndarray], device: str) -> Any:
        arrays = tensors(inputs, device)
        x = arrays.pop("x")
        model = network(arrays)
        criterion = kind(Energy(model, x.device), device=x.device, **options)
        return training_step(model, lambda: weight * criterion(x))

    return build


BUILDERS = {
    ("chains", "torchebm, LangevinDynamics"): chain,
    ("divergence of energies", "torchebm, ScoreMatching"): loss(ScoreMatching),
    ("divergence of energies", "torchebm, ScoreMatching approx"): loss(ScoreMatching, hessian_method="approx"),
    ("divergence of energies", "torchebm, SlicedScoreMatching (5)"): loss(SlicedScoreMatching, n_projections=5),
    ("divergence of energies", "torchebm, DenoisingScoreMatching"): loss(
        DenoisingScoreMatching, SIGMA**2, noise_scale=SIGMA
    ),
}
