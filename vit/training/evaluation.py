"""Measuring a classifier on a whole split."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit.config import TrainConfig
from vit.device import autocast
from vit.training.distributed import ALONE, World


@dataclass(frozen=True)
class Evaluation:
    """What a model says of a whole split: mean loss, accuracy in percent, probabilities (N, K), labels (N,)."""

    loss: float
    accuracy: float
    probabilities: Tensor
    labels: Tensor


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Any,
    config: TrainConfig | None = None,
    *,
    test_time_augmentation: str | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    world: World = ALONE,
) -> Evaluation | None:
    """Runs a classifier over a loader once, in evaluation mode, and puts its mode back.

    Args:
        test_time_augmentation: "none" or "flip" (mean of the probabilities of an image and its mirror image);
            the config's own unless given.
        should_stop: asked before every batch; once it says yes, there is no result but None.
        world: the processes that share the work, each of which gets the whole result; by default this one does all.
    """
    config = config or TrainConfig()
    augmentation = test_time_augmentation or config.test_time_augmentation
    if augmentation not in ("none", "flip"):
        raise ValueError(f"test_time_augmentation={augmentation!r} is not a choice; allowed: none, flip")
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    probabilities, labels = [], []
    try:
        with autocast(config, device):
            for images, batch_labels in loader.epoch(0, 0):
                if should_stop():
                    return None
                count = len(batch_labels)
                sharing = world if count >= world.size else ALONE  # too few to share: each computes all
                images = images[sharing.part(count)]
                images = images.to(device)  # the model may have been trained elsewhere than the loader's default
                batch = model(images).float().softmax(dim=1)  # (B, K)
                if augmentation == "flip":
                    batch = (batch + model(images.flip(-1)).float().softmax(dim=1)) / 2
                probabilities.append(sharing.joined(batch, count))
                labels.append(batch_labels)
    finally:
        model.train(was_training)
    p, y = torch.cat(probabilities).cpu(), torch.cat(labels).cpu()  # (N, K), (N,)
    loss = F.nll_loss(p.clamp(min=1e-12).log(), y).item()
    accuracy = 100 * (p.argmax(dim=1) == y).double().mean().item()
    return Evaluation(loss=loss, accuracy=accuracy, probabilities=p, labels=y)
