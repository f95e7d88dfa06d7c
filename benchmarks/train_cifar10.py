"""What `make train` reaches: test accuracy over several seeds, and peak memory. (Its time: make_train.py.)

    python benchmarks/train_cifar10.py                    seeds 0, 1 and 2, one after another
    python benchmarks/train_cifar10.py --seeds 1 --threads 1
    python benchmarks/train_cifar10.py --quick            seconds, on the built-in set; stores nothing

Every seed runs in a process of its own, with the notebook's default model and recipe, and is kept under
runs/benchmark-train-cifar10/; a seed that is already there for the same settings is not run again.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
import report

import vit
from vit.training.run_folder import runs_root, write_json

RUNS = runs_root() / "benchmark-train-cifar10"
RECIPE = "cpu_10min"


def settings_of(seed: int, *, quick: bool) -> dict:
    """The network and the training of a seed, as JSON has them."""
    model_config, config = vit.recipe("quick" if quick else RECIPE, seed=seed)
    return json.loads(json.dumps({"model": model_config.to_dict(), "train": config.to_dict()}))


def is_of(settings: dict, file: Path) -> bool:
    """Whether there is such a file, and what it holds is of these settings."""
    return file.exists() and report.up_to_date(json.loads(file.read_text())["settings"]) == settings


def make_room(folder: Path) -> None:
    """A new empty folder; one of other settings is moved aside, since it may hold hours of work."""
    if folder.exists():
        folder.rename(folder.with_name(f"{folder.name}-{time.strftime('%Y%m%d-%H%M%S')}"))
    folder.mkdir(parents=True)


def stored_seeds() -> list[int]:
    """The seeds of the claims that are stored, which claims of fewer would take the place of."""
    try:
        return report.load("train_cifar10")["test_accuracy"]["seeds"]
    except FileNotFoundError:
        return []


def run_seed(seed: int, folder: Path, *, quick: bool) -> dict:
    """Trains one network and tests it once; returns what a claim needs of it."""
    model_config, config = vit.recipe("quick" if quick else RECIPE, seed=seed)
    data = vit.load_data("shapes", num_train=500, num_val=100, num_test=100) if quick else vit.load_data("cifar10")
    torch.manual_seed(seed)
    model = vit.VisionTransformer(model_config)
    train_loader, val_loader = vit.make_loaders(data, config)
    history = vit.fit(model, train_loader, val_loader, config, run_dir=folder, resume="auto")
    if not history.is_complete:
        sys.exit(f"seed {seed} was stopped: it goes on next time")
    test = vit.evaluate(model, vit.make_eval_loader(data, data.test), config)
    flip = vit.evaluate(model, vit.make_eval_loader(data, data.test), config, test_time_augmentation="flip")
    result = {
        "settings": settings_of(seed, quick=quick),
        **report.origin(),
        "threads": torch.get_num_threads(),
        "test_accuracy": test.accuracy,
        "test_accuracy_flip": flip.accuracy,
        "val_accuracy": history.last["val_accuracy"],
        "train_seconds": history.last["seconds"],
        "peak_memory_gb": report.peak_memory() / 1e9,
    }
    write_json(folder / "result.json", result)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, help="CPU threads; the default is torch's own choice")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--one", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.one:
        run_seed(options.seeds[0], options.one, quick=options.quick)
        return
    results = []
    for seed in options.seeds:
        folder = RUNS / f"{'quick' if options.quick else RECIPE}-seed{seed}"
        settings = settings_of(seed, quick=options.quick)
        if options.quick or not is_of(settings, folder / "result.json"):
            if options.quick or not is_of(settings, folder / "begun.json"):
                if options.quick:
                    shutil.rmtree(folder, ignore_errors=True)  # seconds of work
                make_room(folder)
                write_json(folder / "begun.json", {"settings": settings})
            threads = ["--threads", str(options.threads)] if options.threads else []
            quick = ["--quick"] if options.quick else []
            command = [sys.executable, __file__, "--seeds", str(seed), "--one", str(folder), *threads, *quick]
            subprocess.run(command, check=True)
        results.append(json.loads((folder / "result.json").read_text()))
    names = {"test_accuracy": "%", "test_accuracy_flip": "%", "val_accuracy": "%", "peak_memory_gb": "GB"}
    command = "python benchmarks/train_cifar10.py"
    facts = {"threads": [r["threads"] for r in results], "settings": settings_of(0, quick=options.quick)}
    claims = [
        report.claim(name, [r[name] for r in results], unit, command, seeds=options.seeds, origins=results) | facts
        for name, unit in names.items()
    ]
    fewer = not options.quick and set(stored_seeds()) - set(options.seeds)
    report.publish("train_cifar10", claims, store=not options.quick and not fewer)
    if fewer:
        print(f"not stored: there are claims of seeds {stored_seeds()}; name all of them with --seeds")


if __name__ == "__main__":
    main()
