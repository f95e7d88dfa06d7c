"""Figures of a search show each trial once in every panel, and the settings in the order of their importance."""

import numpy as np
import pytest

from vit.plots import plot_importances, plot_trials

STATES = ["complete", "complete", "pruned", "refused", "failed", "complete", "stopped"]
ROWS = [
    {
        "trial": i,
        "state": state,
        "val_accuracy": {"refused": None, "failed": None, "pruned": 12.0}.get(state, 50.0 + (30 * i) % 11),
        "epochs": 3,
        "train.learning_rate": 10.0 ** -(i % 4),
        "model.depth": 2 + i,
        "model.pos_embed": "rope" if i % 2 else "learned",
        "model.layer_scale": None if i % 2 else 1e-4,
        "reason": "",
    }
    for i, state in enumerate(STATES)
]
NUMBERS = {"trial": "trial", "learning rate": "train.learning_rate", "depth": "model.depth"}
SETTINGS = ["learning rate", "depth", "pos embed", "layer scale"]


def marks(ax):
    return {line.get_label(): line.get_xydata() for line in ax.lines if line.get_marker() != "None"}


def test_every_trial_stands_in_every_panel():
    figure = plot_trials(ROWS, log_names=["train.learning_rate"])
    assert [ax.get_xlabel() for ax in figure.axes] == ["trial", *SETTINGS]
    assert [ax.get_xscale() for ax in figure.axes] == ["linear", "log", "linear", "linear", "linear"]
    places = {"complete": [0, 5], "best": [1], "pruned": [2], "failed": [4]}
    for ax in figure.axes:
        drawn = marks(ax)
        assert drawn.keys() == places.keys()
        for state, numbers in places.items():
            if ax.get_xlabel() in NUMBERS:
                np.testing.assert_allclose(drawn[state][:, 0], [ROWS[i][NUMBERS[ax.get_xlabel()]] for i in numbers])
            else:
                names = [tick.get_text() for tick in ax.get_xticklabels()]
                value = "model." + ax.get_xlabel().replace(" ", "_")
                assert [names[round(x)] for x in drawn[state][:, 0]] == [str(ROWS[i][value]) for i in numbers]
            if state in ("complete", "best"):
                assert list(drawn[state][:, 1]) == [ROWS[i]["val_accuracy"] for i in numbers]
        # Those that ended early stand below all others, in sight and apart, and no tick gives them an accuracy.
        low = min(drawn["complete"][:, 1].min(), drawn["best"][0, 1])
        assert low == 50.0
        assert ax.get_ylim()[0] < drawn["failed"][0, 1] < drawn["pruned"][0, 1] < low
        assert all(tick > drawn["pruned"][0, 1] for tick in ax.get_yticks())


def test_the_line_is_the_best_so_far():
    accuracies = [50.0, 40.0, 55.0, 52.0, 60.0]
    rows = [{"trial": i, "state": "complete", "val_accuracy": a, "model.depth": 3} for i, a in enumerate(accuracies)]
    (line,) = (line for line in plot_trials(rows).axes[0].lines if line.get_label() == "best so far")
    np.testing.assert_array_equal(line.get_ydata()[:5], [50, 50, 55, 55, 60])
    figure = plot_trials(rows[:1])
    assert len(figure.axes) == 2 and rows[0]["state"] == "complete", "the caller's rows stay as they are"
    figure.draw_without_rendering()


def test_bars_are_in_order_and_named():
    ax = plot_importances({"model.depth": 0.2, "train.learning_rate": 0.75, "train.flip": 0.05}).axes[0]
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([5, 20, 75])
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["flip", "depth", "learning rate"]
    assert [text.get_text() for text in ax.texts] == ["5", "20", "75"]


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="rows holds no complete trial"):
        plot_trials([row for row in ROWS if row["state"] != "complete"])
    for shares in ({}, {"train.flip": 1.5}, {"train.flip": float("nan")}):
        with pytest.raises(ValueError, match=r"must hold a name or more with a share in \[0, 1\]"):
            plot_importances(shares)
