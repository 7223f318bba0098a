"""fastscore: score matching and Langevin sampling as fast as the hardware allows."""

from fastscore import checkpoint as checkpoint
from fastscore import metrics as metrics
from fastscore import noise as noise
from fastscore import samplers as samplers
from fastscore import targets as targets
from fastscore._config import use_backend as use_backend
from fastscore.checkpoint import CheckpointError as CheckpointError
from fastscore.diagnostics import diagnose as diagnose
from fastscore.divergence import divergence as divergence
from fastscore.divergence import jacobian as jacobian
from fastscore.divergence import laplacian as laplacian
from fastscore.explain import explain as explain
from fastscore.losses import denoising_score_matching as denoising_score_matching
from fastscore.losses import explicit_score_matching as explicit_score_matching
from fastscore.losses import implicit_score_matching as implicit_score_matching
from fastscore.losses import sliced_score_matching as sliced_score_matching
from fastscore.networks import EnergyMLP as EnergyMLP
from fastscore.networks import ScoreMLP as ScoreMLP
from fastscore.networks import load_network as load_network
from fastscore.networks import save_network as save_network
from fastscore.samplers import Interrupted as Interrupted
from fastscore.samplers import LangevinDynamics as LangevinDynamics
from fastscore.samplers import NonFiniteError as NonFiniteError
from fastscore.samplers import TritonScore as TritonScore
from fastscore.samplers import annealed_langevin_dynamics as annealed_langevin_dynamics
from fastscore.samplers import gradient_ascent as gradient_ascent
from fastscore.samplers import langevin_dynamics as langevin_dynamics
from fastscore.samplers import langevin_step as langevin_step
from fastscore.samplers import mala as mala
from fastscore.samplers import underdamped_langevin as underdamped_langevin

__version__ = "0.1.0"
