"""Run folders and files: nothing is ever written over by accident, or half written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vit.config import TrainConfig, ViTConfig
from vit.data.cifar10 import _folder
from vit.files import replacing
from vit.training import History, new_run_folder, run_folder, write_summary
from vit.training.run_folder import runs_root


@pytest.fixture(autouse=True)
def no_run_folder(monkeypatch):
    monkeypatch.delenv("VIT_RUN_FOLDER", raising=False)


def test_runs_of_the_same_second_get_folders_of_their_own(tmp_path):
    folders = [new_run_folder("a", tmp_path, model=ViTConfig(depth=2), data="shapes") for _ in range(3)]
    assert len(set(folders)) == 3
    config = json.loads((folders[0] / "config.json").read_text())
    assert ViTConfig.from_dict(config["model"]) == ViTConfig(depth=2) and config["data"] == "shapes"


def test_the_environment_chooses_the_place(tmp_path, monkeypatch):
    monkeypatch.setenv("VIT_RUNS", str(tmp_path / "elsewhere"))
    assert new_run_folder("a").parent == tmp_path / "elsewhere"
    monkeypatch.setenv("VIT_RUN_FOLDER", str(tmp_path / "exactly-here"))
    assert new_run_folder("a") == tmp_path / "exactly-here"


def test_a_package_without_its_repository_uses_the_working_folder(tmp_path, monkeypatch):
    """And not the folder that packages are installed in."""
    for name in ("VIT_RUNS", "VIT_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("vit.files.REPOSITORY", tmp_path / "site-packages")
    monkeypatch.chdir(tmp_path)
    assert runs_root() == tmp_path / "runs" and _folder(None) == tmp_path / "data" / "cifar10"


@pytest.mark.skipif(os.name != "posix", reason="modes of files are POSIX's")
def test_files_have_the_modes_that_others_would_have_given_them(tmp_path):
    for mask, mode in ((0o077, 0o600), (0o002, 0o664)):
        code = f"import os; os.umask({mask}); from vit.files import replacing\n"
        code += f"with replacing({str(tmp_path / str(mask))!r}): pass"
        subprocess.run([sys.executable, "-c", code], check=True)
        assert (tmp_path / str(mask)).stat().st_mode & 0o777 == mode
    kept = tmp_path / "kept"
    kept.touch()
    kept.chmod(0o640)
    with replacing(kept):
        pass
    assert kept.stat().st_mode & 0o777 == 0o640, "one that is replaced keeps its own"


def test_a_disk_that_knows_no_modes_is_written_all_the_same(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("vit.files.os.chmod", refuse)
    with replacing(tmp_path / "a") as temporary:
        temporary.write_text("1")
    assert (tmp_path / "a").read_text() == "1"


def test_the_working_folder_decides_nothing(tmp_path, monkeypatch):
    """Neither where runs go nor where data is looked for: a notebook may have been started from anywhere."""
    monkeypatch.delenv("VIT_RUNS", raising=False)
    monkeypatch.delenv("VIT_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    repository = Path(__file__).resolve().parents[1]
    assert runs_root() == repository / "runs"
    assert _folder(None) == repository / "data" / "cifar10"


def test_names_that_are_no_names_are_refused(tmp_path):
    for name in ("../up", "a b", "", "a/b"):
        with pytest.raises(ValueError, match="may hold letters, digits"):
            new_run_folder(name, tmp_path)


def test_summary_says_where_the_numbers_come_from(tmp_path):
    write_summary(tmp_path, TrainConfig(seed=3, epochs=7), test_accuracy=74.5)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["test_accuracy"] == 74.5 and summary["seed"] == 3 and summary["epochs"] == 7
    assert summary["torch_version"] == torch.__version__ and summary["test_time_augmentation"] == "none"
    assert summary["commit"]
    write_summary(tmp_path, TrainConfig(), test_accuracy=np.float32(74.5), val_accuracy=torch.tensor(0.5))
    assert json.loads((tmp_path / "summary.json").read_text())["test_accuracy"] == 74.5


def test_settings_that_json_cannot_hold_are_named_and_leave_no_folder(tmp_path):
    for make in (
        lambda: new_run_folder("x", tmp_path / "runs", a=1, p=Path("y")),
        lambda: write_summary(tmp_path / "runs", TrainConfig(), a=1, p=Path("y")),
    ):
        with pytest.raises(
            TypeError, match=r"p=.*Path\('y'\) cannot be written as JSON \(.*Path\): give a text, a number"
        ):
            make()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["seed", "epochs", "threads", "commit", "torch_version", "test_time_augmentation"])
def test_a_result_cannot_have_the_name_of_what_a_summary_says_anyway(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name} cannot be a result: write_summary writes test_time_augmentation, .*"):
        write_summary(tmp_path, TrainConfig(), **{name: 77})
    assert not list(tmp_path.iterdir())


def test_a_history_is_read_where_it_was_written(tmp_path, monkeypatch):
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    History([{"epoch": 1.0}]).save_csv("~/history.csv")
    assert History.load_csv("~/history.csv").rows == [{"epoch": 1.0}] and (tmp_path / "history.csv").exists()


def test_a_history_shows_its_last_row_rounded():
    row = {"epoch": 2, "val_loss": 1.2345678901234567, "learning_rate": 0.00012345678, "seconds": 12345.678901}
    assert repr(History([{"epoch": 1}, row], True)) == (
        "History(2 epochs, complete; last: epoch=2, val_loss=1.235, learning_rate=0.0001235, seconds=12346)"
    )
    assert repr(History([{"epoch": 1.0}])) == "History(1 epoch; last: epoch=1)"
    assert repr(History()) == "History(0 epochs)"


def test_only_a_complete_history_passes_for_one():
    History([{"epoch": 1}], is_complete=True).check_complete()
    with pytest.raises(RuntimeError, match="stopped after 1 epoch: finish it, with resume=True in vit.fit"):
        History([{"epoch": 1}]).check_complete()
    with pytest.raises(RuntimeError, match="stopped after 0 epochs: "):
        History().check_complete()


def test_history_round_trip(tmp_path):
    history = History([{"epoch": 1, "val_accuracy": 50.5}, {"epoch": 2, "val_accuracy": 60.25}])
    history.save_csv(tmp_path / "history.csv")
    assert History.load_csv(tmp_path / "history.csv").rows == history.rows
    assert history["val_accuracy"] == [50.5, 60.25] and history.last["epoch"] == 2
    assert "val_accuracy" in history and "val_loss" not in history and "val_accuracy" not in History()
    assert [row["epoch"] for row in history] == [1, 2] and list(History()) == []
    with pytest.raises(KeyError, match="no column 'val_acc'; columns: epoch, val_accuracy"):
        history["val_acc"]
    with pytest.raises(ValueError, match="no epoch has ended yet"):
        _ = History().last


def test_an_interrupted_write_leaves_the_old_file_and_no_litter(tmp_path):
    target = tmp_path / "state"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(target) as temporary:
        temporary.write_text("half of the n")
        raise KeyboardInterrupt
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["state"]
    with replacing(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new" and os.listdir(tmp_path) == ["state"]


def test_a_second_run_in_a_given_folder_leaves_the_first_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("VIT_RUN_FOLDER", str(tmp_path))
    first, second = new_run_folder("a", data="x"), new_run_folder("b", data="y")
    assert first == tmp_path and second.parent == tmp_path and second.name.endswith("-b")
    assert [json.loads((f / "config.json").read_text())["data"] for f in (first, second)] == ["x", "y"]


def test_the_commit_says_whether_the_code_differs(tmp_path, monkeypatch):
    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    (tmp_path / "vit").mkdir()
    (tmp_path / "vit" / "a.py").write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "x")
    commit = git("rev-parse", "--short=12", "HEAD")
    monkeypatch.setattr(run_folder, "REPOSITORY", tmp_path)
    assert run_folder.current_commit() == commit
    (tmp_path / "notes").write_text("2")
    assert run_folder.current_commit() == commit, "notes do not compute anything"
    (tmp_path / "vit" / "a.py").write_text("2")
    assert run_folder.current_commit() == f"{commit}+"
    installed = tmp_path / ".venv" / "site-packages"
    (installed / "vit").mkdir(parents=True)
    (tmp_path / ".gitignore").write_text(".venv")
    monkeypatch.setattr(run_folder, "REPOSITORY", installed)
    monkeypatch.setenv("VIT_COMMIT", "abc")
    assert run_folder.current_commit() == "abc", "whose repository is around an installed package is not its own"
    monkeypatch.setattr(run_folder, "REPOSITORY", tmp_path / "nowhere")
    monkeypatch.delenv("VIT_COMMIT", raising=False)
    assert run_folder.current_commit() == "unknown"
    monkeypatch.setenv("VIT_COMMIT", "abc")
    assert run_folder.current_commit() == "abc"
