"""How an image becomes a sequence: its patches, one patch as a token, the positions, and the sequence itself.

Patches are counted row by row from 0 at the top left, as `patchify` cuts them. Images here are pixels, uint8; tokens
and tables are whatever numbers a model holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import ArrayLike, NDArray

from vit.plots.style import (
    BLUE,
    GRAY,
    GREEN,
    SIGNED,
    VERMILION,
    as_array,
    check_images,
    draw_image,
    draw_values,
    image_grid,
    new_figure,
    set_caption,
    set_title,
)

CHANNEL_COLORS = {"red": VERMILION, "green": GREEN, "blue": BLUE}
_SCALE = 4  # drawn pixels for one of the image, so that a gap between patches can be finer than that


def plot_patches(image: ArrayLike, patch_sizes: Sequence[int]) -> Figure:
    """An image, whole and cut into patches of each size, which carry their running numbers where there is room.

    Args:
        image: uint8 (C, H, W), C = 1 or 3.
        patch_sizes: pixels, each a divisor of both sides.
    """
    image = check_images(image, "(C, H, W)", name="image")
    _, H, W = image.shape
    for p in patch_sizes:
        if p < 1 or H % p or W % p:
            raise ValueError(f"patch_sizes: {p} does not divide an image of {H}x{W} pixels; try one that divides both")
    columns = 1 + len(patch_sizes)
    figure, axes = image_grid(columns, columns)
    draw_image(axes[0], image)
    axes[0].set_title(f"{H} x {W} pixels", fontsize=9)
    for ax, p in zip(axes[1:], patch_sizes, strict=True):
        rows, cols = H // p, W // p
        draw_image(ax, _with_gaps(image, p))
        ax.set_title(f"{rows * cols} patches of {p} x {p}", fontsize=9)
        if 8 / columns / cols > 0.3:  # inches for a patch, enough for a number of three digits
            pitch, middle = p * _SCALE + _gap(p), (p * _SCALE - 1) / 2
            outline = [withStroke(linewidth=2, foreground="white")]
            for n in range(rows * cols):
                x, y = n % cols * pitch + middle, n // cols * pitch + middle
                ax.text(x, y, str(n), ha="center", va="center", fontsize=8, path_effects=outline)
    return figure


def plot_patch_token(patch: ArrayLike, values: ArrayLike, token: ArrayLike) -> Figure:
    """One patch on its way: its pixels, the same as a vector, and the token that one matrix makes of it.

    Args:
        patch: uint8 (C, p, p), C = 1 or 3.
        values: (C*p*p,), the normalized pixels in the order of `patchify`: channel by channel.
        token: (D,).
    """
    patch = check_images(patch, "(C, p, p)", name="patch")
    values, token = as_array(values), as_array(token)
    if values.shape != (patch.size,) or token.ndim != 1:
        raise ValueError(
            f"values must have shape ({patch.size},) and token (D,), got values {values.shape} and token {token.shape}"
        )
    figure, (left, middle, right) = new_figure(1, 3, height=2.9)
    left.get_gridspec().set_width_ratios([1, 1.7, 1.7])
    draw_image(left, patch)
    left.axis("off")
    set_title(left, f"{patch.shape[1]} x {patch.shape[2]} pixels")
    colors = CHANNEL_COLORS if len(patch) == 3 else {"gray": GRAY}
    for i, (name, part) in enumerate(zip(colors, np.split(values, len(patch)), strict=True)):
        middle.bar(np.arange(len(part)) + i * len(part), part, width=0.8, color=colors[name], label=name)
    middle.legend(frameon=False, fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    right.bar(np.arange(len(token)), token, width=0.8, color=GRAY)
    middle.set(xlabel="place in the vector", ylabel="normalized value")
    right.set(xlabel="channel of the token", ylabel="value")
    set_title(middle, f"{values.size} numbers")
    set_title(right, f"a token of {token.size} numbers")
    return figure


def plot_position_table(
    table: ArrayLike, grid_size: tuple[int, int], channels: ArrayLike, row_names: Sequence[str]
) -> Figure:
    """Some channels of a position table, each as a map over the patches.

    Args:
        table: (N, D), N = rows * columns of `grid_size`.
        channels: (R, M) channel indices: R rows of M maps.
        row_names: R of them.
    """
    table, channels = as_array(table), as_array(channels)
    if table.ndim != 2 or len(table) != grid_size[0] * grid_size[1]:
        raise ValueError(f"table must have shape (N, D) with N of grid_size={tuple(grid_size)}, got {table.shape}")
    if channels.ndim != 2 or len(channels) != len(row_names):
        raise ValueError(f"channels of shape {channels.shape} need one of row_names for each row, got {row_names!r}")
    limit = abs(table[:, channels]).max()
    rows, columns = channels.shape
    side = 1.35  # inches
    width, height = columns * side + 1.9, rows * (side + 0.2)
    figure, axes = new_figure(rows, columns, width=width, height=height, squeeze=False)
    for ax, channel in zip(axes.flat, channels.flat, strict=True):
        maps = draw_values(ax, table[:, channel].reshape(grid_size), cmap=SIGNED, vmin=-limit, vmax=limit)
        set_caption(ax, f"channel {channel}")
        ax.set(xticks=[], yticks=[])
    for ax, name in zip(axes[:, 0], row_names, strict=True):
        ax.set_ylabel(name, fontsize=9)
    figure.colorbar(maps, ax=axes, shrink=0.6, label="value")
    return figure


def plot_similarity(
    maps: Mapping[str, ArrayLike], query: tuple[int, int], *, label: str = "cosine similarity"
) -> Figure:
    """How alike the patch `query` and every patch are, one map a name, all on one scale.

    Args:
        maps: name to (rows, columns).
        query: the (row, column) that is framed.
        label: the quantity and its unit.
    """
    arrays = {name: as_array(values) for name, values in maps.items()}
    for name, values in arrays.items():
        if values.ndim != 2 or not all(0 <= i < side for i, side in zip(query, values.shape, strict=True)):
            raise ValueError(f"maps[{name!r}] of shape {values.shape} must be (rows, columns) and hold query={query}")
    low = min(values.min() for values in arrays.values())
    high = max(values.max() for values in arrays.values())
    figure, axes = new_figure(1, len(arrays), height=8 / max(len(arrays), 2) + 0.1, squeeze=False)
    for ax, (name, values) in zip(axes[0], arrays.items(), strict=True):
        image = draw_values(ax, values, vmin=low, vmax=high)
        ax.add_patch(Rectangle((query[1] - 0.5, query[0] - 0.5), 1, 1, fill=False, edgecolor=VERMILION, linewidth=2))
        ax.set(xlabel="column of the patch", ylabel="row of the patch")
        set_title(ax, name)
    figure.colorbar(image, ax=axes, shrink=0.7, label=label)
    return figure


def plot_token_sequence(tokens: ArrayLike, patches: ArrayLike, prefix_names: Sequence[str]) -> Figure:
    """The sequence an encoder reads: every token as a column of numbers, below the patch it stands for.

    Args:
        tokens: (T, D), T = prefix + N.
        patches: uint8 (N, C, p, p).
        prefix_names: the tokens in front of the patches, in order.
    """
    tokens, patches = as_array(tokens), check_images(patches, "(N, C, p, p)", name="patches")
    num_prefix, T = len(prefix_names), len(prefix_names) + len(patches)
    if tokens.ndim != 2 or len(tokens) != T:
        raise ValueError(f"tokens must have shape (T, D) with T = {num_prefix} + {len(patches)}, got {tokens.shape}")
    strip = patches.transpose(1, 2, 0, 3).reshape(*patches.shape[1:3], -1)  # (C, p, N*p)
    figure, (top, bottom) = new_figure(2, 1, height=3.9)
    top.get_gridspec().set_height_ratios([1, 25])
    draw_image(top, strip, extent=(num_prefix - 0.5, T - 0.5, 0, 1), aspect="auto")
    top.text(-0.5, 1.3, ", ".join(prefix_names), va="bottom", fontsize=9, color=VERMILION)
    top.text(T - 0.5, 1.3, f"{len(patches)} patches", ha="right", va="bottom", fontsize=9)
    top.set(xlim=(-0.5, T - 0.5), ylim=(0, 1))
    top.axis("off")
    limit = abs(tokens).max()
    image = draw_values(bottom, tokens.T, cmap=SIGNED, vmin=-limit, vmax=limit, aspect="auto")
    bottom.axvline(num_prefix - 0.5, color=VERMILION)
    bottom.set(xlabel="token", ylabel="channel")
    figure.colorbar(image, ax=[top, bottom], label="value", pad=0.01)
    return figure


def _gap(patch_size: int) -> int:
    """Drawn pixels between two patches; fewer where patches are small, of which too little would be left."""
    return min(3, max(1, patch_size * _SCALE // 6))


def _with_gaps(image: NDArray[np.uint8], patch_size: int) -> NDArray[np.uint8]:
    """The image magnified, a white gap between its patches: (C, H', W')."""
    side, gap = patch_size * _SCALE, _gap(patch_size)
    C, rows, columns = len(image), image.shape[1] // patch_size, image.shape[2] // patch_size
    large = image.repeat(_SCALE, axis=1).repeat(_SCALE, axis=2)
    tiles = np.full((C, rows, side + gap, columns, side + gap), 255, dtype=np.uint8)  # a gap below and right of each
    tiles[:, :, :side, :, :side] = large.reshape(C, rows, side, columns, side)
    return tiles.reshape(C, rows * (side + gap), columns * (side + gap))[:, :-gap, :-gap]
