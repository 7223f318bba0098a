"""Builds the rivals' environment: `python -m bench.rivals [--python python3.12]`."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from bench.rivals import PYTHON


def main(argv: list[str] | None = None) -> int:
    """Make a virtual environment with this torch in it and every rival that this machine can install."""
    parser = argparse.ArgumentParser(prog="python -m bench.rivals", description=__doc__)
    parser.add_argument("--python", default=sys.executable, help="the interpreter (jet-for-pytorch needs 3.12)")
    python = parser.parse_args(argv).python
    folder = PYTHON.parents[1]
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([python, "-m", "venv", str(folder)], check=True)
    version = torch.__version__.split("+")[0]
    requirements = str(Path(__file__).parent / "requirements.txt")
    install = [str(PYTHON), "-m", "pip", "install"]
    # torch first: a build for CPUs of this version, where pip is set up to find one, then satisfies every rival.
    subprocess.run([*install, f"torch=={version}"], check=True)
    subprocess.run([*install, "-r", requirements, f"torch=={version}"], check=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
