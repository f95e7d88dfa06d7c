"""What ablations.py compares: a base recipe for each time budget, and variants that differ from it in one thing.

A variant is written as its difference, so that the table stays true when the base changes; one that is no difference
from a base is left out there. To compare with other presets, change `BASES`.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import vit
from vit.data import DataSplits, resize
from vit.data.loader import normalize
from vit.model import init_mimetic, init_whitened_patches
from vit.progress import progress_bar
from vit.tasks.progressive import train_progressively
from vit.training import build_optimizers
from vit.training.loop import STATE_FILE
from vit.training.memory import keep_freed_memory

Changes = Mapping[str, Any] | Callable[[Any], Mapping[str, Any]]  # of a config, or what makes them of the base's

WHITENING_IMAGES = 5000
PREPARATIONS: dict[str, Callable[[vit.VisionTransformer, DataSplits], None]] = {
    "whitening": lambda model, data: init_whitened_patches(
        model, normalize(data.train.images[:WHITENING_IMAGES], data.mean, data.std)
    ),
    "mimetic": lambda model, data: init_mimetic(model),
}
ROUNDS, WARM_UP_ROUNDS = 20, 2  # of a measurement; the first steps allocate memory
START_SHARE = 0.5  # of the steps, on small images, where there are any
# What changes values and not the work of a step. (An averaged weight costs one addition; 0.1 % of a step.)
FREE = ("learning_rate", "muon_learning_rate", "label_smoothing", "ema_decay", "flip", "seed")


@dataclass(frozen=True)
class Setup:
    """All that decides a training but its length.

    Args:
        prepare: names in `PREPARATIONS`, applied to the new network in this order.
        start_size: pixels of the images in the first part; None for full size throughout.
    """

    model: vit.ViTConfig
    train: vit.TrainConfig
    prepare: tuple[str, ...] = ()
    start_size: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it: lists for tuples."""
        return {k: _as_lists(v) for k, v in asdict(self).items()}

    def with_seed(self, seed: int) -> "Setup":
        return replace(self, train=replace(self.train, seed=seed))

    @property
    def timed(self) -> "Setup":
        """The plainest setup whose steps take as long."""
        plain = {name: getattr(vit.TrainConfig(), name) for name in FREE}
        return replace(self, train=replace(self.train, **plain), prepare=())


def _as_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _as_lists(v) for k, v in value.items()}
    return list(value) if isinstance(value, tuple) else value


def make_base(model: str, recipe: str, *prepare: str) -> Setup:
    """A base of two presets; on a CPU in float32, which is what the budgets are of."""
    config = vit.TrainConfig.preset(recipe, device="cpu", precision="fp32")
    return Setup(vit.ViTConfig.preset(model), config, prepare)


# Minutes of training: network, recipe and preparations.
BASES = {
    5: make_base("vit_nano_patch4_32", "cpu_10min"),
    20: make_base("vit_nano_patch4_32", "cpu_10min"),
}
QUICK_BASE = make_base("vit_pico_patch8_32", "quick")


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
        return Setup(model, train, prepare, self.start_size or base.start_size)


def batch_times(factor: float) -> Callable[[vit.TrainConfig], dict[str, Any]]:
    """Another batch, with the rates times the root of its growth."""

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
    "pos_learned": Variant("positions learned", model={"pos_embed": "learned"}),
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
    "ema": Variant("weights averaged (EMA 0.99)", train={"ema_decay": 0.99}),
    "drop_0": Variant("no patches dropped", train={"patch_drop_rate": 0.0}),
    "drop_50": Variant("50 % dropped until 60 %", train={"patch_drop_rate": 0.5, "patch_drop_until": 0.6}),
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


def new_model(setup: Setup, data: DataSplits) -> vit.VisionTransformer:
    """The network as it is before the first step; the seed of the recipe decides it."""
    torch.manual_seed(setup.train.seed)
    model = vit.VisionTransformer(setup.model)
    for name in setup.prepare:
        PREPARATIONS[name](model, data)
    return model


def train(setup: Setup, data: DataSplits, steps: int, run_dir: Path | None = None) -> float | None:
    """The validation accuracy in percent after so many steps, with the last weights; None if the training was stopped.

    The warm-up keeps its share of the steps. In `run_dir` a stopped training is kept, and goes on from there; on small
    images first it starts anew.
    """
    model = new_model(setup, data)
    loader, val_loader = vit.make_loaders(data, setup.train)
    epochs = steps / len(loader)
    config = replace(setup.train, epochs=epochs, warmup_epochs=setup.train.warmup_epochs / setup.train.epochs * epochs)
    if setup.start_size:
        train_progressively(model, data, config, start_size=setup.start_size, until=START_SHARE)
    else:
        resume = run_dir is not None and (run_dir / STATE_FILE).exists()
        if not vit.fit(model, loader, None, config, run_dir=run_dir, resume=resume).is_complete:
            return None
    return vit.evaluate(model, val_loader, config, test_time_augmentation="none").accuracy


def step_seconds(setups: Sequence[Setup], data: DataSplits, *, rounds: int = ROUNDS) -> list[float]:
    """Duration of a mean step of each whole training, on this machine now.

    The trainings take a step each, in turns, so that a machine whose speed drifts is slow for all of them alike; the
    median over the rounds counts.
    """
    keep_freed_memory()
    parts = [_parts(setup, data) for setup in setups]
    times = [[[] for _ in of_setup] for of_setup in parts]
    for turn in range(WARM_UP_ROUNDS + rounds):
        for of_setup, found in zip(parts, times, strict=True):
            for (_, take_step), seconds in zip(of_setup, found, strict=True):
                started = time.perf_counter()
                take_step(turn)
                seconds.append(time.perf_counter() - started)
    return [
        sum(share * statistics.median(s[WARM_UP_ROUNDS:]) for (share, _), s in zip(of_setup, found, strict=True))
        for of_setup, found in zip(parts, times, strict=True)
    ]


def _parts(setup: Setup, data: DataSplits) -> list[tuple[float, Callable[[int], Any]]]:
    """The parts of a training whose steps differ in work: the share of the steps, and what takes one."""
    small_until = START_SHARE if setup.start_size else 0.0
    drop_until = setup.train.patch_drop_until if setup.train.patch_drop_rate else 0.0
    found = []
    for low, high in itertools.pairwise(sorted({0.0, small_until, drop_until, 1.0})):
        images, model_config = data, setup.model
        if low < small_until:
            images, model_config = resize(data, setup.start_size), replace(setup.model, image_size=setup.start_size)
        config = replace(setup.train, epochs=1, warmup_epochs=0.0, patch_drop_until=float(low < drop_until))
        found.append((high - low, _stepper(vit.VisionTransformer(model_config), images, config)))
    return found


def _stepper(model: vit.VisionTransformer, data: DataSplits, config: vit.TrainConfig) -> Callable[[int], Any]:
    loader, _ = vit.make_loaders(data, config)
    optimizers, bar = build_optimizers(model, config), progress_bar(disable=True)

    def take_step(turn: int) -> None:
        start = turn % len(loader)
        vit.train_one_epoch(model, loader, optimizers, config, start_step=start, bar=bar, should_stop=lambda: True)

    return take_step
