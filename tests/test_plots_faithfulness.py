"""Faithfulness figures show the numbers they were given, the best first, with chance beside them."""

import numpy as np
import pytest
import torch

from vit.plots.faithfulness import plot_deletion_insertion, plot_scores
from vit.plots.style import GREY

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
        assert (lines["random"].get_linestyle(), lines["random"].get_color()) == ("--", GREY)
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
