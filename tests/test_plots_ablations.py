"""The figure of differences shows every seed, their means and the base's own spread, best first."""

import numpy as np
import pytest
from scipy import stats

from vit.plots import plot_differences
from vit.plots.ablations import _t_95
from vit.plots.style import GRAY

RESULTS = {"plain": [70.0, 71.0, 72.0], "worse": [66.0, 68.0, 70.0], "better": [75.0], "level": [71.0, 71.0]}


def test_rows_are_differences_from_the_mean_of_the_base_best_on_top():
    ax = plot_differences(RESULTS, "plain", title="Title").axes[0]
    rows = [text.get_text() for text in ax.get_yticklabels()]
    assert rows == ["worse", "level", "better"], "counted from below, without the base"
    dots = [line.get_xydata().tolist() for line in ax.lines if line.get_marker() == "o"]
    assert dots == [[[-5, 0], [-3, 0], [-1, 0]], [[0, 1], [0, 1]], [[4, 2]]]
    means = [bar.lines[0].get_xydata()[0].tolist() for bar in ax.containers]
    assert means == [[-3, 0], [0, 1], [4, 2]]
    # Squares around their own means: 2 of plain, 8 of worse, 0 of the others; of 2 + 2 + 0 + 1 degrees of freedom.
    deviation = 2**0.5
    intervals = [bar.lines[2][0].get_segments()[0][:, 0].tolist() for bar in ax.containers]
    expected = [(mean - deviation / n**0.5, mean + deviation / n**0.5) for mean, n in ((-3, 3), (0, 2), (4, 1))]
    np.testing.assert_allclose(intervals, expected)
    assert [text.get_text() for text in ax.texts] == ["-3.0", "0.0", "+4.0"]
    assert ax.get_title(loc="left") == "Title" and ax.get_xlabel().endswith("71.0 % (one seed ± 1.4)")


def test_the_band_holds_95_percent_of_differences_that_are_chance():
    ax = plot_differences(RESULTS, "plain").axes[0]
    # t * sqrt(2) * sqrt(1/3 + 1/n) for 3, 2 and 1 seeds, with 5 degrees of freedom
    half = [stats.t.ppf(0.975, 5) * (2 / 3 + 2 / n) ** 0.5 for n in (3, 2, 1)]
    spans = [(band.get_x(), band.get_x() + band.get_width()) for band in ax.patches]
    np.testing.assert_allclose(spans, [(-h, h) for h in half], rtol=1e-3)
    assert [(band.get_y(), band.get_height()) for band in ax.patches] == [(-0.5, 1), (0.5, 1), (1.5, 1)], "a row each"


def test_the_band_is_not_that_of_the_base_alone():
    """By chance its seeds may be alike."""
    ax = plot_differences({"plain": [71.0, 71.0, 71.0], "other": [70.0, 72.0, 74.0]}, "plain").axes[0]
    # Squares 0 + 8, of 4 degrees of freedom: a deviation of sqrt(2); the band is t * sqrt(2) * sqrt(2/3).
    assert ax.patches[0].get_width() / 2 == pytest.approx(stats.t.ppf(0.975, 4) * (4 / 3) ** 0.5, rel=1e-3)
    single = plot_differences({"plain": [71.0], "other": [72.0]}, "plain").axes[0]
    assert not single.patches and "71.0 % (no spread is known)" in single.get_xlabel()


def test_the_quantile_is_students():
    for freedom in range(1, 200):
        assert _t_95(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=0.01)


def test_more_less_and_chance_differ_in_color():
    known = {"plain": [70.0, 71.0, 72.0], "less": [50.0], "a little": [70.0], "more": [90.0]}
    unknown = {name: values[:1] for name, values in known.items()}
    colors, of_unknown = (
        [bar.lines[0].get_color() for bar in plot_differences(results, "plain").axes[0].containers]
        for results in (known, unknown)
    )
    assert len(set(colors)) == 3 and colors[1] == GRAY
    assert len(set(of_unknown)) == 2, "of one seed each, nothing is called chance"


def test_almost_nothing_has_no_sign_of_a_loss():
    ax = plot_differences({"plain": [71.0], "other": [70.99]}, "plain").axes[0]
    assert [text.get_text() for text in ax.texts] == ["0.0"]


def test_a_base_alone_is_an_empty_table():
    assert plot_differences({"plain": [1.0]}, "plain").axes[0].get_yticklabels() == []


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="base='x' is not in results; there are: plain, worse"):
        plot_differences(RESULTS, "x")
    with pytest.raises(ValueError, match="one or more accuracies for each name"):
        plot_differences({"plain": [1.0], "other": []}, "plain")
