"""What `fit` keeps in the folder of a run while it trains: the history, for people, and the state to go on from.

When to save is for `fit` to say; what a state holds is in checkpoint.py, how it stays whole in state_file.py.
"""

import math
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from vit.config import TrainConfig
from vit.files import read_json, remove_leftovers
from vit.progress import say
from vit.training.checkpoint import describe_data, load_training_state, save_training_state
from vit.training.distributed import World
from vit.training.epoch import Sums
from vit.training.history import History
from vit.training.run_folder import CONFIG_FILE, write_json
from vit.training.same_run import describe_network
from vit.training.state_file import best_of, previous_of, read_state

STATE_FILE = "state.pt"
HISTORY_FILE = "history.csv"
SAVE_SECONDS = 300.0  # longest time between two saves: what a crash in a long epoch may cost


def holds_state(folder: Path) -> bool:
    """Whether there is a state to go on from."""
    state = folder / STATE_FILE
    return state.exists() or previous_of(state).exists()


def refuse_existing(folder: Path) -> None:
    """Raises FileExistsError if the folder holds a run, or the history of one; a run that was never saved after a step
    does not count."""
    state, history = folder / STATE_FILE, folder / HISTORY_FILE
    states = [path for path in (state, previous_of(state)) if path.exists()]
    if any(not _is_at_start(path) for path in states):
        raise FileExistsError(f"{folder} holds a run already: go on with resume=True, or take another folder")
    if not states and history.exists() and history.stat().st_size:
        raise FileExistsError(f"{history} is of a run whose state is gone, and would be lost: take another folder")


def _is_at_start(path: Path) -> bool:
    try:
        progress = read_state(path)["progress"]
    except (ValueError, OSError):
        return False
    return (progress["epoch"], progress["step"]) == (0, 0)


