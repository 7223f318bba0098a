"""Every kernel test runs on poisoned memory with guarded margins, on a GPU or in Triton's interpreter."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import fastscore

MARGIN = 256
CANARY = -7.25


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True, scope="session")
def emulated() -> Iterator[None]:
    """With EMULATE=90 the kernels are compiled, and an emulator runs what the compiler made of them."""
    if not os.environ.get("EMULATE"):
        yield
        return
    from tests import emulator  # its Triton is the compiler's, which cannot share a process with the interpreter

    with pytest.MonkeyPatch.context() as patch, emulator.installed(int(os.environ["EMULATE"])):
        patch.setattr(fastscore._config, "interpreting", lambda: True)
        yield


@pytest.fixture(autouse=True)
def triton_backend() -> Iterator[None]:
    with fastscore.use_backend("triton"):
        yield


@pytest.fixture(autouse=True)
def guarded_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Tensor, int]]]:
    """torch.empty gives NaN inside a larger buffer: a forgotten write shows, and so does a write past either end."""
    real, buffers = torch.empty, []

    def empty(*size: Any, dtype: torch.dtype | None = None, device: Any = None, **options: Any) -> Tensor:
        shape = tuple(size[0]) if size and not isinstance(size[0], int) else size
        dtype = dtype or torch.get_default_dtype()
        if not dtype.is_floating_point or options:
            return real(shape, dtype=dtype, device=device, **options)
        n = math.prod(shape)
        buffer = real(n + 2 * MARGIN, dtype=dtype, device=device).fill_(CANARY)
        buffer[MARGIN : MARGIN + n] = math.nan
        buffers.append((buffer, n))
        return buffer[MARGIN : MARGIN + n].view(shape)

    monkeypatch.setattr(torch, "empty", empty)
    yield buffers
    if torch.cuda.is_available():
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:  # it stays with the process: every later test would fail with it
            pytest.exit(f"the GPU is lost: {error}", returncode=3)
    for buffer, n in buffers:
        assert (buffer[:MARGIN] == CANARY).all(), "a kernel wrote before its output"
        assert (buffer[MARGIN + n :] == CANARY).all(), "a kernel wrote past its output"


@pytest.fixture(autouse=True)
def bounded_memory(monkeypatch: pytest.MonkeyPatch, guarded_memory: list[tuple[Tensor, int]]) -> None:
    """In the interpreter no access leaves the tensors of its launch, nor enters the margins of `torch.empty`."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        return
    import numpy as np
    from torch.utils import _pytree as pytree
    from triton.runtime import interpreter

    extents: list[Any] = []
    told = interpreter.GridExecutor._init_args_hst

    def launch(self: Any, given: Any, named: Any) -> Any:
        hosts = told(self, given, named)
        storages = {}
        for leaf in pytree.tree_leaves(hosts):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                storages[storage.data_ptr()] = storage.data_ptr() + storage.nbytes()
        for buffer, n in guarded_memory:
            begin, size = buffer.data_ptr(), buffer.element_size()
            if begin in storages:
                del storages[begin]
                storages[begin + MARGIN * size] = begin + (MARGIN + n) * size
        extents[:] = np.array(sorted([(0, 0), *storages.items()]), np.uint64).T
        return hosts

    def check(ptrs: Any, mask: Any) -> None:
        starts, ends = extents
        address = np.asarray(ptrs.data)[np.asarray(mask.data)].ravel().astype(np.uint64)
        if not address.size:
            return
        size = np.uint64(max(8, ptrs.get_element_ty().primitive_bitwidth) // 8)
        found = np.searchsorted(starts, address, "right") - 1
        assert (address + size <= ends[found]).all(), "an access outside of every tensor of the launch"

    load, store = interpreter.InterpreterBuilder.create_masked_load, interpreter.InterpreterBuilder.create_masked_store

    def checked_load(self: Any, ptrs: Any, mask: Any, *rest: Any) -> Any:
        check(ptrs, mask)
        return load(self, ptrs, mask, *rest)

    def checked_store(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        check(ptrs, mask)
        return store(self, ptrs, value, mask, *rest)

    monkeypatch.setattr(interpreter.GridExecutor, "_init_args_hst", launch)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_masked_load", checked_load)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_masked_store", checked_store)
