"""Per-sample augmentation of a batch of images, on the device the batch is on.

Owns crop, flip, erasing and the mixing of pairs; which of them a run uses is the loader's to say. Each
image gets its own draw (torchvision's random transforms give a batch one; only the mixing, which is made for
batches, comes from there). No function loops over images or waits for the device, and every result is a pure
function of its inputs and the generator's state. Images stay uint8 until the loader normalizes them.
Sources: Jordan 2024, arXiv:2404.00498 (reflect-padded crop, alternating flip, "94% on CIFAR-10");
DeVries and Taylor 2017, arXiv:1708.04552 (cutout); Zhang et al. 2018, arXiv:1710.09412 (MixUp);
Yun et al. 2019, arXiv:1905.04899 (CutMix).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vit.data.auto_augment import check_images


def random_erase(images: Tensor, size: int, generator: torch.Generator, fill: Sequence[float]) -> Tensor:
    """Cutout: cover one square of each image, its center uniform over the pixels, its overhang clipped.

    Args:
        images: uint8 (B, C, H, W).
        size: side of the square in pixels, 0 (off) or more.
        fill: one value a channel in [0, 1], usually the training set's mean.
    Returns: uint8 (B, C, H, W).
    Source: DeVries and Taylor 2017, section 3.2.
    """
    check_images(images, generator)
    if size < 0:
        raise ValueError(f"size={size} is negative; it is the side of a square in pixels, 0 for none")
    batch, channels, height, width = images.shape
    if len(fill) != channels or not all(0 <= value <= 1 for value in fill):
        raise ValueError(
            f"fill={fill} is not {channels} values in [0, 1], one a channel; try the mean of the training set"
        )
    if size == 0:
        return images
    rows = _inside(height, size, batch, generator, images.device)  # (B, H)
    columns = _inside(width, size, batch, generator, images.device)  # (B, W)
    # Filled on the device: a tensor made from the sequence would be copied there, and a GPU waited for.
    color = torch.stack([images.new_full((1, 1), round(255 * float(value))) for value in fill])  # (C, 1, 1)
    return torch.where(rows[:, None, :, None] & columns[:, None, None, :], color, images)  # (B, C, H, W)


def cutmix_mixup(
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    cutmix_alpha: float,
    mixup_alpha: float,
    probability: float,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Mix each image and its label with its neighbor's, by CutMix or MixUp; one draw for the whole batch.

    Args:
        images: floating point (B, C, H, W), in an order that is already shuffled.
        labels: int64 (B,), each in 0..num_classes - 1.
        cutmix_alpha, mixup_alpha: the share of each partner is drawn from Beta(alpha, alpha); 0 for off. With
            both on, a mixed batch takes either with probability 0.5.
        probability: share of the batches that are mixed, in [0, 1].
        seed: decides every draw. They are drawn on the CPU, so no GPU is waited for.
    Returns: images (B, C, H, W) and label probabilities, float32 (B, num_classes).
    """
    if not images.is_floating_point() or images.ndim != 4:
        raise ValueError(f"images are {images.dtype} {tuple(images.shape)}; mix normalized (B, C, H, W)")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise ValueError(f"labels are {labels.dtype} {tuple(labels.shape)}; make them int64 ({len(images)},)")
    if min(cutmix_alpha, mixup_alpha) < 0:
        raise ValueError(f"cutmix_alpha={cutmix_alpha}, mixup_alpha={mixup_alpha} must be 0 or more; try 1.0")
    if not 0 <= probability <= 1:
        raise ValueError(f"probability={probability} is not in [0, 1]; it is the share of the batches to mix")
    from torchvision.transforms import v2  # here, so that augmenting without mixing does not load torchvision

    kinds = [(kind, alpha) for kind, alpha in ((v2.CutMix, cutmix_alpha), (v2.MixUp, mixup_alpha)) if alpha]
    with torch.random.fork_rng(devices=[]):  # torchvision draws from the global stream: put it back
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPU's stream too
        chance, choice = torch.rand(2).tolist()
        if kinds and len(images) and chance < probability:
            kind, alpha = kinds[int(choice * len(kinds))]
            return kind(alpha=alpha, num_classes=num_classes)(images, labels)
    return images, F.one_hot(labels, num_classes).float()


