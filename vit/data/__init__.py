"""Data: a folder on disk in, batches on the device out. The only place that knows CIFAR-10."""

from typing import Any

from vit.data.cifar10 import load_cifar10
from vit.data.loader import Loader, denormalize, make_eval_loader, make_loaders, normalize
from vit.data.shapes import make_shapes
from vit.data.splits import DataSplits, Split

DATASETS = {"cifar10": load_cifar10, "shapes": make_shapes}


def load_data(name: str, **options: Any) -> DataSplits:
    """A dataset by name: "cifar10", or "shapes", which is drawn on the spot and needs no network.

    Args:
        options: passed to `load_cifar10` or `make_shapes`.
    """
    if name not in DATASETS:
        raise ValueError(f"name={name!r} is not a dataset; allowed: {', '.join(DATASETS)}")
    return DATASETS[name](**options)


__all__ = [
    "DataSplits",
    "Loader",
    "Split",
    "denormalize",
    "load_cifar10",
    "load_data",
    "make_eval_loader",
    "make_loaders",
    "make_shapes",
    "normalize",
]
