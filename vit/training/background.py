"""Training in a thread, so that a notebook answers meanwhile: look at the curves, press Stop, go on later.

torch lets go of Python's lock while it computes. What the thread runs is `fit`, to the same bits, as long as nobody
else draws from torch's random numbers, which a process has only one set of: dropout and dropped patches use them.
"""

import atexit
import queue
import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vit.config import TrainConfig
from vit.progress import say
from vit.training.history import History
from vit.training.loop import fit

_starting = threading.Lock()
_current: "BackgroundRun | None" = None
_waiting: "queue.SimpleQueue[BackgroundRun]" = queue.SimpleQueue()
_worker: threading.Thread | None = None


class BackgroundRun:
    """A training in a thread; `train_in_background` makes and starts one.

    Attributes:
        model, config: what is trained, and how. The model is the thread's while `is_running`.
        error: what ended the run before its time, or None. `wait` raises it.
        steps_done, total_steps: how far the run is.
        losses: pairs (step, mean training loss of its epoch so far), a new one every half second or slower.
    """

    def __init__(self, run_dir: str | Path, fit_arguments: dict[str, Any]) -> None:
        self.run_dir = Path(run_dir).expanduser().absolute()
        self.model: nn.Module = fit_arguments["model"]
        self.config: TrainConfig = fit_arguments["config"]
        self.error: BaseException | None = None
        self.steps_done = self.total_steps = 0
        self.losses: list[tuple[int, float]] = []
        self._history = History()
        self._should_stop = threading.Event()
        self._fit_arguments = fit_arguments | {
            "run_dir": self.run_dir,
            "history": self._history,
            "make_bar": lambda **counts: _LiveBar(self, **counts),
            "should_stop": self._should_stop.is_set,
        }
        self._num_threads = torch.get_num_threads()
        self._has_ended = threading.Event()

    def __repr__(self) -> str:
        history = self.history
        if self.is_running:
            state = "training"
        elif self.error is not None:
            state = f"failed with {type(self.error).__name__}"
        else:
            state = "done" if history.is_complete else "stopped"
        epoch = history.last["epoch"] if history else 0
        steps = f"step {self.steps_done} of {self.total_steps}"
        return f"BackgroundRun({state}, epoch={epoch:g}, {steps}, run_dir={str(self.run_dir)!r})"

    @property
    def is_running(self) -> bool:
        return not self._has_ended.is_set()

    @property
    def history(self) -> History:
        """A copy of the history so far; complete once the run has ended by itself."""
        return History([dict(row) for row in self._history.rows], self._history.is_complete)

    def stop(self) -> None:
        """Asks the run to end after its step, or its batch of validation, and to save its state for `resume=True`.

        Returns at once; `wait` for the end.
        """
        self._should_stop.set()

    def wait(self, timeout: float | None = None) -> History:
        """Waits for the end and returns the history.

        Args:
            timeout: longest wait in seconds; None waits as long as it takes.

        Raises:
            TimeoutError: the run goes on.
            BaseException: what ended the run, if something did.
        """
        if not self._has_ended.wait(timeout):
            raise TimeoutError(f"the training in {self.run_dir} still goes on after {timeout} s")
        if self.error is not None:
            raise self.error
        return self.history

    def _train(self) -> None:
        global _current
        torch.set_num_threads(self._num_threads)  # what the starter has; a thread keeps a number of its own
        try:
            fit(**self._fit_arguments)
        except BaseException as error:
            self.error = error
            say(f"the training in {self.run_dir} has ended: {type(error).__name__}: {error}")
        finally:
            del self._fit_arguments  # the loaders hold the images
            _current = None
            self._has_ended.set()


class _LiveBar:
    """Stands where `fit` has its progress bar; draws nothing and tells the run what one would show."""

    def __init__(self, run: BackgroundRun, *, total: int, initial: int, unit: str) -> None:
        self.run = run
        run.steps_done, run.total_steps = initial, total
        self.started = self.shown = time.monotonic()

    def __enter__(self) -> "_LiveBar":
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def update(self) -> bool:
        self.run.steps_done += 1
        now = time.monotonic()
        # Ever more slowly, so that a run of days keeps a few thousand losses.
        is_due = now - self.shown >= max(0.5, (now - self.started) / 500)
        if is_due:
            self.shown = now
        return is_due

    def set_postfix(self, loss: str, refresh: bool) -> None:
        self.run.losses.append((self.run.steps_done, float(loss)))

    def set_description(self, text: str) -> None:
        pass


def train_in_background(
    model: nn.Module,
    train_loader: Any,
    val_loader: Any,
    config: TrainConfig,
    run_dir: str | Path,
    **options: Any,
) -> BackgroundRun:
    """Starts `fit` in a thread and returns at once. The model is the thread's until the run has ended.

    When Python ends before the run, the run is stopped as by `stop`, its state saved. Whatever `fit` raises, from a
    wrong argument to a loss that is not finite, is said on stderr and kept in `error`.

    Args:
        options: of `fit`, such as `resume`, `loss_fn` or `after_epoch`, which is called in the thread.

    Raises:
        TypeError: an option that the run gives `fit` itself.
        RuntimeError: another run of this process is still training.
    """
    global _current, _worker
    if own := sorted({"history", "make_bar", "should_stop"} & options.keys()):
        raise TypeError(f"{', '.join(own)}: not an option here; see the run's history, losses and stop()")
    arguments = {"model": model, "train_loader": train_loader, "val_loader": val_loader, "config": config}
    with _starting:
        if _current is not None:
            raise RuntimeError(f"the training in {_current.run_dir} still goes on: stop() it and wait() for its end")
        _current = run = BackgroundRun(run_dir, arguments | options)
        if _worker is None or not _worker.is_alive():
            _worker = threading.Thread(target=_work, daemon=True)
            _worker.start()
        _waiting.put(run)
    return run


def _work() -> None:
    """The one thread of all trainings: torch and the allocator keep memory for every thread that has ever computed."""
    while True:
        _waiting.get()._train()


def current_run() -> BackgroundRun | None:
    """The run of this process that is training now, for whoever has lost it: a cell that was run again, say."""
    return _current


@atexit.register
def _stop_current() -> None:
    if (run := _current) is not None:
        run.stop()
        run._has_ended.wait()
