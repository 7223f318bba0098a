"""Recognises a network that is an MLP, however its author wrote it.

`read(fn, x, cond)` runs `fn` once on a few random rows and watches every torch operation it makes
(`fastscore._reading.record`). Where these compose to `z_1 = W_1 x + b_1 + u_1`, `h_l = phi_l(z_l) (+ h_{l-1})`, ...,
`z_{L+1}`, possibly between scalings of x and of the output, it returns a `Reading` with the live parameters, and the
closed forms of `fastscore.reference.mlp` give the same result as `fn`. Anything else returns None: a reading is right
or it is not made.

Readings are cached weakly for each callable. Before one is used again, everything the callable's code can see is
checked to be the same (`fastscore._reading.snapshot`): some 50 microseconds of Python, no computation. What does not
depend on x, an embedding of the condition for instance, is computed anew by ordinary torch, so gradients reach its
parameters.

The calls made to record leave no trace. Drawing random numbers and writing to tensors that last are refused before
they happen (`fastscore._reading.guard`); attributes, containers, closures and globals are put back, and whatever
changed them is declined. State that no Python code holds, a file or a foreign library's, is not.

Read: Linear layers (or `x @ W + b`, `einsum`) and the activations of `fastscore.reference.activations` in modules,
functions, lambdas, partials and loops, in place or not; `z * sigmoid(z)`; residuals `h + phi(linear(h))`; conditions
concatenated or added, before or after the activations; reshapes of the event; constant or per-row scales of x, of the
output, and an added multiple of x; scales and offsets feature by feature, `(x - mean) / std` say, that are the same
for all rows; the gradient of such an energy by `torch.autograd.grad` with `create_graph=True`; weights computed from
parameters (`torch.nn.utils.parametrizations`), `torch.func.functional_call` on ordinary tensors, tied and frozen
parameters, checkpointing, dropout that is off, `torch.optim.swa_utils.AveragedModel` of any of these.

Declined: other operations on x (piecewise linear activations among them), fewer than one hidden layer, dropout that is
on and other random numbers, statistics and counters that a call changes, hooks, autocast, Python values read from
tensors, other in-place writes, custom autograd Functions, TorchScript, `torch.compile`d or distributed modules, tensor
subclasses. Inside `torch.func` transforms and `torch.compile` nothing can be recorded: there `ScoreMLP`, `EnergyMLP`
and `EnergyMLP.score` are read from their layers, and everything else is declined.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch
import torch.utils._python_dispatch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from fastscore._layers import plain
from fastscore._products import traced
from fastscore._reading.entries import entry_of, roots_of
from fastscore._reading.guard import Guard
from fastscore._reading.program import Program, Reading, assemble
from fastscore._reading.record import Call, DeclinedError, Recorder
from fastscore._reading.rules import RULES
from fastscore._reading.snapshot import Snapshot, UnwatchableError
from fastscore._reading.symbols import OPAQUE, Affine, Descent, Input, Symbol
from fastscore._reading.walk import HOOKS
from fastscore.networks import EnergyMLP, ScoreMLP

__all__ = ["Reading", "read", "reason"]

_ROWS = 3
_SHAPES = 64
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.3}


def _energy_score(call: Call) -> Symbol:
    """`EnergyMLP.score(net, x, cond)`, of x itself: minus the gradient of what `forward` returns."""
    with call.recorder:
        value = EnergyMLP.forward(*call.tensors)
    energy = call.recorder.symbol(value)
    whole = isinstance(call.args[1], Input) and call.args[1].scale is None
    return Descent(energy) if whole and isinstance(energy, Affine) else OPAQUE


_RULES = {**RULES, EnergyMLP.score: _energy_score}


def read(fn: Callable[..., Tensor], x: Tensor, cond: Tensor | None = None) -> Reading | None:
    """Return `fn` as an MLP for these arguments, or None where it is not known to be one.

    Args:
        fn: `fn(x)`, or `fn(x, cond)` where cond is given: a score shaped like x, or an energy `[B]`. A call of
            `EnergyMLP.score` is read as its energy.
        x: `[B, *event]`, floating point. Its values are not looked at.
        cond: a tensor that fn takes as its second argument.

    Returns:
        The reading for this x and cond, with everything in it live, or None.
    """
    fn = _averaged(fn)
    if traced():
        return _own(fn, x, cond)
    if not _readable(x, cond):
        return None
    try:
        program = _program(fn, x, cond)
        return None if program is None else program.run(x, cond)
    except (DeclinedError, UnwatchableError):
        return None


def reason(fn: Callable[..., Tensor], x: Tensor, cond: Tensor | None = None) -> str:
    """Why `read` returns None for these arguments, as far as is known; records fn once more."""
    if traced():
        return "inside torch.compile and torch.func only ScoreMLP and EnergyMLP are read"
    if not _readable(x, cond):
        return "x or cond is not an ordinary dense tensor, or autocast or a global module hook is on"
    fn, rows = _averaged(fn), min(x.shape[0], _ROWS)
    few = cond[:rows] if cond is not None and cond.shape[:1] == x.shape[:1] else cond
    try:
        roots = roots_of(fn)
        snapshot = Snapshot(*roots)
        with snapshot.kept(*roots) as changed, _unnoticed(snapshot) as guard:
            point = torch.ones_like(x[:rows], requires_grad=x.requires_grad)
            _, recorder = _recorded(fn, point, few, snapshot)
    except Exception as error:  # of the callable's own, on a part of the batch
        if "saved tensor hooks" in str(error):
            return "it uses torch.func, which cannot be recorded; torch.autograd.grad with create_graph=True can"
        return str(error)
    found = guard.reason or recorder.reason or (changed and f"a call of it changes {', '.join(changed)}")
    return found or (f"{recorder.lost} of x has no rule" if recorder.lost else "it is not a chain of layers")


def _averaged(fn: Any) -> Any:
    """The module whose forward is all that an `AveragedModel` calls; anything else as it is."""
    plain_call = type(fn) is AveragedModel and "forward" not in vars(fn) and not any(vars(fn).get(n) for n in HOOKS)
    return fn.module if plain_call else fn


def _own(fn: Any, x: Tensor, cond: Any) -> Reading | None:
    """One of fastscore's networks, or the score of one, read from its layers."""
    net: Any = fn
    kind = "energy" if isinstance(fn, EnergyMLP) else "score"
    if isinstance(fn, types.MethodType) and fn.__func__ is EnergyMLP.score:
        net, kind = fn.__self__, "energy_score"
    if type(net) not in (ScoreMLP, EnergyMLP) or torch.is_autocast_enabled(x.device.type) or x.numel() == 0:
        return None
    if any(module._forward_hooks or module._forward_pre_hooks for module in net.modules()):
        return None
    if "forward" in net.__dict__ or not all(plain(layer) and layer.bias is not None for layer in net.layers):
        return None
    mlp, rows = net.structure(), x.flatten(1)
    if rows.shape[1] != mlp.dim or any(weight.dtype != x.dtype for weight in mlp.weights):
        return None
    shifts = net.shifts(cond, rows)
    added = (None,) * len(mlp.weights) if shifts is None else (*(u.expand(len(x), -1) for u in shifts), None)
    return Reading(mlp, added, None, None, None, kind)


