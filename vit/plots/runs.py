"""Runs beside each other, and how the loss answers to the learning rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from vit.arguments import check_choice
from vit.plots.style import (
    BLACK,
    BLUE,
    GRAY,
    GREEN,
    MARKERS,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    as_array,
    new_figure,
    set_title,
    shortened,
    spread_heights,
)

# Okabe & Ito's eight, gray for their yellow, which is too light for a line.
_COLORS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, BLACK, GRAY)
_LABELS = {
    "val_accuracy": "validation accuracy (%)",
    "train_accuracy": "training accuracy (%)",
    "val_loss": "validation loss (nats)",
    "train_loss": "training loss (nats)",
    "learning_rate": "learning rate",
}
_LONGEST_NAME = 24  # characters beside a line


def plot_runs(
    runs: Mapping[str, Any],
    *,
    quantity: str = "val_accuracy",
    against: str = "epoch",
    title: str = "",
) -> Figure:
    """A quantity of up to eight runs, a line each, named at its end.

    Args:
        runs: for each name a `History` or its rows, one an epoch; a run without rows is left out.
        quantity: a column, such as "val_accuracy".
        against: "epoch" or "seconds".
    """
    check_choice("against", against, ("epoch", "seconds"))
    rows_of = {name: getattr(run, "rows", run) for name, run in runs.items()}
    curves = {name: _curve(name, rows, against, quantity) for name, rows in rows_of.items() if rows}
    if not 0 < len(curves) <= len(_COLORS):
        raise ValueError(f"runs has {len(curves)} with an epoch; between 1 and {len(_COLORS)} can be told apart")
    figure, ax = new_figure(height=max(3.2, 1.2 + 0.27 * len(curves)))
    for (name, (x, y)), color, marker in zip(curves.items(), _COLORS, MARKERS, strict=False):
        ax.plot(x, y, color=color, marker=marker, markersize=5, markevery=max(1, len(x) // 12), label=name)
    ax.set(xlabel="training time (s)" if against == "seconds" else "epoch", ylabel=_LABELS.get(quantity, quantity))
    ax.set_xlim(left=0)
    if against == "epoch":
        ax.xaxis.get_major_locator().set_params(integer=True)
    _name_ends(ax, curves)
    set_title(ax, title or f"{_LABELS.get(quantity, quantity).split(' (')[0].capitalize()}, run by run")
    return figure


def _curve(name: str, rows: Sequence[Mapping[str, float]], *columns: str) -> list[np.ndarray]:
    for column in columns:
        if not any(column in row for row in rows):
            raise ValueError(f"the run {name!r} has no column {column!r}; columns: {', '.join(rows[0])}")
    return [np.array([row.get(column, np.nan) for row in rows], dtype=float) for column in columns]


def _name_ends(ax: Axes, curves: Mapping[str, Sequence[np.ndarray]]) -> None:
    """Marker, last value and name of each line at the right, one below the other, on a thread to the line's end."""
    bottom, top = ax.get_ylim()
    last = {name: y[np.isfinite(y)][-1] if np.isfinite(y).any() else np.nan for name, (_, y) in curves.items()}
    ends = {name: (np.nan_to_num(value, nan=bottom) - bottom) / (top - bottom) for name, value in last.items()}
    gap = 0.2 / (ax.figure.get_size_inches()[1] - 0.9)  # of the axes' height, a line of text
    lines = {line.get_label(): line for line in ax.lines}
    for name, height in zip(ends, spread_heights(list(ends.values()), gap), strict=True):
        look = {"color": lines[name].get_color(), "marker": lines[name].get_marker()}
        thread = {"arrowstyle": "-", "color": look["color"], "linewidth": 0.8, "linestyle": ":", "shrinkA": 0}
        if np.isfinite(last[name]):
            end = (curves[name][0][-1], last[name])
            ax.annotate("", end, (1.03, height), textcoords="axes fraction", arrowprops=thread, annotation_clip=False)
        ax.plot(1.03, height, transform=ax.transAxes, clip_on=False, markersize=5, **look)
        text = f"{last[name]:#.4g}  {shortened(name, _LONGEST_NAME)}"
        ax.text(1.05, height, text, transform=ax.transAxes, va="center", fontsize=9)
    ax.set_ylim(bottom, top)


def plot_learning_rates(
    factors: ArrayLike, losses: ArrayLike, smoothed: ArrayLike, suggestion: float | None = None, *, title: str = ""
) -> Figure:
    """The loss while the learning rates rise, with the suggested factor marked.

    Args:
        factors, losses, smoothed: of a `LearningRateCurve`, equally long.
        suggestion: a factor, or None for no mark.
    """
    factors, losses, smoothed = (as_array(values, dtype=float) for values in (factors, losses, smoothed))
    if not losses.shape == smoothed.shape == factors.shape or factors.ndim != 1 or len(factors) < 2:
        raise ValueError(
            "factors, losses and smoothed must be equally long and hold two or more numbers, got "
            f"{factors.shape}, {losses.shape} and {smoothed.shape}"
        )
    figure, ax = new_figure()
    ax.plot(factors, losses, ".", color=GRAY, markersize=5, alpha=0.7, label="each step")
    ax.plot(factors, smoothed, color=BLUE, label="smoothed")
    # The explosion at the end must not press the rest flat.
    low, fall = losses.min(), max(smoothed[0] - smoothed.min(), 1e-3 * abs(smoothed[0]))
    ax.set_ylim(low - 0.1 * fall, min(losses.max(), losses[0] + fall) + 0.1 * fall)
    ax.set(xscale="log", xlabel="factor on all learning rates of the config", ylabel="training loss (nats)")
    if suggestion is not None:
        ax.axvline(suggestion, color=VERMILION, linestyle="--")
        ax.annotate(
            f" suggestion: {suggestion:.2g} ",
            xy=(suggestion, 1),
            xycoords=("data", "axes fraction"),
            ha="left" if suggestion**2 < factors[0] * factors[-1] else "right",  # towards the middle
            va="top",
            color=VERMILION,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )
    ax.legend(frameon=False, loc="lower left")
    set_title(ax, title or "Loss while the learning rates rise")
    return figure
