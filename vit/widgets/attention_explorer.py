"""An explorer of attention: choose an image, layer, head and the patch that asks, or a method to explain a class.

Maps of all images are computed once, when the explorer is made, and an explanation when it is first asked for;
moving a control only draws. The same figure in a cell: `attention_from` or `explain`, then `plot_attention_view`.
"""

from collections.abc import Sequence

import ipywidgets as widgets
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from vit.analysis import METHODS, attention_from, attention_maps, explain, predict, token_layout
from vit.analysis.explain import CLASS_METHODS
from vit.plots import plot_attention_view
from vit.widgets.panel import class_names_of, shrinking_picture, side_by_side, to_png, updating

MAX_BUTTONS = 400  # patches; a page with more buttons than that is slow


class AttentionExplorer(widgets.VBox):
    """A panel to look at attention with.

    Args:
        model: a Vision Transformer of this library or of timm.
        images: uint8 (B, C, H, W) of the model's own size; their maps stay in memory, so about 16 are enough.
        class_names: one a class; default those the model's metadata names.
    """

    def __init__(self, model: nn.Module, images: Tensor, class_names: Sequence[str] | None = None) -> None:
        if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.ndim != 4 or not len(images):
            raise ValueError("images must be a uint8 tensor (B, C, H, W) of at least one image")
        self.model, self.tokens = model, token_layout(model)
        self.images = images.clone()  # a slice would keep its whole dataset in memory for as long as the panel is open
        self.maps = attention_maps(model, images)  # (L, B, h, T, T)
        self.probabilities = predict(model, images)  # (B, K)
        num_classes = self.probabilities.shape[1]
        self.class_names = class_names_of(model, class_names) or [f"class {k}" for k in range(num_classes)]
        if len(self.class_names) != num_classes:
            raise ValueError(f"class_names has {len(self.class_names)} names, the model {num_classes} classes")
        self.query: str | tuple[int, int] = "head"
        self._explanations: dict[tuple[str, int, int], Tensor] = {}
        self._is_updating = False
        self._make_controls()
        self._choose_image()
        super().__init__([side_by_side(self._controls(), self.picture)])

    def heat(self) -> Tensor:
        """The map (rows, columns) of the present choices."""
        i = self.image.value
        if self.method.value != "attention":
            key = (self.method.value, i, self.target.value)
            if key not in self._explanations:
                one = self.images[i : i + 1]
                self._explanations[key] = explain(self.model, one, key[0], targets=key[2])[0]
            return self._explanations[key]
        grids = attention_from(self.maps[self.layer.value, i], self.tokens, self.query)  # (h, rows, columns)
        if self.head.value == "mean":
            return grids.mean(dim=0)
        return grids.amax(dim=0) if self.head.value == "max" else grids[self.head.value]

    def figure(self) -> Figure:
        """The figure of the present choices."""
        i = self.image.value
        guess = int(self.probabilities[i].argmax())
        verdict = f"{self.class_names[guess]} {100 * self.probabilities[i, guess]:.0f} %"
        if self.method.value == "attention":
            query, unit = None if self.query == "head" else self.query, "attention"
            asks = self.reader if query is None else f"patch {query[0]}, {query[1]}"
            title = f"{verdict}: layer {self.layer.value}, {self.head.label}, {asks} asks"
        else:
            query, unit = None, self.method.label
            what_for = "" if self.target.disabled else f" for {self.target.label}"  # rollout is of no class
            title = f"{verdict}: {self.method.label}{what_for}"
        return plot_attention_view(
            self.images[i], self.heat(), query=query, opacity=self.opacity.value, title=title, unit=unit
        )

    def draw(self) -> None:
        """Shows the figure of the present choices, once all controls have theirs."""
        if self._is_updating:
            return
        self.picture.value = to_png(self.figure())

    def choose_query(self, query: str | tuple[int, int]) -> None:
        """Asks from a patch (row, column), or from what the head reads, "head"; the same as clicking it."""
        if query != "head":
            self.tokens.token_idx(query)
        self.query = query
        for patch, button in self.patches.items():
            button.description = "●" if patch == query else ""
        self.ask_head.button_style = "info" if query == "head" else ""
        self._set(self.method, "attention")
        self.draw()

    @property
    def reader(self) -> str:
        """What the head reads."""
        return {
            "cls": "CLS",
            "mean": "the mean of all patches",
            "cls_mean": "CLS and the mean of all patches",
            "cls_register": "CLS and the first register",
        }.get(self.tokens.pool, self.tokens.pool)

    def _make_controls(self) -> None:
        num_layers, num_images, num_heads = self.maps.shape[:3]
        heads = [("mean of heads", "mean"), ("max of heads", "max"), *((f"head {k}", k) for k in range(num_heads))]
        methods = [(name.replace("_", " "), name) for name in METHODS]
        self.image = widgets.IntSlider(0, 0, num_images - 1, description="image")
        self.method = widgets.Dropdown(options=methods, value="attention", description="method")
        self.layer = widgets.IntSlider(num_layers - 1, 0, num_layers - 1, description="layer")
        self.head = widgets.Dropdown(options=heads, value="mean", description="head")
        classes = [(name, k) for k, name in enumerate(self.class_names)]
        self.target = widgets.Dropdown(options=classes, description="class", disabled=True)
        self.opacity = widgets.FloatSlider(0.6, min=0, max=1, step=0.05, description="opacity")
        self.ask_head = widgets.Button(description=f"{self.reader} asks", button_style="info", layout={"width": "auto"})
        self.picture = shrinking_picture("640px")
        self.patches = self._make_patches()
        self.image.observe(lambda _: self._choose_image(), "value")
        self.method.observe(lambda _: self._choose_method(), "value")
        for control in (self.layer, self.head, self.target, self.opacity):
            control.observe(lambda _: self.draw(), "value")
        self.ask_head.on_click(lambda _: self.choose_query("head"))

    def _make_patches(self) -> dict[tuple[int, int], widgets.Button]:
        """A button for every patch, unless there are too many for a page."""
        rows, columns = self.tokens.grid_size
        if rows * columns > MAX_BUTTONS:
            return {}
        side = widgets.Layout(width="22px", height="22px", padding="0", margin="1px")
        buttons = {}
        for patch in [(row, column) for row in range(rows) for column in range(columns)]:
            buttons[patch] = widgets.Button(layout=side, tooltip=f"patch {patch[0]}, {patch[1]}")
            buttons[patch].on_click(lambda _, patch=patch: self.choose_query(patch))
        return buttons

    def _controls(self) -> list[widgets.Widget]:
        columns = self.tokens.grid_size[1]
        mosaic = widgets.GridBox(
            list(self.patches.values()), layout=widgets.Layout(grid_template_columns=f"repeat({columns}, 24px)")
        )
        clickable = [widgets.Label("Click the patch that asks:"), mosaic] if self.patches else []
        controls = [self.image, self.method, self.layer, self.head, self.target, self.opacity]
        return [*controls, *clickable, self.ask_head]

    def _choose_image(self) -> None:
        """Shows another image: its colors on the buttons, and the predicted class as the one to explain."""
        i = self.image.value
        rows, columns = self.tokens.grid_size
        image = self.images[i].float()  # (C, H, W)
        colors = nn.functional.adaptive_avg_pool2d(image, (rows, columns)).expand(3, -1, -1)  # (3, rows, columns)
        for (row, column), button in self.patches.items():
            button.style.button_color = "#" + "".join(f"{int(level):02x}" for level in colors[:, row, column])
        self._set(self.target, int(self.probabilities[i].argmax()))
        self.draw()

    def _choose_method(self) -> None:
        """Only attention has layers and heads, only an explanation has a class."""
        is_attention = self.method.value == "attention"
        self.layer.disabled = self.head.disabled = not is_attention
        self.target.disabled = self.method.value not in CLASS_METHODS
        self.draw()

    def _set(self, control: widgets.Widget, value: object) -> None:
        """Moves a control without drawing: whoever calls this draws once, afterwards."""
        with updating(self):
            control.value = value
