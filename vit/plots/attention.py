"""Pictures of attention and of explanations: heat on the patches it belongs to.

Heat is drawn patch by patch, never smoothed: a soft edge would show a place that the model does not know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray

from vit.plots.style import (
    CAPTION_SIZE,
    ORANGE,
    as_array,
    check_images,
    check_one_each,
    draw_image,
    fitting,
    new_figure,
    set_caption,
    set_figure_title,
)

COLORS = "magma"
_CONTRAST = 0.35  # of what is left of the image's own under heat, so that equal heat looks equal everywhere


def blend(image: ArrayLike, heat: ArrayLike, *, opacity: float = 0.6) -> NDArray:
    """An image under the heat of its patches, the hottest brightest, as floats (H, W, 3) in [0, 1].

    Args:
        image: uint8 (C, H, W), C = 1 or 3.
        heat: (rows, columns), 0 or more; the image's sides are multiples of it.
        opacity: 0 shows the image alone, in gray of little contrast around a middle one; 1 the heat alone.
    """
    image, heat = check_images(image, "(C, H, W)", name="image"), as_array(heat, dtype=np.float64)
    if heat.ndim != 2 or any(side % n for side, n in zip(image.shape[1:], heat.shape, strict=True)):
        raise ValueError(f"heat of shape {heat.shape} does not divide an image of {image.shape[1]}x{image.shape[2]}")
    if not (np.isfinite(heat) & (heat >= 0)).all():
        raise ValueError(f"heat must be finite and 0 or more, got {heat.min():.3g} to {heat.max():.3g}")
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity={opacity} must be in [0, 1]")
    share = heat / heat.max() if heat.max() > 0 else heat
    patch = np.ones((image.shape[1] // heat.shape[0], image.shape[2] // heat.shape[1]))
    colors = mpl.colormaps[COLORS](np.kron(share, patch))[..., :3]  # (H, W, 3)
    gray = image.mean(axis=0)[..., None] / 255  # (H, W, 1)
    return opacity * colors + (1 - opacity) * (0.5 + _CONTRAST * (gray - gray.mean()))


def blended_colors(opacity: float = 0.6) -> ListedColormap:
    """The colors of heat over a middle gray, from cold to hot: those of `blend` where the image is as bright as it is
    on average."""
    colors = mpl.colormaps[COLORS](np.linspace(0, 1, 256))[:, :3]  # (256, 3)
    return ListedColormap(opacity * colors + (1 - opacity) * 0.5)


def plot_attention_view(
    image: ArrayLike,
    heat: ArrayLike,
    *,
    query: tuple[int, int] | None = None,
    opacity: float = 0.6,
    title: str = "",
    unit: str = "attention",
) -> Figure:
    """One image, and its heat over it with a scale in the same colors.

    Args:
        image: uint8 (C, H, W).
        heat: (rows, columns), 0 or more.
        query: the patch (row, column) that asks; it is outlined in both pictures.
        unit: what the scale counts.
    """
    image, heat = check_images(image, "(C, H, W)", name="image"), as_array(heat)
    mixed = blend(image, heat, opacity=opacity)
    figure, (left, right) = new_figure(1, 2, width=6.4, height=3.2)
    draw_image(left, image)
    draw_image(right, mixed)
    for ax in (left, right):
        if query is not None:
            outline_patch(ax, query, image.shape[1:], heat.shape)
    scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(0, float(heat.max()) or 1.0), blended_colors(opacity))
    figure.colorbar(scale, ax=right, label=unit, shrink=0.85)
    set_figure_title(figure, title)
    return figure


def plot_attention_heads(image: ArrayLike, grids: ArrayLike, *, title: str = "") -> Figure:
    """Every head of every layer over one image; layers go right, heads go down.

    Args:
        image: uint8 (C, H, W).
        grids: (L, h, rows, columns); each map is drawn on its own scale, its largest value under it.
    """
    image, grids = check_images(image, "(C, H, W)", name="image"), as_array(grids)
    if grids.ndim != 4:
        raise ValueError(f"grids must be (layers, heads, rows, columns), got {grids.shape}")
    num_layers, num_heads = grids.shape[:2]
    side = min(1.3, 8.0 / (num_layers + 1))
    width, height = side * (num_layers + 1) + 0.3, (side + 0.25) * num_heads + 0.4
    figure, axes = new_figure(num_heads, num_layers + 1, width=width, height=height, squeeze=False)
    is_wide = side >= 0.55  # else there is room for the numbers alone
    for head, row in enumerate(axes):
        draw_image(row[0], image)
        row[0].set_visible(head == 0)
        for layer, ax in enumerate(row[1:]):
            grid = grids[layer, head]
            draw_image(ax, blend(image, grid))
            ax.set_xlabel(f"max {grid.max():.2f}" if is_wide else f"{grid.max():.2f}", fontsize=7, labelpad=2)
            if head == 0:
                set_caption(ax, f"layer {layer}" if is_wide else str(layer))
            if layer == 0:
                ax.set_ylabel(f"head {head}", fontsize=8)
    set_caption(axes[0, 0], "image")
    set_figure_title(figure, title)
    return figure


def plot_queries(image: ArrayLike, grids: ArrayLike, queries: Sequence[tuple[int, int]], *, title: str = "") -> Figure:
    """What some patches of one image attend to; the patch that asks is outlined.

    Args:
        image: uint8 (C, H, W).
        grids: (Q, rows, columns), one a query.
        queries: the patches (row, column).
    """
    image, grids = check_images(image, "(C, H, W)", name="image"), as_array(grids)
    check_one_each("queries", queries, grids=grids)
    figure, axes = new_figure(1, len(queries) + 1, width=8.0, height=8.0 / (len(queries) + 1) + 0.5)
    draw_image(axes[0], image)
    set_caption(axes[0], "image")
    for ax, grid, query in zip(axes[1:], grids, queries, strict=True):
        draw_image(ax, blend(image, grid))
        outline_patch(ax, query, image.shape[1:], grid.shape)
        set_caption(ax, f"from patch {query[0]}, {query[1]}")
    set_figure_title(figure, title)
    return figure


def plot_explanations(
    images: ArrayLike, heatmaps: Mapping[str, ArrayLike], titles: Sequence[str] | None = None, *, title: str = ""
) -> Figure:
    """Several explanations side by side: one row an image, one column a method, each on its own scale.

    Args:
        images: uint8 (B, C, H, W).
        heatmaps: method to (B, rows, columns).
        titles: one an image, written beside it.
    """
    images = check_images(images)
    check_one_each("images", images, titles=titles, **{f"heatmaps of {name!r}": h for name, h in heatmaps.items()})
    side = min(1.25, 7.2 / (len(heatmaps) + 1))
    width, height = side * (len(heatmaps) + 1) + 0.8, side * len(images) + 0.5
    figure, axes = new_figure(len(images), len(heatmaps) + 1, width=width, height=height, squeeze=False)
    for i, row in enumerate(axes):
        draw_image(row[0], images[i])
        if titles is not None:
            row[0].set_ylabel(fitting(titles[i], side), fontsize=CAPTION_SIZE, parse_math=False)
        for ax, heat in zip(row[1:], heatmaps.values(), strict=True):
            draw_image(ax, blend(images[i], as_array(heat)[i]))
    for ax, name in zip(axes[0], ["image", *heatmaps], strict=True):
        set_caption(ax, fitting(name.replace("_", " "), side))
    set_figure_title(figure, title)
    return figure


def outline_patch(ax: Axes, patch: tuple[int, int], image_size: Sequence[int], grid_size: Sequence[int]) -> None:
    """A frame around patch (row, column) of an image drawn by `imshow`, whose first pixel spans -0.5 to 0.5."""
    height, width = image_size[0] / grid_size[0], image_size[1] / grid_size[1]
    corner = (patch[1] * width - 0.5, patch[0] * height - 0.5)
    ax.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=ORANGE, linewidth=2))
