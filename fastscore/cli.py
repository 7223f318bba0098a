"""The command line: `fastscore demo` and `fastscore info`."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import torch

import fastscore
from fastscore._config import backend
from fastscore.ops import _cpu_build

DEMOS = ("digits", "mixture")
DEMO_PACKAGES = ("sklearn", "matplotlib")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status.

    Args:
        argv: The arguments after the program's name; `sys.argv[1:]` when not given.
    """
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except OSError as error:  # a folder that cannot be made or written to
        print(f"fastscore: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fastscore", description="Score matching and Langevin sampling.")
    parser.add_argument("--version", action="version", version=f"fastscore {fastscore.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="{demo,info}")

    demo = commands.add_parser(
        "demo",
        help="learn and sample handwritten digits and a mixture; a few minutes on two CPU cores",
        description="Learns the score of handwritten digits and of a two-dimensional mixture by exact implicit score "
        "matching, samples both by Langevin dynamics, prints how good the samples are, and writes pictures and "
        "demo.json.",
    )
    demo.add_argument("--seed", type=_seed, default=0, help="the same seed gives the same run on the same machine (0)")
    demo.add_argument("--out", type=Path, default=Path("out"), help="folder for the pictures and demo.json (out)")
    demo.add_argument("--only", choices=DEMOS, help="run one of the two")
    demo.add_argument(
        "--fast", action="store_true", help="a few seconds of training: to see it run, not what it learns"
    )
    demo.set_defaults(run=_demo)

    info = commands.add_parser(
        "info", help="versions, backend and device", description="Prints what fastscore runs on."
    )
    info.set_defaults(run=_info)
    return parser


def _seed(text: str) -> int:
    """An int that every generator in use accepts; scikit-learn's take no more than 32 bits."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 2^32 - 1, got {text}")
    return int(text)


def _demo(arguments: argparse.Namespace) -> int:
    # Imported here because it needs packages that come with an extra, and the other commands should not wait for them.
    try:
        from fastscore.demo.run import run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in DEMO_PACKAGES:
            raise
        print(f"fastscore demo needs {error.name}, which comes with fastscore-torch[demo]", file=sys.stderr)
        return 1
    names = [arguments.only] if arguments.only else list(DEMOS)
    run(names, seed=arguments.seed, out=arguments.out, fast=arguments.fast)
    return 0


def _info(_: argparse.Namespace) -> int:
    facts = {
        "fastscore": fastscore.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version_of("triton"),
        "backend": backend(),
        "cpu": "compiled" if _cpu_build.library(build=True) else "PyTorch and NumPy: nothing compiled the C library",
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU, {torch.get_num_threads()} threads",
    }
    for name, fact in facts.items():
        print(f"{name:<10} {fact}")
    return 0


def _version_of(distribution: str) -> str:
    """From its metadata: importing Triton to ask would take a second and may fail."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"
