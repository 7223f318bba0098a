"""The tables, the chart and the numbers in the texts, made of the committed results and of nothing else.

python -m bench.report          write them into README.md, bench/README.md, docs/benchmark.svg and docs/*.md
python -m bench.report --check  exit with status 1 if any of them says something else
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.registry import families

ROOT = Path(__file__).parent.parent
FOLDER = Path(__file__).parent / "results"
CHART = ROOT / "docs" / "benchmark.svg"
BEGIN, END = "<!-- figures: python -m bench.report -->", "<!-- end of figures -->"

Results = dict[str, Any]
WIDE = 1.25

TRAINING = {
    "exact, fastscore": ("fastscore, exact",),
    "exact, `autograd.grad` loop": ("loop of autograd.grad",),
    "exact, `vmap(jacrev)`, also compiled": ("vmap(jacrev)", "torch.compile of vmap(jacrev)"),
    "exact, JAX `jacrev`": ("JAX, jacrev", "JAX, jacfwd of grad"),
    "exact, closed form in JAX": ("JAX, closed form",),
    "Hutchinson, fastscore": ("fastscore, Hutchinson",),
    "Hutchinson, double backward": ("sliced score matching, double backward",),
    "denoising, fastscore": ("fastscore, denoising",),
    "denoising, `torch.compile`": (
        "torch.compile of denoising",
        "torch.compile of denoising, noise drawn outside",
        "torch.compile of denoising, reduce-overhead",
    ),
    "denoising, CUDA graph": ("CUDA graph of denoising",),
}
SAMPLING = {
    "fastscore": ("fastscore",),
    "fastscore, a score it cannot read": (
        "fastscore, a score it does not know",
        "fastscore, a density it does not know",
    ),
    "`torch.compile`": (
        "torch.compile",
        "torch.compile, noise drawn outside",
        "torch.compile, max-autotune",
        "torch.compile, reduce-overhead",
        "torch.compile of torch.randn",
    ),
    "CUDA graph": ("CUDA graph of naive eager", "CUDA graph of torch.compile"),
    "JAX": ("JAX, lax.scan", "JAX", "JAX, threefry"),
    "torchebm": ("torchebm, LangevinDynamics",),
    "blackjax": ("blackjax, overdamped Langevin", "blackjax, mala"),
}


UNREAD = {
    "fastscore, a score it does not know": "a score it cannot read",
    "fastscore, a density it does not know": "a density it cannot read",
}


def newest(device: str, folder: Path = FOLDER) -> Results | None:
    """The latest committed results of a device, None where there are none."""
    found: list[Results] = [json.loads(path.read_text()) for path in folder.glob(f"{device}*.json")]
    return max(found, key=lambda results: str(results["machine"]["date"]), default=None)


def others() -> list[Results]:
    """What was measured on further machines, for comparison."""
    return [json.loads(path.read_text()) for path in sorted(FOLDER.glob("other*.json"))]


def _two_digits(figure: float) -> str:
    """As people write it: 0.93, 1.1, 14, 110."""
    return f"{figure:.2g}" if figure < 99.5 else f"{float(f'{figure:.2g}'):.0f}"


def cells(row: dict[str, Any], columns: dict[str, Sequence[str]], inverse: bool) -> list[str]:
    """The ratios of a case under the columns, empty where there is none; `inverse` as so many times as fast.

    Of a column's several forms the best is told.
    Quartiles that are more than a quarter apart are told with it.
    """
    found = []
    for names in columns.values():
        rows = sorted((row["rows"][name] for name in names if name in row["rows"]), key=lambda found: found["ratio"])[
            :1
        ]
        figures = [rows[0]["ratio"], *rows[0]["spread"]] if rows else []
        ratio, *ends = [_two_digits(1 / figure if inverse else figure) for figure in figures] or [""]
        wide = bool(rows) and rows[0]["spread"][1] > WIDE * rows[0]["spread"][0]
        found.append(f"{ratio} ({' to '.join(sorted(ends, key=float))})" if wide else ratio)
    return found


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table without the columns in which nothing stands."""
    kept = [i for i in range(len(header)) if i == 0 or any(row[i] for row in rows)]
    lines = [[header[i] for i in kept], ["---"] * len(kept), *([row[i] for i in kept] for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def tables(results: Results) -> list[str]:
    """The two tables of the README and the machine they were measured on."""
    cases = [case for case in results["cases"] if case["headline"]]
    training = [case for case in cases if case["family"] in ("divergence", "divergence of energies")]
    sampling = [case for case in cases if case["family"] in ("chains", "mala", "steps", "noise")]
    return [
        "**A training step**, time relative to an eager denoising step of the same network (lower is better; 1 is the",
        "price of denoising score matching):",
        "",
        *markdown(["", *TRAINING], [[case["name"], *cells(case, TRAINING, False)] for case in training]),
        "",
        "**Sampling**, how many times as fast as naive eager PyTorch (higher is better):",
        "",
        *markdown(["", *SAMPLING], [[case["name"], *cells(case, SAMPLING, True)] for case in sampling]),
        "",
        f"*{described(results)}. B rows, D dimensions, L hidden layers of H; medians of interleaved rounds;*",
        "*quartiles in brackets where they are more than a quarter apart.*",
    ]


def described(results: Results) -> str:
    """The machine, the versions, the date and the commit."""
    m = results["machine"]
    rivals = "".join(f", {name} {version}" for name, version in m["rivals"].items())
    return f"{named(m)}, {m['threads']} threads, PyTorch {m['torch']}{rivals}, {m['date']}, commit {m['commit']}"


def named(machine: dict[str, Any]) -> str:
    """A processor by its vectors too, if they are recorded: a virtual machine does not tell its model."""
    return machine["device"] + (f" with {machine['vectors']}" if "vectors" in machine else "")


def front(cpu: Results, gpu: Results | None) -> str:
    """What the README shows."""
    chart = "![Cost of exact score matching by dimension, and speed of sampling](docs/benchmark.svg)"
    lines = [chart, "", *tables(cpu), ""]
    return "\n".join(lines + (["On a GPU:", "", *tables(gpu)] if gpu else ["GPU: not measured yet."]))


def lost(results: Results) -> Iterator[list[str]]:
    """Every case and kind of work at which a rival is faster than fastscore: case, rival, how much.

    A case whose score fastscore was kept from reading is told as one of its own.
    """
    for case in results["cases"]:
        rows = case["rows"]
        for name, row in rows.items():
            ours = [r for n, r in rows.items() if n in mine(name, row["law"])]
            if ours and "fastscore" not in name and row["ratio"] < ours[0]["ratio"]:
                yield [case["name"], name, f"{ours[0]['ratio'] / row['ratio']:.3g}"]
        for unread, what in UNREAD.items():
            faster = [n for n in rows if unread in rows and rows[n]["ratio"] < rows[unread]["ratio"]]
            for name in (n for n in faster if "fastscore" not in n):
                yield [f"{case['name']}, {what}", name, f"{rows[unread]['ratio'] / rows[name]['ratio']:.3g}"]


def held(results: Results) -> str:
    """Where fastscore's memory is more than a rival's: its peak, and the least of what computes the same trace."""
    loop = "loop of autograd.grad"
    points = [point for point in results["memory"] if "fastscore, exact" in point["mebibytes"]]
    ours = [point["mebibytes"]["fastscore, exact"] for point in points]
    known = [point for point in points if loop in point["mebibytes"]]
    if not known or "cuda" in results["machine"]:
        return ""
    least = min(known, key=lambda point: float(point["mebibytes"][loop]))
    return (
        f"In memory at small batches: an exact step works in {min(ours):.3g} to {max(ours):.3g} MiB at every size "
        "below, and each thread keeps its part, up to 64 MiB, as long as the process lives. A "
        f"{loop} takes {least['mebibytes'][loop]:.3g} at B={least['B']} D={least['D']}."
    )


def mine(name: str, law: str) -> tuple[str, ...]:
    """Our providers that do the same work as a rival of that law."""
    if law == "exact":
        return ("fastscore", "fastscore, exact")
    ours = {"hutchinson": "Hutchinson", "sliced": "sliced (5)", "denoising": "denoising"}
    return (f"fastscore, {ours[law]}",) if law in ours else ()


def everything(results: Results) -> Iterator[str]:
    """All cases, one list a family, a line a case: every provider's ratio and its quartiles, the fastest first."""
    for family in dict.fromkeys(case["family"] for case in results["cases"]):
        cases = [case for case in results["cases"] if case["family"] == family]
        yield from (f"### {cases[0]['title']}", "")
        for case in cases:
            base = case["rows"][case["base"]]["seconds_per_unit"]
            rows = sorted(case["rows"].items(), key=lambda item: item[1]["ratio"])
            found = [f"{name} {r['ratio']:.3g} [{', '.join(f'{q:.3g}' for q in r['spread'])}]" for name, r in rows]
            found += [f"*refused*: {name} ({reason})" for name, reason in case["refused"].items()]
            yield f"- **{case['name']}** ({case['base']}: {duration(base)} per {case['unit']}): {'; '.join(found)}"
        yield ""


def duration(seconds: float) -> str:
    """Three digits in a unit that suits."""
    scale, unit = next(
        (s, u) for s, u in ((1, "s"), (1e3, "ms"), (1e6, "µs"), (1e9, "ns")) if seconds * s >= 1 or u == "ns"
    )
    return f"{seconds * scale:.3g} {unit}"


def not_run(results: Results) -> list[str]:
    """Rivals with an error or another environment's lack, each once; sizes left out are not told."""
    told: dict[tuple[str, str], list[str]] = {}
    for case in results["cases"]:
        for name, reason in case["not_run"].items():
            if not reason.startswith(("left out", "too ", "not for", "for CPUs")):
                told.setdefault((name, " ".join(reason.split()).rstrip(".")), []).append(case["family"])
    left = [f"- No time for {'; '.join(results['not_reached'])}."] if results.get("not_reached") else []
    left += [f"- Failed: {name}: {why}" for name, why in results.get("failed", {}).items()]
    left += [f"- Newer than this record: {'; '.join(absent)}."] if (absent := lacking(results)) else []
    return left + [f"- {name}: {why} ({', '.join(sorted(set(families)))})" for (name, why), families in told.items()]


def lacking(results: Results) -> list[str]:
    """Cases that there are now and that the record does not speak of."""
    spoken = {case["name"] for case in results["cases"]} | {*results.get("not_reached", ()), *results.get("failed", ())}
    device = "cuda" if "cuda" in results["machine"] else "cpu"
    return [case.name for family in families() for case in family.cases(device) if case.name not in spoken]


def memory(results: Results) -> list[str]:
    """Peak memory by B and by D."""
    names = list(dict.fromkeys(name for point in results["memory"] for name in point["mebibytes"]))
    rows = [
        [f"B={p['B']} D={p['D']}", *(f"{p['mebibytes'][n]:.3g}" if n in p["mebibytes"] else "" for n in names)]
        for p in results["memory"]
    ]
    return markdown(["MiB", *names], rows)


def full(cpu: Results, gpu: Results | None, elsewhere: Sequence[Results] = ()) -> str:
    """What bench/README.md shows."""
    lines = []
    for results in [cpu, *elsewhere] + ([gpu] if gpu else []):
        lines += [f"## {named(results['machine'])}", "", f"{described(results)}.", ""]
        lines += [
            "### Where fastscore loses",
            "",
            "How many times as fast as fastscore a rival is at the same work:",
            "",
        ]
        lines += [*markdown(["", "rival", "times as fast"], list(lost(results))), ""]
        lines += [held(results), ""] if held(results) else []
        lines += ["### Not run", "", *(not_run(results) or ["Nothing was left out."]), ""]
        lines += ["### Peak memory of a training step above what was there (L=2, H=128)", "", *memory(results), ""]
        lines += everything(results)
    return "\n".join(lines + ([] if gpu else ["No GPU has been measured yet."])).rstrip()


def replaced(text: str, made: str) -> str:
    """The text with `made` between the two marks."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{made}\n{END}{rest.split(END)[1]}"


def main(argv: list[str] | None = None) -> int:
    """Write the tables and the chart, or check that they are there."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit with status 1 if something would")
    check = parser.parse_args(argv).check
    cpu, gpu = newest("cpu"), newest("cuda")
    assert cpu is not None
    from bench import chart, prose

    made = {ROOT / "README.md": front(cpu, gpu), ROOT / "bench" / "README.md": full(cpu, gpu, others())}
    wanted = {path: replaced(path.read_text(), block) for path, block in made.items()} | dict(prose.files())
    wrong = [path for path, text in wanted.items() if path.read_text() != text]
    if chart.digest(cpu) not in CHART.read_text():
        wrong.append(CHART)
    if check:
        print(
            "\n".join(f"{path.relative_to(ROOT)} is not what the results say: python -m bench.report" for path in wrong)
        )
        return int(bool(wrong))
    for path, text in wanted.items():
        path.write_text(text)
    chart.draw(cpu, CHART)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
