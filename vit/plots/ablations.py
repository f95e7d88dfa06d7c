"""What each change is worth: differences from a base over several seeds, a row a change."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from vit.plots.style import BLUE, GREY, VERMILION, new_figure, set_title

_BAND = "#DDDDDD"


def plot_differences(results: Mapping[str, Sequence[float]], base: str, *, title: str = "") -> Figure:
    """Accuracy minus the mean of the base, the best change on top.

    Every seed is a dot, their mean a diamond on a line of one standard deviation either way. The grey band is the
    base's own standard deviation: what lies within it may be chance. Blue diamonds are above the base, vermilion ones
    below.

    Args:
        results: for each name the accuracies in percent, one a seed; the base among them.
        base: the name of the base.
    """
    if base not in results:
        raise ValueError(f"base={base!r} is not in results; there are: {', '.join(results) or 'none'}")
    values = {name: np.asarray(of_name, dtype=float) for name, of_name in results.items()}
    if any(v.ndim != 1 or not len(v) for v in values.values()):
        raise ValueError("results must hold one or more accuracies for each name")
    center, band = values[base].mean(), _deviation(values[base])
    differences = {name: v - center for name, v in values.items() if name != base}
    names = sorted(differences, key=lambda name: differences[name].mean())
    figure, ax = new_figure(height=1.2 + 0.27 * max(len(names), 1))
    ax.axvspan(-band, band, color=_BAND, linewidth=0, zorder=0)
    ax.axvline(0, color=GREY, linewidth=1.2, zorder=1)
    for y, name in enumerate(names):
        of_name = differences[name]
        mean, color = of_name.mean(), BLUE if of_name.mean() >= 0 else VERMILION
        ax.plot(of_name, np.full(len(of_name), y), "o", color=GREY, markersize=4, alpha=0.8, zorder=2)
        ax.errorbar(mean, y, xerr=_deviation(of_name), fmt="D", color=color, markersize=6, elinewidth=1.5, zorder=3)
        ax.text(1.01, y, f"{mean:+.1f}", transform=ax.get_yaxis_transform(), color=color, va="center", fontsize=9)
    ax.set_yticks(range(len(names)), names, fontsize=9)
    ax.set_ylim(-0.7, len(names) - 0.3)
    ax.grid(axis="y", visible=False)
    spread = f"{center:.1f} ± {band:.1f} %" if len(values[base]) > 1 else f"{center:.1f} %, one seed"
    ax.set_xlabel(f"points of accuracy more than the {base} ({spread})")
    set_title(ax, title)
    return figure


def _deviation(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0
