"""The table of runs: what the folder holds, in the order asked for, and its buttons do what the functions do."""

import io
import re

import numpy as np
import pytest
from ipywidgets.widgets.widget import _instances
from PIL import Image

from vit.config import TrainConfig, ViTConfig
from vit.plots import plot_runs
from vit.training import History, list_runs, load_run
from vit.training.run_folder import write_json
from vit.training.run_lock import being_written
from vit.widgets.run_table import MAX_CURVES, MAX_ROWS, RunTable

pytestmark = pytest.mark.usefixtures("plain_figures")


def make_run(root, name, accuracies, *, epochs=2, **changes):
    folder = root / name
    folder.mkdir()
    train = TrainConfig(epochs=epochs, warmup_epochs=0.1, **changes)
    write_json(folder / "config.json", {"model": ViTConfig().to_dict(), "train": train.to_dict()})
    rows = [
        {
            "epoch": i + 1,
            "train_loss": 2 - i,
            "train_accuracy": a,
            "val_loss": 2 - i,
            "val_accuracy": a,
            "seconds": 9 * i,
        }
        for i, a in enumerate(accuracies)
    ]
    History(rows).save_csv(folder / "history.csv")
    write_json(folder / "summary.json", {"num_parameters": 1000 * len(name)})
    return folder


@pytest.fixture
def root(tmp_path):
    make_run(tmp_path, "20260101-000000-first", [30.0, 50.0])
    make_run(tmp_path, "20260102-000000-second", [40.0], learning_rate=1e-3)
    make_run(tmp_path, "20260103-000000-third", [20.0, 60.0], seed=5)
    return tmp_path


@pytest.fixture
def table(root):
    return RunTable(root)


def names(table) -> list[str]:
    return [run.name for run in table.runs]


def texts(table) -> list[list[str]]:
    """What the rows say, row by row."""
    cells = [
        re.sub("<[^>]+>", "", getattr(cell, "value", "") or "") if hasattr(cell, "placeholder") else ""
        for cell in table.rows.children
    ]
    return [cells[i + 1 : i + 7] for i in range(0, len(cells), 7)]


def test_it_lists_the_runs_newest_first(table):
    assert texts(table) == [
        ["run", "val %", "epochs", "parameters", "seconds", ""],
        ["third", "60.0", "2", "21,000", "9", "done"],
        ["second", "40.0", "1", "22,000", "0", "stopped"],
        ["first", "50.0", "2", "21,000", "9", "done"],
    ]


def test_it_sorts(table):
    table.order.value = "validation accuracy"
    assert names(table) == ["third", "first", "second"]
    table.ascending.value = True
    assert names(table) == ["second", "first", "third"]
    table.order.value = "newest"
    assert names(table) == ["first", "second", "third"]


def test_a_run_of_today_is_newer_whatever_its_name(table, root):
    make_run(root, "0th", [1.0])
    table.refresh()
    assert names(table) == ["0th", "third", "second", "first"]


def test_an_order_that_no_run_has_is_that_of_time(tmp_path):
    for number in (1, 2):
        folder = tmp_path / f"2026010{number}-000000-run{number}"
        folder.mkdir()
        write_json(folder / "config.json", {"train": TrainConfig().to_dict()})
        History([{"epoch": 1, "train_loss": 2.0}]).save_csv(folder / "history.csv")
    table = RunTable(tmp_path)
    table.order.value = "validation accuracy"
    assert names(table) == ["run2", "run1"]
    assert texts(table)[1] == ["run2", "–", "1", "–", "–", "stopped"]


def test_ticks_stay_with_their_runs(table):
    table.choose(table.runs[2])
    table.order.value = "validation accuracy"
    assert [run.name for run in table.chosen] == ["first"]


def test_a_run_that_is_not_in_the_table_is_named_and_ticks_stay(table):
    table.choose(table.runs[2])
    known = "it has: 20260103-000000-third, 20260102-000000-second, 20260101-000000-first$"
    with pytest.raises(ValueError, match=rf"^'unknown' is no run of the table, which refresh\(\) reads again; {known}"):
        table.choose("unknown", table.runs[0])
    assert [run.name for run in table.chosen] == ["first"]


def test_it_draws_the_ticked_runs_or_else_all(table, root):
    def drawn(runs, **options):
        png = io.BytesIO()
        plot_runs({run.name: run.history.rows for run in runs}, **options).savefig(png, format="png", dpi=100)
        return np.asarray(Image.open(png))

    def shown():
        return np.asarray(Image.open(io.BytesIO(table.picture.value)))

    np.testing.assert_array_equal(shown(), drawn(table.runs))
    table.choose(table.runs[0], table.runs[2])
    np.testing.assert_array_equal(shown(), drawn([table.runs[0], table.runs[2]]))
    table.quantity.value, table.against.value = "train_loss", "seconds"
    expected = drawn([table.runs[0], table.runs[2]], quantity="train_loss", against="seconds")
    np.testing.assert_array_equal(shown(), expected)