def _readable(x: Tensor, cond: object) -> bool:
    """Whether the arguments are ordinary tensors, outside of autocast and of every module hook."""
    if type(x) not in (Tensor, torch.nn.Parameter) or type(cond) not in (Tensor, torch.nn.Parameter, type(None)):
        return False
    if x.dim() < 2 or x.numel() == 0 or not x.is_floating_point() or x.layout is not torch.strided:
        return False
    if torch.is_autocast_enabled(x.device.type):
        return False
    return x.dtype in _TOLERANCE and not torch.nn.modules.module._has_any_global_hook()


def _program(fn: Any, x: Tensor, cond: Tensor | None) -> Program | None:
    """The cached program for fn and arguments like these, recorded where there is none."""
    roots = roots_of(fn)
    entry = entry_of(roots)
    batch = x.shape[0]
    batched = cond is not None and cond.dim() > 0 and cond.shape[0] == batch
    rows = min(batch, _ROWS)
    signature = (
        rows,
        x.shape[1:],
        x.dtype,
        x.device,
        x.requires_grad,
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        batched,
    ) + (() if cond is None else (cond.shape[batched:], cond.dtype, cond.device, cond.requires_grad))
    key: Hashable = (signature, x.shape) if signature in entry.sized else signature
    if key in entry.programs:
        program = entry.programs[key]
        if program is None or not program.stale():
            return program
    if entry.given_up():
        return None
    if torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
        raise DeclinedError("another mode would see the calls made to record")
    few = cond[:rows] if cond is not None and batched else cond
    with entry.snapshot.kept(*roots) as changed:
        program, sized = _record(fn, x[:rows], few, entry.snapshot) if key is signature else (None, True)
        if sized:
            entry.sized.add(signature)
            key = (signature, x.shape)
            if batch > rows or program is None:
                program, _ = _record(fn, x, cond, entry.snapshot)
    if len(entry.programs) >= _SHAPES:
        entry.programs.clear()
    if changed or not entry.snapshot.holds(*roots):
        program = None
        entry.changed()
    else:
        entry.changes = 0
    entry.programs[key] = program
    return program


