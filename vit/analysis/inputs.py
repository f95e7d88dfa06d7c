"""Whatever a user has at hand, as the normalized batch a model expects.

The model must know how its training images were prepared: `vit.load` brings that along, a model that was just trained
gets it by `model.metadata = data.metadata`, and a model of timm has it in its `pretrained_cfg`.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vit.analysis.layout import token_layout, unwrap
from vit.pictures import Picture, picture_to_tensor


def prepare_images(model: nn.Module, images: Tensor | Picture | Sequence[Picture]) -> Tensor:
    """Normalized images (B, C, H, W) on the model's device, of its type.

    Args:
        images: a tensor (B, C, H, W), uint8 or normalized float; or a picture, or a list of pictures: paths, PIL
            images, uint8 arrays (H, W, 3). Pictures are resized and cut to the model's image size as its metadata
            says (`picture_options`).

    Raises:
        TypeError: a kind of input that is none of these.
        FileNotFoundError: no file at a path.
        ValueError: a file that is no readable picture; NaN or infinite pixels, with the number of the image; or uint8
            for a model that does not say how its images were normalized.
    """
    model = unwrap(model)
    reference = next(model.parameters())
    if not isinstance(images, Tensor):
        pictures = images if isinstance(images, (list, tuple)) else [images]
        size = token_layout(model).image_size
        options = picture_options(model)
        tensors = [picture_to_tensor(picture, size, **options) for picture in pictures]
        images = torch.stack(tensors) if tensors else torch.empty(0, 3, *size)
    images = images.to(reference.device)
    images = _normalize(images, model) if images.dtype == torch.uint8 else images
    if len(images):
        _check_values(images)
    return images.to(reference.dtype)


def picture_options(model: nn.Module) -> dict[str, Any]:
    """How `picture_to_tensor` should prepare pictures for a model: as its metadata says, else as training on an image
    folder does."""
    facts = _facts(unwrap(model))
    return {
        "interpolation": facts.get("interpolation", "bicubic"),
        "crop": facts.get("crop", facts.get("crop_pct", 1.0)),
        "squash": facts.get("squash", facts.get("crop_mode") == "squash"),
    }


def _facts(model: nn.Module) -> dict[str, Any]:
    return getattr(model, "metadata", None) or getattr(model, "pretrained_cfg", None) or {}


def _normalize(images: Tensor, model: nn.Module) -> Tensor:
    facts = _facts(model)
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
