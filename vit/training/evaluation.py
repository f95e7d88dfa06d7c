"""Measuring a classifier on a whole split."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit.arguments import check_choice
from vit.config import TrainConfig, check_is_config
from vit.device import autocast
from vit.metadata import holder_of_facts
from vit.modules import check_is_model, eval_mode
from vit.progress import progress_bar
from vit.training.distributed import ALONE, World

NORMALIZATION_TOLERANCE = 0.01  # of a channel's mean and deviation; less moves no answer to speak of


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a model says of a whole split: mean loss, accuracy in percent, probabilities (N, K), labels (N,)."""

    loss: float
    accuracy: float
    probabilities: Tensor
    labels: Tensor

    def __repr__(self) -> str:
        num_images, num_classes = self.probabilities.shape
        numbers = f"accuracy={self.accuracy:.2f}, loss={self.loss:.4g}"
        return f"Evaluation({numbers}, {num_images:,} images, {num_classes:,} classes)"


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Any,
    config: TrainConfig | None = None,
    *,
    test_time_augmentation: str | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    world: World = ALONE,
    show_progress: bool = True,
) -> Evaluation | None:
    """Runs a classifier over a loader once, in evaluation mode, and restores the mode it had.

    The accuracy is in percent, as those of a history are.

    Args:
        loader: of `make_eval_loader`, or one of your own that gives images as the model takes them and labels (B,).
        config: what was trained with, for its precision and test-time augmentation; by default those of
            `TrainConfig()`, so that a GPU computes in bfloat16 where it can.
        test_time_augmentation: "none" or "flip" (mean of the probabilities of an image and its mirror image);
            the config's own unless given.
        should_stop: asked before every batch; once it says yes, there is no result but None.
        world: the processes that share the work, each of which gets the whole result; by default this one does all.
        show_progress: whether a bar is shown while it runs, if that is longer than a second.

    Raises:
        TypeError: an argument is of another kind, or what the model or the loader gives.
        ValueError: the loader augments or shuffles, or gives nothing; or its classes or normalization are not those of
            the model.
    """
    check_is_model(model)
    if not hasattr(loader, "epoch"):
        raise TypeError(f"loader is a {type(loader).__name__}: make it with vit.make_eval_loader(data, data.test)")
    if config is not None:
        check_is_config(config)
    check_plain_loader("loader", loader)
    check_metadata(model, loader, "measure it with data of its classes, or train it for these")
    config = config or TrainConfig()
    augmentation = test_time_augmentation or config.test_time_augmentation
    check_choice("test_time_augmentation", augmentation, TrainConfig.CHOICES["test_time_augmentation"])
    if (weight := next(model.parameters(), None)) is None:
        raise ValueError("model has no parameter, which would say on what device to compute: give it one")
    device = weight.device
    bar = progress_bar(
        loader.epoch(0, 0),
        total=len(loader) if hasattr(loader, "__len__") else None,
        desc="evaluate",
        unit="batch",
        leave=False,
        delay=1,
        disable=not (show_progress and world.is_first),
    )
    log_probabilities, labels = [], []
    with eval_mode(model), autocast(config, device), bar:
        for images, batch_labels in bar:
            if should_stop():
                return None
            _check_labels(batch_labels)
            count = len(batch_labels)
            sharing = world if count >= world.size else ALONE  # too few to share: each computes all
            images = images[sharing.part(count)]
            # The model may be elsewhere than the loader's default, or of another precision. Pixels that were not
            # normalized stay what they are, for the model to refuse as it does in training.
            images = images.to(weight) if images.is_floating_point() else images.to(device)
            logits = model(images)  # (B, K)
            check_num_classes(logits, loader)
            batch = logits.float().log_softmax(dim=1)  # (B, K)
            if augmentation == "flip":
                of_mirrored = model(images.flip(-1)).float().log_softmax(dim=1)
                batch = torch.logaddexp(batch, of_mirrored) - math.log(2)
            log_probabilities.append(sharing.joined(batch, count))
            labels.append(batch_labels.long())
    if not labels:
        raise ValueError("loader gives no batch: there is nothing to measure")
    log_p, y = torch.cat(log_probabilities).cpu(), torch.cat(labels).cpu()  # (N, K), (N,)
    accuracy = 100 * (log_p.argmax(dim=1) == y).double().mean().item()
    return Evaluation(loss=F.nll_loss(log_p, y).item(), accuracy=accuracy, probabilities=log_p.exp(), labels=y)


