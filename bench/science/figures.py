"""The figures, each drawn from the recorded results. Colours are Okabe and Ito's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

FIGURES = Path(__file__).parents[1] / "figures"
COLOURS = ("#000000", "#0072B2", "#56B4E9", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#999999")


def draw(results: dict[str, Any]) -> None:
    """Every figure whose results are there."""
    FIGURES.mkdir(exist_ok=True)
    for part, make in {"noise": _noise, "small_sigma": _small_sigma, "ula": _ula, "descent": _descent}.items():
        if part in results:
            make(results[part]["found"]).savefig(FIGURES / f"{part}.png", dpi=90)


def _noise(found: dict[str, Any]) -> Figure:
    """A gradient's variance, and variance x seconds: what averaging steps reaches in equal time."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    variance, seconds = found["variance"], found["seconds_per_step"]
    for i, (name, colour) in enumerate(zip(next(iter(variance.values())), COLOURS, strict=False)):
        places = [k + 0.2 * (i - 1.5) for k in range(len(variance))]
        left.bar(places, [v[name] for v in variance.values()], 0.18, color=colour, label=name)
        costs = [seconds[case][name] / seconds[case]["exact"] for case in variance]
        right.bar(places, [c * v[name] for c, v in zip(costs, variance.values(), strict=True)], 0.18, color=colour)
    for axes, title in ((left, "Variance of a step's gradient"), (right, "The same at equal time")):
        axes.axhline(1, color=COLOURS[-1], lw=0.8)
        axes.set(yscale="log", xticks=range(len(variance)), xticklabels=list(variance), title=title, ylabel="exact = 1")
    left.legend(frameon=False, fontsize=8)
    return figure


def _small_sigma(found: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axes = figure.subplots()
    for (name, values), colour in zip(found["variance"].items(), (COLOURS[4], COLOURS[3]), strict=True):
        axes.loglog(found["sigma"], values, "o-", color=colour, label=name)
    axes.axhline(1, color=COLOURS[0], label="exact implicit, on the same blurred data")
    axes.set(xlabel="sigma", ylabel="variance of a step's gradient, exact = 1", title="Denoising at small noise, D = 8")
    axes.legend(frameon=False)
    return figure


def _ula(found: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (a, curves), colour in zip(found["first_steps"].items(), COLOURS[1::2], strict=False):
        left.plot(found["k"], curves["exact"], color=colour, label=f"a = {a}")
        left.plot(found["k"], curves["measured"], "o", color=colour)
    left.axhline(1, color=COLOURS[-1], lw=0.8)
    left.set(xscale="log", xlabel="steps k", ylabel="variance", title="Langevin dynamics: k steps (lines: exact law)")
    left.legend(frameon=False)
    sizes, stationary = found["step_size"], found["stationary"]
    right.plot(sizes, stationary["exact"], color=COLOURS[1], label="1 / (1 - a / 2)")
    styles = {"langevin": ("o", "Langevin"), "mala": ("s", "MALA"), "underdamped": ("^", "BAOAB, step sqrt(2 a)")}
    for (name, (marker, label)), colour in zip(styles.items(), (COLOURS[1], COLOURS[4], COLOURS[5]), strict=True):
        right.plot(sizes, stationary[name], marker, color=colour, label=label)
    right.axhline(1, color=COLOURS[-1], lw=0.8)
    right.set(xlabel="step size a", ylabel="stationary variance (target 1)", title="What bias is left")
    right.legend(frameon=False)
    return figure


def _descent(found: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axes = figure.subplots()
    seconds = found["seconds_per_step"]
    for (name, curve), colour in zip(found["curves"].items(), COLOURS, strict=False):
        style = "--" if name.startswith("denoising") else "-"
        axes.plot([step * seconds[name] for step in found["steps"]], curve, style, color=colour, label=name)
    axes.set(yscale="log", xlabel="seconds of training steps", ylabel="relative Fisher divergence, held out")
    axes.set_xlim(0, 1.1 * found["steps"][-1] * seconds["exact"])
    axes.legend(frameon=False, fontsize=8)
    return figure
