"""How much is learned from how few: accuracy against labeled images of each class, a line a method."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

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
    set_figure_title,
)

_COLORS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, GRAY, BLACK)


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
    ticks, ends = sorted({shots for of_shots in curves.values() for shots in of_shots}), []
    for (name, of_shots), color, marker in zip(curves.items(), _COLORS, MARKERS, strict=False):
        shots = sorted(of_shots)
        values = [as_array(of_shots[s], dtype=float) for s in shots]
        if not shots or any(v.ndim != 1 or not len(v) for v in values):
            raise ValueError(f"curves[{name!r}] must hold one or more accuracies for each number of shots")
        means = [v.mean() for v in values]
        spreads = [v.std(ddof=1) if len(v) > 1 else 0.0 for v in values]
        ax.errorbar(shots, means, yerr=spreads, color=color, marker=marker, markersize=5, capsize=2, elinewidth=1)
        name += f" (up to {shots[-1]:,})" if shots[-1] < ticks[-1] else ""
        ends.append((name, shots[-1], means[-1], {"color": color, "marker": marker}))
    ax.set(xscale="log", xlabel="labeled images of each class", ylabel="accuracy (%)")
    ax.set_xticks(ticks, [f"{shots:,}" for shots in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    if chance is not None:
        ax.axhline(chance, color=GRAY, linestyle=":", linewidth=1.2)
        ax.text(ticks[0], chance, " chance", color="#555555", fontsize=9, va="bottom")
    name_ends(ax, ends)
    set_figure_title(figure, title)
    return figure
