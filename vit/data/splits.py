"""What every dataset of this package is once loaded: three splits of uint8 images in memory.

Images stay uint8 until a batch is drawn: a quarter of the memory of float32, and CIFAR-10 fits on any GPU.
Validation is cut from train by a seed, so the test split is untouched until the one final measurement.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vit.arguments import as_integer
from vit.normalization import as_statistics


@dataclass(frozen=True, eq=False)
class Split:
    """Images (N, C, H, W) uint8, labels (N,) int64 and, where the truth is known, object masks (N, H, W) bool.

    Arrays of numpy become tensors, and labels of any integer type int64. Batches of a `Loader` do not hold the masks,
    and its augmentation moves the images alone.

    Raises:
        TypeError: images or labels of another kind.
        ValueError: a tensor of another shape or type than these.
    """

    images: Tensor
    labels: Tensor
    masks: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("images", "labels", "masks"):
            if isinstance(array := getattr(self, name), np.ndarray):
                if array.dtype.kind not in "biufc":
                    raise TypeError(
                        f"{name} are of {array.dtype} and must be numbers; of texts, "
                        "class_names, labels = np.unique(texts, return_inverse=True) makes both"
                    )
                # A copy only of memory that torch cannot take: read only, of negative strides or another byte order.
                native = array.dtype.newbyteorder("=")
                object.__setattr__(self, name, torch.from_numpy(np.require(array, native, ("C", "W"))))
        for name in ("images", "labels"):
            if not isinstance(getattr(self, name), Tensor):
                kind = type(getattr(self, name)).__name__
                raise TypeError(f"{name} must be a torch tensor or a numpy array, got {kind}; use torch.tensor")
        if self.images.ndim != 4 or self.images.dtype != torch.uint8:
            remedy = ""
            if self.images.is_floating_point():
                remedy = "; for floats in 0..1 use (255 * images).round().to(torch.uint8)"
            found = f"{self.images.dtype} {tuple(self.images.shape)}"
            raise ValueError(f"images must be uint8 of shape (N, C, H, W), got {found}{remedy}")
        if self.labels.shape != self.images.shape[:1]:
            raise ValueError(f"labels must have shape ({len(self.images)},), got {tuple(self.labels.shape)}")
        if self.labels.is_floating_point() or self.labels.is_complex() or self.labels.dtype == torch.bool:
            raise ValueError(
                f"labels must be integers, got {self.labels.dtype}; convert class numbers with labels.long(); for "
                "other targets give torch.arange(N), numbers by which a loss_fn looks them up"
            )
        object.__setattr__(self, "labels", self.labels.long())
        masks, shape = self.masks, (len(self.images), *self.images.shape[2:])
        is_tensor = isinstance(masks, Tensor)
        if masks is not None and not (is_tensor and masks.dtype == torch.bool and masks.shape == shape):
            found = f"{masks.dtype} {tuple(masks.shape)}" if is_tensor else type(masks).__name__
            raise ValueError(f"masks must be a bool tensor of shape (N, H, W) = {shape}, got {found}")

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        masks = "" if self.masks is None else ", with masks"
        return f"Split({len(self):,} images of {' x '.join(map(str, self.images.shape[1:]))} (C x H x W){masks})"

    def subset(self, indices: Tensor | slice) -> "Split":
        """The chosen images, in the order of `indices`, in memory of their own: they do not keep the rest alive."""

        def choose(tensor: Tensor) -> Tensor:
            return tensor[indices].clone() if isinstance(indices, slice) else tensor[indices]

        return Split(choose(self.images), choose(self.labels), None if self.masks is None else choose(self.masks))


@dataclass(frozen=True, eq=False)
class DataSplits:
    """A dataset: train, val (cut from train) and test, with what a model must know about it.

    `mean` and `std` are per channel, of the train images scaled to [0, 1]. Arrays of them or of `class_names` become
    tuples.

    Raises:
        TypeError: what is no `Split` in the place of one, or one text for all class names.
        ValueError: splits of different shapes, labels without a class, two classes of one name, or a mean or std that
            no such images have.
    """

    name: str
    train: Split
    val: Split
    test: Split
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("train", "val", "test"):
            if not isinstance(split := getattr(self, name), Split):
                raise TypeError(f"{name} is a {type(split).__name__} and must be a Split, as Split(images, labels) is")
        shapes = {name: tuple(getattr(self, name).images.shape[1:]) for name in ("train", "val", "test")}
        if len(set(shapes.values())) > 1:
            raise ValueError(
                f"the images of all splits must have one shape (C, H, W), got {shapes}; see vit.data.resize"
            )
        if isinstance(self.class_names, str):
            what = f"class_names={self.class_names!r} is one text"
            raise TypeError(f"{what} and must be a name for each class, such as ('cat', 'dog')")
        mean, std = as_statistics(self.mean, self.std, shapes["train"])
        class_names = tuple(map(str, self.class_names))
        for name, value in (("mean", mean), ("std", std), ("class_names", class_names)):
            object.__setattr__(self, name, value)  # as the class is frozen
        if twice := [name for name, count in Counter(class_names).items() if count > 1]:
            raise ValueError(f"class_names holds {', '.join(sorted(twice))} more than once: give each class a name")
        for name in ("train", "val", "test"):
            remedy = f"; class_names has {len(class_names)} and must name every class"
            check_labels(getattr(self, name).labels, len(class_names), name, remedy)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}={getattr(self, name)!r}" for name in ("train", "val", "test"))
        return f"DataSplits({self.name!r}, {self.num_classes} classes, {sizes})"

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def metadata(self) -> dict:
        """What a model trained on this data must carry along: dataset, class_names, mean, std."""
        return {"dataset": self.name, "class_names": self.class_names, "mean": self.mean, "std": self.std}


def check_labels(labels: Tensor, num_classes: int, name: str, remedy: str = "") -> None:
    """Raises ValueError with the record number if a label is outside 0..num_classes-1.

    Checked once, here: later a bad label is an index error on a CPU, a device assert on a GPU, and -100 is
    silently ignored by the cross-entropy.
    """
    wrong = ((labels < 0) | (labels >= num_classes)).nonzero().flatten()
    if len(wrong):
        record = int(wrong[0])
        raise ValueError(
            f"{name} labels must lie in 0..{num_classes - 1}; record {record} has label {int(labels[record])} "
            f"({len(wrong)} wrong labels in all){remedy}"
        )


def make_val_split(
    images: Tensor, labels: Tensor, val_size: int, seed: int, masks: Tensor | None = None
) -> tuple[Split, Split]:
    """Cuts `val_size` random images off a training set: train and val, in their old order.

    Which ones depends on `seed` and the number of images alone. Labels play no part (the cut is not stratified), so
    val has each class about as often as all images have, and may lack a rare one.
    """
    val_size, seed = as_integer("val_size", val_size, 1, len(images) - 1), as_integer("seed", seed)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed), device="cpu")
    everything = Split(images, labels, masks)
    return everything.subset(order[val_size:].sort().values), everything.subset(order[:val_size].sort().values)
