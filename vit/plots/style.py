"""One look for every figure: readable at the width of a web page, and safe for color-blind readers."""

import math
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe & Ito, "Color Universal Design", 2008.
BLUE, ORANGE, GREEN, VERMILION, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#7F7F7F"

STYLE = {
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E5E5E5",
    "axes.axisbelow": True,
    "axes.labelsize": 10,
    "lines.linewidth": 2,
}


def new_figure(rows: int = 1, columns: int = 1, *, width: float = 8.0, height: float = 3.2) -> tuple[Figure, Any]:
    """A figure in the house style and its axes. It is closed for pyplot, so a notebook shows it once: as the value
    of the cell that returns it."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(rows, columns, figsize=(width, height))
    plt.close(figure)
    return figure, axes


def set_title(ax: Axes, text: str) -> None:
    ax.set_title(text, loc="left", fontsize=11, fontweight="bold")


def set_figure_title(figure: Figure, text: str) -> None:
    """A title over all axes; nothing for an empty text."""
    if text:
        figure.suptitle(text, fontsize=11, fontweight="bold", x=0.01, ha="left")


def image_grid(num_images: int, columns: int, *, width: float = 8.0, title_lines: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure with one bare square axes an image, row by row."""
    rows = math.ceil(num_images / columns)
    height = rows * (width / columns + 0.19 * title_lines) + 0.25
    figure, axes = new_figure(rows, columns, width=width, height=height)
    flat = list(np.atleast_1d(axes).flat)
    for ax in flat:
        ax.axis("off")
    return figure, flat[:num_images]
