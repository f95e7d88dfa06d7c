"""Seconds to 90, 93, 95 and 96 % test accuracy on CIFAR-10: a plain ViT, from scratch, labels only, on one GPU.

    python benchmarks/speedrun.py                            every target, seeds 0 to 4
    python benchmarks/speedrun.py --targets 90 --seeds 0     some of it; what is there already is not run again
    python benchmarks/speedrun.py --val --targets 90 --seeds 0     to choose settings; see below
    python benchmarks/speedrun.py --quick                    seconds, on a CPU, with the built-in set; stores nothing

A command ends before --minutes-per-command are over, with exit status 75 while something is left: start it again to go
on. On a GPU each run is stored as soon as it is tested, in results/speedrun_runs/, which may be carried from machine to
machine; the claims are made of all that are there, and whole with five seeds.

What is timed. Each seed has a process and two clocks, and both end when the accuracy on all test images is known.
"from_process_start" begins with the process: imports, reading the data, compiling, training, test. "from_first_step"
begins, as in Jordan's airbench, with new weights and the data on the GPU, after the same steps have been compiled and
run on weights that are thrown away. The first seed of a target compiles, later ones find on disk what it has compiled.
A run that is longer than a command is kept in parts; saving them is on the clock.
A target is reached if the mean over all seeds that have a result is at least that accuracy; a command ends at a seed
that fails.

What is trained. `RECIPES`, below. Settings are chosen with --val, which trains on 45,000 images and measures on the
other 5,000, and is not told of the test images. Without it all 50,000 are trained on, and the last step's weights, or
their average where the recipe has one, are tested; the accuracy that counts is with the mean over an image and its
mirror image, the plain one is given too. One file, long for that: it is the protocol.
"""

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
import report

import vit
from vit.data import DataSplits, Split
from vit.device import resolve_device, wait_for_device
from vit.training.run_files import holds_state
from vit.training.run_folder import runs_root, write_json

RUNS = runs_root() / "benchmark-speedrun"
KEPT = report.RESULTS / "speedrun_runs"
MIN_SEEDS = 5
UNFINISHED = 75  # exit status of a command that has to be started again
WARM_UP_STEPS = 3  # of each phase
STARTUP = 180.0  # seconds that a process may take beside its training, compiling included
STOPPING = 15.0  # seconds that a stop may take, its save included


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A network and how it is trained to reach a target; `seconds` is what that should take from the first step."""

    model: vit.ViTConfig
    train: vit.TrainConfig
    seconds: float

    @property
    def in_parts(self) -> bool:
        """Whether it may be stopped and go on in the next command, for which its state is saved."""
        return self.seconds > 300


PATCH4 = vit.ViTConfig.preset("vit_gpu_patch4_32", depth=8, drop_path_rate=0.0)
PATCH2 = vit.ViTConfig.preset("vit_gpu_patch2_32")
LONG = vit.TrainConfig.preset("gpu_10min", test_time_augmentation="flip")
# Batches of 500 for more steps, and no average: of a short run it would reach too far back.
SHORT = replace(LONG, batch_size=500, ema_decay=0.0, auto_augment="none", cutmix_alpha=0.0, mix_until=1.0)
# Starting points that no run has tested yet: epochs are guesses of what the seconds allow.
RECIPES = {
    90: Recipe(model=PATCH4, train=replace(SHORT, epochs=20, warmup_epochs=1.0, flat_until=0.3), seconds=20),
    93: Recipe(
        model=PATCH4,
        train=replace(SHORT, epochs=50, warmup_epochs=2.0, auto_augment="trivial", cutmix_alpha=1.0, mix_until=0.92),
        seconds=60,
    ),
    95: Recipe(model=PATCH2, train=replace(LONG, epochs=50, warmup_epochs=1.5, ema_decay=0.997), seconds=180),
    96: Recipe(model=PATCH2, train=LONG, seconds=600),
}
QUICK = Recipe(
    model=vit.ViTConfig.preset("vit_pico_patch8_32", depth=1),
    train=vit.TrainConfig.preset("quick", patch_drop_rate=0.5, cutmix_alpha=1.0, mix_until=0.9, device="cpu"),
    seconds=1,
)


def with_all_training_images(data: DataSplits) -> DataSplits:
    """The same data with the validation images among those to train on, and none to validate with but the test's."""
    images, labels = (torch.cat([getattr(s, part) for s in (data.train, data.val)]) for part in ("images", "labels"))
    return replace(data, train=Split(images, labels), val=data.test)


def load(*, quick: bool, val: bool) -> tuple[DataSplits, Split]:
    """What to train on, and what to measure on in the end."""
    data = vit.load_data("shapes", num_train=400, num_val=100, num_test=100) if quick else vit.load_data("cifar10")
    return (data, data.val) if val else (with_all_training_images(data), data.test)


