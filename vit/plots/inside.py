"""What a Vision Transformer has learned inside: filters, positions, heads, tokens, and layers against layers.

The arrays are those of `vit.analysis.statistics` and `vit.analysis.representations`. Layers are counted from 0.
Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, Fig. 7 (filters, positions, distance).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from vit.plots.style import (
    BLUE,
    GRAY,
    GREEN,
    MAX_CLASSES,
    ORANGE,
    VERMILION,
    as_array,
    check_images,
    check_one_each,
    draw_image,
    draw_values,
    fitting,
    image_grid,
    new_figure,
    set_caption,
    set_figure_title,
    set_title,
    shortened,
)

_LONGEST_NAME = 22  # characters of a class beside the lens
SETS = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (VERMILION, "D"))  # a color and a marker for each set of heads


def plot_patch_filters(filters: ArrayLike, explained: ArrayLike | None = None, *, columns: int = 14) -> Figure:
    """Filters of the patch embedding as images, each scaled by its largest weight: mid-gray is a weight of 0.

    Args:
        filters: (num, C, p, p), C = 1 or 3.
        explained: (num,), the share of variance of each, written above it in percent.
    """
    filters = as_array(filters, dtype=np.float64)
    if filters.ndim != 4 or filters.shape[1] not in (1, 3) or not len(filters):
        raise ValueError(f"filters must be (num, C, p, p) with C = 1 or 3, got {filters.shape}")
    titles = [""] * len(filters) if explained is None else [f"{100 * share:.1f} %" for share in as_array(explained)]
    if len(titles) != len(filters):
        raise ValueError(f"explained has {len(titles)} shares for {len(filters)} filters")
    figure, axes = image_grid(len(filters), min(columns, len(filters)), title_lines=int(explained is not None))
    for ax, weights, title in zip(axes, filters, titles, strict=True):
        scaled = 0.5 + 0.5 * weights / (abs(weights).max() or 1)  # (C, p, p)
        draw_image(ax, scaled.transpose(1, 2, 0))
        set_caption(ax, title)
    subtitle = "" if explained is None else ", and their share of the variance"
    set_figure_title(figure, f"Principal components of the patch filters{subtitle}")
    return figure


def _spaced(count: int) -> range:
    """At most 16 of the numbers below `count`, evenly spaced: their labels have room."""
    return range(0, count, math.ceil(count / 16))


def plot_pos_embed_similarity(similarity: ArrayLike) -> Figure:
    """How alike the position vectors of patches are, as cosine similarity (rows, columns, rows, columns): in the place
    of every patch stands its map to all patches."""
    similarity = as_array(similarity, dtype=np.float64)
    if similarity.ndim != 4 or similarity.shape[:2] != similarity.shape[2:]:
        raise ValueError(f"similarity must be (rows, columns, rows, columns), got {similarity.shape}")
    rows, columns = similarity.shape[:2]
    tiles = np.full((rows, rows + 1, columns, columns + 1), np.nan)  # a gap below and right of every map
    tiles[:, :rows, :, :columns] = similarity.transpose(0, 2, 1, 3)
    mosaic = tiles.reshape(rows * (rows + 1), columns * (columns + 1))[:-1, :-1]
    figure, ax = new_figure(width=6.4, height=np.clip(5.1 * mosaic.shape[0] / mosaic.shape[1], 1.4, 7.0) + 0.8)
    drawn = draw_values(ax, mosaic)
    centers = [np.arange(n) * (n + 1) + (n - 1) / 2 for n in (columns, rows)]
    ax.set_xticks(centers[0][_spaced(columns)], _spaced(columns))
    ax.set_yticks(centers[1][_spaced(rows)], _spaced(rows))
    ax.set(xlabel="column of the patch", ylabel="row of the patch")
    figure.colorbar(drawn, ax=ax, label="cosine similarity", shrink=0.8)
    set_title(ax, "Position embeddings, each patch against all patches")
    return figure


def plot_attention_distance(distances: Mapping[str, ArrayLike] | ArrayLike, *, uniform: float | None = None) -> Figure:
    """How far the heads of each layer look, one point a head.

    Args:
        distances: (L, h) in pixels, of one model, or of at most four by their names.
        uniform: the distance in pixels of attention to all patches alike, drawn as a line.
    """
    return _plot_heads(distances, uniform, "mean attention distance (pixels)", "How far each head looks")


def plot_attention_entropy(entropies: Mapping[str, ArrayLike] | ArrayLike, *, uniform: float | None = None) -> Figure:
    """How widely the heads of each layer spread their attention; as `plot_attention_distance`, in bits: log2(T) if
    uniform."""
    return _plot_heads(entropies, uniform, "attention entropy (bits)", "How widely each head spreads its attention")


def plot_head_similarity(similarity: ArrayLike, num_heads: int) -> Figure:
    """How alike all heads attend, (L*h, L*h) in the order of layers, which white lines part; `num_heads` is h."""
    similarity = as_array(similarity)
    count = len(similarity)
    if similarity.shape != (count, count) or num_heads < 1 or count % num_heads:
        raise ValueError(f"similarity must be (L*h, L*h) with h = num_heads={num_heads}, got {similarity.shape}")
    figure, ax = new_figure(width=6.0, height=5.0)
    drawn = draw_values(ax, similarity, vmax=1)
    for edge in np.arange(num_heads, count, num_heads) - 0.5:
        ax.axhline(edge, color="white", linewidth=1)
        ax.axvline(edge, color="white", linewidth=1)
    centers = np.arange(0, count, num_heads) + (num_heads - 1) / 2
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_ticks(centers[_spaced(len(centers))], _spaced(len(centers)))
        axis.set_label_text(f"layer, {num_heads} heads in each")
    figure.colorbar(drawn, ax=ax, label="1 − Jensen-Shannon divergence (bits)")
    set_title(ax, "Which heads attend alike")
    return figure


def plot_token_pca(images: ArrayLike, rgb: ArrayLike) -> Figure:
    """Images, uint8 (B, C, H, W), and below them the colors (B, rows, columns, 3) of their patch tokens."""
    images, rgb = check_images(images), as_array(rgb)
    check_one_each("images", images)
    if rgb.ndim != 4 or rgb.shape[3] != 3 or len(rgb) != len(images):
        raise ValueError(f"rgb must be ({len(images)}, rows, columns, 3), one map an image, got {rgb.shape}")
    side = min(7.8 / len(images), 2.0)
    width, height = max(side * len(images) + 0.2, 4.2), 2 * side + 0.4
    figure, axes = new_figure(2, len(images), width=width, height=height, squeeze=False)
    for (top, bottom), image, colors in zip(axes.T, images, rgb, strict=True):
        draw_image(top, image)
        draw_image(bottom, colors)
    set_figure_title(figure, "Principal components of the patch tokens")
    return figure


def plot_logit_lens(
    images: ArrayLike, probabilities: ArrayLike, labels: ArrayLike, class_names: Sequence[str]
) -> Figure:
    """What the head would say after every layer: images, and below them the probabilities; the true class is framed.

    Args:
        images: uint8 (B, C, H, W); up to six stand side by side.
        probabilities: (L, B, K): the softmax of `logit_lens`, or some of its classes.
        labels: (B,), the true classes among the K.
        class_names: K of them, at most 20.
    """
    images, probabilities, labels = check_images(images), as_array(probabilities), as_array(labels)
    check_one_each("images", images)
    L, B, K = len(probabilities), len(images), len(class_names)
    if probabilities.shape != (L, B, K) or labels.shape != (B,):
        shapes = f"probabilities {probabilities.shape} and labels {labels.shape}"
        raise ValueError(f"{shapes} must be (L, {B}, {K}) and ({B},), for {B} images and {K} class_names")
    if labels.min() < 0 or labels.max() >= K:
        raise ValueError(f"labels must be in 0..{K - 1}, got {labels.min()} to {labels.max()}")
    if K > MAX_CLASSES:
        raise ValueError(f"class_names has {K} names, at most {MAX_CLASSES} can be read: take probabilities[..., some]")
    if probabilities.min() < 0 or probabilities.max() > 1 + 1e-4:
        raise ValueError("probabilities must be in [0, 1]; of logits take logits.softmax(-1)")
    side, names_height = min(6.2 / B, 1.6), max(0.17 * K, 0.8)  # inches
    figure, axes = new_figure(2, B, width=side * B + 1.8, height=side + names_height + 0.9, squeeze=False)
    names = [shortened(name, _LONGEST_NAME) for name in class_names]
    axes[0, 0].get_gridspec().set_height_ratios([side, names_height])
    for i, (top, bottom) in enumerate(axes.T):
        draw_image(top, images[i])
        set_caption(top, fitting(class_names[labels[i]], 0.8 * side))  # the names below take some room of the images
        extent = (-0.5, L - 0.5, K - 0.5, -0.5)  # layer and class are the coordinates
        drawn = draw_values(bottom, probabilities[:, i].T, vmin=0, vmax=1, cmap="magma", aspect="auto", extent=extent)
        bottom.add_patch(Rectangle((-0.5, labels[i] - 0.5), L, 1, fill=False, edgecolor=GREEN, linewidth=2))
        bottom.set_yticks(range(K), names if i == 0 else [], parse_math=False)
        bottom.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        bottom.set_xlabel("layer")
        bottom.tick_params(labelsize=8)
    figure.colorbar(drawn, ax=axes[1], label="probability")
    set_figure_title(figure, "What the head reads after every layer")
    return figure


def plot_token_norms(images: ArrayLike, norms: ArrayLike) -> Figure:
    """The length of the patch tokens after some layers, one row an image, all on one scale.

    Args:
        images: uint8 (B, C, H, W).
        norms: (L, B, rows, columns): `token_layout(model).to_grid` of `token_norms`.
    """
    images, norms = check_images(images), as_array(norms)
    check_one_each("images", images)
    if norms.ndim != 4 or norms.shape[1] != len(images):
        raise ValueError(f"norms must be (L, {len(images)}, rows, columns), maps of every image, got {norms.shape}")
    L, B = norms.shape[:2]
    side = min(1.3, 7.2 / (L + 1))
    figure, axes = new_figure(B, L + 1, width=side * (L + 1) + 0.8, height=side * B + 0.6, squeeze=False)
    for i, row in enumerate(axes):
        draw_image(row[0], images[i])
        for layer, ax in enumerate(row[1:]):
            drawn = draw_values(ax, norms[layer, i], vmin=norms.min(), vmax=norms.max())
            ax.set(xticks=[], yticks=[])
    for ax, name in zip(axes[0], ["image", *(f"{i}" if L > 8 else f"layer {i}" for i in range(L))], strict=True):
        set_caption(ax, name)
    figure.colorbar(drawn, ax=axes, label="length (L2 norm)")
    set_figure_title(figure, "Length of the patch tokens")
    return figure


def plot_layer_similarity(similarity: ArrayLike, names: tuple[str, str] | None = None) -> Figure:
    """How alike layers are, of one model or of two.

    Args:
        similarity: linear CKA (L, L').
        names: the model of the rows and that of the columns; default one model.
    """
    similarity = as_array(similarity)
    if similarity.ndim != 2:
        raise ValueError(f"similarity must be (L, L'), got {similarity.shape}")
    rows, columns = similarity.shape
    figure, ax = new_figure(width=5.4, height=4.4)
    extent = (-0.5, columns - 0.5, -0.5, rows - 0.5)  # layers are the coordinates
    drawn = draw_values(ax, similarity, vmin=0, vmax=1, origin="lower", aspect="auto", extent=extent)
    down, across = ("layer", "layer") if names is None else (f"layer of {name}" for name in names)
    ax.set(xlabel=across, ylabel=down, xticks=_spaced(columns), yticks=_spaced(rows))
    figure.colorbar(drawn, ax=ax, label="linear CKA")
    set_title(ax, "How alike the layers' tokens are")
    return figure


def _plot_heads(sets: Mapping[str, ArrayLike] | ArrayLike, uniform: float | None, label: str, title: str) -> Figure:
    """Points (layer, value), one a head; several sets stand side by side within their layer."""
    sets = sets if isinstance(sets, Mapping) else {"each head": sets}
    values = {name: as_array(array) for name, array in sets.items()}
    if not 1 <= len(values) <= len(SETS):
        raise ValueError(f"1 to {len(SETS)} named sets can be told apart, got {len(values)}")
    for name, array in values.items():
        if array.ndim != 2:
            raise ValueError(f"{name!r} must be (L, h), one value a head, got shape {array.shape}")
    figure, ax = new_figure(height=3.5)
    for i, (name, array) in enumerate(values.items()):
        color, marker = SETS[i]
        layers = np.arange(len(array)) + 0.24 * (i - (len(values) - 1) / 2)
        x = np.repeat(layers, array.shape[1])  # (L*h,)
        ax.plot(x, array.ravel(), marker, color=color, markersize=6, alpha=0.8, markeredgewidth=0, label=name)
    if uniform is not None:
        ax.axhline(uniform, color=GRAY, linestyle="--", linewidth=1.5, label="uniform attention")
    ax.margins(y=0.08)
    ax.set(xlabel="layer", ylabel=label, xticks=range(max(map(len, values.values()))))
    ax.grid(axis="x", visible=False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    set_title(ax, title)
    return figure
