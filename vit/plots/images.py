"""Pictures of images: a grid of them, and what a model says they are."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from vit.plots.style import (
    BLUE,
    VERMILION,
    as_array,
    check_images,
    check_one_each,
    draw_image,
    fitting,
    image_grid,
    set_caption,
    set_figure_title,
)


def plot_images(
    images: np.ndarray, titles: Sequence[str] | None = None, *, columns: int = 10, title: str = ""
) -> Figure:
    """A grid of images.

    Args:
        images: uint8 (B, C, H, W), an array or tensor, B of 1 or more, C = 1 or 3.
        titles: one an image.
    """
    images = check_images(images)
    check_one_each("images", images, titles=titles)
    figure, axes = image_grid(len(images), columns, title_lines=1 if titles is not None else 0)
    for i, ax in enumerate(axes):
        draw_image(ax, images[i])
        if titles is not None:
            text = fitting(titles[i], figure.get_figwidth() / columns)
            set_caption(ax, text)
    set_figure_title(figure, title)
    return figure


def plot_predictions(
    images: np.ndarray, probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str], *, columns: int = 8
) -> Figure:
    """Images with the class a model gives them and its probability; a wrong one names the truth as well.

    Args:
        images: uint8 (B, C, H, W).
        probabilities: (N, K).
        labels: (N,), the true classes.
    """
    images, probabilities, labels = check_images(images), as_array(probabilities), as_array(labels)
    check_one_each("images", images, probabilities=probabilities, labels=labels)
    guesses = probabilities.argmax(axis=1)
    are_all_right = bool((guesses == labels).all())
    figure, axes = image_grid(len(images), columns, title_lines=1 if are_all_right else 2)
    width = figure.get_figwidth() / columns
    for ax, image, p, guess, label in zip(axes, images, probabilities, guesses, labels, strict=True):
        is_right = guess == label
        text = fitting(class_names[guess], width, after=f" {100 * p[guess]:.0f} %")
        if not are_all_right:
            text += "\n" + ("" if is_right else fitting(class_names[label], width, before="is "))
        draw_image(ax, image)
        set_caption(ax, text, color=BLUE if is_right else VERMILION)
    return figure