def test_it_says_in_what_ticked_runs_differ(table):
    assert table.differences.value == ""
    table.choose(*table.runs)
    said = re.sub("<[^>]+>", " ", table.differences.value).split()
    assert said == [
        "differs",
        "third",
        "second",
        "first",
        "train.learning_rate",
        "0.002",
        "0.001",
        "0.002",
        "train.seed",
        "5",
        "0",
        "0",
    ]
    make_run(table.root, "20260104-000000-twin", [1.0], seed=5)
    table.refresh()
    table.choose(table.runs[0], table.runs[1])
    assert table.differences.value == "The ticked runs have the same settings."


def test_names_from_files_are_shown_and_not_obeyed(table):
    make_run(table.root, "<b>bold", [1.0])
    table.refresh()
    assert "&lt;b&gt;bold" in table.rows.children[8].value


def test_rename(table, root):
    table.choose(table.runs[0])
    table.name.value = "best"
    table.rename.click()
    assert names(table) == ["best", "second", "first"] and [run.name for run in table.chosen] == ["best"]
    assert (root / "20260103-000000-best").is_dir() and not (root / "20260103-000000-third").exists()
    table.name.value = "no/folder"
    table.rename.click()
    assert "name='no/folder' may hold letters" in table.message.value.replace("&#x27;", "'")
    table.choose()
    table.rename.click()
    assert "0 runs are ticked: tick one" in table.message.value


def test_delete_asks_first(table, root):
    table.choose(table.runs[1], table.runs[2])
    table.delete.click()
    assert table.delete.description == "Really delete 2?" and len(list_runs(root)) == 3
    table.choose(table.runs[1])  # another choice: the question no longer holds
    assert table.delete.description == "Delete"
    table.delete.click()
    assert len(list_runs(root)) == 3
    table.delete.click()
    assert [run.name for run in list_runs(root)] == ["first", "third"] == names(table)[::-1]
    table.choose()
    table.delete.click()
    assert "tick those to delete" in table.message.value


def test_a_run_that_cannot_be_deleted_keeps_no_other(table, root):
    table.choose(*table.runs)
    table.delete.click()
    with being_written(root / "20260102-000000-second"):
        table.delete.click()
        assert "a training is writing into" in table.message.value and "second: stop it first" in table.message.value
        assert names(table) == ["second"] == [run.name for run in table.chosen] == [run.name for run in list_runs(root)]
        assert table.delete.description == "Delete"
    table.delete.click()
    table.delete.click()
    assert names(table) == []


def test_runs_are_handed_back(root):
    asked = []
    table = RunTable(root, on_use=lambda run, what: asked.append((run.name, what)))
    table.choose(table.runs[1])
    table.settings.click()
    table.go_on.click()
    assert asked == [("second", "settings"), ("second", "training")]
    assert not any(button in str(RunTable(root).children) for button in ("Train on", "Use its settings"))


def test_a_folder_without_runs_and_one_with_many(tmp_path):
    table = RunTable(tmp_path / "nothing")
    assert table.runs == [] and table.picture.layout.display == "none"
    assert "no run has ended an epoch yet" in table.message.value
    for i in range(MAX_ROWS + 2):
        make_run(tmp_path, f"202601{i + 1:02d}-000000-same", [float(i)])
    (tmp_path / "no-run").mkdir()
    table = RunTable(tmp_path)
    assert f"{MAX_ROWS} of {MAX_ROWS + 2} runs; not readable as runs: 1, see" in table.message.value
    assert len(texts(table)) == 1 + MAX_ROWS
    table.choose(*table.runs[: MAX_CURVES + 1])
    assert f"{MAX_CURVES + 1} runs are ticked; {MAX_CURVES} curves can be told apart" in table.message.value


def test_reading_again_leaves_no_widgets_behind(table):
    before = len(_instances)
    for by in ("validation accuracy", "newest"):
        table.order.value = by
    assert len(_instances) == before


def test_it_sees_runs_that_came_later(table, root):
    make_run(root, "20260109-000000-new", [70.0])
    assert "new" not in names(table)
    table.reread.click()
    assert names(table)[0] == "new"
    assert load_run(root / "20260109-000000-new").value("val_accuracy") == 70.0
