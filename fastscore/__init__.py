"""fastscore: score matching and Langevin sampling as fast as the hardware allows."""

from fastscore import noise as noise
from fastscore import samplers as samplers
from fastscore import targets as targets
from fastscore._config import use_backend as use_backend
from fastscore.samplers import Interrupted as Interrupted
from fastscore.samplers import LangevinDynamics as LangevinDynamics
from fastscore.samplers import NonFiniteError as NonFiniteError
from fastscore.samplers import annealed_langevin_dynamics as annealed_langevin_dynamics
from fastscore.samplers import gradient_ascent as gradient_ascent
from fastscore.samplers import langevin_dynamics as langevin_dynamics
from fastscore.samplers import langevin_step as langevin_step

__version__ = "0.1.0"
