"""The runs in a folder: list, sort, compare, rename, delete, and hand on to TensorBoard.

A run is what its folder says, `config.json` and `history.csv`, so that runs of earlier days and of other machines count
as well. See `vit/training/run_folder.py` for what else is in it.
"""

import json
import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit.arguments import did_you_mean
from vit.config import TrainConfig, ViTConfig
from vit.files import read_json, short
from vit.training.history import History
from vit.training.run_files import HISTORY_FILE, STATE_FILE
from vit.training.run_folder import CONFIG_FILE, began, runs_root
from vit.training.run_lock import is_being_written

_EVENTS_SUFFIX = ".vit"  # of the TensorBoard files that are written here
_TIME = r"\d{8}-\d{6}-"  # what new_run_folder puts before a name
_CONFIGS = {"model": ViTConfig, "train": TrainConfig}


@dataclass(frozen=True)
class Run:
    """One run, as its folder tells it.

    Attributes:
        name: that of the folder, without its time.
        config: `config.json`; by convention "model" holds a ViTConfig, where it is of such a network, and "train" a
            TrainConfig.
        history: empty if the run was stopped in its first epoch, complete if it reached its last.
        summary: `summary.json`, or empty without one.
        is_running: whether a training was writing into the folder when it was read.
    """

    folder: Path
    name: str
    config: dict[str, Any]
    history: History
    summary: dict[str, Any]
    is_running: bool

    def __repr__(self) -> str:
        last = self.history.last if self.history else {}
        accuracy = f", val_accuracy={last['val_accuracy']:.2f}" if "val_accuracy" in last else ""
        return f"Run({self.name!r}, epoch={last.get('epoch', 0):g}{accuracy}, folder={str(self.folder)!r})"

    @property
    def settings(self) -> dict[str, Any]:
        """All of `config` in one level, by names such as "train.learning_rate"; what a ViTConfig or TrainConfig did not
        have yet in the days of the run has its default, which is what it was trained with."""
        settings = {}
        for name, value in self.config.items():
            if not isinstance(value, dict):
                settings[name] = value
                continue
            if name in _CONFIGS:
                defaults = json.loads(json.dumps(_CONFIGS[name]().to_dict()))  # with lists, as in a file
                if value.keys() <= defaults.keys():
                    value = defaults | value
            settings |= {f"{name}.{field}": v for field, v in value.items()}
        return settings

    @property
    def names(self) -> list[str]:
        """Of all that `value` knows."""
        return [name for place in self._places for name in place]

    def value(self, name: str) -> Any:
        """What the summary says under a name, or the last epoch, or the settings; None if nothing does."""
        return next((place[name] for place in self._places if name in place), None)

    @property
    def _places(self) -> tuple[dict[str, Any], ...]:
        return self.summary, self.history.last if self.history else {}, self.settings


def list_runs(root: str | Path | None = None) -> list[Run]:
    """Every run in the folder `root`, in the order in which they began, the newest last.

    Folders that are no run, or a damaged one, are left out; `skipped_folders` says why.

    Args:
        root: default $VIT_RUNS, else `runs/` in the repository, as in `new_run_folder`.
    """
    return _read_all(root)[0]


def skipped_folders(root: str | Path | None = None) -> dict[str, str]:
    """The folders that `list_runs` leaves out, by name, with the reason for each."""
    return _read_all(root)[1]


def _read_all(root: str | Path | None) -> tuple[list[Run], dict[str, str]]:
    runs, skipped = [], {}
    root = runs_root(root)
    if not root.is_dir():
        return runs, skipped
    for folder in sorted(root.iterdir()):
        if folder.is_dir() and not folder.name.startswith("."):
            try:
                runs.append(load_run(folder))
            except ValueError as error:
                skipped[folder.name] = str(error)
    return sorted(runs, key=lambda run: began(run.folder)), skipped


