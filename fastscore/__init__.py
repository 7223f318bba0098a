"""Score matching and Langevin sampling as fast as the hardware allows.

Training: `implicit_score_matching`, `sliced_score_matching`, `explicit_score_matching`, `denoising_score_matching`, for
any network or for a `ScoreMLP` or `EnergyMLP`; `divergence`, `laplacian` and `jacobian` are what they are made of, and
`explain` says what would run. Sampling: `langevin_dynamics` and `LangevinDynamics`, `annealed_langevin_dynamics`,
`mala`, `underdamped_langevin`, `gradient_ascent`, one `langevin_step`; `diagnose` looks at chains. `targets` and
`metrics` are closed forms to measure against, `noise` the numbers that all of it draws.

Example:
    >>> net = ScoreMLP(dim=2)
    >>> implicit_score_matching(net, torch.randn(4096, 2)).backward()
    >>> langevin_dynamics(net, torch.randn(1000, 2), step_size=0.01, n_steps=100).shape
    torch.Size([1000, 2])
"""

from fastscore import checkpoint, metrics, noise, samplers, targets
from fastscore._config import use_backend
from fastscore._network_file import load_network, save_network
from fastscore.checkpoint import CheckpointError
from fastscore.diagnostics import diagnose
from fastscore.divergence import divergence, jacobian, laplacian
from fastscore.explain import explain
from fastscore.losses import (
    denoising_score_matching,
    explicit_score_matching,
    implicit_score_matching,
    sliced_score_matching,
)
from fastscore.networks import EnergyMLP, ScoreMLP
from fastscore.samplers import (
    Interrupted,
    LangevinDynamics,
    NonFiniteError,
    TritonScore,
    annealed_langevin_dynamics,
    gradient_ascent,
    langevin_dynamics,
    langevin_step,
    mala,
    underdamped_langevin,
)

__all__ = [
    "CheckpointError",
    "EnergyMLP",
    "Interrupted",
    "LangevinDynamics",
    "NonFiniteError",
    "ScoreMLP",
    "TritonScore",
    "annealed_langevin_dynamics",
    "checkpoint",
    "denoising_score_matching",
    "diagnose",
    "divergence",
    "explain",
    "explicit_score_matching",
    "gradient_ascent",
    "implicit_score_matching",
    "jacobian",
    "langevin_dynamics",
    "langevin_step",
    "laplacian",
    "load_network",
    "mala",
    "metrics",
    "noise",
    "samplers",
    "save_network",
    "sliced_score_matching",
    "targets",
    "underdamped_langevin",
    "use_backend",
]

__version__ = "0.1.0"
