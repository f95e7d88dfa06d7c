"""How a run went: loss, accuracy and learning rate against epochs; and how it does on each class."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from vit.plots.style import BLUE, GREY, ORANGE, new_figure, set_title


def plot_history(rows: Sequence[dict[str, float]], *, title: str = "") -> Figure:
    """Loss and accuracy of train and val, an epoch a point.

    Args:
        rows: `History.rows`, one dict an epoch.
    """
    if not rows:
        raise ValueError("rows is empty: there is nothing to plot before the first epoch has ended")
    epochs = [row["epoch"] for row in rows]
    figure, axes = new_figure(1, 2)
    panels = {"loss": "cross-entropy (nats)", "accuracy": "accuracy (%)"}
    for ax, (quantity, label) in zip(axes, panels.items(), strict=True):
        for split, color, style in (("train", ORANGE, "--"), ("val", BLUE, "-")):
            name = f"{split}_{quantity}"
            if name in rows[0]:
                ax.plot(epochs, [row[name] for row in rows], style, color=color, marker="o", markersize=4, label=split)
        ax.set(xlabel="epoch", ylabel=label)
        set_title(ax, quantity.capitalize())
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.legend(frameon=False)
    if title:
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    return figure


def plot_class_accuracy(probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Accuracy for each class, best first, with the mean over all images as a line.

    Args:
        probabilities: (N, K); labels: (N,).
    """
    right = np.asarray(probabilities).argmax(axis=1) == np.asarray(labels)
    per_class = np.array([100 * right[np.asarray(labels) == k].mean() for k in range(len(class_names))])
    order = per_class.argsort()
    figure, ax = new_figure(height=3.2)
    ax.barh([class_names[k] for k in order], per_class[order], color=BLUE, height=0.7)
    ax.axvline(100 * right.mean(), color=GREY, linestyle="--")
    ax.text(
        100 * right.mean() + 0.7, -0.45, f"all {100 * right.mean():.1f} %", color="#444444", va="bottom", fontsize=9
    )
    for y, k in enumerate(order):
        is_long = per_class[k] > 6  # long enough for its number to stand inside
        x, color = (1, "white") if is_long else (per_class[k] + 1, "black")
        ax.text(x, y, f"{per_class[k]:.0f}", color=color, va="center", fontsize=9)
    ax.set(xlim=(0, 100), xlabel="accuracy (%)")
    set_title(ax, "Accuracy by class")
    ax.grid(axis="y", visible=False)
    return figure
