"""Faithfulness figures show the numbers they were given, the best first, with chance beside them."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import is_whole

from vit.plots.faithfulness import plot_deletion_insertion, plot_randomization, plot_scores
from vit.plots.style import GRAY

X = np.linspace(0, 1, 5)
CURVES = {
    "attention": (1 - X, X),  # areas 0.5 and 0.5
    "gradient_rollout": (torch.tensor([0.8, 0.4, 0.0, 0.0, 0.0]), np.full(5, 0.75)),  # 0.2 and 0.75
    "random": (np.full(5, 0.6), np.full(5, 0.25)),
}


def test_curves_are_drawn_in_percent_with_the_best_first():
    figure = plot_deletion_insertion(CURVES, title="shapes")
    orders = (["gradient rollout", "attention", "random order"], ["gradient rollout", "attention", "random order"])
    areas = (["0.200", "0.500", "0.600"], ["0.750", "0.500", "0.250"])
    for i, ax in enumerate(figure.axes):
        texts = [text.get_text().split("  ") for text in ax.get_legend().get_texts()]
        assert texts == [list(pair) for pair in zip(areas[i], orders[i], strict=True)]
        lines = {line.get_label().split("  ")[1].replace(" order", "").replace(" ", "_"): line for line in ax.lines}
        for name, curves in CURVES.items():
            np.testing.assert_allclose(lines[name].get_xdata(), [0, 25, 50, 75, 100])
            np.testing.assert_allclose(lines[name].get_ydata(), np.asarray(curves[i]))
        assert (lines["random"].get_linestyle(), lines["random"].get_color()) == ("--", GRAY)
        assert len({line.get_color() for line in ax.lines}) == 3 and "%" in ax.get_xlabel()


def test_a_method_looks_the_same_in_both_panels():
    reverse = {"a": (X, X), "b": (1 - X, X / 2), "c": (X / 3, X / 3)}  # ranked differently in each
    colors = [
        {line.get_label()[7:]: line.get_color() for line in ax.lines} for ax in plot_deletion_insertion(reverse).axes
    ]
    assert colors[0] == colors[1] and set(colors[0]) == {"a", "b", "c"}


def test_of_two_equal_lines_both_are_seen():
    for ax in plot_deletion_insertion({"gradient_rollout": (X, X), "relevance": (X, X)}).axes:
        below, above = sorted(ax.lines, key=lambda line: line.get_zorder())
        assert below.get_linestyle() == "-" and above.get_linestyle() == "-."
        assert below.get_zorder() < above.get_zorder()


def test_eight_methods_can_be_told_apart():
    ax = plot_deletion_insertion({str(i): (X, X) for i in range(8)} | {"random": (X, X)}).axes[0]
    assert len({(line.get_color(), line.get_linestyle()) for line in ax.lines}) == 9
    with pytest.raises(ValueError, match="curves has 9 methods"):
        plot_deletion_insertion({str(i): (X, X) for i in range(9)})


def test_scores_are_bars_beside_chance():
    scores = {"Heat on the object": {"rollout": 0.4, "relevance": 0.62}, "Pointing game": {"rollout": 0.05}}
    figure = plot_scores(scores, {"Heat on the object": 0.21, "Pointing game": 0.5})
    left, right = figure.axes
    assert [bar.get_width() for bar in left.patches] == pytest.approx([62, 40])  # barh counts from below
    assert [label.get_text() for label in left.get_yticklabels()] == ["relevance", "rollout"]
    assert left.lines[0].get_xdata() == pytest.approx([21, 21])
    assert [text.get_text() for text in left.texts] == ["62", "40", "chance 21"]
    assert [bar.get_width() for bar in right.patches] == pytest.approx([5]) and "%" in right.get_xlabel()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="curves has 0 methods"):
        plot_deletion_insertion({})
    with pytest.raises(ValueError, match=r"curves of 'a' must be \(S \+ 1,\) probabilities, got shape \(2, 5\)"):
        plot_deletion_insertion({"a": (np.ones((2, 5)), X)})
    with pytest.raises(ValueError, match=r"between 0 and 1, got -?\d.* to 100"):
        plot_deletion_insertion({"a": (100 * X, X)})
    with pytest.raises(ValueError, match=r"scores of \['a'\] and chance of \['b'\]"):
        plot_scores({"a": {"rollout": 0.1}}, {"b": 0.1})
    with pytest.raises(ValueError, match=r"scores of 'a' must lie between 0 and 1, got 40 to 40"):
        plot_scores({"a": {"rollout": 40.0}}, {"a": 0.1})


def test_lost_weights_are_named_from_the_output_down():
    curves = {"attention": [1, 1, 0.1, 0.0, -0.1], "random": torch.tensor([1.0, -0.3, 0.0, 0.0, 0.0])}
    [ax] = plot_randomization(curves).axes
    assert [label.get_text() for label in ax.get_xticklabels()] == ["none", "head", "block 1", "block 0", "all"]
    for line, (name, curve) in zip(ax.lines, curves.items(), strict=False):  # the last line is 0
        np.testing.assert_allclose(line.get_ydata(), curve)
        assert line.get_label().startswith(name)
    assert ax.get_ylim()[0] < -0.3, "all points are seen"


def test_many_blocks_have_room_for_their_names():
    for depth in (6, 7, 12, 24, 40):
        figure = plot_randomization({"relevance": np.linspace(1, 0, depth + 3)})
        figure.canvas.draw()
        boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
        if figure.axes[0].get_xticklabels()[0].get_rotation() == 0:
            assert all(a.x1 < b.x0 for a, b in pairwise(boxes)), depth
        assert len(boxes) <= 13 and is_whole(figure)


def test_curves_of_lost_weights_must_be_correlations_of_one_model():
    with pytest.raises(ValueError, match="different numbers of stages: {'a': 5, 'b': 6}"):
        plot_randomization({"a": np.ones(5), "b": np.ones(6)})
    with pytest.raises(ValueError, match="the curve of 'a' must lie between -1 and 1, got 0 to 2"):
        plot_randomization({"a": [0, 0, 0, 2]})
    with pytest.raises(ValueError, match=r"the curve of 'a' must be \(L \+ 3,\) correlations, got shape \(2, 4\)"):
        plot_randomization({"a": np.ones((2, 4))})
