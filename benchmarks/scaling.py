"""What training together costs two processes: their speed relative to two that train for themselves.

    python benchmarks/scaling.py [--quick]

Weak scaling: each process, of one thread, has as many images a step as an independent one; together they share a batch
of twice the size. The same two processes do both, in turns, and the slower of the two counts. In the time together is
all that `fit` does then: the whole batch drawn by each, gradients and sums exchanged, all asked whether to stop.
Needs two cores that are otherwise idle.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import report
import torch

import vit
from vit.launch import launch
from vit.progress import progress_bar
from vit.training import build_optimizers, train_one_epoch
from vit.training.distributed import ALONE, World, processes
from vit.training.memory import keep_freed_memory

COMMAND = "python benchmarks/scaling.py"
RECIPE = vit.TrainConfig(device="cpu")


def make_epoch(world: World, num_steps: int, model_name: str):
    """An epoch of so many steps as a function of nothing, with `RECIPE.batch_size` images a process and step."""
    config = replace(RECIPE, batch_size=RECIPE.batch_size * world.size)
    data = vit.load_data("shapes", num_train=num_steps * config.batch_size, num_val=1, num_test=1)
    loader, _ = vit.make_loaders(data, config)
    torch.manual_seed(0)
    model = vit.VisionTransformer(vit.ViTConfig.preset(model_name))
    optimizers, network = build_optimizers(model, config), world.wrap(model)

    def epoch() -> None:
        stop = {"should_stop": lambda: world.any(False), "world": world}
        train_one_epoch(network, loader, optimizers, config, bar=progress_bar(disable=True), **stop)

    return epoch


def measure(num_steps: int, num_rounds: int, model_name: str) -> list[dict[str, float]]:
    """Seconds a step, "apart" and "together", a round; the first process's view of both."""
    torch.set_num_threads(1)
    keep_freed_memory()
    rounds = []
    with processes() as world:
        epochs = {name: make_epoch(w, num_steps, model_name) for name, w in (("apart", ALONE), ("together", world))}
        for number in range(num_rounds + 1):
            seconds = {}
            for name in epochs if number % 2 else reversed(epochs):
                world.any(True)  # both begin at once
                began = time.perf_counter()
                epochs[name]()
                seconds[name] = max(world.gather((time.perf_counter() - began) / num_steps))
            rounds.append(seconds)
    return rounds[1:]  # the first one warms up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps; stores nothing")
    parser.add_argument("--one", type=Path, metavar="FILE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = (2, 2, "vit_pico_patch8_32") if options.quick else (6, 9, "vit_nano_patch4_32")
    if options.one:
        found = measure(*size)
        if os.environ["RANK"] == "0":
            options.one.write_text(json.dumps(found))
        return
    # Two processes on CPU cores, also where there is a GPU.
    report.hide_gpus()
    os.environ |= {"OMP_NUM_THREADS": "1", "VIT_PROGRESS": "none"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rounds.json"
        quick = ["--quick"] if options.quick else []
        if code := launch([sys.executable, __file__, "--one", str(path), *quick], 2):
            sys.exit(code)
        rounds = json.loads(path.read_text())
    values = {
        "weak_scaling": ([100 * r["apart"] / r["together"] for r in rounds], "%"),
        "step_apart": ([r["apart"] for r in rounds], "s"),
        "step_together": ([r["together"] for r in rounds], "s"),
    }
    claims = [report.claim(name, found, unit, COMMAND, is_median=True) for name, (found, unit) in values.items()]
    report.publish("scaling", claims, store=not options.quick)


if __name__ == "__main__":
    main()
