"""Corruptions do what their names say, by the stated amount, and give an image the same result in any company."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as tv

from vit.data import corruptions, make_shapes
from vit.data.corruptions import KINDS, MAX_STRENGTH, corrupt, rotate, shuffle_patches


def random_images(batch: int = 8, channels: int = 3, height: int = 32, width: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (batch, channels, height, width), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return make_shapes(num_train=1, num_val=1, num_test=64).test.images


@pytest.mark.parametrize("kind", KINDS)
def test_the_result_is_a_pure_function_of_image_strength_and_seed(kind, pictures):
    before, state = pictures.clone(), torch.get_rng_state()
    result = corrupt(pictures, kind, 3, seed=4)
    assert result.dtype == torch.uint8 and result.shape == pictures.shape
    some = torch.tensor([40, 3, 17])
    assert torch.equal(corrupt(pictures[some], kind, 3, seed=4), result[some]), "it depends on its neighbors"
    assert torch.equal(corrupt(pictures, kind, 3, seed=5), result) == (kind == "blur")
    assert torch.equal(corrupt(pictures, kind, 0), pictures)
    assert torch.equal(pictures, before) and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", KINDS)
def test_stronger_is_farther_from_the_original(kind, pictures):
    away = [(corrupt(pictures, kind, s).float() - pictures).abs().mean() for s in range(MAX_STRENGTH + 1)]
    assert away[0] == 0 and away == sorted(away) and away[-1] > 1.5 * away[1] > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(0, 3, 32, 32), (1, 1, 16, 24), (2, 3, 48, 8)])
def test_any_shape_is_taken(kind, shape):
    images = random_images(*shape)
    for strength in (1, MAX_STRENGTH):
        assert corrupt(images, kind, strength).shape == images.shape


def test_noise_has_the_stated_deviation():
    grey = torch.full((50, 3, 32, 32), 127, dtype=torch.uint8)
    grey[:, 0, 0, 0] = torch.arange(50)  # else all were the same image, with the same noise
    for strength in (1, 3):
        noise = corrupt(grey, "noise", strength).float() - grey
        assert noise[:, 1:].std().item() == pytest.approx(8 * strength, rel=0.02)
        assert abs(noise[:, 1:].mean().item()) < 0.3
    assert len(noise[:, 1:].flatten(1).unique(dim=0)) == 50


@pytest.mark.parametrize("strength", [1, 5])
def test_blur_against_a_gaussian_written_out(strength):
    images = random_images(2, 3, 32, 48)
    sigma = 0.4 * strength  # of 32 pixels
    reach = 12
    weights = torch.exp(-(torch.arange(-reach, reach + 1, dtype=torch.float64) ** 2) / (2 * sigma**2))
    weights = (weights / weights.sum())[None, None]
    padded = F.pad(images.double(), (reach, reach, reach, reach), mode="reflect").flatten(0, 1)[:, None]
    expected = F.conv2d(F.conv2d(padded, weights[..., None]), weights[:, :, None]).view(images.shape)
    away = (corrupt(images, "blur", strength) - expected).abs()
    assert away.max() < 2 and away.mean() < 0.4, "a kernel cut at three deviations, and rounding"


def test_brightness_goes_either_way_by_the_stated_levels():
    images = random_images(40)
    result, expected = corrupt(images, "brightness", 2).int(), images.int()
    is_brighter = (result == (expected + 40).clamp(max=255)).flatten(1).all(dim=1)
    is_darker = (result == (expected - 40).clamp(min=0)).flatten(1).all(dim=1)
    assert (is_brighter ^ is_darker).all()
    assert 10 < is_brighter.sum() < 30


@pytest.mark.parametrize("size", [(32, 32), (32, 48)])
def test_rotation_is_that_of_torchvision(size, pictures):
    """Everywhere but at the edges, where torchvision has no mirror."""
    images = F.interpolate(pictures[:5].float(), size=size, mode="bilinear").to(torch.uint8)
    degrees = torch.tensor([10.0, -30.0, 45.0, 0.0, 171.0])
    y, x = torch.meshgrid(*(torch.arange(side) + 0.5 - side / 2 for side in size), indexing="ij")
    is_inner = y**2 + x**2 < (min(size) / 2 - 1) ** 2
    for image, angle, result in zip(images, degrees.tolist(), rotate(images, degrees), strict=True):
        expected = tv.rotate(image, angle, interpolation=tv.InterpolationMode.BILINEAR)
        assert (result.int() - expected)[:, is_inner].abs().max() <= 1
    for quarters in (1, 2, 3):
        square = images[..., :32]
        turned = rotate(square, torch.full((5,), 90.0 * quarters))
        assert (turned.int() - square.rot90(quarters, dims=(2, 3))).abs().max() <= 1


def test_rotation_turns_to_either_side_and_shows_no_black(pictures):
    result = corrupt(pictures, "rotation", 4)
    left, right = (rotate(pictures, torch.full((64,), angle)) for angle in (36.0, -36.0))
    is_left, is_right = ((result == turned).flatten(1).all(dim=1) for turned in (left, right))
    assert (is_left ^ is_right).all() and 16 < is_left.sum() < 48
    assert corrupt(torch.full((1, 3, 32, 32), 200, dtype=torch.uint8), "rotation", 5).unique().tolist() == [200]


def test_occlusion_covers_the_stated_area_and_grows():
    light = random_images(200, 1, 32, 24).clamp(min=129)
    covered = torch.zeros_like(light, dtype=torch.bool)
    for strength in range(1, MAX_STRENGTH + 1):
        before, covered = covered, corrupt(light, "occlusion", strength) == 128
        assert (before <= covered).all(), "what was covered stays covered"
        lengths = [round(side * (strength / 10) ** 0.5) for side in (32, 24)]
        assert (covered.flatten(1).sum(1) == lengths[0] * lengths[1]).all()
        for side, length, is_covered in zip((32, 24), lengths, (covered.any(3), covered.any(2)), strict=True):
            assert (is_covered.sum(2) == length).all()
            starts = is_covered.int().argmax(dim=2).unique().tolist()
            assert starts == list(range(side - length + 1)), "anywhere inside"


@pytest.mark.parametrize("strength", range(1, MAX_STRENGTH + 1))
def test_patch_shuffle_moves_whole_patches_and_loses_none(strength):
    images = random_images(6, 3, 32, 48)
    result = corrupt(images, "patch_shuffle", strength)

    def patches(image: Tensor) -> list[bytes]:
        rows = range(8)
        cut = [image[:, 4 * r : 4 * r + 4, 6 * c : 6 * c + 6] for r in rows for c in rows]
        return [patch.contiguous().numpy().tobytes() for patch in cut]

    for image, shuffled in zip(images, result, strict=True):
        before, after = patches(image), patches(shuffled)
        assert sorted(before) == sorted(after)
        assert sum(a != b for a, b in zip(before, after, strict=True)) == round(64 * strength / 5)
    assert len({tuple((a != b).flatten().tolist()) for a, b in zip(images, result, strict=True)}) == 6 or strength == 5


def test_a_given_order_puts_patches_where_it_says():
    images = random_images(2, 1, 8, 8)  # a patch is a pixel
    order = torch.stack([torch.arange(64).flip(0), torch.arange(64)])
    assert torch.equal(shuffle_patches(images, order), torch.stack([images[0].flip(1, 2), images[1]]))


def test_arguments_out_of_range_are_named():
    images = random_images(1)
    with pytest.raises(ValueError, match="kind='fog' is not a choice; allowed: noise, blur, brightness"):
        corrupt(images, "fog", 1)
    for strength in (-1, 6, 1.0, True):
        with pytest.raises(ValueError, match=rf"strength={strength!r} must be an integer in 0\.\.5"):
            corrupt(images, "noise", strength)
    for seed in (-1, 1.5, 2**63):
        with pytest.raises(ValueError, match=r"seed=.* must be an integer"):
            corrupt(images, "noise", 1, seed)
    with pytest.raises(ValueError, match="images are torch.float32, not uint8"):
        corrupt(images.float(), "noise", 1)
    with pytest.raises(ValueError, match="images of 30x32 pixels cannot be cut into 8x8 patches"):
        corrupt(images[:, :, :30], "patch_shuffle", 1)
    with pytest.raises(ValueError, match=r"degrees have shape \(2,\), not \(1,\)"):
        corruptions.rotate(images, torch.zeros(2))
