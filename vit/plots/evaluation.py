"""How good a classifier is on a whole split: confusions, calibration, robustness, and its worst errors.

The numbers are those of `vit.analysis.metrics`: shares in [0, 1], which the figures show in percent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from vit.plots.style import (
    BLUE,
    GRAY,
    GREEN,
    MAX_CLASSES,
    ORANGE,
    PURPLE,
    VERMILION,
    as_array,
    check_images,
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

FEW = 20  # images; the accuracy of fewer may be off by 20 points and more
PERCENT = (-3, 103)  # limits of an axis that show a point at its end whole
LOOKS = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (VERMILION, "D"), (PURPLE, "v"), ("black", "P"))

_GAMMA = 0.5  # of the colors of errors
_LONGEST_NAME = 30  # characters of a class beside the matrix; longer ones would leave it no room


def plot_confusion_matrix(counts: ArrayLike, class_names: Sequence[str]) -> Figure:
    """How many images of each class (row) are taken for each class (column); color shows the errors' share of the row.

    Args:
        counts: (K, K), K up to 20.
        class_names: K of them.
    """
    counts, K = as_array(counts), len(class_names)
    if counts.shape != (K, K) or K > MAX_CLASSES:
        raise ValueError(f"counts must be ({K}, {K}) for {K} class_names, at most {MAX_CLASSES}, got {counts.shape}")
    share = _error_share(counts)
    figure, ax = new_figure(width=np.clip(2.4 + 0.56 * K, 7.4, 9.0), height=np.clip(1.6 + 0.42 * K, 4.4, 8.0))
    scale = mpl.colors.PowerNorm(_GAMMA, 0, 100 * _top(share))
    drawn = draw_values(ax, 100 * share, norm=scale, cmap="cividis", aspect="auto")
    for (row, column), (_, color) in confusion_colors(counts).items():
        weight = "bold" if row == column else "normal"
        ax.text(column, row, counts[row, column], color=color, weight=weight, ha="center", va="center", fontsize=8)
    names = [shortened(name, _LONGEST_NAME) for name in class_names]
    ax.set_xticks(range(K), names, rotation=40, ha="right", rotation_mode="anchor", parse_math=False)
    ax.set_yticks(range(K), names, parse_math=False)
    ax.set(xlabel="guess of the model", ylabel="truth")
    figure.colorbar(drawn, ax=ax, label="errors, share of the true class (%)")
    set_title(ax, "Images of each class, and what they are taken for")
    return figure


def confusion_colors(counts: ArrayLike) -> dict[tuple[int, int], tuple[str, str]]:
    """For every cell (row, column) its color and that of its text: white for right answers, cividis for the root of the
    share of errors in the row, up to the largest. The root keeps two large errors from outshining all others."""
    share = _error_share(as_array(counts))
    cividis, top, colors = mpl.colormaps["cividis"], _top(share), {}
    for cell, value in np.ndenumerate(share):
        is_right, height = np.isnan(value), (value / top) ** _GAMMA
        colors[cell] = (
            "#ffffff" if is_right else mpl.colors.to_hex(cividis(height)),
            "white" if height < 0.47 else "black",
        )
    return colors


def plot_reliability(
    bins: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]] | tuple[ArrayLike, ArrayLike, ArrayLike],
) -> Figure:
    """Accuracy against confidence, a panel for each model, and below it how many answers are that confident.

    Args:
        bins: what `reliability` returns, for one model or for each by its name: mean confidence, accuracy and number
            of images, (bins,) each.
    """
    bins = bins if isinstance(bins, Mapping) else {"the model": bins}
    panels = {name: tuple(as_array(values, dtype=np.float64) for values in of_model) for name, of_model in bins.items()}
    for name, of_model in panels.items():
        if len(of_model) != 3 or len({values.shape for values in of_model}) != 1 or of_model[0].ndim != 1:
            shapes = ", ".join(str(values.shape) for values in of_model)
            raise ValueError(f"bins of {name!r} must be confidence, accuracy and count, (bins,) each, got {shapes}")
    if not 1 <= len(panels) <= 3:
        raise ValueError(f"bins has {len(panels)} models; 1 to 3 panels can be read beside each other")
    figure, axes = new_figure(2, len(panels), width=max(4.0 * len(panels), 5.0), height=4.8, squeeze=False)
    axes[0, 0].get_gridspec().set_height_ratios([3, 1])
    top = max((100 * count / count.sum()).max() for _, _, count in panels.values())
    for (above, below), (name, (confidence, accuracy, count)) in zip(axes.T, panels.items(), strict=True):
        error = _draw_reliability(above, confidence, accuracy, count)
        set_title(above, f"{name}: ECE {100 * error:.1f} %")
        edges = np.linspace(0, 100, len(count) + 1)
        below.bar(edges[:-1], 100 * count / count.sum(), np.diff(edges), align="edge", color=BLUE, edgecolor="white")
        below.set(xlim=PERCENT, ylim=(0, 1.1 * top), xlabel="confidence (%)")
    axes[0, 0].set_ylabel("accuracy (%)")
    axes[1, 0].set_ylabel("images (%)")
    ncols = min(2 * len(panels), 4)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=ncols, frameon=False)
    return figure


def plot_robustness(accuracies: Mapping[str, ArrayLike], *, chance: float | None = None) -> Figure:
    """Accuracy against the strength of a corruption, a line for each kind.

    Args:
        accuracies: for each of up to six kinds the accuracy (S + 1,) at strengths 0 to S, in [0, 1].
        chance: the accuracy of guessing, drawn as a line.
    """
    lines = {name: 100 * as_array(values, dtype=np.float64) for name, values in accuracies.items()}
    if not 1 <= len(lines) <= len(LOOKS):
        raise ValueError(f"accuracies has {len(lines)} kinds; 1 to {len(LOOKS)} can be told apart")
    for name, values in lines.items():
        if values.ndim != 1 or len(values) < 2 or not ((values >= 0) & (values <= 100)).all():
            raise ValueError(f"accuracies of {name!r} must be (S + 1,) shares between 0 and 1, strength 0 first")
    figure, ax = new_figure(height=4.0)
    looks = dict(zip(lines, LOOKS, strict=False))
    for name in sorted(lines, key=lambda name: -lines[name][-1]):  # the legend in the order of the lines' ends
        color, marker = looks[name]
        ax.plot(lines[name], color=color, marker=marker, markersize=6, label=name.replace("_", " "))
    if chance is not None:
        ax.axhline(100 * chance, color=GRAY, linestyle="--", linewidth=1.5, label="guessing")
    steps = range(max(map(len, lines.values())))
    ax.set(xlabel="strength of the corruption", ylabel="accuracy (%)", ylim=(0, 100), xticks=steps)
    figure.legend(loc="outside right center", frameon=False)
    set_title(ax, "Accuracy on corrupted images")
    return figure


def plot_errors(
    images: ArrayLike, probabilities: ArrayLike, labels: ArrayLike, class_names: Sequence[str], *, columns: int = 6
) -> Figure:
    """Wrong answers: the guess and its probability, and below it the truth and what was left for that.

    Args:
        images: uint8 (B, C, H, W), B may be 0.
        probabilities: (B, K).
        labels: (B,), the true classes.
    """
    images, probabilities, labels = check_images(images), as_array(probabilities), as_array(labels)
    B, K = len(images), len(class_names)
    if probabilities.shape != (B, K) or labels.shape != (B,):
        shapes = f"images {images.shape}, probabilities {probabilities.shape} and labels {labels.shape}"
        raise ValueError(f"{shapes} must be of the same images and of {K} class_names")
    figure, axes = image_grid(max(B, 1), columns, title_lines=2)
    width = figure.get_figwidth() / columns
    for ax, image, p, label in zip(axes, images, probabilities, labels, strict=B > 0):
        guess = int(p.argmax())
        draw_image(ax, image)
        text = fitting(class_names[guess], width, after=f" {_percent(p[guess])}") + "\n"
        text += fitting(class_names[label], width, before="is ", after=f" {_percent(p[label])}")
        set_caption(ax, text, color=VERMILION)
    set_figure_title(figure, "Guess and its probability; truth and its own" if B else "No errors")
    return figure


def plot_confusion_cell(
    images: ArrayLike, confidences: ArrayLike, truth: str, guess: str, *, num_images: int | None = None
) -> Figure:
    """The images of one cell of a confusion matrix, each with the probability of the guess.

    Args:
        images: uint8 (B, C, H, W), B may be 0.
        confidences: (B,), in [0, 1].
        truth, guess: names of the classes.
        num_images: how many the cell holds, where `images` are a part of them.
    """
    images, confidences = check_images(images), as_array(confidences)
    if confidences.shape != (len(images),):
        raise ValueError(f"confidences have shape {confidences.shape}, not ({len(images)},): one an image")
    figure, axes = image_grid(max(len(images), 1), 6)
    for ax, image, confidence in zip(axes, images, confidences, strict=len(images) > 0):
        draw_image(ax, image)
        set_caption(ax, _percent(confidence))
    num_images = len(images) if num_images is None else num_images
    verdict = "recognized" if truth == guess else f"taken for {guess}"
    set_figure_title(figure, f"{truth} {verdict}: {num_images} image{'s' if num_images != 1 else ''}")
    return figure


def _error_share(counts: NDArray) -> NDArray:
    """Each error's share of its row, NaN on the diagonal; (K, K)."""
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return np.where(np.eye(len(counts), dtype=bool), np.nan, share)


def _top(share: NDArray) -> float:
    """The largest error, or all of a class for a model without any."""
    return np.nanmax(share) or 1.0


def _draw_reliability(ax: Axes, confidence: NDArray, accuracy: NDArray, count: NDArray) -> float:
    """Points, with a bar from each to the diagonal; returns the expected calibration error."""
    is_filled = count > 0
    x, y, weight = 100 * confidence[is_filled], 100 * accuracy[is_filled], count[is_filled] / count.sum()
    ax.plot([0, 100], [0, 100], color=GRAY, linestyle="--", linewidth=1.5, label="calibrated")
    ax.vlines(x, np.minimum(x, y), np.maximum(x, y), color=ORANGE, linewidth=4, label="gap")
    is_few = count[is_filled] < FEW
    for chosen, fill, label in ((~is_few, BLUE, "a bin of answers"), (is_few, "white", f"fewer than {FEW} in it")):
        ax.plot(x[chosen], y[chosen], "o", color=BLUE, markerfacecolor=fill, markersize=6, label=label, zorder=3)
    ax.set(xlim=PERCENT, ylim=PERCENT, yticks=range(0, 101, 20))
    return float((abs(x - y) * weight).sum() / 100)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else "< 1 %"
