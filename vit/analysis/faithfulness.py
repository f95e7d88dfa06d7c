"""How well a heat map says what a model needs: attention is not an explanation until it is tested as one.

Two tests ask the model alone: take the hottest patches away, or show nothing else, and watch the probability of the
class (Petsiuk et al., "RISE", BMVC 2018). Two need the true mask of the object: the share of heat inside it, and the
pointing game (Zhang et al., "Top-down Neural Attention by Excitation Backprop", IJCV 2018). A patch that is taken away
becomes 0 in normalized space, the training set's mean color. The model has seen no such images in training: compare the
scores of several maps on one model, not of several models.
"""

from __future__ import annotations

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from vit.analysis.inputs import (
    Images,
    Targets,
    as_targets,
    check_classes,
    check_has_classes,
    images_at_once,
    prepare_images,
    probabilities_of,
)
from vit.analysis.layout import token_layout
from vit.analysis.metrics import as_tensor
from vit.arguments import as_integer
from vit.modules import eval_mode, unwrap

STEPS = 16  # of a curve, unless told otherwise


def deletion_curve(
    model: nn.Module, images: Images, heatmaps: ArrayLike, targets: Targets, *, steps: int | None = None
) -> Tensor:
    """Probability of the target class (B, steps + 1) as the patches vanish, hottest first; low is good.

    Equally hot patches vanish in one pseudo-random order, the same for every image.

    Args:
        images: anything `prepare_images` takes.
        heatmaps: (B, rows, columns), 0 or more for each patch; only their order counts.
        targets: the class whose probability is followed, one for all or a tensor (B,).
        steps: 1 to the number of patches; default 16, or that number where it is less. At stage s, s / steps of the
            patches are gone, rounded to whole ones.

    Raises:
        ValueError: an argument of another shape or range, or a model without classes or with a single logit.
    """
    return _curve(model, images, heatmaps, targets, steps, is_deletion=True)


def insertion_curve(
    model: nn.Module, images: Images, heatmaps: ArrayLike, targets: Targets, *, steps: int | None = None
) -> Tensor:
    """Probability of the target class (B, steps + 1) as the patches enter an empty image, hottest first; high is good.

    Differs: in the paper the image is blurred before its patches return; here it is empty, as deletion leaves it.

    Args: as for `deletion_curve`.
    """
    return _curve(model, images, heatmaps, targets, steps, is_deletion=False)


def area(curves: ArrayLike) -> Tensor:
    """The area (...) under curves (..., stages), by trapezoids over an axis from 0 to 1: a mean probability."""
    curves = as_tensor(curves)
    if curves.ndim < 1 or curves.shape[-1] < 2:
        raise ValueError(f"curves of shape {tuple(curves.shape)} have no two stages in their last dimension")
    return torch.trapezoid(curves, dim=-1) / (curves.shape[-1] - 1)


def mask_share(heatmaps: ArrayLike, masks: ArrayLike) -> Tensor:
    """The share (B,) of the heat that lies inside the object, with each patch's heat spread evenly over its pixels.

    A map that is 0 everywhere counts as an even one. By chance, for an even map: `mask_area`.

    Args:
        heatmaps: (B, rows, columns), 0 or more.
        masks: bool (B, H, W), true on the object; rows divides H and columns divides W.
    """
    heatmaps, inside = _mask_inside(heatmaps, masks)  # 2 x (B, rows, columns)
    heat = heatmaps.double().flatten(1)  # (B, N)
    heat = torch.where(heat.sum(1, keepdim=True) > 0, heat, 1.0)
    return ((heat * inside.flatten(1)).sum(1) / heat.sum(1)).float()


def mask_area(masks: ArrayLike) -> Tensor:
    """The share (B,) of the image that the object covers: the `mask_share` of a map that knows nothing."""
    return _as_masks(masks).float().flatten(1).mean(dim=1)


def pointing_game(heatmaps: ArrayLike, masks: ArrayLike) -> Tensor:
    """Whether each map's hottest patch is on the object: bool (B,). By chance, as often as `pointing_chance`.

    Differs: the paper's maps have a hottest pixel, and a hit is one within 15 pixels of the object. Here the hottest
    place is a patch, and a hit has at least half of its pixels in the mask, so that touching a large object with a
    corner is none.
    """
    heatmaps, inside = _mask_inside(heatmaps, masks)  # 2 x (B, rows, columns)
    hits = inside.flatten(1) >= 0.5  # (B, N)
    return hits.gather(1, _hottest_first(heatmaps)[:, :1])[:, 0]