class RunFiles:
    """What `fit` keeps in the folder of a run. Without a folder it keeps nothing.

    Only the first process reads and writes files, so the folder needs to be on its machine only.
    """

    def __init__(
        self,
        folder: Path | None,
        history: History,
        loader: Any,
        world: World,
        *,
        model: nn.Module,
        optimizers: list[torch.optim.Optimizer],
        ema: AveragedModel | None,
        config: TrainConfig,
        has_loss_fn: bool = False,
    ) -> None:
        self.folder, self.history, self.world = folder, history, world
        self.model, self.config = model, config
        self.has_files = folder is not None and world.is_first  # to read and to write
        self.state = {"model": model, "optimizers": optimizers, "ema": ema, "config": config, "world": world}
        self.state["has_loss_fn"] = has_loss_fn
        if folder is not None:
            self.state["data"] = describe_data(loader)  # whose fingerprint takes a look at all images
        self.started = self.saved = time.perf_counter()
        self.best = -math.inf  # validation accuracy of what has been saved

    @property
    def seconds(self) -> float:
        """How long the run has taken so far, all its parts together, by a clock that nobody sets."""
        return time.perf_counter() - self.started

    def start(self) -> tuple[int, int, Sums]:
        """Saves the state before the first step: a folder that cannot be written should fail now, not after an hour."""
        self._tidy()
        if self.has_files:
            refuse_existing(self.folder)  # again, since now the folder is locked
        saved_config = self._saved_config()
        self.save(0, 0, {}, is_last=True)
        self._describe(saved_config, anew=True)
        return 0, 0, {}

    def resume(self, device: torch.device, num_epochs: int) -> tuple[int, int, Sums]:
        """Puts the run back to where it was saved: epoch, step and the sums of the epoch so far."""
        self._tidy()
        saved_config = self._saved_config()
        try:
            progress = load_training_state(self.folder / STATE_FILE, **self.state)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}; to begin the run, leave out resume=True") from None
        self._describe(saved_config)
        self.history.rows = progress["rows"]
        self._save_history()
        self.started = time.perf_counter() - progress["seconds"]
        highest = max((row.get("val_accuracy", -math.inf) for row in self.history.rows), default=-math.inf)
        self.best = progress.get("best", highest)  # which states of earlier versions do not say
        if progress["epoch"] >= num_epochs and self.world.is_first:
            epochs = self.config.epochs
            say(f"the run in {self.folder} is complete, {epochs} epochs: for more of them begin a run with more epochs")
        sums = {name: v.to(device) if torch.is_tensor(v) else v for name, v in progress["sums"].items()}
        return progress["epoch"], progress["step"], sums

    def _saved_config(self) -> dict[str, Any] | None:
        """What `config.json` says already. Raises ValueError for one that cannot be read, before anything is done."""
        if not self.has_files or not (self.folder / CONFIG_FILE).exists():
            return None
        return read_json(self.folder / CONFIG_FILE)

    def _describe(self, saved: dict[str, Any] | None, anew: bool = False) -> None:
        """Writes `config.json`, without which a folder is not listed as a run. Notes in one that is there stay; what it
        says of the configs is put right if the run begins `anew`, since plans may have changed."""
        if not self.has_files:
            return
        network = describe_network(self.model)
        configs = {} if network is None else {"model": network}
        configs["train"] = self.config.to_dict()
        if anew and isinstance((saved or {}).get("model"), dict) and "model" not in configs:  # of another network
            saved = {name: value for name, value in saved.items() if name != "model"}
        if saved is None or (anew and any(isinstance(saved.get(name), dict) for name in configs)):
            size = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
            write_json(self.folder / CONFIG_FILE, (saved or {}) | configs | {"num_parameters": size})

    def _tidy(self) -> None:
        """Removes what a training that was killed while it saved has left behind."""
        if self.has_files:
            state = self.folder / STATE_FILE
            beside = (self.folder / HISTORY_FILE, self.folder / CONFIG_FILE)
            for path in (state, previous_of(state), best_of(state), *beside):
                remove_leftovers(path)

    def _save_history(self) -> None:
        """Writes what people read. The state holds it too, so a file that another program keeps open is only said."""
        if not self.world.is_first:
            return
        try:
            self.history.save_csv(self.folder / HISTORY_FILE)
        except PermissionError as error:
            say(f"{self.folder / HISTORY_FILE} could not be written ({error}): the state holds it, a resume writes it")

    def is_save_due(self, seconds: float, *, within_epoch: bool = False) -> bool:
        """Whether the last save was more than `seconds` ago; within an epoch, also more than SAVE_SECONDS."""
        longest = max(seconds, SAVE_SECONDS) if within_epoch else seconds
        return self.folder is not None and time.perf_counter() - self.saved > longest

    def save(
        self, epoch: int, step: int, sums: Sums, *, is_last: bool, is_over: bool = False, may_be_best: bool = False
    ) -> None:
        """Saves the state, and the history for people; also as the best, if it may be, unless a better one was saved.

        Raises:
            OSError: that failed and `is_last`; if training goes on, the next save may do better, so it is only said, as
                it is where the run `is_over` and whoever has called `fit` has all of it in memory.
        """
        if self.folder is None:
            return
        accuracy = self.history.last.get("val_accuracy", -math.inf) if may_be_best else -math.inf
        progress = {"epoch": epoch, "step": step, "sums": sums, "rows": self.history.rows, "seconds": self.seconds}
        progress["best"] = max(self.best, accuracy)
        try:
            # First the state, for which all processes meet, and then what may fail in one of them.
            save_training_state(self.folder / STATE_FILE, **self.state, progress=progress, is_best=accuracy > self.best)
            self.best = max(self.best, accuracy)
            self._save_history()
        except OSError as error:
            free = f"{shutil.disk_usage(self.folder).free:,} bytes free" if self.folder.exists() else "no such folder"
            message = f"the state could not be saved in {self.folder} ({error.strerror or error}; {free})"
            if is_last:
                raise OSError(error.errno, f"{message}; what was saved last is untouched") from error
            then = "training goes on, and the next save will try again"
            if is_over:
                then = "the end of the training is in memory alone, so keep its weights elsewhere"
            say(f"{message}: {then}; what was saved last is untouched")
        self.saved = time.perf_counter()
        self.world.any(False)  # nobody ends, and makes the others end, before the first one has written
