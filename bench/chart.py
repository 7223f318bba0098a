"""The README's chart: what an exact trace costs as D grows, and how fast chains are, from one JSON of results.

The file carries a digest of the figures it shows, so that a test can tell whether it is of these results whatever
version of matplotlib drew it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.report import SAMPLING

CURVES = {
    "fastscore, exact": "fastscore, exact",
    "fastscore, Hutchinson": "fastscore, Hutchinson",
    "sliced score matching, double backward": "sliced score matching",
    "loop of autograd.grad": "loop of autograd.grad",
    "vmap(jacrev)": "vmap(jacrev)",
    "JAX, jacrev": "JAX, jacrev",
}
BARS = {name.strip("`"): SAMPLING[name] for name in ("fastscore", "`torch.compile`", "JAX", "torchebm", "blackjax")}
COLOURS = {"fastscore": "#c0392b"}
GREYS = ("#34495e", "#7f8c8d", "#2980b9", "#27ae60", "#8e44ad", "#f39c12")


def shown(results: dict[str, Any]) -> dict[str, Any]:
    """What the chart shows: ratios by D for the largest set of cases that differ in D alone, and those of chains."""
    curves: dict[str, list[list[float]]] = {name: [] for name in CURVES}
    for case in results["cases"]:
        s = case["settings"]
        if case["family"] == "divergence" and (s["B"], s["L"], s["H"]) == (results_batch(results), 2, 128):
            for name in CURVES:
                if name in case["rows"]:
                    curves[name].append([s["D"], case["rows"][name]["ratio"]])
    chains = [case for case in results["cases"] if case["family"] == "chains" and case["headline"]]
    bars = {case["name"]: dict(_best(case["rows"])) for case in chains}
    machine = {name: results["machine"][name] for name in ("device", "threads", "date")}
    return {"curves": {name: sorted(points) for name, points in curves.items()}, "bars": bars, "machine": machine}


def _best(rows: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Bars of a case, each of the best of its forms."""
    for label, forms in BARS.items():
        if ratios := [rows[name]["ratio"] for name in forms if name in rows]:
            yield label, min(ratios)


def results_batch(results: dict[str, Any]) -> int:
    """The batch at which most dimensions were measured."""
    batches = [c["settings"]["B"] for c in results["cases"] if c["family"] == "divergence"]
    return max(sorted(set(batches)), key=batches.count)


def digest(results: dict[str, Any]) -> str:
    """Of what is shown."""
    return hashlib.sha256(json.dumps(shown(results), sort_keys=True).encode()).hexdigest()


def draw(results: dict[str, Any], path: Path) -> None:
    """Write the chart as an SVG, the same bytes for the same results and matplotlib."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    data = shown(results)
    with mpl.rc_context(
        {
            "svg.hashsalt": "fastscore",
            "svg.fonttype": "none",
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    ):
        figure = Figure(figsize=(10, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        _curves(left, data["curves"], results_batch(results))
        _bars(right, data["bars"])
        machine = data["machine"]
        figure.supxlabel(
            f"{machine['device']}, {machine['threads']} threads, {machine['date']}", fontsize=7, x=0.99, ha="right"
        )
        figure.savefig(path, format="svg", metadata={"Date": None, "Description": digest(results)})
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")


def _colour(name: str, index: int) -> str:
    return COLOURS.get(name.split(",")[0], GREYS[index % len(GREYS)])


def _curves(axes: Any, curves: dict[str, list[list[float]]], batch: int) -> None:
    for index, (name, points) in enumerate(curves.items()):
        if points:
            ours = name.startswith("fastscore")
            style = "--" if "Hutchinson" in name or "sliced" in name else "-"
            axes.plot(
                *zip(*points, strict=True),
                style,
                marker="o",
                markersize=3,
                linewidth=2 if ours else 1,
                color=_colour(name, index),
                label=CURVES[name],
            )
    axes.axhline(1, color="black", linewidth=0.6, linestyle=":")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sorted({x for points in curves.values() for x, _ in points}))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("dimensions D")
    axes.set_ylabel("time of a training step / eager denoising step")
    axes.set_title(f"Score matching, {batch} rows, 2 hidden layers of 128", fontsize=9)
    axes.legend(frameon=False, fontsize=8)


def _bars(axes: Any, bars: dict[str, dict[str, float]]) -> None:
    present = [name for name in BARS if any(name in row for row in bars.values())]
    height = 0.8 / max(1, len(present))
    for index, name in enumerate(present):
        found = [(place, row[name]) for place, row in enumerate(bars.values()) if name in row]
        places = [place + height * index - 0.4 for place, _ in found]
        axes.barh(
            places,
            [1 / ratio for _, ratio in found],
            height,
            color=_colour(name, index),
            label=name,
            align="edge",
        )
    axes.axvline(1, color="black", linewidth=0.6, linestyle=":")
    axes.set_yticks(range(len(bars)), list(bars))
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.set_xlabel("times as fast as naive eager PyTorch")
    axes.set_title("Chains of Langevin dynamics", fontsize=9)
    axes.legend(frameon=False, fontsize=8)
