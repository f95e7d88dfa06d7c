"""How fast a network trains and answers here, beside the same network of the libraries that people use.

    python benchmarks/throughput.py                       every configuration, half an hour with --rounds 6
    python benchmarks/throughput.py --configs vit_micro_patch4_32     some of them anew, beside what is stored of others
    python benchmarks/throughput.py --growth              what more tokens, blocks, width and batch cost this project
    python benchmarks/throughput.py --quick               seconds, little of everything; stores nothing

A train step is forward, backward and torch's fused AdamW, for everyone. The contenders take turns in one process, and a
ratio is taken turn by turn, so that a drift of the machine meets all. So does the machine's own matrix product, which
says how much of the hardware is used. Operations are counted by torch on each library's own forward pass, times three
for a train step. Memory and cold start are of fresh processes. What keeps freed memory (vit/training/memory.py) works
on a whole process, so it is on for everyone, or with --allocator default for no one.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
import libraries
import report
from contender import Contender, matrix_product_rate
from libraries import EVERY_TOKEN, OURS

from vit.analysis import count_parameters
from vit.config import ViTConfig
from vit.device import resolve_device
from vit.plots.scaling import plot_growth
from vit.training.memory import keep_freed_memory

FIGURE = Path(__file__).resolve().parents[1] / "docs" / "growth.png"
TURN = 1.0  # seconds
MODES = {"train": 3, "inference": 1}  # each as so many forward passes
COLD_RUNS, MEMORY_RUNS = 7, 3
COLD_START = """
import time, torch, libraries
torch.set_num_threads({threads})
model = libraries.LIBRARIES[{library!r}](libraries.config_of("vit_tiny_patch16_224")).eval()
with torch.inference_mode():
    model(torch.zeros(1, 3, 224, 224))
