"""What `fit` and `evaluate` refuse before any work: what would fail later, destroy something, or be silently wrong.

A loader that does not say of what classes, normalization or settings it is, is trusted.
"""

import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vit.arguments import is_number
from vit.config import TrainConfig, check_is_config
from vit.device import forked_random, resolve_device
from vit.modules import check_is_model, unwrap
from vit.training.checkpoint import describe_data
from vit.training.distributed import World
from vit.training.evaluation import (
    check_loaders,
    check_metadata,
    check_plain_loader,
    evaluate,
)
from vit.training.history import History
from vit.training.losses import LossFn, check_loss_fn
from vit.training.optim import note_peak_rates
from vit.training.run_files import holds_state, refuse_existing
from vit.training.run_lock import being_written

# The settings that decide what a train loader gives. How long it mixes is not among them: see `Loader.for_run`.
DATA_SETTINGS = (
    "batch_size",
    "seed",
    "crop_padding",
    "flip",
    "erase_size",
    "auto_augment",
    "mixup_alpha",
    "cutmix_alpha",
    "mix_probability",
)


def check_fit(
    model: nn.Module,
    train_loader: Any,
    val_loader: Any,
    config: TrainConfig,
    *,
    run_dir: Path | None,
    resume: bool,
    loss_fn: LossFn | None,
    history: History | None,
    save_seconds: float,
    after_epoch: Callable[..., object] | None,
    world: World,
) -> None:
    """Raises for arguments of `fit` that do not belong together, or a folder that holds another run."""
    check_is_model(model)
    check_is_config(config)
    check_loss_fn(loss_fn)
    if world.size == 1 and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise RuntimeError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} processes were started, but each would train alone: call fit "
            "within `with vit.training.distributed.processes():`"
        )
    if after_epoch is not None and not callable(after_epoch):
        raise TypeError(f"after_epoch={after_epoch!r} must be a function of the model and the row, or None")
    check_loaders(train_loader, val_loader)
    if not is_number(save_seconds) or not save_seconds >= 0:  # else known after the first epoch
        raise ValueError(f"save_seconds={save_seconds!r} must be a number of 0 or more")
    if history:
        raise ValueError(f"history holds {len(history)} epochs already: give an empty one, which resume=True fills too")
    of_model = getattr(getattr(model, "config", None), "num_classes", None)
    of_data = getattr(train_loader, "num_classes", None)
    is_classifier = loss_fn is None or val_loader is not None
    if is_classifier and of_model and of_data and of_model != of_data:
        raise ValueError(f"the model has num_classes={of_model}, the data {of_data} classes: build it with the data's")
    remedy = "to train it for this data, set model.metadata = data.metadata first"
    check_metadata(unwrap(model), train_loader, remedy, compare_classes=loss_fn is None)
    if val_loader is not None:
        check_metadata(unwrap(model), val_loader, remedy)
        check_plain_loader("val_loader", val_loader)
    _check_settings(train_loader, config)
    if resume and world.is_first and not run_dir.is_dir():
        raise FileNotFoundError(f"run_dir={str(run_dir)!r} is no folder")
    check_compile(config)
    with being_written(run_dir if world.is_first else None):  # a run that still goes on is named first
        if run_dir is not None and not resume and world.is_first:
            refuse_existing(run_dir)


def as_resume(resume: bool | str, run_dir: Path | None, world: World) -> bool:
    """Whether to go on with a run; "auto" does where the first process finds a state in the folder."""
    if resume not in (True, False, "auto"):
        raise ValueError(f"resume={resume!r} must be True, False or 'auto'")
    if resume and run_dir is None:
        raise ValueError(f"resume={resume!r} needs run_dir, the folder of the run to go on with")
    # Asked by every process, whatever it was given: which of them differ is for `fit` to say.
    is_there = world.share(run_dir is not None and holds_state(run_dir) if world.is_first else None)
    return is_there if resume == "auto" else bool(resume)


