"""How a variant of ablations.py is trained, and how long its steps take."""

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ablation_variants import Setup

import vit
from vit.data import DataSplits, resize
from vit.model import init_mimetic, init_whitened_patches
from vit.normalization import normalize
from vit.progress import progress_bar
from vit.tasks.progressive import train_progressively
from vit.training import build_optimizers
from vit.training.memory import keep_freed_memory

ROUNDS, WARM_UP_ROUNDS = 12, 1  # of a measurement; the first steps allocate memory
STEPS = 3  # of a turn; the first of them is not timed, since it finds the caches filled by another training
WHITENING_IMAGES = 5000
PREPARATIONS: dict[str, Callable[[vit.VisionTransformer, DataSplits], None]] = {
    "whitening": lambda model, data: init_whitened_patches(
        model, normalize(data.train.images[:WHITENING_IMAGES], data.mean, data.std)
    ),
    "mimetic": lambda model, data: init_mimetic(model),
}


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
    config = setup.train.with_epochs(steps / len(loader))
    if setup.start_size:
        train_progressively(model, data, config, start_size=setup.start_size, until=setup.start_share)
    else:
        resume = "auto" if run_dir else False
        if not vit.fit(model, loader, None, config, run_dir=run_dir, resume=resume).is_complete:
            return None
    return vit.evaluate(model, val_loader, config, test_time_augmentation="none").accuracy


def step_seconds(setups: Sequence[Setup], data: DataSplits, *, rounds: int = ROUNDS) -> list[float]:
    """Duration of a mean step of each whole training, on this machine now.

    The trainings take a few steps each, in turns, so that a machine whose speed drifts is slow for all of them alike;
    the median over the rounds counts.
    """
    keep_freed_memory()
    parts = [_parts(setup, data) for setup in setups]
    times = [[[] for _ in of_setup] for of_setup in parts]
    for turn in range(WARM_UP_ROUNDS + rounds):
        for of_setup, found in zip(parts, times, strict=True):
            for (_, take_step), seconds in zip(of_setup, found, strict=True):
                take_step(STEPS * turn)
                started = time.perf_counter()
                for i in range(1, STEPS):
                    take_step(STEPS * turn + i)
                seconds.append((time.perf_counter() - started) / (STEPS - 1))
    return [
        sum(share * statistics.median(s[WARM_UP_ROUNDS:]) for (share, _), s in zip(of_setup, found, strict=True))
        for of_setup, found in zip(parts, times, strict=True)
    ]


def _parts(setup: Setup, data: DataSplits) -> list[tuple[float, Callable[[int], Any]]]:
    """The parts of a training whose steps differ in work: the share of the steps, and what takes one."""
    small_until = setup.start_share if setup.start_size else 0.0
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
