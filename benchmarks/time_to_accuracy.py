"""This project and six published plain ViTs, trained for the same time on the same CPU, one after another.

    python benchmarks/time_to_accuracy.py --minutes 5                  everything, seeds 0, 1 and 2
    python benchmarks/time_to_accuracy.py --peers ours tintn --feeds batched
    python benchmarks/time_to_accuracy.py --measure                    only times the steps that have no stored time
    python benchmarks/time_to_accuracy.py --threads 1                  trains for steps that were timed before
    python benchmarks/time_to_accuracy.py --quick                      seconds, on the built-in set; stores nothing

Measure on an idle machine, with all cores. Minutes become steps by the measured times, so the trainings can then run
anywhere, with one thread and beside other work, and get as many steps.

Each recipe is as published (peers.py), its schedule stretched over the steps that fit into the minutes; the peers'
rates were chosen for a hundred passes and more, ours for these minutes, on validation images. Peers are fed twice:
"per_sample", a DataLoader of torchvision's transforms on single pictures as they have it, with as many of their worker
processes as there are cores; and "batched", our loader with the same augmentation, or what stands for it there
(AUGMENTATIONS in peers.py). All train on our 45,000 images in float32, as the peers' code does without a GPU, and keep
freed memory as `vit.fit` does; the last weights are tested once, without test-time augmentation. Minutes are those of
training alone: measuring, validation and the test are off the clock.

A machine's speed drifts by more than recipes differ, so each recipe's steps are timed in turns with those of ours, and
its time is that ratio times our own, which is measured once: all recipes get the minutes of one and the same pace.

Every run has a process of its own, and leaves its result beside the times in results/time_to_accuracy_runs/, or another
--folder for another machine. What is there for the same settings is not repeated, so the hours can be spread over days.
One file, long for that: it is the protocol, which a doubter wants to read from top to bottom.
"""

import argparse
import itertools
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parent))
import record_results
import report
from peers import PEERS, Peer, PlainViT

import vit
from vit.analysis.cost import forward_flops
from vit.config import RECIPES
from vit.data import DataSplits, Loader, Split
from vit.data.loader import make_mix
from vit.files import REPOSITORY
from vit.training.epoch import run_steps
from vit.training.losses import classification_loss
from vit.training.memory import keep_freed_memory
from vit.training.run_folder import runs_root, write_json

FOLDER = report.RESULTS / "time_to_accuracy_runs"
QUICK_FOLDER = runs_root() / "benchmark-time-to-accuracy"
FIGURE = REPOSITORY / "docs" / "time_to_accuracy.png"
DRAWN_MINUTES = 5
OURS, BASE, FEEDS = "ours", "cpu_5min", ("per_sample", "batched")
NUM_POINTS, VAL_IMAGES = 10, 2000  # of each curve, and that each of its points is measured on
# Of a measurement: the seconds for ours alone; for the others how many turns, the seconds of one, and what goes before.
PROBE_SECONDS, TURNS, TURN_SECONDS, WARM_UP_STEPS, WARM_UP_SECONDS = 20.0, 5, 4.0, 4, 2.0


class Pictures(Dataset):
    """A split as torchvision's CIFAR10 gives it: arrays (H, W, C), made a picture and transformed one at a time."""

    def __init__(self, split: Split, transform: Callable) -> None:
        self.pixels = split.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels, self.transform = split.labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


