"""A hyperparameter search: how its trials went, and which settings decided it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vit.arguments import is_integer, is_number
from vit.plots.style import BLUE, GRAY, ORANGE, VERMILION, new_figure, set_title

_COLUMNS = 3
_LOOKS = {
    "complete": {"marker": "o", "color": BLUE, "markersize": 7, "markeredgecolor": "white", "markeredgewidth": 0.7},
    "pruned": {"marker": "o", "color": GRAY, "markersize": 5, "markerfacecolor": "none"},
    "failed": {"marker": "x", "color": VERMILION, "markersize": 5, "markeredgewidth": 2},
    "best": {"marker": "*", "color": ORANGE, "markersize": 16, "markerfacecolor": "none", "markeredgewidth": 1.6},
}


def plot_importances(shares: Mapping[str, float], *, title: str = "What decides how good a trial is") -> Figure:
    """A bar a setting, the most important on top.

    Args:
        shares: for names such as "train.learning_rate" a share of 1, as `importances` gives them.
    """
    if not shares or not all(0 <= share <= 1 for share in shares.values()):
        raise ValueError(f"shares={dict(shares)} must hold a name or more with a share in [0, 1] each")
    names = sorted(shares, key=shares.get)
    figure, ax = new_figure(height=0.9 + 0.36 * len(names))
    ax.barh([_spoken(name) for name in names], [100 * shares[name] for name in names], color=BLUE, height=0.65)
    for y, name in enumerate(names):
        ax.text(100 * shares[name] + 1, y, f"{100 * shares[name]:.0f}", va="center", fontsize=9)
    ax.set(xlim=(0, 105 * max(shares.values()) + 5), xlabel="share of the importance (%)")
    set_title(ax, title)
    ax.grid(axis="y", visible=False)
    return figure


def plot_trials(rows: Sequence[Mapping[str, Any]], *, log_names: Sequence[str] = ()) -> Figure:
    """The validation accuracy of each trial, in the order of the trials and against every setting that was searched.

    Pruned and failed trials stand in a strip below: an accuracy after fewer epochs does not compare.

    Args:
        rows: `SearchResult.rows`: "trial", "state", "val_accuracy" in percent, and settings, whose names hold a dot.
            Refused and stopped trials are left out.
        log_names: the settings for logarithmic axes, `SearchResult.log_names`.
    """
    rows = [dict(row) for row in rows if row["state"] in _LOOKS]
    complete = [row for row in rows if row["state"] == "complete"]
    if not complete:
        raise ValueError("rows holds no complete trial: there is nothing to compare")
    accuracies = [row["val_accuracy"] for row in complete]
    complete[int(np.argmax(accuracies))]["state"] = "best"
    names = ["trial", *(name for name in rows[0] if "." in name)]
    num_rows = math.ceil(len(names) / _COLUMNS)
    figure, axes = new_figure(num_rows, _COLUMNS, height=0.6 + 2.3 * num_rows)
    panels = list(axes.flat)
    for ax, name in zip(panels, names, strict=False):
        _draw_trials(ax, rows, _place(ax, [row[name] for row in rows], is_log=name in log_names))
        ax.set_xlabel(_spoken(name))
    so_far = np.maximum.accumulate(accuracies)
    trials = [row["trial"] for row in [*complete, rows[-1]]]
    panels[0].step(trials, [*so_far, so_far[-1]], where="post", color=ORANGE, zorder=1, label="best so far")
    for ax in panels[::_COLUMNS]:
        ax.set_ylabel("validation accuracy (%)")
    for ax in panels[len(names) :]:
        ax.remove()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower left", ncols=5, frameon=False, fontsize=9)
    return figure


def _draw_trials(ax: Axes, rows: Sequence[Mapping[str, Any]], places: Sequence[float]) -> None:
    """A mark a trial, those that ended early in a strip below."""
    accuracies = [row["val_accuracy"] for row in rows if row["state"] in ("complete", "best")]
    low, high = min(accuracies), max(accuracies)
    line = 0.08 * max(high - low, 1.0)  # the height of a line of marks
    strip = {"pruned": low - 2 * line, "failed": low - 3 * line}
    for state, look in _LOOKS.items():
        of_state = [i for i, row in enumerate(rows) if row["state"] == state]
        y = [strip.get(state, rows[i]["val_accuracy"]) for i in of_state]
        ax.plot([places[i] for i in of_state], y, linestyle="none", label=state if of_state else None, **look)
    bottom = low - line
    if len(accuracies) < len(rows):
        bottom = low - 4 * line
        ax.axhspan(bottom, low - line, color="#F2F2F2", zorder=0)
    ax.set_ylim(bottom, high + 1.5 * line)
    ax.set_yticks([tick for tick in ax.get_yticks() if low - line <= tick <= high + line])


def _place(ax: Axes, values: Sequence[Any], *, is_log: bool) -> list[float]:
    """Where the values stand on the x axis: numbers at themselves, others side by side, a little apart within each."""
    if all(map(is_number, values)):
        if is_log:
            ax.set_xscale("log")
        elif all(map(is_integer, values)):
            ax.xaxis.get_major_locator().set_params(integer=True)
        return list(values)
    kinds = sorted({str(value) for value in values})
    ax.set_xticks(range(len(kinds)), kinds)
    ax.set_xlim(-0.6, len(kinds) - 0.4)
    # Multiples of the golden ratio spread any number of points evenly.
    return [kinds.index(str(value)) + 0.4 * (i * 0.618 % 1 - 0.5) for i, value in enumerate(values)]


def _spoken(name: str) -> str:
    return name.rpartition(".")[2].replace("_", " ")
