"""An explorer of confusions: choose a cell of the confusion matrix, by clicking it or by name, and see its images.

Needs no model: only what `vit.evaluate` returned for the images. The same in a cell: `confusion_cell`, then
`plot_confusion_cell`.
"""

import html
from collections.abc import Sequence

import ipywidgets as widgets
import torch
from matplotlib.figure import Figure
from torch import Tensor

from vit.analysis.metrics import confusion_cell, confusion_matrix, most_confused_pairs
from vit.plots.evaluation import confusion_colors, plot_confusion_cell
from vit.plots.style import MAX_CLASSES, VERMILION
from vit.widgets.panel import shrinking_picture, side_by_side, to_png, updating

PAGE = 18  # images shown at once


class ConfusionExplorer(widgets.VBox):
    """A panel to look at what is taken for what; it opens with the most frequent error.

    Args:
        images: uint8 (N, C, H, W).
        probabilities: (N, K), what a model says of them.
        labels: (N,), the true classes.
        class_names: one a class. More than 20 are chosen by name only, without a matrix to click.
    """

    def __init__(self, images: Tensor, probabilities: Tensor, labels: Tensor, class_names: Sequence[str]) -> None:
        if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError("images must be a uint8 tensor (N, C, H, W)")
        self.counts = confusion_matrix(probabilities, labels)  # (K, K)
        if len(images) != len(labels) or len(class_names) != len(self.counts):
            raise ValueError(
                f"{len(images)} images and {len(class_names)} class_names must fit {len(labels)} labels of "
                f"{len(self.counts)} classes"
            )
        self.images, self.probabilities, self.labels = images, torch.as_tensor(probabilities).cpu(), labels
        self.class_names = list(class_names)
        self._is_updating = False
        self._make_controls()
        pairs = most_confused_pairs(probabilities, labels, 1)
        self.choose(*(pairs[0][:2] if pairs else (0, 0)))
        super().__init__([side_by_side([self.truth, self.guess, self.page, self._matrix()], self.picture)])

    def figure(self) -> Figure:
        """The figure of the present choices."""
        truth, guess = self.truth.value, self.guess.value
        chosen = self.indices[PAGE * (self.page.value - 1) : PAGE * self.page.value]
        return plot_confusion_cell(
            self.images[chosen],
            self.probabilities[chosen, guess],
            self.class_names[truth],
            self.class_names[guess],
            num_images=len(self.indices),
        )

    def draw(self) -> None:
        """Shows the figure of the present choices, once all controls have theirs."""
        if self._is_updating:
            return
        self.picture.value = to_png(self.figure())

    def choose(self, truth: int, guess: int) -> None:
        """Goes to the cell of images of class `truth` that are taken for class `guess`; the same as clicking it."""
        self.indices = confusion_cell(self.probabilities, self.labels, truth, guess)  # most confident first
        num_pages = max(1, -(-len(self.indices) // PAGE))
        with updating(self):
            self.truth.value, self.guess.value = truth, guess
            self.page.value, self.page.max, self.page.disabled = 1, num_pages, num_pages == 1
        for cell, button in self.cells.items():
            button.layout.border = f"3px solid {VERMILION}" if cell == (truth, guess) else "1px solid white"
        self.draw()

    def _make_controls(self) -> None:
        classes = [(name, k) for k, name in enumerate(self.class_names)]
        self.truth = widgets.Dropdown(options=classes, description="truth")
        self.guess = widgets.Dropdown(options=classes, description="guess")
        self.page = widgets.IntSlider(1, 1, 1, description="page")
        self.picture = shrinking_picture("720px")
        self.cells = self._make_cells()
        for control in (self.truth, self.guess):
            control.observe(lambda _: self._choose_names(), "value")
        self.page.observe(lambda _: self.draw(), "value")

    def _choose_names(self) -> None:
        if not self._is_updating:
            self.choose(self.truth.value, self.guess.value)

    def _make_cells(self) -> dict[tuple[int, int], widgets.Button]:
        """A button for every cell, colored as `plot_confusion_matrix` colors it."""
        if len(self.counts) > MAX_CLASSES:
            return {}
        buttons = {}
        for cell, (color, text_color) in confusion_colors(self.counts).items():
            truth, guess = (self.class_names[k] for k in cell)
            button = widgets.Button(description=str(int(self.counts[cell])), tooltip=f"{truth} taken for {guess}")
            button.layout = widgets.Layout(width="38px", height="28px", padding="0", margin="0")
            button.style.button_color, button.style.text_color = color, text_color
            button.on_click(lambda _, cell=cell: self.choose(*cell))
            buttons[cell] = button
        return buttons

    def _matrix(self) -> widgets.Widget:
        """The buttons under the names of the guesses, beside those of the truths."""
        if not self.cells:
            return widgets.VBox()
        names = [html.escape(name) for name in self.class_names]
        upright = '<div style="writing-mode: vertical-rl; transform: rotate(180deg); line-height: 1.2">{}</div>'
        children = [widgets.HTML(), *(widgets.HTML(upright.format(name)) for name in names)]
        for truth, name in enumerate(names):
            children += [widgets.HTML(name), *(self.cells[truth, guess] for guess in range(len(names)))]
        columns = f"90px repeat({len(names)}, 38px)"
        return widgets.GridBox(
            children, layout=widgets.Layout(grid_template_columns=columns, grid_gap="1px", align_items="flex-end")
        )
