"""How many epochs fit into some minutes on this machine, found before the run starts.

The number is fixed then: the learning rate reaches zero whatever the machine does next, and the same config gives the
same run elsewhere.
"""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from vit.arguments import is_number
from vit.config import TrainConfig
from vit.device import forked_random, resolve_device, wait_for_device
from vit.modules import check_is_model
from vit.progress import progress_bar
from vit.training.averaging import AveragedWeights
from vit.training.checks import check_compile, checked_optimizers
from vit.training.distributed import current_world
from vit.training.epoch import train_one_epoch
from vit.training.evaluation import check_loaders, evaluate
from vit.training.losses import LossFn, check_loss_fn
from vit.training.memory import keep_freed_memory
from vit.training.optim import build_optimizers

WARM_UP_STEPS = 3  # the first steps allocate memory, and compile where that was asked for


def for_budget(
    model: nn.Module,
    train_loader: Any,
    val_loader: Any | None,
    config: TrainConfig,
    *,
    minutes: float,
    probe_seconds: float = 8.0,
    loss_fn: LossFn | None = None,
    make_optimizers: Callable[[nn.Module, TrainConfig], list[torch.optim.Optimizer]] = build_optimizers,
) -> TrainConfig:
    """The config with as many epochs as fit into `minutes`, its warm-up the same share of them as before.

    Times real steps of a copy of the model, with and without dropped patches where the config drops some, and one pass
    over the val loader, which `fit` makes after every epoch. The model, the loaders and the random state stay as they
    are, and `fit` takes the same loaders. Within `distributed.processes()` all processes call this together, and get
    the same config.

    Args:
        model, train_loader, val_loader, config: as `fit` takes them.
        minutes: wall-clock time of the training, validation included.
        probe_seconds: how long to time steps, in all.
        loss_fn, make_optimizers: as `fit` takes them.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: `minutes` is not more than 0, not finite, or too short for a single step.
    """
    if not isinstance(config, TrainConfig):
        raise TypeError(
            f"config is a {type(config).__name__} and must be a TrainConfig: "
            "for_budget(model, train_loader, val_loader, config, minutes=...)"
        )
    check_is_model(model)
    check_loaders(train_loader, val_loader)
    check_loss_fn(loss_fn)
    check_compile(config)
    if not is_number(minutes):
        raise TypeError(f"minutes={minutes!r} must be a number")
    if not 0 < minutes < math.inf:
        raise ValueError(f"minutes={minutes} must be more than 0, and finite")
    world, device = current_world(), resolve_device(config.device)
    if device.type == "cpu":
        keep_freed_memory()
    # A card is slower once it is warm, and an epoch may be a second there; on a CPU one is enough.
    num_epochs = 1 if device.type == "cpu" else max(1, int(config.epochs))
    shares = {0.0: 1.0}
    if config.patch_drop_rate:
        shares = {1.0: config.patch_drop_until, 0.0: 1 - config.patch_drop_until}
    with forked_random(device):
        probe = copy.deepcopy(model).to(device)
        step = 0.0  # seconds of a mean step of the run
        for until, share in shares.items():
            if share:
                timed = replace(config, epochs=num_epochs, warmup_epochs=0.0, patch_drop_until=until)
                optimizers = checked_optimizers(make_optimizers, probe, timed)
                seconds = probe_seconds / len(shares)
                step += share * _step_seconds(probe, train_loader, timed, optimizers, seconds, loss_fn)
        started = time.perf_counter()
        if val_loader is not None:
            evaluate(probe, val_loader, config, world=world, show_progress=False)
        val = time.perf_counter() - started
    step, val = world.share((step, val))  # as the first one has timed them: all decide alike
    epochs = _epochs_that_fit(60 * minutes, step * len(train_loader), val)
    if epochs * len(train_loader) < 1:
        raise ValueError(f"minutes={minutes} is too short: a step takes {step:.2f} s here and a validation {val:.1f} s")
    return config.with_epochs(epochs)


def _epochs_that_fit(seconds: float, epoch: float, val: float) -> float:
    """The most epochs, to a hundredth, that fit into `seconds`, with a validation after each, a partial last one
    included."""
    whole = int(seconds // (epoch + val))
    rest = max(0.0, seconds - whole * (epoch + val) - val) / epoch
    return whole + math.floor(100 * min(rest, 1)) / 100


def _step_seconds(
    model: nn.Module,
    loader: Any,
    config: TrainConfig,
    optimizers: list[torch.optim.Optimizer],
    seconds: float,
    loss_fn: LossFn | None,
) -> float:
    """Mean duration of a step, over so many seconds or the epochs of the config, whichever ends first."""
    world = current_world()
    network = world.wrap(model)
    network = torch.compile(network) if config.compile else network
    ema = AveragedWeights(model, config.ema_decay) if config.ema_decay else None
    count, warm_up, is_over = 0, min(WARM_UP_STEPS, len(loader) - 1), False

    def should_stop() -> bool:
        nonlocal count, started, is_over
        count += 1
        if count == warm_up:
            wait_for_device()
            started = time.perf_counter()
        is_over = world.any(count > warm_up and time.perf_counter() - started > seconds)
        return is_over

    started = time.perf_counter()
    options = {"loss_fn": loss_fn, "ema": ema, "should_stop": should_stop, "world": world}
    for epoch in range(int(config.epochs)):
        train_one_epoch(network, loader, optimizers, config, epoch=epoch, bar=progress_bar(disable=True), **options)
        if is_over:
            break
    wait_for_device()
    return (time.perf_counter() - started) / (count - warm_up)
