"""The field's other packages, in an environment of their own, which a worker process runs in.

The worker keeps a case's providers ready and times one turn of one of them when asked, so that the rounds of a race
alternate between processes: ratios are of one run. Without the environment nothing is asked.
"""

from __future__ import annotations

import importlib.util
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.registry import Arrays, Case, NotRunError

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-rivals" / "bin" / "python"
BUILD = "`make rivals` builds their environment"
PATIENCE = 90.0
"""Seconds that an answer may take, compilation included."""
PRODUCTS = {"highest": "highest", "high": "high", "medium": "default"}
"""What JAX calls PyTorch's precisions of products of float32, so that all multiply alike."""


def interpreter() -> Path:
    """Theirs, or this one where it has JAX and theirs was not built."""
    return Path(sys.executable) if not PYTHON.exists() and importlib.util.find_spec("jax") else PYTHON


class Rivals:
    """The worker, started when it is first asked, and again after it was given up."""

    def __init__(self, python: Path | None = None, patience: float = PATIENCE) -> None:
        self.python, self.patience, self.process = python or interpreter(), patience, None
        self.packages: dict[str, str] = {}
        self.folder = Path()
        self.case: tuple[str, str] | None = None

    def build(self, family: str, case: Case, arrays: Arrays, name: str, package: str) -> Callable[[], Arrays]:
        """What runs one call in the worker and brings its results back."""
        self._start()
        if package not in self.packages:
            raise NotRunError(f"{package} is not installed; {BUILD}")
        if self.case != (family, case.name):
            path = self.folder / "inputs.npz"
            np.savez(path, **{key: value.cpu().numpy() for key, value in arrays.items()})
            settings, device = dict(case.settings), next(iter(arrays.values())).device.type
            self._ask(do="case", family=family, settings=settings, inputs=str(path), device=device)
            self.case = (family, case.name)
        self._ask(do="build", name=name)
        return lambda: self._results(name)

    def _results(self, name: str) -> dict[str, Tensor]:
        path = self.folder / "results.npz"
        self._ask(do="call", name=name, results=str(path))
        with np.load(path) as found:
            return {key: torch.from_numpy(np.array(found[key])) for key in found.files}

    def turn(self, name: str) -> float:
        """Seconds of one turn."""
        return float(self._ask(do="turn", name=name)["seconds"])

    def close(self) -> None:
        """End the worker."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                pipe.close()
            shutil.rmtree(self.folder)
        self.process, self.case = None, None

    def _start(self) -> None:
        if self.process is not None:
            return
        if not self.python.exists():
            raise NotRunError(f"not installed; {BUILD}")
        self.folder = Path(tempfile.mkdtemp())
        precision = PRODUCTS[torch.get_float32_matmul_precision()]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_DEFAULT_MATMUL_PRECISION": precision}
        environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # of three quarters of a GPU's memory
        self.process = subprocess.Popen(
            [self.python, "-m", "bench.rivals.worker"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.packages = self._ask(do="packages")["packages"]

    def _ask(self, **message: Any) -> dict[str, Any]:
        if self.process is None:
            raise NotRunError("its process ended")
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
            if not select.select([self.process.stdout], [], [], self.patience)[0]:
                raise NotRunError(f"no answer within {self.patience:.0f} s")
            line = self.process.stdout.readline()
            if not line:
                raise NotRunError("its process ended")
        except (OSError, NotRunError) as error:
            self.close()
            raise NotRunError(str(error)) from error
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise NotRunError(answer["error"])
        return answer
