"""Checkpoints: one file that is whole or not there, and holds no code.

A file is safetensors; JSON in its header says what the tensors are. It is written beside its place, flushed to the
disk and renamed, so that a process killed at any moment leaves the file of before or the new one. A SHA-256 of the
whole file is in its header: a file that was cut or changed is refused, as is one of another format. Nothing is ever
unpickled.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastscore.reference.philox import STREAM_VERSION

FORMAT = 1
_BLANK = b"0" * 64  # stands for the checksum while it is computed
_CHECKSUM = re.compile(rb'"sha256":"([0-9a-f]{64})"')
_STALE = 3600.0  # seconds after which a file being written is one that a killed process left


class CheckpointError(ValueError):
    """A file that is not a checkpoint, is damaged, or is that of something else."""


def write(path: str | os.PathLike[str], kind: str, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write `tensors`, and `about` as JSON, to `path`, replacing what is there at once.

    Args:
        path: the file; its folder must exist.
        kind: what the file is, asked for again by `read`.
        about: what is to be known of the tensors, anything that JSON can say.
        tensors: dense tensors by name, on any device; those that share memory are written one by one.

    Raises:
        OSError: the file cannot be written; what was there before is untouched.
    """
    import safetensors.torch  # here, so that all else runs on a GPU machine's bare Python

    said = json.dumps({"format": FORMAT, "stream": STREAM_VERSION, "kind": kind, **about}, allow_nan=False)
    held: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        shared = any(own.untyped_storage().data_ptr() == other.untyped_storage().data_ptr() for other in held.values())
        held[name] = own.clone() if shared else own
    data = safetensors.torch.save(held, {"sha256": _BLANK.decode(), "fastscore": said})
    found = _CHECKSUM.search(data)
    assert found is not None
    checksum = hashlib.sha256(data).hexdigest().encode()
    target = Path(path)
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        with open(part, "xb") as file:
            for piece in (data[: found.start(1)], checksum, memoryview(data)[found.end(1) :]):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _settle(target)


def read(path: str | os.PathLike[str], kind: str | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `write` was given: (about, tensors), the tensors on the CPU.

    Args:
        path: the file.
        kind: what it must be; None for anything.

    Raises:
        OSError: the file cannot be read.
        CheckpointError: it is no checkpoint, was cut or changed since it was written, or is of another format or kind.
    """
    import safetensors.torch

    data = Path(path).read_bytes()
    header = memoryview(data)[: 8 + int.from_bytes(data[:8], "little")]
    found = _CHECKSUM.search(header)
    if found is None:
        raise CheckpointError(f"{path} is not a checkpoint of fastscore: its header holds no checksum")
    digest = hashlib.sha256(header[: found.start(1)])
    digest.update(_BLANK)
    digest.update(memoryview(data)[found.end(1) :])
    if digest.hexdigest().encode() != found[1]:
        raise CheckpointError(f"{path} is damaged (checksum mismatch): it was cut or changed since it was written")
    try:
        tensors = safetensors.torch.load(data)
        about = json.loads(json.loads(bytes(header[8:]))["__metadata__"]["fastscore"])
        version, held = about["format"], about["kind"]
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a checkpoint of fastscore: {error}") from error
    if version != FORMAT:
        raise CheckpointError(f"{path} is of format {version!r}, this version of fastscore reads format {FORMAT}")
    if kind is not None and held != kind:
        raise CheckpointError(f"{path} is the checkpoint of a {held!r}, expected that of a {kind!r}")
    return about, tensors


def _settle(target: Path) -> None:
    """Make the renaming last, and remove what killed processes left."""
    if os.name == "posix":
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    for left in target.parent.glob(f".{glob.escape(target.name)}.*.part"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _STALE:
                left.unlink()


def digest(tensor: Tensor) -> str:
    """A few words that two tensors share only if they are equal to the bit."""
    held = tensor.detach().cpu().contiguous()
    code = hashlib.sha256(held.view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()[:16]
    return f"{held.dtype} {list(held.shape)} {code}".removeprefix("torch.")
