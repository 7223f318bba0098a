"""Triton's launches on CPU tensors: compiled as far as PTX, and run by the machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

from tests.emulator import machine, ptx
from tests.emulator.memory import Global


class _Utilities:
    """What a launch asks of a driver's."""

    def get_device_properties(self, device: int) -> dict[str, int]:
        """Any tile fits: a tile made for one architecture may be run as another's."""
        return {"max_shared_mem": 2**31}

    def load_binary(
        self, name: str, binary: bytes, shared: int, device: int
    ) -> tuple[None, ptx.Program, int, int, int]:
        """The module, the function, registers, spills and threads allowed."""
        return None, ptx.parse(binary.decode()), 0, 0, 1024


class _Launcher:
    """Runs one compiled kernel."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self.signature, self.shared = list(source.signature.values()), metadata.shared

    def __call__(self, x: int, y: int, z: int, _stream: int, program: ptx.Program, *rest: Any) -> None:
        given = [value for pair in zip(self.signature, rest[4:], strict=True) for value in _given(*pair)]
        storages = [value.untyped_storage() for value in given if isinstance(value, torch.Tensor)]
        extents = [(storage.data_ptr(), storage.nbytes()) for storage in storages]
        arguments = [value.data_ptr() if isinstance(value, torch.Tensor) else value for value in given]
        scratch = [0] * (len(program.parameters) - len(arguments))
        machine.run(program, (x, y, z), arguments + scratch, Global(extents), self.shared)


def _given(kind: Any, value: Any) -> list[Any]:
    """The arguments that the compiled kernel has, of tuples too."""
    if isinstance(kind, (tuple, list)):
        return [part for pair in zip(kind, value, strict=True) for part in _given(*pair)]
    return [] if kind == "constexpr" else [value]


class _Driver:
    """Stands for Triton's driver of NVIDIA's GPUs."""

    launcher_cls, utils = _Launcher, _Utilities()

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        """Triton keeps what it compiled by device, so that each capability is one."""
        return self.capability

    def get_current_stream(self, device: int) -> int:
        """The default one."""
        return 0

    def get_current_target(self) -> GPUTarget:
        """What is compiled for."""
        return GPUTarget("cuda", self.capability, 32)


def _until_ptx(*arguments: Any) -> tuple[str, str] | None:
    """Triton's hook into its pipeline: the PTX itself is the binary. Called with nothing, it names itself."""
    if not arguments:
        return "ptx", "ptx"
    arguments[1]["cubin"] = lambda source, metadata: source.encode()
    return None


@contextlib.contextmanager
def installed(capability: int) -> Iterator[None]:
    """Here Triton launches on CPU tensors, in an emulated sm_80 or sm_90."""
    hook = triton.knobs.runtime.add_stages_inspection_hook
    triton.knobs.runtime.add_stages_inspection_hook = _until_ptx
    triton.runtime.driver.set_active(_Driver(capability))
    try:
        yield
    finally:
        triton.knobs.runtime.add_stages_inspection_hook = hook
        triton.runtime.driver._active = None
