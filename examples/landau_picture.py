"""The picture of landau.py: density, moments and entropy, errors, and what a training step costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

import bkw


def draw(results: dict[str, Any], path: Path) -> None:
    """The picture, from the recorded figures and nothing else."""
    solution, timing = results["solution"], results["timing"]
    history, colours = solution["history"], ("#0072B2", "#D55E00", "#999999")
    figure = Figure(figsize=(11, 7), layout="constrained")
    (shape, moments), (errors, cost) = figure.subplots(2, 2)

    for speeds, colour in zip(solution["speeds"], colours, strict=False):
        shape.plot(speeds["r"], speeds["exact"], color=colour, label=f"t = {speeds['t']:g}, exact")
        shape.plot(speeds["r"], speeds["found"], "o", ms=4, color=colour, label=f"t = {speeds['t']:g}, particles")
    shape.set(xlabel="|v|", ylabel="f(t, v)", title="The hole in the middle fills up")

    times = history["t"]
    moments.plot(times, [bkw.fourth_moment(t) for t in times], color=colours[0], label="fourth moment, exact")
    moments.plot(
        times[::5], history["fourth_moment"][::5], "o", ms=4, color=colours[0], label="fourth moment, particles"
    )
    moments.set(xlabel="t", ylabel="mean of $|v|^4$", title="Moments and entropy")
    right = moments.twinx()
    right.plot(times, [bkw.entropy(t) for t in times], color=colours[1], label="entropy, exact")
    right.plot(times[::5], history["entropy"][::5], "s", ms=4, color=colours[1], label="entropy, particles")
    right.set_ylabel("mean of log f")
    handles = [*moments.get_lines(), *right.get_lines()]
    moments.legend(handles, [str(line.get_label()) for line in handles], frameon=False, loc=(0.5, 0.3), fontsize=8)

    errors.plot(times, history["score_error"], color=colours[0], label="score s")
    errors.plot(times, history["velocity_error"], color=colours[1], label="velocity U")
    particles = f"{solution['settings']['particles']:,} particles"
    errors.set(xlabel="t", ylabel="relative error, root mean square", title=f"Against the exact solution: {particles}")
    errors.set_ylim(bottom=0)

    seconds = timing["seconds_per_step"]
    bars = cost.barh(list(seconds), [1e3 * s for s in seconds.values()], color=[colours[0], colours[2], colours[2]])
    cost.bar_label(bars, fmt="%.0f ms", padding=3)
    cost.invert_yaxis()
    cost.set_xlim(0, 1.2e3 * max(seconds.values()))
    where = (
        f"{timing['particles']:,} particles, {timing['machine']['processor']}, {timing['machine']['threads']} threads"
    )
    cost.set(xlabel="ms", title=f"One training step on exact divergences\n{where}")
    for axes in (shape, errors):
        axes.legend(frameon=False)
    figure.savefig(path, dpi=90)
