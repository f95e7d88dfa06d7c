"""One look for every figure: readable at the width of a web page, and safe for color-blind readers."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence, Sized
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.image import AxesImage
from matplotlib.textpath import text_to_path
from numpy.typing import ArrayLike, NDArray

from vit.arguments import as_integer

# Okabe & Ito, "Color Universal Design", 2008.
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, GRAY, BLACK = "#CC79A7", "#56B4E9", "#7F7F7F", "#000000"
SIGNED = "RdBu_r"  # of numbers of both signs: white is 0, if the limits are alike
MARKERS = "osD^vPX*"  # they tell eight lines apart in print

WIDTH = 8.0  # inches: that of a web page
CAPTION_SIZE = 7.5  # points
MAX_CLASSES = 20  # whose names or numbers stand beside each other without touching

_PYPLOT = threading.Lock()
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


def new_figure(
    rows: int = 1, columns: int = 1, *, width: float = WIDTH, height: float = 3.2, squeeze: bool = True
) -> tuple[Figure, Any]:
    """A figure in the house style and its axes, both as `plt.subplots` gives them; with squeeze=False always a grid.

    It is closed for pyplot, so a notebook shows it once: as the value of the cell that returns it. One at a time, since
    a panel may draw in a thread of its own, and what pyplot sets is for all."""
    with _PYPLOT, plt.rc_context(STYLE):
        figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=squeeze)
        plt.close(figure)
    return figure, axes


def set_title(ax: Axes, text: str) -> None:
    ax.set_title(text, loc="left", fontsize=11, fontweight="bold", parse_math=False)


def set_caption(ax: Axes, text: str, **options: Any) -> None:
    """A small title over an image; a name with dollars in it is no formula, here or in the other titles."""
    ax.set_title(text, fontsize=CAPTION_SIZE, fontweight="normal", loc="center", pad=3, parse_math=False, **options)


def set_figure_title(figure: Figure, text: str) -> None:
    """A title over all axes, in several lines where one is too narrow; nothing for an empty text."""
    if text:
        figure.suptitle(text, fontsize=11, fontweight="bold", x=0.01, ha="left", parse_math=False, wrap=True)


def shortened(name: str, most: int) -> str:
    """The name, its end cut off where it has more letters than that."""
    return name if len(name) <= most else name[: most - 1] + "…"


def fitting(name: str, inches: float, *, before: str = "", after: str = "") -> str:
    """A line of a caption with a name in it, whose end is cut off where the line would be wider than that."""
    font, room = FontProperties(size=CAPTION_SIZE), 72 * inches - CAPTION_SIZE / 4  # points
    for most in range(len(name), 3, -1):
        line = before + shortened(name, most) + after
        if text_to_path.get_text_width_height_descent(line, font, ismath=False)[0] <= room:
            return line
    return before + name[:3] + after


def spread_heights(heights: ArrayLike, gap: float) -> NDArray[np.float64]:
    """The heights (N,), in axes' fractions, moved as little as need be to lie at least `gap` apart, each group of
    names around its own middle, none above 1."""
    heights = np.asarray(heights, dtype=float)
    order = np.argsort(heights, kind="stable")
    groups = [[height] for height in heights[order]]

    def placed(group: list[float]) -> NDArray[np.float64]:
        half = gap * (len(group) - 1) / 2
        return min(np.mean(group), 1 - half) + np.linspace(-half, half, len(group))

    i = 0
    while i + 1 < len(groups):
        if placed(groups[i])[-1] + gap > placed(groups[i + 1])[0]:
            groups[i : i + 2] = [groups[i] + groups[i + 1]]
            i = max(0, i - 1)
        else:
            i += 1
    result = np.empty(len(heights))
    result[order] = np.concatenate([placed(group) for group in groups])
    return result


def name_ends(ax: Axes, ends: Sequence[tuple[str, float, float, dict[str, Any]]]) -> None:
    """Marker and name of each line at the right, one below the other, on a thread to the line's end.

    Args:
        ends: the name, the last x and y (NaN for none), and the look of each line: its color and marker.
    """
    bottom, top = ax.get_ylim()
    heights = [(np.nan_to_num(y, nan=bottom) - bottom) / (top - bottom) for _, _, y, _ in ends]
    gap = 0.2 / (ax.figure.get_size_inches()[1] - 0.9)  # of the axes' height, a line of text
    for (name, x, y, look), height in zip(ends, spread_heights(heights, gap), strict=True):
        thread = {"arrowstyle": "-", "color": look["color"], "linewidth": 0.8, "linestyle": ":", "shrinkA": 0}
        if np.isfinite(y):
            ax.annotate(
                "", (x, y), (1.03, height), textcoords="axes fraction", arrowprops=thread, annotation_clip=False
            )
        ax.plot(1.03, height, transform=ax.transAxes, clip_on=False, markersize=5, **look)
        ax.text(1.05, height, name, transform=ax.transAxes, va="center", fontsize=9)
    ax.set_ylim(bottom, top)


def as_array(values: ArrayLike, dtype: Any = None) -> NDArray:
    """Numbers of any kind as an array; a tensor may be one that needs a gradient, on a GPU, or of bfloat16, which numpy
    does not know."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if "bfloat16" in str(values.dtype) else values
    return np.asarray(values, dtype)


