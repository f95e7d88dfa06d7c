"""What a run has done so far: one row an epoch, readable by anything that reads CSV."""

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vit.files import replacing

MAX_BYTES = 4_000_000  # of a file; tens of thousands of epochs


@dataclass
class History:
    """One dict an epoch: epoch, train_loss, train_accuracy, val_loss, val_accuracy, learning_rate, seconds.

    Accuracies are percentages, `seconds` count from the start of the run. `is_complete` is False after a stop.
    """

    rows: list[dict[str, float]] = field(default_factory=list)
    is_complete: bool = False

    def __repr__(self) -> str:
        text = f"{len(self)} epoch{'' if len(self) == 1 else 's'}{', complete' if self.is_complete else ''}"
        if self.rows:
            text += "; last: " + ", ".join(f"{name}={_rounded(value)}" for name, value in self.last.items())
        return f"History({text})"

    def __getitem__(self, column: str) -> list[float]:
        """One column, an entry an epoch; not a number where an epoch has none."""
        if self.rows and column not in self.columns:
            raise KeyError(f"no column {column!r}; columns: {', '.join(self.columns)}")
        return [row.get(column, math.nan) for row in self.rows]

    def __contains__(self, column: object) -> bool:
        return column in self.columns

    def __iter__(self) -> Iterator[dict[str, float]]:
        """Over the rows."""
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def columns(self) -> list[str]:
        """The names of all columns; a run that goes on with a val loader has some that its first epochs lack."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    @property
    def last(self) -> dict[str, float]:
        if not self.rows:
            raise ValueError("the history is empty: no epoch has ended yet")
        return self.rows[-1]

    def check_complete(self) -> None:
        """Raises RuntimeError if the training was stopped before its last epoch ended: its weights are not yet those to
        test or to keep."""
        if not self.is_complete:
            epochs = f"{len(self)} epoch{'' if len(self) == 1 else 's'}"
            raise RuntimeError(f"the training was stopped after {epochs}: finish it, with resume=True in vit.fit")

    def save_csv(self, path: str | Path) -> None:
        with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            if self.rows:
                writer = csv.DictWriter(file, fieldnames=self.columns, restval=math.nan)
                writer.writeheader()
                writer.writerows(self.rows)

    @classmethod
    def load_csv(cls, path: str | Path) -> "History":
        """The history in a file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it holds anything else than columns of numbers.
        """
        path = Path(path).expanduser()
        if (size := path.stat().st_size) > MAX_BYTES:
            raise ValueError(f"{path} has {size:,} bytes; at most {MAX_BYTES:,} are read")
        with open(path, newline="", encoding="utf-8") as file:
            try:
                rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
            except (ValueError, TypeError, csv.Error) as error:
                raise ValueError(f"{path} is damaged: it is no table of numbers ({error})") from error
        return cls(rows)


def _rounded(value: float) -> str:
    """Four digits, and all in front of the point."""
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
