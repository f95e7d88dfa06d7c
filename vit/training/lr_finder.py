"""How high the learning rates may be: a short training in which they rise until it breaks.

All rates of a config, those of Muon and of AdamW, rise together by one factor, so that their ratio stays.
Sources: Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017, section 3.3 (the range test); Gugger,
"How Do You Find A Good Learning Rate", 2018, and Howard & Gugger's fastai (exponential rise, stop at four times the
best loss, steepest descent as the suggestion).
"""

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vit.arguments import as_integer
from vit.config import TrainConfig, check_is_config
from vit.device import forked_random, resolve_device
from vit.modules import check_is_model
from vit.progress import progress_bar
from vit.training.checks import checked_optimizers
from vit.training.distributed import ALONE
from vit.training.epoch import add_gradients, explaining_memory, set_patch_drop
from vit.training.evaluation import check_loaders
from vit.training.losses import LossFn, check_loss_fn, classification_loss
from vit.training.optim import build_optimizers, set_learning_rate

MAX_RISE = 3  # the ramp ends where the loss is above its lowest value by more than so many times that value
SMOOTHING = 0.03  # of the ramp, a standard deviation to each side


@dataclass(frozen=True)
class LearningRateCurve:
    """Loss against the factor on all learning rates, a point a step.

    Attributes:
        factors: what the config's rates were multiplied by.
        losses: training loss of each step, before its update.
        smoothed: their Gaussian-weighted means over neighboring steps, so that they lag behind on neither side.
        suggestion: the factor at which the smoothed loss falls fastest per logarithm of the factor, before its lowest
            point; None if it falls by no more than twice the scatter of the losses around it.
    """

    factors: list[float]
    losses: list[float]
    smoothed: list[float]
    suggestion: float | None

    def scaled(self, config: TrainConfig) -> TrainConfig:
        """The config with all its rates multiplied by the suggestion."""
        if self.suggestion is None:
            raise ValueError("there is no suggestion: the loss never fell; try a higher high= or more num_steps=")
        return replace(
            config,
            learning_rate=config.learning_rate * self.suggestion,
            muon_learning_rate=config.muon_learning_rate * self.suggestion,
        )


def find_learning_rate(
    model: nn.Module,
    train_loader: Any,
    config: TrainConfig,
    *,
    low: float = 0.01,
    high: float = 100.0,
    num_steps: int = 100,
    loss_fn: LossFn | None = None,
    make_optimizers: Callable[[nn.Module, TrainConfig], list[torch.optim.Optimizer]] = build_optimizers,
) -> LearningRateCurve:
    """Trains a copy of the model for some steps while the factor on its rates rises exponentially.

    Ends early where the loss is no longer finite or four times its lowest value. The model, the loader and the random
    state stay as they are. Only the first steps of a training are seen: take the suggestion for an order of magnitude.

    Args:
        low, high: first and last factor on the config's rates.
        num_steps: 10 or more; a step costs as much as one of the training.
        loss_fn, make_optimizers: as `fit` takes them; the factor is on the rates that the optimizers are made with.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a factor or `num_steps` is out of its range, or the model's outputs are not as many as the classes.
        FloatingPointError: the loss is not finite before the first step.
    """
    check_is_model(model)
    check_is_config(config)
    if not 0 < low < high < math.inf:
        raise ValueError(f"low={low} and high={high} must be positive, and low the lower one")
    num_steps = as_integer("num_steps", num_steps, 10)
    check_loaders(train_loader)
    check_loss_fn(loss_fn)
    loss_fn = loss_fn or classification_loss(config.label_smoothing, train_loader)
    device = resolve_device(config.device)
    factors = [low * (high / low) ** (i / (num_steps - 1)) for i in range(num_steps)]
    losses: list[float] = []
    bar = progress_bar(total=num_steps, unit="step", desc="learning rates", leave=False)
    with bar, explaining_memory(config), forked_random(device):
        probe = copy.deepcopy(model).to(device).train()
        set_patch_drop(probe, config.patch_drop_rate if config.patch_drop_until else 0.0)
        optimizers = checked_optimizers(make_optimizers, probe, config)
        for factor, batch in zip(factors, _batches(train_loader), strict=False):
            set_learning_rate(optimizers, factor)
            probe.zero_grad(set_to_none=True)
            losses.append(float(add_gradients(probe, batch, loss_fn, config, ALONE)["loss"]) / len(batch[0]))
            bar.update()
            if not math.isfinite(losses[-1]) or losses[-1] > _ceiling(losses):
                break
            if config.clip_grad_norm:
                nn.utils.clip_grad_norm_(probe.parameters(), config.clip_grad_norm)
            for optimizer in optimizers:
                optimizer.step()
    if not math.isfinite(losses[-1]):
        losses.pop()
    if not losses:
        raise FloatingPointError("the training loss is not finite before the first step: look at the model and data")
    factors = factors[: len(losses)]
    # A last loss that is out of all proportion would lift all of the means.
    visible = torch.tensor(losses, dtype=torch.float64).clamp(max=_ceiling(losses))
    smoothed = _smooth(visible, SMOOTHING * num_steps)
    return LearningRateCurve(factors, losses, smoothed.tolist(), _steepest_descent(factors, visible, smoothed))


def _batches(loader: Any) -> Iterator[tuple[Tensor, ...]]:
    """Those of one epoch after the other, without end."""
    for epoch in itertools.count():
        batch = None
        for batch in loader.epoch(epoch, 0):
            yield batch
        if batch is None:
            raise ValueError("train_loader gives no batch: there is nothing to train on")


def _ceiling(losses: list[float]) -> float:
    return min(losses) + MAX_RISE * abs(min(losses))


def _smooth(values: Tensor, width: float) -> Tensor:
    step = torch.arange(len(values), dtype=values.dtype)
    weights = torch.exp(-0.5 * ((step[:, None] - step) / width) ** 2)
    return weights @ values / weights.sum(dim=1)


def _steepest_descent(factors: list[float], losses: Tensor, smoothed: Tensor) -> float | None:
    """See `LearningRateCurve.suggestion`."""
    lowest = int(smoothed.argmin())
    scatter = (losses - smoothed)[: lowest + 1].square().mean().sqrt()
    if smoothed[0] - smoothed[lowest] <= 2 * scatter:
        return None
    slopes = torch.gradient(smoothed, spacing=(torch.tensor(factors, dtype=smoothed.dtype).log(),))[0]
    return factors[int(slopes[: lowest + 1].argmin())]
