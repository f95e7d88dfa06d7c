"""Runs are read as they were written, damage is told and never crashes, and nothing but a run is ever deleted."""

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from vit.config import TrainConfig, ViTConfig
from vit.training import History, new_run_folder, run_lock, write_summary
from vit.training.run_lock import being_written, is_being_written
from vit.training.runs import (
    compare_runs,
    delete_run,
    list_runs,
    load_run,
    log_to_tensorboard,
    rename_run,
    skipped_folders,
    sort_runs,
)

TRAIN = TrainConfig.preset("quick")


@pytest.fixture(autouse=True)
def no_run_folder(monkeypatch):
    monkeypatch.delenv("VIT_RUN_FOLDER", raising=False)


def make_run(root, name, accuracies=(40.0, 50.0), *, model=None, train=TRAIN, stamp=None, **more):
    folder = new_run_folder(name, root, model=model or ViTConfig(depth=2), train=train, **more)
    if stamp:
        folder = folder.rename(root / f"{stamp}-{name}")
    rows = [{"epoch": i + 1, "val_accuracy": a, "seconds": 10.0 * (i + 1)} for i, a in enumerate(accuracies)]
    History(rows).save_csv(folder / "history.csv")
    return folder


def test_runs_are_read_as_they_were_written_in_the_order_of_their_time(tmp_path):
    late = make_run(tmp_path, "late", stamp="20260102-000000", data="shapes")
    early = make_run(tmp_path, "early", (30.0,), stamp="20260101-235959")
    write_summary(late, TRAIN, test_accuracy=74.5)
    runs = list_runs(tmp_path)
    assert [run.folder for run in runs] == [early, late] and [run.name for run in runs] == ["early", "late"]
    run = runs[1]
    assert run.history["val_accuracy"] == [40.0, 50.0] and run.history.is_complete and not runs[0].history.is_complete
    assert ViTConfig.from_dict(run.config["model"]) == ViTConfig(depth=2)
    assert TrainConfig.from_dict(run.config["train"]) == TRAIN
    wanted = ("test_accuracy", "val_accuracy", "train.learning_rate", "data", "model.depth", "nothing")
    assert [run.value(name) for name in wanted] == [74.5, 50.0, TRAIN.learning_rate, "shapes", 2, None]
    assert runs[0].summary == {} and runs[0].value("test_accuracy") is None
    assert not run.is_running and skipped_folders(tmp_path) == {}


def test_runs_without_a_time_in_their_names_are_listed_when_they_began(tmp_path):
    """Such as those of fit(..., run_dir="runs/first"); in copied files the time in a name counts."""
    folders = [make_run(tmp_path, name) for name in ("b", "first", "a")]
    folders[1] = folders[1].rename(tmp_path / "first")
    assert [run.folder for run in list_runs(tmp_path)] == folders
    os.utime(folders[1] / "config.json", (0, 0))
    old = folders[2].rename(tmp_path / "19800101-000000-a")
    no_time = folders[0].rename(tmp_path / "20269999-000000-b")
    assert [run.folder for run in list_runs(tmp_path)] == [folders[1], old, no_time]


def test_a_folder_that_is_not_there_is_said_to_be_missing_itself(tmp_path):
    with pytest.raises(ValueError, match=rf"^there is no folder {tmp_path}/nowhere; list_runs\(\) finds"):
        load_run(tmp_path / "nowhere")


def test_a_run_shows_itself_in_a_line(tmp_path):
    run, empty = load_run(make_run(tmp_path, "a")), load_run(make_run(tmp_path, "b", ()))
    assert repr(run) == f"Run('a', epoch=2, val_accuracy=50.00, folder={str(run.folder)!r})"
    assert repr(empty) == f"Run('b', epoch=0, folder={str(empty.folder)!r})"


def test_the_root_is_where_new_runs_are_made(tmp_path, monkeypatch):
    monkeypatch.setenv("VIT_RUNS", str(tmp_path / "here"))
    assert list_runs() == []
    folder = make_run(None, "a")
    assert folder.parent == tmp_path / "here" and [run.folder for run in list_runs()] == [folder]
    rename_run(folder, "b")
    delete_run(list_runs()[0])
    assert list_runs() == []


