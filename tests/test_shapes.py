"""The built-in set: the same for the same seed, balanced, truthful masks, and not solved by color."""

import numpy as np
import pytest
import torch
from torch import Tensor

from vit.data.shapes import CLASS_NAMES, draw, make_shapes
from vit.data.splits import DataSplits


@pytest.fixture(scope="module")
def shapes() -> DataSplits:
    return make_shapes()


def draw_each_class(count: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return draw(np.arange(count) % len(CLASS_NAMES), height, width, np.random.default_rng(0))


def nearest_centroid_accuracy(train: Tensor, train_labels: Tensor, val: Tensor, val_labels: Tensor) -> float:
    centroids = torch.stack([train[train_labels == label].mean(0) for label in range(len(CLASS_NAMES))])
    return (torch.cdist(val, centroids).argmin(1) == val_labels).double().mean().item()


def test_sizes_types_and_names(shapes):
    assert shapes.name == "shapes" and len(shapes.class_names) == len(set(shapes.class_names)) == 10
    for split, count in ((shapes.train, 2000), (shapes.val, 500), (shapes.test, 500)):
        assert split.images.shape == (count, 3, 32, 32) and split.images.dtype == torch.uint8
        assert split.labels.shape == (count,) and split.labels.dtype == torch.int64
        assert split.masks.shape == (count, 32, 32) and split.masks.dtype == torch.bool
        assert split.images.is_contiguous()


def test_the_seed_decides_everything():
    first, again, other = (make_shapes(40, 20, 20, seed=seed) for seed in (3, 3, 4))
    for name in ("train", "val", "test"):
        for field in ("images", "labels", "masks"):
            value = getattr(getattr(first, name), field)
            assert torch.equal(value, getattr(getattr(again, name), field))
            assert not torch.equal(value, getattr(getattr(other, name), field))


def test_no_image_is_in_two_splits(shapes):
    images = torch.cat([split.images.flatten(1) for split in (shapes.train, shapes.val, shapes.test)])
    assert len(images.unique(dim=0)) == 3000


def test_a_split_does_not_depend_on_the_size_of_another():
    assert torch.equal(make_shapes(10, 20, 30).test.images, make_shapes(50, 70, 30).test.images)


@pytest.mark.parametrize("count", [1, 7, 10, 1003])
def test_classes_are_balanced_within_one(count):
    counts = torch.bincount(make_shapes(count, 10, 10, image_size=8).train.labels, minlength=10)
    assert counts.max() - counts.min() <= 1


def test_labels_come_in_no_order(shapes):
    labels = shapes.train.labels
    assert 0.06 < (labels[1:] == labels[:-1]).double().mean() < 0.14


@pytest.mark.parametrize("image_size", [8, 32, (16, 40), (48, 24), 96])
def test_masks_are_neither_empty_nor_full_and_keep_inside(image_size):
    masks = make_shapes(200, 10, 10, image_size=image_size).train.masks
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    assert masks.shape == (200, height, width)
    # As a share of the square about a shape, which is as large at every image size.
    share = masks.flatten(1).double().sum(1) / min(height, width) ** 2
    assert share.min() > 0.03 and share.max() < 0.6
    # A shape may touch the border but is never cut off by it: few of its pixels are there.
    inner = masks[:, 1:-1, 1:-1].sum()
    if min(height, width) >= 16:
        assert inner > 0.97 * masks.sum()


@pytest.mark.parametrize("size", [(32, 32), (20, 44)])
def test_image_and_ground_differ_inside_the_mask_only(size):
    images, masks, grounds = draw_each_class(500, *size)
    is_different = images.astype(int) - grounds
    assert not is_different[~np.repeat(masks[:, None], 3, axis=1)].any()
    # Inside, nearly every pixel stands out from the ground that it covers.
    distance = abs(is_different).max(1)[masks]
    assert (distance > 40).mean() > 0.98


def test_a_shape_has_one_color_and_the_ground_has_many():
    images, masks, _ = draw_each_class(200, 32, 32)
    for image, mask in zip(images, masks, strict=True):
        assert len(np.unique(image[:, mask], axis=1).T) == 1
        assert len(np.unique(image[:, ~mask], axis=1).T) > 50


def test_draws_do_not_depend_on_how_they_are_cut_into_chunks(monkeypatch):
    expected = draw_each_class(30, 32, 32)
    monkeypatch.setattr("vit.data.shapes._CHUNK_PIXELS", 4 * 32 * 32)
    for value, other in zip(expected, draw_each_class(30, 32, 32), strict=True):
        assert abs(value.astype(int) - other).max() <= 1  # matrix products may round otherwise


def test_mean_and_std_are_those_of_train(shapes):
    pixels = shapes.train.images.double() / 255
    assert np.allclose(shapes.mean, pixels.mean((0, 2, 3)), atol=1e-9)
    assert np.allclose(shapes.std, pixels.std((0, 2, 3), correction=0), atol=1e-9)


def test_mean_color_does_not_tell_the_class(shapes):
    train, val = (split.images.double().mean((2, 3)) for split in (shapes.train, shapes.val))
    assert nearest_centroid_accuracy(train, shapes.train.labels, val, shapes.val.labels) < 0.2


def test_the_outline_tells_the_class(shapes):
    """The same classifier on masks, cut out about their centers and scaled alike, is right nearly always."""

    def outlines(masks: Tensor) -> Tensor:
        weight = masks.double() / masks.sum((1, 2), keepdim=True)
        y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
        center_y, center_x = (weight * y).sum((1, 2)), (weight * x).sum((1, 2))
        spread = ((weight * y**2).sum((1, 2)) - center_y**2 + (weight * x**2).sum((1, 2)) - center_x**2).sqrt()
        step = torch.linspace(-2.2, 2.2, 16)
        row = (center_y[:, None] + spread[:, None] * step).round().long().clamp(0, 31)
        column = (center_x[:, None] + spread[:, None] * step).round().long().clamp(0, 31)
        batch = torch.arange(len(masks))[:, None, None]
        return masks[batch, row[:, :, None], column[:, None, :]].double().flatten(1)

    train, val = outlines(shapes.train.masks), outlines(shapes.val.masks)
    assert nearest_centroid_accuracy(train, shapes.train.labels, val, shapes.val.labels) > 0.9


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_train": 0}, "num_train=0"),
        ({"num_test": -5}, "num_test=-5"),
        ({"image_size": 7}, "image_size=7.*try 32"),
        ({"image_size": (32, 4)}, r"image_size=\(32, 4\)"),
        ({"image_size": 32.0}, "image_size=32.0"),
        ({"image_size": (32, 32, 3)}, r"image_size=\(32, 32, 3\)"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": "1"}, "seed='1' must be an integer of 0 or more"),
        ({"num_val": "10"}, "num_val='10' must be an integer of 1 or more"),
        ({"num_train": 10.5}, "num_train=10.5 must be"),
    ],
)
def test_errors_name_the_argument_and_the_remedy(arguments, words):
    with pytest.raises(ValueError, match=words):
        make_shapes(**arguments)