def batches_of(peer: Peer, feed: str, data: DataSplits, seed: int, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The peer's training batches without end, epoch after epoch."""
    mixing = vit.TrainConfig(mixup_alpha=1.0, cutmix_alpha=1.0, mix_probability=0.5)
    mix = make_mix(mixing, data.num_classes) if peer.mixes else None
    if feed == "batched":
        norm = {"mean": peer.mean, "std": peer.std}
        options = {"augment": peer.batch_augment(), "mix": mix, "shuffle": True, "seed": seed}
        loader = Loader(data.train, batch_size=peer.batch_size, **norm, **options)
        for epoch in itertools.count():
            yield from loader.epoch(epoch)
    pictures = Pictures(data.train, peer.transform())
    options = {"shuffle": True, "drop_last": True, "num_workers": workers, "persistent_workers": workers > 0}
    loader = DataLoader(pictures, batch_size=peer.batch_size, **options)
    for _ in itertools.count():
        for images, labels in loader:
            yield (images, labels) if mix is None else mix(images, labels, int(torch.randint(2**62, ())))


def train_peer(model: nn.Module, peer: Peer, batches: Iterator, steps: int) -> Iterator[int]:
    """The published loop; hands out the step's number, from 0, before each step."""
    optimizer, loss_fn = peer.build_optimizer(model), classification_loss(peer.label_smoothing)
    model.train()
    for step in range(steps):
        yield step
        for group in optimizer.param_groups:
            group["lr"] = peer.learning_rate * peer.rate_factor(step, steps)
        loss, _ = loss_fn(model, next(batches))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def train_ours(model: nn.Module, config: vit.TrainConfig, data: DataSplits, steps: int, track: "Track") -> None:
    """`vit.fit` for so many steps, its warm-up the same share of them as in the config."""
    loader, _ = vit.make_loaders(data, config)
    config = config.with_epochs(steps / len(loader))
    loss_fn = classification_loss(config.label_smoothing)

    def watched(model: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        track(model)
        return loss_fn(model, batch)

    if not vit.fit(model, loader, None, config, loss_fn=watched).is_complete:
        sys.exit("stopped: the run starts anew next time")


def timed(steps: Iterator[int], seconds: float) -> float:
    """The mean time of a step, of as many as begin within `seconds`, after a few to fill the caches and the queues."""
    started = time.perf_counter()
    for _ in range(WARM_UP_STEPS):
        next(steps)
        if time.perf_counter() - started > WARM_UP_SECONDS:
            break
    started, count, taken = time.perf_counter(), 0, 0.0
    while taken < seconds:
        next(steps)
        count, taken = count + 1, time.perf_counter() - started
    return taken / count


class Track:
    """Called before every step; keeps the time, and off the clock the validation accuracy at every tenth of the run."""

    def __init__(self, loader: Loader, steps: int) -> None:
        self.loader, self.marks = loader, {round(steps * i / NUM_POINTS) for i in range(1, NUM_POINTS)} - {0}
        self.done, self.seconds, self.accuracy, self.reached = 0, 0.0, {}, {}
        self.started = time.perf_counter()

    def __call__(self, model: nn.Module) -> None:
        if self.done in self.marks:
            self.look(model)
        self.done += 1

    def look(self, model: nn.Module) -> None:
        self.seconds += time.perf_counter() - self.started
        self.reached[self.done] = self.seconds
        self.accuracy[self.done] = vit.evaluate(model, self.loader, test_time_augmentation="none").accuracy
        self.started = time.perf_counter()


class Run:
    """One recipe, one feed, one seed: what is trained on what, how fast, and with what result."""

    def __init__(self, name: str, variant: str, seed: int, options: argparse.Namespace) -> None:
        self.name, self.variant, self.seed, self.options = name, variant, seed, options
        self.key = f"{name}.{variant}"
        self.chosen_by = ["--peers", name, "--preset" if name == OURS else "--feeds", variant]
        self.peer = PEERS.get(name)
        if self.peer:
            if options.quick:
                self.peer = replace(self.peer, batch_size=8, model=replace(self.peer.model, depth=1))
            self.recipe = asdict(self.peer) | {"feed": variant}
            del self.recipe["source"], self.recipe["published"]  # which change nothing
        else:
            self.model_config, self.config = vit.recipe(variant, device="cpu", precision="fp32", seed=seed)
            self.recipe = {"model": self.model_config.to_dict(), "train": self.config.to_dict() | {"seed": None}}
        self.recipe = json.loads(json.dumps(self.recipe))
        self.budget = "quick" if options.quick else f"{options.minutes:g}min"
        self.path = options.folder / self.budget / f"{name}-{variant}-seed{seed}.json"
        self.times = options.folder / "step_times.json"

    def prepare(self) -> tuple[DataSplits, nn.Module]:
        """The data and a new model; everything random that follows depends on the seed."""
        quick = {"num_train": 512, "num_val": 32, "num_test": 32}
        data = vit.load_data("shapes", **quick) if self.options.quick else vit.load_data("cifar10")
        torch.manual_seed(self.seed)
        return data, PlainViT(self.peer.model) if self.peer else vit.VisionTransformer(self.model_config)

    def batches(self, data: DataSplits) -> Iterator:
        workers = 0 if self.options.quick else min(self.peer.workers, os.cpu_count())
        return batches_of(self.peer, self.variant, data, self.seed, workers)

    @property
    def measured(self) -> dict | None:
        """The time of a mean step that is stored for this recipe, and where it was measured, if it was."""
        found = json.loads(self.times.read_text()).get(self.key, {}) if self.times.exists() else {}
        return found["measured"] if self.is_of(found.get("recipe", {})) else None

    def is_of(self, recipe: dict) -> bool:
        """Whether a stored recipe is this one; options that it has not heard of have their defaults."""
        return (recipe if self.peer else report.up_to_date(recipe)) == self.recipe

    @property
    def base(self) -> "Run":
        """What every recipe is timed in turns with."""
        return Run(OURS, "quick" if self.options.quick else BASE, 0, self.options)

    def own_seconds(self, data: DataSplits, model: nn.Module, seconds: float) -> float:
        """The mean time of a step of ours, by some real ones."""
        loader, _ = vit.make_loaders(data, self.config)
        found = vit.for_budget(model, loader, None, self.config, minutes=60, probe_seconds=seconds)
        return 3600 / run_steps(found, len(loader))

    def measure(self) -> None:
        """Times real steps, those of the base alone and others in turns with it, and stores their mean."""
        keep_freed_memory()
        data, model = self.prepare()
        row = {"threads": torch.get_num_threads(), "hardware": report.hardware()}
        base = self.base.measured
        if self.key != self.base.key and row["threads"] != base["threads"]:
            sys.exit(f"ours was timed with {base['threads']} threads: time {self.key} with as many, by --measure first")
        probe, turn = (0.1, 0.05) if self.options.quick else (PROBE_SECONDS, TURN_SECONDS)
        if self.key == self.base.key:
            row["seconds_per_step"] = self.own_seconds(data, model, probe)
        else:
            steps = train_peer(model, self.peer, self.batches(data), 10**6) if self.peer else None
            row["times_base"], (_, base_model) = [], self.base.prepare()
            for _ in range(TURNS):
                of_base = self.base.own_seconds(data, base_model, turn)
                own = timed(steps, turn) if self.peer else self.own_seconds(data, model, turn)
                row["times_base"].append(own / of_base)
            row["seconds_per_step"] = statistics.median(row["times_base"]) * base["seconds_per_step"]
        known = json.loads(self.times.read_text()) if self.times.exists() else {}
        self.times.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.times, known | {self.key: {"measured": row, "recipe": self.recipe}})

    def settings(self) -> dict:
        return {"recipe": self.recipe, "minutes": self.options.minutes, "seed": self.seed, "measured": self.measured}

    def result(self) -> dict | None:
        """What is stored of it, if that is of these settings."""
        found = json.loads(self.path.read_text()) if self.path.exists() else {}
        settings = found.get("settings", {})
        is_mine = self.is_of(settings.get("recipe", {})) and settings | {"recipe": self.recipe} == self.settings()
        return found if is_mine else None

    def train(self) -> None:
        """Trains for the steps that fit into the minutes, tests once, and stores the result."""
        keep_freed_memory()
        data, model = self.prepare()
        seconds_per_step = self.measured["seconds_per_step"]
        steps = max(1, int(60 * self.options.minutes / seconds_per_step))
        norm = {"mean": self.peer.mean, "std": self.peer.std} if self.peer else {"mean": data.mean, "std": data.std}
        track = Track(Loader(data.val.subset(slice(VAL_IMAGES)), batch_size=500, **norm), steps)
        if self.peer:
            for _ in train_peer(model, self.peer, self.batches(data), steps):
                track(model)
            drop, until, batch_size = 0.0, 0.0, self.peer.batch_size
        else:
            train_ours(model, self.config, data, steps, track)
            drop, until, batch_size = self.config.patch_drop_rate, self.config.patch_drop_until, self.config.batch_size
        track.look(model)
        test = vit.evaluate(model, Loader(data.test, batch_size=500, **norm), test_time_augmentation="none")
        images_per_step = batch_size
        if self.variant != "per_sample":  # our loader cuts an epoch into equal batches, theirs leaves the rest away
            images_per_step = len(data.train) / math.ceil(len(data.train) / batch_size)
        dropped, full = forward_flops(model, patch_drop_rate=drop), forward_flops(model)

        def flops(step: int) -> float:
            few = min(step, math.ceil(until * steps))
            return 3 * images_per_step * (few * dropped + (step - few) * full)

        curve = [
            # Of the time of the whole run, the share that the steps so far have taken: not all take as long.
            {
                "step": step,
                "seconds": steps * seconds_per_step * track.reached[step] / track.seconds,
                "flops": flops(step),
                "accuracy": accuracy,
            }
            for step, accuracy in track.accuracy.items()
        ]
        result = {
            "settings": self.settings(),
            **report.origin(),
            "threads": torch.get_num_threads(),
            "parameters": vit.count_parameters(model),
            "steps": steps,
            "passes": steps * images_per_step / len(data.train),
            "train_flops": flops(steps),
            "train_seconds": track.seconds,
            "peak_memory_gb": report.peak_memory() / 1e9,
            "curve": curve,
            "test_accuracy": test.accuracy,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, result)


def start(run: Run, *arguments: str) -> bool:
    """Does one thing, to measure or to train, in a process of its own, and says whether it went well."""
    options = run.options
    command = [sys.executable, __file__, "--child", *run.chosen_by, "--seeds", str(run.seed)]
    command += ["--minutes", str(options.minutes), "--folder", str(options.folder), *arguments]
    command += ["--threads", str(options.threads)] if options.threads else []
    return subprocess.run([*command, *(["--quick"] if options.quick else [])]).returncode == 0


def with_other_seeds(runs: list[Run]) -> list[Run]:
    """The runs of a recipe and feed, and those of the same settings with other seeds that have a result already."""
    first, own = runs[0], {run.seed for run in runs}
    seeds = report.seeds_in(first.path.parent, f"{first.name}-{first.variant}") - own
    others = [Run(first.name, first.variant, seed, first.options) for seed in seeds]
    return sorted([*runs, *(run for run in others if run.result() is not None)], key=lambda run: run.seed)


def claim_of(runs: list[Run], results: list[dict]) -> dict:
    """The claim of one recipe and feed: test accuracy over its seeds, what it took, and the mean of its curves."""
    run, first = runs[0], results[0]
    name, accuracies = f"{run.budget}.{run.key}", [result["test_accuracy"] for result in results]
    command = f"python benchmarks/time_to_accuracy.py --minutes {run.options.minutes:g} {' '.join(run.chosen_by)}"
    points = zip(*(result["curve"] for result in results), strict=True)
    means = [statistics.mean(point["accuracy"] for point in of_step) for of_step in points]
    return report.claim(name, accuracies, "%", command, seeds=[run.seed for run in runs], origins=results) | {
        "recipe": run.name,
        "variant": run.variant,
        "published": run.peer.published if run.peer else "",
        "minutes": run.options.minutes,
        "measured": run.measured,
        **{name: first[name] for name in ("parameters", "steps", "passes", "train_flops")},
        **{name: [result[name] for result in results] for name in ("threads", "train_seconds", "peak_memory_gb")},
        "curve": [point | {"accuracy": round(mean, 4)} for point, mean in zip(first["curve"], means, strict=True)],
    }


def table(claims: list[dict]) -> str:
    """What was trained and how far it came, best first."""
    form = "{:<11} {:<11} {:>7} {:>8} {:>6} {:>7} {:>9} {:>7} {:>6}  {}"
    lines = [
        form.format("recipe", "feed", "params", "s/step", "steps", "passes", "PFLOP", "test %", "spread", "stated")
    ]
    for c in sorted(claims, key=lambda c: -c["value"]):
        cells = f"{c['parameters'] / 1e6:.2f}M {c['measured']['seconds_per_step']:.3g} {c['steps']} {c['passes']:.2f}"
        cells += f" {c['train_flops'] / 1e15:.3g} {c['value']:.2f} {c['spread']:.2f}"
        lines.append(form.format(c["recipe"], c["variant"], *cells.split(), c["published"]).rstrip())
    return "\n".join(lines)


def publish(claims: list[dict], *, store: bool) -> None:
    """Prints; with `store`, puts the claims beside the stored ones of other runs, and draws those of five minutes."""
    report.publish("time_to_accuracy", claims, store=store, keep_others=True)
    print("", table(claims), sep="\n")
    if store and claims[0]["minutes"] == DRAWN_MINUTES:
        record_results.time_figure(DRAWN_MINUTES).savefig(FIGURE, dpi=100)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="training time of every run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--peers", nargs="+", choices=[OURS, *PEERS], help="default all; quick: ours and tintn")
    parser.add_argument("--feeds", nargs="+", choices=FEEDS, default=FEEDS)
    parser.add_argument("--preset", choices=RECIPES, default="cpu_5min", help="our recipe, stretched like the others")
    parser.add_argument("--threads", type=int, help="CPU threads; the default is torch's own choice")
    parser.add_argument("--folder", type=Path, help="where times and results are kept")
    parser.add_argument("--measure", action="store_true", help="time the steps that have not been timed, and stop")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.minutes > 0:
        parser.error(f"--minutes {options.minutes:g} must be more than 0")
    if options.quick:
        options.peers = options.peers or [OURS, "tintn"]
        options.preset, options.minutes, options.seeds = "quick", 0.005, options.seeds[:1]
    options.peers = options.peers or [OURS, *PEERS]
    options.folder = options.folder or (QUICK_FOLDER if options.quick else FOLDER)
    return options


