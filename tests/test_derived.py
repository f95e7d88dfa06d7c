"""Classes, shots and sizes of a dataset, against plain Python over the same labels, and torchvision."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from vit.data import DataSplits, Split, keep_classes, make_shapes, resize, sample_shots
from vit.data.corruptions import corrupt
from vit.data.splits import make_val_split


@pytest.fixture
def data() -> DataSplits:
    """Every image holds its own number and its class, so that it can be followed."""

    def split(size: int, first: int) -> Split:
        numbers = torch.arange(first, first + size)
        labels = numbers * 7 % 5
        images = torch.zeros(size, 3, 4, 4, dtype=torch.uint8)
        images[:, 0], images[:, 1] = numbers[:, None, None], labels[:, None, None]
        return Split(images, labels)

    return DataSplits("numbers", split(100, 0), split(30, 100), split(40, 130), tuple("abcde"), (0.5,) * 3, (0.2,) * 3)


def test_kept_images_are_those_of_the_classes_in_their_order(data):
    part = keep_classes(data, ["d", "b"])
    assert part.class_names == ("d", "b") and part.num_classes == 2 and part.name == "numbers"
    for name in ("train", "val", "test"):
        whole, kept = getattr(data, name), getattr(part, name)
        expected = [int(i) for i, label in enumerate(whole.labels) if int(label) in (3, 1)]
        assert torch.equal(kept.images, whole.images[expected])
        assert [{3: 0, 1: 1}[int(pixel)] for pixel in kept.images[:, 1, 0, 0]] == kept.labels.tolist()
    assert torch.equal(keep_classes(data, [3, 1]).test.images, part.test.images)


def test_normalization_is_that_of_the_kept_train_images(data):
    part = keep_classes(data, ["a", "b"])
    scaled = part.train.images.double() / 255
    assert part.mean == pytest.approx(scaled.mean(dim=(0, 2, 3)).tolist())
    # One grey level at least: the last channel never changes, and must not be divided by 0.
    deviation = scaled.std(dim=(0, 2, 3), correction=0)
    assert deviation[2] == 0 and part.std == pytest.approx(deviation.clamp(min=1 / 255).tolist())
    assert part.mean != data.mean


def test_halves_are_disjoint_and_together_the_whole(data):
    first, second = keep_classes(data, ["a", "b"]), keep_classes(data, ["c", "d", "e"])
    numbers = [set(half.train.images[:, 0, 0, 0].tolist()) for half in (first, second)]
    assert not numbers[0] & numbers[1] and numbers[0] | numbers[1] == set(range(100))


def test_masks_follow_their_images(shapes):
    part = keep_classes(shapes, [2])
    assert torch.equal(part.test.masks, shapes.test.masks[shapes.test.labels == 2])


@pytest.mark.parametrize("form", [iter, tuple, np.array, torch.tensor])
def test_classes_come_in_any_kind_of_sequence(data, form):
    part = keep_classes(data, form([3, 1]))
    assert part.class_names == ("d", "b") and torch.equal(part.val.images, keep_classes(data, ["d", "b"]).val.images)


def test_a_split_that_is_empty_stays_so_and_none_becomes_it(data):
    """Data without test images has an empty test split."""
    part = keep_classes(replace(data, test=data.val.subset(slice(0))), ["a", "b"])
    assert len(part.test) == 0 and len(part.val) == len(keep_classes(data, ["a", "b"]).val)
    without = replace(data, test=data.test.subset(data.test.labels != 0))
    with pytest.raises(ValueError, match=r"classes=\['a'\] leave no image in the test split"):
        keep_classes(without, ["a"])


@pytest.mark.parametrize("classes", [["f"], [5], [-1], [], "ab", 3, ["a", None], [["a", "b"]], [1.0], [True, np.True_]])
def test_unknown_classes_are_refused(data, classes):
    with pytest.raises(ValueError, match=r"classes=.* must be some of a, b, c, d, e, or of 0\.\.4"):
        keep_classes(data, classes)


def test_a_class_named_twice_is_refused(data):
    with pytest.raises(ValueError, match="names a class twice"):
        keep_classes(data, ["a", 0])


def test_shots_are_so_many_of_every_class_and_none_twice(data):
    shots = sample_shots(data.train, 7)
    assert Counter(shots.labels.tolist()) == dict.fromkeys(range(5), 7)
    assert len(set(shots.images[:, 0, 0, 0].tolist())) == 35
    assert shots.images[:, 1, 0, 0].tolist() == shots.labels.tolist()


def test_a_draw_is_fixed_nested_and_unlike_another(data):
    def numbers(shots: int, **which: int) -> set[int]:
        return set(sample_shots(data.train, shots, **which).images[:, 0, 0, 0].tolist())

    assert numbers(5, draw=1) == numbers(5, draw=1)
    assert numbers(2, draw=1) < numbers(5, draw=1)
    assert numbers(5, draw=0) != numbers(5, draw=1) != numbers(5, draw=1, seed=1)


def test_every_image_is_drawn_about_as_often_as_any_other(data):
    counts = Counter()
    for draw in range(400):
        counts.update(sample_shots(data.train, 5, draw=draw).images[:, 0, 0, 0].tolist())
    # Binomial, 400 draws of 1/4: mean 100, deviation 8.7.
    assert len(counts) == 100 and min(counts.values()) > 65 and max(counts.values()) < 135


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shots": 0}, "shots=0 must be an integer of 1 or more"),
        ({"shots": True}, "shots=True"),
        ({"shots": 1, "draw": -1}, "draw=-1"),
        ({"shots": 1, "seed": 0.5}, "seed=0.5"),
        ({"shots": 21}, "shots=21 is more than the 20 images of the rarest class"),
    ],
)
def test_bad_shots_are_refused(data, options, message):
    with pytest.raises(ValueError, match=message):
        sample_shots(data.train, **options)


def test_an_empty_split_has_no_shots(data):
    with pytest.raises(ValueError, match="split holds no image"):
        sample_shots(data.train.subset(slice(0)), 1)


def test_another_size_is_that_of_torchvision(shapes):
    from torchvision.transforms import v2

    part = keep_classes(shapes, [1, 2])
    larger = resize(part, (24, 20))
    expected = v2.functional.resize(part.test.images, [24, 20], interpolation=v2.InterpolationMode.BICUBIC)
    assert torch.equal(larger.test.images, expected)
    assert torch.equal(larger.test.labels, part.test.labels) and larger.class_names == part.class_names
    assert larger.val.masks.shape == (len(part.val), 24, 20) and larger.train.masks.dtype == torch.bool
    area, larger_area = (float(split.masks.float().mean()) for split in (part.train, larger.train))
    assert larger_area == pytest.approx(area, abs=0.01)
    assert torch.equal(resize(part, 16).val.images, part.val.images), "its own size changes nothing"


@pytest.mark.parametrize("size", [0, (8,), 8.0, (8, True)])
def test_a_bad_size_is_refused(data, size):
    with pytest.raises(ValueError, match="image_size=.* must be one or two integers"):
        resize(data, size)


def test_numpys_integers_are_integers(data):
    """As a loop over `np.arange` gives them."""
    one = np.int64(1)
    assert torch.equal(
        sample_shots(data.train, one, draw=one, seed=one).images, sample_shots(data.train, 1, draw=1, seed=1).images
    )
    assert torch.equal(resize(data, np.int64(8)).val.images, resize(data, 8).val.images)
    assert torch.equal(resize(data, [8, 12]).val.images, resize(data, (8, 12)).val.images)
    drawn = make_shapes(np.int64(20), one, one, image_size=np.int64(8), seed=one)
    again = make_shapes(20, 1, 1, image_size=8, seed=1)
    assert torch.equal(drawn.train.images, again.train.images)
    assert torch.equal(corrupt(drawn.train.images, "noise", one, one), corrupt(drawn.train.images, "noise", 1, 1))
    cut, by_python = (make_val_split(drawn.train.images, drawn.train.labels, size, 0)[1] for size in (one, 1))
    assert torch.equal(cut.images, by_python.images)