DAMAGE = {
    "no config": (lambda f: (f / "config.json").unlink(), "config.json is missing"),
    "half a config": (lambda f: (f / "config.json").write_text('{"model": {'), "config.json cannot be read"),
    "another config": (lambda f: (f / "config.json").write_text("[1]"), "config.json holds a list"),
    "deep config": (lambda f: (f / "config.json").write_text("[" * 100_000), "config.json cannot be read"),
    "no history": (lambda f: (f / "history.csv").unlink(), "history.csv is missing: no epoch has ended yet"),
    "words": (lambda f: (f / "history.csv").write_text("epoch\none\n"), "history.csv cannot be read"),
    "a short row": (lambda f: (f / "history.csv").write_text("epoch,loss\n1\n"), "history.csv cannot be read"),
    "a long row": (lambda f: (f / "history.csv").write_text("epoch,loss\n1,2,3\n"), "history.csv cannot be read"),
    "no epochs": (lambda f: (f / "history.csv").write_text("loss\n1\n"), "history.csv has no column epoch"),
    "bytes": (lambda f: (f / "history.csv").write_bytes(b"\xff\x00\xfe" * 99), "history.csv cannot be read"),
    "a folder": (lambda f: ((f / "history.csv").unlink(), (f / "history.csv").mkdir()), "history.csv cannot be read"),
    "half a summary": (lambda f: (f / "summary.json").write_text('{"a'), "summary.json cannot be read"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_folders_are_skipped_with_the_reason(tmp_path, kind):
    damage, reason = DAMAGE[kind]
    good, bad = make_run(tmp_path, "good"), make_run(tmp_path, "bad")
    damage(bad)
    (tmp_path / "a file").write_text("")
    assert [run.folder for run in list_runs(tmp_path)] == [good]
    assert list(skipped_folders(tmp_path)) == [bad.name]
    assert skipped_folders(tmp_path)[bad.name].startswith(f"{bad.name}/{reason}")
    with pytest.raises(ValueError, match=reason):
        load_run(bad)


def test_a_file_cut_off_anywhere_is_no_crash(tmp_path):
    folder = make_run(tmp_path, "a")
    for name in ("config.json", "history.csv"):
        whole = (folder / name).read_bytes()
        for length in range(0, len(whole), 1 + len(whole) // 60):
            (folder / name).write_bytes(whole[:length])
            assert len(list_runs(tmp_path)) + len(skipped_folders(tmp_path)) == 1
        (folder / name).write_bytes(whole)


def test_a_run_stopped_in_its_first_epoch_has_an_empty_history(tmp_path):
    make_run(tmp_path, "a", ())
    (run,) = list_runs(tmp_path)
    assert len(run.history) == 0 and not run.history.is_complete and run.value("val_accuracy") is None


def test_the_settings_that_differ(tmp_path):
    make_run(tmp_path, "a", stamp="20260101-000000", data="shapes")
    folder = make_run(tmp_path, "b", stamp="20260101-000001", train=replace(TRAIN, learning_rate=0.5), note="b")
    make_run(tmp_path, "c", stamp="20260101-000002", model=ViTConfig(depth=2, layer_scale=0.1), data="shapes")
    # A run of the days before a setting was there: it had the default.
    config = json.loads((folder / "config.json").read_text())
    del config["train"]["patch_drop_rate"], config["model"]["pool"]
    (folder / "config.json").write_text(json.dumps(config))
    assert compare_runs(list_runs(tmp_path)) == {
        "model.layer_scale": [None, None, 0.1],
        "train.learning_rate": [TRAIN.learning_rate, 0.5, TRAIN.learning_rate],
        "data": ["shapes", "", "shapes"],
        "note": ["", "b", ""],
    }
    assert compare_runs(list_runs(tmp_path)[:1]) == {} and compare_runs([]) == {}


def test_sorting_puts_what_is_missing_last(tmp_path):
    for i, accuracies in enumerate([(50.0,), (), (60.0, 40.0), (float("nan"),), (70.0,)]):
        make_run(tmp_path, f"run{i}", accuracies, train=replace(TRAIN, optimizer="adamw" if i == 4 else "muon"))
    runs = list_runs(tmp_path)
    names = [[run.name for run in sort_runs(runs, "val_accuracy", descending=d)] for d in (True, False)]
    assert names == [["run4", "run0", "run2", "run1", "run3"], ["run2", "run0", "run4", "run1", "run3"]]
    assert sort_runs(runs, "train.optimizer", descending=False)[0].name == "run4"
    with pytest.raises(
        ValueError, match=r"no run has by='val_acc'; did you mean 'val_accuracy'\? they have: epoch, .*mod"
    ):
        sort_runs(runs, "val_acc")
    assert sort_runs([], "val_acc") == []


def test_a_new_name_keeps_the_time(tmp_path):
    folder = make_run(tmp_path, "old")
    time = folder.name.removesuffix("old")
    run = rename_run(load_run(folder), "new.name-2", tmp_path)
    assert run.folder == tmp_path / f"{time}new.name-2" and run.name == "new.name-2" and not folder.exists()
    assert run.history["val_accuracy"] == [40.0, 50.0]
    other = make_run(tmp_path, "x").rename(tmp_path / f"{time}other")
    with pytest.raises(FileExistsError, match="other exists already"):
        rename_run(run, "other", tmp_path)
    for name in ("..", ".", "", "a/b", "../a", "-r", "a b"):
        with pytest.raises(ValueError, match="may hold letters, digits"):
            rename_run(other, name, tmp_path)
    (other / "history.csv").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="history.csv is missing"):
        rename_run(other, "moved", tmp_path)
    assert other.exists(), "it keeps the name that the message speaks of"
    (tmp_path / "elsewhere").rename(other / "history.csv")
    plain = other.rename(tmp_path / "plain")
    assert rename_run(plain, "simple", tmp_path).folder == tmp_path / "simple"


def test_only_runs_directly_in_the_root_are_deleted(tmp_path):
    root = tmp_path / "runs"
    run, elsewhere = make_run(root, "a"), make_run(tmp_path / "elsewhere", "b")
    nested = make_run(run, "nested")
    link = root / "link"
    link.symlink_to(elsewhere, target_is_directory=True)
    alias = root / "alias"
    alias.symlink_to(run, target_is_directory=True)
    other = root / "notes"
    other.mkdir()
    (other / "config.json").write_text("{}")
    empty = root / "20260101-000000-empty"
    empty.mkdir()
    refused = {
        root: "not a folder directly in",
        root / "nowhere": "not a folder directly in",
        elsewhere: "not a folder directly in",
        root / ".." / "elsewhere" / elsewhere.name: "not a folder directly in",
        nested: "not a folder directly in",
        link: "not a folder directly in",
        alias: "not a folder directly in",
        other: "neither history.csv nor state.pt: it is not a run",
        empty: "config.json is missing",
    }
    before = sorted(tmp_path.rglob("*"))
    for folder, message in refused.items():
        with pytest.raises(ValueError, match=message):
            delete_run(folder, root)
        with pytest.raises(ValueError, match=message):
            rename_run(folder, "c", root)
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(ValueError, match="not a folder directly in"):
        delete_run(load_run(elsewhere), root)
    for run_through_a_link in (load_run(link), load_run(alias)):
        with pytest.raises(ValueError, match="not a folder directly in"):
            delete_run(run_through_a_link)
    assert sorted(tmp_path.rglob("*")) == before
    delete_run(load_run(run), root)
    assert not run.exists() and elsewhere.exists()


def test_a_run_is_changed_where_it_is(tmp_path, monkeypatch):
    """A path must be in the usual root, unless another one is named."""
    monkeypatch.setenv("VIT_RUNS", str(tmp_path / "usual"))
    folder = make_run(tmp_path / "elsewhere", "a")
    for change in (lambda: delete_run(folder), lambda: rename_run(folder, "b")):
        with pytest.raises(ValueError, match="not a folder directly in .*usual"):
            change()
    run = rename_run(load_run(folder), "b")
    assert run.folder.parent == tmp_path / "elsewhere" and run.name == "b" and not folder.exists()
    monkeypatch.chdir(run.folder)
    delete_run(load_run("."))
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_run_that_is_being_written_stays(tmp_path):
    folder = make_run(tmp_path, "a")
    with being_written(folder):
        assert load_run(folder).is_running
        for change in (lambda: delete_run(folder, tmp_path), lambda: rename_run(folder, "b", tmp_path)):
            with pytest.raises(RuntimeError, match="a training is writing into"):
                change()
        with pytest.raises(RuntimeError, match="another training is writing into"), being_written(folder):
            pass
    with contextlib.suppress(KeyError), being_written(folder):
        raise KeyError
    assert not is_being_written(folder) and not is_being_written(tmp_path / "nowhere")
    delete_run(folder, tmp_path)
    assert not folder.exists()


@pytest.mark.skipif(os.name != "posix", reason="the other process is written for the locks of POSIX systems")
def test_another_process_counts_until_it_dies(tmp_path):
    folder = make_run(tmp_path, "a")
    code = f"""
import fcntl
file = open({str(folder / ".lock")!r}, "a")
fcntl.flock(file, fcntl.LOCK_EX)
print("locked", flush=True)
input()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout.readline() == "locked\n"
        assert is_being_written(folder)
        with pytest.raises(RuntimeError, match="a training is writing into"):
            delete_run(folder, tmp_path)
        process.kill()
        process.wait()
        assert not is_being_written(folder)
    delete_run(folder, tmp_path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_worker_that_outlives_the_training_does_not_hold_its_lock(tmp_path):
    code = f"""
import importlib.util, os, signal, time
spec = importlib.util.spec_from_file_location("run_lock", {run_lock.__file__!r})
lock = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lock)
with lock.being_written({str(tmp_path)!r}):
    worker = os.fork()
    if worker == 0:
        time.sleep(30)
        os._exit(0)
    assert lock.is_being_written({str(tmp_path)!r})
print(lock.is_being_written({str(tmp_path)!r}))
os.kill(worker, signal.SIGKILL)
os.wait()
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_without_tensorboard_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="TensorBoard is not installed; python -m pip install tensorboard"):
        log_to_tensorboard(make_run(tmp_path, "a"))


