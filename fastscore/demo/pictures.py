"""The figures of the demonstrations. Colours are Okabe and Ito's, which colour-blind readers can tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

Array = NDArray[Any]

BLACK, ORANGE, BLUE, GREEN, VERMILION, GREY = "#000000", "#E69F00", "#0072B2", "#009E73", "#D55E00", "#999999"
SIDE = 8  # pixels along the side of a digit
LAST_PIXEL = 16.0


class DigitPictures(NamedTuple):
    """What the pictures of the digits show. Images are rows of 64 pixels, 0 (paper) to 16 (ink)."""

    real: Array  # [N, 64]
    sampled: Array  # [N, 64]
    states: Array  # [levels + 1, chains, 64], the way of some chains; last their samples
    sigmas: Array  # [levels]
    losses: Sequence[float]
    checkpoints: Sequence[tuple[int, float]]


class PlanePictures(NamedTuple):
    """What the pictures of the mixture show, in a square from -extent to extent."""

    extent: float
    density: Array  # [G, G], true
    grid: Array  # [A, A, 2], where the arrows are
    true: Array  # [A, A, 2], scores
    learned: Array  # [A, A, 2]
    modes: Array  # [K, 2]
    ascent: Array  # [steps, chains, 2]
    langevin: Array  # [steps, chains, 2]
    cloud: Array  # [N, 2], where all the Langevin chains end
    weights: dict[str, Array]  # label -> share of every mode [K]


def draw_digits(shown: DigitPictures, out: Path) -> list[str]:
    """Writes digits.png, digits_training.png and digits_ladder.png."""
    figure = Figure(figsize=(10, 4.7), layout="constrained")
    left, right = figure.subplots(1, 2)
    _sheet(left, shown.real, 12, 14, "Held-out digits (real)")
    _sheet(right, shown.sampled, 12, 14, "Sampled by annealed Langevin dynamics")

    curve = Figure(figsize=(6.4, 4), layout="constrained")
    _loss_curve(curve.subplots(), shown.losses, shown.checkpoints)

    strip = Figure(figsize=(11, 5), layout="constrained")
    _ladder(strip.subplots(), shown, 8)
    return _save(out, {"digits": figure, "digits_training": curve, "digits_ladder": strip})


def draw_mixture(shown: PlanePictures, out: Path) -> list[str]:
    """Writes mixture_field.png and mixture_sampling.png."""
    field = Figure(figsize=(10, 5), layout="constrained")
    left, right = field.subplots(1, 2, sharex=True, sharey=True)
    _field(left, shown, shown.learned, "Score learned from samples")
    _field(right, shown, shown.true, "True score")

    sampling = Figure(figsize=(13, 4.3), layout="constrained")
    axes = sampling.subplots(1, 3)
    _ascent(axes[0], shown)
    _langevin(axes[1], shown, "Langevin dynamics covers the distribution")
    _weights(axes[2], shown.weights)
    return _save(out, {"mixture_field": field, "mixture_sampling": sampling})


def draw_summary(digits: DigitPictures, plane: PlanePictures, out: Path) -> list[str]:
    """Writes summary.png: both demonstrations in one small picture."""
    figure = Figure(figsize=(10, 5.7), layout="constrained")
    axes = figure.subplot_mosaic("LLL;SFC", height_ratios=[1, 1.75])
    _ladder(axes["L"], digits, 4)
    _sheet(axes["S"], digits.sampled, 11, 11, "Sampled digits")
    _field(axes["F"], plane, plane.learned, "A score field, learned")
    _langevin(axes["C"], plane, "Langevin dynamics in it")
    return _save(out, {"summary": figure}, dpi=90)


def _save(out: Path, figures: dict[str, Figure], dpi: int = 110) -> list[str]:
    for name, figure in figures.items():
        figure.savefig(out / f"{name}.png", dpi=dpi)
    return [f"{name}.png" for name in figures]


def _tiles(images: Array, rows: int, columns: int, paper: float) -> Array:
    """`[rows * columns, 64]` -> one image, a pixel of paper around each."""
    framed = np.pad(images.reshape(rows, columns, SIDE, SIDE), ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=paper)
    sheet: Array = framed.transpose(0, 2, 1, 3).reshape(rows * (SIDE + 2), columns * (SIDE + 2))
    return sheet


def _sheet(axes: Axes, images: Array, rows: int, columns: int, title: str) -> None:
    sheet = _tiles(images[: rows * columns], rows, columns, 0.0)
    axes.imshow(sheet, cmap="gray_r", vmin=0, vmax=LAST_PIXEL)
    axes.set_title(title, fontsize=11)
    axes.set_axis_off()


def _ladder(axes: Axes, shown: DigitPictures, chains: int) -> None:
    """Every chain a row, every noise level a column."""
    columns = len(shown.states)
    states = shown.states[:, :chains].swapaxes(0, 1).reshape(chains * columns, -1)
    axes.imshow(_tiles(states, chains, columns, 0.0), cmap="gray_r", vmin=0, vmax=LAST_PIXEL)
    centres = np.arange(columns) * (SIDE + 2) + (SIDE + 1) / 2
    axes.set_xticks(centres, [*(f"{sigma:.2g}" for sigma in shown.sigmas), "sample"], fontsize=8)
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("noise level σ")
    axes.set_title("From noise to digits, down the ladder of noise levels", fontsize=11)


def _loss_curve(axes: Axes, losses: Sequence[float], checkpoints: Sequence[tuple[int, float]]) -> None:
    window = max(1, len(losses) // 100)
    smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
    axes.plot(np.arange(len(smooth)) + window, smooth, color=BLUE, lw=1, label="training digits")
    steps, held_out = zip(*checkpoints, strict=True)
    axes.plot(steps, held_out, color=VERMILION, lw=1.5, label="held-out digits")
    late = np.concatenate([smooth[len(smooth) // 20 :], held_out[1:]])
    margin = 0.05 * np.ptp(late)
    axes.set_ylim(late.min() - margin, late.max() + margin)  # the fall of the first steps would flatten the rest
    axes.set_xlabel("training step")
    axes.set_ylabel("σ² (½|s|² + tr ∂s/∂x)")
    axes.set_title("Implicit score matching loss", fontsize=11)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _plane(axes: Axes, shown: PlanePictures, title: str) -> None:
    reach = shown.extent
    ticks = np.linspace(-reach, reach, len(shown.density))
    levels = shown.density.max() * np.linspace(0.02, 1, 9)
    axes.contourf(ticks, ticks, shown.density, levels, cmap="Blues", vmax=1.6 * levels[-1])
    axes.set_aspect("equal")
    axes.set_xlim(-reach, reach)
    axes.set_ylim(-reach, reach)
    axes.set_xlabel("$x_1$")
    axes.set_ylabel("$x_2$")
    axes.set_title(title, fontsize=11)


def _field(axes: Axes, shown: PlanePictures, score: Array, title: str) -> None:
    """Arrows along the score; their length grows with its square root, so that short ones stay visible."""
    _plane(axes, shown, title)
    arrows = score / np.sqrt(np.linalg.norm(score, axis=-1, keepdims=True) + 1e-9)
    axes.quiver(
        shown.grid[..., 0], shown.grid[..., 1], arrows[..., 0], arrows[..., 1],
        color=BLACK, angles="xy", scale_units="xy", scale=7, width=0.003, pivot="mid",
    )  # fmt: skip


def _ascent(axes: Axes, shown: PlanePictures) -> None:
    _plane(axes, shown, "Gradient ascent ends on the modes")
    axes.plot(shown.ascent[..., 0], shown.ascent[..., 1], color=GREY, lw=0.5)
    _points(axes, shown.ascent[0], s=5, color=GREY, label="start", zorder=2)
    _points(axes, shown.ascent[-1], s=30, color=VERMILION, label="end", zorder=3)
    _points(axes, shown.modes, s=40, color=BLACK, marker="+", lw=1, label="mode", zorder=4)
    axes.legend(loc="center", fontsize=9, edgecolor="none", framealpha=0.85)


def _langevin(axes: Axes, shown: PlanePictures, title: str) -> None:
    _plane(axes, shown, title)
    _points(axes, shown.cloud, s=1.5, color=BLUE, alpha=0.35, lw=0)
    for path, colour in zip(shown.langevin.swapaxes(0, 1)[:3], (ORANGE, GREEN, VERMILION), strict=True):
        axes.plot(path[:, 0], path[:, 1], color=colour, lw=0.7)
        _points(axes, path[0], s=30, color=colour, edgecolor=BLACK, lw=0.8, zorder=3)


def _weights(axes: Axes, weights: dict[str, Array]) -> None:
    """Grouped bars: the share of every mode, one colour a label."""
    width = 0.8 / len(weights)
    for index, ((label, shares), colour) in enumerate(zip(weights.items(), (BLACK, ORANGE, BLUE), strict=True)):
        axes.bar(np.arange(len(shares)) + (index - 1) * width, shares, width, color=colour, label=label)
    axes.set_xticks(range(len(shares)), [str(k + 1) for k in range(len(shares))])
    axes.set_xlabel("mode")
    axes.set_ylabel("share")
    axes.set_ylim(0, 1.25 * max(shares.max() for shares in weights.values()))
    axes.set_title("How often each mode is visited", fontsize=11)
    axes.legend(frameon=False, ncols=3, loc="upper center", fontsize=8, columnspacing=1, handlelength=1)
    axes.spines[["top", "right"]].set_visible(False)


def _points(axes: Axes, points: Array, **style: Any) -> None:
    axes.scatter(points[..., 0], points[..., 1], **style)