def warm_up(model: torch.nn.Module, data: DataSplits, config: vit.TrainConfig) -> None:
    """Compiles and runs all that a run will need, on a copy of the model: steps with and without dropped patches, and
    an evaluation, of training images."""
    steps_per_epoch = len(vit.make_loaders(data, config)[0])
    short = replace(
        config, epochs=2 * WARM_UP_STEPS / steps_per_epoch, warmup_epochs=0.0, patch_drop_until=0.5, mix_until=1.0
    )
    model = copy.deepcopy(model)
    vit.fit(model, vit.make_loaders(data, short)[0], None, short)
    some = data.train.subset(slice(500))
    vit.evaluate(model, vit.make_eval_loader(data, some, device=config.device), config)


def train_and_test(
    recipe: Recipe,
    seed: int,
    folder: Path,
    options: argparse.Namespace,
    should_stop: Callable[[], bool],
) -> dict | None:
    """One run, or the next part of it; None if it was stopped."""
    config = replace(recipe.train, seed=seed)
    data, measured = load(quick=options.quick, val=options.val)
    torch.manual_seed(seed)
    model = vit.VisionTransformer(recipe.model)
    loader = vit.make_loaders(data, config)[0]
    eval_loader = vit.make_eval_loader(data, measured, device=config.device)
    warm_up(model, data, config)
    wait_for_device()
    first_step = time.perf_counter()
    kept = {}
    if recipe.in_parts:
        kept = {"run_dir": folder, "resume": "auto", "save_seconds": float("inf")}
    clock, test = folder / "clock.json", None
    parts = json.loads(clock.read_text()) if recipe.in_parts and clock.exists() else []
    try:
        history = vit.fit(model, loader, None, config, should_stop=should_stop, **kept)
        if history.is_complete:
            test = vit.evaluate(model, eval_loader, config)
    finally:  # however the part ends, its time counts
        now = {"from_first_step": time.perf_counter() - first_step, "from_process_start": time.time() - process_start()}
        parts.append(now)
        if recipe.in_parts:
            write_json(clock, parts)
    if test is None:
        return None
    if sum(part["from_first_step"] for part in parts) < history.last["seconds"]:
        sys.exit(f"a part of the run was killed and its time is lost: delete {folder} and start again")
    plain = vit.evaluate(model, eval_loader, config, test_time_augmentation="none")
    drop = {"patch_drop_rate": config.patch_drop_rate, "patch_drop_until": config.patch_drop_until}
    network = vit.VisionTransformer(recipe.model)  # on the CPU, where torch counts the same operations
    return {
        **{clock: sum(part[clock] for part in parts) for clock in ("from_first_step", "from_process_start")},
        "parts": len(parts),
        "accuracy": test.accuracy,
        "accuracy_plain": plain.accuracy,
        "parameters": vit.count_parameters(network),
        "train_flops": vit.train_flops(network, round(config.epochs * len(data.train)), **drop),
        **report.origin(),
    }


def process_start() -> float:
    """When this process was started, in seconds since the epoch; without Linux, where that is not known, now."""
    stat = Path("/proc/self/stat")
    if not stat.exists():
        return time.time()
    ticks = int(stat.read_text().rsplit(")", 1)[1].split()[19])  # since the machine was
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")


class Run:
    """One target and seed: its settings, its folder, and what is in it."""

    def __init__(self, target: int, seed: int, options: argparse.Namespace) -> None:
        self.target, self.seed, self.options = target, seed, options
        self.recipe = QUICK if options.quick else RECIPES[target]
        kind = "quick" if options.quick else "val" if options.val else "test"
        self.folder = RUNS / kind / f"{target}-seed{seed}"
        # The result: of a GPU's test beside those of other machines.
        name = f"{target}-seed{seed}.json"
        self.file = KEPT / name if is_stored(options) else self.folder / "result.json"
        settings = {"model": self.recipe.model.to_dict(), "train": self.recipe.train.to_dict(), "seed": seed}
        self.settings = json.loads(json.dumps(settings))

    def result(self) -> dict | None:
        """What is stored, if it is of these settings."""
        found = json.loads(self.file.read_text()) if self.file.exists() else {"settings": {}}
        return found["result"] if report.up_to_date(found["settings"]) == self.settings else None

    def start(self, seconds_left: float) -> bool:
        """Runs it in a process of its own; whether it came to its end."""
        command = [sys.executable, __file__, "--child"]
        command += [] if self.options.quick else ["--targets", str(self.target)]
        command += ["--seeds", str(self.seed), "--minutes-per-command", str(seconds_left / 60)]
        command += [flag for flag in ("--quick", "--val") if getattr(self.options, flag[2:])]
        env = {"VIT_PROGRESS": "none", "TORCHINDUCTOR_CACHE_DIR": str(RUNS / "compiled" / str(self.target))}
        status = subprocess.run(command, env=env | os.environ, check=False).returncode
        if status not in (0, UNFINISHED):
            sys.exit(f"target {self.target}, seed {self.seed} ended with status {status}")
        return status == 0

    def be_child(self) -> None:
        """What `start` runs in the other process."""
        self.folder.mkdir(parents=True, exist_ok=True)
        asked = self.folder / "settings.json"
        is_same = asked.exists() and report.up_to_date(json.loads(asked.read_text())) == self.settings
        is_begun = is_same and holds_state(self.folder)
        if not is_begun:  # nothing is there to go on with, or it is of another recipe
            for path in self.folder.iterdir():
                path.unlink()
        write_json(asked, self.settings)
        deadline = process_start() + 60 * self.options.minutes_per_command - STOPPING

        def should_stop() -> bool:
            return self.recipe.in_parts and time.time() > deadline

        result = train_and_test(self.recipe, self.seed, self.folder, self.options, should_stop)
        if result is None:
            sys.exit(UNFINISHED)
        write_json(self.file, {"settings": self.settings, "result": result})
        for state in self.folder.glob("state*.pt"):
            state.unlink()


