"""Data: a folder on disk in, batches on the device out. The only place that knows CIFAR-10 and Fashion-MNIST."""

import inspect
from typing import Any

from vit.arguments import check_choice, did_you_mean
from vit.data import corruptions
from vit.data.cifar10 import load_cifar10
from vit.data.derived import keep_classes, resize, sample_shots
from vit.data.fashion_mnist import load_fashion_mnist
from vit.data.image_folder import load_image_folder, save_image_folder
from vit.data.loader import Loader, make_eval_loader, make_loaders
from vit.data.shapes import make_shapes
from vit.data.splits import DataSplits, Split, make_val_split
from vit.normalization import channel_statistics, denormalize, normalize

DATASETS = {
    "cifar10": load_cifar10,
    "fashion_mnist": load_fashion_mnist,
    "shapes": make_shapes,
    "folder": load_image_folder,
}


def load_data(name: str, **options: Any) -> DataSplits:
    """A dataset by name: "cifar10"; "fashion_mnist", of a Debian package; "shapes", which is drawn on the spot and
    needs no network; or "folder", pictures of your own at `path=...`, in one folder per class.

    Args:
        options: passed to `load_cifar10`, `load_fashion_mnist`, `make_shapes` or `load_image_folder`.

    Raises:
        ValueError: there is no such dataset, or it has no such option, or needs one that is not given.
    """
    check_choice("name", name, DATASETS)
    known = inspect.signature(DATASETS[name]).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):  # one of your own, that takes all
        return DATASETS[name](**options)
    for option, value in options.items():
        if option not in known:
            hint = did_you_mean(option, known)
            raise ValueError(
                f"{option}={value!r} is no option of load_data({name!r}); {hint}allowed: {', '.join(known)}"
            )
    for option, parameter in known.items():
        if parameter.default is parameter.empty and option not in options:
            raise ValueError(f"load_data({name!r}) needs {option}=...; allowed: {', '.join(known)}")
    return DATASETS[name](**options)


__all__ = [
    "DataSplits",
    "Loader",
    "Split",
    "channel_statistics",
    "corruptions",
    "denormalize",
    "keep_classes",
    "load_cifar10",
    "load_data",
    "load_fashion_mnist",
    "load_image_folder",
    "make_eval_loader",
    "make_loaders",
    "make_shapes",
    "make_val_split",
    "normalize",
    "resize",
    "sample_shots",
    "save_image_folder",
]