def check_images(images: ArrayLike, shape: str = "(B, C, H, W)", *, name: str = "images") -> NDArray[np.uint8]:
    """The images as an array, if they are uint8 of that shape with C = 1 or 3."""
    images = as_array(images)
    if images.dtype != np.uint8 or images.ndim != len(shape.split(",")) or images.shape[-3] not in (1, 3):
        raise ValueError(f"{name} must be uint8 of shape {shape} with C = 1 or 3, got {images.dtype} {images.shape}")
    return images


def check_one_each(of: str, items: Sized, **lists: Sized | None) -> None:
    """Raises ValueError unless there is an item, and in each of the lists, where it is not None, one entry for each."""
    if not len(items):
        raise ValueError(f"{of} is empty: there is nothing to plot")
    for name, entries in lists.items():
        if entries is not None and len(entries) != len(items):
            raise ValueError(f"{name} has {len(entries)} entries for {len(items)} {of}; one for each is needed")


def label_bar(ax: Axes, y: float, value: float, *, gap: float, room: float) -> None:
    """The number of a horizontal bar: beside its end, or inside a bar that is longer than `room`."""
    x, color = (gap, "white") if value > room else (value + gap, "black")
    ax.text(x, y, f"{value:.0f}", color=color, va="center", fontsize=9)


def draw_values(ax: Axes, values: NDArray, **options: Any) -> AxesImage:
    """Numbers (rows, columns) as colors, each in its own square, without a frame."""
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return ax.imshow(values, **{"interpolation": "nearest", "cmap": "viridis", **options})


def draw_image(ax: Axes, image: NDArray, **options: Any) -> None:
    """An image without ticks or frame: uint8 (C, H, W), or floats (H, W, C)."""
    pixels = image.transpose(1, 2, 0) if image.dtype == np.uint8 else image  # (H, W, C)
    if pixels.shape[2] == 1:
        gray = {"cmap": "gray", "vmin": 0, "vmax": 255 if image.dtype == np.uint8 else 1}
        draw_values(ax, pixels.squeeze(2), **gray, **options)
    else:
        draw_values(ax, pixels, **options)
    ax.set(xticks=[], yticks=[])


def image_grid(num_images: int, columns: int, *, title_lines: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure with one bare square axes an image, row by row."""
    columns = as_integer("columns", columns, 1)
    rows = math.ceil(num_images / columns)
    height = rows * (WIDTH / columns + 0.19 * title_lines) + 0.25
    figure, axes = new_figure(rows, columns, height=height, squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    return figure, list(axes.flat)[:num_images]
