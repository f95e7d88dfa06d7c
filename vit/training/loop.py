"""`fit`: epochs strung together, each measured, recorded and saved, and stopped or continued without losing a bit.

A loader is anything with `len(loader)` and `loader.epoch(epoch, start_step)`. What happens within an epoch is in
epoch.py. Accuracies are percentages.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vit.config import TrainConfig
from vit.device import forked_random, resolve_device
from vit.metadata import remember_data
from vit.modules import eval_mode, keeping_modes, unwrap
from vit.progress import progress_bar
from vit.training.averaging import AveragedWeights
from vit.training.checks import as_resume, check_fit, check_same, checked_optimizers, try_evaluation
from vit.training.distributed import current_world
from vit.training.epoch import Sums, epoch_steps, explaining_memory, run_steps, set_patch_drop, train_one_epoch
from vit.training.evaluation import evaluate
from vit.training.history import History
from vit.training.interrupt import stop_on_interrupt
from vit.training.losses import LossFn
from vit.training.memory import keeping_freed_memory
from vit.training.optim import build_optimizers
from vit.training.run_files import RunFiles
from vit.training.run_lock import being_written
from vit.training.sharding import check_sharded, is_sharded


def fit(
    model: nn.Module,
    train_loader: Any,
    val_loader: Any,
    config: TrainConfig,
    *,
    run_dir: str | Path | None = None,
    resume: bool | str = False,
    loss_fn: LossFn | None = None,
    history: History | None = None,
    make_optimizers: Callable[[nn.Module, TrainConfig], list[torch.optim.Optimizer]] = build_optimizers,
    make_bar: Callable[..., Any] = progress_bar,
    should_stop: Callable[[], bool] = lambda: False,
    save_seconds: float = 0.0,
    after_epoch: Callable[[nn.Module, dict[str, float]], object] | None = None,
) -> History:
    """Trains `model` in place for `config.epochs` epochs, measuring it on the val loader, if there is one, after each.

    Ctrl-C, or the stop button of a notebook, ends the current step, saves the state and returns the history so far;
    a second one stops at once. SIGTERM saves too and then ends the process, with `SystemExit(143)`. With
    `config.ema_decay` the model ends with its averaged weights, after a stop too; the state to go on from holds both.

    Within `distributed.processes()` all processes train the one model together, each on its part of every batch; the
    first one alone writes and shows progress, and a stop of one is a stop of all, after the same step.

    Where `model.metadata` names no normalization or no classes, it gets those of the loaders, for `vit.save` and
    `vit.predict`, and so does a network of timm whose `pretrained_cfg` names another normalization. To train the model
    for other data afterwards, set `model.metadata = data.metadata` first.

    Args:
        train_loader, val_loader: of `make_loaders`, or anything with `len(loader)` and `loader.epoch(epoch,
            start_step=0)`, which yields tuples (images, ...) of equally long tensors, in an order that depends on
            `epoch` alone. `fit` moves no batch of the train loader: its tensors must be on the model's device. One of
            `make_loaders` may have been made for other epochs: batches are mixed for as long as this config says.
        run_dir: folder for `config.json`, if it has none, `history.csv` and the resumable state, written at the start,
            after each epoch, at a stop, and every few minutes of a long epoch (`run_files.SAVE_SECONDS`). The state
            before the last and that of the best epoch are kept beside it.
        resume: go on from the state in `run_dir`; the result is then the same as without the stop. "auto" goes on where
            `run_dir` holds a state and begins where it does not, for jobs that are killed and started again.
        loss_fn: what to learn instead of classification: `loss_fn(model, batch) -> (loss, metrics)`. `loss` is the mean
            over the batch, a tensor of one number; `metrics` is a dict of sums over the batch, such as `{"correct":
            number of right answers}` or `{}`. The history shows each sum divided by the number of samples, as
            `train_<name>`; "correct" becomes the percentage `train_accuracy`. `label_smoothing` is not applied. The val
            loader still measures a classifier; pass None if the model is not one. With `accumulation_steps`, or in
            several processes, it sees a part of each batch at a time, and gradients are averaged over the parts,
            weighted by their samples; where the loss is not a mean over samples (class weights, contrasts), that is
            not the gradient of the whole batch. In several processes it must call the model itself, not its parts, and
            use all that is to be trained. A state holds the model alone: whatever else a loss keeps, such as a teacher
            that moves or weights of its own, must be a parameter or buffer of it. All parts are in training mode; a
            frozen one with batch norm or dropout needs a `train()` that does nothing.
        history: an empty one to fill and return, for whoever wants to watch it grow.
        make_optimizers: what builds the list of optimizers, for example `partial(build_optimizers, layer_decay=0.75)`.
            The rate that a group of theirs has is its peak, which the config's schedule scales. What is to happen
            after every step, such as a teacher's moving average, is a `register_step_post_hook` of an optimizer.
        make_bar: what shows the progress; called and used as `progress_bar` is.
        should_stop: asked after every step and before every val batch; a yes is like Ctrl-C.
        save_seconds: minimum time between two saves, in seconds; 0 saves after every epoch. An epoch that ends sooner
            is not saved and cannot become `state.best.pt`, unless it is the last. For GPUs whose epochs take no longer
            than a save. If it is longer than `run_files.SAVE_SECONDS`, it takes the place of that within an epoch.
        after_epoch: called with the model and the new row of the history after every epoch, by the first process
            alone. The model, with `config.ema_decay` the averaged one, is in evaluation mode; that and random numbers
            are put back. It must only look: its state is saved before. An error of it ends the training, to be resumed
            from the last save: with `save_seconds=0`, that of this epoch. A sharded model cannot compute here.

    Raises:
        TypeError: an argument is of another kind, or a batch, or what `loss_fn` or `make_optimizers` returns.
        RuntimeError: another training is writing into `run_dir`; `after_epoch` has changed the model; or vit.launch or
            torchrun has started several processes, and this is not within `distributed.processes()`.
        FileNotFoundError: `resume=True`, and `run_dir` is no folder or holds no state.
        FileExistsError: `run_dir` holds a run that has taken a step, and `resume` is not asked for.
        OSError: `run_dir` cannot be written, at the start or at a stop; in between that is said, and tried again, and
            after the last epoch it is said.
        ValueError: the model's outputs are not as many as the data's classes; its metadata names other classes or
            another normalization (to train it for new data, set `model.metadata = data.metadata` first); the loaders
            were made with other settings; a loader gives fewer batches than it says; an optimizer has a scheduler or
            holds nothing of the model; the state to resume is not of this run; or the processes have been given
            different settings.
        FloatingPointError: loss or gradient is no longer finite; the last state is good. On a CPU the step was not
            taken; a GPU is not waited for at every step, so there the model is spoiled.
    """
    world = current_world()
    run_dir = None if run_dir is None else Path(run_dir).expanduser().absolute()  # also after a `%cd`
    resume = as_resume(resume, run_dir, world)
    options = {"run_dir": run_dir, "resume": resume, "loss_fn": loss_fn, "history": history, "world": world}
    options |= {"save_seconds": save_seconds, "after_epoch": after_epoch}
    check_fit(model, train_loader, val_loader, config, **options)
    if hasattr(type(train_loader), "for_run"):  # of the class itself: one wrapped around a loader stays what it is
        train_loader = train_loader.for_run(config)
    if is_sharded(model):
        check_sharded(config)
    if world.size > 1:
        check_same(model, train_loader, val_loader, config, world, is_kept=run_dir is not None, resume=resume)
    device = resolve_device(config.device)
    given, model = model, getattr(model, "_orig_mod", model)  # of one that is compiled, states keep the plain names
    model.to(device)
    torch.manual_seed(world.seed(config.seed))
    optimizers = checked_optimizers(make_optimizers, model, config, is_kept=run_dir is not None)
    network = world.wrap(given)  # before the copy, since it makes the weights of all processes those of the first
    ema = AveragedWeights(model, config.ema_decay) if config.ema_decay else None
    network = torch.compile(network) if config.compile and given is model else network
    # Not what was compiled: batches of another size would make its graph one for any size, and slower.
    evaluated = ema.module if ema is not None else model
    if val_loader is not None:
        try_evaluation(evaluated, val_loader, config, world)
    for loader in (val_loader, train_loader):  # the first is what accuracies are of
        for network_of in {model, evaluated}:  # `after_epoch` is called with the second
            remember_data(unwrap(network_of), loader, with_classes=loss_fn is None or val_loader is not None)
    history = History() if history is None else history
    parts = {"model": model, "optimizers": optimizers, "ema": ema, "config": config}
    run = RunFiles(run_dir, history, train_loader, world, **parts, has_loss_fn=loss_fn is not None)
    num_steps, total_steps = len(train_loader), run_steps(config, len(train_loader))
    num_epochs = math.ceil(total_steps / num_steps)
    make_bar = make_bar if world.is_first else partial(progress_bar, disable=True)
    with being_written(run_dir if world.is_first else None), keeping_freed_memory(device), leaving_as_found(model):
        epoch, step, sums = run.resume(device, num_epochs) if resume else run.start()
        with (
            # One bar for the whole run, so that the time it says is left is the time until the result.
            make_bar(total=total_steps, initial=epoch * num_steps + step, unit="step") as bar,
            stop_on_interrupt(should_stop) as stops_here,
        ):

            def all_should_stop() -> bool:
                return world.any(stops_here())

            while epoch < num_epochs:
                _describe(bar, epoch + 1, config, history)
                with explaining_memory(config):
                    step, sums = train_one_epoch(
                        network,
                        train_loader,
                        optimizers,
                        config,
                        epoch=epoch,
                        start_step=step,
                        sums=sums,
                        loss_fn=loss_fn,
                        ema=ema,
                        bar=bar,
                        should_stop=lambda: world.any(stops_here() or run.is_save_due(save_seconds, within_epoch=True)),
                        world=world,
                    )
                if step < epoch_steps(config, num_steps, epoch):
                    is_stopping = all_should_stop()
                    run.save(epoch, step, sums, is_last=is_stopping)
                    if is_stopping:
                        break
                    continue
                learning_rate = optimizers[0].param_groups[0]["lr"]
                done = config.epochs if epoch + 1 == num_epochs else epoch + 1
                row = {"epoch": done, **_means(sums), "learning_rate": learning_rate}
                if val_loader is not None:
                    options = {"should_stop": all_should_stop, "world": world, "show_progress": False}
                    try:
                        val = evaluate(evaluated, val_loader, config, **options)
                    except Exception:
                        if world.size == 1:  # others may not have failed, and would not meet this one
                            run.save(epoch, step, sums, is_last=True)
                        raise
                    if val is None:  # the resumed run begins with it
                        run.save(epoch, step, sums, is_last=True)
                        break
                    row |= {"val_loss": val.loss, "val_accuracy": val.accuracy}
                history.rows.append(row | {"seconds": run.seconds})
                _describe(bar, epoch + 1, config, history)
                epoch, step, sums = epoch + 1, 0, {}
                is_stopping, is_over = all_should_stop(), epoch >= num_epochs
                if is_stopping or is_over or world.any(run.is_save_due(save_seconds)):
                    run.save(epoch, step, sums, is_last=is_stopping, is_over=is_over, may_be_best=True)
                if after_epoch is not None and world.is_first:
                    with forked_random(device), eval_mode(evaluated), refusing_changes(evaluated):
                        after_epoch(evaluated, dict(history.last))
                if is_stopping:
                    break
    if ema is not None:  # after a stop too: the history is of the averaged weights, and the state holds both
        model.load_state_dict(ema.module.state_dict())
    history.is_complete = epoch >= num_epochs
    return history


@contextlib.contextmanager
def refusing_changes(model: nn.Module) -> Iterator[None]:
    """Raises RuntimeError where a parameter or buffer was written to; what is done to its `.data` cannot be seen."""

    def versions() -> list[tuple[int, int]]:
        return [(id(tensor), tensor._version) for tensor in (*model.parameters(), *model.buffers())]

    before = versions()
    yield
    if versions() != before:
        raise RuntimeError(
            "after_epoch has changed the model, after its state was saved: a resumed run would not know. What moves "
            "with the training belongs into the optimizer's register_step_post_hook, in make_optimizers"
        )


@contextlib.contextmanager
def leaving_as_found(model: nn.Module) -> Iterator[None]:
    """Puts the modes of the model's parts back and lets it see all patches again, however the training ends."""
    with keeping_modes(model):
        try:
            yield
        finally:
            set_patch_drop(model, 0.0)


def _describe(bar: Any, epoch: int, config: TrainConfig, history: History) -> None:
    """What stands before the bar: the epoch, and the newest validation accuracy."""
    val = history.last.get("val_accuracy") if history else None
    bar.set_description(f"epoch {epoch}/{round(config.epochs, 3)}" + ("" if val is None else f", val {val:.1f} %"))


def _means(sums: Sums) -> dict[str, float]:
    """Sums over an epoch to its row of the history; "correct" becomes a percentage."""
    row = {}
    for name, value in sums.items():
        mean = float(value) / sums["samples"]
        if name == "correct":
            row["train_accuracy"] = 100 * mean
        elif name != "samples":
            row[f"train_{name}"] = mean
    return row
