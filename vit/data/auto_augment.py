"""TrivialAugment and RandAugment, one draw per image, on the device the batch is on.

An image's draw is an operation and a magnitude. To run each operation on its own images would be to wait for
a GPU to say which they are. So all images go through three stages, whose parameters leave an image alone
unless its operation is there: a warp (every geometric operation, one gather), a blend with a degenerate image
(brightness, color, contrast, sharpness) and a table of the 256 gray levels (posterize, solarize,
auto-contrast, equalize).
Operations, ranges and gray levels are those of torchvision's `TrivialAugmentWide` and `RandAugment` on uint8
tensors, with the nearest pixel taken and black outside.
Sources: Mueller and Hutter 2021, arXiv:2103.10158; Cubuk et al. 2020, arXiv:1909.13719.
"""

import functools

import torch
from torch import Tensor

OPS = (
    "Identity",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
)
NUM_BINS = 31
_FIRST_SIGNED, _LAST_SIGNED = OPS.index("ShearX"), OPS.index("Sharpness")  # from here to there a random sign


def trivial_augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Apply to each image one operation drawn uniformly, with a strength drawn uniformly from its range.

    Translations reach 32 pixels whatever the image's size, so a small image may leave the frame altogether.

    Args:
        images: uint8 (B, C, H, W) with 1 or 3 channels.
    Returns: uint8 (B, C, H, W).
    Source: Mueller and Hutter 2021, section 3, in the wide search space.
    """
    _check_channels(images, generator)
    table = _magnitudes("trivial", 0, 0, images.device)
    bins = torch.randint(NUM_BINS, (len(images),), generator=generator, device=images.device)
    return _random_ops(images, table, bins, generator)


def rand_augment(images: Tensor, generator: torch.Generator, num_ops: int = 2, magnitude: int = 9) -> Tensor:
    """Apply to each image `num_ops` operations drawn uniformly, one after the other, all of one strength.

    Args:
        images: uint8 (B, C, H, W) with 1 or 3 channels.
        num_ops: 0 or more.
        magnitude: strength on a scale of 0 (none) to 30.
    Returns: uint8 (B, C, H, W).
    Source: Cubuk et al. 2020, section 3.
    """
    _check_channels(images, generator)
    if num_ops < 0:
        raise ValueError(f"num_ops={num_ops} is negative; it is the number of operations an image; try 2")
    if not 0 <= magnitude < NUM_BINS:
        raise ValueError(f"magnitude={magnitude} is not in 0..{NUM_BINS - 1}; try 9")
    table = _magnitudes("rand", images.shape[2], images.shape[3], images.device)
    bins = torch.full((len(images),), magnitude, device=images.device)
    for _ in range(num_ops):
        images = _random_ops(images, table, bins, generator)
    return images


def apply_ops(images: Tensor, op_idx: Tensor, magnitudes: Tensor) -> Tensor:
    """Apply operation `OPS[op_idx[b]]` with `magnitudes[b]` to image b.

    Args:
        images: uint8 (B, C, H, W) with 1 or 3 channels.
        op_idx: int64 (B,).
        magnitudes: float32 (B,): slope of a shear, pixels of a translation (rounded towards 0), degrees of
            a rotation (counterclockwise), factor of a blend minus 1, bits that posterize keeps, lowest level
            that solarize inverts; else unused.
    Returns: uint8 (B, C, H, W).
    """
    _check_channels(images)
    is_op = {name: op_idx == index for index, name in enumerate(OPS)}
    images = _warp(images, is_op, magnitudes)
    images = _blend(images, is_op, magnitudes)
    return _map_levels(images, is_op, magnitudes)


def check_images(images: Tensor, generator: torch.Generator | None = None) -> None:
    """Raise a ValueError unless `images` is uint8 (B, C, H, W) and `generator` is on its kind of device."""
    if images.dtype != torch.uint8:
        raise ValueError(f"images are {images.dtype}, not uint8; augment before normalizing")
    if images.ndim != 4:
        raise ValueError(
            f"images have shape {tuple(images.shape)}, not (B, C, H, W); pass one image as image.unsqueeze(0)"
        )
    if generator is not None and generator.device.type != images.device.type:
        raise ValueError(
            f"generator is on {generator.device} but images are on {images.device}; "
            f"make it with torch.Generator(device={images.device.type!r})"
        )


def _check_channels(images: Tensor, generator: torch.Generator | None = None) -> None:
    check_images(images, generator)
    if images.shape[1] not in (1, 3):
        raise ValueError(
            f"images have {images.shape[1]} channels; color operations need 1 (gray) or 3 (RGB); "
            "use crop, flip and erasing for other images"
        )


@functools.lru_cache(maxsize=32)
def _magnitudes(space: str, height: int, width: int, device: torch.device) -> Tensor:
    """Magnitude of each operation at each strength, (len(OPS), NUM_BINS), for images of this size.

    Cached, so that it is copied to a GPU, which waits, only once.
    """
    if space == "trivial":
        shear, shift_x, shift_y, degrees, factor, bits_lost = 0.99, 32.0, 32.0, 135.0, 0.99, 6
    else:
        shear, degrees, factor, bits_lost = 0.3, 30.0, 0.9, 4
        shift_x, shift_y = 150 / 331 * width, 150 / 331 * height
    ends = {"ShearX": shear, "ShearY": shear, "TranslateX": shift_x, "TranslateY": shift_y, "Rotate": degrees}
    ends |= dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), factor)
    table = torch.zeros(len(OPS), NUM_BINS)
    for name, end in ends.items():
        table[OPS.index(name)] = torch.linspace(0, end, NUM_BINS)
    table[OPS.index("Posterize")] = 8 - (torch.arange(NUM_BINS) / ((NUM_BINS - 1) / bits_lost)).round()
    table[OPS.index("Solarize")] = torch.linspace(255, 0, NUM_BINS)
    return table.to(device)


def _random_ops(images: Tensor, table: Tensor, bins: Tensor, generator: torch.Generator) -> Tensor:
    op_idx = torch.randint(len(OPS), (len(images),), generator=generator, device=images.device)  # (B,)
    is_minus = torch.randint(2, (len(images),), generator=generator, device=images.device).bool()
    is_minus &= (op_idx >= _FIRST_SIGNED) & (op_idx <= _LAST_SIGNED)
    magnitudes = table[op_idx, bins]  # (B,)
    return apply_ops(images, op_idx, torch.where(is_minus, -magnitudes, magnitudes))


def _warp(images: Tensor, is_op: dict[str, Tensor], magnitudes: Tensor) -> Tensor:
    """Shear about the top left corner, translate, and rotate about the center, each to the nearest pixel."""
    height, width = images.shape[2:]

    def only(name: str) -> Tensor:
        return magnitudes.where(is_op[name], 0.0)[:, None, None]  # (B, 1, 1)

    shear_x, shear_y, angle = only("ShearX"), only("ShearY"), only("Rotate").deg2rad()
    # Pixel centers of the result, from the middle of the image; each finds its place in the source.
    y = (torch.arange(height, device=images.device) + 0.5 - height / 2)[:, None]  # (H, 1)
    x = torch.arange(width, device=images.device) + 0.5 - width / 2  # (W,)
    source_x = angle.cos() * x - angle.sin() * y + shear_x * (y + height / 2) - only("TranslateX").trunc()
    source_y = angle.sin() * x + angle.cos() * y + shear_y * (x + width / 2) - only("TranslateY").trunc()
    source_x = (source_x + (width / 2 - 0.5)).round().long()  # (B, H, W)
    source_y = (source_y + (height / 2 - 0.5)).round().long()  # (B, H, W)
    is_inside = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)
    source = (source_y * width + source_x).where(is_inside, 0).flatten(1)[:, None]  # (B, 1, H*W)
    warped = images.flatten(2).gather(2, source.expand(-1, images.shape[1], -1))  # (B, C, H*W)
    return warped.view(images.shape) * is_inside[:, None]  # (B, C, H, W)


def _blend(images: Tensor, is_op: dict[str, Tensor], magnitudes: Tensor) -> Tensor:
    """Brightness, color, contrast, sharpness: away from black, gray, mean gray or blur by 1 + magnitude."""
    is_op = {name: where[:, None, None, None] for name, where in is_op.items()}  # (B, 1, 1, 1)
    pixels = images.float()
    if images.shape[1] == 3:
        red, green, blue = pixels[:, 0:1], pixels[:, 1:2], pixels[:, 2:3]
        gray = (0.2989 * red + 0.587 * green + 0.114 * blue).floor()  # (B, 1, H, W)
        is_blended = is_op["Brightness"] | is_op["Color"] | is_op["Contrast"] | is_op["Sharpness"]
    else:
        gray = pixels  # its own color: a blend could only lose a level to rounding
        is_blended = is_op["Brightness"] | is_op["Contrast"] | is_op["Sharpness"]
    amount = magnitudes[:, None, None, None].where(is_blended, 0.0)
    other = gray.mean((1, 2, 3), keepdim=True).where(is_op["Contrast"], 0.0)  # black for brightness
    other = _blur(pixels).where(is_op["Sharpness"], gray.where(is_op["Color"], other))  # (B, C, H, W)
    return ((1 + amount) * pixels).sub_(other.mul_(amount)).clamp_(0, 255).to(torch.uint8)  # (B, C, H, W)


def _blur(pixels: Tensor) -> Tensor:
    """Mean of the 3 x 3 neighbors in which the middle counts 5 times, rounded; the border stays as it is."""
    if min(pixels.shape[2:]) <= 2:
        return pixels
    sums = pixels[:, :, :-2] + pixels[:, :, 1:-1] + pixels[:, :, 2:]  # (B, C, H-2, W)
    sums = sums[..., :-2] + sums[..., 1:-1] + sums[..., 2:]  # (B, C, H-2, W-2)
    blurred = pixels.clone()
    blurred[:, :, 1:-1, 1:-1] = sums.add_(pixels[:, :, 1:-1, 1:-1], alpha=4).div_(13).round_()
    return blurred


def _map_levels(images: Tensor, is_op: dict[str, Tensor], magnitudes: Tensor) -> Tensor:
    """Posterize, solarize, auto-contrast, equalize: a table of what each gray level of a channel becomes."""
    pixels = images.flatten(2)  # (B, C, H*W)
    darkest, brightest = (find(2, keepdim=True).long() for find in (pixels.amin, pixels.amax))  # (B, C, 1)
    pixels, levels = pixels.long(), torch.arange(256, device=images.device)
    threshold = magnitudes.where(is_op["Solarize"], 256.0)[:, None, None]  # (B, 1, 1)
    table = torch.where(levels < threshold, levels, 255 - levels)  # (B, 1, 256)
    bits_cut = (8 - magnitudes).where(is_op["Posterize"], 0.0).long()[:, None, None]
    table = (table >> bits_cut) << bits_cut
    is_stretched, is_equalized = (is_op[name][:, None, None] for name in ("AutoContrast", "Equalize"))
    table = _stretch(levels, darkest, brightest).where(is_stretched, table)  # (B, C, 256)
    table = _equalize(levels, pixels, brightest).where(is_equalized, table)  # (B, C, 256)
    return table.to(torch.uint8).gather(2, pixels).view(images.shape)  # (B, C, H, W)


def _stretch(levels: Tensor, darkest: Tensor, brightest: Tensor) -> Tensor:
    """Auto-contrast: the darkest level of a channel becomes 0, its brightest 255."""
    scale = 255 / (brightest - darkest)  # infinite for a channel of one level, which stays
    stretched = ((levels - darkest) * scale).clamp(0, 255).long()
    return stretched.where(brightest > darkest, levels)


def _equalize(levels: Tensor, pixels: Tensor, brightest: Tensor) -> Tensor:
    """Equalize: the levels of a channel are spread so that each holds the same share of the pixels."""
    counts = torch.zeros(*pixels.shape[:2], 256, dtype=torch.int64, device=pixels.device)
    counts = counts.scatter_add(2, pixels, counts.new_ones(()).expand_as(pixels))  # (B, C, 256)
    step = (pixels.shape[2] - counts.gather(2, brightest)) // 255  # 0 for a nearly flat channel, which stays
    below = counts.cumsum(2) - counts
    equalized = ((below + step // 2) // step.clamp(min=1)).clamp(0, 255)
    return equalized.where(step > 0, levels)
