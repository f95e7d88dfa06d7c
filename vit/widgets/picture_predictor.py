"""A panel for pictures of your own: upload some, or name a file or a folder, and see what a model makes of each.

The same figure in a cell: `predict` and `explain`, then `plot_top_classes`. A file that is no picture is answered in
the panel, and the panel goes on.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import ipywidgets as widgets
from matplotlib.figure import Figure
from torch import nn

from vit.analysis import METHODS, explain, predict, token_layout
from vit.analysis.inputs import picture_options
from vit.pictures import SUFFIXES, open_picture, picture_to_tensor
from vit.plots.predictions import plot_top_classes
from vit.widgets.panel import class_names_of, message_html, shrinking_picture, side_by_side, to_png, updating


class PicturePredictor(widgets.VBox):
    """A panel that says what is in a picture, how sure the model is, and which patches it rests on.

    Args:
        model: a Vision Transformer of this library or of timm, with its `metadata` (mean, std, class_names).
        class_names: one a class; default those the metadata names.

    Attributes:
        answer: what the last figure says, in words; the panel shows it too, for those who cannot see the picture.
    """

    def __init__(self, model: nn.Module, class_names: Sequence[str] | None = None) -> None:
        self.answer = ""
        self.model, self.size = model, token_layout(model).image_size
        self.class_names = class_names_of(model, class_names)
        self.pictures: list[tuple[str, Path | bytes]] = []
        self._is_updating = False
        self._make_controls()
        controls = [self.upload, self.path, self.choice, self.method, self.message]
        super().__init__([side_by_side(controls, self.shown, width="320px")])
        self.draw()

    def figure(self) -> Figure:
        """The figure of the chosen picture.

        Raises:
            ValueError, FileNotFoundError: there is none, or it cannot be read; `draw` shows these in the panel.
        """
        if not self.pictures:
            raise ValueError("choose a picture, or write the path of one or of a folder of them")
        name, source = self.pictures[self.choice.value]
        picture = open_picture(io.BytesIO(source), name) if isinstance(source, bytes) else source
        image = picture_to_tensor(picture, self.size, **picture_options(self.model))  # (3, H, W)
        probabilities = predict(self.model, image[None])[0]  # (K,)
        names = self.class_names or [f"class {k}" for k in range(len(probabilities))]
        heat = explain(self.model, image[None], self.method.value)[0]  # (rows, columns)
        figure = plot_top_classes(image, heat, probabilities, names, title=name, unit=self.method.label)
        guess = int(probabilities.argmax())
        self.answer = f"{name}: {names[guess]}, {100 * probabilities[guess]:.0f} %"
        return figure

    def draw(self) -> None:
        """Shows the figure of the chosen picture, or why there is none."""
        if self._is_updating:
            return
        try:
            figure = self.figure()
        except (ValueError, OSError) as error:
            self._show_error(error)
            return
        self.shown.value = to_png(figure)
        self.shown.layout.display = None
        known = f"the {len(self.class_names)} classes it knows" if self.class_names else "the classes it knows"
        self.message.value = message_html(
            f"{self.answer}. The model names one of {known} for any picture, be it one of them or not."
        )

    def _make_controls(self) -> None:
        methods = [(name.replace("_", " "), name) for name in METHODS]
        filling = widgets.Layout(width="auto")
        self.upload = widgets.FileUpload(
            accept=",".join(SUFFIXES), multiple=True, description="choose pictures", layout=filling
        )
        self.path = widgets.Text(
            placeholder="or a file, or a folder", description="path", continuous_update=False, layout=filling
        )
        self.choice = widgets.Dropdown(description="picture", disabled=True, layout=filling)
        self.method = widgets.Dropdown(options=methods, value="relevance", description="method", layout=filling)
        self.message = widgets.HTML()
        self.shown = shrinking_picture("800px")
        self.upload.observe(lambda _: self._take_upload(), "value")
        self.path.observe(lambda _: self._take_path(), "value")
        for control in (self.choice, self.method):
            control.observe(lambda _: self.draw(), "value")

    def _take_upload(self) -> None:
        if not self._is_updating:
            self._offer([(item["name"], bytes(item["content"])) for item in self.upload.value])

    def _take_path(self) -> None:
        if self._is_updating:
            return
        try:
            self._offer(_pictures_at(self.path.value.strip().strip("\"'")), is_path=True)
        except (ValueError, OSError, RuntimeError) as error:  # the last is for ~nobody
            self._offer([], is_path=True)
            self._show_error(error)

    def _offer(self, pictures: list[tuple[str, Path | bytes]], *, is_path: bool = False) -> None:
        """Puts pictures on the menu, forgets those from the other source, and draws the first, once."""
        self.pictures = pictures
        with updating(self):
            if is_path:
                self.upload.value = ()
            else:
                self.path.value = ""
            self.choice.options = [(name, i) for i, (name, _) in enumerate(pictures)]
            self.choice.index = 0 if pictures else None
            self.choice.disabled = len(pictures) < 2
        self.draw()

    def _show_error(self, error: Exception) -> None:
        self.message.value = message_html(str(error), is_error=True)
        self.shown.layout.display = "none"


def _pictures_at(text: str) -> list[tuple[str, Path | bytes]]:
    """A file as it is, or the pictures in a folder and in the folders right below it, in alphabetical order."""
    path = Path(text).expanduser()
    if not text or not path.is_dir():
        return [(path.name, path)] if text else []
    found = [p for depth in ("*", "*/*") for p in path.glob(depth) if p.suffix.lower() in SUFFIXES]
    named = sorted((p.relative_to(path).as_posix(), p) for p in found)
    visible = [(name, p) for name, p in named if not any(part.startswith(".") for part in name.split("/"))]
    if not visible:
        raise ValueError(f"folder {path} holds no picture; the endings looked for are {', '.join(SUFFIXES)}")
    return visible