print(time.time())
"""
TRAIN_ALONE = """
import contender, json
print(json.dumps(contender.train_alone(**json.loads({spec!r}))))
"""
# One thing at a time is changed in a small network.
BASE = {"image_size": 32, "depth": 6, "embed_dim": 128, "batch": 64}
GROWTH = {
    "tokens": ("image_size", (16, 32, 64, 128)),
    "depth": ("depth", (3, 6, 12, 24)),
    "width": ("embed_dim", (64, 128, 256, 512)),
    "batch": ("batch", (4, 16, 64, 256)),
}


def build(config: ViTConfig, batch: int, options: argparse.Namespace) -> dict[str, Contender]:
    """Every contender, once it is known that they are the same network."""
    names = libraries.installed()
    contenders = {n: Contender(n, config, batch, options.device, options.precision) for n in names}
    own = count_parameters(contenders[OURS].model)
    for name, contender in contenders.items():
        extra = count_parameters(contender.model) - own
        if extra != libraries.extra_parameters(name, config):
            raise ValueError(f"{name} has {extra:+,} parameters beside {own:,}, which is not the same network")
        if (shape := tuple(contender.inference().shape)) != (batch, config.num_classes):
            raise ValueError(f"{name} returns {shape} instead of {batch, config.num_classes}")
        line = (
            f"  {name:<16}{own + extra:>12,} parameters ({extra:+,}), {contender.operations / 1e6:,.1f} MFLOP forward"
        )
        print(line)
    return contenders


def compare(preset: str, options: argparse.Namespace) -> list[dict]:
    """The claims of one configuration."""
    config, batch = libraries.config_of(preset), 8 if options.quick else libraries.BATCHES[preset]
    print(f"{preset}, batch {batch}")
    contenders = build(config, batch, options)
    names = list(contenders)
    rates = {mode: {name: [] for name in names} for mode in MODES}  # images per second, a round each
    products = []
    for i in range(options.rounds + 1):  # the first only warms up
        products.append(matrix_product_rate(options.device, options.precision, options.turn))
        start = i % len(names)  # so that nobody always follows the same one
        for name in names[start:] + names[:start]:
            for mode in MODES:
                rates[mode][name].append(contenders[name].rate(mode, options.turn))
    claims = [claim(f"{preset}.matrix_product", [p / 1e9 for p in products[1:]], "GFLOP/s", options)]
    for mode, passes in MODES.items():
        for name in names:
            operations = passes * contenders[name].operations
            share = [100 * operations * r / p for r, p in zip(rates[mode][name][1:], products[1:], strict=True)]
            c = claim(f"{preset}.{mode}.{name}", rates[mode][name][1:], "images/s", options)
            c |= {"batch": batch, "gflop_per_second": round(c["value"] * operations / 1e9, 3)}
            claims.append(c | {"share_of_matrix_product": round(statistics.median(share), 2)})
            if name == OURS:
                claims.append(claim(f"{preset}.{mode}.share_of_matrix_product", share, "%", options))
            else:
                ratios = [a / b for a, b in zip(rates[mode][OURS][1:], rates[mode][name][1:], strict=True)]
                claims.append(claim(f"{preset}.{mode}.{OURS}/{name}", ratios, "x", options))
    return claims


def memory_and_cold_start(presets: list[str], options: argparse.Namespace) -> list[dict]:
    """Claims of peak memory and cold start; everyone has a turn before anyone has the next."""
    names = [OURS] if options.quick else [name for name in libraries.installed() if name != EVERY_TOKEN]
    memory = {(preset, name): [] for preset in presets for name in names}
    for _ in range(1 if options.quick else MEMORY_RUNS):
        for (preset, name), values in memory.items():
            batch = 8 if options.quick else libraries.BATCHES[preset]
            values.append(train_alone(name, libraries.config_of(preset), batch, options)["peak_memory"] / 1e6)
    cold = {name: [] for name in names}
    for _ in range(1 if options.quick else COLD_RUNS + 1):  # the first only warms the disk cache
        for name, values in cold.items():
            values.append(cold_start(name))
    claims = [claim(f"{preset}.peak_memory.{name}", v, "MB", options) for (preset, name), v in memory.items()]
    on_cpu = {"device": "cpu", "hardware": report.processor(), "precision": "fp32"}
    return claims + [claim(f"cold_start.{name}", v[-COLD_RUNS:], "s", options) | on_cpu for name, v in cold.items()]


def train_alone(library: str, config: ViTConfig, batch: int, options: argparse.Namespace) -> dict[str, float]:
    """`contender.train_alone` in a process of its own."""
    spec = {"library": library, "config": config.to_dict(), "batch": batch, "turn": options.turn} | settings(options)
    return json.loads(fresh_process(TRAIN_ALONE.format(spec=json.dumps(spec))))


def fresh_process(code: str) -> str:
    """What it prints. It can import the modules of this folder."""
    command, folder = [sys.executable, "-c", code], Path(__file__).parent
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=folder).stdout


def cold_start(library: str) -> float:
    """Seconds from the start of a process, on the CPU, to the logits of one image of 224 pixels."""
    started = time.time()
    return float(fresh_process(COLD_START.format(library=library, threads=torch.get_num_threads()))) - started


def grow(options: argparse.Namespace) -> None:
    """Stores and draws images per second and peak memory of a train step, each point in fresh processes."""
    axes = {"batch": ("batch", (1, 2))} if options.quick else GROWTH
    points = {(axis, value): BASE | {field: value} for axis, (field, values) in axes.items() for value in values}
    measured = {point: [] for point in points}
    for _ in range(options.rounds):
        for point, sizes in points.items():
            batch = sizes["batch"]
            sizes = {name: value for name, value in sizes.items() if name != "batch"}
            config = ViTConfig(**sizes, num_heads=sizes["embed_dim"] // 32, head="linear")
            measured[point].append(train_alone(OURS, config, batch, options))
    claims, curves = [], {axis: [] for axis in axes}
    for (axis, value), runs in measured.items():
        x = (value // 4) ** 2 + 1 if axis == "tokens" else value
        rate = claim(f"{axis}.{x}.train", [run["images_per_second"] for run in runs], "images/s", options)
        memory = claim(f"{axis}.{x}.peak_memory", [run["peak_memory"] / 1e6 for run in runs], "MB", options)
        claims += [rate, memory]
        curves[axis].append((x, rate["value"], memory["value"]))
    base = f"65 tokens, {BASE['depth']} blocks, width {BASE['embed_dim']}, batch {BASE['batch']}"
    figure = plot_growth(curves, title=f"Train step: {base}; one of them varied")
    name = result_name("growth", options)
    if not options.quick and name == "growth":
        figure.savefig(FIGURE)
    report.publish(name, claims, store=not options.quick)


def claim(name: str, values: list[float], unit: str, options: argparse.Namespace) -> dict:
    """A claim whose value is the median, with all that could change it."""
    command = " ".join(["python benchmarks/throughput.py", *sys.argv[1:]])
    c = report.claim(name, values, unit, command, is_median=True)
    return c | {"versions": f"{c['versions']}, {libraries.versions()}"} | settings(options)


def settings(options: argparse.Namespace) -> dict[str, str | int]:
    return {
        "device": options.device.type,
        "precision": options.precision,
        "allocator": options.allocator,
        "threads": torch.get_num_threads(),
    }


def result_name(benchmark: str, options: argparse.Namespace) -> str:
    """Another device, precision, allocator, number of threads or machine has a file of its own."""
    usual = {"device": "cpu", "precision": "fp32", "allocator": "keep"}
    parts = [value for name, value in settings(options).items() if name in usual and value != usual[name]]
    parts += [f"{options.threads}threads"] * bool(options.threads) + [options.machine] * bool(options.machine)
    return "_".join([benchmark, *parts])


def table(presets: list[str], claims: list[dict]) -> list[str]:
    """A block a configuration, a line a contender."""
    by_name = {c["name"]: c for c in claims}
    lines = ["", "images/s, GFLOP/s, share of the matrix product's, and how many times as fast this project is"]
    for preset in presets:
        product = by_name[f"{preset}.matrix_product"]["value"]
        lines.append(f"{preset}, matrix product {product:.0f} GFLOP/s")
        for name in libraries.installed():
            line = f"  {name:<16}"
            for mode in MODES:
                c, ratio = by_name[f"{preset}.{mode}.{name}"], by_name.get(f"{preset}.{mode}.{OURS}/{name}")
                line += f"{mode:>10}{c['value']:9.1f}{c['gflop_per_second']:9.1f}{c['share_of_matrix_product']:5.0f} %"
                line += f"{ratio['value']:6.2f}x" if ratio else " " * 7
            lines.append(line.rstrip())
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", choices=libraries.BATCHES, default=[*libraries.BATCHES])
    parser.add_argument("--rounds", type=int, help="default 10, or 5 of growth")
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, help="CPU threads; the default is torch's own choice")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--allocator", choices=("keep", "default"), default="keep")
    parser.add_argument("--machine", metavar="NAME", help="keeps the results apart from those of the usual machine")
    options = parser.parse_args()
    if options.device == "cpu":
        report.hide_gpus()
    options.device = resolve_device(options.device)
    options.turn = 0.0 if options.quick else TURN
    options.rounds = 1 if options.quick else options.rounds or (5 if options.growth else 10)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.allocator == "keep" and not keep_freed_memory() and options.device.type == "cpu":
        options.allocator = "default"  # there is no other on this system
    if options.growth:
        grow(options)
        return
    for name in sorted(libraries.LIBRARIES.keys() - libraries.installed()):
        print(f"{name} is not installed and left out; all of them come with: pip install -e '.[bench]'")
    presets = ["vit_micro_patch4_32"] if options.quick else options.configs
    name, claims = result_name("throughput", options), []
    parts = [
        *(partial(compare, preset, options) for preset in presets),
        partial(memory_and_cold_start, presets, options),
    ]
    for part in parts:
        found = part()
        report.publish(name, found, store=not options.quick, keep_others=True)  # an error later takes nothing back
        claims += found
    print(*table(presets, claims), sep="\n")


if __name__ == "__main__":
    main()
