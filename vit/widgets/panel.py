"""What every panel of this room has in common: controls beside one picture, and a figure as that picture."""

import io
from collections.abc import Sequence

import ipywidgets as widgets
from matplotlib.figure import Figure


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
