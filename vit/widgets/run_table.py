"""A table of all runs in a folder, with their curves: sort, compare, rename, delete, or hand one back to a form.

Each button calls one function of `vit/training/runs.py`, which a cell can call as well.
"""

import html
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipywidgets as widgets
from matplotlib.figure import Figure

from vit.plots import plot_runs
from vit.training.run_folder import runs_root
from vit.training.run_lock import is_being_written
from vit.training.runs import Run, compare_runs, delete_run, list_runs, rename_run, skipped_folders, sort_runs
from vit.widgets.panel import do_or_tell, message_html, shrinking_picture, side_by_side, to_png, updating

MAX_ROWS = 20  # runs in the table; the rest waits for another order, or to be deleted
MAX_CURVES = 8  # that can be told apart
_ORDERS = {
    "newest": None,
    "validation accuracy": "val_accuracy",
    "validation loss": "val_loss",
    "parameters": "num_parameters",
    "seconds": "seconds",
}
_QUANTITIES = ("val_accuracy", "val_loss", "train_accuracy", "train_loss")


class RunTable(widgets.VBox):
    """A panel over the runs of a folder.

    Args:
        root: default as in `list_runs`.
        on_use: called with a run whose settings, or whose further training, is asked for, and which of the two:
            "settings" or "training". Without it there are no such buttons.
    """

    def __init__(self, root: str | Path | None = None, on_use: Callable[[Run, str], None] | None = None) -> None:
        self.root, self._on_use = root, on_use
        self.runs: list[Run] = []
        self._about_to_delete: list[Run] = []
        self._lines: list[tuple[widgets.Checkbox, list[widgets.HTML]]] = []  # made once, and filled again and again
        self._is_updating = False
        self._make_controls()
        actions = [self.name, self.rename, self.delete, *([self.settings, self.go_on] if on_use else [])]
        filling = widgets.Layout(flex_flow="row wrap")
        super().__init__(
            [
                widgets.HBox([self.order, self.ascending, self.reread, self.quantity, self.against], layout=filling),
                side_by_side([self.rows, widgets.HBox(actions, layout=filling), self.message], self.picture),
                self.differences,
            ]
        )
        self.refresh()

    @property
    def chosen(self) -> list[Run]:
        """The runs that are ticked, in the order of the table."""
        return [run for run, (box, _) in zip(self.runs, self._lines, strict=False) if box.value]

    def choose(self, *runs: Run | str | Path) -> None:
        """Ticks these runs, and no others.

        Raises:
            ValueError: a run is not in the table; nothing changes then.
        """
        wanted = {Path(run.folder if isinstance(run, Run) else run).name for run in runs}
        known = [run.folder.name for run in self.runs]
        for name in wanted.difference(known):
            more = f", and {len(known) - MAX_ROWS} more" if len(known) > MAX_ROWS else ""
            listed = ", ".join(known[:MAX_ROWS]) + more
            raise ValueError(
                f"{name!r} is no run of the table, which refresh() reads again; it has: {listed or 'none'}"
            )
        self._tick(wanted)
        self._forget_delete()
        self.draw()

    def figure(self) -> Figure:
        """The curves of the runs that are ticked, or of the first in the table.

        Raises:
            ValueError: no run has ended an epoch yet, or too many are ticked.
        """
        known = [run for run in self.runs if run.history and self.quantity.value in run.history.last]
        wanted = [run for run in self.chosen if run in known] or known[:MAX_CURVES]
        if len(wanted) > MAX_CURVES:
            raise ValueError(f"{len(wanted)} runs are ticked; {MAX_CURVES} curves can be told apart")
        if not wanted:
            raise ValueError("no run has ended an epoch yet")
        return plot_runs(wanted, quantity=self.quantity.value, against=self.against.value)

    def draw(self) -> None:
        """Shows the curves, and in what the ticked runs differ."""
        try:
            self.picture.value = to_png(self.figure())
            self.picture.layout.display = None
        except ValueError as error:
            self.picture.layout.display = "none"
            self._say(str(error))
        self.differences.value = _differences(self.chosen) if len(self.chosen) > 1 else ""

    def refresh(self) -> None:
        """Reads the folder again; what is ticked stays ticked."""
        ticked = {run.folder.name for run in self.chosen}
        self.runs = list_runs(self.root)[::-1]
        by = _ORDERS[self.order.value]
        if any(by in run.names for run in self.runs):
            self.runs = sort_runs(self.runs, by, descending=not self.ascending.value)
        elif self.ascending.value:
            self.runs.reverse()
        shown = self.runs[:MAX_ROWS]
        self._lines += [self._make_line() for _ in range(len(shown) - len(self._lines))]
        for run, (_, cells) in zip(shown, self._lines, strict=False):
            for cell, text in zip(cells, _CELLS.values(), strict=True):
                cell.value = text(run)
        self._tick(ticked)
        lines = self._lines[: len(shown)]
        self.rows.children = [*self._header, *(widget for box, cells in lines for widget in (box, *cells))]
        # A training in its first epoch has nothing to read yet.
        skipped = sum(not is_being_written(runs_root(self.root) / name) for name in skipped_folders(self.root))
        why = f"; not readable as runs: {skipped}, see training.skipped_folders()" if skipped else ""
        self._say(f"{len(shown)} of {len(self.runs)} runs{why}")
        self._forget_delete()
        self.draw()

    def _make_controls(self) -> None:
        wide = {"style": {"description_width": "initial"}, "layout": widgets.Layout(width="auto")}
        self.order = widgets.Dropdown(options=list(_ORDERS), description="order by", **wide)
        self.ascending = widgets.Checkbox(False, description="lowest first", indent=False, layout={"width": "auto"})
        self.reread = widgets.Button(description="Read again", layout={"width": "auto"})
        self.rows = widgets.GridBox(
            layout=widgets.Layout(grid_template_columns="24px minmax(120px, 1fr) repeat(4, max-content) max-content")
        )
        self.rows.layout.grid_gap = "0 12px"
        self.rows.add_class("vit-runs")
        self._header = [widgets.HTML(), *(widgets.HTML(f"<b>{name}</b>") for name in _CELLS)]
        self.name = widgets.Text(placeholder="new name", layout={"width": "140px"})
        self.rename = widgets.Button(description="Rename", layout={"width": "auto"})
        self.delete = widgets.Button(description="Delete", layout={"width": "auto"})
        self.settings = widgets.Button(description="Use its settings", layout={"width": "auto"})
        self.go_on = widgets.Button(description="Train on", layout={"width": "auto"})
        self.message = widgets.HTML()
        self.quantity = widgets.Dropdown(options=_QUANTITIES, description="curves of", **wide)
        self.against = widgets.Dropdown(options=("epoch", "seconds"), description="against", **wide)
        self.differences = widgets.HTML()
        self.picture = shrinking_picture("800px")
        for control in (self.order, self.ascending):
            control.observe(lambda _: self.refresh(), "value")
        for control in (self.quantity, self.against):
            control.observe(lambda _: self.draw(), "value")
        self.reread.on_click(lambda _: self.refresh())
        self.rename.on_click(lambda _: do_or_tell(self._rename, self._say))
        self.delete.on_click(lambda _: do_or_tell(self._delete, self._say))
        self.settings.on_click(lambda _: do_or_tell(lambda: self._on_use(self._only_one(), "settings"), self._say))
        self.go_on.on_click(lambda _: do_or_tell(lambda: self._on_use(self._only_one(), "training"), self._say))

    def _make_line(self) -> tuple[widgets.Checkbox, list[widgets.HTML]]:
        box = widgets.Checkbox(False, indent=False, layout={"width": "24px"})
        box.observe(lambda _: self._take_ticks(), "value")
        return box, [widgets.HTML() for _ in _CELLS]

    def _tick(self, folder_names: set[str]) -> None:
        """Ticks the lines of these runs, and no others; whoever calls this draws once, afterwards."""
        with updating(self):
            for i, (box, _) in enumerate(self._lines):
                box.value = i < len(self.runs) and self.runs[i].folder.name in folder_names

    def _take_ticks(self) -> None:
        if not self._is_updating:
            self._forget_delete()
            self.draw()

    def _only_one(self) -> Run:
        if len(self.chosen) != 1:
            raise ValueError(f"{len(self.chosen)} runs are ticked: tick one")
        return self.chosen[0]

    def _rename(self) -> None:
        renamed = rename_run(self._only_one(), self.name.value.strip(), self.root)
        self.name.value = ""
        self.refresh()
        self.choose(renamed)

    def _delete(self) -> None:
        """Asks first: the button must be pressed again for the same runs. One that cannot go keeps no other."""
        if not self.chosen:
            raise ValueError("0 runs are ticked: tick those to delete")
        if self._about_to_delete != self.chosen:
            self._about_to_delete = self.chosen
            self.delete.description, self.delete.button_style = f"Really delete {len(self.chosen)}?", "danger"
            return
        errors = []
        for run in self._about_to_delete:
            try:
                delete_run(run, self.root)
            except (ValueError, OSError, RuntimeError) as error:
                errors.append(str(error))
        self.refresh()
        if errors:
            raise RuntimeError("; ".join(errors))

    def _forget_delete(self) -> None:
        self._about_to_delete = []
        self.delete.description, self.delete.button_style = "Delete", ""

    def _say(self, text: str, *, is_error: bool = False) -> None:
        self.message.value = message_html(text, is_error=is_error)