def is_stored(options: argparse.Namespace) -> bool:
    """Whether results are to be kept: those of a GPU's tests."""
    return resolve_device().type == "cuda" and not options.quick and not options.val


def stored_seeds(folder: Path, name: str, options: argparse.Namespace) -> set[int]:
    """The seeds of which there is a result, also of other machines."""
    return report.seeds_in(folder, name) if is_stored(options) else set()


def runs_done(target: int, options: argparse.Namespace) -> list[Run]:
    """The runs of a target that have a result, of all seeds: those asked for, and those that are stored."""
    seeds = {*options.seeds, *stored_seeds(KEPT, str(target), options)}
    runs = [Run(target, seed, options) for seed in sorted(seeds)]
    return [run for run in runs if run.result() is not None]


def claims_of(runs: list[Run]) -> list[dict]:
    """The claims of one target: both clocks and the accuracy, over its seeds."""
    results, recipe = [run.result() for run in runs], runs[0].recipe
    accuracy = statistics.mean(result["accuracy"] for result in results)
    facts = {
        "target": runs[0].target,
        "is_reached": accuracy >= runs[0].target,
        "is_whole": len(runs) >= MIN_SEEDS,
        "mean_accuracy": round(accuracy, 4),
        "epochs": recipe.train.epochs,
        "test_time_augmentation": recipe.train.test_time_augmentation,
        "parameters": results[0]["parameters"],
        "train_flops": results[0]["train_flops"],
        "recipe": {"model": asdict(recipe.model), "train": asdict(recipe.train)},
    }
    units = {"from_first_step": "s", "from_process_start": "s", "accuracy": "%", "accuracy_plain": "%"}
    command = "python benchmarks/speedrun.py"
    sources = {"seeds": [run.seed for run in runs], "origins": results}
    return [
        report.claim(f"{runs[0].target}.{name}", [r[name] for r in results], unit, command, **sources) | facts
        for name, unit in units.items()
    ]


def table(claims: list[dict]) -> str:
    """A line a target."""
    by_name = {c["name"]: c for c in claims}
    form = "{:>6}  {:>9} {:>7}  {:>16} {:>15}  {:>7} {:>7}"
    lines = [form.format("target", "accuracy", "plain", "from first step", "process start", "passes", "PFLOP")]
    for target in dict.fromkeys(c["target"] for c in claims):
        accuracy, plain, step, start = (
            by_name[f"{target}.{name}"]
            for name in ("accuracy", "accuracy_plain", "from_first_step", "from_process_start")
        )
        seconds = f"{step['value']:.1f} ± {step['spread']:.1f} s", f"{start['value']:.1f} s"
        mark = "" if accuracy["is_reached"] else "  not reached"
        row = f"{accuracy['value']:.2f}", f"{plain['value']:.2f}", *seconds, f"{accuracy['epochs']:g}"
        lines.append(form.format(target, *row, f"{accuracy['train_flops'] / 1e15:.3g}") + mark)
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", type=int, nargs="+", choices=RECIPES, default=[*RECIPES])
    parser.add_argument("--seeds", type=int, nargs="+", default=[*range(MIN_SEEDS)])
    parser.add_argument("--val", action="store_true", help="choose settings: no test image is looked at")
    parser.add_argument("--minutes-per-command", type=float, default=9.5)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.targets, options.seeds = [0], options.seeds[:1]
    return options


def main() -> None:
    options = parse()
    runs = {target: [Run(target, seed, options) for seed in options.seeds] for target in options.targets}
    if options.child:
        runs[options.targets[0]][0].be_child()
        return
    unfinished = None
    for run in (of_target[i] for i in range(len(options.seeds)) for of_target in runs.values()):  # seed after seed
        if run.result() is not None and not options.quick:
            continue
        left = 60 * options.minutes_per_command - (time.time() - process_start())
        needed = STARTUP + (0 if run.recipe.in_parts else run.recipe.seconds)
        if left < needed or not run.start(left):
            unfinished = run
            break
    targets = RECIPES if is_stored(options) else options.targets
    claims = [c for target in targets if (done := runs_done(target, options)) for c in claims_of(done)]
    if claims:
        report.publish("speedrun", claims, store=is_stored(options))
        print("", table(claims), sep="\n")
    if unfinished:
        print(f"target {unfinished.target}, seed {unfinished.seed} is to come: start the same command again")
        sys.exit(UNFINISHED)


if __name__ == "__main__":
    main()
