"""What ablations.py compares: a base recipe for each time budget, and variants that differ from it in one thing.

A variant is written as its difference, so that the table stays true when the base changes; one that is no difference
from a base is left out there. To compare with other presets, change `BASES`.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import vit

Changes = Mapping[str, Any] | Callable[[Any], Mapping[str, Any]]  # of a config, or what makes them of the base's

# What changes values and not the work of a step. Averaging weights adds a little, which is not counted.
FREE = ("learning_rate", "muon_learning_rate", "label_smoothing", "ema_decay", "flip", "seed")


@dataclass(frozen=True)
class Setup:
    """All that decides a training but its length.

    Args:
        prepare: what is done to the new network, in this order; names in `PREPARATIONS` of ablation_training.py.
        start_size: pixels of the images in the first part; None for full size throughout.
        start_share: that part, as a share of the steps.
    """

    model: vit.ViTConfig
    train: vit.TrainConfig
    prepare: tuple[str, ...] = ()
    start_size: int | None = None
    start_share: float = 0.5

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it: lists for tuples."""
        return {k: _as_lists(v) for k, v in asdict(self).items()}

    def with_seed(self, seed: int) -> "Setup":
        return replace(self, train=replace(self.train, seed=seed))

    @property
    def timed(self) -> "Setup":
        """This setup with everything that does not change the duration of a step at its default, so that variants with
        equally long steps share one measurement."""
        plain = {name: getattr(vit.TrainConfig(), name) for name in FREE}
        return replace(self, train=replace(self.train, **plain), prepare=())


def _as_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _as_lists(v) for k, v in value.items()}
    return list(value) if isinstance(value, tuple) else value


def make_base(recipe: str, **changes: Any) -> Setup:
    """A base of a recipe; on a CPU in float32, which is what the budgets are of."""
    return Setup(*vit.recipe(recipe, device="cpu", precision="fp32", **changes))


# By minutes of training. That of twenty is `cpu_20min` as it was before its ablations gave it rotary positions and
# whitened patches.
BASES = {
    5: make_base("cpu_5min"),
    20: make_base("cpu_20min", pos_embed="sincos2d", patch_init="xavier", epochs=23, warmup_epochs=2.3),
}
QUICK_BASE = make_base("quick", batch_size=10)


@dataclass(frozen=True)
class Variant:
    """One difference from a base.

    Args:
        label: what it is, in a figure.
        model, train: fields of the configs with their new values, or a function of the base's config that gives them.
        prepare, start_size: as in `Setup`; None leaves the base's.
    """

    label: str
    model: Changes = field(default_factory=dict)
    train: Changes = field(default_factory=dict)
    prepare: tuple[str, ...] | None = None
    start_size: int | None = None

    def of(self, base: Setup) -> Setup:
        model, train = (
            replace(config, **(changes(config) if callable(changes) else changes))
            for config, changes in ((base.model, self.model), (base.train, self.train))
        )
        prepare = base.prepare if self.prepare is None else self.prepare
        return replace(base, model=model, train=train, prepare=prepare, start_size=self.start_size or base.start_size)


def batch_times(factor: float) -> Callable[[vit.TrainConfig], dict[str, Any]]:
    """Another batch, with the rates times the root of its growth, which is a rule and no search."""

    def change(config: vit.TrainConfig) -> dict[str, Any]:
        rates = {name: getattr(config, name) * factor**0.5 for name in ("learning_rate", "muon_learning_rate")}
        return {"batch_size": round(config.batch_size * factor), **rates}

    return change


def depth_times(factor: float) -> Callable[[vit.ViTConfig], dict[str, Any]]:
    """Another depth, and the width that keeps about as many parameters in the blocks, with heads of the same width."""

    def change(config: vit.ViTConfig) -> dict[str, Any]:
        heads = max(1, round(config.num_heads / factor**0.5))
        return {"depth": round(config.depth * factor), "num_heads": heads, "embed_dim": heads * config.head_dim}

    return change


VARIANTS = {
    "base": Variant("base recipe"),
    "adamw": Variant("AdamW alone, no Muon", train={"optimizer": "adamw"}),
    "adamw_half": Variant(
        "AdamW alone, half its rate", train=lambda c: {"optimizer": "adamw", "learning_rate": c.learning_rate / 2}
    ),
    "adamw_double": Variant(
        "AdamW alone, twice its rate", train=lambda c: {"optimizer": "adamw", "learning_rate": 2 * c.learning_rate}
    ),
    "pos_learned": Variant("positions learned, from sines", model={"pos_embed": "learned"}),
    "pos_sincos2d": Variant("positions fixed sines", model={"pos_embed": "sincos2d"}),
    "pos_rope": Variant("positions rotary", model={"pos_embed": "rope"}),
    "pos_none": Variant("no positions", model={"pos_embed": "none"}),
    "pool_cls": Variant("CLS token", model={"pool": "cls"}),
    "pool_mean": Variant("mean of the patches", model={"pool": "mean"}),
    "qk_norm": Variant("LayerNorm on q and k", model={"qk_norm": True}),
    "registers": Variant("4 registers", model={"num_registers": 4}),
    "whitening": Variant("start: whitened patches", prepare=("whitening",)),
    "mimetic": Variant("start: mimetic attention", prepare=("mimetic",)),
    "plain_start": Variant("start: neither", prepare=()),
    "smoothing_0": Variant("no label smoothing", train={"label_smoothing": 0.0}),
    "smoothing_20": Variant("label smoothing 0.2", train={"label_smoothing": 0.2}),
    "ema": Variant("weights averaged (EMA 0.998)", train={"ema_decay": 0.998}),
    "drop_0": Variant("no patches dropped", train={"patch_drop_rate": 0.0}),
    "drop_50": Variant("50 % dropped until 85 %", train={"patch_drop_rate": 0.5, "patch_drop_until": 0.85}),
    "drop_75": Variant("75 % dropped until 70 %", train={"patch_drop_rate": 0.75, "patch_drop_until": 0.7}),
    "progressive": Variant("24 pixels for the first half", start_size=24),
    "flip_alternating": Variant("alternating flip", train={"flip": "alternating"}),
    "flip_random": Variant("random flip", train={"flip": "random"}),
    "flip_none": Variant("no flip", train={"flip": "none"}),
    "batch_half": Variant("half the batch, rates / √2", train=batch_times(0.5)),
    "batch_double": Variant("twice the batch, rates x √2", train=batch_times(2)),
    "wide": Variant("half as deep, wider", model=depth_times(0.5)),
    "deep": Variant("twice as deep, narrower", model=depth_times(2)),
    "patch_4": Variant("patches of 4 pixels", model={"patch_size": 4}),
    "patch_8": Variant("patches of 8 pixels", model={"patch_size": 8}),
}


def setups_of(base: Setup) -> dict[str, Setup]:
    """The base and every variant that differs from it, by name."""
    setups = {name: variant.of(base) for name, variant in VARIANTS.items()}
    return {name: setup for name, setup in setups.items() if name == "base" or setup != base}


def changes_of(setup: Setup, base: Setup) -> dict[str, Any]:
    """The values in which a setup differs from a base, such as {"train.optimizer": "adamw"}."""
    flat = [
        {f"{part}.{k}": v for part in ("model", "train") for k, v in values[part].items()}
        | {part: values[part] for part in ("prepare", "start_size")}
        for values in (setup.to_dict(), base.to_dict())
    ]
    return {name: value for name, value in flat[0].items() if value != flat[1][name]}
