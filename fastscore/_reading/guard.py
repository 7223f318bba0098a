"""What a call that nobody asked for must not do, refused before it happens."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastscore._reading.record import DeclinedError, tensors_in

_STATISTICS = frozenset({"native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"})


class Guard(TorchDispatchMode):
    """Refuses to draw random numbers and to write to lasting tensors, in this thread.

    Attributes:
        reason: what was refused first, or None. It outlives an author's `except Exception`.
    """

    def __init__(self, lasting: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reason: str | None = None
        self._lasting = {_storage(tensor) for tensor in lasting} - {None}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or the first call would import torch.compile, which takes seconds

    def __enter__(self) -> Guard:
        """Watch this thread only: the base class sets flags of the process, which threads would leave set."""
        torch._C._push_on_torch_dispatch_stack(self)
        return self

    def __exit__(self, *_: object) -> None:
        """Watch no more."""
        torch._C._pop_torch_dispatch_stack(None)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation, unless it would leave a trace."""
        keywords = kwargs or {}
        name = func.overloadpacket.__name__
        drawing = torch.Tag.nondeterministic_seeded in func.tags
        if drawing or func._schema.is_mutable:
            arguments = func._schema.arguments
            given = {a.name: args[i] if i < len(args) else keywords.get(a.name) for i, a in enumerate(arguments)}
            if drawing and given.get("dropout_p", 1.0):  # attention without dropout draws nothing
                self._refuse(f"{name} draws random numbers")
            written = [given[a.name] for a in arguments if a.alias_info is not None and a.alias_info.is_write]
            self._check(name, written)
        elif name in _STATISTICS and args[5]:  # in training; the schema does not say that it writes
            self._check(name, args[3:5])
        return func(*args, **keywords)

    def _check(self, name: str, written: object) -> None:
        if any(_storage(tensor) in self._lasting for tensor in tensors_in(written)):
            self._refuse(f"{name} changes a tensor that lasts")

    def _refuse(self, reason: str) -> None:
        self.reason = self.reason or reason
        raise DeclinedError(reason)


def _storage(tensor: Tensor) -> Any:
    """What tensors that share memory have in common, or None."""
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else None
