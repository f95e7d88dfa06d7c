"""Per-sample augmentation: functions against a loop over images or torchvision, draws and errors."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vit.data import augment, auto_augment


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(batch: int = 16, channels: int = 3, height: int = 12, width: int = 9) -> Tensor:
    shape = (batch, channels, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(7))


def pictures(batch: int = 6, channels: int = 3, height: int = 32, width: int = 32) -> Tensor:
    """Smooth images in a part of the range, one of a single level and one of two levels among them."""
    patches = random_images(batch, channels, height // 4 + 1, width // 4 + 1).float()
    images = F.interpolate(patches, size=(height, width), mode="bilinear")
    images = (30 + 0.6 * images).to(torch.uint8)
    images[0] = 77
    images[1, :, :2] = 77
    images[1, :, 2:] = 200
    return images


def crop(images: Tensor, padding: int, g: torch.Generator) -> Tensor:
    offsets = augment.crop_offsets(images, padding, g)
    return augment.crop_and_flip(images, offsets, torch.zeros(len(images)).bool(), padding)


def flip(images: Tensor, flips: Tensor) -> Tensor:
    return augment.crop_and_flip(images, torch.zeros(len(images), 2).long(), flips, 0)


RANDOM_FUNCTIONS = {
    "crop": lambda images, g: crop(images, 4, g),
    "flip": lambda images, g: flip(images, augment.random_flips(images, g)),
    "erase": lambda images, g: augment.random_erase(images, 5, g, (0.1, 0.2, 0.3)),
    "trivial": auto_augment.trivial_augment,
    "rand": auto_augment.rand_augment,
}


@pytest.mark.parametrize("name", RANDOM_FUNCTIONS)
def test_result_is_a_pure_function_of_the_seed(name):
    function, images = RANDOM_FUNCTIONS[name], random_images()
    before, global_state = images.clone(), torch.get_rng_state()
    first = function(images, generator(1))
    assert torch.equal(first, function(images, generator(1)))
    assert not torch.equal(first, function(images, generator(2)))
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), global_state)
    assert first.dtype == torch.uint8 and first.shape == images.shape


@pytest.mark.parametrize("name", RANDOM_FUNCTIONS)
def test_each_image_of_a_batch_gets_its_own_draw(name):
    copies = random_images(1).expand(64, -1, -1, -1)
    results = RANDOM_FUNCTIONS[name](copies, generator()).flatten(1)
    assert len(results.unique(dim=0)) >= (2 if name == "flip" else 20)


@pytest.mark.parametrize("name", RANDOM_FUNCTIONS)
@pytest.mark.parametrize("batch", [0, 1])
def test_small_batches(name, batch):
    images = random_images(batch)
    assert RANDOM_FUNCTIONS[name](images, generator()).shape == images.shape


@pytest.mark.parametrize("padding", [0, 1, 4, 8])
def test_crop_and_flip_against_numpy(padding):
    images = random_images()
    offsets = augment.crop_offsets(images, padding, generator())
    flips = augment.random_flips(images, generator(1))
    result = augment.crop_and_flip(images, offsets, flips, padding)
    height, width = images.shape[2:]
    for image, (top, left), is_flipped, got in zip(images, offsets, flips, result, strict=True):
        padded = np.pad(image.numpy(), ((0, 0), (padding, padding), (padding, padding)), mode="reflect")
        window = padded[:, top : top + height, left : left + width]
        assert np.array_equal(window[:, :, ::-1] if is_flipped else window, got.numpy())


def test_crop_takes_non_contiguous_images():
    images = random_images()
    as_channels_last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(crop(as_channels_last, 3, generator()), crop(images, 3, generator()))


def test_crop_with_centered_offsets_is_the_image():
    images = random_images()
    offsets = torch.full((len(images), 2), 4)
    assert torch.equal(augment.crop_and_flip(images, offsets, torch.zeros(len(images)).bool(), 4), images)


def test_crop_offsets_are_uniform():
    padding, draws = 2, 20_000
    offsets = augment.crop_offsets(random_images(1, 1).expand(draws, -1, -1, -1), padding, generator())
    counts = torch.bincount(offsets[:, 0] * 5 + offsets[:, 1], minlength=25).double()
    chi_square = ((counts - draws / 25) ** 2 / (draws / 25)).sum()
    assert chi_square < 60  # 24 degrees of freedom: p < 1e-4 beyond it


def test_random_flips_mirror_half_of_the_images():
    images = random_images(4000, 1, 2, 3)
    result = flip(images, augment.random_flips(images, generator()))
    is_same = (result == images).flatten(1).all(1)
    is_mirrored = torch.from_numpy((result.numpy() == images.numpy()[..., ::-1]).reshape(len(images), -1).all(1))
    assert (is_same | is_mirrored).all()
    assert 0.46 < is_mirrored.double().mean() < 0.54


def test_alternating_flips_show_both_orientations_in_two_epochs():
    images, sample_idx = random_images(), torch.arange(16) * 311
    epochs = [flip(images, augment.alternating_flips(sample_idx, epoch, seed=3)) for epoch in range(4)]
    assert torch.equal(epochs[0], epochs[2]) and torch.equal(epochs[1], epochs[3])
    assert torch.equal(epochs[0].flip(3), epochs[1])
    is_same = (epochs[0] == images).flatten(1).all(1)
    assert 0 < is_same.sum() < 16


def test_alternating_flips_follow_the_sample_not_its_place_in_the_batch():
    sample_idx = torch.randperm(1000, generator=generator())
    flips = augment.alternating_flips(sample_idx, 5, seed=1)
    in_order = augment.alternating_flips(torch.arange(1000), 5, seed=1)
    assert torch.equal(flips, in_order[sample_idx])


@pytest.mark.parametrize("seed", [0, 1, 2, 12345, 2**40 + 1])
def test_alternating_flip_coins_are_fair_and_unrelated(seed):
    coins = augment.alternating_flips(torch.arange(50_000), 0, seed).double()
    other = augment.alternating_flips(torch.arange(50_000), 0, seed + 1).double()
    assert abs(coins.mean() - 0.5) < 0.012
    assert abs((coins == other).double().mean() - 0.5) < 0.012
    for lag in (1, 2, 8, 64, 128):  # a pattern along the index would mirror whole runs of an ordered set
        assert abs((coins[lag:] == coins[:-lag]).double().mean() - 0.5) < 0.012


@pytest.mark.parametrize("size", [1, 4, 5, 30])
def test_erase_against_a_loop(size):
    images, fill = random_images(32), (0.0, 0.5, 1.0)
    result = augment.random_erase(images, size, generator(5), fill)
    height, width = images.shape[2:]
    draw = generator(5)
    rows = torch.randint(height, (32, 1), generator=draw)[:, 0].tolist()
    columns = torch.randint(width, (32, 1), generator=draw)[:, 0].tolist()
    for image, y, x, got in zip(images.numpy().copy(), rows, columns, result.numpy(), strict=True):
        top, left = y - size // 2, x - size // 2
        image[:, max(top, 0) : top + size, max(left, 0) : left + size] = np.array([[[0]], [[128]], [[255]]])
        assert np.array_equal(image, got)


def test_erase_covers_every_pixel_and_the_border_least():
    images = random_images(1, 1, 8, 8).expand(8000, -1, -1, -1) // 2
    share = (augment.random_erase(images, 3, generator(), (1.0,)) == 255).double().mean(0)[0]
    # A pixel is covered from 3 x 3 centers, from 2 x 2 in a corner.
    assert abs(share[1:-1, 1:-1] - 9 / 64).max() < 0.02
    assert abs(share[[0, 0, -1, -1], [0, -1, 0, -1]] - 4 / 64).max() < 0.02


def test_erase_size_zero_is_off():
    images = random_images()
    assert torch.equal(augment.random_erase(images, 0, generator(), (0, 0, 0)), images)


@pytest.mark.parametrize(("channels", "height", "width"), [(3, 32, 32), (3, 24, 40), (1, 32, 20)])
@pytest.mark.parametrize("space", ["trivial", "rand"])
def test_operations_against_torchvision(space, channels, height, width):
    """Gray levels agree exactly; warps but for the few pixels where two source pixels are equally near."""
    from torchvision.transforms import InterpolationMode, autoaugment

    images = pictures(6, channels, height, width)
    if space == "trivial":
        operations = autoaugment.TrivialAugmentWide()._augmentation_space(31)
    else:
        operations = autoaugment.RandAugment()._augmentation_space(31, (height, width))
    assert tuple(operations) == auto_augment.OPS
    table = auto_augment._magnitudes(space, height, width, images.device)
    for index, (name, (magnitudes, is_signed)) in enumerate(operations.items()):
        assert torch.equal(table[index], magnitudes.float().expand(31))
        for magnitude in magnitudes[::6].tolist() if magnitudes.ndim else [0.0]:
            for signed in {magnitude, -magnitude} if is_signed else {magnitude}:
                apply = (name, signed, InterpolationMode.NEAREST, None)
                expected = torch.stack([autoaugment._apply_op(image, *apply) for image in images])
                op_idx, strength = torch.full((6,), index), torch.full((6,), signed)
                is_wrong = auto_augment.apply_ops(images, op_idx, strength) != expected
                is_tied = name in ("ShearX", "ShearY", "Rotate")
                assert is_wrong.double().mean() <= (0.04 if is_tied else 0), (name, signed)


def test_operations_of_a_mixed_batch_do_not_touch_each_other():
    images = pictures(28)
    op_idx, magnitudes = torch.arange(28) % 14, torch.linspace(-0.9, 5.0, 28)
    together = auto_augment.apply_ops(images, op_idx, magnitudes)
    alone = [auto_augment.apply_ops(images[i : i + 1], op_idx[i : i + 1], magnitudes[i : i + 1]) for i in range(28)]
    assert torch.equal(together, torch.cat(alone))


def count_draws(monkeypatch: pytest.MonkeyPatch, batch: int = 14_000) -> tuple[Tensor, Tensor]:
    """The operations and magnitudes that TrivialAugment draws, without the work of applying them."""
    drawn = []
    monkeypatch.setattr(auto_augment, "apply_ops", lambda images, *draws: drawn.append(draws) or images)
    auto_augment.trivial_augment(torch.zeros(batch, 1, 1, 1, dtype=torch.uint8), generator())
    return drawn[0]


def test_trivial_augment_draws_operations_strengths_and_signs_uniformly(monkeypatch):
    op_idx, magnitudes = count_draws(monkeypatch)
    counts = torch.bincount(op_idx, minlength=14).double()
    assert ((counts - 1000) ** 2 / 1000).sum() < 45  # 13 degrees of freedom: p < 1e-4 beyond it
    for index, name in enumerate(auto_augment.OPS):
        values = magnitudes[op_idx == index]
        if 1 <= index <= 9:
            assert len(values.unique()) == 61  # 31 strengths, each with both signs, and one zero
            assert 0.42 < (values > 0).double().mean() < 0.55
        else:
            assert (values >= 0).all() and len(values.unique()) == {"Posterize": 7, "Solarize": 31}.get(name, 1)


def test_rand_augment_applies_as_many_operations_as_asked(monkeypatch):
    images = pictures()
    assert torch.equal(auto_augment.rand_augment(images, generator(), num_ops=0), images)
    drawn = []
    monkeypatch.setattr(auto_augment, "apply_ops", lambda images, *draws: drawn.append(draws) or images)
    auto_augment.rand_augment(images.expand(6, 3, 32, 32), generator(), num_ops=3, magnitude=30)
    assert len(drawn) == 3 and not torch.equal(drawn[0][0], drawn[1][0])
    is_rotation = torch.cat([op_idx for op_idx, _ in drawn]) == auto_augment.OPS.index("Rotate")
    assert (torch.cat([magnitudes for _, magnitudes in drawn])[is_rotation].abs() == 30).all()


def test_nothing_is_read_back_from_the_device():
    """On the meta device, which has no values, any read (a sync on a GPU) raises."""
    images, sample_idx = random_images().to("meta"), torch.arange(16, device="meta")
    offsets, flips = sample_idx[:, None].expand(16, 2), sample_idx.bool()
    assert augment.crop_and_flip(images, offsets, flips, 4).shape == images.shape
    assert augment.alternating_flips(sample_idx, 1, seed=0).shape == (16,)
    assert auto_augment.apply_ops(images, sample_idx, sample_idx.float()).shape == images.shape


def mix(seed: int = 0, batch: int = 8, *, cutmix: float = 0.0, mixup: float = 0.0, probability: float = 1.0):
    images = torch.rand(batch, 3, 16, 12, generator=generator(3))
    labels = torch.arange(batch) % 10
    mixed = augment.cutmix_mixup(
        images, labels, 10, cutmix_alpha=cutmix, mixup_alpha=mixup, probability=probability, seed=seed
    )
    return images, F.one_hot(labels, 10).float(), *mixed


def test_mixup_is_one_convex_sum_of_images_and_labels():
    images, labels, mixed, soft = mix(mixup=1.0)
    share = soft[0, 0]
    assert 0.01 < share < 0.99
    assert torch.allclose(mixed, share * images + (1 - share) * images.roll(1, 0), atol=1e-6)
    assert torch.allclose(soft, share * labels + (1 - share) * labels.roll(1, 0), atol=1e-6)


def test_cutmix_pastes_a_box_and_its_area_is_the_share_of_the_label():
    images, labels, mixed, soft = mix(seed=2, cutmix=1.0)
    is_pasted = (mixed == images.roll(1, 0)).all(1)
    assert torch.equal(torch.where(is_pasted[:, None], images.roll(1, 0), images), mixed)
    assert (is_pasted == is_pasted[:1]).all()
    area = is_pasted[0].float().mean()
    assert 0 < area < 1
    assert torch.allclose(soft, (1 - area) * labels + area * labels.roll(1, 0), atol=1e-6)


def test_mixing_leaves_the_global_random_stream_alone_and_depends_on_the_seed():
    state = torch.get_rng_state()
    first = mix(seed=1, cutmix=1.0, mixup=0.8)
    torch.manual_seed(99)
    again = mix(seed=1, cutmix=1.0, mixup=0.8)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    torch.set_rng_state(state)
    mix(seed=5, mixup=1.0)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(mix(seed=6, mixup=1.0)[3], mix(seed=5, mixup=1.0)[3])


def test_mixing_share_and_choice():
    kinds = []
    for seed in range(200):
        images, labels, mixed, soft = mix(seed, 4, cutmix=1.0, mixup=1.0, probability=0.5)
        assert torch.allclose(soft.sum(1), torch.ones(4)) and soft.dtype == torch.float32
        if torch.equal(soft, labels):
            kinds.append("none")
        else:
            kinds.append("cut" if ((mixed == images) | (mixed == images.roll(1, 0))).all() else "mix")
    # CutMix with an empty box counts as none.
    assert 80 <= kinds.count("none") <= 130 and kinds.count("cut") > 25 and kinds.count("mix") > 30


@pytest.mark.parametrize("batch", [0, 1])
def test_mixing_small_batches_and_none(batch):
    for values in ({"cutmix": 1.0}, {"mixup": 1.0}, {}, {"cutmix": 1.0, "probability": 0.0}):
        images, labels, mixed, soft = mix(0, batch, **values)
        assert torch.allclose(mixed, images, atol=1e-6) and torch.allclose(soft, labels, atol=1e-6)
        assert soft.shape == (batch, 10)


def wrong_mix(images: Tensor, labels: Tensor, **values: float) -> None:
    values = {"cutmix_alpha": 1.0, "mixup_alpha": 0.0, "probability": 1.0, **values}
    augment.cutmix_mixup(images, labels, 10, seed=0, **values)


LABELS = torch.arange(16) % 10


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda i: crop(i.float(), 4, generator()), "torch.float32, not uint8.*before normal"),
        (lambda i: flip(i[0], torch.zeros(3).bool()), r"\(B, C, H, W\).*unsqueeze"),
        (lambda i: crop(i, -1, generator()), r"padding=-1 is not in 0\.\.8"),
        (lambda i: crop(i, 9, generator()), r"padding=9 is not in 0\.\.8.*12 x 9.*try 4"),
        (
            lambda i: augment.random_erase(i.to("meta"), 2, generator(), (0, 0, 0)),
            "generator is on cpu but images are on meta",
        ),
        (lambda i: augment.alternating_flips(torch.zeros(16), 0, 0), "sample_idx is torch.float32"),
        (lambda i: augment.alternating_flips(torch.arange(16), -1, 0), "epoch=-1 is negative"),
        (lambda i: augment.random_erase(i, -2, generator(), (0, 0, 0)), "size=-2 is negative"),
        (lambda i: augment.random_erase(i, 2, generator(), (0.5, 0.5)), r"3 values in \[0, 1\]"),
        (lambda i: augment.random_erase(i, 2, generator(), (125, 122, 114)), r"fill=\(125, 122, 114\).*mean"),
        (lambda i: auto_augment.trivial_augment(i[:, :2], generator()), "2 channels.*1 .gray. or 3"),
        (lambda i: auto_augment.trivial_augment(i.float(), generator()), "torch.float32, not uint8"),
        (lambda i: auto_augment.rand_augment(i, generator(), num_ops=-1), "num_ops=-1 is negative"),
        (lambda i: auto_augment.rand_augment(i, generator(), magnitude=31), r"magnitude=31 is not in 0\.\.30"),
        (lambda i: wrong_mix(i, LABELS), "torch.uint8.*normalized"),
        (lambda i: wrong_mix(i.float(), LABELS.float()), r"labels are torch.float32.*int64 \(16,\)"),
        (lambda i: wrong_mix(i.float(), LABELS[:3]), r"labels are torch.int64 \(3,\)"),
        (lambda i: wrong_mix(i.float(), LABELS, mixup_alpha=-1.0), "mixup_alpha=-1.0"),
        (lambda i: wrong_mix(i.float(), LABELS, probability=1.5), r"probability=1.5 is not in \[0, 1\]"),
    ],
)
def test_errors_name_the_argument_and_the_remedy(call, words):
    with pytest.raises(ValueError, match=words):
        call(random_images())
