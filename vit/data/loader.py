"""Batches: a whole split in memory as uint8, cut, augmented and normalized on the device.

Every batch is a pure function of (seed, epoch, step). So a run has no loader state to save, finds its place exactly
after an interruption, and creating another loader changes nothing. There are no worker processes: a batch costs a few
gathers, and a notebook on Windows or macOS behaves like one on Linux.
"""

import copy
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from vit.arguments import as_integer
from vit.config import TrainConfig, check_is_config
from vit.data.augment import alternating_flips, crop_and_flip, crop_offsets, cutmix_mixup, random_erase, random_flips
from vit.data.auto_augment import rand_augment, trivial_augment
from vit.data.splits import DataSplits, Split, check_labels
from vit.device import resolve_device
from vit.metadata import normalization_of
from vit.normalization import as_statistics, hint_of_order, shift_and_scale

Batch = tuple[Tensor, Tensor]


class Loader:
    """The batches of a split, `len(loader)` of them an epoch, each sample exactly once.

    Batches are of nearly equal size, at most `batch_size`: a small rest would be a noisy step.

    `for images, labels in loader` gives epoch after epoch, another one each time; `loader.epoch(n)` any one, again and
    again the same.

    Args:
        split: what to draw from; moved to `device` once, here.
        mean, std: per channel, see `normalize`.
        augment: for training, see `make_augment`; None leaves the images as they are.
        mix: for training, see `make_mix`.
        shuffle: a new random order every epoch, or the split's own.
        seed: decides the order and the augmentations of every epoch.
        num_classes, class_names: let `fit` and `evaluate` compare them with the model's before they start.
        config: that of the run, for `fit` to compare with its own; it says how long batches are mixed, see `for_run`.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        augment: Callable[..., Tensor] | None = None,
        mix: Callable[..., Batch] | None = None,
        shuffle: bool = False,
        seed: int = 0,
        device: torch.device | str = "cpu",
        num_classes: int | None = None,
        class_names: tuple[str, ...] | None = None,
        config: TrainConfig | None = None,
    ) -> None:
        if len(split) == 0:
            raise ValueError("the split holds no image: a loader needs at least one")
        batch_size = as_integer("batch_size", batch_size, 1)
        mean, std = as_statistics(mean, std, split.images.shape[1:])
        self.split = split
        self.device = torch.device(device)
        self.images = split.images.to(self.device)
        self.labels = split.labels.to(self.device)
        # Made once: a copy to the device at every batch would make a GPU wait.
        self.shift, self.scale = shift_and_scale(mean, std, self.device)
        self.augment, self.mix = augment, mix
        self.shuffle, self.seed = shuffle, seed
        self.num_classes, self.class_names = num_classes, class_names
        self.mean, self.std = mean, std
        self.num_steps = math.ceil(len(split) / batch_size)
        self.config = config
        self.mixed_steps = config.mixed_steps(self.num_steps) if config else math.inf  # of the run, from its start
        self._order: tuple[int, Tensor] | None = None
        self._next_epoch = 0  # of those who iterate; nothing in this package does

    def __len__(self) -> int:
        return self.num_steps

    def __iter__(self) -> Iterator[Batch]:
        epoch = self._next_epoch
        self._next_epoch += 1
        return self.epoch(epoch)

    def __repr__(self) -> str:
        kinds = ["shuffled"] * self.shuffle + ["augmented"] * bool(self.augment) + ["mixed"] * bool(self.mix)
        return f"Loader({len(self)} batches of {self.split!r}{''.join(f', {kind}' for kind in kinds)}, {self.device})"

    def for_run(self, config: TrainConfig) -> Self:
        """This loader for a run of other epochs or another `mix_until`: its batches are mixed for as long as `config`
        says. It shares the images; `fit` calls it."""
        loader = copy.copy(self)
        loader.config, loader.mixed_steps = config, config.mixed_steps(len(self))
        return loader

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The epoch's batches from `start_step` on: normalized images (B, C, H, W), labels (B,) or, when mixed,
        (B, num_classes)."""
        for step in range(start_step, len(self)):
            yield self.batch(epoch, step)

    def sample_indices(self, epoch: int) -> Tensor:
        """Which sample comes when in this epoch, (N,)."""
        if not self.shuffle:
            return torch.arange(len(self.split), device=self.device)
        if self._order is None or self._order[0] != epoch:
            generator = torch.Generator().manual_seed(_mix_seeds(self.seed, epoch))
            order = torch.randperm(len(self.split), generator=generator, device="cpu").to(self.device)
            self._order = (epoch, order)
        return self._order[1]

    def batch_indices(self, epoch: int, step: int) -> Tensor:
        """Which samples of the split make up this batch, (B,)."""
        N, S = len(self.split), len(self)
        return self.sample_indices(epoch)[step * N // S : (step + 1) * N // S]

    @property
    def fingerprint(self) -> int:
        """A number that changes with the images, the labels and their order: `fit` goes on with the same data only."""
        images, labels = (t.cpu().contiguous().numpy() for t in (self.split.images, self.split.labels))
        return zlib.crc32(images, zlib.crc32(labels))

    def batch(self, epoch: int, step: int) -> Batch:
        sample_idx = self.batch_indices(epoch, step)
        images = torch.addcmul(self.shift, self.augmented(sample_idx, epoch, step).float(), self.scale)  # (B, C, H, W)
        labels = self.labels[sample_idx]
        if self.mix is None or epoch * len(self) + step >= self.mixed_steps:
            return images, labels
        return self.mix(images, labels, _mix_seeds(self.seed, epoch, step))

    def augmented(self, sample_idx: Tensor, epoch: int, step: int = 0) -> Tensor:
        """The chosen images as uint8 (B, C, H, W), augmented as a batch of this epoch and step would be."""
        sample_idx = sample_idx.to(self.device)
        images = self.images[sample_idx]
        if self.augment is None:
            return images
        generator = torch.Generator(self.device).manual_seed(_mix_seeds(self.seed, epoch, step))
        return self.augment(images, sample_idx, epoch, generator)


def _mix_seeds(*numbers: int) -> int:
    """One 63-bit seed from several small numbers; close ones give unrelated seeds.

    A 0 at the end changes nothing, so the order of an epoch and the augmentation of its first batch begin with the
    same draws; so do augmentation and mixing of a batch. They are put to different use, and runs on record need them.
    """
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def make_augment(config: TrainConfig, fill: tuple[float, ...]) -> Callable[..., Tensor]:
    """The training augmentation a config asks for: (uint8 images, sample_idx, epoch, generator) to uint8 images.

    Args:
        fill: the value per channel in [0, 1] that erased squares get, usually the training mean.
    """

    def augment(images: Tensor, sample_idx: Tensor, epoch: int, generator: torch.Generator) -> Tensor:
        flips = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        if config.flip == "alternating":
            flips = alternating_flips(sample_idx, epoch, config.seed)
        elif config.flip == "random":
            flips = random_flips(images, generator)
        offsets = crop_offsets(images, config.crop_padding, generator)
        images = crop_and_flip(images, offsets, flips, config.crop_padding)
        if config.auto_augment == "trivial":
            images = trivial_augment(images, generator)
        elif config.auto_augment == "rand":
            images = rand_augment(images, generator)
        if config.erase_size:
            images = random_erase(images, config.erase_size, generator, fill)
        return images

    return augment


def make_mix(config: TrainConfig, num_classes: int) -> Callable[..., Batch] | None:
    """CutMix and MixUp as a config asks for, (images, labels, seed) to (images, soft labels); None without them."""
    if not config.mixup_alpha and not config.cutmix_alpha:
        return None

    def mix(images: Tensor, labels: Tensor, seed: int) -> Batch:
        return cutmix_mixup(
            images,
            labels,
            num_classes,
            cutmix_alpha=config.cutmix_alpha,
            mixup_alpha=config.mixup_alpha,
            probability=config.mix_probability,
            seed=seed,
        )

    return mix


def make_loaders(data: DataSplits, config: TrainConfig, *, model: nn.Module | None = None) -> tuple[Loader, Loader]:
    """The augmented, shuffled train loader and the plain val loader of a run, on the config's device.

    Args:
        model: normalizes as its metadata says, see `make_eval_loader`, for one that is to be trained on; by default
            with the mean and deviation of `data`.
    """
    _check_data(data)
    check_is_config(config)
    if model is not None:
        mean, std = normalization_of(model)
        data = replace(data, mean=mean, std=std)
    for name, split in (("train", data.train), ("val", data.val)):
        if not len(split):
            raise ValueError(
                f"data.{name} holds no image: a run needs some in train and in val; vit.data.make_val_split "
                "makes two of one"
            )
    shape = data.train.images.shape[1:]
    if config.crop_padding >= (side := min(shape[1:])):
        raise ValueError(
            f"crop_padding={config.crop_padding} must be less than a side of the images, {side} pixels"
            f"{hint_of_order(shape)}"
        )
    train = Loader(
        data.train,
        batch_size=config.batch_size,
        mean=data.mean,
        std=data.std,
        augment=make_augment(config, data.mean),
        mix=make_mix(config, data.num_classes),
        shuffle=True,
        seed=config.seed,
        device=resolve_device(config.device),
        num_classes=data.num_classes,
        class_names=data.class_names,
        config=config,
    )
    return train, make_eval_loader(data, data.val, device=config.device)


def make_eval_loader(
    data: DataSplits,
    split: Split,
    *,
    device: torch.device | str = "auto",
    batch_size: int = 500,
    model: nn.Module | None = None,
) -> Loader:
    """A split in its own order, never augmented.

    Args:
        split: one of `data`, or another with images of the same shape and the same classes.
        model: normalizes as its metadata says (or the `pretrained_cfg` of a network of timm), for one that was trained
            on other data; by default with the mean and deviation of `data`.

    Raises:
        ValueError: the split is not of these classes and shape, or the model does not say how its images were
            normalized.
    """
    _check_data(data)
    if not isinstance(split, Split):
        raise TypeError(f"split is a {type(split).__name__} and must be a Split, such as data.val or data.test")
    if split not in (data.train, data.val, data.test):  # which were checked when `data` was made
        shape, expected = tuple(split.images.shape[1:]), tuple(data.train.images.shape[1:])
        if shape != expected:
            raise ValueError(f"split has images of {shape} (C, H, W), data of {expected}; see vit.data.resize")
        check_labels(split.labels, data.num_classes, "split")
    mean, std = (data.mean, data.std) if model is None else normalization_of(model)
    return Loader(
        split,
        batch_size=batch_size,
        mean=mean,
        std=std,
        device=resolve_device(device),
        num_classes=data.num_classes,
        class_names=data.class_names,
    )


def _check_data(data: DataSplits) -> None:
    if not isinstance(data, DataSplits):
        raise TypeError(f"data is a {type(data).__name__} and must be DataSplits, such as vit.load_data('cifar10')")
