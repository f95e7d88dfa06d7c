"""What `fit` costs beyond the computation: checkpoints, records, progress, the look at every gradient.

    python benchmarks/loop_overhead.py [--quick]

In one and the same epoch: its time, less that of drawing batches, of forward and backward passes and of optimizers.
To that comes the share of the states that the ten-minute recipe writes, one at the start and one an epoch. And how
long the state of the default model takes to be on the disk, checked. Timings need an otherwise idle machine.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import report
import torch

import vit
from vit.training import build_optimizers, train_one_epoch
from vit.training.checkpoint import describe_data, save_training_state
from vit.training.losses import classification_loss

COMMAND = "python benchmarks/loop_overhead.py"
RECIPE = vit.TrainConfig.preset("cpu_10min", device="cpu")
RECIPE_STEPS = 45_000 // RECIPE.batch_size  # an epoch of CIFAR-10 without its validation images


class Clock:
    """Adds up the time that calls take."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds += time.perf_counter() - began

        return call


def epoch_seconds(loader: vit.data.Loader) -> tuple[float, float]:
    """How long an epoch takes, and how much of that is the computation."""
    clock = Clock()
    model = vit.VisionTransformer(vit.ViTConfig.preset("vit_nano_patch4_32"))
    optimizers = build_optimizers(model, RECIPE)
    for optimizer in optimizers:
        optimizer.step, optimizer.zero_grad = clock.timed(optimizer.step), clock.timed(optimizer.zero_grad)
    loader.batch = clock.timed(type(loader).batch.__get__(loader))
    loss_fn, backward = clock.timed(classification_loss(RECIPE.label_smoothing)), torch.Tensor.backward
    torch.Tensor.backward = clock.timed(backward)
    try:
        began = time.perf_counter()
        train_one_epoch(model, loader, optimizers, RECIPE, loss_fn=loss_fn)
        return time.perf_counter() - began, clock.seconds
    finally:
        torch.Tensor.backward = backward


def save_milliseconds(loader: vit.data.Loader, config: vit.TrainConfig, count: int) -> list[float]:
    """How long the state of the default model, averaged weights included, takes to be saved."""
    config = replace(config, ema_decay=0.99)
    with tempfile.TemporaryDirectory() as folder:
        model = vit.VisionTransformer(vit.ViTConfig.preset("vit_nano_patch4_32"))
        optimizers = build_optimizers(model, config)
        classification_loss()(model, loader.batch(0, 0))[0].backward()
        for optimizer in optimizers:
            optimizer.step()
        state = {"model": model, "optimizers": optimizers, "config": config, "data": describe_data(loader)}
        state["ema"] = torch.optim.swa_utils.AveragedModel(model)
        found = []
        for number in range(count):
            rows = [{"epoch": epoch, "val_accuracy": 1.0 * epoch} for epoch in range(number)]
            progress = {"epoch": number, "step": 0, "sums": {}, "rows": rows, "seconds": 0.0}
            began = time.perf_counter()
            save_training_state(Path(folder) / "state.pt", **state, progress=progress, is_best=number % 2 == 0)
            found.append(1000 * (time.perf_counter() - began))
    return found[1:]  # the first one warms up


def main() -> None:
    report.hide_gpus()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps; stores nothing")
    options = parser.parse_args()
    os.environ["VIT_PROGRESS"] = "text"
    torch.set_num_threads(1)
    steps, rounds = (3, 2) if options.quick else (60, 7)
    data = vit.load_data("shapes", num_train=steps * RECIPE.batch_size, num_val=1, num_test=1)
    loader, _ = vit.make_loaders(data, RECIPE)
    saves = save_milliseconds(loader, RECIPE, 3 if options.quick else 31)
    epoch_seconds(loader)  # warms up
    overheads = []
    for _ in range(rounds):
        whole, computed = epoch_seconds(loader)
        saving = statistics.median(saves) / 1000 * (RECIPE.epochs + 1) / (RECIPE.epochs * RECIPE_STEPS)  # a step
        overheads.append(100 * ((whole - computed) / steps + saving) / (computed / steps))
    claims = [
        report.claim("loop_overhead", overheads, "%", COMMAND, is_median=True),
        report.claim("save", saves, "ms", COMMAND, is_median=True),
    ]
    report.publish("loop_overhead", claims, store=not options.quick)


if __name__ == "__main__":
    main()
