"""How well a pretrained network does on a few images of new classes, for each way to use it; part of transfer.py.

Two baselines start from scratch: one takes as many steps as fine-tuning, the other sees as many images as pretraining
and fine-tuning together, by the recipe of the pretraining.
"""

import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

import vit
from vit import analysis
from vit.data import DataSplits, resize, sample_shots
from vit.tasks import fine_tuning, lora, prompts

BATCH = 32
STRENGTH = {"pixels_probe": 0.001, "probe": 0.1, "probe_48": 0.1}  # of the linear probes
LARGER = 48  # pixels
FROZEN = ("pixels_nearest", "pixels_knn", "pixels_probe", "knn", "probe", "probe_48")
LONG = "scratch_compute"

# How each kind of training is done: changes to TrainConfig, and the decay of the rates from layer to layer. Chosen with
# `transfer.py --tune`. From scratch the recipe of the library, with Muon, does better than AdamW.
_ADAMW = {"optimizer": "adamw", "device": "cpu"}
TRAINING = {
    "finetune": (_ADAMW | {"learning_rate": 5e-4}, 0.75),
    "lora": (_ADAMW | {"learning_rate": 1e-3}, 1.0),
    "prompts": (_ADAMW | {"learning_rate": 3e-3}, 1.0),
    "scratch_steps": ({"device": "cpu"}, 1.0),
}


@dataclass(frozen=True)
class Experiment:
    """A pretrained network and the classes it is to learn; `target.test` is what is measured."""

    name: str
    model: vit.VisionTransformer
    recipe: vit.TrainConfig  # how it was pretrained
    num_pretraining: int  # images of an epoch of that
    target: DataSplits
    folder: Path

    def few(self, shots: int, draw: int) -> DataSplits:
        return replace(self.target, train=sample_shots(self.target.train, shots, draw=draw))


def accuracy(probabilities: Tensor, labels: Tensor) -> float:
    return 100 * (probabilities.argmax(dim=1) == labels).double().mean().item()


def frozen_accuracy(method: str, experiment: Experiment, few: DataSplits) -> float:
    """Of features that are not trained."""
    train, test = few.train, few.test
    if method == "pixels_nearest":
        nearest = torch.cdist(analysis.pixels(test.images), analysis.pixels(train.images)).argmin(dim=1)  # (N,)
        return 100 * (train.labels[nearest] == test.labels).double().mean().item()
    if method == "probe_48":
        larger = resize(few, LARGER)
        train, test = larger.train, larger.test
    x, y = (of_images(method, experiment, split.images) for split in (train, test))
    if method.endswith("knn"):
        return accuracy(analysis.knn(x, train.labels, y), test.labels)
    return accuracy(analysis.linear_probe(x, train.labels, y, strength=STRENGTH[method]), test.labels)


def of_images(method: str, experiment: Experiment, images: Tensor) -> Tensor:
    """The features that a method reads, of images of any size."""
    if method.startswith("pixels"):
        return analysis.pixels(images)
    model = experiment.model if method != "probe_48" else experiment.model.resized(LARGER)
    return analysis.features(model, images, cache=experiment.folder / "features")


def training_config(method: str, num_images: int, steps: int, seed: int, **changes) -> vit.TrainConfig:
    epochs = steps / math.ceil(num_images / BATCH)
    options = {"epochs": epochs, "warmup_epochs": 0.1 * epochs, "batch_size": BATCH, "seed": seed}
    return vit.TrainConfig(**(options | TRAINING[method][0] | changes))


def trained_accuracy(
    method: str, experiment: Experiment, few: DataSplits, steps: int, draw: int, layer_decay=None, **changes
) -> float:
    """Of a network that is trained on the few images."""
    torch.manual_seed(draw)
    model = fine_tuning.with_new_head(experiment.model, few)
    if method == "scratch_steps":
        model = fresh(model)
    elif method != "finetune":
        model = {"lora": lora, "prompts": prompts}[method].add(model)
    config = training_config(method, len(few.train), steps, draw, **changes)
    layer_decay = TRAINING[method][1] if layer_decay is None else layer_decay
    return tested(model, few, fine_tuning.fine_tune(model, few, config, layer_decay=layer_decay, validate=False))


def compute_accuracy(experiment: Experiment, few: DataSplits, steps: int, draw: int, folder: Path) -> float:
    """Of a network that sees the few images as often as pretraining and fine-tuning together see any: the recipe of the
    pretraining, in which its images are these, again and again, augmented anew each time."""
    num, recipe = experiment.num_pretraining, experiment.recipe
    again = few.train.subset(torch.arange(num) % len(few.train))
    extra = steps * min(BATCH, len(few.train)) / num
    config = replace(recipe, epochs=recipe.epochs + extra, seed=draw)
    torch.manual_seed(draw)
    model = fresh(fine_tuning.with_new_head(experiment.model, few))
    data = replace(few, train=again, mean=model.metadata["mean"], std=model.metadata["std"])
    train_loader, _ = vit.make_loaders(data, config)
    folder.mkdir(parents=True, exist_ok=True)
    return tested(model, few, vit.fit(model, train_loader, None, config, run_dir=folder, resume="auto"))


def fresh(model: vit.VisionTransformer) -> vit.VisionTransformer:
    """The same network before any training."""
    new = vit.VisionTransformer(model.config)
    new.metadata = model.metadata
    return new


def tested(model: vit.VisionTransformer, few: DataSplits, history: vit.training.History) -> float:
    """The accuracy after a whole training; after one that was stopped the program ends, and there is no result."""
    if not history.is_complete:
        sys.exit("stopped: what is finished is kept, and the rest goes on next time")
    data = replace(few, mean=model.metadata["mean"], std=model.metadata["std"])
    return vit.evaluate(model, vit.make_eval_loader(data, data.test, device="cpu")).accuracy
