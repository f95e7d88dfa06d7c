"""The best accuracy of a plain ViT on CIFAR-10 in 10 and in 30 minutes of one GPU, from the training images alone.

    python benchmarks/record.py --ceiling            what the card can do, and how much of it a step uses
    python benchmarks/record.py --timm               the time of a step beside timm's
    python benchmarks/record.py --probe              90 seconds each: patches of 2 pixels, half of them, or of 4?
    python benchmarks/record.py --minutes 10 --val   to choose settings, on 5,000 images left out of the training
    python benchmarks/record.py --minutes 10         supervised; --network vit_gpu_patch4_32 if the probe says so
    python benchmarks/record.py --minutes 30         the control of the next
    python benchmarks/record.py --minutes 30 --pretrain mae     a third of the time without labels first
    python benchmarks/record.py --quick              seconds, on a CPU, with the built-in set; stores nothing

benchmarks/on_gpu.py runs all of these but --val, in the order that tells most, and speedrun.py. A command ends before
--minutes-per-command are over, with exit status 75 while something is left: start the same one again, and it goes on.

The budget covers everything, from the start of each process until it stops or the accuracy is known: imports,
compiling, planning, saving and the test. A seed is a process of its own; the first of a recipe compiles, later ones
find on disk what it has compiled. How many epochs fit is measured once, when a stage begins, and the learning rate is
zero at their end. What is tested, once for a seed, is the last step's average of the weights, with the mean over an
image and its mirror image, and plain beside it. No teacher, no other data. Each result is stored at once, in
results/record_runs/, which may be carried from machine to machine; weights stay in the folder of the run. One file,
long for its protocol; what --ceiling and --timm measure is in ceiling.py.

On a machine without this package installed, `PYTHONPATH=$PWD`; without git, the commit in `VIT_COMMIT`.
"""

import argparse
import json
import math
import os
import shutil
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent))
import ceiling
import libraries
import report
from speedrun import STOPPING, UNFINISHED, is_stored, load, process_start, stored_seeds

import vit
from vit.data import DataSplits, Split
from vit.device import resolve_device
from vit.tasks.mae import MaskedAutoencoder, reconstruction_loss, to_classifier
from vit.training import build_optimizers
from vit.training.losses import LossFn
from vit.training.run_folder import runs_root, write_json

RUNS = runs_root() / "benchmark-record"
KEPT = report.RESULTS / "record_runs"
PROBE_SECONDS = 90.0  # of training
# Seconds kept free when epochs are planned: for the test, and for every command that will have to start anew.
TEST_RESERVE, COMMAND_RESERVE = 20.0, 45.0
PLANNING = 120.0  # seconds that have to be left in a command for a stage to begin
# Of the seconds that are left for epochs; the rest is for saves, and for a card that gets slower as it gets warm.
PLANNED_SHARE = 0.94
STARTED = process_start()