def checked_optimizers(
    make_optimizers: Callable[[nn.Module, TrainConfig], list[torch.optim.Optimizer]],
    model: nn.Module,
    config: TrainConfig,
    *,
    is_kept: bool = False,
) -> list[torch.optim.Optimizer]:
    """What `make_optimizers` makes, with the rates of its groups noted as their peaks.

    Args:
        is_kept: whether the run has a folder, whose states hold parameters of the model alone.

    Raises:
        TypeError: it cannot be called, or makes something else than a list of optimizers.
        ValueError: they hold no parameter of the model, or cannot be used as `fit` uses them.
    """
    if not callable(make_optimizers):
        raise TypeError(f"make_optimizers={make_optimizers!r} must be called with (model, config)")
    made = make_optimizers(model, config)
    is_list = isinstance(made, (list, tuple))
    if not is_list or not made or not all(isinstance(one, torch.optim.Optimizer) for one in made):
        kinds = f"[{', '.join(type(one).__name__ for one in made)}]" if is_list else type(made).__name__
        raise TypeError(
            f"make_optimizers returned {kinds}: it must return a list of torch's optimizers, such as "
            "[torch.optim.AdamW(model.parameters())]"
        )
    if any(isinstance(one, torch.optim.LBFGS) for one in made):
        raise ValueError("make_optimizers returned LBFGS, which computes the loss several times a step: take another")
    groups = [group for one in made for group in one.param_groups]
    own = set(model.parameters())
    if not any(p in own for group in groups for p in group["params"]):
        raise ValueError("make_optimizers returned optimizers of another model: use the model that it is called with")
    foreign = sum(p not in own for group in groups for p in group["params"])
    if is_kept and foreign:
        raise ValueError(
            f"make_optimizers returned optimizers of {foreign} parameters that are not the model's: no state in "
            "run_dir would hold their values, so make them parts of the model"
        )
    if any("initial_lr" in group for group in groups):  # which the schedulers of torch leave there
        raise ValueError(
            "make_optimizers returned an optimizer with a learning-rate scheduler: leave that out, since fit sets the "
            "rates itself, by schedule, warmup_epochs and flat_until of the config"
        )
    for group in groups:  # numpy's numbers become Python's, since no state would hold them
        group |= {name: value.item() for name, value in group.items() if isinstance(value, np.generic)}
    note_peak_rates(made)
    return list(made)


def check_compile(config: TrainConfig) -> None:
    """Raises ValueError where torch could not compile for a GPU, which it would say in the first step only."""
    if config.compile and resolve_device(config.device).type == "cuda" and find_spec("triton") is None:
        raise ValueError("compile=True needs Triton, which torch does not bring along on Windows: use compile=False")


def _check_settings(train_loader: Any, config: TrainConfig) -> None:
    """Raises ValueError if the train loader was made with other settings."""
    made_with = getattr(train_loader, "config", None)
    if isinstance(made_with, TrainConfig):
        for name in DATA_SETTINGS:
            theirs, ours = getattr(made_with, name), getattr(config, name)
            if theirs != ours:
                raise ValueError(
                    f"train_loader was made with {name}={theirs!r}, but config has {name}={ours!r}: make the loaders "
                    "with this config"
                )


def check_same(
    model: nn.Module,
    train_loader: Any,
    val_loader: Any,
    config: TrainConfig,
    world: World,
    *,
    is_kept: bool,
    resume: bool,
) -> None:
    """Raises a ValueError, in every process, unless all of them are about to do the same training.

    Args:
        is_kept: whether it has a folder.
    """
    network = ", ".join(f"{name} {tuple(p.shape)} {p.dtype}" for name, p in model.named_parameters())
    data = describe_data(train_loader) | {"val_steps": 0 if val_loader is None else len(val_loader)}
    facts = {"network": zlib.crc32(network.encode()), "is_kept": is_kept, "resume": resume}
    world.check_same(asdict(config) | data | facts)


def try_evaluation(model: nn.Module, val_loader: Any, config: TrainConfig, world: World) -> None:
    """Measures two val images in each process, so that what is wrong with them is known before the first epoch."""
    device = next(model.parameters()).device
    with forked_random(device):
        try:
            evaluate(model, _FirstImages(val_loader, 2 * world.size), config, world=world, show_progress=False)
        except Exception as error:
            error.add_note("this was the val_loader's first batch: with a model that is no classifier, give None")
            raise


class _FirstImages:
    """The first images of a loader's first batch."""

    def __init__(self, loader: Any, count: int) -> None:
        self.loader, self.count = loader, count
        self.num_classes = getattr(loader, "num_classes", None)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for images, labels in self.loader.epoch(epoch, start_step):
            yield images[: self.count], labels[: self.count]
            return
