"""From pictures to class probabilities, in one call that prepares whatever it is given.

The model must know how its training images were normalized: `vit.load` brings that along, and a model that was just
trained gets it by `model.metadata = data.metadata`.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Picture = Any  # a path, a PIL image, or a uint8 array (H, W, 3)

# A decoder is reachable only if it is listed here, and only for an image of this many pixels.
PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
MAX_PIXELS = 25_000_000


@torch.inference_mode()
def predict(model: nn.Module, images: Tensor | Picture | Sequence[Picture]) -> Tensor:
    """Class probabilities (B, num_classes), on the CPU, whatever mode the model is in.

    Args:
        model: a classifier with `config.image_size` and, unless `images` are normalized floats, `mean` and `std`
            in its `metadata`.
        images: a tensor (B, C, H, W), uint8 or normalized float; or a picture, or a list of pictures: paths, PIL
            images, uint8 arrays (H, W, 3). Pictures are resized to the model's image size.

    Raises:
        TypeError: a kind of input that is none of these.
        ValueError: NaN or infinite pixels, with the number of the image; or missing `metadata`.
    """
    device = next(model.parameters()).device
    if not isinstance(images, Tensor):
        pictures = images if isinstance(images, (list, tuple)) else [images]
        size = model.config.image_size
        images = torch.stack([picture_to_tensor(p, size) for p in pictures]) if pictures else torch.empty(0, 3, *size)
    if len(images) == 0:
        return torch.empty(0, model.config.num_classes)
    images = images.to(device)
    if images.dtype == torch.uint8:
        images = _normalize(images, model)
    _check_values(images)
    was_training = model.training
    model.eval()
    try:
        return model(images).float().softmax(dim=1).cpu()  # (B, num_classes)
    finally:
        model.train(was_training)


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
    try:
        mean, std = (torch.tensor(model.metadata[key], device=images.device) for key in ("mean", "std"))
    except (AttributeError, KeyError):
        raise ValueError(
            "the model does not say how its images were normalized: set model.metadata = data.metadata, "
            "or pass normalized floats"
        ) from None
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
            stacklevel=3,
        )
