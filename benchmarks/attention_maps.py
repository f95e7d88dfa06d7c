"""What looking inside costs: the maps of 16 images, a forward pass with and without the recorder, one redraw.

    python benchmarks/attention_maps.py [--quick]

With shipped weights of the default network. The two forward passes take turns in one process, and their ratio is taken
turn by turn, so that a drift of the machine meets both.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
import report

import vit
from vit.analysis import attention_maps, record_attention
from vit.widgets import AttentionExplorer

COMMAND = "python benchmarks/attention_maps.py"
WEIGHTS = "vit_nano_patch4_32.cifar10"


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@torch.no_grad()
def main() -> None:
    report.hide_gpus()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few turns, on the built-in set; stores nothing")
    options = parser.parse_args()
    turns = 3 if options.quick else 30
    model = vit.load(WEIGHTS)
    few = {"num_train": 1, "num_val": 1, "num_test": 16}
    data = vit.load_data("shapes", **few) if options.quick else vit.load_data("cifar10")
    uint8 = data.test.images[:16]
    images = torch.randn(16, 3, *model.config.image_size)

    def recorded() -> None:
        with record_attention(model):
            model(images)

    def plain() -> None:
        model(images)

    times = {"recorded": [], "plain": [], "maps": []}
    for _ in range(turns + 3):
        times["recorded"].append(seconds(recorded))
        times["plain"].append(seconds(plain))
        times["maps"].append(seconds(lambda: attention_maps(model, uint8)))
    times = {name: values[3:] for name, values in times.items()}
    explorer = AttentionExplorer(model, uint8)
    redraws = []
    for turn in range(turns):
        started = time.perf_counter()
        explorer.layer.value = turn % model.config.depth
        redraws.append(time.perf_counter() - started)
    ratios = [a / b for a, b in zip(times["recorded"], times["plain"], strict=True)]
    measured = {
        "maps_of_16_images": (times["maps"], "s"),
        "recording_ratio": (ratios, "x"),
        "explorer_redraw": ([1000 * t for t in redraws], "ms"),
    }
    claims = [report.claim(name, values, unit, COMMAND, is_median=True) for name, (values, unit) in measured.items()]
    report.publish("attention_maps", claims, store=not options.quick)


if __name__ == "__main__":
    main()
