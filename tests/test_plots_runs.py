"""Figures of runs and learning rates show the numbers they were given, and name every line where it ends."""

import shutil
from itertools import pairwise

import numpy as np
import pytest

from vit.plots import plot_progress
from vit.plots.runs import plot_learning_rates, plot_runs
from vit.plots.style import spread_heights
from vit.training import History, list_runs


def rows(count, last, **more):
    return [
        {"epoch": e, "seconds": 30.0 * e, "val_accuracy": last * e / count, "val_loss": 2 / e, **more}
        for e in range(1, count + 1)
    ]


def curves(ax):
    return {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}


@pytest.mark.parametrize(("against", "label"), [("epoch", "epoch"), ("seconds", "training time (s)")])
@pytest.mark.parametrize(("quantity", "name"), [("val_accuracy", "validation accuracy (%)"), ("val_loss", None)])
def test_lines_hold_the_histories(against, label, quantity, name):
    runs = {"a": rows(3, 50.0), "b": rows(5, 60.0), "not begun": []}
    ax = plot_runs(runs, quantity=quantity, against=against).axes[0]
    assert list(curves(ax)) == ["a", "b"]
    for run, line in curves(ax).items():
        np.testing.assert_array_equal(line.get_xdata(), [row[against] for row in runs[run]])
        np.testing.assert_array_equal(line.get_ydata(), [row[quantity] for row in runs[run]])
    assert ax.get_xlabel() == label and ax.get_ylabel() == (name or "validation loss (nats)")
    assert not ax.get_legend()
    whole = plot_runs({name: History(of_run) for name, of_run in runs.items()}, quantity=quantity, against=against)
    for run, line in curves(whole.axes[0]).items():
        np.testing.assert_array_equal(line.get_xydata(), curves(ax)[run].get_xydata())


def test_eight_runs_are_told_apart_and_named_without_overlap():
    runs = {f"run {i}": rows(2 + i, 60 + 0.01 * i) for i in range(7)}
    runs["a name that is far too long for the margin"] = [{"epoch": 1, "val_accuracy": float("nan")}]
    figure = plot_runs(runs)
    ax = figure.axes[0]
    looks = {(line.get_color(), line.get_marker()) for line in curves(ax).values()}
    assert len(looks) == 8 and len({color for color, _ in looks}) == 8 and len({marker for _, marker in looks}) == 8
    figure.draw_without_rendering()
    texts = [text for text in ax.texts if text.get_text()]
    boxes = sorted((text.get_window_extent() for text in texts), key=lambda box: box.y0)
    assert len(boxes) == 8
    assert all(low.y1 <= high.y0 + 1 for low, high in pairwise(boxes)), "in pixels"
    assert all(box.x0 > ax.get_window_extent().x1 and box.x1 <= figure.bbox.x1 for box in boxes)
    labels = [text.get_text() for text in sorted(texts, key=lambda text: text.get_position()[1])]
    assert labels == ["nan  a name that is far too …", *(f"{60 + 0.01 * i:.2f}  run {i}" for i in range(7))]
    # The marker beside a name is that of its line.
    legend = {round(line.get_ydata()[0], 6): line for line in ax.lines if line.get_label().startswith("_")}
    for text in texts:
        marker, name = legend[round(text.get_position()[1], 6)], text.get_text().split("  ")[1]
        line = curves(ax).get(name) or curves(ax)["a name that is far too long for the margin"]
        assert (marker.get_color(), marker.get_marker()) == (line.get_color(), line.get_marker())


def test_a_single_epoch_is_a_point_that_can_be_seen():
    ax = plot_runs({"a": rows(1, 40.0)}).axes[0]
    assert curves(ax)["a"].get_marker() != "None" and ax.get_xlim()[0] <= 1 <= ax.get_xlim()[1]


def test_a_run_is_named_at_its_last_value():
    """Not at its last epoch, where a loss that is no number has no place."""
    lost = [{**row, "val_loss": 0.5 if row["epoch"] <= 3 else float("nan")} for row in rows(5, 50.0)]
    ax = plot_runs({"a": lost}, quantity="val_loss").axes[0]
    [thread], [name] = ([text for text in ax.texts if bool(text.get_text()) == named] for named in (False, True))
    assert thread.xy == (3, 0.5) and name.get_text() == "0.5000  a"