def _number(name: str, text: str) -> Callable[[Run], str]:
    def cell(run: Run) -> str:
        value = run.value(name)
        return text.format(value) if isinstance(value, (int, float)) else "–"

    return cell


def _state(run: Run) -> str:
    return "training" if run.is_running else "done" if run.history.is_complete else "stopped"


_CELLS: dict[str, Callable[[Run], str]] = {
    "run": lambda run: f"<span title='{html.escape(run.folder.name)}'>{html.escape(run.name)}</span>",
    "val %": _number("val_accuracy", "{:.1f}"),
    "epochs": _number("epoch", "{:g}"),
    "parameters": _number("num_parameters", "{:,}"),
    "seconds": _number("seconds", "{:,.0f}"),
    "": _state,
}


def _differences(runs: list[Run]) -> str:
    """An HTML table of the settings in which runs differ."""

    def row(tag: str, cells: list[Any]) -> str:
        texts = (html.escape(str(cell)) for cell in cells)
        return "<tr>" + "".join(f"<{tag} style='padding: 0 12px 0 0; text-align: left'>{t}</{tag}>" for t in texts)

    table = compare_runs(runs)
    if not table:
        return "The ticked runs have the same settings."
    rows = [row("td", [name, *values]) for name, values in table.items()]
    return "<table>" + row("th", ["differs", *(run.name for run in runs)]) + "".join(rows) + "</table>"
