"""What a larger network or a larger batch costs, one thing changed at a time."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from vit.plots.style import BLUE, VERMILION, new_figure, set_figure_title, set_title

_ROWS = (("images per second", BLUE), ("peak memory (MB)", VERMILION))


def plot_growth(curves: Mapping[str, Sequence[tuple[float, float, float]]], *, title: str = "") -> Figure:
    """Speed (top) and memory (bottom) against each quantity, on logarithmic axes: a straight line is a power.

    Args:
        curves: for each quantity, such as "depth", the points (its value, images per second, peak memory in MB).
    """
    for name, points in curves.items():
        if np.shape(points)[1:] != (3,) or np.min(points) <= 0:
            raise ValueError(f"curves[{name!r}] must hold triples of positive numbers, got {points}")
    if not curves:
        raise ValueError("curves is empty: there is nothing to plot")
    figure, axes = new_figure(2, len(curves), height=4.6, squeeze=False)
    for row, (label, color) in enumerate(_ROWS):
        for ax, points in zip(axes[row], curves.values(), strict=True):
            x, y = np.array(sorted(points))[:, [0, row + 1]].T
            ax.plot(x, y, color=color, marker="o", markersize=4)
            ax.set(xscale="log", yscale="log")
            ax.sharey(axes[row, 0])
            ax.set_xticks(x, [f"{value:g}" for value in x] if row else [""] * len(x))
            ax.xaxis.set_minor_locator(NullLocator())
            ax.tick_params(labelleft=ax is axes[row, 0])
        scale = axes[row, 0].yaxis  # which all panels of a row share
        lowest, highest = axes[row, 0].get_ylim()
        scale.set_major_locator(LogLocator(subs=(1, 2, 5) if highest / lowest > 10 else (1, 1.5, 2, 3, 5, 7)))
        scale.set_major_formatter("{x:,g}")
        scale.set_minor_locator(NullLocator())
        axes[row, 0].set_ylabel(label)
    for top, bottom, name in zip(*axes, curves, strict=True):
        set_title(top, name.capitalize())
        bottom.set_xlabel(name)
    set_figure_title(figure, title)
    return figure