def test_tensorboard_reads_the_history(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = make_run(tmp_path, "a", (40.0, 50.5, 60.25))
    log_to_tensorboard(folder)
    path = log_to_tensorboard(folder)  # in place of the first
    assert list(folder.glob("events*")) == [path]
    events = accumulator.EventAccumulator(str(folder)).Reload()
    assert events.Tags()["scalars"] == ["accuracy/val"]
    scalars = events.Scalars("accuracy/val")
    assert [(s.step, s.value) for s in scalars] == [(1, 40.0), (2, 50.5), (3, 60.25)]
    assert [s.wall_time - scalars[0].wall_time for s in scalars] == pytest.approx([0, 10, 20], abs=1e-3)
    text = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert '"embed_dim": 96' in text


def test_tensorboard_is_told_every_column(tmp_path, monkeypatch):
    """Whether or not it is installed."""
    told = []

    class Writer:
        def __init__(self, folder: str, filename_suffix: str) -> None:
            self.path = Path(folder) / f"events.out.tfevents.{len(told)}{filename_suffix}"

        def __enter__(self) -> "Writer":
            return self

        def __exit__(self, *_) -> None:
            self.path.touch()

        def add_text(self, *_) -> None:
            pass

        def add_scalar(self, tag: str, value: float, step: int, walltime: float) -> None:
            told.append((tag, value, step))

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    folder = make_run(tmp_path, "a")
    row = {"epoch": 1, "train_loss": 2.0, "val_accuracy": 40.0, "learning_rate": 0.1, "seconds": 5}
    History([row]).save_csv(folder / "history.csv")
    of_somebody_else = folder / "events.out.tfevents.1.host"
    of_somebody_else.touch()
    log_to_tensorboard(folder)
    assert told == [("loss/train", 2.0, 1), ("accuracy/val", 40.0, 1), ("learning_rate", 0.1, 1)]
    path = log_to_tensorboard(load_run(folder))  # in place of the first
    assert set(folder.glob("events*")) == {path, of_somebody_else}
