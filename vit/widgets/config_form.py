"""A form for both configs: a control for every field that matters, each with its explanation as a tooltip.

Allowed values follow each other: heads divide the width, the warm-up is shorter than the run, and what a choice makes
meaningless is grayed out. What the form cannot keep from going wrong, the configs refuse themselves.
"""

import inspect
import math
import re
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import ipywidgets as widgets

from vit.config import TrainConfig, ViTConfig
from vit.widgets.panel import updating

WIDTHS = (32, 48, 64, 96, 128, 160, 192, 256, 320, 384, 512)
BATCH_SIZES = (8, 16, 25, 32, 50, 64, 96, 128, 192, 256, 384, 512)
MAX_PATCHES = 256  # more are no training for a laptop

# Told when a slider of fractions is let go. While it is dragged it would also send what it was only given, rounded to
# its steps: a rate of 0.002 would become 0.001995 as soon as a page shows it, and none could be typed.
_WHEN_LET_GO = {"continuous_update": False}
_STYLE = {"description_width": "150px"}
_LAYOUT = {"width": "390px"}


def _slider(low: float, high: float, step: float, text: str = ".2f") -> Callable[[], widgets.Widget]:
    if isinstance(step, int):
        return lambda: widgets.IntSlider(low, low, high, step)
    return lambda: widgets.FloatSlider(low, min=low, max=high, step=step, readout_format=text, **_WHEN_LET_GO)


def _log_slider(low: int, high: int) -> Callable[[], widgets.Widget]:
    """From 10^low to 10^high, 20 places a decade."""
    return lambda: widgets.FloatLogSlider(10**low, min=low, max=high, step=0.05, readout_format=".2e", **_WHEN_LET_GO)


def _choice(*options: Any) -> Callable[[], widgets.Widget]:
    """A menu, in which 0 is shown as "off"."""
    return lambda: widgets.Dropdown(options=[("off" if o == 0 else str(o), o) for o in options])


def _steps(*options: Any) -> Callable[[], widgets.Widget]:
    return lambda: widgets.SelectionSlider(options=options)


_PAGES: dict[str, dict[str, Callable[[], widgets.Widget]]] = {
    "network": {
        "model.patch_size": _steps(1),
        "model.embed_dim": _steps(*WIDTHS),
        "model.depth": _slider(1, 16, 1),
        "model.num_heads": _steps(1),
        "model.mlp_ratio": _slider(0.5, 6.0, 0.5, ".1f"),
        "model.act": _choice(*ViTConfig.CHOICES["act"]),
        "model.pool": _choice("cls", "mean", "cls_mean"),
        "model.head": _choice(*ViTConfig.CHOICES["head"]),
        "model.pos_embed": _choice(*ViTConfig.CHOICES["pos_embed"]),
        "model.num_registers": _slider(0, 8, 1),
        "model.patch_init": _choice(*ViTConfig.CHOICES["patch_init"]),
        "model.qkv_bias": widgets.Checkbox,
        "model.qk_norm": widgets.Checkbox,
        "model.pre_norm": widgets.Checkbox,
        "model.patch_norm": widgets.Checkbox,
        "model.layer_scale": _choice("off", 1e-5, 1e-4, 1e-3, 0.01, 0.1),
        "model.drop_rate": _slider(0.0, 0.5, 0.05),
        "model.attn_drop_rate": _slider(0.0, 0.5, 0.05),
        "model.drop_path_rate": _slider(0.0, 0.5, 0.05),
    },
    "optimization": {
        "train.epochs": _slider(0.1, 30.0, 0.1, ".1f"),
        "train.batch_size": _steps(*BATCH_SIZES),
        "train.accumulation_steps": _steps(1, 2, 4, 8),
        "train.optimizer": _choice(*TrainConfig.CHOICES["optimizer"]),
        "train.learning_rate": _log_slider(-5, -1),
        "train.muon_learning_rate": _log_slider(-4, 0),
        "train.muon_momentum": _slider(0.0, 0.99, 0.01),
        "train.weight_decay": _slider(0.0, 0.5, 0.01),
        "train.warmup_epochs": _slider(0.0, 1.0, 0.1, ".1f"),
        "train.schedule": _choice(*TrainConfig.CHOICES["schedule"]),
        "train.flat_until": _slider(0.0, 0.95, 0.05),
        "train.clip_grad_norm": _slider(0.0, 5.0, 0.1, ".1f"),
        "train.ema_decay": _choice(0.0, 0.9, 0.99, 0.999, 0.9999),
        "train.seed": lambda: widgets.BoundedIntText(0, min=0, max=2**31 - 1),
        "train.device": _choice(*TrainConfig.CHOICES["device"]),
        "train.precision": _choice(*TrainConfig.CHOICES["precision"]),
        "train.compile": widgets.Checkbox,
    },
    "images": {
        "train.crop_padding": _slider(0, 8, 1),
        "train.flip": _choice(*TrainConfig.CHOICES["flip"]),
        "train.patch_drop_rate": _slider(0.0, 0.9, 0.05),
        "train.patch_drop_until": _slider(0.0, 1.0, 0.05),
        "train.erase_size": _slider(0, 16, 1),
        "train.auto_augment": _choice(*TrainConfig.CHOICES["auto_augment"]),
        "train.mixup_alpha": _slider(0.0, 1.0, 0.1, ".1f"),
        "train.cutmix_alpha": _slider(0.0, 1.0, 0.1, ".1f"),
        "train.mix_probability": _slider(0.0, 1.0, 0.1, ".1f"),
        "train.mix_until": _slider(0.0, 1.0, 0.01),
        "train.label_smoothing": _slider(0.0, 0.5, 0.05),
        "train.test_time_augmentation": _choice(*TrainConfig.CHOICES["test_time_augmentation"]),
    },
}


