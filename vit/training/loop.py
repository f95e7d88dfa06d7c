"""Training as functions over any `nn.Module`: `train_one_epoch`, and `fit` around it.

A loader is anything with `len(loader)` and `loader.epoch(epoch, start_step)`; what is learned is a
`loss_fn(model, batch) -> (loss, metrics)`. Accuracies are percentages. Sums stay on the device, so that a GPU never
waits for Python.
"""

import contextlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vit.config import TrainConfig
from vit.device import autocast, resolve_device
from vit.progress import progress_bar
from vit.training.checkpoint import load_training_state, save_training_state
from vit.training.evaluation import evaluate
from vit.training.history import History
from vit.training.interrupt import stop_on_interrupt
from vit.training.memory import keep_freed_memory
from vit.training.optim import build_optimizers, learning_rate_factor, set_learning_rate
from vit.training.run_lock import being_written

LossFn = Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, dict[str, Tensor]]]
Sums = dict[str, Tensor]

STATE_FILE = "state.pt"
HISTORY_FILE = "history.csv"


def classification_loss(label_smoothing: float = 0.0) -> LossFn:
    """Cross-entropy on class numbers (B,) or soft labels (B, K), with the number of right answers beside it."""

    def loss_fn(model: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        images, labels = batch
        logits = model(images)  # (B, K)
        loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        hard_labels = labels if labels.ndim == 1 else labels.argmax(dim=1)  # (B,)
        return loss, {"correct": (logits.detach().argmax(dim=1) == hard_labels).sum()}

    return loss_fn


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
) -> tuple[int, Sums]:
    """Trains over one epoch, or from `start_step` of it on with the sums so far.

    Args:
        bar: a progress bar to move on, one step at a time; without it the epoch shows its own.
        should_stop: asked after every step.

    Returns:
        The step to go on with (`epoch_steps(config, len(loader), epoch)` when the epoch is over) and sums over its
        samples: "samples", "loss" and whatever `loss_fn` counts.
    """
    loss_fn = loss_fn or classification_loss(config.label_smoothing)
    device = next(model.parameters()).device
    total_steps, warmup_steps = run_steps(config, len(loader)), config.warmup_epochs * len(loader)
    end_step = epoch_steps(config, len(loader), epoch)
    sums = dict(sums or {})
    own_bar = contextlib.nullcontext(bar)
    if bar is None:
        own_bar = progress_bar(total=end_step, initial=start_step, desc=f"epoch {epoch + 1}", unit="step")
    model.train()
    with own_bar as bar:
        for step, batch in zip(range(start_step, end_step), loader.epoch(epoch, start_step), strict=False):
            steps_done = epoch * len(loader) + step
            factor = learning_rate_factor(
                steps_done, total_steps=total_steps, warmup_steps=warmup_steps, schedule=config.schedule
            )
            set_learning_rate(optimizers, factor)
            set_patch_drop(model, config.patch_drop_rate if steps_done < config.patch_drop_until * total_steps else 0.0)
            with autocast(config, device):
                loss, metrics = loss_fn(model, batch)
            loss.backward()
            if config.clip_grad_norm:
                nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad_norm)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            if ema is not None:
                ema.update_parameters(model)
            samples = len(batch[0])
            for name, value in {"samples": samples, "loss": loss.detach() * samples, **metrics}.items():
                sums[name] = sums.get(name, 0) + value
            if bar.update():  # true only when the bar is redrawn, so that a GPU is not made to wait at every step
                bar.set_postfix(loss=f"{float(sums['loss']) / sums['samples']:.3f}", refresh=False)
            if should_stop():
                return step + 1, sums
    return end_step, sums


def run_steps(config: TrainConfig, steps_per_epoch: int) -> int:
    """The steps of a whole run."""
    return max(1, round(config.epochs * steps_per_epoch))


def epoch_steps(config: TrainConfig, steps_per_epoch: int, epoch: int) -> int:
    """The steps of an epoch, counted from 0: all of it, or what is left in a last epoch that ends early."""
    return min(steps_per_epoch, run_steps(config, steps_per_epoch) - epoch * steps_per_epoch)


def set_patch_drop(model: nn.Module, rate: float) -> None:
    """Sets the share of patches that a model drops in training.

    Raises:
        ValueError: `rate` is not 0 and the model, or what `torch.compile` wrapped, has no `patch_drop`.
    """
    patch_drop = getattr(getattr(model, "_orig_mod", model), "patch_drop", None)
    if patch_drop is not None:
        patch_drop.rate = rate
    elif rate:
        raise ValueError(f"patch_drop_rate={rate}: {type(model).__name__} has no `patch_drop` to set; use 0")


