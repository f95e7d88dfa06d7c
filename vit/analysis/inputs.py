"""Whatever a user has at hand, as the normalized batch a model expects.

The model must know how its training images were normalized: `vit.load` brings that along, a model that was just
trained gets it by `model.metadata = data.metadata`, and a model of timm has it in its `pretrained_cfg`.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vit.analysis.layout import token_layout, unwrap

Picture = Any  # a path, a PIL image, or a uint8 array (H, W, 3)

# A decoder is reachable only if it is listed here, and only for an image of this many pixels.
PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
MAX_PIXELS = 25_000_000


def prepare_images(model: nn.Module, images: Tensor | Picture | Sequence[Picture]) -> Tensor:
    """Normalized images (B, C, H, W) on the model's device, of its type.

    Args:
        images: a tensor (B, C, H, W), uint8 or normalized float; or a picture, or a list of pictures: paths, PIL
            images, uint8 arrays (H, W, 3). Pictures are resized to the model's image size.

    Raises:
        TypeError: a kind of input that is none of these.
        ValueError: NaN or infinite pixels, with the number of the image; or uint8 for a model that does not say how
            its images were normalized.
    """
    model = unwrap(model)
    reference = next(model.parameters())
    if not isinstance(images, Tensor):
        pictures = images if isinstance(images, (list, tuple)) else [images]
        size = token_layout(model).image_size
        images = torch.stack([picture_to_tensor(p, size) for p in pictures]) if pictures else torch.empty(0, 3, *size)
    images = images.to(reference.device)
    images = _normalize(images, model) if images.dtype == torch.uint8 else images
    if len(images):
        _check_values(images)
    return images.to(reference.dtype)


def picture_to_tensor(picture: Picture, size: tuple[int, int]) -> Tensor:
    """A path, PIL image or uint8 array (H, W, 3) as a uint8 tensor (3, *size), resized with antialiasing."""
    from PIL import Image

    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise TypeError(f"an array must be uint8 (H, W, 3), got {picture.dtype} {picture.shape}")
        picture = Image.fromarray(picture)
    if isinstance(picture, (str, Path)):
        with Image.open(picture, formats=PICTURE_FORMATS) as file:
            if file.width * file.height > MAX_PIXELS:
                raise ValueError(f"{picture} has {file.width}x{file.height} pixels; at most {MAX_PIXELS:,} are read")
            picture = file.convert("RGB")
    if not isinstance(picture, Image.Image):
        raise TypeError(f"a picture must be a path, a PIL image or a uint8 array, got {type(picture).__name__}")
    picture = picture.convert("RGB").resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)  # (3, H, W)


def _normalize(images: Tensor, model: nn.Module) -> Tensor:
    facts = getattr(model, "metadata", None) or getattr(model, "pretrained_cfg", None) or {}
    if "mean" not in facts or "std" not in facts:
        raise ValueError(
            "the model does not say how its images were normalized: set model.metadata = data.metadata, "
            "or pass normalized floats"
        )
    mean, std = (torch.tensor(facts[key], device=images.device) for key in ("mean", "std"))
    return (images.float() / 255 - mean[:, None, None]) / std[:, None, None]  # (B, C, H, W)


def _check_values(images: Tensor) -> None:
    bad = (~images.flatten(1).isfinite().all(dim=1)).nonzero().flatten()
    if len(bad):
        raise ValueError(f"images[{int(bad[0])}] has NaN or infinite pixels ({len(bad)} such images in all)")
    largest = images.abs().max().item()
    if largest > 20:
        warnings.warn(
            f"the largest pixel is {largest:.0f}, far outside normalized images (about -3 to 3); "
            "pass uint8 images, or normalize these",
            stacklevel=4,
        )
