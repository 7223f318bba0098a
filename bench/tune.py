"""The launch table from measurements: options near an entry's are timed on a GPU, and the faster ones adopted.

    python -m bench.tune                          on a GPU: time them until the time is over, and record them
    python -m bench.tune --only mlp_ --out FILE   entries of operations whose names begin so; a file is gone on from
    python -m bench.tune --adopt FILE             anywhere: write what is faster to the launch table

A time is that of the whole call of the public loss that launches the entry's kernel, at its largest sizes. What is
faster is adopted only if the audit finds no fault with it in any kind of network; `python -m bench.audit --risen`
records it then, and another round may follow.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import functools
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import fastscore
from bench import check, clock
from bench.registry import Arrays, quoted

PLACES = {
    "ROWS": (16, 32, 64, 128),
    "COLUMNS": (16, 32, 64, 128),
    "UNITS": (16, 32, 64),
    "BLOCK": (32, 64, 128, 256),
    "num_warps": (4, 8),
    "num_stages": (1, 2, 3),
}
"""What an option may be; the others follow from an entry's sizes."""
ROWS, FEW = 1 << 18, 1 << 10  # samples: to be timed, and to be compiled
FASTER = 0.97  # of the time that the table's options take, in three rounds of four
TOLERANCE = 1e-2  # options change the order of sums, and so what is rounded to bfloat16
PROCESSES = 16  # that compile, at the most
Entry = dict[str, Any]
Options = dict[str, int]
KEYS = ("operation", "precision", "width", "dim", "options", "architectures")  # what names an entry


def main(argv: list[str] | None = None) -> int:
    """Measure, or adopt what was measured."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.tune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", metavar="NAME", help="the beginning of operations' names")
    parser.add_argument("--budget", type=float, default=500.0, metavar="SECONDS", help="begin no entry after so long")
    parser.add_argument("--out", type=Path, default=clock.ROOT / "out" / "tune.json", metavar="FILE")
    parser.add_argument("--adopt", type=Path, metavar="FILE", help="what was measured, to be written to the table")
    given = parser.parse_args(argv)
    if given.adopt:
        adopt(json.loads(given.adopt.read_text()))
    else:
        measure(given.only, given.budget, given.out)
    return 0


# On a GPU ------------------------------------------------------------------------------------------------------------


def measure(only: str, budget: float, out: Path, device: str = "cuda") -> None:
    """Time this device's entries, those that serve H = 128 first; what there is so far is written after each."""
    from fastscore_kernels import table

    begun, architecture = time.monotonic(), table.architecture(torch.device(device))
    found = json.loads(out.read_text()) if out.exists() else {"architecture": architecture, "entries": []}
    found["machine"] = clock.machine(device)
    done = [{key: entry[key] for key in KEYS} for entry in found["entries"]]
    here = (entry for entry in table.entries() if architecture in entry["architectures"])
    wanted = [{key: entry[key] for key in KEYS} for entry in here if entry["operation"].startswith(only)]
    wanted = sorted((entry for entry in wanted if entry not in done), key=lambda entry: entry["width"] < 128)
    workers = min(PROCESSES, os.cpu_count() or 1)
    with concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        tried = [[(o, pool.submit(refusal, entry, o, device, FEW)) for o in near(entry)] for entry in wanted]
        for entry, compiled in zip(wanted, tried, strict=True):
            if time.monotonic() - begun > budget:
                break
            refused = {json.dumps(options): why for options, job in compiled if (why := job.result())}
            rows = timed(entry, [o for o, _ in compiled if json.dumps(o) not in refused], device, ROWS)
            found["entries"].append({**entry, "timed": rows, "refused": refused})
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(found, indent=1) + "\n")
            best = min((row["ratio"] for row in rows), default=1.0)
            name = " ".join(str(entry[key]) for key in KEYS[:4])
            print(f"{name:32} {len(rows)} timed, the fastest takes {best:.2f}; {len(refused)} refused", flush=True)
        pool.shutdown(cancel_futures=True)
    print(f"{len(found['entries'])} of {len(wanted) + len(done)} entries are measured, see {out}")


def near(entry: Entry) -> Iterator[Options]:
    """An entry's options with one of them a place up or down."""
    options = entry["options"]
    for name, places in PLACES.items():
        if name in options:
            at = places.index(options[name])
            yield from ({**options, name: other} for other in (*places[max(0, at - 1) : at], *places[at + 1 : at + 2]))


def refusal(entry: Entry, options: Options, device: str, rows: int) -> str:
    """Why an entry's kernel cannot have these options, "" if it can; it is compiled then, for whoever comes after."""
    call = work(entry, rows, device)
    right = call()
    try:
        with using(entry, options):
            check.close(call(), right, TOLERANCE)
    except Exception as error:  # whatever a compiler, or a driver, says of a tile that does not fit
        return quoted(error) or repr(error)
    return ""


