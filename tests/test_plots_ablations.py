"""The figure of differences shows every seed, their means and the base's own spread, best first."""

import numpy as np
import pytest

from vit.plots import plot_differences

RESULTS = {"plain": [70.0, 71.0, 72.0], "worse": [66.0, 68.0, 70.0], "better": [75.0], "level": [71.0, 71.0]}


def test_rows_are_differences_from_the_mean_of_the_base_best_on_top():
    ax = plot_differences(RESULTS, "plain", title="Title").axes[0]
    rows = [text.get_text() for text in ax.get_yticklabels()]
    assert rows == ["worse", "level", "better"], "counted from below, without the base"
    dots = [line.get_xydata().tolist() for line in ax.lines if line.get_marker() == "o"]
    assert dots == [[[-5, 0], [-3, 0], [-1, 0]], [[0, 1], [0, 1]], [[4, 2]]]
    means = [bar.lines[0].get_xydata()[0].tolist() for bar in ax.containers]
    assert means == [[-3, 0], [0, 1], [4, 2]]
    intervals = [bar.lines[2][0].get_segments()[0][:, 0].tolist() for bar in ax.containers]
    assert intervals == [[-5, -1], [0, 0], [4, 4]], "the sample deviation of 66, 68 and 70 is 2; one seed has none"
    assert [text.get_text() for text in ax.texts] == ["-3.0", "+0.0", "+4.0"]
    assert ax.get_title(loc="left") == "Title" and "plain (71.0 ± 1.0 %)" in ax.get_xlabel()


def test_the_band_is_the_spread_of_the_base():
    [band] = plot_differences(RESULTS, "plain").axes[0].patches
    assert band.get_extents().width > 0
    np.testing.assert_allclose([band.get_x(), band.get_x() + band.get_width()], [-1, 1])
    ax = plot_differences(RESULTS | {"plain": [71.0]}, "plain").axes[0]
    assert ax.patches[0].get_width() == 0 and "plain (71.0 %, one seed)" in ax.get_xlabel()


def test_more_and_less_differ_in_color():
    colors = {bar.lines[0].get_color() for bar in plot_differences(RESULTS, "plain").axes[0].containers}
    assert len(colors) == 2


def test_a_base_alone_is_an_empty_table():
    assert plot_differences({"plain": [1.0]}, "plain").axes[0].get_yticklabels() == []


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="base='x' is not in results; there are: plain, worse"):
        plot_differences(RESULTS, "x")
    with pytest.raises(ValueError, match="one or more accuracies for each name"):
        plot_differences({"plain": [1.0], "other": []}, "plain")