def _record(fn: Any, x: Tensor, cond: Tensor | None, snapshot: Snapshot) -> tuple[Program | None, bool]:
    """Record fn at a random point shaped like x and check the program at another.

    Returns:
        The program or None, and whether it is for these sizes only, or might be found with the sizes of the batch.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    points = [
        torch.randn(x.shape, generator=generator, dtype=torch.float32, device="cpu").to(device=x.device, dtype=x.dtype)
        for _ in range(2)
    ]
    with _unnoticed(snapshot) as guard:
        try:
            program, recorder = _recorded(fn, points[0], cond, snapshot)
            sized = recorder.sized and program is not None
            if program is not None and not _agrees(program, fn, points[1].requires_grad_(x.requires_grad), cond):
                program = None
        except Exception:  # fn failed on a part of the batch; on all of it, its own error will tell
            return None, guard.reason is None
    return (program if guard.reason is None else None), sized


@contextlib.contextmanager
def _unnoticed(snapshot: Snapshot) -> Iterator[Guard]:
    """Calls of fn that nobody asked for: they draw nothing and change no tensor that lasts, a checkpoint's included."""
    with Guard(snapshot.tensors.values()) as guard, torch.autograd.graph.saved_tensors_hooks(_itself, _itself):
        yield guard


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _recorded(fn: Any, x: Tensor, cond: Tensor | None, snapshot: Snapshot) -> tuple[Program | None, Recorder]:
    with torch.inference_mode(False), torch.enable_grad():
        point = x.clone().requires_grad_()
        given = None if cond is None else cond.detach().clone()
        if given is not None:
            given.requires_grad_(given.is_floating_point())
        recorder = Recorder(point, given, snapshot.tensors, _RULES)
        try:
            with recorder:
                output = fn(point) if given is None else fn(point, given)
            symbol = recorder.symbol(output) if isinstance(output, Tensor) and recorder.reason is None else None
        except DeclinedError:
            symbol = None
        if recorder.reason is not None or not isinstance(symbol, (Affine, Descent)):
            return None, recorder
        return assemble(recorder, symbol, output), recorder


def _agrees(program: Program, fn: Any, x: Tensor, cond: Tensor | None) -> bool:
    """Whether the program's value is the callable's own."""
    reading, rows = program.run(x, cond), x.detach().flatten(1)
    if reading.kind == "energy_score":
        with torch.enable_grad():
            rows.requires_grad_()
            mine = torch.autograd.grad(reading.value(rows).sum(), rows)[0].neg()
    else:
        mine = reading.value(rows).detach()
    theirs = (fn(x) if cond is None else fn(x, cond)).detach().reshape(mine.shape)
    bound = _TOLERANCE[x.dtype] * (1 + float(theirs.abs().max()))
    return float((mine - theirs).abs().max()) <= bound
