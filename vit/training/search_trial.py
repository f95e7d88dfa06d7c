"""One trial of a search: a training that is watched, and ended early if it falls behind, without an exception."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vit.config import TrainConfig, ViTConfig
from vit.training.epoch import is_out_of_memory
from vit.training.history import History


@dataclass(frozen=True)
class Trial:
    """One suggestion and what became of it.

    Attributes:
        changes: the value of each name in the space.
        state: "complete"; "pruned", behind the others after an epoch; "refused", the configs do not allow it; "failed",
            the loss was not finite, the memory too small, or, once a training has worked, another error; "stopped", by
            the user.
        reason: what refused it or made it fail, else empty.
        history: of its training as far as it came.
    """

    number: int
    changes: dict[str, Any]
    state: str
    reason: str
    history: History

    @property
    def value(self) -> float | None:
        """The validation accuracy after its last epoch, in percent; None if no epoch has ended."""
        return _accuracy(self.history.last) if self.history else None


class Watch:
    """One training: tells Optuna each epoch's accuracy, and the training when to end."""

    def __init__(self, asked: Any, should_stop: Callable[[], bool], make_bar: Callable[..., Any]) -> None:
        self.asked, self.user_stops, self.make_bar = asked, should_stop, make_bar
        self.history = History()
        self.num_reported = 0
        self.is_pruned = False

    def train(
        self, train: Callable[..., History], configs: tuple[ViTConfig, TrainConfig], *, is_proven: bool
    ) -> tuple[str, str]:
        """State and reason of the trial. After a first training has ended well (`is_proven`), an error is blamed on the
        suggested values and not on the code."""
        watch = {"history": self.history, "should_stop": self.should_stop, "make_bar": self.make_bar}
        try:
            history = train(*configs, **watch)
        except KeyboardInterrupt:
            return "stopped", ""
        except Exception as error:
            if not (is_proven or isinstance(error, FloatingPointError) or is_out_of_memory(error)):
                raise
            is_bare = isinstance(error, KeyError) or not str(error)  # a text that says nothing by itself
            return "failed", repr(error) if is_bare else str(error)
        if not isinstance(history, History):
            raise TypeError(f"train returned a {type(history).__name__}; it must return the History of fit")
        self.history = history
        self.report()
        if not history.is_complete:
            return "pruned" if self.is_pruned else "stopped", ""
        if not math.isfinite(_accuracy(history.last)):
            return "failed", f"the validation accuracy is {_accuracy(history.last)}"
        return "complete", ""

    def should_stop(self) -> bool:
        if len(self.history) > self.num_reported:
            self.report()
            self.is_pruned = self.asked.should_prune()
        return self.is_pruned or self.user_stops()

    def report(self) -> None:
        for row in self.history.rows[self.num_reported :]:
            self.num_reported += 1
            if math.isfinite(_accuracy(row)):
                self.asked.report(_accuracy(row), self.num_reported)


def _accuracy(row: dict[str, float]) -> float:
    if "val_accuracy" not in row:
        raise ValueError(f"train measures no val_accuracy, only {', '.join(row)}: give fit a val loader and no loss_fn")
    return row["val_accuracy"]
