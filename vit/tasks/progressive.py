"""Small pictures first: the first part of a training sees shrunken images, whose steps are cheaper, the rest full ones.

One schedule of rates spans both parts. The small network is the large one resized, fixed sine positions included, and
hands its weights back.
Source: Tan & Le, "EfficientNetV2", ICML 2021, section 4 (progressive learning).
Differs: two sizes alone, and the same augmentation at both.
"""

import itertools
from typing import Any

import torch

from vit.arguments import as_integer
from vit.config import TrainConfig
from vit.data import DataSplits, Loader, make_loaders, resize
from vit.device import resolve_device
from vit.metadata import remember_data
from vit.model import VisionTransformer
from vit.model.pos_embed import resample_pos_embed
from vit.progress import progress_bar
from vit.training.epoch import run_steps, train_one_epoch
from vit.training.evaluation import check_metadata
from vit.training.loop import leaving_as_found
from vit.training.memory import keeping_freed_memory
from vit.training.optim import build_optimizers


def train_progressively(
    model: VisionTransformer, data: DataSplits, config: TrainConfig, *, start_size: int, until: float = 0.5
) -> None:
    """Trains `model` in place, on images of `start_size` pixels for the first steps and of its own size after them.

    Every batch holds the images that `fit` would show at that step. Momentum starts anew at the change. Nothing is
    saved on the way, and nothing measured: `vit.evaluate` does that at the end. As in `fit`, the model's metadata gets
    what it lacks of the data's normalization and classes.

    Args:
        start_size: side of the small images in pixels, a multiple of the patch size.
        until: up to which share of the steps images are small, in [0, 1].

    Raises:
        ValueError: `until` is no share; the config asks for averaged weights, which would mix two image sizes; or the
            model is for images or classes other than those of `data`, or its metadata names another normalization.
        FloatingPointError: as in `fit`. The model is then in the mode it was found in, and trained as far as it came.
    """
    if not 0 <= until <= 1:
        raise ValueError(f"until={until} must be a share of the run in [0, 1]; try 0.5")
    if config.ema_decay:
        raise ValueError(f"ema_decay={config.ema_decay}: weights are not averaged over two image sizes; use 0")
    patch_size = model.config.patch_size
    if as_integer("start_size", start_size, patch_size) % patch_size:
        raise ValueError(f"start_size={start_size} must be a multiple of patch_size={patch_size}")
    loader, _ = make_loaders(data, config)
    check_metadata(model, loader, "to train it for this data, set model.metadata = data.metadata first")
    of_model = (model.config.in_chans, *model.config.image_size), model.config.num_classes
    of_data = tuple(data.train.images.shape[1:]), data.num_classes
    if of_model != of_data:
        raise ValueError(
            f"the model takes images (C, H, W) of {of_model[0]} and has num_classes={of_model[1]}, the data has "
            f"{of_data[0]} and {of_data[1]} classes: build the model with the data's, or use vit.data.resize"
        )
    remember_data(model, loader, with_classes=True)
    device = resolve_device(config.device)
    model.to(device)
    small = model.resized(start_size)
    if model.config.pos_embed == "sincos2d":  # else a place of the picture would be named otherwise after the change
        small.pos_table.copy_(resample_pos_embed(model.pos_table, model.config.grid_size, small.config.grid_size))
    total_steps = run_steps(config, len(loader))
    switch = round(until * total_steps)
    torch.manual_seed(config.seed)
    bar = progress_bar(total=total_steps, unit="step")
    with keeping_freed_memory(device), leaving_as_found(model), bar:
        if switch:
            small_loader, _ = make_loaders(resize(data, start_size), config)
            try:
                _train_steps(small, small_loader, config, range(switch), bar)
            finally:  # what it has learned is the model's, however its part ends
                # Learned positions alone depend on the size. Others' tables, changed above, no resizing would take.
                trained = small if model.pos_embed is None else small.resized(model.config.image_size)
                model.load_state_dict(trained.state_dict())
        _train_steps(model, loader, config, range(switch, total_steps), bar)


def _train_steps(model: VisionTransformer, loader: Loader, config: TrainConfig, steps: range, bar: Any) -> None:
    """These steps of the run that the config describes, with new optimizers."""
    optimizers = build_optimizers(model, config)
    network = torch.compile(model) if config.compile else model
    step = steps.start
    count = itertools.count(step + 1)  # of the steps that are done, since it is asked once after each
    while step < steps.stop:
        epoch, start_step = divmod(step, len(loader))
        next_step, _ = train_one_epoch(
            network, loader, optimizers, config, epoch=epoch, start_step=start_step, bar=bar,
            should_stop=lambda: next(count) == steps.stop,
        )  # fmt: skip
        step = epoch * len(loader) + next_step
