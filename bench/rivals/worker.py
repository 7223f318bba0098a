"""Runs in the rivals' environment: answers one JSON line with another (see `bench.rivals`)."""

from __future__ import annotations

import importlib
import json
import os
import sys
from importlib import metadata
from typing import Any

import numpy as np

from bench import clock
from bench.registry import quoted

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


class Worker:
    """One case at a time, with the calls of its providers."""

    def __init__(self) -> None:
        self.builders: dict[tuple[str, str], Any] = {}
        self.calls: dict[str, Any] = {}
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
            np.savez(message["results"], **{key: np.asarray(value) for key, value in self.calls[name]().items()})
            return {}
        return {"seconds": clock.turn(self.calls[name])}


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
