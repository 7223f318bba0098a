"""Distributions whose log-density, score and samples are known in closed form: what tests, demos and benchmarks aim at.

Targets are plain objects holding constants. They answer in the dtype and on the device of the points they are asked
about, so nothing has to be moved, and they are differentiable in those points. Half precision is computed in float32,
with autocast, too; scores are rounded back, log-densities stay float32: their sums would lose what differs.
"""

from fastscore.targets.double_well import DoubleWell as DoubleWell
from fastscore.targets.mixture import Gaussian as Gaussian
from fastscore.targets.mixture import GaussianMixture as GaussianMixture
