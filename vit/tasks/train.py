"""Trains a network from the command line, alone or in several processes, and stores its weights.

    python -m vit.tasks.train --run-dir runs/mine --set epochs=10 batch_size=128 depth=8
    python -m vit.tasks.train --run-dir runs/mine --data folder:my_pictures --set image_size=64
    python -m vit.launch --processes 2 -m vit.tasks.train --run-dir runs/mine --minutes 5
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 -m vit.tasks.train ...

The test images are not touched: `vit.evaluate` measures the weights that this leaves in the run folder.
"""

import argparse
import contextlib
import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from vit.config import RECIPES, TrainConfig, ViTConfig, recipe
from vit.data import DataSplits, load_data, make_loaders
from vit.data.cifar10 import DataUnavailableError
from vit.device import resolve_device
from vit.model import VisionTransformer
from vit.pretrained import save
from vit.training.budget import for_budget
from vit.training.distributed import processes
from vit.training.loop import fit
from vit.training.run_files import holds_state, refuse_existing


def prepare(options: argparse.Namespace) -> tuple[DataSplits, ViTConfig, TrainConfig]:
    """The data, network and training that are asked for; whatever is wrong with them is found here."""
    changes = dict(read_setting(setting) for setting in options.set)
    model_fields = {field.name for field in fields(ViTConfig)}
    of_model = {name: value for name, value in changes.items() if name in model_fields}
    of_train = {name: value for name, value in changes.items() if name not in model_fields}
    _, config = recipe(options.recipe, **of_train)
    resolve_device(config.device)
    if options.minutes is not None and not options.minutes > 0:
        raise ValueError(f"--minutes={options.minutes} must be more than 0")
    if os.environ.get("RANK", "0") == "0":  # the process that reads and writes the folder
        is_there = holds_state(options.run_dir)
        if options.resume is True and not is_there:
            raise FileNotFoundError(f"{options.run_dir} holds no run to go on with: leave out --resume")
        if not (options.resume and is_there):
            refuse_existing(options.run_dir)
    preset = options.model or RECIPES[options.recipe]
    if options.data.startswith("folder:"):
        size = of_model.get("image_size", ViTConfig.preset(preset).image_size)
        data = load_data("folder", path=options.data.removeprefix("folder:"), image_size=size)
    else:
        data = load_data(options.data)
    _, channels, *image_size = data.train.images.shape
    shape = {"image_size": tuple(image_size), "in_chans": channels, "num_classes": data.num_classes}
    network = ViTConfig.preset(preset, **(shape | of_model))
    for name, value in shape.items():
        if getattr(network, name) != value:
            raise ValueError(f"--set {name}={of_model[name]} does not fit {options.data}, which has {value}")
    return data, network, config


def train(options: argparse.Namespace, data: DataSplits, network: ViTConfig, config: TrainConfig) -> None:
    """What each process does."""
    with processes(config.device) as world:
        torch.manual_seed(config.seed)
        model = VisionTransformer(network)
        loaders = make_loaders(data, config)
        if options.minutes is not None:
            config = for_budget(model, *loaders, config, minutes=options.minutes)
            if world.is_first:
                print(f"{config.epochs} epochs fit into {options.minutes:g} minutes", flush=True)
        history = fit(model, *loaders, config, run_dir=options.run_dir, resume=options.resume)
        if world.is_first and history.is_complete:
            model.metadata = dict(data.metadata)
            save(model, options.run_dir / "model.safetensors")
            print(f"val accuracy {history.last['val_accuracy']:.2f} %, weights in {options.run_dir}")


def read_setting(text: str) -> tuple[str, Any]:
    """Name and value of "name=value": a number or a list as JSON has them; true, false or null, capital or not; or
    else a text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set {text!r} must be name=value, such as epochs=10")
    words = {"true": True, "false": False, "null": None}
    with contextlib.suppress(ValueError):
        value = words[value.lower()] if value.lower() in words else json.loads(value)
    return name, tuple(value) if isinstance(value, list) else value


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-dir", type=Path, required=True, help="folder for state, history and weights")
    resume_help = "go on with the run in that folder; auto: if there is one, else begin it"
    parser.add_argument("--resume", nargs="?", const=True, default=False, choices=["auto"], help=resume_help)
    parser.add_argument("--data", default="cifar10", help="name of the dataset, default cifar10; or folder:PATH")
    models = f"one of {', '.join(ViTConfig.list_presets())}; default is the one that goes with the recipe"
    parser.add_argument("--model", help=models)
    parser.add_argument("--recipe", default="cpu_10min", help=f"one of {', '.join(TrainConfig.list_presets())}")
    fields_help = "fields of TrainConfig or ViTConfig to change"
    parser.add_argument("--set", nargs="*", action="extend", default=[], metavar="NAME=VALUE", help=fields_help)
    parser.add_argument("--minutes", type=float, help="train for as many epochs as fit, measured before the start")
    options = parser.parse_args(arguments)
    if options.resume and options.minutes is not None:
        parser.error("--minutes is for a new run: to go on with one, give it --set epochs=... as it was told to have")
    options.run_dir = options.run_dir.expanduser()
    try:
        prepared = prepare(options)
    except (ValueError, OSError, TypeError, DataUnavailableError) as error:
        parser.error(str(error).replace("resume=True", "--resume"))
    train(options, *prepared)


if __name__ == "__main__":
    main()
