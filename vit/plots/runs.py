"""Runs beside each other, and how the loss answers to the learning rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from vit.arguments import check_choice
from vit.plots.curves import rows_of
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
    name_ends,
    new_figure,
    set_title,
    shortened,
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
    runs: Mapping[str, Any] | Sequence[Any],
    *,
    quantity: str = "val_accuracy",
    against: str = "epoch",
    title: str = "",
) -> Figure:
    """A quantity of up to eight runs, a line each, named at its end.

    Args:
        runs: a list of runs, or for each name a run, a `History` or its rows, one an epoch; a run without rows is left
            out.
        quantity: a column, such as "val_accuracy".
        against: "epoch" or "seconds".
    """
    check_choice("against", against, ("epoch", "seconds"))
    rows = {name: rows_of(run) for name, run in (runs if isinstance(runs, Mapping) else _by_name(runs)).items()}
    curves = {name: _curve(name, of_run, against, quantity) for name, of_run in rows.items() if of_run}
    if not 0 < len(curves) <= len(_COLORS):
        raise ValueError(f"runs has {len(curves)} with an epoch; between 1 and {len(_COLORS)} can be told apart")
    figure, ax = new_figure(height=max(3.2, 1.2 + 0.27 * len(curves)))
    for (name, (x, y)), color, marker in zip(curves.items(), _COLORS, MARKERS, strict=False):
        ax.plot(x, y, color=color, marker=marker, markersize=5, markevery=max(1, len(x) // 12), label=name)
    ax.set(xlabel="training time (s)" if against == "seconds" else "epoch", ylabel=_LABELS.get(quantity, quantity))
    ax.set_xlim(left=0)
    if against == "epoch":
        ax.xaxis.get_major_locator().set_params(integer=True)
    ends = []
    for line, (name, (x, y)) in zip(ax.lines, curves.items(), strict=True):
        last_x, last = next(((a, b) for a, b in zip(x[::-1], y[::-1], strict=True) if np.isfinite(b)), (np.nan, np.nan))
        look = {"color": line.get_color(), "marker": line.get_marker()}
        ends.append((f"{last:#.4g}  {shortened(name, _LONGEST_NAME)}", last_x, last, look))
    name_ends(ax, ends)
    set_title(ax, title or f"{_LABELS.get(quantity, quantity).split(' (')[0].capitalize()}, run by run")
    return figure


def _by_name(runs: Sequence[Any]) -> dict[str, Any]:
    """The runs under names that tell them apart: their own, their folders', with those that hold them, or paths."""
    if not all(hasattr(run, "folder") for run in runs):
        raise TypeError("runs must be a list of runs, as list_runs gives it, or a dict with a name for each history")
    names = [(run.name, run.folder.name, f"{run.folder.parent.name}/{run.name}", str(run.folder)) for run in runs]
    columns = list(zip(*names, strict=True))
    own = [next((n for n, c in zip(row, columns, strict=True) if c.count(n) == 1), row[-1]) for row in names]
    return dict(zip(own, runs, strict=True))


def _curve(name: str, rows: Sequence[Mapping[str, float]], *columns: str) -> list[np.ndarray]:
    for column in columns:
        if not any(column in row for row in rows):
            raise ValueError(f"the run {name!r} has no column {column!r}; columns: {', '.join(rows[0])}")
    return [np.array([row.get(column, np.nan) for row in rows], dtype=float) for column in columns]


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