def timed(entry: Entry, tried: list[Options], device: str, rows: int) -> list[dict[str, Any]]:
    """For each of the options the time of the entry's call, to that with the table's."""
    if not tried:
        return []
    call = work(entry, rows, device)

    def turn(options: Options) -> float:
        with using(entry, options):
            return clock.turn(call, device)

    turns = {json.dumps(options): functools.partial(turn, options) for options in (entry["options"], *tried)}
    base = json.dumps(entry["options"])
    found = clock.compare(clock.race(turns, base, 1.0), base)
    return [{"options": options, **found[json.dumps(options)]} for options in tried]


def work(entry: Entry, rows: int, device: str) -> Callable[[], Arrays]:
    """A call of the public loss that asks for this entry: what it returns, or the gradients."""
    family, _, part = entry["operation"].partition("_")
    energy, along = family in ("energy", "curvature"), family in ("estimate", "curvature", "dual")
    gradient = part in ("upper", "lower") or family == "dual"
    depth = int(part) if part.isdigit() else 2
    torch.manual_seed(0)
    net = (fastscore.EnergyMLP if energy else fastscore.ScoreMLP)(entry["dim"], entry["width"], depth=depth).to(device)
    x = torch.randn(max(rows, LEAST.get(family, 0)), entry["dim"], device=device)
    score_fn = net.score if isinstance(net, fastscore.EnergyMLP) else net
    how: dict[str, Any] = {"reduction": "mean" if gradient else "none", "trace": "exact"}
    how |= {"trace": "hutchinson", "n_probes": 1 if family == "dual" else 4, "seed": 0} if along else {}

    def call() -> Arrays:
        with rounding(entry["precision"], device), torch.set_grad_enabled(gradient):
            loss = fastscore.implicit_score_matching(score_fn, x, **how)
            if not gradient:
                return {"loss": loss}
            names, leaves = zip(*net.named_parameters(), strict=True)
            return dict(zip(names, torch.autograd.grad(loss, leaves), strict=True))

    return call


LEAST = {"dual": 1 << 16}
"""Samples below which an entry is not asked for, by family."""


@contextlib.contextmanager
def rounding(precision: str, device: str) -> Iterator[None]:
    """What makes the launchers choose a precision."""
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def using(entry: Entry, options: Options) -> Iterator[None]:
    """The launch table with these options for an entry."""
    from fastscore_kernels import table

    (row,) = (row for row in table.entries() if all(row[key] == entry[key] for key in KEYS))
    before = row["options"]
    try:
        row["options"] = options
        table.options.cache_clear()
        yield
    finally:
        row["options"] = before
        table.options.cache_clear()


# Anywhere ------------------------------------------------------------------------------------------------------------


def adopt(found: dict[str, Any]) -> None:
    """Give the table, for one architecture, the fastest options of every entry that the audit has nothing against."""
    from fastscore_kernels import table

    architecture, entries, changed = found["architecture"], [], 0
    for row in table.entries():
        measured = next((one for one in found["entries"] if all(one[key] == row[key] for key in KEYS)), None)
        options = None
        if measured and architecture in row["architectures"]:
            faster = [one for one in measured["timed"] if one["spread"][1] <= FASTER]
            for one in sorted(faster, key=lambda one: float(one["ratio"])):
                told = faults({**row, "options": one["options"]}, architecture)
                print(*(row[key] for key in KEYS[:5]), "->", one["options"], f"{one['ratio']:.2f}", *told, flush=True)
                if not told:
                    options, changed = one["options"], changed + 1
                    break
        others = [name for name in row["architectures"] if options is None or name != architecture]
        if options is not None:
            entries.append({**row, "architectures": [architecture], "options": options})
        if others:
            entries.append({**row, "architectures": others})
    machine = {key: found["machine"].get(key) for key in ("device", "triton", "torch", "date", "commit")}
    provenance = table.provenance()
    provenance["measured"] = {**provenance["measured"], architecture: machine}
    lines = ",\n".join(f"  {json.dumps(entry)}" for entry in entries)
    table.PATH.write_text(f'{{\n "provenance": {json.dumps(provenance)},\n "entries": [\n{lines}\n ]\n}}\n')
    print(f"{changed} of {len(found['entries'])} entries have other options on an {architecture} now")


def faults(entry: Entry, architecture: str) -> list[str]:
    """What the audit has against an entry, in any kind of network that it looks at."""
    from bench import audit_mlp, audit_whole

    module = audit_mlp if entry["operation"].startswith(audit_mlp.FAMILIES) else audit_whole
    return [f"{case.name}: {fault}" for case in module.kinds(entry) for fault in case.compile(architecture).faults()]


if __name__ == "__main__":
    raise SystemExit(main())
