"""The figure of shots shows the means it was given, and names that do not overlap."""

import pytest

from vit.plots import plot_shots


def test_lines_are_means_and_bars_deviations_over_draws():
    figure = plot_shots({"a": {1: [10, 20, 30], 50: [40]}, "b": {1: [5.0], 50: [41.0]}}, chance=20, title="Title")
    ax = figure.axes[0]
    first, second = ax.containers
    assert first.lines[0].get_xydata().tolist() == [[1, 20], [50, 40]]
    assert second.lines[0].get_xydata().tolist() == [[1, 5], [50, 41]]
    bars = [segment[:, 1].tolist() for segment in first.lines[2][0].get_segments()]
    assert bars == [[10, 30], [40, 40]], "the sample deviation of 10, 20, 30 is 10"
    assert {"a", "b", " chance"} <= {text.get_text() for text in ax.texts}
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1", "50"]
    assert figure.get_suptitle() == "Title"


@pytest.mark.parametrize("curves", [{}, {str(i): {1: [1.0]} for i in range(9)}])
def test_too_many_or_no_methods_are_refused(curves):
    with pytest.raises(ValueError, match="between 1 and 8 can be told apart"):
        plot_shots(curves)


@pytest.mark.parametrize("of_shots", [{}, {1: []}, {1: [[1.0]]}])
def test_empty_curves_are_refused(of_shots):
    with pytest.raises(ValueError, match=r"curves\['a'\] must hold one or more accuracies"):
        plot_shots({"a": of_shots})


def test_chance_is_drawn_where_it_is():
    ax = plot_shots({"a": {1: [10], 5: [40]}}, chance=20).axes[0]
    assert [20, 20] in [list(line.get_ydata()) for line in ax.lines]