# Each with the share of the patches that is dropped in the first part of the training.
NETWORKS = {"vit_gpu_patch2_32": 0.5, "vit_gpu_patch4_32": 0.0}
# Starting points that no run has tested yet. The epochs are planned, and the warm-up is a share of them.
SUPERVISED = vit.TrainConfig.preset("gpu_10min", test_time_augmentation="flip")
PRETRAINING = replace(
    SUPERVISED, weight_decay=0.05, flat_until=0.0, ema_decay=0.0, patch_drop_rate=0.0, auto_augment="none",
    cutmix_alpha=0.0, mix_until=1.0,
)  # fmt: skip
FINE_TUNING = replace(
    SUPERVISED, learning_rate=SUPERVISED.learning_rate / 2, muon_learning_rate=SUPERVISED.muon_learning_rate / 2
)
LAYER_DECAY = 0.75
PRETRAINING_SHARE = 1 / 3  # of the time
QUICK = {"device": "cpu", "compile": False, "batch_size": 50, "precision": "fp32"}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training of a run: what is learned, how, and for which share of the time that is left when it begins."""

    name: str
    config: vit.TrainConfig
    share: float
    loss_fn: LossFn | None = None
    layer_decay: float = 1.0


def up_to_date(settings: dict) -> dict:
    """As `report.up_to_date`, of every stage."""
    return report.up_to_date(settings) | {"stages": [report.up_to_date(stage) for stage in settings["stages"]]}


class Run:
    """One recipe, one budget, one seed: its folder, its clock, and what came out."""

    def __init__(self, seed: int, options: argparse.Namespace) -> None:
        self.seed, self.options = seed, options
        network = vit.ViTConfig.preset(options.network)
        self.network = vit.ViTConfig.preset("vit_pico_patch8_32", depth=1, pool="mean") if options.quick else network
        changes = {"seed": seed} | (QUICK if options.quick else {})
        drop = {"patch_drop_rate": NETWORKS[options.network]}
        self.stages = [Stage(name="train", config=replace(SUPERVISED, **changes, **drop), share=1.0)]
        if options.pretrain == "mae":
            before, after = replace(PRETRAINING, **changes), replace(FINE_TUNING, **changes, **drop)
            self.stages = [
                Stage(name="pretrain", config=before, share=PRETRAINING_SHARE, loss_fn=reconstruction_loss),
                Stage(name="train", config=after, share=1.0, layer_decay=LAYER_DECAY),
            ]
        self.name = f"{'supervised' if options.pretrain == 'none' else options.pretrain}.{options.minutes:g}min"
        kind = "quick" if options.quick else "val" if options.val else "test"
        self.folder = RUNS / kind / f"{self.name}-{options.network}-seed{seed}"
        stages = [{"train": stage.config.to_dict()} for stage in self.stages]
        self.settings = json.loads(json.dumps({"model": self.network.to_dict(), "stages": stages}))

    def path(self, file: str) -> Path:
        """Where a file is: the result of a GPU's test beside those of other machines, all else in the folder."""
        is_kept = file == "result.json" and is_stored(self.options)
        return KEPT / f"{self.folder.name}.json" if is_kept else self.folder / file

    def stored(self, file: str) -> dict | None:
        """What a file holds, if it is of these settings."""
        path = self.path(file)
        found = json.loads(path.read_text()) if path.exists() else {}
        return found["values"] if found and up_to_date(found["settings"]) == self.settings else None

    def store(self, file: str, values: dict | list) -> None:
        write_json(self.path(file), {"settings": self.settings, "values": values})

    @property
    def seconds(self) -> float:
        """What the run has taken so far, in all its commands."""
        return sum(self.stored("clock.json") or []) + time.time() - STARTED

    def advance(self, deadline: float) -> bool:
        """Goes on until it is over or, in seconds since the epoch, has to stop; whether it is over."""
        if self.stored("running.json"):
            sys.exit(f"a command of {self.name} was killed and its time is lost: delete {self.folder} and start again")
        self.store("running.json", {"since": STARTED})
        try:
            return self._advance(deadline)
        finally:
            self.store("clock.json", [*(self.stored("clock.json") or []), time.time() - STARTED])
            (self.folder / "running.json").unlink()

    def _advance(self, deadline: float) -> bool:
        data, measured = load(quick=self.options.quick, val=self.options.val)
        torch.manual_seed(self.seed)
        model, epochs, flops = vit.VisionTransformer(self.network), {}, 0
        if self.options.pretrain == "mae":
            # Nothing more is dropped where a quarter of the patches is left.
            autoencoder = MaskedAutoencoder(replace(self.network, drop_path_rate=0.0))
            operations = libraries.forward_operations(autoencoder, self.network)
            config = self.train(self.stages[0], autoencoder, data, deadline)
            if config is None:
                return False
            epochs["pretrain"] = config.epochs
            flops += round(3 * operations * config.epochs * len(data.train))
            model = to_classifier(autoencoder, self.network)
        config = self.train(self.stages[-1], model, data, deadline)
        if config is None:
            return False
        epochs["train"] = config.epochs
        drop = {"patch_drop_rate": config.patch_drop_rate, "patch_drop_until": config.patch_drop_until}
        counted = vit.VisionTransformer(self.network)  # on the CPU
        flops += vit.train_flops(counted, round(config.epochs * len(data.train)), **drop)
        self.finish(model, config, data, measured, {"epochs": epochs, "train_flops": flops})
        return True

    def train(self, stage: Stage, model: nn.Module, data: DataSplits, deadline: float) -> vit.TrainConfig | None:
        """A stage, or the next part of it, or, where it is over, its weights: its config, or None if it was stopped."""
        if (
            self.stored(f"plan-{stage.name}.json") is None
            and deadline - time.time() < PLANNING
            and not self.options.quick
        ):
            return None
        folder, config = self.folder / stage.name, self.plan(stage, model, data)
        history = vit.fit(
            model,
            vit.make_loaders(data, config)[0],
            None,
            config,
            run_dir=folder,
            resume="auto",
            loss_fn=stage.loss_fn,
            make_optimizers=partial(build_optimizers, layer_decay=stage.layer_decay),
            should_stop=lambda: time.time() > deadline,
            save_seconds=float("inf"),  # a command that is killed is lost anyway, since its time is
        )
        return config if history.is_complete else None

    def plan(self, stage: Stage, model: nn.Module, data: DataSplits) -> vit.TrainConfig:
        """The stage's config with as many epochs as fit into its share of the time that is left; stored, so that a
        resumed run keeps to it."""
        file = f"plan-{stage.name}.json"
        planned = self.stored(file)
        if planned is None:
            shutil.rmtree(self.folder / stage.name, ignore_errors=True)  # of other settings
            loader = vit.make_loaders(data, stage.config)[0]
            probe = {"minutes": 60, "probe_seconds": 0.1 if self.options.quick else 10.0, "loss_fn": stage.loss_fn}
            an_hour = vit.for_budget(model, loader, None, stage.config, **probe).epochs
            seconds = PLANNED_SHARE * stage.share * self.seconds_to_train()
            epochs = 2.0 if self.options.quick else math.floor(100 * an_hour * seconds / 3600) / 100
            if epochs * len(loader) < 1:
                sys.exit(f"{self.name}: {seconds:.0f} s are left for {stage.name}, not enough for a step")
            planned = {"epochs": epochs, "seconds": seconds}
            self.store(file, planned)
        return stage.config.with_epochs(planned["epochs"])

    def seconds_to_train(self) -> float:
        """What is left of the minutes, less what will be needed for other things."""
        left, gone = 60 * self.options.minutes - self.seconds, time.time() - STARTED
        of_command = 60 * self.options.minutes_per_command
        in_parts = left - TEST_RESERVE - COMMAND_RESERVE * math.floor((gone + left) / of_command)
        at_once = min(left, of_command - gone) - TEST_RESERVE  # more, if little is left for another command
        return max(in_parts, at_once)

    def finish(self, model: nn.Module, config: vit.TrainConfig, data: DataSplits, measured: Split, facts: dict) -> None:
        """Tests, and stores the result and the weights."""
        loader = vit.make_eval_loader(data, measured, device=config.device)
        accuracy = vit.evaluate(model, loader, config).accuracy
        seconds = self.seconds
        plain = vit.evaluate(model, loader, config, test_time_augmentation="none").accuracy
        curves = {}
        for stage in self.stages:
            rows = vit.training.History.load_csv(self.folder / stage.name / "history.csv").rows
            some = rows[:: -math.ceil(len(rows) / 100)][::-1]  # a hundred, the last among them
            curves[stage.name] = [{name: row[name] for name in ("epoch", "train_loss", "seconds")} for row in some]
        facts |= {"accuracy": accuracy, "accuracy_plain": plain, "seconds": seconds, "curves": curves}
        facts |= {"parameters": vit.count_parameters(model), "commands": len(self.stored("clock.json") or []) + 1}
        facts |= report.origin()
        model.metadata = data.metadata
        vit.save(model, self.folder / "model.safetensors", accuracy=round(accuracy, 2))
        self.store("result.json", facts)


