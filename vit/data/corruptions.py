"""Synthetic corruptions of test images, to ask how far a model can be trusted beyond clean ones.

The result for an image is a pure function of (image, kind, strength, seed), whatever else is in the batch: its own
pixels seed its draws, on the CPU. Draws do not depend on the strength, so a stronger corruption is more of the same.
Lengths are shares of the image, so a strength looks alike at every size. Images are uint8 (B, C, H, W), in and out.
In the spirit of: Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", ICLR 2019; Naseer et al., "Intriguing Properties of Vision Transformers", NeurIPS 2021 (patch shuffle).
Differs: the kinds and strengths are this file's own, so accuracies compare with no published table.
"""

import hashlib
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from vit.arguments import as_integer, check_choice
from vit.data.auto_augment import check_images

MAX_STRENGTH = 5
SHUFFLE_GRID = 8  # patches to a side


def corrupt(images: Tensor, kind: str, strength: int, seed: int = 0) -> Tensor:
    """Images corrupted in one way, uint8 (B, C, H, W).

    Args:
        images: uint8 (B, C, H, W).
        kind: one of `KINDS`, s being the strength:
            "noise" adds Gaussian noise of 8 s levels of 255;
            "blur" is Gaussian, of a standard deviation of s / 80 of the shorter side (0.4 s pixels of 32);
            "brightness" adds or subtracts 20 s levels of 255;
            "rotation" turns by 9 s degrees to either side, mirroring what comes in at the edges;
            "occlusion" covers s tenths of the image by a gray rectangle of its shape, anywhere inside;
            "patch_shuffle" moves s fifths of the patches of an 8 x 8 grid to each other's places.
        strength: 0, which changes nothing, to 5.
        seed: 0 or more.
    """
    check_images(images)
    check_choice("kind", kind, KINDS)
    strength = as_integer("strength", strength, 0, MAX_STRENGTH)
    seed = as_integer("seed", seed, 0, 2**63 - 1)
    if strength == 0 or len(images) == 0:
        return images.clone()
    return _CORRUPTIONS[kind](images, strength, seed)


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Turns each image counterclockwise about its center by its own angle (B,), bilinear, mirrored at the edges."""
    check_images(images)
    if degrees.shape != (len(images),):
        raise ValueError(f"degrees have shape {tuple(degrees.shape)}, not ({len(images)},): one angle an image")
    height, width = images.shape[2:]
    angle = degrees.to(images.device).float().deg2rad()
    sin, cos, zero = angle.sin(), angle.cos(), torch.zeros_like(angle)
    # From a place in the result to its source; x and y run from -1 to 1, so a step of each has its own length.
    to_source = torch.stack(
        [
            torch.stack([cos, -sin * height / width, zero], dim=1),
            torch.stack([sin * width / height, cos, zero], dim=1),
        ],
        dim=1,
    )  # (B, 2, 3)
    grid = F.affine_grid(to_source, list(images.shape), align_corners=False)  # (B, H, W, 2)
    turned = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return _to_levels(turned)


def shuffle_patches(images: Tensor, order: Tensor) -> Tensor:
    """Puts patch `order[b, i]` of image b in the place of its patch i, rows of an 8 x 8 grid after each other."""
    B, C, H, W = images.shape
    g = SHUFFLE_GRID
    if H % g or W % g:
        raise ValueError(
            f"images of {H}x{W} pixels cannot be cut into {g}x{g} patches: resize them to multiples of {g}"
        )
    patches = images.reshape(B, C, g, H // g, g, W // g).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)  # (B, N, C, h, w)
    patches = patches[torch.arange(B, device=images.device)[:, None], order]
    return patches.unflatten(1, (g, g)).permute(0, 3, 1, 4, 2, 5).reshape(B, C, H, W)


def _noise(images: Tensor, strength: int, seed: int) -> Tensor:
    noise = _draw(images, seed, lambda generator: torch.randn(images.shape[1:], generator=generator))  # (B, C, H, W)
    return _to_levels(images + 8 * strength * noise)


def _blur(images: Tensor, strength: int, seed: int) -> Tensor:
    from torchvision.transforms.v2.functional import gaussian_blur  # here, so that loading data does not load it

    sigma = strength / 80 * min(images.shape[2:])
    reach = min(math.ceil(3 * sigma), min(images.shape[2:]) - 1)  # mirroring reaches no further than one image
    return gaussian_blur(images, kernel_size=2 * reach + 1, sigma=sigma)


def _brightness(images: Tensor, strength: int, seed: int) -> Tensor:
    return _to_levels(images + 20 * strength * _signs(images, seed)[:, None, None, None])


def _rotation(images: Tensor, strength: int, seed: int) -> Tensor:
    return rotate(images, 9.0 * strength * _signs(images, seed))


def _occlusion(images: Tensor, strength: int, seed: int) -> Tensor:
    place = _draw(images, seed, lambda generator: torch.rand(2, generator=generator))  # (B, 2)
    inside = []
    for axis, side in enumerate(images.shape[2:]):
        length = round(side * (strength / 10) ** 0.5)
        start = (place[:, axis, None] * (side - length + 1)).long()  # (B, 1)
        position = torch.arange(side, device=images.device)
        inside.append((position >= start) & (position < start + length))  # (B, side)
    rows, columns = inside
    gray = torch.full_like(images[:1, :, :1, :1], 128)
    return torch.where(rows[:, None, :, None] & columns[:, None, None, :], gray, images)


def _patch_shuffle(images: Tensor, strength: int, seed: int) -> Tensor:
    N = SHUFFLE_GRID**2
    drawn = _draw(images, seed, lambda generator: torch.randperm(N, generator=generator))  # (B, N)
    moving = drawn[:, : round(N * strength / MAX_STRENGTH)]
    # Each takes the place of the next one drawn: a single cycle, so that none stays where it was.
    order = torch.arange(N, device=images.device).repeat(len(images), 1)
    return shuffle_patches(images, order.scatter(1, moving, moving.roll(1, dims=1)))


def _signs(images: Tensor, seed: int) -> Tensor:
    """-1 or 1 for each image, (B,)."""
    return 2 * _draw(images, seed, lambda generator: torch.randint(2, (), generator=generator)) - 1


def _draw(images: Tensor, seed: int, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
    """What `draw` gives for each image, with a generator seeded by its pixels: (B, ...), on the images' device.

    A loop, since the draws of a batch would depend on an image's place in it; it is short beside a forward pass.
    """
    salt = seed.to_bytes(8, "little")
    draws = []
    for pixels in images.cpu().numpy():
        digest = hashlib.blake2b(pixels.tobytes(), digest_size=8, salt=salt).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        with torch.device("cpu"):
            draws.append(draw(generator))
    return torch.stack(draws).to(images.device)


def _to_levels(pixels: Tensor) -> Tensor:
    return pixels.round().clamp(0, 255).to(torch.uint8)


_CORRUPTIONS = {
    "noise": _noise,
    "blur": _blur,
    "brightness": _brightness,
    "rotation": _rotation,
    "occlusion": _occlusion,
    "patch_shuffle": _patch_shuffle,
}
KINDS = tuple(_CORRUPTIONS)
