"""What the playground costs: the answer to a slider, and what live curves take from the training they show.

    python benchmarks/playground.py [--quick]

The answer is the time from a control's new value to the new estimate, over random moves, none of which has been seen
before. Trainings with and without the panel take turns, each in a thread beside an event loop as in a notebook.
"""

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
import report

import vit
from vit.analysis.forecast import _costs_of
from vit.data import DataSplits
from vit.training import train_in_background
from vit.widgets import Playground

COMMAND = "python benchmarks/playground.py"
MOVED = ("model.depth", "model.embed_dim", "model.patch_size", "model.mlp_ratio", "train.batch_size")


def answers(panel: Playground, moves: int) -> list[float]:
    """Milliseconds from a new value to the new estimate."""
    rng, times = random.Random(0), []
    while len(times) < moves:
        control = panel.form.controls[rng.choice(MOVED)]
        places = getattr(control, "options", None)
        if places is None:
            places = [
                control.min + k * control.step for k in range(int((control.max - control.min) / control.step) + 1)
            ]
        value = rng.choice([place for place in places if place != control.value])
        _costs_of.cache_clear()
        before, started = panel.estimate.value, time.perf_counter()
        control.value = value
        times.append(1000 * (time.perf_counter() - started))
        assert panel.estimate.value != before
    return times


async def with_panel(panel: Playground) -> float:
    """Seconds of a training that the panel follows."""
    panel.train()
    while panel.is_training:
        await asyncio.sleep(0.05)
    while panel.stop_button.disabled is False:  # the panel has yet to see the end
        await asyncio.sleep(0.05)
    return panel.run.history.last["seconds"]


async def alone(panel: Playground, folder: str) -> float:
    """Seconds of the same training with nobody watching."""
    model_config, train_config = panel.form.model_config, panel.form.train_config
    torch.manual_seed(train_config.seed)
    loaders = vit.make_loaders(panel.data, train_config)
    run = train_in_background(vit.VisionTransformer(model_config), *loaders, train_config, folder)
    while run.is_running:
        await asyncio.sleep(0.05)
    return run.history.last["seconds"]


async def slowdowns(panel: Playground, turns: int) -> list[float]:
    """Percent by which a training with the panel takes longer, turn by turn."""
    found = []
    for turn in range(turns):
        with tempfile.TemporaryDirectory() as folder:
            seconds = {}
            for name in ("alone", "panel") if turn % 2 else ("panel", "alone"):
                seconds[name] = await (with_panel(panel) if name == "panel" else alone(panel, folder))
        found.append(100 * (seconds["panel"] / seconds["alone"] - 1))
    return found


def some_of(data: DataSplits, num_train: int, num_val: int) -> DataSplits:
    return replace(data, train=data.train.subset(slice(num_train)), val=data.val.subset(slice(num_val)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few moves and turns, on the built-in set; stores nothing")
    options = parser.parse_args()
    data = vit.load_data("shapes" if options.quick else "cifar10")
    data = some_of(data, 500, 100) if options.quick else some_of(data, 4000, 1000)
    config = vit.TrainConfig(epochs=1, warmup_epochs=0.1, device="cpu")
    with tempfile.TemporaryDirectory() as runs_dir:
        panel = Playground(data, vit.ViTConfig.preset("vit_nano_patch4_32"), config, runs_dir=runs_dir)
        shown = panel.form.model_config, panel.form.train_config
        moved = answers(panel, 5 if options.quick else 100)
        panel.use(*shown)
        slower = asyncio.run(slowdowns(panel, 1 if options.quick else 6))
    claims = [
        report.claim("slider_answer", moved, "ms", COMMAND),
        report.claim(
            "slider_answer_slowest_of_20", [max(moved[i : i + 20]) for i in range(0, len(moved), 20)], "ms", COMMAND
        ),
        report.claim("live_curves", slower, "%", COMMAND),
    ]
    for claim in claims:
        claim["value"] = round(statistics.median(claim["values"]), 4)
    report.publish("playground", claims, store=not options.quick)


if __name__ == "__main__":
    main()
