"""One epoch of training, a step at a time: loss, gradients, a look whether they are finite, update.

Knows nothing of files; `fit` in loop.py strings epochs together. What is learned is a `loss_fn`, see losses.py. Sums
stay on the device.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from vit.config import TrainConfig
from vit.device import autocast
from vit.modules import unwrap
from vit.progress import progress_bar
from vit.training.distributed import ALONE, World
from vit.training.finite import LAG, FiniteCheck, Step
from vit.training.losses import LossFn, classification_loss, loss_and_metrics, one_number
from vit.training.optim import learning_rate_factor, note_peak_rates, set_learning_rate

Sums = dict[str, Tensor]


def train_one_epoch(
    model: nn.Module,
    loader: Any,
    optimizers: list[torch.optim.Optimizer],
    config: TrainConfig,
    *,
    epoch: int = 0,
    start_step: int = 0,
    sums: Sums | None = None,
    loss_fn: LossFn | None = None,
    ema: AveragedModel | None = None,
    bar: Any = None,
    should_stop: Callable[[], bool] = lambda: False,
    world: World = ALONE,
) -> tuple[int, Sums]:
    """Trains over one epoch, or from `start_step` of it on with the sums so far.

    Args:
        bar: a progress bar to move on, one step at a time; without it the epoch shows its own.
        should_stop: asked after every step; the answer must be the same in all processes.
        world: the processes that share each batch; `model` is then what `world.wrap` has made of it.

    Returns:
        The step to go on with (`epoch_steps(config, len(loader), epoch)` when the epoch is over) and sums over its
        samples: "samples", "loss" and whatever `loss_fn` counts.

    Raises:
        FloatingPointError: loss or gradient is no longer finite.
        TypeError: `loss_fn` returns something else than a loss and a dict of metrics, each one number; or a batch is no
            tuple of equally long tensors.
        ValueError: the run has no such epoch, the loader gives fewer batches than it says, or the model not one output
            a class.
    """
    loss_fn = loss_fn or classification_loss(config.label_smoothing, loader)
    total_steps, warmup_steps = run_steps(config, len(loader)), config.warmup_epochs * len(loader)
    lag = LAG.get(next(model.parameters()).device.type, 0)
    finite = FiniteCheck(lag, partial(_not_finite, loader=loader, epoch=epoch, was_taken=lag > 0))
    end_step = epoch_steps(config, len(loader), epoch)
    if epoch < 0 or end_step <= 0:
        raise ValueError(f"epoch={epoch} is not among the epochs of epochs={config.epochs}, counted from 0")
    sums, steps_done = dict(sums or {}), epoch * len(loader) + start_step
    parameters = list(model.parameters())
    note_peak_rates(optimizers)
    own_bar = contextlib.nullcontext(bar)
    if bar is None:
        own_bar = progress_bar(total=end_step, initial=start_step, desc=f"epoch {epoch + 1}", unit="step")
    model.train()
    model.zero_grad(set_to_none=True)  # whatever a step that was broken off has left
    with own_bar as bar:
        for step, batch in zip(range(start_step, end_step), loader.epoch(epoch, start_step), strict=False):
            factor = learning_rate_factor(
                steps_done,
                total_steps=total_steps,
                warmup_steps=warmup_steps,
                schedule=config.schedule,
                flat_steps=config.flat_until * total_steps,
            )
            set_learning_rate(optimizers, factor)
            set_patch_drop(model, config.patch_drop_rate if steps_done < config.patch_drop_until * total_steps else 0.0)
            counts = add_gradients(model, batch, loss_fn, config, world)
            loss = counts["loss"] / len(batch[0])
            gradient_norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            gradient_norm = gradient_norm.full_tensor() if hasattr(gradient_norm, "full_tensor") else gradient_norm
            finite.look(loss, gradient_norm, Step(step, config.learning_rate * factor, None if lag else batch))
            if config.clip_grad_norm:
                nn.utils.clip_grads_with_norm_(parameters, config.clip_grad_norm, gradient_norm)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            if ema is not None:
                ema.update_parameters(model)
            steps_done += 1
            for name, value in {"samples": len(batch[0]), **counts}.items():
                sums[name] = sums.get(name, 0) + value
            if bar.update():  # true only when the bar is redrawn, so that a GPU is not made to wait at every step
                bar.set_postfix(loss=f"{float(sums['loss']) / sums['samples']:.3f}", refresh=False)
            if should_stop():
                finite.finish()
                return step + 1, sums
    finite.finish()
    if (given := steps_done - epoch * len(loader)) < end_step:
        raise ValueError(
            f"the loader gave {given} batches in epoch {epoch + 1}, but len(loader) is {len(loader)}: make it say how "
            "many there are, else the learning rate falls as for a longer run"
        )
    return end_step, sums


def add_gradients(
    model: nn.Module, batch: tuple[Tensor, ...], loss_fn: LossFn, config: TrainConfig, world: World
) -> dict[str, Tensor]:
    """Adds the gradient of the mean loss over the whole batch, and returns the sums of its loss and metrics.

    This process computes its part of the batch, in `config.accumulation_steps` smaller ones of nearly equal size. Each
    enters with its share of the samples, so that uneven parts give the same mean.
    """
    _check_batch(batch)
    samples, device = len(batch[0]), next(model.parameters()).device
    if samples < world.size:
        raise ValueError(
            f"a batch of {samples} images cannot be divided over {world.size} processes, from "
            f"batch_size={config.batch_size}: make it larger, or start fewer processes"
        )
    own = world.part(samples)
    # As many in every process, also where the parts are uneven.
    num_parts = min(config.accumulation_steps, samples // world.size)
    bounds = [own.start + i * (own.stop - own.start) // num_parts for i in range(num_parts + 1)]
    sums: dict[str, Tensor] = {}
    for number, (start, stop) in enumerate(pairwise(bounds), 1):
        part = batch if stop - start == samples else tuple(tensor[start:stop] for tensor in batch)
        # Processes exchange gradients once a step, with those of the last part.
        waits = number < num_parts and hasattr(model, "no_sync")
        with model.no_sync() if waits else contextlib.nullcontext():
            with autocast(config, device):
                loss, metrics = loss_and_metrics(loss_fn(model, part))
            share = world.size * (stop - start) / samples  # of their sum, since they then take the mean
            (loss if share == 1 else loss * share).backward()
        counts = {name: one_number(name, value, device) for name, value in {"loss": loss, **metrics}.items()}
        counts["loss"] = counts["loss"] * (stop - start)  # it is a mean
        for name, value in counts.items():
            sums[name] = sums[name] + value if name in sums else value
    return world.total(sums)


def _check_batch(batch: Any) -> None:
    came = f"a {type(batch).__name__}"
    if isinstance(batch, (tuple, list)):
        if batch and all(torch.is_tensor(part) and part.ndim for part in batch) and len(set(map(len, batch))) == 1:
            return
        forms = [f"{tuple(part.shape)}" if torch.is_tensor(part) else type(part).__name__ for part in batch]
        came = f"({', '.join(forms)})"
    raise TypeError(f"the loader gives {came} as a batch: it must be a tuple of equally long tensors (images, ...)")


@contextlib.contextmanager
def explaining_memory(config: TrainConfig) -> Iterator[None]:
    """Adds to an out-of-memory error what can be done about it."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            error.add_note(
                f"out of memory at batch_size={config.batch_size}: what was saved last is good. Go on with more "
                'accumulation_steps, or try a smaller model or precision="bf16"; '
                "vit.analysis.estimate.training_memory tells beforehand"
            )
        raise


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory, of the GPU or the machine, was too small."""
    # torch has no type for what a CPU lacks, and words of its own on Linux, Windows and a Mac's GPU.
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(word in str(error) for word in words)


def run_steps(config: TrainConfig, steps_per_epoch: int) -> int:
    """The steps of a whole run."""
    return max(1, round(config.epochs * steps_per_epoch))


def epoch_steps(config: TrainConfig, steps_per_epoch: int, epoch: int) -> int:
    """The steps of an epoch, counted from 0: all of it, or what is left in a last epoch that ends early."""
    return min(steps_per_epoch, run_steps(config, steps_per_epoch) - epoch * steps_per_epoch)


def set_patch_drop(model: nn.Module, rate: float) -> None:
    """Sets the share of patches that a model drops in training.

    Raises:
        ValueError: `rate` is not 0 and the model, within what wraps it, has no `patch_drop` with a rate; those of timm
            have another kind, which keeps the share it was built with.
    """
    model = unwrap(model)
    patch_drop = getattr(model, "patch_drop", None)
    if hasattr(patch_drop, "rate"):
        patch_drop.rate = rate
    elif rate:
        raise ValueError(f"patch_drop_rate={rate}: {type(model).__name__} has no `patch_drop.rate` to set; use 0")


def _not_finite(loss: Tensor, gradient_norm: Tensor, step: Step, *, loader: Any, epoch: int, was_taken: bool) -> str:
    """What to say of a step whose loss or gradient is not finite; its batch is drawn again where it was not kept."""
    samples = ""
    if hasattr(loader, "batch_indices"):
        first = ", ".join(map(str, loader.batch_indices(epoch, step.number)[:8].tolist()))
        samples = f". Its samples are train_loader.batch_indices({epoch}, {step.number}): {first}, ..."
    values = f"the loss is {float(loss):.4g} and the gradient's norm {float(gradient_norm):.4g}"
    stopped = "stopped before that step, and what was saved last is good"
    if was_taken:
        stopped = "seen after that step, so the weights in memory are spoiled, but what was saved last is good"
    remedy = "try a lower learning_rate or muon_learning_rate, or clip_grad_norm=1.0"
    batch = next(iter(loader.epoch(epoch, step.number)), ()) if step.batch is None else step.batch
    if fault := _fault_of(batch, loader):
        remedy = f"the data is at fault: {fault}"
    return (
        f"{values} in step {step.number + 1} of epoch {epoch + 1}, at learning_rate {step.learning_rate:.3g}: "
        f"{stopped}; {remedy}{samples}"
    )


def _fault_of(batch: tuple[Tensor, ...], loader: Any) -> str:
    """What is wrong with a batch of images, and of labels if they are numbers of classes; nothing if empty."""
    for name, tensor in zip(("images", "labels"), batch, strict=False):
        if tensor.is_floating_point():
            bad = (~torch.isfinite(tensor)).flatten(1).any(dim=1) if tensor.ndim > 1 else ~torch.isfinite(tensor)
            if bad.any():
                return f"{name} of the batch hold values that are not finite, first at place {int(bad.nonzero()[0])}"
        elif name == "labels" and (num_classes := getattr(loader, "num_classes", None)):
            lowest, highest = int(tensor.min()), int(tensor.max())
            if lowest < 0 or highest >= num_classes:
                return f"labels of the batch go from {lowest} to {highest}, allowed is 0..{num_classes - 1}"
    return ""
