"""Which recipe gets further: accuracy against training time and against training work, a line a run or a recipe."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

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
    check_one_each,
    new_figure,
    set_figure_title,
    set_title,
)

_COLORS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, GRAY)
_STYLES = ("-", "--", ":")


def plot_time_to_accuracy(curves: Sequence[Mapping[str, Any]], *, title: str = "") -> Figure:
    """Accuracy on the way against seconds of training (left) and floating-point operations (right), best end first.

    Args:
        curves: for each run "name", "variant" and the equally long "seconds", "flops" and "accuracy" (percent). A name
            has one color, its variants have a line style each; the first name is drawn thicker.
    """
    names = list(dict.fromkeys(curve["name"] for curve in curves))
    if not 0 < len(names) <= len(_COLORS):
        raise ValueError(f"curves has {len(names)} names; between 1 and {len(_COLORS)} can be told apart")
    figure, axes = new_figure(1, 2, height=3.6 + 0.21 * math.ceil(len(curves) / 3))
    checked = [(curve, _check(curve)) for curve in curves]
    for curve, values in sorted(checked, key=lambda pair: -pair[1]["accuracy"][-1]):
        variants = [other["variant"] for other in curves if other["name"] == curve["name"]]
        if len(variants) > len(_STYLES):
            raise ValueError(f"{curve['name']!r} has {len(variants)} variants; {len(_STYLES)} can be told apart")
        look = {
            "color": _COLORS[names.index(curve["name"])],
            "linestyle": _STYLES[variants.index(curve["variant"])],
            "linewidth": 3 if curve["name"] == names[0] else 1.7,
        }
        label = f"{values['accuracy'][-1]:.1f}  {curve['name']}, {curve['variant'].replace('_', ' ')}"
        for ax, x in zip(axes, ("seconds", "flops"), strict=True):
            ax.plot(values[x], values["accuracy"], label=label, **look)
            ax.plot(values[x][-1], values["accuracy"][-1], "o", color=look["color"], markersize=4)
    axes[0].set(xlabel="training time (s)", ylabel="validation accuracy (%)", xlim=(0, None))
    axes[1].set(xlabel="training work (PFLOP)", xscale="log")
    lowest, highest = axes[1].get_xlim()
    axes[1].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if highest / lowest < 100 else (1,)))
    axes[1].xaxis.set_major_formatter(_in_pflop)
    axes[1].xaxis.set_minor_locator(NullLocator())
    set_title(axes[0], "Accuracy against time")
    set_title(axes[1], "Accuracy against work")
    # Below, where no line can run into it.
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        title="% at the end",
        alignment="left",
        frameon=False,
        fontsize=9,
        loc="outside lower left",
        ncols=3,
    )
    set_figure_title(figure, title)
    return figure


def plot_accuracy_and_work(recipes: Mapping[str, Sequence[tuple[float, float, bool]]], *, title: str = "") -> Figure:
    """Accuracy at the end of trainings against their floating-point operations, a line a recipe.

    Args:
        recipes: by name, for each of its trainings, from short to long: operations (more than 0), accuracy (percent),
            and whether that was measured; what others state is a hollow marker. The first recipe is drawn thicker.
    """
    check_one_each("recipes", recipes)
    if len(recipes) > len(MARKERS):
        raise ValueError(f"recipes has {len(recipes)} names; between 1 and {len(MARKERS)} can be told apart")
    figure, ax = new_figure(height=4.2)
    stated, any_stated = {"linestyle": "none", "markerfacecolor": "white"}, False
    for i, (name, trainings) in enumerate(recipes.items()):
        check_one_each(f"recipes[{name!r}]", trainings)
        flops, accuracy, is_measured = (np.array(column) for column in zip(*trainings, strict=True))
        if not (flops > 0).all():
            raise ValueError(
                f"recipes[{name!r}] has operations {flops.tolist()}; each must be more than 0, for a log axis"
            )
        look = {"color": (*_COLORS, BLACK)[i], "marker": MARKERS[i], "markersize": 7}
        ax.plot(flops, accuracy, linewidth=3 if i == 0 else 1.2, label=name, **look)
        ax.plot(flops[~is_measured], accuracy[~is_measured], **(look | stated))
        any_stated = any_stated or not is_measured.all()
    if any_stated:
        ax.plot([], [], color=GRAY, marker="o", markersize=7, label="hollow: stated, not measured", **stated)
    ax.set(xlabel="training work (PFLOP)", ylabel="test accuracy (%)", xscale="log", ylim=(0, 100))
    ax.xaxis.set_major_formatter(_in_pflop)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.legend(edgecolor="none", framealpha=1, fontsize=9)
    set_title(ax, title)
    return figure


def _in_pflop(flops: float, position: int | None) -> str:
    """The text of a tick."""
    return f"{flops / 1e15:g}"


def _check(curve: Mapping[str, Any]) -> dict[str, np.ndarray]:
    values = {name: as_array(curve[name], dtype=float) for name in ("seconds", "flops", "accuracy")}
    shapes = {name: array.shape for name, array in values.items()}
    if len(set(shapes.values())) > 1 or values["accuracy"].ndim != 1 or not len(values["accuracy"]):
        raise ValueError(f"the curve of {curve['name']!r} must have as many seconds as flops and accuracies: {shapes}")
    return values
