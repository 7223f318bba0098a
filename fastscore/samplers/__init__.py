"""Samplers: one algorithm a file, and `chain.py`, the one loop they share."""

from fastscore.ops.chain import TritonScore as TritonScore
from fastscore.samplers.algorithm import LangevinState as LangevinState
from fastscore.samplers.annealed import AnnealedLangevin as AnnealedLangevin
from fastscore.samplers.annealed import annealed_langevin_dynamics as annealed_langevin_dynamics
from fastscore.samplers.ascent import gradient_ascent as gradient_ascent
from fastscore.samplers.chain import Interrupted as Interrupted
from fastscore.samplers.dynamics import LangevinDynamics as LangevinDynamics
from fastscore.samplers.finite import NonFiniteError as NonFiniteError
from fastscore.samplers.langevin import Langevin as Langevin
from fastscore.samplers.langevin import langevin_dynamics as langevin_dynamics
from fastscore.samplers.langevin import langevin_step as langevin_step
from fastscore.samplers.mala import Mala as Mala
from fastscore.samplers.mala import MalaState as MalaState
from fastscore.samplers.mala import mala as mala
from fastscore.samplers.underdamped import Underdamped as Underdamped
from fastscore.samplers.underdamped import UnderdampedState as UnderdampedState
from fastscore.samplers.underdamped import underdamped_langevin as underdamped_langevin
