"""Batches: each sample once, a pure function of seed, epoch and step, and val never touched."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from vit.config import TrainConfig
from vit.data import (
    DataSplits,
    Split,
    channel_statistics,
    denormalize,
    keep_classes,
    make_eval_loader,
    make_loaders,
    make_val_split,
    normalize,
    resize,
)
from vit.data.loader import Loader, make_augment, make_mix


def numbered(count: int = 103) -> Split:
    """Images that carry their own number in the first pixel."""
    images = torch.zeros(count, 3, 8, 8, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(count)
    return Split(images, torch.arange(count) % 10)


def make_loader(split: Split, **options) -> Loader:
    return Loader(split, mean=(0.0,) * 3, std=(1 / 255,) * 3, **{"batch_size": 16, **options})


def seen(loader: Loader, epoch: int) -> list[int]:
    return [int(n) for images, _ in loader.epoch(epoch) for n in images[:, 0, 0, 0].round()]


def test_each_sample_comes_exactly_once_an_epoch():
    loader = make_loader(numbered(), shuffle=True)
    for epoch in range(3):
        assert sorted(seen(loader, epoch)) == list(range(103))
    sizes = [len(labels) for _, labels in loader.epoch(0)]
    assert len(sizes) == len(loader) == 7 and max(sizes) - min(sizes) == 1 and max(sizes) <= 16


def test_the_order_depends_on_seed_and_epoch_alone():
    split = numbered()
    orders = {(s, e): tuple(seen(make_loader(split, shuffle=True, seed=s), e)) for s in range(2) for e in range(2)}
    assert len(set(orders.values())) == 4
    torch.manual_seed(123)
    other = make_loader(split, shuffle=True, seed=7)
    seen(other, 0)
    assert tuple(seen(make_loader(split, shuffle=True, seed=1), 1)) == orders[1, 1]
    assert seen(make_loader(split), 5) == list(range(103)), "without shuffle: the split's own order"


def test_whoever_iterates_gets_epoch_after_epoch():
    loader = make_loader(numbered(), shuffle=True)
    passes = [[int(n) for images, _ in loader for n in images[:, 0, 0, 0].round()] for _ in range(3)]
    assert passes == [seen(make_loader(numbered(), shuffle=True), epoch) for epoch in range(3)]
    assert passes[0] != passes[1] and seen(loader, 0) == passes[0], "an epoch asked for by number is always the same"
    plain = make_loader(numbered())
    assert torch.equal(torch.cat([y for _, y in plain]), torch.cat([y for _, y in plain])), "nothing to draw anew"


def test_an_epoch_can_start_anywhere(shapes):
    loader, _ = make_loaders(shapes, TrainConfig(batch_size=64, auto_augment="trivial", erase_size=4))
    whole = list(loader.epoch(2))
    for (images, labels), (same_images, same_labels) in zip(whole[3:], loader.epoch(2, 3), strict=True):
        assert torch.equal(images, same_images) and torch.equal(labels, same_labels)
    assert not torch.equal(whole[0][0], next(loader.epoch(3))[0])


def test_drawing_a_batch_leaves_the_global_random_state_alone(shapes):
    loader, _ = make_loaders(shapes, TrainConfig(auto_augment="rand", cutmix_alpha=1.0, mixup_alpha=0.8))
    before = torch.get_rng_state()
    loader.batch(0, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_val_is_never_augmented_and_train_is(shapes):
    config = TrainConfig(batch_size=400)
    train, val = make_loaders(shapes, config)
    assert torch.equal(torch.cat([x for x, _ in val.epoch(0)]), normalize(shapes.val.images, shapes.mean, shapes.std))
    assert torch.equal(torch.cat([y for _, y in val.epoch(0)]), shapes.val.labels)
    plain = normalize(shapes.train.images[train.sample_indices(0)], shapes.mean, shapes.std)
    assert (train.batch(0, 0)[0] != plain).float().mean() > 0.5


def test_augmentation_settings_all_act(shapes):
    images = shapes.train.images[:64]
    idx = torch.arange(64)

    def draw(**options):
        config = TrainConfig(**{"crop_padding": 0, "flip": "none", **options})
        return make_augment(config, shapes.mean)(images, idx, 0, torch.Generator().manual_seed(0))

    assert torch.equal(draw(), images)
    for options in ({"crop_padding": 2}, {"flip": "random"}, {"flip": "alternating"}, {"erase_size": 4},
                    {"auto_augment": "trivial"}, {"auto_augment": "rand"}):  # fmt: skip
        assert not torch.equal(draw(**options), images), options
    mirrored = make_augment(TrainConfig(crop_padding=0), shapes.mean)(images, idx, 1, torch.Generator())
    assert torch.equal(draw(flip="alternating").flip(-1), mirrored), "each image is mirrored every other epoch"


def test_mixing_gives_soft_labels_that_sum_to_one(shapes):
    loader, _ = make_loaders(shapes, TrainConfig(batch_size=50, cutmix_alpha=1.0))
    images, labels = loader.batch(0, 0)
    assert images.dtype == torch.float32 and labels.shape == (50, 10)
    torch.testing.assert_close(labels.sum(1), torch.ones(50))
    assert ((labels > 0).sum(1) == 2).any()


def test_normalize_equals_numpy_and_denormalize_inverts_it():
    images = torch.randint(0, 256, (4, 3, 5, 6), dtype=torch.uint8)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    expected = (images.numpy().astype(np.float64) / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    np.testing.assert_allclose(normalize(images, mean, std).numpy(), expected, atol=1e-6)
    assert torch.equal(denormalize(normalize(images, mean, std), mean, std), images)
    with pytest.raises(TypeError, match="uint8 images with values 0..255, got torch.float32"):
        normalize(images.float(), mean, std)
    with pytest.raises(TypeError, match="denormalize takes the floats that normalize returns, got torch.uint8"):
        denormalize(images, mean, std)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.5,), (0.2,), "one value for each of the 3 channels"),
        ((0.5,) * 3, (0.2,) * 2, "one value for each of the 3 channels"),
        ((0.5,) * 3, (0.2, 0.2, 0.0), r"std=.* in \(0, 1\]"),
        (0.5, 0.2, r"mean=0.5 and std=0.2 must be sequences of numbers"),
    ],
)
def test_both_directions_refuse_the_same_statistics(mean, std, message):
    images = torch.zeros(2, 3, 4, 5)
    for function, given in ((normalize, images.to(torch.uint8)), (denormalize, images)):
        with pytest.raises(ValueError, match=message):
            function(given, mean, std)
    with pytest.raises(ValueError, match="one value for each of the 1 channels"):
        denormalize(images[:, :1], (0.5,) * 3, (0.2,) * 3)


def test_arrays_of_statistics_and_names_are_what_their_tuples_are(shapes):
    pixels = shapes.train.images.numpy() / 255
    mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3))
    arrays = replace(shapes, mean=tuple(mean), std=std, class_names=np.array(shapes.class_names))
    tuples = replace(shapes, mean=tuple(mean.tolist()), std=tuple(std.tolist()))
    assert arrays.metadata == tuples.metadata
    assert {type(value) for value in (*arrays.mean, *arrays.std)} == {float}
    assert type(arrays.class_names) is tuple and type(arrays.class_names[0]) is str
    images = shapes.test.images[:4]
    for by_arrays, by_tuples in (
        (normalize(images, mean, std), normalize(images, tuples.mean, tuples.std)),
        (make_loaders(arrays, TrainConfig())[0].batch(0, 0)[0], make_loaders(tuples, TrainConfig())[0].batch(0, 0)[0]),
    ):
        assert by_arrays.dtype == torch.float32 and torch.equal(by_arrays, by_tuples)


def test_many_classes_take_no_time(shapes):
    """Comparing every name with every other one took 10 s."""
    started = time.perf_counter()
    replace(shapes, class_names=[f"class {k}" for k in range(20_000)])
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (torch.rand(2, 3, 4, 4), r"torch.float32 \(2, 3, 4, 4\).*to\(torch.uint8\)"),
        (torch.zeros(0, 3, 4, 4, dtype=torch.uint8), r"torch.uint8 \(0, 3, 4, 4\)"),
    ],
)
def test_statistics_are_of_pixels(images, found):
    with pytest.raises(ValueError, match=rf"images must be uint8 \(N, C, H, W\) and hold a pixel, got {found}"):
        channel_statistics(images)


def test_statistics_do_not_depend_on_the_default_device(shapes):
    with torch.device("meta"):  # stands for a GPU
        assert channel_statistics(shapes.train.images) == (shapes.mean, shapes.std)


def test_a_split_of_other_images_than_the_data_is_refused(shapes):
    part = keep_classes(shapes, [3, 4])
    with pytest.raises(ValueError, match=r"split labels must lie in 0..1; record \d+ has label"):
        make_eval_loader(part, shapes.test)
    with pytest.raises(ValueError, match=r"split has images of \(3, 8, 8\) \(C, H, W\), data of \(3, 16, 16\)"):
        make_eval_loader(shapes, resize(shapes, 8).test)
    assert len(make_eval_loader(shapes, part.test).split) == len(part.test)


def test_a_run_without_images_names_the_split(shapes):
    empty = shapes.val.subset(slice(0))
    for name in ("train", "val"):
        with pytest.raises(ValueError, match=f"data.{name} holds no image: .*make_val_split"):
            make_loaders(replace(shapes, **{name: empty}), TrainConfig())


def test_devices_are_taken_by_name_number_or_as_such(shapes):
    for device in ("cpu", "cpu:0", torch.device("cpu"), torch.device("cpu", 0)):
        assert make_eval_loader(shapes, shapes.val, device=device).device == torch.device(device)
    for device in ("xpu", "gpu:0", torch.device("meta")):
        with pytest.raises(ValueError, match=f"device='{device}' is not a choice; .*allowed: auto, cuda, mps, cpu"):
            make_eval_loader(shapes, shapes.val, device=device)


def test_the_val_split_is_cut_by_seed():
    split = numbered(100)
    masks = split.images[:, 0] % 2 == 1
    train, val = make_val_split(split.images, split.labels, 20, seed=0, masks=masks)
    numbers = [set(part.images[:, 0, 0, 0].tolist()) for part in (train, val)]
    for part in (train, val):
        assert torch.equal(part.masks, part.images[:, 0] % 2 == 1), "masks go with their images"
    assert len(train) == 80 and len(val) == 20
    assert not numbers[0] & numbers[1] and numbers[0] | numbers[1] == set(range(100))
    again = make_val_split(split.images, split.labels, 20, seed=0)[1]
    other = make_val_split(split.images, split.labels, 20, seed=1)[1]
    assert torch.equal(again.images, val.images) and not torch.equal(other.images, val.images)
    for size in (0, 100, 2.5, True):
        with pytest.raises(ValueError, match=r"val_size=.* must be an integer in 1..99"):
            make_val_split(split.images, split.labels, size, seed=0)


def test_a_subset_does_not_keep_the_rest_alive():
    for indices in (slice(12), torch.arange(12)):
        images = numbered(20).subset(indices).images
        assert images.untyped_storage().nbytes() == images.nbytes


def test_bad_splits_are_refused():
    images, labels = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"uint8 of shape \(N, C, H, W\), got torch.float32"):
        Split(images.float(), labels)
    with pytest.raises(ValueError, match=r"labels must have shape \(4,\), got \(3,\)"):
        Split(images, labels[:3])
    for dtype in (torch.bool, torch.float32, torch.complex64):
        with pytest.raises(ValueError, match="labels must be integers, got .*convert class numbers with labels.long()"):
            Split(images, labels.to(dtype))
    with pytest.raises(ValueError, match="holds no image"):
        make_loader(Split(images[:0], labels[:0]))
    for masks, found in (
        (torch.zeros(4), r"torch.float32 \(4,\)"),
        (torch.zeros(4, 8, 8), "torch.float32"),
        (torch.zeros(4, 8, 7, dtype=torch.bool), r"torch.bool \(4, 8, 7\)"),
        (np.zeros((4, 8, 8)), r"torch.float64 \(4, 8, 8\)"),
        ([True], "list"),
    ):
        with pytest.raises(ValueError, match=rf"masks must be a bool tensor .*= \(4, 8, 8\), got {found}"):
            Split(images, labels, masks)
    good = Split(images, labels)
    for label in (10, -1, -100):
        wrong = Split(images, torch.tensor([0, 1, label, 3]))
        with pytest.raises(ValueError, match=rf"val labels must lie in 0..9; record 2 has label {label}"):
            DataSplits("x", good, wrong, good, tuple("abcdefghij"), (0.5,) * 3, (0.2,) * 3)
    good = Split(images, torch.arange(4))
    wrong = r"train labels .* record 2 has label 2 \(2 .*\); class_names has 2 and must name every class$"
    with pytest.raises(ValueError, match=wrong):
        DataSplits("x", good, good, good, ("a", "b"), (0.5,) * 3, (0.2,) * 3)
    with pytest.raises(TypeError, match="^class_names='abcdefghij' is one text and must be a name for each class"):
        DataSplits("x", good, good, good, "abcdefghij", (0.5,) * 3, (0.2,) * 3)


def test_data_of_several_shapes_or_with_a_mean_of_other_pixels_are_refused():
    images, labels = torch.zeros(4, 3, 8, 6, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)
    good = Split(images, labels)

    def build(mean=(0.5,) * 3, std=(0.2,) * 3, train=good, val=good):
        Loader(train, batch_size=2, mean=mean, std=std)
        DataSplits("x", train, val, good, ("a",), mean, std)

    build()
    build(mean=(0.0, 1.0, 0.5), std=(1.0, 1 / 255, 0.5))
    for mean, std in (((0.5,), (0.2,)), ((0.5,) * 3, (0.2,)), ((0.5,) * 4, (0.2,) * 4)):
        with pytest.raises(ValueError, match=r"need one value for each of the 3 channels of images \(3, 8, 6\)"):
            build(mean, std)
    nan = float("nan")
    for mean, std in (((125.0,) * 3, (60.0,) * 3), ((0.5, 0.5, nan), (0.2,) * 3), ((0.5,) * 3, (0.2, 0.2, 0.0))):
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\] and std=.* in \(0, 1\].*channel_statistics"):
            build(mean, std)
    last = Split(images.permute(0, 2, 3, 1), labels)
    with pytest.raises(ValueError, match=r"if the channels come last, use images.permute\(0, 3, 1, 2\)"):
        build(train=last, val=last)
    with pytest.raises(ValueError, match=r"must have one shape .*'val': \(8, 6, 3\)"):
        DataSplits("x", good, last, good, ("a",), (0.5,) * 3, (0.2,) * 3)


def test_two_classes_of_one_name_are_refused(shapes):
    with pytest.raises(ValueError, match="class_names holds b more than once"):
        replace(shapes, class_names=tuple("abcdefghib"))


def test_a_crop_beyond_the_image_is_refused_before_any_batch(shapes):
    with pytest.raises(ValueError, match="crop_padding=16 must be less than a side of the images, 16 pixels"):
        make_loaders(shapes, TrainConfig(crop_padding=16))
    make_loaders(shapes, TrainConfig(crop_padding=15))[0].batch(0, 0)
    last = Split(np.zeros((4, 28, 28, 1), np.uint8), np.zeros(4, np.int64))  # gray, as Keras has them
    data = DataSplits("mine", last, last, last, ("a",), *channel_statistics(last.images))
    with pytest.raises(ValueError, match=r"a side of the images, 1 pixels; if the channels come last, use images.perm"):
        make_loaders(data, TrainConfig())


def test_arrays_become_tensors_and_labels_int64():
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8), dtype=np.uint8)
    labels, masks = np.array([3, 0, 2, 1]), images[:, 0] > 99
    frozen = images.copy()
    frozen.flags.writeable = False
    for pixels in (images, frozen, images[:, ::-1, :, ::-1], torch.from_numpy(images)):
        for dtype in (np.uint8, np.int16, np.int32, np.uint32, np.int64):
            for given in (labels.astype(dtype), torch.from_numpy(labels.astype(dtype))):
                split = Split(pixels, given, masks)
                assert split.images.tolist() == pixels.tolist() and split.images.dtype == torch.uint8
                assert split.labels.tolist() == [3, 0, 2, 1] and split.labels.dtype == torch.int64
                assert split.masks.tolist() == masks.tolist() and split.masks.dtype == torch.bool
    assert Split(images, labels.astype(">i4")).labels.tolist() == [3, 0, 2, 1], "as the files of MNIST have them"
    data = DataSplits("mine", split, split, split.subset(slice(0)), tuple("abcd"), (0.5,) * 3, (0.2,) * 3)
    assert len(data.test) == 0 and len(make_loaders(data, TrainConfig(batch_size=2))[0]) == 2, "no test images"


def test_lists_and_floats_are_refused_with_the_remedy():
    images, labels = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)
    for given in ((images.tolist(), labels), (images, labels.tolist())):
        with pytest.raises(TypeError, match="must be a torch tensor or a numpy array, got list; use torch.tensor"):
            Split(*given)
    texts = np.array(["dog", "cat", "dog", "owl"])
    for given in (texts, texts.astype(object)):
        with pytest.raises(
            TypeError, match=r"labels are of .* and must be numbers; .*np.unique\(texts, return_inverse"
        ):
            Split(images, given)
    class_names, numbers = np.unique(texts, return_inverse=True)
    split = Split(images, numbers)
    data = DataSplits("mine", split, split, split, class_names, (0.5,) * 3, (0.2,) * 3)
    assert [data.class_names[label] for label in data.train.labels] == texts.tolist()
    with pytest.raises(TypeError, match=r"val is a tuple and must be a Split, as Split\(images, labels\) is"):
        replace(data, val=(images, labels))
    with pytest.raises(ValueError, match=r"got torch.float32 .*use \(255 \* images\).round\(\).to\(torch.uint8\)"):
        Split(images / 255, labels)


def test_data_and_loaders_are_shown_in_a_line(shapes):
    split = numbered()
    assert repr(split) == "Split(103 images of 3 x 8 x 8 (C x H x W))"
    data = DataSplits("digits", split, split, split, tuple("abcdefghij"), (0.5,) * 3, (0.2,) * 3)
    assert repr(data) == f"DataSplits('digits', 10 classes, train={split!r}, val={split!r}, test={split!r})"
    loader, val_loader = make_loaders(data, TrainConfig(batch_size=50, device="cpu"))
    assert repr(loader) == f"Loader(3 batches of {split!r}, shuffled, augmented, cpu)"
    assert repr(val_loader) == f"Loader(1 batches of {split!r}, cpu)"
    assert "with masks" in repr(shapes.test)


def test_the_seed_decides_order_crops_flips_and_mixing(shapes):
    def drawn(seed: int) -> list[torch.Tensor]:
        config = TrainConfig(batch_size=50, seed=seed, flip="none", mixup_alpha=1.0, device="cpu")
        train, _ = make_loaders(shapes, config)
        first = torch.arange(50)
        flip = make_augment(TrainConfig(crop_padding=0, seed=seed), shapes.mean)
        flipped = flip(shapes.train.images[:50], first, 0, None)
        return [train.sample_indices(0), flipped, train.augmented(first, 0, 0), train.batch(0, 0)[1]]

    assert not any(torch.equal(a, b) for a, b in zip(drawn(0), drawn(1), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(drawn(7), drawn(7), strict=True))


def test_every_batch_of_every_epoch_has_draws_of_its_own():
    """With the same image everywhere, what differs are the draws."""
    image = torch.randint(256, (1, 3, 8, 8), dtype=torch.uint8)
    split = Split(image.expand(64, -1, -1, -1).clone(), torch.arange(64) % 10)
    config = TrainConfig(flip="none", crop_padding=4, mixup_alpha=1.0)
    loader = make_loader(split, augment=make_augment(config, (0.5,) * 3), mix=make_mix(config, 10))
    batches = [(epoch, step) for epoch in range(2) for step in range(4)]
    crops = {loader.augmented(torch.arange(16), *at).numpy().tobytes() for at in batches}
    shares = {float(loader.batch(*at)[1].amax()) for at in batches}
    assert len(crops) == len(shares) == 8


def test_erased_squares_have_the_training_mean(shapes):
    config = TrainConfig(batch_size=400, crop_padding=0, flip="none", erase_size=100, device="cpu")
    images, _ = make_loaders(shapes, config)[0].batch(0, 0)
    half_a_level = 0.5 / 255 / min(shapes.std)
    assert images.abs().max() <= 1.01 * half_a_level, "squares larger than the image leave nothing else"


def test_settings_of_mixing_arrive():
    images, labels = torch.rand(8, 3, 16, 16), torch.arange(8)

    def mixed(**settings: float) -> list[tuple[torch.Tensor, torch.Tensor]]:
        mix = make_mix(TrainConfig(**settings), 10)
        return [mix(images, labels, seed) for seed in range(40)]

    def is_pasted(batch: torch.Tensor) -> bool:
        return bool(((batch == images) | (batch == images.roll(1, 0))).all())

    assert all(is_pasted(batch) for batch, _ in mixed(cutmix_alpha=1.0))
    assert not any(is_pasted(batch) for batch, _ in mixed(mixup_alpha=1.0))
    untouched = [bool((soft.amax(dim=1) == 1).all()) for _, soft in mixed(mixup_alpha=1.0, mix_probability=0.25)]
    assert 22 <= sum(untouched) <= 38