def check_loaders(train_loader: Any, val_loader: Any = None) -> None:
    """Raises TypeError for what is no loader, and ValueError for one without a batch; the val loader may be None."""
    for name, loader, use in (("train_loader", train_loader, "train on"), ("val_loader", val_loader, "measure")):
        if loader is None and name == "val_loader":
            continue
        if not hasattr(loader, "epoch") or not hasattr(loader, "__len__"):
            raise TypeError(
                f"{name} is a {type(loader).__name__}: it must have len(loader) and loader.epoch(epoch, start_step=0), "
                "which yields tuples (images, ...) of equally long tensors on the device, in an order that depends on "
                "epoch alone; make_loaders(data, config) makes such loaders"
            )
        if not len(loader):
            raise ValueError(f"{name} has no batch: there is nothing to {use}")


def check_plain_loader(name: str, loader: Any) -> None:
    """Raises ValueError for a loader that shows other images than a split holds, or in another order."""
    if any(getattr(loader, what, None) for what in ("augment", "mix", "shuffle")):
        split = "data.val" if name == "val_loader" else "data.train"
        raise ValueError(
            f"{name} is one for training, which augments or shuffles: measure with make_eval_loader(data, {split})"
        )


def _check_labels(labels: Tensor) -> None:
    if not torch.is_tensor(labels) or labels.ndim != 1 or labels.is_floating_point():
        form = f"{labels.dtype} {tuple(labels.shape)}" if torch.is_tensor(labels) else type(labels).__name__
        raise TypeError(f"loader gives labels of {form}: it must give a class number for each image, (B,) integers")


def check_num_classes(logits: Tensor, loader: Any) -> None:
    """Raises TypeError unless there is a tensor, and ValueError unless it holds logits (B, K), of as many classes as
    the loader says it has, if it does."""
    if not torch.is_tensor(logits):
        raise TypeError(f"the model returns a {type(logits).__name__} instead of a tensor of logits (B, num_classes)")
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(
            f"the model gives outputs of shape {tuple(logits.shape)}, which are no logits of two or more classes "
            "(B, num_classes): to learn something else, give vit.fit a loss_fn"
        )
    num_classes = getattr(loader, "num_classes", None)
    if num_classes and logits.shape[1:] != (num_classes,):
        raise ValueError(
            f"the model gives outputs of shape {tuple(logits.shape[1:])} an image, the data has {num_classes} classes: "
            f"build it with num_classes={num_classes}"
        )


def check_metadata(model: nn.Module, loader: Any, remedy: str, *, compare_classes: bool = True) -> None:
    """Raises ValueError if the model's metadata names other classes, or another normalization, than the loader.

    Args:
        remedy: what to do about it.
        compare_classes: whether the names of the classes matter.
    """
    holder = holder_of_facts(model)
    facts = getattr(holder, "metadata", None) or {}
    ours, theirs = facts.get("class_names"), getattr(loader, "class_names", None)
    # The outputs of a network within another may be no classes, or be turned into others.
    are_known = ours is not None and theirs is not None
    if compare_classes and holder is model and are_known and tuple(ours) != tuple(theirs):
        raise ValueError(f"model.metadata has class_names={tuple(ours)}, the loader {tuple(theirs)}: {remedy}")
    for name in ("mean", "std"):
        ours, theirs = facts.get(name), getattr(loader, name, None)
        if ours is None or theirs is None:
            continue
        if len(ours) != len(theirs) or any(
            abs(a - b) > NORMALIZATION_TOLERANCE for a, b in zip(ours, theirs, strict=True)
        ):
            raise ValueError(
                f"model.metadata has {name}={tuple(ours)}, the loader normalizes with {tuple(theirs)}: normalize as "
                "the model does, with model=model in make_loaders or make_eval_loader, as fine_tuning.fine_tune does; "
                f"or {remedy}"
            )