def main() -> None:
    report.hide_gpus()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the process of a run as well
    options = parse()
    if options.threads:
        torch.set_num_threads(options.threads)
    keys = [(name, v) for name in options.peers for v in ([options.preset] if name == OURS else options.feeds)]
    runs = {key: [Run(*key, seed, options) for seed in options.seeds] for key in keys}
    every = [of_key[i] for i in range(len(options.seeds)) for of_key in runs.values()]  # seed after seed
    if options.child:
        (run,) = every
        run.measure() if options.measure else run.train()
        return
    for run in (every[0].base, *every[: len(runs)]):
        if run.measured is None and not start(run, "--measure"):
            sys.exit(f"could not time {run.key}")
    if options.measure:
        return
    failed = [run for run in every if (options.quick or run.result() is None) and not start(run)]
    runs = {key: of_key for key, of_key in runs.items() if not {*of_key} & {*failed}}
    if not options.quick:  # what other days have trained is part of the claim
        runs = {key: with_other_seeds(of_key) for key, of_key in runs.items()}
    claims = [claim_of(of_key, [run.result() for run in of_key]) for of_key in runs.values()]
    if claims:
        publish(claims, store=not options.quick)
    if failed:
        sys.exit(f"failed: {', '.join(run.path.stem for run in failed)}")


if __name__ == "__main__":
    main()
