"""Pixels of 0..255 to what networks take, and back: per channel, by the mean and deviation of the training images."""

from collections.abc import Sequence

import torch
from torch import Tensor


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of pixels scaled to [0, 1], by counting the gray levels.

    The deviation is at least one level, 1/255: a channel that never changes must not be divided by 0.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or not images.numel():
        raise ValueError(
            f"images must be uint8 (N, C, H, W) and hold a pixel, got {images.dtype} {tuple(images.shape)}; for floats "
            "in 0..1 use (255 * images).round().to(torch.uint8)"
        )
    levels = torch.arange(256, dtype=torch.float64, device="cpu") / 255  # a Mac's GPU has no float64
    mean, std = [], []
    for channel in images.unbind(1):
        share = torch.bincount(channel.flatten(), minlength=256).cpu() / channel.numel()
        mean.append(float((share * levels).sum()))
        std.append(max(float((share * (levels - mean[-1]) ** 2).sum().sqrt()), 1 / 255))
    return tuple(mean), tuple(std)


def as_statistics(
    mean: Sequence[float], std: Sequence[float], shape: Sequence[int]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Both as Python's floats; ValueError unless there are one mean in [0, 1] and one std in (0, 1] for each channel of
    images of `shape` (C, H, W): one mean for all would make gray images RGB, and those of pixels up to 255 would make
    noise."""
    try:
        mean, std = (tuple(map(float, values)) for values in (mean, std))
    except (TypeError, ValueError) as error:
        raise ValueError(f"mean={mean} and std={std} must be sequences of numbers, one for each channel") from error
    if not len(mean) == len(std) == shape[0]:
        raise ValueError(
            f"mean={mean} and std={std} need one value for each of the {shape[0]} channels of images "
            f"{tuple(shape)} (C, H, W){hint_of_order(shape)}"
        )
    if not all(0 <= value <= 1 for value in mean) or not all(0 < value <= 1 for value in std):
        raise ValueError(
            f"mean={mean} must lie in [0, 1] and std={std} in (0, 1]: they are of pixels divided by 255; "
            "vit.data.channel_statistics(images) computes both"
        )
    return mean, std


def hint_of_order(shape: Sequence[int]) -> str:
    """For a message about images of `shape` (C, H, W): what to do where they look as if their channels came last."""
    is_last = len(shape) == 3 and shape[0] > 4 >= shape[2]
    return "; if the channels come last, use images.permute(0, 3, 1, 2)" if is_last else ""


def normalize(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 images (B, C, H, W) to float32, with `mean` and `std` per channel of pixels scaled to [0, 1]."""
    if images.dtype != torch.uint8:
        raise TypeError(f"normalize takes uint8 images with values 0..255, got {images.dtype}")
    shift, scale = shift_and_scale(*as_statistics(mean, std, images.shape[1:]), images.device)
    return torch.addcmul(shift, images.float(), scale)  # (B, C, H, W)


def shift_and_scale(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """(x / 255 - mean) / std as shift + x * scale, both (C, 1, 1)."""
    mean_, std_ = _per_channel(mean, std, device)
    return -mean_ / std_, 1 / (255 * std_)


def _per_channel(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> list[Tensor]:
    """Both as float32 (C, 1, 1)."""
    return [torch.tensor(values, dtype=torch.float32, device=device)[:, None, None] for values in (mean, std)]


def denormalize(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """The inverse of `normalize`, for showing images."""
    if not images.is_floating_point():
        raise TypeError(f"denormalize takes the floats that normalize returns, got {images.dtype}")
    mean_, std_ = _per_channel(*as_statistics(mean, std, images.shape[-3:]), images.device)
    return ((images * std_ + mean_) * 255).round().clamp(0, 255).to(torch.uint8)  # (B, C, H, W)
