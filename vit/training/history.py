"""What a run has done so far: one row an epoch, readable by anything that reads CSV."""

import csv
from dataclasses import dataclass, field
from pathlib import Path

from vit.files import replacing


@dataclass
class History:
    """One dict an epoch: epoch, train_loss, train_accuracy, val_loss, val_accuracy, learning_rate, seconds.

    Accuracies are percentages, `seconds` count from the start of the run. `is_complete` is False after a stop.
    """

    rows: list[dict[str, float]] = field(default_factory=list)
    is_complete: bool = False

    def __getitem__(self, column: str) -> list[float]:
        """One column, an entry an epoch."""
        if self.rows and column not in self.rows[0]:
            raise KeyError(f"no column {column!r}; columns: {', '.join(self.rows[0])}")
        return [row[column] for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def last(self) -> dict[str, float]:
        if not self.rows:
            raise ValueError("the history is empty: no epoch has ended yet")
        return self.rows[-1]

    def save_csv(self, path: str | Path) -> None:
        with replacing(path) as temporary, open(temporary, "w", newline="") as file:
            if self.rows:
                writer = csv.DictWriter(file, fieldnames=list(self.rows[0]))
                writer.writeheader()
                writer.writerows(self.rows)

    @classmethod
    def load_csv(cls, path: str | Path) -> "History":
        with open(path, newline="") as file:
            return cls([{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)])
