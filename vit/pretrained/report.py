"""What became of every tensor of a source: one table, shown after loading and in the error when loading was refused."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

_FATAL = ("missing", "unexpected", "of another shape")
_STATES = ("matched", "reshaped", "resized", "re-initialized", *_FATAL, "left out")


@dataclass
class Report:
    """`print` it for a table.

    Attributes:
        source, format: where the weights come from, and what was recognized.
        tensors: the names in each state: matched, reshaped (repacked, or joined with another), resized,
            re-initialized (a new head), missing, unexpected, of another shape, left out (of no use here).
        notes: what else was done or assumed.
    """

    source: str
    format: str
    notes: list[str] = field(default_factory=list)
    tensors: dict[str, list[str]] = field(default_factory=lambda: {state: [] for state in _STATES})

    def compare(self, state: Mapping[str, Tensor], expected: Mapping[str, Tensor], reshaped: set[str]) -> None:
        """Sorts the names of a state by what a model expects; `reshaped` are those that were not so in the source."""
        listed = {*self.tensors["resized"], *self.tensors["re-initialized"]}
        for name, tensor in expected.items():
            if name not in state:
                self.tensors["missing"].append(name)
            elif state[name].shape != tensor.shape:
                shapes = f"{tuple(state[name].shape)}, not {tuple(tensor.shape)}"
                self.tensors["of another shape"].append(f"{name} {shapes}")
            elif name not in listed:
                self.tensors["reshaped" if name in reshaped else "matched"].append(name)
        self.tensors["unexpected"] += [name for name in state if name not in expected]

    @property
    def is_good(self) -> bool:
        return not any(self.tensors[state] for state in _FATAL)

    def __str__(self) -> str:
        lines = [f"{self.source} (format {self.format})"]
        for state, names in self.tensors.items():
            shown = [] if state == "matched" else names[:4] + ["..."] * (len(names) > 4)
            lines.append(f"  {state:<16} {len(names):>4}  {', '.join(shown)}".rstrip())
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])
