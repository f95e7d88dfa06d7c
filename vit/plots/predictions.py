"""One picture and what a model says of it: the likeliest classes, and the patches that speak for the first of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from vit.arguments import as_integer
from vit.plots.attention import blend
from vit.plots.style import BLUE, GRAY, as_array, check_images, draw_image, new_figure, set_figure_title, shortened

MAX_NAME = 22  # letters of a class name; longer ones would squeeze the bars


def plot_top_classes(
    image: ArrayLike,
    heat: ArrayLike,
    probabilities: ArrayLike,
    class_names: Sequence[str],
    *,
    top: int = 5,
    title: str = "",
    unit: str = "relevance",
) -> Figure:
    """An image, its heat over it, and a bar for each of the likeliest classes.

    Args:
        image: uint8 (C, H, W).
        heat: (rows, columns), 0 or more; drawn on its own scale, the hottest patch brightest.
        probabilities: (K,), which sum to 1.
        class_names: one a class.
        top: how many classes are shown, 1 or more; all of them if there are fewer.
        unit: what the heat counts.
    """
    image, probabilities = check_images(image, "(C, H, W)", name="image"), as_array(probabilities)
    if probabilities.shape != (len(class_names),):
        raise ValueError(f"probabilities must have shape ({len(class_names)},), one a class, got {probabilities.shape}")
    top = as_integer("top", top, 1)
    order = np.argsort(-probabilities, kind="stable")[:top]
    percent = 100 * probabilities[order]
    figure, axes = new_figure(1, 3, width=8.0, height=2.6)
    for ax, picture, name in zip(axes, (image, blend(image, heat)), ("what the model sees", unit), strict=False):
        draw_image(ax, picture)
        ax.set_title(name, fontsize=9, pad=4)
    bars = axes[2].barh(range(len(order)), percent, color=[BLUE] + [GRAY] * (len(order) - 1), height=0.7)
    axes[2].bar_label(bars, [f"{value:.1f} %" for value in percent], fontsize=8, padding=3)
    names = [shortened(class_names[k], MAX_NAME) for k in order]
    axes[2].set_yticks(range(len(order)), names, fontsize=9, parse_math=False)
    axes[2].set(xlim=(0, 128), xticks=range(0, 101, 25), xlabel="probability (%)")
    axes[2].spines.bottom.set_bounds(0, 100)
    axes[2].invert_yaxis()
    axes[2].grid(False, axis="y")
    set_figure_title(figure, title)
    return figure
