"""Figures show the numbers they were given, and have names on their axes."""

import inspect
import io
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import drawn, overlapping
from matplotlib.text import Text

from vit import plots
from vit.plots import plot_class_accuracy, plot_errors, plot_history, plot_images, plot_predictions
from vit.training import History

ROWS = [
    {"epoch": e, "train_loss": 2.0 / e, "val_loss": 1.8 / e, "train_accuracy": 30.0 * e, "val_accuracy": 31.0 * e}
    for e in (1, 2, 3)
]


def test_history_draws_every_column_against_epochs():
    figure = plot_history(ROWS)
    for ax, quantity in zip(figure.axes, ("loss", "accuracy"), strict=True):
        drawn = {line.get_label(): line.get_ydata().tolist() for line in ax.lines}
        assert drawn == {split: [row[f"{split}_{quantity}"] for row in ROWS] for split in ("train", "val")}
        assert ax.get_xlabel() == "epoch" and ax.get_ylabel()
    with pytest.raises(ValueError, match="rows is empty"):
        plot_history([])
    whole = plot_history(History(ROWS))
    for ax, same in zip(figure.axes, whole.axes, strict=True):
        assert [line.get_xydata().tolist() for line in ax.lines] == [line.get_xydata().tolist() for line in same.lines]
    of_run = plot_history(SimpleNamespace(history=History(ROWS)), loss_label="squared error")
    assert [ax.get_ylabel() for ax in figure.axes] == ["cross-entropy (nats)", "accuracy (%)"]
    assert [ax.get_ylabel() for ax in of_run.axes] == ["squared error", "accuracy (%)"]
    assert [len(line.get_xdata()) for line in of_run.axes[0].lines] == [len(ROWS)] * 2


def test_class_accuracy_is_the_share_of_right_answers():
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    probabilities = torch.tensor([[0.9, 0.1]] * 3 + [[0.2, 0.8]] + [[0.3, 0.7]] * 2)
    ax = plot_class_accuracy(probabilities, labels, ["cat", "dog"]).axes[0]
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([75.0, 100.0])
    assert [text.get_text() for text in ax.get_yticklabels()] == ["cat", "dog"]
    with pytest.raises(ValueError, match="labels is empty: there is nothing to plot"):
        plot_class_accuracy(probabilities[:0], labels[:0], ["cat", "dog"])
    with pytest.raises(ValueError, match="probabilities has 5 entries for 6 labels"):
        plot_class_accuracy(probabilities[:5], labels, ["cat", "dog"])


def test_images_are_drawn_as_they_are():
    images = torch.randint(0, 256, (7, 3, 5, 6), dtype=torch.uint8)
    figure = plot_images(images, [str(i) for i in range(7)], columns=4)
    drawn = [ax for ax in figure.axes if ax.images]
    assert len(drawn) == 7
    for i, ax in enumerate(drawn):
        np.testing.assert_array_equal(ax.images[0].get_array(), images[i].permute(1, 2, 0).numpy())
        assert ax.get_title() == str(i)
    with pytest.raises(ValueError, match=r"uint8 of shape \(B, C, H, W\) with C = 1 or 3, got float32"):
        plot_images(np.zeros((1, 3, 5, 6), np.float32))
    with pytest.raises(ValueError, match="images is empty: there is nothing to plot"):
        plot_images(images[:0])
    with pytest.raises(ValueError, match="titles has 6 entries for 7 images; one for each is needed"):
        plot_images(images, ["x"] * 6)


def test_predictions_name_the_guess_and_where_wrong_the_truth():
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    figure = plot_predictions(images, np.array([[0.75, 0.25], [0.6, 0.4]]), np.array([0, 1]), ["cat", "dog"], columns=2)
    assert [ax.get_title() for ax in figure.axes] == ["cat 75 %\n", "cat 60 %\nis dog"]
    figure = plot_predictions(images, np.array([[0.75, 0.25], [0.4, 0.6]]), np.array([0, 1]), ["cat", "dog"], columns=2)
    assert [ax.get_title() for ax in figure.axes] == ["cat 75 %", "dog 60 %"], "no room for a truth that nobody needs"
    with pytest.raises(ValueError, match="labels has 1 entries for 2 images; one for each is needed"):
        plot_predictions(images, np.full((2, 2), 0.5), np.array([0]), ["cat", "dog"])


TENSORS_DRAWN = {
    "position_table": lambda t: plots.plot_position_table(t[:6], (2, 3), torch.tensor([[0, 1]]), ["a"]),
    "similarity": lambda t: plots.plot_similarity({"a": t}, (0, 0)),
    "head_similarity": lambda t: plots.plot_head_similarity(t, 2),
    "distance": plots.plot_attention_distance,
    "view": lambda t: plots.plot_attention_view(torch.zeros(3, 16, 16, dtype=torch.uint8), t),
    "explanations": lambda t: plots.plot_explanations(torch.zeros(1, 3, 16, 16, dtype=torch.uint8), {"a": t[None]}),
    "filters": lambda t: plots.plot_patch_filters(t.view(4, 1, 4, 4)),
    "class_accuracy": lambda t: plot_class_accuracy(t, torch.arange(8) % 3, list("abcdefgh")),
    "deletion": lambda t: plots.plot_deletion_insertion({"a": (t[0], t[1])}),
    "robustness": lambda t: plots.plot_robustness({"a": t[0]}),
}


