"""The comparison: every provider of every case checked, then raced against the others."""

from __future__ import annotations

import functools
import gc
import math
import os
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch

from bench import clock
from bench.registry import Arrays, Call, Case, Family, NotRunError, Provider, WrongError, quoted
from bench.rivals import Rivals

Turns = dict[str, Callable[[], float]]
DISTURBED = 0.05
"""The share of the machine that others may have; an idle one gives them a hundredth."""


def compare(
    family: Family, case: Case, device: str, rivals: Rivals | None, seconds: float, patience: float = math.inf
) -> dict[str, Any]:
    """One case's row of the results: what was raced, refused and not run, and why.

    Args:
        family: of the case.
        case: what to measure.
        device: "cpu" or "cuda".
        rivals: the other environment's worker; None leaves its providers out.
        seconds: for the race.
        patience: after so many seconds no further provider is built, but for the base and fastscore's.
    """
    begun = time.monotonic()
    arrays = family.inputs(case, device)
    torch.manual_seed(20)  # the checks draw the same in every run, and nothing that the inputs were made of
    reference = family.reference(case, arrays)
    turns: Turns = {}
    refused: dict[str, str] = {}
    not_run: dict[str, str] = dict(family.never)

    def drop(name: str, error: Exception) -> None:
        turns.pop(name, None)
        not_run[name] = str(error) if isinstance(error, NotRunError) else quoted(error)
        traceback.clear_frames(error.__traceback__)  # which hold what it was made of
        if not isinstance(error, NotRunError):
            emptied(device)

    for name, provider in family.providers.items():
        try:
            if time.monotonic() > begun + patience and name != family.base and not name.startswith("fastscore"):
                raise NotRunError("no time was left for it")
            turns[name] = admit(family, case, arrays, reference, name, provider, rivals)
        except WrongError as error:
            refused[name] = str(error)
        except Exception as error:  # of torch.compile, mostly: what it says is a result, too
            drop(name, error)
    if family.base not in turns:
        raise RuntimeError(f"{case.name}: no {family.base}: {refused | not_run}")
    others = clock.Others([os.getpid()] + ([rivals.process.pid] if rivals and rivals.process else []))
    rows = clock.compare(clock.race(turns, family.base, seconds, drop), family.base)
    disturbed = others.share()
    for name, row in rows.items():
        row |= {"seconds_per_unit": clock.rounded(row["seconds"] / case.units), "law": family.providers[name].law}
    turns.clear()
    del arrays
    release(device)
    described = {
        "family": family.name,
        "title": family.title,
        "name": case.name,
        "settings": dict(case.settings),
        "headline": case.headline,
    }
    work = {"unit": family.unit, "units": case.units, "bytes": case.bytes, "flops": case.flops, "others": disturbed}
    return described | work | {"base": family.base, "rows": rows, "refused": refused, "not_run": not_run}


def admit(
    family: Family,
    case: Case,
    arrays: Arrays,
    reference: Any,
    name: str,
    provider: Provider,
    rivals: Rivals | None = None,
) -> Callable[[], float]:
    """What times one turn of a provider whose results are right.

    Raises:
        WrongError: they are not.
        NotRunError: the case is not for it, or it is not there.
    """
    device = next(iter(arrays.values())).device.type
    if reason := provider.unfit(case, device):
        raise NotRunError(reason)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Inductor about itself
        if provider.build is not None:
            call = provider.build(case, arrays)
            accept(family, case, arrays, reference, provider, call)
            return functools.partial(_turn, call, device)
        if rivals is None:
            raise NotRunError("rivals were left out")
        accept(
            family, case, arrays, reference, provider, rivals.build(family.name, case, arrays, name, provider.package)
        )
        return functools.partial(rivals.turn, name)


def accept(family: Family, case: Case, arrays: Arrays, reference: Any, provider: Provider, call: Call) -> None:
    """Raise `WrongError` unless the results of `call` are right."""
    torch.manual_seed(21)
    wanted = family.calls.get(provider.law, 1)
    results = [{key: value.detach().clone() for key, value in call().items()} for _ in range(wanted)]
    family.check(case, arrays, reference, provider.law, results)


def _turn(call: Call, device: str) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return clock.turn(call, device)


def release(device: str) -> None:
    """Forget what was compiled and kept for a case."""
    torch.compiler.reset()
    emptied(device)


def emptied(device: str) -> None:
    """Give back the memory that nobody holds any more."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def table(result: dict[str, Any]) -> Iterable[str]:
    """Lines for a terminal."""
    base = result["rows"][result["base"]]["seconds_per_unit"]
    yield f"\n{result['name']}: {result['base']} takes {1e9 * base:.3g} ns per {result['unit']}"
    for name, row in sorted(result["rows"].items(), key=lambda item: item[1]["ratio"]):
        rates = [
            f"{result[kind] / row['seconds_per_unit'] * 1e-9:.4g} G{letter}/s"
            for kind, letter in (("bytes", "B"), ("flops", "flop"))
            if result[kind] and name in (result["base"], "fastscore")
        ]
        low, high = row["spread"]
        yield f"  {row['ratio']:9.3g}  [{low:.3g}, {high:.3g}]  {name}  " + ", ".join(rates)
    if (result["others"] or 0.0) > DISTURBED:
        yield f"    DISTURBED: {result['others']:.0%} of the machine went to others; measure again when it is idle"
    for name, reason in result["refused"].items():
        yield f"    REFUSED  {name}: {reason}"
    for name, reason in result["not_run"].items():
        yield f"    not run  {name}: {reason.splitlines()[0]}"


class Budget:
    """How much time there is, and how much of what the cases ask for they get.

    Args:
        seconds: for everything.
        wanted: by the races of all cases, which get half the time at the most; None for races as short as can be.
    """

    def __init__(self, seconds: float, wanted: float | None) -> None:
        self.end = time.monotonic() + seconds
        self.share = 0.0 if wanted is None else min(1.0, 0.5 * seconds / max(wanted, 1e-9))

    def race(self, case: Case) -> float:
        """Seconds that a case's race gets."""
        return self.share * case.seconds

    @property
    def left(self) -> float:
        """Seconds until the time is up."""
        return self.end - time.monotonic()