def crop_offsets(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Draw a (top, left) for each image, int64 (B, 2) uniform on 0..2 * padding, for `crop_and_flip`."""
    _check_padding(images, padding)
    return torch.randint(2 * padding + 1, (len(images), 2), generator=generator, device=images.device)


def random_flips(images: Tensor, generator: torch.Generator) -> Tensor:
    """Draw (B,) fair coins, bool."""
    return torch.randint(2, (len(images),), generator=generator, device=images.device).bool()


def alternating_flips(sample_idx: Tensor, epoch: int, seed: int) -> Tensor:
    """Which samples are mirrored, bool (B,): a coin fixed by (index, seed) and turned over every epoch, so that two
    epochs in a row show both orientations of an image.

    Args:
        sample_idx: int64 (B,), the place of each image in the training set, the same in every epoch.
        epoch: 0 or more.
    Source: Jordan 2024, section 3.6 (derandomized flipping).
    """
    if sample_idx.ndim != 1 or sample_idx.dtype != torch.int64:
        raise ValueError(
            f"sample_idx is {sample_idx.dtype} {tuple(sample_idx.shape)}; make it int64 (B,), one an image"
        )
    if epoch < 0:
        raise ValueError(f"epoch={epoch} is negative; count epochs from 0")
    coin = _hash32(_hash32(sample_idx & 0xFFFFFFFF) ^ (seed & 0xFFFFFFFF))
    return ((coin + epoch) & 1).bool()


def crop_and_flip(images: Tensor, offsets: Tensor, flips: Tensor, padding: int) -> Tensor:
    """Crop from the reflect-padded image and mirror, in one gather that never makes the padded image.

    Args:
        images: uint8 (B, C, H, W).
        offsets: int64 (B, 2), (top, left) of the window in the padded image, each in 0..2 * padding.
        flips: bool (B,), whether the window is then mirrored left to right.
        padding: pixels, 0 to min(H, W) - 1.
    Returns: uint8 (B, C, H, W).
    """
    check_images(images)
    _check_padding(images, padding)
    height, width = images.shape[2:]
    rows = torch.arange(height, device=images.device) - padding + offsets[:, :1]  # (B, H)
    columns = torch.arange(width, device=images.device)
    columns = torch.where(flips[:, None], width - 1 - columns, columns) - padding + offsets[:, 1:]  # (B, W)
    source = _reflect(rows, height)[:, :, None] * width + _reflect(columns, width)[:, None, :]  # (B, H, W)
    source = source.flatten(1)[:, None].expand(-1, images.shape[1], -1)  # (B, C, H*W)
    return images.flatten(2).gather(2, source).view(images.shape)  # (B, C, H, W)


def _check_padding(images: Tensor, padding: int) -> None:
    height, width = images.shape[2:]
    if not 0 <= padding < min(height, width):
        raise ValueError(
            f"padding={padding} is not in 0..{min(height, width) - 1}: reflection needs fewer pixels than "
            f"the shorter side of {height} x {width} images; try {min(4, height - 1, width - 1)}"
        )


def _inside(side: int, size: int, batch: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Which positions (B, side) lie in a window of `size` about a center drawn for each image."""
    start = torch.randint(side, (batch, 1), generator=generator, device=device) - size // 2
    position = torch.arange(side, device=device)
    return (position >= start) & (position < start + size)


def _reflect(index: Tensor, side: int) -> Tensor:
    """Fold indices in -side < i < 2 * side - 1 back into 0..side - 1 without repeating the edge."""
    return (side - 1) - ((side - 1) - index.abs()).abs()


def _hash32(values: Tensor) -> Tensor:
    """Mix int64 values in 0..2**32 - 1 into unrelated ones; a product that wraps keeps its low bits right.

    Source: lowbias32, C. Wellons, "Prospecting for Hash Functions", 2018.
    """
    values = ((values ^ (values >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    values = ((values ^ (values >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return values ^ (values >> 16)