@pytest.mark.usefixtures("plain_figures")
@pytest.mark.parametrize("name", TENSORS_DRAWN)
def test_weights_and_half_precision_are_drawn_as_their_arrays(name):
    tensor = torch.rand(8, 8, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    figure, expected = (TENSORS_DRAWN[name](values) for values in (tensor, tensor.detach().float()))
    np.testing.assert_array_equal(drawn(figure), drawn(expected))


@pytest.mark.usefixtures("plain_figures")
def test_names_and_titles_are_no_formulas():
    name, images = r"$\no$", np.zeros((1, 3, 4, 4), dtype=np.uint8)
    for figure in (
        plot_images(images, [name], columns=1, title=name),
        plot_predictions(images, np.array([[1.0, 0.0]]), np.array([0]), [name, "b"]),
        plot_errors(images, np.array([[1.0, 0.0]]), np.array([1]), [name, "b"]),
        plot_history(ROWS, title=name),
    ):
        figure.savefig(io.BytesIO())


@pytest.mark.usefixtures("plain_figures")
def test_names_of_classes_on_axes_are_no_formulas():
    names, p = ["$5 or $6", "$7", r"$\no$"], np.eye(3)
    image = np.zeros((3, 4, 4), dtype=np.uint8)
    for figure in (
        plots.plot_confusion_matrix(np.eye(3, dtype=int), names),
        plots.plot_class_accuracy(p, np.arange(3), names),
        plots.plot_top_classes(image, np.ones((2, 2)), p[0], names),
        plots.plot_logit_lens(image[None], p[:, None], np.array([2]), names),
    ):
        figure.savefig(io.BytesIO())
        written = [text for text in figure.findobj(Text) if "$" in text.get_text()]
        assert {text.get_text() for text in written} == {*names} and not any(text.get_parse_math() for text in written)


@pytest.mark.parametrize("columns", [0, 2.5, True])
def test_a_grid_needs_columns(columns):
    with pytest.raises(ValueError, match=f"columns={columns} must be an integer of 1 or more"):
        plot_images(np.zeros((1, 3, 4, 4), dtype=np.uint8), columns=columns)


def test_the_help_of_every_plot_can_be_read():
    for name in plots.__all__:
        assert "_SupportsArray" not in str(inspect.signature(getattr(plots, name))), "the whole of ArrayLike"


def test_no_figure_stays_open():
    import matplotlib.pyplot as plt

    plot_history(ROWS)
    plot_images(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
    assert plt.get_fignums() == [], "a notebook would show it a second time, and keep its memory"


def test_history_shows_a_val_loader_that_came_later_or_went():
    without = [{name: value for name, value in row.items() if "val" not in name} for row in ROWS]
    for rows in ([*without[:1], *ROWS[1:]], [*ROWS[:2], *without[2:]]):
        for ax, quantity in zip(plot_history(rows).axes, ("loss", "accuracy"), strict=True):
            drawn = {line.get_label(): line.get_ydata() for line in ax.lines}
            np.testing.assert_array_equal(drawn["val"], [row.get(f"val_{quantity}", np.nan) for row in rows])
    assert all([line.get_label() for line in ax.lines] == ["train"] for ax in plot_history(without).axes)
    [ax] = plot_history([{"epoch": 1, "train_loss": 1.0, "train_masked": 0.5}]).axes
    assert ax.get_title(loc="left") == "Loss", "what is no classifier has no accuracy"
    with pytest.raises(ValueError, match="rows hold neither losses nor accuracies, but epoch"):
        plot_history([{"epoch": 1}])


@pytest.mark.parametrize(("epochs", "ticks"), [([1], {1}), ([1, 2], {1, 2}), ([0.5], set()), ([1, 1.5], {1})])
def test_epochs_are_counted_in_whole_ones(epochs, ticks):
    ax = plot_history([{**ROWS[0], "epoch": epoch} for epoch in epochs]).axes[0]
    low, high = ax.get_xlim()
    seen = {tick for tick in ax.get_xticks() if low <= tick <= high}
    assert seen == ticks if ticks else seen, "less than one epoch has no whole number to show"


@pytest.mark.parametrize("letter", ["w", "i"])
def test_long_class_names_do_not_meet(letter):
    names = [letter * 40, letter * 12, "golden_retriever"]
    images, labels = np.zeros((12, 3, 4, 4), np.uint8), np.arange(12) % 3
    probabilities = np.eye(3)[(np.arange(12) + 1) % 3]
    for figure in (
        plot_images(images, [names[k] for k in labels]),
        plot_predictions(images, probabilities, labels, names),
        plot_errors(images, probabilities, labels, names),
    ):
        figure.draw_without_rendering()
        texts = [ax.title for ax in figure.axes if ax.title.get_text()]
        assert len(texts) == 12 and any("…" in text.get_text() for text in texts)
        assert overlapping(texts) == []


def test_many_classes_have_room_and_absent_ones_are_left_out():
    K = 60
    labels, probabilities = torch.arange(K - 1).repeat(3), torch.eye(K)[torch.arange(3 * (K - 1)) % 7]
    figure = plot_class_accuracy(probabilities, labels, [f"class {k}" for k in range(K)])
    figure.canvas.draw()
    texts = figure.axes[0].get_yticklabels()
    assert {text.get_text() for text in texts} == {f"class {k}" for k in range(K - 1)}
    boxes = sorted((text.get_window_extent() for text in texts), key=lambda box: box.y0)
    assert all(below.y1 <= above.y0 for below, above in pairwise(boxes))


def test_the_line_of_all_classes_weighs_images_not_classes():
    labels = torch.tensor([0] * 8 + [1] * 2)  # 100 % of 8 and 0 % of 2
    ax = plot_class_accuracy(torch.tensor([[1.0, 0]] * 10), labels, ["cat", "dog"]).axes[0]
    assert ax.lines[0].get_xdata()[0] == 80 and "all 80.0 %" in [text.get_text() for text in ax.texts]
