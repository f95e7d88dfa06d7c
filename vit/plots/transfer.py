"""How much is learned from how few: accuracy against labeled images of each class, a line a method."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from vit.plots.style import BLUE, GREEN, GREY, ORANGE, VERMILION, new_figure, set_figure_title

_COLORS = (BLUE, VERMILION, GREEN, ORANGE, "#CC79A7", "#56B4E9", GREY, "#222222")
_MARKERS = "osD^vPX*"
_LINE = 0.05  # of the height that a name takes


def plot_shots(
    curves: Mapping[str, Mapping[int, Sequence[float]]], *, chance: float | None = None, title: str = ""
) -> Figure:
    """Mean accuracy over the draws, with a bar of one standard deviation, on a logarithmic axis of shots.

    Args:
        curves: for each method and number of shots the accuracies in percent, one a draw.
        chance: the accuracy of guessing, as a dotted line.
    """
    if not 0 < len(curves) <= len(_COLORS):
        raise ValueError(f"curves has {len(curves)} methods; between 1 and {len(_COLORS)} can be told apart")
    figure, ax = new_figure(height=4.2)
    ends = {}
    for (name, of_shots), color, marker in zip(curves.items(), _COLORS, _MARKERS, strict=False):
        shots = sorted(of_shots)
        values = [np.asarray(of_shots[s], dtype=float) for s in shots]
        if not shots or any(v.ndim != 1 or not len(v) for v in values):
            raise ValueError(f"curves[{name!r}] must hold one or more accuracies for each number of shots")
        means = [v.mean() for v in values]
        spreads = [v.std(ddof=1) if len(v) > 1 else 0.0 for v in values]
        ax.errorbar(shots, means, yerr=spreads, color=color, marker=marker, markersize=5, capsize=2, elinewidth=1)
        ends[name] = (shots[-1], means[-1], color)
    ticks = sorted({shots for of_shots in curves.values() for shots in of_shots})
    ax.set(xscale="log", xlabel="labeled images of each class", ylabel="accuracy (%)")
    ax.set_xticks(ticks, [f"{shots:,}" for shots in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    if chance is not None:
        ax.axhline(chance, color=GREY, linestyle=":", linewidth=1.2)
        ax.text(ticks[0], chance, " chance", color="#555555", fontsize=9, va="bottom")
    low, high = ax.get_ylim()
    heights = _apart([y for _, y, _ in ends.values()], _LINE * (high - low))
    for (name, (x, y, color)), height in zip(ends.items(), heights, strict=True):
        ax.annotate(
            name, (x, y), (1.02, (height - low) / (high - low)), textcoords=ax.transAxes, color=color, va="center",
            fontsize=9, annotation_clip=False,
        )  # fmt: skip
    set_figure_title(figure, title)
    return figure


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """The same heights, moved as little as a sweep from below can, so that two are never closer than `gap`."""
    order = np.argsort(heights)
    sorted_heights = np.asarray(heights, dtype=float)[order]
    # Runs of names that touch are spread around their middle.
    groups: list[list[float]] = []
    for y in sorted_heights:
        groups.append([y])
        while len(groups) > 1 and _bottom(groups[-1], gap) < _top(groups[-2], gap) + gap:
            groups[-2:] = [groups[-2] + groups[-1]]
    placed = [_bottom(group, gap) + gap * i for group in groups for i in range(len(group))]
    result = [0.0] * len(placed)
    for index, y in zip(order, placed, strict=True):
        result[index] = float(y)
    return result


def _bottom(group: Sequence[float], gap: float) -> float:
    return float(np.mean(group)) - gap * (len(group) - 1) / 2


def _top(group: Sequence[float], gap: float) -> float:
    return float(np.mean(group)) + gap * (len(group) - 1) / 2
