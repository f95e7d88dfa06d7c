"""Figures of an evaluation show the numbers they were given, in percent, and refuse what does not fit together."""

import io

import matplotlib as mpl
import numpy as np
import pytest
import torch
from conftest import is_whole

from vit.analysis import metrics
from vit.plots.evaluation import (
    LOOKS,
    confusion_colors,
    plot_confusion_cell,
    plot_confusion_matrix,
    plot_errors,
    plot_reliability,
    plot_robustness,
)

IMAGES = torch.randint(0, 256, (7, 3, 5, 6), dtype=torch.uint8)


def drawn_images(figure) -> list:
    return [ax for ax in figure.axes if ax.images]


def test_confusion_matrix_writes_counts_and_colors_errors():
    counts = torch.tensor([[8, 2, 0], [1, 3, 0], [0, 0, 0]])  # the last class has no images
    ax, colorbar = plot_confusion_matrix(counts, ["cat", "dog", "emu"]).axes
    written = {(round(text.get_position()[1]), round(text.get_position()[0])): text.get_text() for text in ax.texts}
    assert written == {cell: str(int(counts[cell])) for cell in np.ndindex(3, 3)}
    share = np.ma.filled(ax.images[0].get_array().astype(float), np.nan)
    np.testing.assert_allclose(share, [[np.nan, 20, 0], [25, np.nan, 0], [0, 0, np.nan]])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["cat", "dog", "emu"]
    assert ax.get_ylabel() == "truth" and "%" in colorbar.get_ylabel()


def test_numbers_can_be_read_on_every_color():
    """The contrast that WCAG 2 asks of small text, 4.5, on each color that the figure draws."""

    def luminance(color):
        levels = np.array(mpl.colors.to_rgb(color))
        linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    counts = np.arange(400).reshape(20, 20)
    colors = confusion_colors(counts)
    ax = plot_confusion_matrix(counts, [str(k) for k in range(20)]).axes[0]
    shown = ax.images[0].to_rgba(ax.images[0].get_array())
    for text in ax.texts:
        cell = tuple(round(x) for x in text.get_position()[::-1])
        assert text.get_color() == colors[cell][1]
        if cell[0] != cell[1]:
            np.testing.assert_allclose(mpl.colors.to_rgb(colors[cell][0]), shown[cell][:3], atol=1 / 255)
        dark, light = sorted(map(luminance, colors[cell]))
        assert (light + 0.05) / (dark + 0.05) > 4.5, cell


def test_a_perfect_model_can_be_drawn():
    ax, colorbar = plot_confusion_matrix(np.diag([3, 4]), ["a", "b"]).axes
    assert ax.images[0].get_clim() == colorbar.get_ylim() == (0, 100), "a scale that can be read"


@pytest.mark.parametrize("names", [["cat", "dog"], ["cat", "dog", "emu"], ["wire-haired fox terrier, " * 3] * 2])
def test_few_classes_are_drawn_whole_whatever_their_names(names):
    figure = plot_confusion_matrix(np.full((len(names), len(names)), 7), names)
    assert is_whole(figure)
    assert min(figure.axes[0].get_window_extent().size) > 100, "pixels for the matrix itself"


def test_reliability_draws_the_bins_and_states_the_error():
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(300, 4, generator=generator, dtype=torch.float64).softmax(dim=1)
    y = torch.randint(4, (300,), generator=generator)
    bins = {"before": metrics.reliability(p, y), "after": metrics.reliability(metrics.apply_temperature(p, 3), y)}
    figure = plot_reliability(bins)
    above, below = figure.axes[:2], figure.axes[2:]
    for panel, histogram, (name, (confidence, accuracy, count)) in zip(above, below, bins.items(), strict=True):
        points = [line for line in panel.lines if line.get_marker() == "o"]
        x, y_drawn = np.concatenate([line.get_xydata() for line in points]).T
        order = np.argsort(x)
        np.testing.assert_allclose(x[order], 100 * confidence[count > 0])
        np.testing.assert_allclose(y_drawn[order], 100 * accuracy[count > 0])
        assert len(points[1].get_xdata()) == ((count > 0) & (count < 20)).sum()
        np.testing.assert_allclose([bar.get_height() for bar in histogram.patches], 100 * count / 300)
        error = (abs(confidence - accuracy).nan_to_num() * count).sum() / 300
        assert panel.get_title(loc="left") == f"{name}: ECE {100 * error:.1f} %"
    assert below[0].get_ylim() == below[1].get_ylim(), "panels beside each other are compared"
    expected = metrics.expected_calibration_error(p, y)
    assert above[0].get_title(loc="left") == f"before: ECE {100 * expected:.1f} %"


