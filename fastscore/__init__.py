"""fastscore: score matching and Langevin sampling as fast as the hardware allows."""

from fastscore import noise as noise
from fastscore._config import use_backend as use_backend

__version__ = "0.1.0"
