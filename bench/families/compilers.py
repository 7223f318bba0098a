"""What fastscore does with the machine's C compiler, with the one of the package `ziglang`, and with none.

Each takes fastscore's own `build` of a provider and gives one that does the same with that compiler. The kernels that
the machine's own compiler made are what users get; those of `ziglang`, or none, take their place for the length of a
call.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from bench.registry import Arrays, Call, Case, NotRunError
from fastscore.ops import _cpu_build

Build = Callable[[Case, Arrays], Call]


def own(build: Build) -> Build:
    """With the machine's own; on a GPU none is needed.

    Raises:
        NotRunError: there is none; by the build that is returned.
    """

    def made(case: Case, arrays: Arrays) -> Call:
        if not arrays["x"].is_cuda and _cpu_build.library(build=True) is None:
            raise NotRunError("no C compiler")
        return build(case, arrays)

    return made


def ziglang(build: Build) -> Build:
    """With that of `ziglang`.

    Raises:
        NotRunError: the package is not there; by the build that is returned.
    """

    def made(case: Case, arrays: Arrays) -> Call:
        if (library := _of_ziglang()) is None:
            raise NotRunError("no ziglang")
        return _by(library, build(case, arrays))

    return made


def none(build: Build) -> Build:
    """Without any, so that PyTorch does the work."""
    return lambda case, arrays: _by(None, build(case, arrays))


def _by(library: ctypes.CDLL | None, call: Call) -> Call:
    """The call with these kernels for the machine's own."""

    def made() -> Arrays:
        with mock.patch.object(_cpu_build, "library", lambda *, build: library):
            return call()

    return made


@functools.cache
def _of_ziglang() -> ctypes.CDLL | None:
    """The kernels as a machine without a compiler of its own gets them."""
    if importlib.util.find_spec("ziglang") is None:
        return None
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(_cpu_build, "_cache", lambda: Path(folder)),
        mock.patch.object(_cpu_build.shutil, "which", lambda name: None),
    ):
        return _cpu_build._find(build=True)