def test_reliability_of_one_model_needs_no_name():
    one = (np.full(5, 0.5), np.full(5, 0.7), np.full(5, 9))
    figure = plot_reliability(one)
    assert is_whole(figure), "its legend too"
    assert figure.axes[0].get_title(loc="left") == "the model: ECE 20.0 %" and len(figure.axes) == 2
    gaps = [segment[:, 1].tolist() for segment in figure.axes[0].collections[0].get_segments()]
    assert gaps == [pytest.approx([50, 70])] * 5, "from what it claims to what it gets right"


@pytest.mark.parametrize("count", [10, 1000])
def test_reliability_keeps_its_shape_whether_or_not_bins_are_small(count):
    """An empty set of points must not take the room of the panels."""
    counts = np.where(np.arange(15) < 3, 0, count)
    confidence = np.where(counts, (np.arange(15) + 0.5) / 15, np.nan)
    figure = plot_reliability({"a": (confidence, confidence, counts), "b": (confidence, confidence, counts)})
    figure.savefig(io.BytesIO(), bbox_inches="tight")  # as a notebook does
    assert all(ax.get_position().width > 0.35 for ax in figure.axes)


def test_robustness_is_a_line_a_kind_the_best_end_on_top():
    accuracies = {"noise": [0.8, 0.5, 0.3], "patch_shuffle": torch.tensor([0.8, 0.75, 0.6]), "blur": [0.8, 0.4, 0.1]}
    figure = plot_robustness(accuracies, chance=0.1)
    (ax,) = figure.axes
    lines = {line.get_label(): line for line in ax.lines}
    for name, values in accuracies.items():
        np.testing.assert_allclose(lines[name.replace("_", " ")].get_ydata(), 100 * np.asarray(values))
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["patch shuffle", "noise", "blur", "guessing"]
    assert ax.get_xticks().tolist() == [0, 1, 2] and "%" in ax.get_ylabel()
    assert len({color for color, _ in LOOKS}) == len({marker for _, marker in LOOKS}) == len(LOOKS)
    assert set(ax.lines[-1].get_ydata()) == {10}, "guessing"
    assert lines["noise"].get_color() == plot_robustness({"noise": [1, 0]}).axes[0].lines[0].get_color()


def test_errors_name_the_guess_and_the_truth_with_their_probabilities():
    probabilities = np.array([[0.75, 0.25], [0.002, 0.998]])
    figure = plot_errors(IMAGES[:2], probabilities, np.array([1, 0]), ["cat", "dog"])
    assert [ax.get_title() for ax in drawn_images(figure)] == ["cat 75 %\nis dog 25 %", "dog 100 %\nis cat < 1 %"]
    for ax, image in zip(drawn_images(figure), IMAGES, strict=False):
        np.testing.assert_array_equal(ax.images[0].get_array(), image.permute(1, 2, 0))
    none = plot_errors(IMAGES[:0], np.ones((0, 2)), np.zeros(0, int), ["cat", "dog"])
    assert none.get_suptitle() == "No errors" and not drawn_images(none)


def test_a_cell_shows_its_images_and_says_how_many_there_are():
    figure = plot_confusion_cell(IMAGES, np.linspace(0.9, 0.3, 7), "cat", "dog", num_images=40)
    assert [ax.get_title() for ax in drawn_images(figure)] == [f"{n} %" for n in range(90, 20, -10)]
    assert figure.get_suptitle() == "cat taken for dog: 40 images"
    assert plot_confusion_cell(IMAGES[:1], [0.5], "cat", "cat").get_suptitle() == "cat recognized: 1 image"
    empty = plot_confusion_cell(IMAGES[:0], [], "cat", "ship")
    assert empty.get_suptitle() == "cat taken for ship: 0 images" and not drawn_images(empty)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"counts must be \(2, 2\) for 2 class_names, at most 20, got \(2, 3\)"):
        plot_confusion_matrix(np.zeros((2, 3)), ["a", "b"])
    with pytest.raises(ValueError, match="at most 20"):
        plot_confusion_matrix(np.zeros((21, 21)), [str(k) for k in range(21)])
    with pytest.raises(ValueError, match=r"bins of 'a' must be .* got \(3,\), \(3,\), \(2,\)"):
        plot_reliability({"a": (np.ones(3), np.ones(3), np.ones(2))})
    with pytest.raises(ValueError, match="bins has 0 models"):
        plot_reliability({})
    with pytest.raises(ValueError, match="accuracies has 7 kinds"):
        plot_robustness({str(k): [1, 0] for k in range(7)})
    with pytest.raises(ValueError, match=r"accuracies of 'a' must be \(S \+ 1,\) shares between 0 and 1"):
        plot_robustness({"a": [80.0, 50.0]})
    with pytest.raises(ValueError, match=r"labels \(3,\) must be of the same images and of 2 class"):
        plot_errors(IMAGES[:2], np.ones((2, 2)), np.zeros(3, int), ["cat", "dog"])
    with pytest.raises(ValueError, match=r"confidences have shape \(2,\), not \(7,\)"):
        plot_confusion_cell(IMAGES, [0.5, 0.5], "cat", "dog")