def fit(
    model: nn.Module,
    train_loader: Any,
    val_loader: Any,
    config: TrainConfig,
    *,
    run_dir: str | Path | None = None,
    resume: bool = False,
    loss_fn: LossFn | None = None,
    history: History | None = None,
    make_optimizers: Callable[[nn.Module, TrainConfig], list[torch.optim.Optimizer]] = build_optimizers,
    make_bar: Callable[..., Any] = progress_bar,
    should_stop: Callable[[], bool] = lambda: False,
) -> History:
    """Trains `model` in place for `config.epochs` epochs, measuring it on the val loader after each.

    Ctrl-C, or the stop button of a notebook, ends the current step, saves the state and returns the history so far;
    a second one stops at once. With `config.ema_decay` the model ends with its averaged weights.

    Args:
        run_dir: folder for `history.csv` and the resumable state, written after each epoch and at a stop.
        resume: go on from the state in `run_dir`; the result is then the same as without the stop.
        loss_fn: what to learn instead of classification; its metrics are summed and divided by the samples seen.
        history: an empty one to fill and return, for whoever wants to watch it grow.
        make_optimizers: what builds the optimizers, for example `partial(build_optimizers, layer_decay=0.75)`.
        make_bar: what shows the progress; called and used as `progress_bar` is.
        should_stop: asked after every step and before every val batch; a yes is like Ctrl-C.

    Raises:
        RuntimeError: another training is writing into `run_dir`.
        ValueError: the model's classes are not the data's, or the state to resume is not of this run.
        FloatingPointError: the loss is no longer finite; the state of the last good epoch is kept.
    """
    _check_classes(model, train_loader)
    device = resolve_device(config.device)
    model.to(device)
    if device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(config.seed)
    optimizers = make_optimizers(model, config)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay)) if config.ema_decay else None
    network = torch.compile(model) if config.compile else model
    evaluated = ema.module if ema is not None else network
    history = History() if history is None else history
    first_epoch, start_step, sums, earlier_seconds = 0, 0, {}, 0.0
    state = {"model": model, "optimizers": optimizers, "ema": ema, "config": config}
    if resume:
        if run_dir is None:
            raise ValueError("resume=True needs run_dir, the folder of the run to go on with")
        saved = load_training_state(Path(run_dir) / STATE_FILE, **state)
        history.rows = saved["rows"]
        first_epoch, start_step, earlier_seconds = saved["epoch"], saved["step"], saved["seconds"]
        sums = {name: value.to(device) if torch.is_tensor(value) else value for name, value in saved["sums"].items()}
    started = time.perf_counter() - earlier_seconds

    def save(epoch: int, step: int, sums: Sums) -> None:
        if run_dir is None:
            return
        seconds = time.perf_counter() - started
        progress = {"epoch": epoch, "step": step, "sums": sums, "rows": history.rows, "seconds": seconds}
        history.save_csv(Path(run_dir) / HISTORY_FILE)
        save_training_state(Path(run_dir) / STATE_FILE, **state, progress=progress)

    # One bar for the whole run, so that the time it says is left is the time until the result.
    steps_done, total_steps = first_epoch * len(train_loader) + start_step, run_steps(config, len(train_loader))
    with (
        being_written(run_dir),
        make_bar(total=total_steps, initial=steps_done, unit="step") as bar,
        stop_on_interrupt(should_stop) as should_stop,
    ):
        for epoch in range(first_epoch, math.ceil(total_steps / len(train_loader))):
            _describe(bar, epoch + 1, config, history)
            next_step, sums = train_one_epoch(
                network,
                train_loader,
                optimizers,
                config,
                epoch=epoch,
                start_step=start_step,
                sums=sums,
                loss_fn=loss_fn,
                ema=ema,
                bar=bar,
                should_stop=should_stop,
            )
            if next_step < epoch_steps(config, len(train_loader), epoch):
                save(epoch, next_step, sums)
                return history
            row = {
                "epoch": min(epoch + 1, config.epochs),
                **_means(sums),
                "learning_rate": optimizers[0].param_groups[0]["lr"],
            }
            if not math.isfinite(row["train_loss"]):
                raise FloatingPointError(
                    f"the training loss is {row['train_loss']} in epoch {epoch + 1}; try a lower learning_rate="
                    f"{config.learning_rate} or muon_learning_rate={config.muon_learning_rate}, or clip_grad_norm=1.0"
                )
            if val_loader is not None and loss_fn is None:
                val = evaluate(evaluated, val_loader, config, should_stop=should_stop)
                if val is None:  # the resumed run begins with it
                    save(epoch, next_step, sums)
                    return history
                row |= {"val_loss": val.loss, "val_accuracy": val.accuracy}
            history.rows.append(row | {"seconds": time.perf_counter() - started})
            _describe(bar, epoch + 1, config, history)
            start_step, sums = 0, {}
            save(epoch + 1, 0, {})
            if should_stop() and epoch + 1 < config.epochs:
                return history
    set_patch_drop(model, 0.0)
    if ema is not None:
        model.load_state_dict(ema.module.state_dict())
    history.is_complete = True
    return history


def _describe(bar: Any, epoch: int, config: TrainConfig, history: History) -> None:
    """What stands before the bar: the epoch, and the newest validation accuracy."""
    val = history.last.get("val_accuracy") if history else None
    bar.set_description(f"epoch {epoch}/{config.epochs}" + ("" if val is None else f", val {val:.1f} %"))


def _means(sums: Sums) -> dict[str, float]:
    """Sums over an epoch to its row of the history; "correct" becomes a percentage."""
    means = {name: float(value) / sums["samples"] for name, value in sums.items() if name != "samples"}
    names = {"correct": "train_accuracy"}
    return {names.get(n, f"train_{n}"): 100 * mean if n == "correct" else mean for n, mean in means.items()}


def _check_classes(model: nn.Module, loader: Any) -> None:
    of_model = getattr(getattr(model, "config", None), "num_classes", None)
    of_data = getattr(loader, "num_classes", None)
    if of_model and of_data and of_model != of_data:
        raise ValueError(f"the model has num_classes={of_model}, the data {of_data} classes: build it with the data's")
