"""How a run went: loss, accuracy and learning rate against epochs; and how it does on each class."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vit.plots.style import (
    BLUE,
    GRAY,
    ORANGE,
    as_array,
    check_one_each,
    label_bar,
    new_figure,
    set_figure_title,
    set_title,
)

_SPLITS = {"train": {"color": ORANGE, "linestyle": "--"}, "val": {"color": BLUE, "linestyle": "-"}}


def rows_of(run: Any) -> Sequence[Mapping[str, float]]:
    """The rows of a run or a `History`; rows are given back as they are."""
    history = getattr(run, "history", run)
    return getattr(history, "rows", history)


def plot_history(
    rows: Sequence[dict[str, float]] | Any, *, title: str = "", loss_label: str = "cross-entropy (nats)"
) -> Figure:
    """Loss and accuracy of train and val, an epoch a point; a training without accuracies has the loss alone.

    Args:
        rows: a run, a `History` or its rows, one dict an epoch.
        loss_label: what the loss is, with its unit.
    """
    rows = rows_of(rows)
    if not rows:
        raise ValueError("rows is empty: there is nothing to plot before the first epoch has ended")
    panels = {"loss": loss_label, "accuracy": "accuracy (%)"}
    told = {name for row in rows for name in row}
    panels = {quantity: label for quantity, label in panels.items() if told & {f"train_{quantity}", f"val_{quantity}"}}
    if not panels:
        raise ValueError(f"rows hold neither losses nor accuracies, but {', '.join(sorted(told))}")
    figure, axes = new_figure(1, len(panels), squeeze=False)
    for ax, (quantity, label) in zip(axes[0], panels.items(), strict=True):
        _plot_splits(ax, rows, quantity)
        ax.set(xlabel="epoch", ylabel=label)
        set_title(ax, quantity.capitalize())
        ax.xaxis.get_major_locator().set_params(integer=rows[-1]["epoch"] >= 1, min_n_ticks=1)
        ax.legend(frameon=False)
    set_figure_title(figure, title)
    return figure


def plot_progress(
    losses: Sequence[tuple[float, float]], rows: Sequence[Mapping[str, float]], *, epochs: float, title: str = ""
) -> Figure:
    """A training that may still be going on: the loss as it falls, and accuracy epoch by epoch.

    Args:
        losses: pairs (epoch, mean training loss of that epoch so far), in the order of time.
        rows: `History.rows`, one dict an epoch; empty in the first.
        epochs: the length of the whole run.
    """
    figure, (left, right) = new_figure(1, 2)
    if losses:
        left.plot(*zip(*losses, strict=True), color=ORANGE, label="train, epoch so far")
    # The falling loss is that of the training images already.
    _plot_splits(left, rows, "loss", ("val",) if losses else tuple(_SPLITS), clip_on=False)
    _plot_splits(right, rows, "accuracy", clip_on=False)
    for ax in (left, right):
        ax.set(xlabel="epoch", xlim=(0, epochs))
        ax.xaxis.get_major_locator().set_params(integer=epochs >= 2)
        if ax.lines:
            ax.legend(frameon=False)
    left.set_ylabel("cross-entropy (nats)")
    right.set_ylabel("accuracy (%)")
    if not rows:
        right.set_yticks([])
        right.text(0.5, 0.5, "after the first epoch", transform=right.transAxes, ha="center", color=GRAY)
    set_title(left, "Loss")
    set_title(right, "Accuracy")
    set_figure_title(figure, title)
    return figure


def plot_class_accuracy(probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Accuracy for each class that has images, best first, with the mean over all images as a line.

    Args:
        probabilities: (N, K); labels: (N,).
    """
    probabilities, labels = as_array(probabilities), as_array(labels)
    check_one_each("labels", labels, probabilities=probabilities)
    right = probabilities.argmax(axis=1) == labels
    per_class = {k: 100 * right[labels == k].mean() for k in np.unique(labels)}
    order = sorted(per_class, key=per_class.get)
    figure, ax = new_figure(height=max(3.2, 0.7 + 0.22 * len(order)))
    ax.barh(range(len(order)), [per_class[k] for k in order], color=BLUE, height=0.7)
    ax.set_yticks(range(len(order)), [class_names[k] for k in order], parse_math=False)
    ax.margins(y=0.5 / len(order))
    mean = 100 * right.mean()
    ax.axvline(mean, color=GRAY, linestyle="--")
    ax.text(mean + 0.7, -0.45, f"all {mean:.1f} %", color="#444444", va="bottom", fontsize=9)
    for y, k in enumerate(order):
        label_bar(ax, y, per_class[k], gap=1, room=6)
    ax.set(xlim=(0, 100), xlabel="accuracy (%)")
    set_title(ax, "Accuracy by class")
    ax.grid(axis="y", visible=False)
    return figure


def _plot_splits(
    ax: Axes,
    rows: Sequence[Mapping[str, float]],
    quantity: str,
    splits: Sequence[str] = tuple(_SPLITS),
    **options: Any,
) -> None:
    """A quantity against the epochs, a line for each split that has it."""
    for split in splits:
        values = [row.get(f"{split}_{quantity}", math.nan) for row in rows]
        if not all(map(math.isnan, values)):
            look = {"marker": "o", "markersize": 4, "label": split, **_SPLITS[split], **options}
            ax.plot([row["epoch"] for row in rows], values, **look)
