"""Why no batch is too small for the kernels of networks: they launch no more than PyTorch does, whatever the sizes."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastscore import use_backend
from fastscore.ops import _cpu_layers
from fastscore.ops.mlp import Probes
from tests.kernels.test_mlp_layers import Case

pytest.importorskip("triton")
from fastscore_kernels import jet_layers, mlp, mlp_whole

FREE = ("empty", "detach", "alias", "_reshape_alias", "lift_fresh", "is_same_size")
CASES = {
    "trace-1": Case(widths=(20,)),
    "trace-2": Case(widths=(20, 24)),
    "trace-2-residual": Case(widths=(20, 20), residuals=(1,)),
    "estimate-2": Case(widths=(20, 24), probes=Probes(seed=1)),
    "estimate-2-of-2": Case(widths=(20, 24), probes=Probes(seed=1, count=2)),
    "trace-3": Case(widths=(20, 24, 18)),
    "energy-2": Case(widths=(20, 24), energy=True),
    "curvature-2": Case(widths=(20, 24), energy=True, probes=Probes(seed=1)),
}


class Launches(TorchDispatchMode):
    """Counts what would be launched on a GPU: operators that are neither views nor allocations, and kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view and func._overloadpacket.__name__.removeprefix("new_") not in FREE
        return func(*args, **(kwargs or {}))


def launches(case: Case, backend: str, monkeypatch) -> tuple[int, int]:
    """Of the values and of the gradients of all tensors; kernels count but do not run."""
    counting = Launches()

    class Counted:
        def __init__(self, kernel):
            self.arg_names = kernel.arg_names

        def __getitem__(self, grid):
            return lambda **_: setattr(counting, "count", counting.count + 1)

    kernels = ((mlp, "forward upper lower"), (mlp_whole, "trace energy"), (jet_layers, "forward backward"))
    for module, names in kernels:
        for name in names.split():
            monkeypatch.setattr(module, f"{name}_kernel", Counted(getattr(module, f"{name}_kernel")))
    monkeypatch.setattr(_cpu_layers, "layers", lambda *_: None)
    drawn = lambda self, rows, x: x.new_ones(rows.stop - rows.start, self.count, x.shape[1])  # noqa: E731
    monkeypatch.setattr(Probes, "draw", drawn)
    groups, leaves = case.leaves(torch.float32, "uwb")
    with use_backend(backend), counting:
        values = case.values(*case.network(groups), exact=False)
        forward = counting.count
        torch.autograd.grad(values, leaves, [torch.ones_like(v) for v in values])
    return forward, counting.count - forward


@pytest.mark.skipif(torch.cuda.is_available(), reason="counted where operators are seen one by one")
@pytest.mark.parametrize("name", CASES)
def test_kernels_launch_no_more_than_torch(name, monkeypatch):
    fused, torchs = (launches(CASES[name], backend, monkeypatch) for backend in ("triton", "torch"))
    assert fused[0] < torchs[0]
    assert fused[1] <= torchs[1]