def pointing_chance(masks: ArrayLike, grid_size: tuple[int, int]) -> Tensor:
    """How often a random patch of the grid (rows, columns) wins the pointing game: its probability (B,)."""
    even = torch.ones(len(masks), *grid_size, device="cpu")
    return (_mask_inside(even, masks)[1] >= 0.5).float().flatten(1).mean(dim=1)


@torch.no_grad()
def _curve(
    model: nn.Module,
    images: Images,
    heatmaps: ArrayLike,
    targets: Targets,
    steps: int | None,
    *,
    is_deletion: bool,
) -> Tensor:
    check_has_classes(model)
    layout = token_layout(model)
    images = prepare_images(model, images)
    heatmaps = _as_heatmaps(heatmaps, len(images), layout.grid_size)
    targets = as_targets(targets, len(images))
    inner = unwrap(model)
    num_classes = getattr(inner, "config", inner).num_classes  # a model of timm has no config
    check_classes(targets, num_classes)
    steps = min(STEPS, layout.num_patches) if steps is None else steps
    steps = as_integer("steps", steps, 1, layout.num_patches, remedy=", the number of patches")

    # The place of each patch in the order, 0 for the hottest, seen as an image.
    places = _hottest_first(heatmaps).argsort(dim=1).view(len(images), 1, *layout.grid_size)  # (B, 1, rows, columns)
    places = places.to(images.device)
    height, width = layout.patch_size
    counts = [round(stage * layout.num_patches / steps) for stage in range(steps + 1)]
    chunk = images_at_once(model)
    curves = torch.empty(len(images), steps + 1, device="cpu")
    with eval_mode(model):
        for start in range(0, len(images), chunk):
            part = slice(start, start + chunk)
            place = places[part].repeat_interleave(height, dim=2).repeat_interleave(width, dim=3)  # (b, 1, H, W)
            target = targets[part, None].to(images.device)  # (b, 1)
            for stage, count in enumerate(counts):
                is_shown = (place >= count) if is_deletion else (place < count)  # (b, 1, H, W)
                probabilities = probabilities_of(model(images[part] * is_shown))  # (b, K)
                curves[part, stage] = probabilities.gather(1, target)[:, 0].cpu()
    return curves


def _hottest_first(heatmaps: Tensor) -> Tensor:
    """The patches (B, N) of each map in falling order of heat, ties in a pseudo-random order.

    By position, ties would be read as a scan from the top, which on pictures with the object in the middle is far
    from random.
    """
    heat = heatmaps.flatten(1)  # (B, N)
    shuffled = torch.randperm(heat.shape[1], generator=torch.Generator().manual_seed(0), device="cpu")  # (N,)
    return shuffled[heat[:, shuffled].argsort(dim=1, descending=True, stable=True)]


def _mask_inside(heatmaps: ArrayLike, masks: ArrayLike) -> tuple[Tensor, Tensor]:
    """The heat maps, and the share of each patch's pixels that is on the object, (B, rows, columns) each."""
    masks = _as_masks(masks)
    heatmaps = _as_heatmaps(heatmaps, len(masks))
    (rows, columns), (height, width) = heatmaps.shape[1:], masks.shape[1:]
    if height % rows or width % columns:
        raise ValueError(f"heatmaps of {rows}x{columns} patches do not divide masks of {height}x{width} pixels")
    patches = masks.float().unflatten(2, (columns, -1)).unflatten(1, (rows, -1))  # (B, rows, p, columns, p)
    return heatmaps, patches.mean(dim=(2, 4))


def _as_masks(masks: ArrayLike) -> Tensor:
    masks = as_tensor(masks)
    if masks.dtype != torch.bool or masks.ndim != 3:
        raise ValueError(f"masks must be bool (B, H, W), got {masks.dtype} {tuple(masks.shape)}")
    return masks


def _as_heatmaps(heatmaps: ArrayLike, num_images: int, grid_size: tuple[int, int] | None = None) -> Tensor:
    heatmaps = as_tensor(heatmaps)
    shape = tuple(heatmaps.shape)
    if len(shape) != 3 or shape[0] != num_images or (grid_size is not None and shape[1:] != grid_size):
        rows, columns = grid_size or ("rows", "columns")
        raise ValueError(f"heatmaps have shape {shape}, not ({num_images}, {rows}, {columns}): one map an image")
    if heatmaps.numel() and not (heatmaps.isfinite().all() and heatmaps.min() >= 0):
        raise ValueError(
            f"heatmaps must be finite and 0 or more, got {heatmaps.min():.3g} to {heatmaps.max():.3g}; a map says how "
            "much a patch matters, so clamp what is negative"
        )
    return heatmaps
