"""What the playground costs: the answer to a slider, and what live curves take from the training they show.

    python benchmarks/playground.py [--quick]      a quarter of an hour

The answer is the time from a control's new value to the new estimate, over random moves, none of which has been seen
before. What live curves take is measured within one training, in a thread beside an event loop as in a notebook: the
panel watches it by turns, and the seconds a step takes then are compared with the mean of before and after.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import report

import vit
from vit.analysis.forecast import _costs_of
from vit.training import BackgroundRun
from vit.widgets import Playground

COMMAND = "python benchmarks/playground.py"
MOVED = ("model.depth", "model.embed_dim", "model.patch_size", "model.mlp_ratio", "train.batch_size")
WARM_UP_STEPS = 20


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


async def slowdowns(panel: Playground, turns: int, pictures: int, seconds: float) -> list[float]:
    """Percent by which steps take longer while the panel watches, turn by turn.

    Args:
        pictures: that a watched turn lasts, from the end of one that is not counted to the end of the last.
        seconds: that an unwatched turn lasts.
    """
    drawn = _count_pictures(panel)
    run = panel.train()
    panel._watcher.cancel()
    await step_seconds(run, lambda: run.steps_done >= WARM_UP_STEPS)
    unwatched, watched = [await step_seconds(run, _after(seconds))], []
    for _ in range(turns):
        watcher, before = asyncio.create_task(panel._watch(run)), len(drawn)
        while len(drawn) == before:
            await asyncio.sleep(0.05)
        watched.append(await step_seconds(run, partial(lambda end: len(drawn) >= end, before + 1 + pictures)))
        watcher.cancel()
        unwatched.append(await step_seconds(run, _after(seconds)))
    panel.stop()
    panel.wait()
    return [
        100 * (w / ((before + after) / 2) - 1) for w, (before, after) in zip(watched, pairwise(unwatched), strict=True)
    ]


async def step_seconds(run: BackgroundRun, is_over: Callable[[], bool]) -> float:
    """Seconds a step takes, measured from the end of one step to the end of another."""
    first = await _next_step(run)
    started = time.perf_counter()
    while not is_over():
        await asyncio.sleep(0.05)
    last = await _next_step(run)
    return (time.perf_counter() - started) / (last - first)


async def _next_step(run: BackgroundRun) -> int:
    """The number of the step that ends next, at its end."""
    done = run.steps_done
    while run.steps_done == done:
        if not run.is_running:
            raise RuntimeError("the training has ended before the measurement: give it more epochs") from run.error
        await asyncio.sleep(0.002)
    return run.steps_done


def _after(seconds: float) -> Callable[[], bool]:
    end = time.perf_counter() + seconds
    return lambda: time.perf_counter() >= end


def _count_pictures(panel: Playground) -> list[float]:
    """Grows by one for every picture that the panel draws from now on."""
    drawn, draw = [], panel.draw

    def counted() -> None:
        draw()
        drawn.append(time.perf_counter())

    panel.draw = counted
    return drawn


def main() -> None:
    report.hide_gpus()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few moves and turns, on the built-in set; stores nothing")
    options = parser.parse_args()
    data = vit.load_data("shapes", num_val=100, num_test=1) if options.quick else vit.load_data("cifar10")
    model_config = vit.ViTConfig.preset("vit_pico_patch8_32" if options.quick else "vit_nano_patch4_32")
    data = replace(data, val=data.val.subset(slice(100)))  # steps are timed, and validation is none
    config = vit.TrainConfig(epochs=100, device="cpu")  # longer than it is watched
    with tempfile.TemporaryDirectory() as runs_dir:
        panel = Playground(data, model_config, config, runs_dir=runs_dir)
        shown = panel.form.model_config, panel.form.train_config
        moved = answers(panel, 5 if options.quick else 100)
        panel.use(*shown)
        turns = (
            {"turns": 1, "pictures": 0, "seconds": 0.2}
            if options.quick
            else {"turns": 20, "pictures": 2, "seconds": 20}
        )
        slower = asyncio.run(slowdowns(panel, **turns))
    slowest = [max(moved[i : i + 20]) for i in range(0, len(moved), 20)]
    measured = {
        "slider_answer": (moved, "ms"),
        "slider_answer_slowest_of_20": (slowest, "ms"),
        "live_curves": (slower, "%"),
    }
    claims = [report.claim(name, values, unit, COMMAND, is_median=True) for name, (values, unit) in measured.items()]
    report.publish("playground", claims, store=not options.quick)


if __name__ == "__main__":
    main()