class ConfigForm(widgets.Tab):
    """Controls for a ViTConfig and a TrainConfig, by name in `controls`: "model.depth", "train.epochs", ...

    Args:
        model_config, train_config: what it shows first; fields without a control (image size, channels, classes,
            AdamW's betas, and what only weights of other libraries need) keep their values.
    """

    def __init__(self, model_config: ViTConfig, train_config: TrainConfig) -> None:
        self.controls = {name: make() for page in _PAGES.values() for name, make in page.items()}
        helps = {"model": field_help(ViTConfig), "train": field_help(TrainConfig)}
        for name, control in self.controls.items():
            room, field = name.split(".")
            control.description, control.tooltip = field, helps[room][field]
            control.style, control.layout = _STYLE, _LAYOUT
            control.observe(self._follow, "value")
        self._changed: list[Callable[[], None]] = []
        self._is_updating = False
        pages = [widgets.VBox([self.controls[name] for name in page]) for page in _PAGES.values()]
        super().__init__(pages, titles=tuple(_PAGES), layout=widgets.Layout(width="440px"))
        self.show(model_config, train_config)

    @property
    def model_config(self) -> ViTConfig:
        """What the form says. Raises ValueError where it cannot be."""
        return replace(self._model_config, **self._values("model"))

    @property
    def train_config(self) -> TrainConfig:
        """What the form says. Raises ValueError where it cannot be."""
        return replace(self._train_config, **self._values("train"))

    def show(self, model_config: ViTConfig, train_config: TrainConfig) -> None:
        """Fills the form in; values that a control does not offer are added to it.

        Raises:
            ValueError: a learning rate is 0, which its slider cannot show; the form then stays as it is.
        """
        configs = {"model": model_config, "train": train_config}
        shown = {name: getattr(configs[name.split(".")[0]], name.split(".")[1]) for name in self.controls}
        for name, value in shown.items():
            if isinstance(self.controls[name], widgets.FloatLogSlider) and value <= 0:
                raise ValueError(f"{name}={value!r} has no place on the slider of the form; try 1e-5")
        self._model_config, self._train_config, self._shown = model_config, train_config, shown
        sides = math.gcd(*model_config.image_size)
        area = math.prod(model_config.image_size)
        sizes = [p for p in range(2, sides + 1) if sides % p == 0 and 4 <= area // p**2 <= MAX_PATCHES]
        with updating(self):
            self.controls["model.patch_size"].options = sizes or [model_config.patch_size]
            self._offer_heads(model_config.embed_dim, model_config.pos_embed, model_config.num_heads)
            for name, value in shown.items():
                _set(self.controls[name], "off" if value is None else value)  # a menu takes None for "nothing chosen"
        self._follow()

    def on_change(self, callback: Callable[[], None]) -> None:
        """Calls back whenever a value has changed, after those that follow it."""
        self._changed.append(callback)

    def _values(self, room: str) -> dict[str, Any]:
        values = {}
        for name, control in self.controls.items():
            home, field = name.split(".")
            if home == room:
                was_moved = isinstance(control, widgets.FloatSlider) and control.value != self._shown[name]
                values[field] = round(control.value, 10) if was_moved else control.value  # a slider adds its steps up
        if room == "model":
            values["layer_scale"] = None if values["layer_scale"] == "off" else values["layer_scale"]
        return values

    def _follow(self, _: Any = None) -> None:
        """Brings the values that depend on others in line, then tells who listens, once."""
        if self._is_updating:
            return
        with updating(self):
            value = {name: control.value for name, control in self.controls.items()}
            self._offer_heads(value["model.embed_dim"], value["model.pos_embed"], value["model.num_heads"])
            epochs, warmup = value["train.epochs"], self.controls["train.warmup_epochs"]
            warmup.max = max(0.9 * epochs, warmup.value if warmup.value < epochs else 0)
            is_mixing = value["train.mixup_alpha"] or value["train.cutmix_alpha"]
            meaningless = {
                "train.muon_learning_rate": value["train.optimizer"] != "muon",
                "train.muon_momentum": value["train.optimizer"] != "muon",
                "train.patch_drop_until": not value["train.patch_drop_rate"],
                "train.mix_probability": not is_mixing,
                "train.mix_until": not is_mixing,
                "train.flat_until": value["train.schedule"] == "constant",
            }
            for name, is_meaningless in meaningless.items():
                self.controls[name].disabled = is_meaningless
        for callback in self._changed:
            callback()

    def _offer_heads(self, embed_dim: int, pos_embed: str, wanted: int) -> None:
        """The numbers of heads that fit, and of these the one that is nearest to the present one.

        Heads narrower than 8 are offered only if they were put in, or if nothing else fits.
        """
        multiple = 4 if pos_embed == "rope" else 1  # of the width of a head
        fitting = [n for n in range(1, embed_dim + 1) if embed_dim % n == 0 and embed_dim // n % multiple == 0]
        wide = [n for n in fitting if embed_dim // n >= 8] or fitting or [wanted]  # the config refuses it
        put_in = (self._model_config.embed_dim, self._model_config.num_heads)
        allowed = sorted({*wide, *(n for n in fitting if (embed_dim, n) == put_in)})
        heads, nearest = self.controls["model.num_heads"], min(allowed, key=lambda n: abs(math.log(n / wanted)))
        heads.options = allowed
        heads.value = nearest


def field_help(config_class: type) -> dict[str, str]:
    """What the docstring of a config says of each field, from its lines "name, name: text"."""
    names = [field.name for field in fields(config_class)]
    # `getdoc`, since Python 3.13 has taken the common indentation away already and earlier ones have not.
    entries = re.split(r"\n {4}(?=\w+(?:, \w+)*: )", inspect.getdoc(config_class).split("Args:")[1])
    told = {}
    for entry in entries[1:]:
        together, text = entry.split(": ", 1)
        told |= dict.fromkeys(together.split(", "), " ".join(text.split()))
    return {name: told.get(name, "") for name in names}


def _set(control: widgets.Widget, value: Any) -> None:
    """Gives a control a value, making room for it first."""
    if isinstance(control, widgets.SelectionSlider) and value not in control.options:
        control.options = sorted([*control.options, value])
    elif isinstance(control, widgets.Dropdown) and value not in dict(control.options).values():
        control.options = [*control.options, (str(value), value)]
    elif isinstance(control, widgets.FloatLogSlider):
        # Powers as the slider has them: a rounded logarithm may leave the value just outside.
        while control.base**control.min > value:
            control.min -= 1
        while control.base**control.max < value:
            control.max += 1
    elif hasattr(control, "max"):
        control.min, control.max = min(control.min, value), max(control.max, value)
    control.value = value
