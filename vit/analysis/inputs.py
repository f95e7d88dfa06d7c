"""Whatever a user has at hand, as the normalized batch a model expects.

The model must know how its training images were prepared: `vit.load` brings that along, a model that was just trained
gets it by `model.metadata = data.metadata`, and a model of timm has it in its `pretrained_cfg`.
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vit.analysis.layout import token_layout
from vit.metadata import facts_of, normalization_of
from vit.modules import unwrap
from vit.normalization import normalize
from vit.pictures import Picture, picture_to_tensor

Images = Tensor | Picture | Sequence[Picture]  # what `prepare_images` takes
Targets = int | Sequence[int] | Tensor  # the number of a class for all images, or one for each

# What a model is given at once, at most: these bound the memory whatever the number of images.
BATCH = 500  # images
CHUNK_TOKENS = 2**14


def prepare_images(model: nn.Module, images: Images) -> Tensor:
    """Normalized images (B, C, H, W) on the model's device, of its type.

    Args:
        images: a tensor (B, C, H, W), uint8 or normalized float; or a picture, or a list of pictures: paths, PIL
            images, uint8 arrays (H, W, 3) or (H, W). Pictures are resized and cut to the model's image size as its
            metadata says (`picture_options`).

    Raises:
        TypeError: a kind of input that is none of these, or a tensor of another type.
        FileNotFoundError: no file at a path.
        ValueError: a file that is no readable picture; a tensor of another shape; NaN or infinite pixels, with the
            number of the image; or uint8 for a model that does not say how its images were normalized.

    Warns:
        of floats that look as if they were not normalized.
    """
    model = unwrap(model)
    if not isinstance(images, Tensor):
        pictures = images if isinstance(images, (list, tuple)) else [images]
        size, options = token_layout(model).image_size, picture_options(model)
        tensors = [picture_to_tensor(picture, size, **options) for picture in pictures]
        images = torch.stack(tensors) if tensors else torch.empty(0, options["channels"], *size)
    _check_images(images, model)
    return _converted(images, model)


def images_at_once(model: nn.Module) -> int:
    """How many images a model is given at once; fewer where an image is many tokens."""
    try:
        return max(1, min(BATCH, CHUNK_TOKENS // token_layout(model).num_tokens))
    except TypeError:  # a network of another kind can be asked for predictions too
        return BATCH


def prepared_parts(model: nn.Module, images: Images, size: int | None = None) -> Iterator[Tensor]:
    """What `prepare_images` makes of the images, `size` at a time (default `images_at_once`), so that memory need not
    hold all at once; where there are none, one empty part."""
    model, size = unwrap(model), size or images_at_once(model)
    if isinstance(images, Tensor):
        _check_images(images, model)  # as a whole, so that messages count from the first image
        yield from (_converted(part, model) for part in images.split(size))
        return
    pictures = images if isinstance(images, (list, tuple)) else [images]
    for start in range(0, max(len(pictures), 1), size):
        yield prepare_images(model, pictures[start : start + size])


def num_images(images: Images) -> int:
    return len(images) if isinstance(images, (Tensor, list, tuple)) else 1


def _converted(images: Tensor, model: nn.Module) -> Tensor:
    reference = next(model.parameters(), None)
    if reference is None:
        raise ValueError(
            f"{type(model).__name__} has no parameters, whose device and type the images could be brought to: call it "
            "on normalized images yourself"
        )
    images = images.to(reference.device)
    images = normalize(images, *normalization_of(model)) if images.dtype == torch.uint8 else images
    return images.to(reference.dtype)  # (B, C, H, W)


def picture_options(model: nn.Module) -> dict[str, Any]:
    """How `picture_to_tensor` should prepare pictures for a model: as its metadata says, else as training on an image
    folder does."""
    facts = facts_of(unwrap(model))
    return {
        "interpolation": facts.get("interpolation", "bicubic"),
        "crop": facts.get("crop", facts.get("crop_pct", 1.0)),
        "squash": facts.get("squash", facts.get("crop_mode") == "squash"),
        "channels": _num_channels(unwrap(model)) or 3,
    }


def as_targets(targets: Targets, num_images: int) -> Tensor:
    """Numbers of classes (B,) from one for all images or one for each."""
    try:
        numbers = torch.as_tensor(targets, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        numbers = None
    if numbers is None or numbers.is_floating_point() or numbers.dtype == torch.bool:
        raise TypeError(f"targets={targets!r} must be the number of a class, or one for each image")
    if numbers.shape not in ((), (num_images,)):
        raise ValueError(f"targets have shape {tuple(numbers.shape)}, the images are {num_images}: one class for each")
    return numbers.long().expand(num_images)


def check_has_classes(model: nn.Module) -> None:
    """Raises ValueError for a model that returns features in place of logits."""
    if isinstance(getattr(unwrap(model), "head", None), nn.Identity):
        raise ValueError("the model has no classes (num_classes=0): its head returns features; see analysis.features")


def probabilities_of(logits: Tensor) -> Tensor:
    """The softmax (B, K) of logits, in float32. Raises ValueError for a single one, whose softmax is always 1."""
    if logits.shape[1] == 1:
        raise ValueError(
            "the model has one logit, of which softmax makes 1 for any image: use torch.sigmoid(model(images)), with "
            "images = vit.analysis.prepare_images(model, images)"
        )
    return logits.float().softmax(dim=1)


def check_classes(targets: Tensor, num_classes: int) -> None:
    """Raises ValueError for numbers (B,) of which one is no class."""
    wrong = targets[(targets < 0) | (targets >= num_classes)]
    if len(wrong):
        raise ValueError(f"targets={wrong.tolist()} must be among the classes 0..{num_classes - 1}")


def _check_images(images: Tensor, model: nn.Module) -> None:
    """Refuses what would fail later with a message of torch's, and warns of what would not fail but be wrong."""
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise TypeError(
            f"images are {images.dtype}: pass uint8 with values 0..255, images.to(torch.uint8), or normalized floats"
        )
    if images.ndim != 4:
        remedy = "; add the batch axis with images[None]" if images.ndim == 3 else ""
        raise ValueError(f"images must have shape (B, C, H, W), got {tuple(images.shape)}{remedy}")
    channels = _num_channels(model)
    if channels is not None and images.shape[1] != channels:
        if images.shape[3] == channels:
            remedy = "the channels come last; use images.permute(0, 3, 1, 2)"
        elif channels == 1 and images.shape[1] == 3:
            remedy = "for a gray one of RGB use torchvision.transforms.v2.functional.rgb_to_grayscale(images)"
        elif channels == 3 and images.shape[1] == 1:
            remedy = "for RGB of a gray one use images.expand(-1, 3, -1, -1)"
        else:
            remedy = "pass images of that kind"
        raise ValueError(f"images have shape {tuple(images.shape)}, the model takes {channels} channels: {remedy}")
    # A model of timm only asserts; one of this library says what can be done.
    patch_embed = getattr(model, "patch_embed", None)
    if getattr(patch_embed, "strict_img_size", False) and images.shape[2:] != tuple(patch_embed.img_size):
        (height, width), size = images.shape[2:], patch_embed.img_size
        raise ValueError(
            f"images are {height}x{width} pixels, the model was built for {size[0]}x{size[1]}: resize them, as "
            f"vit.data.resize(data, {tuple(size)}) does"
        )
    if images.dtype != torch.uint8 and images.numel():
        _check_values(images, facts_of(model))


def _num_channels(model: nn.Module) -> int | None:
    """Of the model's images: what its first convolution takes; None where it has none, and nobody can tell."""
    return next((part.in_channels for part in model.modules() if isinstance(part, nn.Conv2d)), None)


def _check_values(images: Tensor, facts: Mapping[str, Any]) -> None:
    low, high = (value.item() for value in images.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        bad = (~images.flatten(1).isfinite().all(dim=1)).nonzero().flatten()
        raise ValueError(f"images[{int(bad[0])}] has NaN or infinite pixels ({len(bad)} such images in all)")
    largest = max(high, -low)
    if largest > 20:
        warnings.warn(
            f"the largest pixel is {largest:.0f}, far outside normalized images (about -3 to 3); "
            "pass uint8 images, or normalize these",
            stacklevel=5,
        )
    elif low >= 0 and 0 < high <= 1 and max(map(abs, facts.get("mean", (0.0,)))) > 0.05:
        warnings.warn(
            f"all pixels lie in {low:.2f}..{high:.2f}, as if they were scaled to 0..1 but not normalized, which "
            "the model needs; pass (255 * images).round().to(torch.uint8), or "
            "(images - mean) / std with the mean and std of the model's metadata",
            stacklevel=5,
        )