def claims_of(runs: list[Run], options: argparse.Namespace) -> list[dict]:
    """Accuracy and time of one recipe and budget, over its seeds."""
    results, seeds = [run.stored("result.json") for run in runs], [run.seed for run in runs]
    command = f"python benchmarks/record.py --minutes {options.minutes:g} --network {options.network}"
    command += "" if options.pretrain == "none" else f" --pretrain {options.pretrain}"
    longest = max(result["seconds"] for result in results)
    facts = {
        "minutes": options.minutes,
        "is_within": longest <= 60 * options.minutes,
        "network": options.network,
        "test_time_augmentation": SUPERVISED.test_time_augmentation,
        "settings": runs[0].settings,
        **{name: results[0][name] for name in ("parameters", "train_flops", "commands", "curves")},
        "epochs": [result["epochs"] for result in results],
    }
    units = {"accuracy": "%", "accuracy_plain": "%", "seconds": "s"}
    name = f"{runs[0].name}.{options.network}"
    return [
        report.claim(f"{name}.{key}", [r[key] for r in results], unit, command, seeds=seeds, origins=results) | facts
        for key, unit in units.items()
    ]


def probe(options: argparse.Namespace) -> list[dict]:
    """Validation accuracy of both networks after the same seconds of training."""
    claims = []
    for network, drop in NETWORKS.items():
        file = RUNS / ("quick" if options.quick else "val") / f"probe-{network}.json"
        config = replace(SUPERVISED, patch_drop_rate=drop, **(QUICK if options.quick else {}))
        settings = {"model": vit.ViTConfig.preset(network).to_dict(), "train": config.to_dict()}
        settings = json.loads(json.dumps(settings | {"seconds": PROBE_SECONDS}))
        found = json.loads(file.read_text()) if file.exists() and not options.quick else {}
        if not found or report.up_to_date(found["settings"]) != settings:
            found = probe_network(network, config, options) | {"settings": settings}
            write_json(file, found)
        command, facts = "python benchmarks/record.py --probe", {k: found[k] for k in ("epochs", "train_seconds")}
        claims.append(report.claim(f"probe.{network}", [found["accuracy"]], "%", command, seeds=[0]) | facts)
    return claims


