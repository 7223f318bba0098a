"""Runs in the rivals' environment: answers one JSON line with another (see `bench.rivals`)."""

from __future__ import annotations

import importlib
import json
import os
import sys
from importlib import metadata
from typing import Any

import numpy as np
import torch

from bench import clock
from bench.registry import NotRunError, quoted

MODULES = {
    "jax": "in_jax",
    "folx": "in_folx",
    "blackjax": "in_blackjax",
    "torchebm": "in_torchebm",
    "jet-for-pytorch": "in_jet",
    "curvlinops-for-pytorch": "in_curvlinops",
}


def packages() -> dict[str, str]:
    """The rivals that are installed, with their versions."""
    found = {}
    for name in MODULES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def on_gpu(value: Any) -> bool:
    """Whether an array of PyTorch or of JAX is there."""
    return (
        value.is_cuda if isinstance(value, torch.Tensor) else {d.platform for d in value.devices()} <= {"gpu", "cuda"}
    )


def array(value: Any) -> np.ndarray:
    """NumPy's, from wherever it is."""
    return np.asarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value)


class Worker:
    """One case at a time, with the calls of its providers; PyTorch's on a GPU are timed by its clock.

    JAX's wait for their results, and are timed by the host's.
    """

    def __init__(self) -> None:
        self.builders: dict[tuple[str, str], Any] = {}
        self.calls: dict[str, Any] = {}
        self.clocks: dict[str, str] = {}
        for package in packages():
            self.builders |= importlib.import_module(f"bench.rivals.{MODULES[package]}").BUILDERS

    def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        """Do what is asked."""
        do = message["do"]
        if do == "packages":
            return {"packages": packages()}
        if do == "case":
            self.family, self.settings, self.device = message["family"], message["settings"], message["device"]
            with np.load(message["inputs"]) as inputs:
                self.inputs = {name: inputs[name] for name in inputs.files}
            self.calls = {}
            return {}
        name = message["name"]
        if do == "build":
            self.calls[name] = self.builders[self.family, name](self.settings, self.inputs, self.device)
            return {}
        if do == "call":
            found = self.calls[name]()
            if self.device == "cuda" and not all(map(on_gpu, found.values())):
                raise NotRunError("it does not see the GPU")
            self.clocks[name] = "cuda" if any(getattr(value, "is_cuda", False) for value in found.values()) else "cpu"
            np.savez(message["results"], **{key: array(value) for key, value in found.items()})
            return {}
        return {"seconds": clock.turn(self.calls[name], self.clocks[name])}


def main() -> int:
    """Answer until the input ends; whatever the packages print goes to the error stream."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker()
    clock.settle()
    for line in sys.stdin:
        try:
            answer = worker.answer(json.loads(line))
        except Exception as error:
            answer = {"error": quoted(error)}
        replies.write(json.dumps(answer) + "\n")
        replies.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