def load_run(folder: str | Path) -> Run:
    """The run in a folder.

    Raises:
        ValueError: there is no such folder, `config.json` or `history.csv` is missing, or one of its files cannot be
            read.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; list_runs() finds those of runs")
    config = read_json(folder / CONFIG_FILE)
    summary = read_json(folder / "summary.json") if (folder / "summary.json").exists() else {}
    history = _read_history(folder / HISTORY_FILE)
    train = config.get("train")
    epochs = train.get("epochs") if isinstance(train, dict) else None
    if history and isinstance(epochs, (int, float)):
        history.is_complete = history.last["epoch"] >= epochs
    return Run(
        folder=folder,
        name=re.sub(f"^{_TIME}", "", folder.name),
        config=config,
        history=history,
        summary=summary,
        is_running=is_being_written(folder),
    )


def _read_history(path: Path) -> History:
    try:
        history = History.load_csv(path)
    except FileNotFoundError:
        raise ValueError(f"{short(path)} is missing: no epoch has ended yet") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{short(path)} cannot be read: {error}") from error
    if history and "epoch" not in history.rows[0]:
        raise ValueError(f"{short(path)} has no column epoch")
    return history


def sort_runs(runs: Sequence[Run], by: str, *, descending: bool = True) -> list[Run]:
    """The runs ordered by a value, see `Run.value`; those without it, or with nan, come last either way. ValueError if
    no run has it."""
    names = dict.fromkeys(name for run in runs for name in run.names)
    if runs and by not in names:
        raise ValueError(f"no run has by={by!r}; {did_you_mean(by, names)}they have: {', '.join(names)}")
    known, unknown = [], []
    for run in runs:
        value = run.value(by)
        is_number = isinstance(value, (int, float))
        if value is None or (is_number and math.isnan(value)):
            unknown.append(run)
        else:
            key = (0, value, "") if is_number else (1, 0, str(value))
            known.append((key, run))
    known.sort(key=lambda pair: pair[0], reverse=descending)
    return [run for _, run in known] + unknown


def compare_runs(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """The settings in which the runs differ: for each the values, a run each, "" where a run has no such setting."""
    settings = [run.settings for run in runs]
    names = dict.fromkeys(name for of_run in settings for name in of_run)
    table = {name: [of_run.get(name, "") for of_run in settings] for name in names}
    return {name: values for name, values in table.items() if any(value != values[0] for value in values)}


def rename_run(run: Run | str | Path, name: str, root: str | Path | None = None) -> Run:
    """Gives a run another name and returns it; the time before the name stays.

    Args:
        root: the folder that holds it; default for a `Run` the one that it is in, for a path as in `list_runs`.

    Raises:
        ValueError: `name` names no folder, or the run is not a run directly in `root`.
        FileExistsError: there is another run of that name and time.
        RuntimeError: a training is writing into it.
    """
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError(f"name={name!r} may hold letters, digits, '.', '_' and '-', the first no '.' or '-'")
    folder = _folder_to_change(run, root)
    time = re.match(_TIME, folder.name)
    target = folder.with_name((time[0] if time else "") + name)
    if target.exists() and target != folder:
        raise FileExistsError(f"{target} exists already: choose another name")
    load_run(folder)  # what cannot be read afterwards is not renamed
    return load_run(folder.rename(target))


def delete_run(run: Run | str | Path, root: str | Path | None = None) -> None:
    """Deletes the folder of a run with all that is in it; `root` as in `rename_run`.

    Raises:
        ValueError: it is not a run directly in `root`.
        RuntimeError: a training is writing into it.
    """
    shutil.rmtree(_folder_to_change(run, root))


def _folder_of(run: Run | str | Path) -> Path:
    return run.folder if isinstance(run, Run) else Path(run).expanduser()


def _folder_to_change(run: Run | str | Path, root: str | Path | None) -> Path:
    folder = _folder_of(run)
    root = folder.absolute().parent if root is None and isinstance(run, Run) else runs_root(root)
    if not folder.is_dir() or folder.is_symlink() or folder.resolve().parent != root.resolve():
        raise ValueError(f"{folder} is not a folder directly in {root}, where the runs are")
    folder = folder.resolve()
    read_json(folder / CONFIG_FILE)
    if not any((folder / name).exists() for name in (HISTORY_FILE, STATE_FILE)) and not re.match(_TIME, folder.name):
        raise ValueError(f"{folder} has neither {HISTORY_FILE} nor {STATE_FILE}: it is not a run")
    if is_being_written(folder):
        raise RuntimeError(f"a training is writing into {folder}: stop it first")
    return folder


def log_to_tensorboard(run: Run | str | Path) -> Path:
    """Writes the history of a run as a TensorBoard event file beside it, and returns that.

    It takes the place of the one that an earlier call has written; event files of others stay.

    `tensorboard --logdir runs` then shows the run under its folder's name, its settings as text.

    Raises:
        ImportError: TensorBoard is not installed.
        ValueError: the folder is not a run.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("TensorBoard is not installed; python -m pip install tensorboard") from error
    run = load_run(_folder_of(run))  # as it is by now
    earlier = set(run.folder.glob(f"events.out.tfevents.*{_EVENTS_SUFFIX}"))
    started = (run.folder / CONFIG_FILE).stat().st_mtime
    with SummaryWriter(str(run.folder), filename_suffix=_EVENTS_SUFFIX) as writer:
        writer.add_text("config", "```json\n" + json.dumps(run.config, indent=2) + "\n```")
        for i, row in enumerate(run.history.rows):
            for name, value in row.items():
                if name not in ("epoch", "seconds"):
                    split, _, quantity = name.partition("_")
                    tag = f"{quantity}/{split}" if split in ("train", "val") else name
                    writer.add_scalar(tag, value, i + 1, walltime=started + row.get("seconds", 0))
    for old in earlier:
        old.unlink()
    return next(run.folder.glob(f"events.out.tfevents.*{_EVENTS_SUFFIX}"))
