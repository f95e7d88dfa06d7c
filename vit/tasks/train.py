"""Trains a network from the command line, alone or in several processes, and stores its weights.

    python -m vit.tasks.train --run-dir runs/mine --set epochs=10 batch_size=128
    python -m vit.launch --processes 2 -m vit.tasks.train --run-dir runs/mine --minutes 5
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 -m vit.tasks.train ...

The test images are not touched: `vit.evaluate` measures the weights that this leaves in the run folder.
"""

import argparse
import contextlib
import json
from pathlib import Path
from typing import Any

import torch

from vit.config import RECIPES, TrainConfig, ViTConfig
from vit.data import load_data, make_loaders
from vit.model import VisionTransformer
from vit.pretrained import save
from vit.training.budget import for_budget
from vit.training.distributed import processes
from vit.training.loop import fit


def train(options: argparse.Namespace) -> None:
    """What each process does."""
    changes = dict(read_setting(setting) for setting in options.set)
    config = TrainConfig.preset(options.recipe, **changes)
    with processes() as world:
        data = load_data(options.data)
        _, channels, *image_size = data.train.images.shape
        shape = {"image_size": tuple(image_size), "in_chans": channels, "num_classes": data.num_classes}
        torch.manual_seed(config.seed)
        model = VisionTransformer(ViTConfig.preset(options.model or RECIPES[options.recipe], **shape))
        if options.minutes is not None:
            config = for_budget(config, model, *make_loaders(data, config), minutes=options.minutes)
            if world.is_first:
                print(f"{config.epochs} epochs fit into {options.minutes:g} minutes", flush=True)
        history = fit(model, *make_loaders(data, config), config, run_dir=options.run_dir, resume=options.resume)
        if world.is_first and history.is_complete:
            model.metadata = dict(data.metadata)
            save(model, options.run_dir / "model.safetensors")
            print(f"val accuracy {history.last['val_accuracy']:.2f} %, weights in {options.run_dir}")


def read_setting(text: str) -> tuple[str, Any]:
    """Name and value of "name=value": a number, true, false or a list as JSON has them, or else a text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set {text!r} must be name=value, such as epochs=10")
    with contextlib.suppress(ValueError):
        value = json.loads(value)
    return name, tuple(value) if isinstance(value, list) else value


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-dir", type=Path, required=True, help="folder for state, history and weights")
    parser.add_argument("--resume", action="store_true", help="go on with the run in that folder")
    parser.add_argument("--data", default="cifar10", help="name of the dataset, default cifar10")
    models = f"one of {', '.join(ViTConfig.list_presets())}; default is the one that goes with the recipe"
    parser.add_argument("--model", help=models)
    parser.add_argument("--recipe", default="cpu_10min", help=f"one of {', '.join(TrainConfig.list_presets())}")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="fields of TrainConfig to change")
    parser.add_argument("--minutes", type=float, help="train for as many epochs as fit, measured before the start")
    options = parser.parse_args(arguments)
    if options.resume and options.minutes is not None:
        parser.error("--minutes is for a new run: to go on with one, give it --set epochs=... as it was told to have")
    train(options)


if __name__ == "__main__":
    main()
