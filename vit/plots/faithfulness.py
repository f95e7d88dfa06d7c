"""Which heat map says best what a model needs: deletion and insertion curves, scores beside their chance level, and
what is left of a map when the weights are lost."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from vit.plots.style import (
    BLUE,
    GRAY,
    GREEN,
    ORANGE,
    VERMILION,
    as_array,
    label_bar,
    new_figure,
    set_figure_title,
    set_title,
)

RANDOM = "random"  # the name of the order that knows nothing
# Every other line is broken and drawn over the solid ones: two methods that agree are both seen.
_COLORS, _STYLES = (BLUE, VERMILION, GREEN, ORANGE), ("-", "-.", "-", "-.")
_LOOKS = [*zip(_STYLES, _COLORS, strict=True), *zip(_STYLES[::-1], _COLORS, strict=True)]


def plot_deletion_insertion(curves: Mapping[str, tuple[ArrayLike, ArrayLike]], *, title: str = "") -> Figure:
    """Probability of the class as patches vanish (left) and as they appear (right), with the area under each line.

    Args:
        curves: for each method the mean deletion curve and the mean insertion curve, (S + 1,) in [0, 1] each; the
            method "random" is drawn as the level to beat.
    """
    looks = _looks(curves)
    figure, axes = new_figure(1, 2, height=3.5 + 0.2 * len(curves))
    panels = (("Deletion: lower is better", "patches removed"), ("Insertion: higher is better", "patches shown"))
    for i, (ax, (heading, what)) in enumerate(zip(axes, panels, strict=True)):
        of_method = {name: _check_curve(name, pair[i]) for name, pair in curves.items()}
        areas = {name: float(np.trapezoid(y, dx=1 / (len(y) - 1))) for name, y in of_method.items()}
        for name in sorted(areas, key=areas.get, reverse=i == 1):  # best first
            y = of_method[name]
            style, color = looks.get(name, ("--", GRAY))
            label = f"{areas[name]:.3f}  {_spoken(name)}"
            ax.plot(np.linspace(0, 100, len(y)), y, style, color=color, label=label, zorder=2 if style == "-" else 3)
        ax.set(xlabel=f"{what}, hottest first (%)", xlim=(0, 100), ylim=(0, 1))
        set_title(ax, heading)
        # Below, where no line can run into it.
        ax.legend(
            frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(-0.02, -0.17), title="area", alignment="left"
        )
    axes[0].set_ylabel("mean probability of the class")
    set_figure_title(figure, title)
    return figure


def plot_scores(scores: Mapping[str, Mapping[str, float]], chance: Mapping[str, float]) -> Figure:
    """A panel a measure with a bar a method, and a line where a map that knows nothing would be.

    Args:
        scores: for each measure, such as "heat on the object", the score of each method, in [0, 1].
        chance: the level of each measure, in [0, 1].
    """
    if not scores or scores.keys() != chance.keys():
        raise ValueError(f"scores of {list(scores)} and chance of {list(chance)} must name the same measures")
    num_bars = max(len(of_method) for of_method in scores.values())
    figure, axes = new_figure(1, len(scores), height=1.3 + 0.36 * num_bars, squeeze=False)
    for ax, (measure, of_method) in zip(axes[0], scores.items(), strict=True):
        _plot_bars(ax, measure, of_method, chance[measure])
    return figure


def plot_randomization(curves: Mapping[str, ArrayLike]) -> Figure:
    """How alike the maps of each method stay as the model loses its weights, the head first, then block by block.

    Args:
        curves: for each method the mean rank correlation (L + 3,) in [-1, 1] with the maps of the model itself: of
            that model, without its head's weights, without those of each of the L blocks too, and without any.
    """
    looks = _looks(curves)
    of_method = {name: _check_correlations(name, curve) for name, curve in curves.items()}
    lengths = {name: len(y) for name, y in of_method.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"curves must be of one model, got different numbers of stages: {lengths}")
    [num_stages] = set(lengths.values())
    are_many = num_stages > 9  # whose names stand aslant, and take some height
    figure, ax = new_figure(1, 1, height=4.4 if are_many else 3.6)
    for name, y in of_method.items():
        style, color = looks.get(name, ("--", GRAY))
        ax.plot(y, style, color=color, marker="o", markersize=4, label=_spoken(name), zorder=2 if style == "-" else 3)
    ax.axhline(0, color="black", linestyle="--", linewidth=1.5, zorder=1)
    labels = ["none", "head", *(f"block {i}" for i in reversed(range(num_stages - 3))), "all"]
    step = max(1, math.ceil(num_stages / 12))  # labels that have room
    ax.set_xticks(range(0, num_stages, step), labels[::step], rotation=45 if are_many else 0)
    ax.set(xlabel="weights lost so far, from the output down", ylabel="rank correlation with the whole model's map")
    ax.set(ylim=(min(-0.2, *(y.min() - 0.05 for y in of_method.values())), 1.05))
    ax.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _looks(curves: Mapping[str, object]) -> dict[str, tuple[str, str]]:
    """The style and color of each method but the random order."""
    if not curves or len(curves.keys() - {RANDOM}) > len(_LOOKS):
        raise ValueError(f"curves has {len(curves)} methods; between 1 and {len(_LOOKS)} can be told apart")
    return dict(zip([name for name in curves if name != RANDOM], _LOOKS, strict=False))


def _plot_bars(ax: Axes, measure: str, of_method: Mapping[str, float], chance: float) -> None:
    names = list(of_method)[::-1]  # the first on top
    values = 100 * _check_range(f"the scores of {measure!r}", np.array([of_method[name] for name in names]))
    ax.barh([_spoken(name) for name in names], values, color=BLUE, height=0.65)
    for y, value in enumerate(values):
        label_bar(ax, y, value, gap=1.5, room=12)
    ax.axvline(100 * chance, color="black", linestyle="--", linewidth=1.5)
    side, gap = ("left", 1.5) if chance < 0.7 else ("right", -1.5)
    ax.text(100 * chance + gap, len(names) - 0.45, f"chance {100 * chance:.0f}", ha=side, fontsize=9)
    ax.set(xlim=(0, 100), ylim=(-0.5, len(names)), xlabel="mean over the images (%)")
    set_title(ax, measure)
    ax.grid(axis="y", visible=False)


def _spoken(name: str) -> str:
    return name.replace("_", " ") + (" order" if name == RANDOM else "")


def _check_curve(name: str, curve: ArrayLike) -> NDArray:
    curve = as_array(curve)
    if curve.ndim != 1 or len(curve) < 2:
        raise ValueError(f"the curves of {name!r} must be (S + 1,) probabilities, got shape {curve.shape}")
    return _check_range(f"the curves of {name!r}", curve)


def _check_correlations(name: str, curve: ArrayLike) -> NDArray:
    curve = as_array(curve)
    if curve.ndim != 1 or len(curve) < 4:
        raise ValueError(f"the curve of {name!r} must be (L + 3,) correlations, got shape {curve.shape}")
    if not (np.abs(curve) <= 1 + 1e-6).all():
        raise ValueError(f"the curve of {name!r} must lie between -1 and 1, got {curve.min():.3g} to {curve.max():.3g}")
    return curve


def _check_range(what: str, values: NDArray) -> NDArray:
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"{what} must lie between 0 and 1, got {values.min():.3g} to {values.max():.3g}")
    return values
