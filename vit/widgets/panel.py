"""What the panels of this room have in common: controls beside one picture, a figure as that picture, and messages."""

import html
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ipywidgets as widgets
from matplotlib.figure import Figure
from torch import nn

from vit.plots.style import VERMILION


def side_by_side(
    controls: Sequence[widgets.Widget], picture: widgets.Widget, *, width: str | None = None
) -> widgets.HBox:
    """Controls and picture side by side where the page is wide enough, else one below the other; neither is squeezed.

    Args:
        width: of the controls, in CSS units; default as wide as they need.
    """
    column = widgets.VBox(list(controls), layout=widgets.Layout(flex="0 0 auto", width=width))
    wrapping = widgets.Layout(flex_flow="row wrap", align_items="flex-start", grid_gap="16px")
    return widgets.HBox([column, picture], layout=wrapping)


def shrinking_picture(max_width: str) -> widgets.Image:
    """An empty picture that gives way to a narrow page and keeps its proportions."""
    return widgets.Image(format="png", layout=widgets.Layout(flex="1 1 420px", min_width="300px", max_width=max_width))


def to_png(figure: Figure) -> bytes:
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=100)
    return png.getvalue()


def message_html(text: str, *, is_error: bool = False) -> str:
    """Plain text as the value of an `HTML` widget."""
    color = f"color: {VERMILION}; " if is_error else ""
    return f"<div style='{color}line-height: 1.4'>{html.escape(text)}</div>"


def do_or_tell(act: Callable[[], object], tell: Callable[..., None]) -> None:
    """Does what a button says; what cannot be done is told in the panel, by `tell(text, is_error=True)`."""
    try:
        act()
    except (ValueError, OSError, RuntimeError) as error:
        tell(str(error), is_error=True)


def class_names_of(model: nn.Module, given: Sequence[str] | None) -> list[str]:
    """The names that were given, else those of the model's metadata; none if it has none either."""
    names = getattr(model, "metadata", {}).get("class_names") if given is None else given
    return [] if names is None else list(names)


@contextmanager
def updating(panel: Any) -> Iterator[None]:
    """Sets the panel's `_is_updating` meanwhile, so that it does not answer each control that is moved by code."""
    before, panel._is_updating = panel._is_updating, True
    try:
        yield
    finally:
        panel._is_updating = before
