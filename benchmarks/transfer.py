"""What a network that was trained on five classes of CIFAR-10 is worth on the other five, with a few images of each.

    python benchmarks/transfer.py                  all but the longest row, with 5 draws of the images; half an hour
    python benchmarks/transfer.py --compute 5      that row too, from scratch at equal total compute: up to 50 shots,
                                                   8 to 52 minutes a cell, 16 in the median
    python benchmarks/transfer.py --tune           the settings below, compared on validation images; stores nothing
    python benchmarks/transfer.py --quick          seconds, on the built-in shapes; stores nothing

Every accuracy is that of one network, after its last step, on all test images of the target classes; a claim is the
mean over the draws. Finished cells are kept in runs/transfer/, so an interrupted run goes on where it stopped; those of
the longest row, hours of work in all, also in results/transfer_cells/, so that another checkout goes on as well.
Fashion-MNIST, where it is installed, is the second target: a trap, since raw pixels do well there.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
import report
from transfer_methods import (
    FROZEN,
    LONG,
    STRENGTH,
    TRAINING,
    Experiment,
    accuracy,
    compute_accuracy,
    frozen_accuracy,
    of_images,
    trained_accuracy,
    training_config,
)

import vit
from vit import analysis, plots
from vit.data import keep_classes
from vit.files import REPOSITORY
from vit.tasks import fine_tuning
from vit.training.run_folder import runs_root, write_json

RUNS = runs_root() / "transfer"
WEIGHTS = "vit_nano_patch4_32.cifar10_0to4"
DRAWS = range(5)
STEPS = {1: 40, 5: 60, 10: 80, 50: 150, 500: 300}  # of all that is trained, but for equal total compute
MOST_SHOTS_OF_LONG = 50  # what the row is for: where images are few
KEPT_CELLS = report.RESULTS / "transfer_cells"
TUNING_DRAW = 100  # of the images that settings are compared on, with those of the val split

LABELS = {
    "pixels_nearest": "raw pixels, nearest neighbor",
    "pixels_knn": "raw pixels, kNN (cosine)",
    "pixels_probe": "raw pixels, probe",
    "knn": "features, kNN",
    "probe": "features, probe",
    "probe_48": "features at 48 pixels, probe",
    "finetune": "fine-tuned",
    "lora": "LoRA",
    "prompts": "visual prompts",
    "scratch_steps": "from scratch, equal steps",
    "scratch_compute": "from scratch, equal total compute",
}
DRAWN = [method for method in LABELS if method not in ("pixels_knn", "knn", "probe_48")]


def cell(
    method: str, experiment: Experiment, shots: int, draw: int, steps: int, *, is_optional: bool = False
) -> dict | None:
    """One cell of the table, its "accuracy" and where that comes from; read if it was measured with the same settings
    before, else measured, unless it is optional."""
    few = experiment.few(shots, draw)
    settings = {"weights": experiment.model.metadata.get("commit"), "steps": steps, "strength": STRENGTH.get(method)}
    if method in TRAINING:
        settings["train_config"] = training_config(method, len(few.train), steps, draw).to_dict()
        settings["layer_decay"] = TRAINING[method][1]
    settings = json.loads(json.dumps(settings))
    name = f"{experiment.name}-{method}-{shots}-{draw}"
    path = experiment.folder / f"{name}.json"
    for place in (path, KEPT_CELLS / path.name):
        if place.exists() and report.up_to_date((stored := json.loads(place.read_text()))["settings"]) == settings:
            return stored
    if is_optional:
        return None
    started = time.perf_counter()
    if method in FROZEN:
        found = frozen_accuracy(method, experiment, few)
    elif method == LONG:
        found = compute_accuracy(experiment, few, steps, draw, experiment.folder / name)
    else:
        found = trained_accuracy(method, experiment, few, steps, draw)
    content = {"accuracy": found, "seconds": time.perf_counter() - started, **report.origin(), "settings": settings}
    write_json(path, content)
    if method == LONG and experiment.folder == RUNS:
        KEPT_CELLS.mkdir(exist_ok=True)
        write_json(KEPT_CELLS / path.name, content)
    print(f"{name}: {found:.1f} %", flush=True)
    return content


def measure(
    experiment: Experiment, methods: list[str], steps: dict[int, int], *, compute: int, command: str
) -> list[dict]:
    """The claims of a table: methods in rows, shots (the keys of `steps`) in columns. The longest row is measured for
    `compute` draws, where there are few shots; more of them are shown if they are there."""
    fine_tuning.check_unseen(experiment.model, experiment.target)
    claims = []
    for method in methods:
        for shots, num_steps in steps.items():
            needed = DRAWS if method != LONG else range(compute if shots <= MOST_SHOTS_OF_LONG else 0)
            found = {d: cell(method, experiment, shots, d, num_steps, is_optional=d not in needed) for d in DRAWS}
            found = {draw: content for draw, content in found.items() if content is not None}
            if found:
                name, accuracies = f"{experiment.name}.{method}.{shots}", [c["accuracy"] for c in found.values()]
                origins = list(found.values())
                claims.append(report.claim(name, accuracies, "%", command, seeds=list(found), origins=origins))
    return claims


def table(claims: list[dict]) -> str:
    """Rows of methods and columns of shots, mean and deviation over the draws."""
    of = {tuple(c["name"].split(".")): c for c in claims}
    lines = []
    for target in dict.fromkeys(name for name, _, _ in of):
        columns = sorted({int(shots) for name, _, shots in of if name == target})
        lines.append(f"{target + ': shots of each class':<36}" + "".join(f"{shots:>15}" for shots in columns))
        for method in dict.fromkeys(m for name, m, _ in of if name == target):
            row = [of.get((target, method, str(shots))) for shots in columns]
            cells = [f"{c['value']:>8.1f} ± {c['spread']:<4.1f}" if c else " " * 15 for c in row]
            lines.append(f"{LABELS[method]:<36}" + "".join(cells))
    return "\n".join(lines)


def verdict(claims: list[dict]) -> list[str]:
    of = {c["name"]: c["value"] for c in claims}
    lines = []
    for target in dict.fromkeys(name.split(".")[0] for name in of):
        shots = [name.split(".")[2] for name in of if name.startswith(f"{target}.probe.")]
        best = [max(of[name] for m in LABELS if (name := f"{target}.{m}.{s}") in of and "pixels" in m) for s in shots]
        gains = ", ".join(f"{of[f'{target}.probe.{s}'] - pixels:+.1f}" for s, pixels in zip(shots, best, strict=True))
        lines.append(f"{target}: the probe against the best of raw pixels, points: {gains}")
    if "fashion_mnist.pixels_nearest.500" in of:
        easy = of["fashion_mnist.pixels_nearest.500"]
        lines.append(f"fashion_mnist is a trap: raw pixels alone are right in {easy:.0f} % of the cases at 500 shots")
    return lines


def picture(claims: list[dict]) -> None:
    """Draws the main table for the README."""
    curves = {LABELS[method]: {} for method in DRAWN}
    for c in claims:
        target, method, shots = c["name"].split(".")
        if target == "cifar10" and method in DRAWN:
            curves[LABELS[method]][int(shots)] = c["values"]
    drawn = {label: of_shots for label, of_shots in curves.items() if of_shots}
    figure = plots.plot_shots(drawn, chance=20, title="Five classes of CIFAR-10, learned after five others")
    figure.savefig(REPOSITORY / "docs" / "transfer.png", dpi=110)


def cifar_experiment() -> Experiment:
    cifar10, model = vit.load_data("cifar10"), vit.load(WEIGHTS)
    recipe = vit.TrainConfig.from_dict(model.metadata["train_config"])
    source, target = (keep_classes(cifar10, classes) for classes in (range(5), range(5, 10)))
    return Experiment("cifar10", model, recipe, len(source.train), target, RUNS)


def quick_experiment(folder: Path) -> Experiment:
    """A small network that has seen five of the shapes for a few seconds."""
    shapes = vit.load_data("shapes", num_train=400, num_val=50, num_test=100)
    source, target = keep_classes(shapes, range(5)), keep_classes(shapes, range(5, 10))
    recipe = vit.TrainConfig.preset("quick", device="cpu")
    torch.manual_seed(0)
    model = vit.VisionTransformer(vit.ViTConfig.preset("vit_pico_patch8_32", num_classes=5))
    model.metadata = source.metadata
    vit.fit(model, *vit.make_loaders(source, recipe), recipe)
    return Experiment("shapes", model, recipe, len(source.train), target, folder)


def tune(experiment: Experiment) -> None:
    """Prints the accuracy on validation images of a few settings, for images of another draw than the table's."""
    held_out = replace(experiment, target=replace(experiment.target, test=experiment.target.val))
    grid = {
        "finetune": [
            ({"learning_rate": r}, decay) for r, decay in ((2e-4, 0.75), (5e-4, 0.75), (1e-3, 0.75), (1e-3, 1))
        ],
        "lora": [({"learning_rate": rate}, 1) for rate in (5e-4, 1e-3, 3e-3, 1e-2)],
        "prompts": [({"learning_rate": rate}, 1) for rate in (1e-3, 3e-3, 1e-2, 3e-2)],
        "scratch_steps": [({}, 1), ({"optimizer": "adamw"}, 1), ({"optimizer": "adamw", "learning_rate": 1e-3}, 1)],
    }
    for shots in (10, 50):
        few = held_out.few(shots, TUNING_DRAW)
        for method in ("pixels_probe", "probe"):
            for strength in (0.001, 0.01, 0.1, 1.0):
                x, y = (of_images(method, held_out, split.images) for split in (few.train, few.test))
                probabilities = analysis.linear_probe(x, few.train.labels, y, strength=strength)
                found = accuracy(probabilities, few.test.labels)
                print(f"{shots} shots, {method}, strength {strength:g}: {found:.1f}", flush=True)
        for method, settings in grid.items():
            for changes, decay in settings:
                steps = STEPS[shots]
                found = trained_accuracy(method, held_out, few, steps, TUNING_DRAW, layer_decay=decay, **changes)
                print(f"{shots} shots, {method}, {changes}, layer_decay {decay}: {found:.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compute", type=int, default=0, metavar="DRAWS", help="draws of the longest row")
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    report.hide_gpus()
    torch.set_num_threads(1)
    methods = [*FROZEN, *TRAINING, LONG]
    if options.quick:
        with tempfile.TemporaryDirectory() as folder:
            claims = measure(quick_experiment(Path(folder)), methods, {1: 3, 5: 4}, compute=1, command="")
    elif options.tune:
        tune(cifar_experiment())
        return
    else:
        experiment = cifar_experiment()
        command = f"python benchmarks/transfer.py --compute {options.compute}"
        claims = measure(experiment, methods, STEPS, compute=options.compute, command=command)
        try:
            fashion = vit.load_data("fashion_mnist")
        except FileNotFoundError as error:
            print(error)
        else:
            second = replace(experiment, name="fashion_mnist", target=fashion)
            of_it = ["pixels_nearest", "pixels_knn", "knn", "probe"]
            claims += measure(second, of_it, STEPS, compute=0, command=command)
    report.publish("transfer", claims, store=not options.quick, keep_others=True)  # Fashion-MNIST may be elsewhere
    if not options.quick:
        picture(claims)
    print("", table(claims), *verdict(claims), sep="\n")


if __name__ == "__main__":
    main()
