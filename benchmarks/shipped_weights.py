"""Trains weights for the library to bring along: all that is known about them is in their metadata.

    python benchmarks/shipped_weights.py vit_nano_patch4_32.cifar10
    python benchmarks/shipped_weights.py vit_nano_patch4_32.shapes --threads 1 --ship

A run that was interrupted goes on where it stopped; it is kept in runs/shipped-<name>/, and so are the weights, with
--ship also in vit/pretrained/shipped/. Which of several networks is shipped is for their validation accuracy to say.
"""

import argparse
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import torch

import vit
from vit.data import keep_classes
from vit.pretrained.weights import SHIPPED
from vit.training.run_folder import current_commit, runs_root

sys.path.insert(0, str(Path(__file__).resolve().parent))
import report

RUNS = runs_root()
MODEL = vit.ViTConfig.preset("vit_nano_patch4_32")
# name: what to train on, the network, how
RECIPES = {
    "vit_nano_patch4_32.cifar10": (
        lambda: vit.load_data("cifar10"),
        MODEL,
        vit.TrainConfig(epochs=30, crop_padding=4, device="cpu"),
    ),
    "vit_fast6_wide_patch4_32.cifar10": (lambda: vit.load_data("cifar10"), *vit.recipe("cpu_2h", device="cpu")),
    # Half of the classes, for transfer to the others. Without label smoothing, which makes features transfer less: see
    # Kornblith et al., "Why Do Better Loss Functions Lead to Less Transferable Features?", NeurIPS 2021.
    "vit_nano_patch4_32.cifar10_0to4": (
        lambda: keep_classes(vit.load_data("cifar10"), range(5)),
        replace(MODEL, num_classes=5),
        vit.TrainConfig(
            epochs=12, label_smoothing=0.0, crop_padding=4, patch_drop_rate=0.5, patch_drop_until=0.8, device="cpu"
        ),
    ),
    "vit_nano_patch4_32.shapes": (
        lambda: vit.load_data("shapes", num_train=20_000, num_val=1000, num_test=2000),
        MODEL,
        vit.TrainConfig(epochs=6, device="cpu"),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("--threads", type=int, help="CPU threads; the default is torch's own choice")
    parser.add_argument("--ship", action="store_true", help="put them where the library finds them, in place of others")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    make_data, model_config, config = RECIPES[options.name]
    data = make_data()
    folder = RUNS / f"shipped-{options.name}"
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    model = vit.VisionTransformer(model_config)
    model.metadata = data.metadata
    train_loader, val_loader = vit.make_loaders(data, config)
    history = vit.fit(model, train_loader, val_loader, config, run_dir=folder, resume="auto")
    if not history.is_complete:
        sys.exit(f"{options.name} was stopped: it goes on next time")
    test = vit.evaluate(model, vit.make_eval_loader(data, data.test), config)
    drop = {"patch_drop_rate": config.patch_drop_rate, "patch_drop_until": config.patch_drop_until}
    train_flops = vit.train_flops(model, config.epochs * len(data.train), **drop)
    command = f"python benchmarks/shipped_weights.py {options.name}"
    path = vit.save(
        model,
        folder / f"{options.name}.safetensors",
        trained_on=f"{data.name}, {len(data.train)} images",
        test_accuracy=round(test.accuracy, 2),
        val_accuracy=round(history.last["val_accuracy"], 2),
        train_flops=train_flops,
        train_config=config.to_dict(),
        threads=torch.get_num_threads(),
        torch_version=torch.__version__,
        command=command,
        commit=current_commit(),
    )
    command += f" --threads {options.threads}" if options.threads else ""
    facts = {"train_flops": train_flops, "epochs": config.epochs, "threads": torch.get_num_threads()}
    facts |= {"settings": {"model": model_config.to_dict(), "train": config.to_dict()}}
    facts |= {"val_curve": list(history["val_accuracy"])}
    val_accuracy, seconds = history.last["val_accuracy"], history.last["seconds"]
    values = {"test_accuracy": (test.accuracy, "%"), "val_accuracy": (val_accuracy, "%"), "seconds": (seconds, "s")}
    claims = [
        report.claim(f"{options.name}.{name}", [value], unit, command, seeds=[config.seed]) | facts
        for name, (value, unit) in values.items()
    ]
    report.publish("shipped_weights", claims, keep_others=True)
    if options.ship:
        shutil.copyfile(path, SHIPPED / path.name)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