def test_runs_bring_their_names(tmp_path):
    """Their own, or their folders' where two have the same, or with those that hold them."""
    folders = [tmp_path / "1" / "20260101-000000-a", tmp_path / "1" / "20260102-000000-a", tmp_path / "1" / "b"]
    for number, folder in enumerate(folders, 1):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        History(rows(number, 50.0)).save_csv(folder / "history.csv")
    runs = list_runs(tmp_path / "1")
    drawn = curves(plot_runs(runs).axes[0])
    assert [(name, len(line.get_xdata())) for name, line in drawn.items()] == [
        ("20260101-000000-a", 1), ("20260102-000000-a", 2), ("b", 3)
    ]  # fmt: skip
    assert list(curves(plot_runs({"x": runs[1]}).axes[0])) == ["x"]
    shutil.copytree(tmp_path / "1", tmp_path / "2")
    both = plot_runs([runs[2], *list_runs(tmp_path / "2")[2:]])
    assert list(curves(both.axes[0])) == ["1/b", "2/b"]
    drawn = {text.get_text().split()[-1] for text in both.axes[0].texts if text.get_text()}
    assert drawn == {"1/b", "2/b"}, "not cut alike"
    with pytest.raises(TypeError, match="runs must be a list of runs, .* or a dict with a name for each history"):
        plot_runs([runs[0].history])


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="runs has 9 with an epoch; between 1 and 8 can be told apart"):
        plot_runs({str(i): rows(2, 50.0) for i in range(9)})
    with pytest.raises(ValueError, match="runs has 0 with an epoch"):
        plot_runs({"a": []})
    with pytest.raises(ValueError, match="the run 'a' has no column 'train_loss'; columns: epoch, seconds"):
        plot_runs({"a": rows(2, 50.0)}, quantity="train_loss")
    with pytest.raises(ValueError, match="against='time' is not a choice; allowed: epoch, seconds"):
        plot_runs({"a": rows(2, 50.0)}, against="time")


@pytest.mark.parametrize("seed", range(5))
def test_names_move_apart_and_no_further(seed):
    rng = np.random.default_rng(seed)
    heights = np.sort(rng.random(6) ** 3)
    placed = spread_heights(heights, 0.1)
    assert (np.diff(placed) >= 0.1 - 1e-9).all() and placed.max() <= 1 + 1e-9
    apart = np.array([0.0, 0.3, 0.45, 1.0])
    np.testing.assert_allclose(spread_heights(apart, 0.1), apart)
    np.testing.assert_allclose(spread_heights(np.array([0.5, 0.5, 0.9]), 0.1), [0.45, 0.55, 0.9])
    np.testing.assert_allclose(spread_heights(np.array([1.0, 1.0, 1.0]), 0.2), [0.6, 0.8, 1.0])
    order = rng.permutation(6)
    np.testing.assert_allclose(spread_heights(heights[order], 0.1), placed[order], err_msg="in any order")


def test_the_suggestion_is_marked_on_the_curve():
    factors, losses = np.geomspace(0.01, 100, 50), np.linspace(2.3, 1.5, 50)
    losses[-1] = 1e6
    smoothed = np.linspace(2.3, 1.6, 50)
    ax = plot_learning_rates(factors, losses, smoothed, suggestion=0.5).axes[0]
    drawn = {line.get_label(): line for line in ax.lines}
    np.testing.assert_array_equal(drawn["each step"].get_xydata(), np.stack([factors, losses], axis=1))
    np.testing.assert_array_equal(drawn["smoothed"].get_xydata(), np.stack([factors, smoothed], axis=1))
    assert [line.get_xdata()[0] for line in ax.lines if len(line.get_xdata()) == 2] == [0.5]
    assert [text.get_text().strip() for text in ax.texts] == ["suggestion: 0.5"]
    assert ax.get_xscale() == "log" and "factor" in ax.get_xlabel() and "nats" in ax.get_ylabel()
    assert ax.get_ylim()[1] < 10, "the last loss must not press the rest flat"
    without = plot_learning_rates(factors, losses, smoothed).axes[0]
    assert len(without.lines) == 2 and not without.texts
    with pytest.raises(ValueError, match=r"equally long and hold two or more numbers, got \(50,\), \(49,\)"):
        plot_learning_rates(factors, losses[1:], smoothed)


def test_epochs_without_the_column_leave_a_gap():
    rows = [{"epoch": 1.0}, {"epoch": 2.0, "val_accuracy": 50.0}, {"epoch": 3.0, "val_accuracy": 60.0}]
    line = plot_runs({"a": rows}).axes[0].lines[0]
    np.testing.assert_array_equal(line.get_ydata(), [np.nan, 50.0, 60.0])
    with pytest.raises(ValueError, match="the run 'a' has no column 'val_accuracy'"):
        plot_runs({"a": rows[:1]})


def test_progress_draws_losses_and_rows_in_their_places():
    rows = [
        {"epoch": e, "train_loss": 2 / e, "val_loss": 1.8 / e, "train_accuracy": 30.0 * e, "val_accuracy": 31.0 * e}
        for e in (1, 1.5)
    ]
    left, right = plot_progress([(0.25, 2.3), (0.5, 2.0)], rows, epochs=3).axes
    found = [{name: line.get_xydata().tolist() for name, line in curves(ax).items()} for ax in (left, right)]
    assert found[0] == {"train, epoch so far": [[0.25, 2.3], [0.5, 2.0]], "val": [[1, 1.8], [1.5, 1.2]]}
    assert found[1] == {"train": [[1, 30.0], [1.5, 45.0]], "val": [[1, 31.0], [1.5, 46.5]]}
    assert left.get_xlim() == right.get_xlim() == (0, 3) and "nats" in left.get_ylabel() and "%" in right.get_ylabel()