def probe_network(network: str, config: vit.TrainConfig, options: argparse.Namespace) -> dict:
    """Trains one for `PROBE_SECONDS`, compiled before."""
    data, measured = load(quick=options.quick, val=True)
    torch.manual_seed(config.seed)
    quick = vit.ViTConfig.preset("vit_pico_patch8_32", depth=1)
    model = vit.VisionTransformer(quick if options.quick else vit.ViTConfig.preset(network))
    loader = vit.make_loaders(data, config)[0]
    if options.quick:
        config = replace(config, epochs=1, warmup_epochs=0.0)
    else:
        config = vit.for_budget(model, loader, None, config, minutes=PROBE_SECONDS / 60)
        # The average reaches as far back as in a long run, as a share of it.
        config = replace(config, ema_decay=1 - (1 - SUPERVISED.ema_decay) * SUPERVISED.epochs / config.epochs)
    began = time.perf_counter()
    if not vit.fit(model, loader, None, config).is_complete:
        sys.exit("stopped: the probe starts anew next time")
    seconds = time.perf_counter() - began
    test = vit.evaluate(model, vit.make_eval_loader(data, measured, device=config.device), config)
    return {"accuracy": test.accuracy, "epochs": config.epochs, "train_seconds": seconds}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--ceiling", action="store_true", help="measure the card and a step, train nothing")
    what.add_argument("--timm", action="store_true", help="time a step of the same network in timm beside it")
    what.add_argument("--probe", action="store_true", help="train two networks for 90 seconds each")
    parser.add_argument("--minutes", type=float, default=10.0, help="of everything, for a seed")
    parser.add_argument("--pretrain", choices=("none", "mae"), default="none")
    parser.add_argument("--network", choices=NETWORKS, default="vit_gpu_patch2_32")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--val", action="store_true", help="choose settings: no test image is looked at")
    parser.add_argument("--minutes-per-command", type=float, default=9.5)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if not options.quick and min(options.minutes, options.minutes_per_command) < 4:
        parser.error("--minutes and --minutes-per-command must be 4 or more: compiling and planning take some of them")
    return options


def main() -> None:
    options = parse()
    os.environ.setdefault("VIT_PROGRESS", "none")  # a bar makes the card wait where it shows the loss
    device = torch.device("cpu") if options.quick else resolve_device()
    publish = partial(report.publish, store=is_stored(options), keep_others=True)
    if options.ceiling:
        data, _ = load(quick=options.quick, val=True)
        publish("record_ceiling", ceiling.measure_epochs(data, device, quick=options.quick))
        return
    if options.timm:
        if claims := ceiling.measure_against_timm(device, quick=options.quick):
            publish("record_ceiling", claims)
        return
    if options.probe:
        publish("record_probe", probe(options))
        return
    deadline = STARTED + 60 * options.minutes_per_command - STOPPING
    runs = [Run(seed, options) for seed in options.seeds]
    if left := [run for run in runs if run.stored("result.json") is None]:
        run = left[0]
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(RUNS / "compiled" / f"{run.name}-{options.network}"))
        is_done = run.advance(deadline)
        left = left[1:] if is_done else left
    # With what earlier commands have stored of other seeds.
    seeds = {*options.seeds, *stored_seeds(KEPT, f"{runs[0].name}-{options.network}", options)}
    runs = [Run(seed, options) for seed in sorted(seeds)]
    if done := [run for run in runs if run.stored("result.json") is not None]:
        publish("record", claims_of(done, options))
    if left:
        print(f"{left[0].name}, seed {left[0].seed} is to come: start the same command again")
        sys.exit(UNFINISHED)


if __name__ == "__main__":
    main()
