"""Faithfulness: models whose right order is known, a patch-by-patch reference, closed forms, and what chance gives."""

from dataclasses import replace
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from conftest import randomize
from torch import nn

from vit.analysis.faithfulness import (
    area,
    deletion_curve,
    insertion_curve,
    mask_area,
    mask_share,
    pointing_chance,
    pointing_game,
)
from vit.model.vision_transformer import VisionTransformer

CURVES = (deletion_curve, insertion_curve)
PATCH = (2, 3)


class KnownModel(nn.Module):
    """The probability of class 1 is a weighted mean of the patches: 1 for an image of ones, 0 for an empty one."""

    num_prefix_tokens, num_classes = 0, 2

    def __init__(self, weights: torch.Tensor) -> None:
        super().__init__()
        rows, columns = weights.shape
        self.weights = nn.Parameter(weights / weights.sum())
        self.patch_embed = SimpleNamespace(
            img_size=(rows * PATCH[0], columns * PATCH[1]), grid_size=(rows, columns), patch_size=PATCH
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        means = nn.functional.avg_pool2d(images.mean(1, keepdim=True), PATCH)[:, 0]
        p = (self.weights * means).sum((1, 2)).clamp(1e-9, 1 - 1e-7)
        return torch.stack([1 - p, p], dim=1).log()


def ones(model: nn.Module, count: int) -> torch.Tensor:
    return torch.ones(count, 3, *model.patch_embed.img_size)


def random_maps(count: int, grid: tuple[int, int], seed: int = 0) -> torch.Tensor:
    return torch.rand(count, *grid, generator=torch.Generator().manual_seed(seed))


def test_curves_are_the_running_sums_of_a_linear_model():
    model = KnownModel(random_maps(1, (3, 4), seed=1)[0])
    heat = random_maps(5, (3, 4))
    targets = torch.tensor([1, 1, 0, 1, 0])
    weights = model.weights.detach().double().numpy().ravel()
    shown = np.array([np.append(0, weights[np.argsort(-h.numpy().ravel())].cumsum()) for h in heat])  # (5, 13)
    for curve, p in zip(CURVES, (1 - shown, shown), strict=True):
        result = curve(model, ones(model, 5), heat, targets, steps=12)
        of_target = np.where(targets[:, None] == 1, p, 1 - p)
        torch.testing.assert_close(result.double(), torch.from_numpy(of_target), rtol=0, atol=1e-6)
        assert result.dtype == torch.float32


def test_of_all_orders_the_right_one_is_best_and_its_reverse_worst():
    model = KnownModel(torch.tensor([[5.0, 1.0, 9.0], [2.0, 7.0, 4.0]]))
    orders = torch.tensor(list(permutations(range(6)))).float().view(-1, 2, 3)  # every order of six patches
    targets = torch.ones(len(orders), dtype=torch.int64)
    images = ones(model, len(orders))
    deletion, insertion = (area(curve(model, images, orders, targets, steps=6)) for curve in CURVES)
    right = torch.tensor([[3.0, 0.0, 5.0], [1.0, 4.0, 2.0]])
    best = int((orders == right).all(dim=(1, 2)).nonzero())
    worst = int((orders == 5 - right).all(dim=(1, 2)).nonzero())
    assert deletion.argmin() == best and deletion.argmax() == worst
    assert insertion.argmax() == best and insertion.argmin() == worst
    assert deletion.sort().values.diff()[[0, -1]].min() > 1e-3, "no other order may come as far"
    # Over all orders, each patch is on average as early as late.
    torch.testing.assert_close(deletion.mean(), torch.tensor(0.5), rtol=0, atol=1e-5)


def test_stages_are_spread_evenly():
    model = KnownModel(torch.ones(3, 5))
    for steps in (1, 2, 4, 7, 14, 15):
        curve = deletion_curve(model, ones(model, 1), random_maps(1, (3, 5)), torch.tensor([1]), steps=steps)[0]
        even = torch.linspace(1, 0, steps + 1)
        assert curve.shape == even.shape
        assert (curve - even).abs().max() <= 0.5 / 15 + 1e-6, "at most half a patch from an even share"
        torch.testing.assert_close(curve[[0, -1]], torch.tensor([1.0, 0.0]), rtol=0, atol=1e-6)


def test_an_even_map_is_scored_as_a_random_order_and_not_as_a_scan():
    half = torch.cat([torch.ones(4, 8), torch.zeros(4, 8)])  # all that matters is in the upper half
    model = KnownModel(half)
    scan = torch.arange(64.0).flip(0).view(8, 8)
    heat = torch.stack([scan, torch.full((8, 8), 0.3), torch.zeros(8, 8), *random_maps(200, (8, 8))])
    areas = area(deletion_curve(model, ones(model, len(heat)), heat, torch.ones(len(heat), dtype=torch.int64)))
    torch.testing.assert_close(areas[0], torch.tensor(0.25), rtol=0, atol=1e-5)
    assert areas[1] == areas[2], "the order of ties is fixed"
    random = areas[3:]
    assert abs(random.mean() - 0.5) < 0.01
    assert abs(areas[1] - 0.5) < 3 * random.std() < 0.15


def test_only_ties_are_shuffled():
    weights = torch.ones(4, 4)
    weights[2, 1] = 100.0
    model = KnownModel(weights)
    hot = torch.zeros(1, 4, 4)
    hot[0, 2, 1] = 1e-6
    curve = deletion_curve(model, ones(model, 1), hot, torch.tensor([1]))[0]
    torch.testing.assert_close(curve, torch.cat([torch.ones(1), torch.arange(15, -1, -1) / 115]), rtol=0, atol=1e-6)


def vision_transformer(tiny, **options) -> nn.Module:
    return randomize(VisionTransformer(replace(tiny, image_size=(8, 12), **options)))


MODELS = {
    "cls": vision_transformer,
    "mean_rope_registers": lambda tiny: vision_transformer(tiny, pool="mean", pos_embed="rope", num_registers=2),
    "timm": lambda tiny: randomize(
        timm.models.VisionTransformer(
            img_size=(8, 12), patch_size=4, embed_dim=16, depth=1, num_heads=2, num_classes=10
        )
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_curves_equal_a_patch_by_patch_reference(name, tiny, monkeypatch):
    model = MODELS[name](tiny).train()
    images = torch.randn(5, 3, 8, 12, generator=torch.Generator().manual_seed(1))
    heat, targets = random_maps(5, (2, 3)), torch.tensor([3, 0, 9, 5, 5])
    monkeypatch.setattr("vit.analysis.inputs.CHUNK_TOKENS", 20)  # two images at a time, and one left
    deletion, insertion = (curve(model, images, heat, targets, steps=3) for curve in CURVES)
    assert model.training
    model.eval()
    for b in range(5):
        without, only = images[b].clone(), torch.zeros(3, 8, 12)
        for place, patch in enumerate([None, *heat[b].flatten().argsort(descending=True).tolist()]):
            if patch is not None:
                y, x = 4 * (patch // 3), 4 * (patch % 3)
                only[:, y : y + 4, x : x + 4] = images[b, :, y : y + 4, x : x + 4]
                without[:, y : y + 4, x : x + 4] = 0
            if place % 2 == 0:
                with torch.no_grad():
                    p = model(torch.stack([without, only])).softmax(1)[:, targets[b]]
                stage = torch.stack([deletion[b, place // 2], insertion[b, place // 2]])
                torch.testing.assert_close(stage, p, rtol=0, atol=1e-6)


def test_deleting_the_hottest_first_is_inserting_the_coldest_first_backwards(tiny):
    model = vision_transformer(tiny)
    model.metadata = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.25)}
    images = torch.randint(0, 256, (3, 3, 8, 12), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    heat, targets = random_maps(3, (2, 3)), torch.tensor([1, 2, 3])
    deletion = deletion_curve(model, images, heat, targets, steps=6)
    insertion = insertion_curve(model, images, 1 - heat, targets, steps=6)
    torch.testing.assert_close(deletion, insertion.flip(1), rtol=0, atol=1e-6)
    assert (deletion[:, 0] - deletion[:, -1]).abs().max() > 0.01
    of_one_class = deletion_curve(model, images, heat, 2, steps=6)
    torch.testing.assert_close(of_one_class[1], deletion[1])
    assert (of_one_class[0] - deletion[0]).abs().max() > 0.01
    assert deletion_curve(model, images[:0], heat[:0], targets[:0], steps=6).shape == (0, 7)


def test_area_equals_closed_forms():
    x = torch.linspace(0, 1, 17, dtype=torch.float64)
    curves = torch.stack([torch.full_like(x, 0.3), 1 - x, x**2, (x >= 0.5).double()])
    expected = [0.3, 0.5, 1 / 3 + 1 / (6 * 16**2), 0.5 + 1 / 32]  # trapezoids are above a parabola by h^2 / 6
    assert area(curves).tolist() == pytest.approx(expected, abs=1e-12)
    assert area(torch.tensor([1.0, 0.0])).item() == 0.5


def random_masks(count: int, size: tuple[int, int], seed: int = 0) -> torch.Tensor:
    return torch.rand(count, *size, generator=torch.Generator().manual_seed(seed)) < 0.4


def test_mask_share_equals_a_sum_over_pixels():
    heat, masks = random_maps(4, (3, 5)), random_masks(4, (6, 20))
    pixels = np.stack([np.kron(h, np.ones((2, 4))) for h in heat.double().numpy()])  # (4, 6, 20)
    expected = (pixels * masks.numpy()).sum((1, 2)) / pixels.sum((1, 2))
    torch.testing.assert_close(mask_share(heat, masks).double(), torch.from_numpy(expected), rtol=0, atol=1e-6)
    torch.testing.assert_close(mask_share(1000 * heat, masks), mask_share(heat, masks))


def test_arrays_of_numpy_are_measured_as_tensors_are():
    """As other libraries give heat maps, and files masks."""
    model, heat = KnownModel(random_maps(1, (3, 4), seed=1)[0]), random_maps(5, (3, 4))
    masks = random_maps(5, (6, 12), seed=2) > 0.6
    for score in (mask_share, pointing_game):
        assert torch.equal(score(heat.numpy(), masks.numpy()), score(heat, masks))
    assert torch.equal(mask_area(masks.numpy()), mask_area(masks))
    assert torch.equal(pointing_chance(masks.numpy(), (3, 4)), pointing_chance(masks, (3, 4)))
    for curve in CURVES:
        drawn = curve(model, ones(model, 5), heat, 1)
        assert torch.equal(curve(model, ones(model, 5), heat.numpy(), 1), drawn)
        assert torch.equal(area(drawn.numpy()), area(drawn))


def test_mask_share_of_even_empty_and_pointed_maps():
    masks = random_masks(3, (6, 20))
    masks[:, 2:4, 4:8], masks[:, 4:6, 8:12] = True, False
    expected = torch.tensor([mask.double().mean() for mask in masks]).float()
    for even in (torch.full((3, 3, 5), 0.7), torch.zeros(3, 3, 5)):
        torch.testing.assert_close(mask_share(even, masks), expected)
    torch.testing.assert_close(mask_area(masks), expected)
    inside, outside = torch.zeros(2, 3, 3, 5)
    inside[:, 1, 1], outside[:, 2, 2] = 0.2, 0.2
    assert mask_share(inside, masks).tolist() == [1.0] * 3 and pointing_game(inside, masks).all()
    assert mask_share(outside, masks).tolist() == [0.0] * 3 and not pointing_game(outside, masks).any()


def test_a_hit_has_half_of_the_hottest_patch_on_the_object():
    masks = torch.zeros(2, 4, 8, dtype=torch.bool)
    masks[0, 0, :2] = masks[1, :2, 1] = masks[1, 3, 6] = True
    masks[0, 2:, 6:] = True
    heat = torch.zeros(2, 2, 4)
    heat[:, 0, 0] = 1.0
    assert pointing_game(heat, masks).tolist() == [True, True]
    masks[0, 0, 0] = masks[1, 1, 1] = False
    assert pointing_game(heat, masks).tolist() == [False, False]


def test_chance_is_what_a_random_patch_gives():
    masks = random_masks(6, (6, 20))
    every_patch = torch.eye(15).view(15, 3, 5)
    hits = torch.stack([pointing_game(patch.expand(6, 3, 5), masks) for patch in every_patch]).float()
    assert 0.1 < hits.mean() < 0.9
    torch.testing.assert_close(pointing_chance(masks, (3, 5)), hits.mean(0))
    shares = torch.stack([mask_share(patch.expand(6, 3, 5), masks) for patch in every_patch])
    torch.testing.assert_close(mask_area(masks), shares.mean(0))


def test_an_even_map_points_at_no_corner():
    masks = torch.zeros(4, 8, 8, dtype=torch.bool)
    for mask, (y, x) in zip(masks, [(0, 0), (0, 7), (7, 0), (7, 7)], strict=True):
        mask[y, x] = True
    assert not pointing_game(torch.ones(4, 8, 8), masks).any()


@pytest.mark.parametrize("grid", [(3, 4), (4, 5)])
def test_there_are_no_more_stages_than_patches(grid):
    model, maps = KnownModel(random_maps(1, grid)[0]), random_maps(2, grid, seed=1)
    for curve in CURVES:
        expected = curve(model, ones(model, 2), maps, 1, steps=min(16, grid[0] * grid[1]))
        assert torch.equal(curve(model, ones(model, 2), maps, 1), expected)


def test_numpys_number_of_steps_is_a_number():
    model, maps = KnownModel(torch.arange(6.0).view(2, 3)), random_maps(2, (2, 3))
    for curve in CURVES:
        assert torch.equal(
            curve(model, ones(model, 2), maps, 0, steps=np.int64(3)), curve(model, ones(model, 2), maps, 0, steps=3)
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heatmaps": torch.ones(2, 3, 2)}, r"heatmaps have shape \(2, 3, 2\), not \(2, 2, 3\)"),
        ({"heatmaps": torch.ones(1, 2, 3)}, r"heatmaps have shape \(1, 2, 3\), not \(2, 2, 3\)"),
        ({"heatmaps": -torch.ones(2, 2, 3)}, "finite and 0 or more, got -1 to -1"),
        ({"heatmaps": torch.full((2, 2, 3), torch.nan)}, "finite and 0 or more, got nan"),
        ({"targets": torch.tensor([1, 2])}, r"targets=\[2\] must be among the classes 0..1"),
        ({"targets": torch.tensor([-1, 0])}, r"targets=\[-1\] must be among the classes 0..1"),
        ({"targets": 2}, r"targets=\[2, 2\] must be among the classes 0..1"),
        ({"targets": torch.tensor([1])}, r"targets have shape \(1,\), the images are 2"),
        ({"targets": torch.tensor([1.0, 0.0])}, "targets=.* must be the number of a class"),
        ({"steps": 0}, "steps=0 must be an integer in 1..6"),
        ({"steps": 7}, "steps=7 must be an integer in 1..6"),
        ({"steps": 2.0}, "steps=2.0 must be an integer in 1..6"),
    ],
)
def test_curves_refuse_what_does_not_fit(change, message):
    model = KnownModel(torch.ones(2, 3))
    model.forward = None  # refused before any work
    arguments = {"heatmaps": torch.ones(2, 2, 3), "targets": torch.tensor([0, 1]), "steps": 3} | change
    for curve in CURVES:
        with pytest.raises((TypeError, ValueError), match=message):
            curve(model, ones(model, 2), **arguments)


def test_a_model_without_classes_is_refused(tiny):
    for model in (
        VisionTransformer(replace(tiny, num_classes=0)),
        timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=0),
    ):
        for curve in CURVES:
            with pytest.raises(ValueError, match=r"the model has no classes \(num_classes=0\)"):
                curve(model, torch.zeros(2, 3, 8, 8), torch.ones(2, 2, 2), 0)


def test_masks_and_curves_of_other_shapes_are_refused():
    masks = random_masks(2, (6, 20))
    for score in (mask_share, pointing_game):
        with pytest.raises(ValueError, match=r"masks must be bool \(B, H, W\), got torch.float32 \(2, 6, 20\)"):
            score(torch.ones(2, 3, 5), masks.float())
        with pytest.raises(ValueError, match="heatmaps of 4x5 patches do not divide masks of 6x20 pixels"):
            score(torch.ones(2, 4, 5), masks)
        with pytest.raises(ValueError, match=r"heatmaps have shape \(3, 5\), not \(2, rows, columns\)"):
            score(torch.ones(3, 5), masks)
        with pytest.raises(ValueError, match="finite and 0 or more, got -1 to -1"):
            score(-torch.ones(2, 3, 5), masks)
    with pytest.raises(ValueError, match=r"curves of shape \(3, 1\) have no two stages"):
        area(torch.ones(3, 1))
