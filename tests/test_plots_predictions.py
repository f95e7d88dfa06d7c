"""The bars are the largest probabilities, under the names they belong to; the pictures are the image and its heat."""

import numpy as np
import pytest
import torch

from vit.plots import blend
from vit.plots.predictions import plot_top_classes

NAMES = ["ape", "bee", "cat", "dog", "emu", "fox"]
PROBABILITIES = torch.tensor([0.05, 0.4, 0.02, 0.3, 0.03, 0.2])


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randint(0, 256, (3, 8, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def heat() -> torch.Tensor:
    return torch.arange(6.0).view(2, 3)


def bars(figure) -> dict[str, float]:
    """What a reader sees from top to bottom: name and length."""
    ax = figure.axes[2]
    assert ax.yaxis_inverted()
    names = [label.get_text() for label in ax.get_yticklabels()]
    middles = [bar.get_y() + bar.get_height() / 2 for bar in ax.patches]
    np.testing.assert_allclose(middles, ax.get_yticks())
    return dict(zip(names, [bar.get_width() for bar in ax.patches], strict=True))


def test_the_likeliest_classes_come_first(image, heat):
    figure = plot_top_classes(image, heat, PROBABILITIES, NAMES, title="my.png")
    assert list(bars(figure)) == ["bee", "dog", "fox", "ape", "emu"]
    assert list(bars(figure).values()) == pytest.approx([40, 30, 20, 5, 3])
    assert [text.get_text() for text in figure.axes[2].texts] == ["40.0 %", "30.0 %", "20.0 %", "5.0 %", "3.0 %"]
    assert figure.axes[2].get_xlabel() == "probability (%)" and figure.get_suptitle() == "my.png"


def test_the_image_and_its_heat_are_drawn(image, heat):
    figure = plot_top_classes(image, heat, PROBABILITIES, NAMES, unit="rollout")
    left, right = (ax.images[0].get_array() for ax in figure.axes[:2])
    np.testing.assert_array_equal(left, image.permute(1, 2, 0).numpy())
    np.testing.assert_array_equal(right, blend(image, heat))
    assert figure.axes[1].get_title() == "rollout"


def test_few_classes_many_classes_and_long_names(image, heat):
    assert list(bars(plot_top_classes(image, heat, [0.1, 0.9], ["no", "yes"]))) == ["yes", "no"]
    assert len(bars(plot_top_classes(image, heat, np.full(1000, 1e-3), list(map(str, range(1000)))))) == 5
    assert list(bars(plot_top_classes(image, heat, [0.1, 0.9], ["no", "y" * 22], top=1))) == ["y" * 22]
    assert list(bars(plot_top_classes(image, heat, [0.1, 0.9], ["no", "y" * 23], top=1))) == ["y" * 21 + "…"]


@pytest.mark.parametrize("length", [1, 22])
def test_no_text_leaves_the_figure_or_meets_another(image, heat, length):
    names = [name[0] * length for name in NAMES]
    figure = plot_top_classes(image, heat, torch.tensor([1.0, 0, 0, 0, 0, 0]), names, title="a title")
    figure.draw_without_rendering()
    ax = figure.axes[2]
    texts = [*ax.texts, *ax.get_yticklabels(), ax.xaxis.label]
    boxes = [text.get_window_extent() for text in texts] + [other.get_window_extent() for other in figure.axes[:2]]
    assert all(box.x0 >= 0 and box.x1 <= 800 and box.y0 >= 0 for box in boxes)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_what_does_not_fit_is_refused(image, heat):
    with pytest.raises(ValueError, match=r"probabilities must have shape \(6,\), one a class, got \(1, 6\)"):
        plot_top_classes(image, heat, PROBABILITIES[None], NAMES)
    with pytest.raises(ValueError, match="top=0 must be an integer of 1 or more"):
        plot_top_classes(image, heat, PROBABILITIES, NAMES, top=0)
    with pytest.raises(ValueError, match=r"image must be uint8 of shape \(C, H, W\)"):
        plot_top_classes(image / 255, heat, PROBABILITIES, NAMES)
    with pytest.raises(ValueError, match=r"heat of shape \(3, 3\) does not divide an image of 8x12"):
        plot_top_classes(image, np.ones((3, 3)), PROBABILITIES, NAMES)
