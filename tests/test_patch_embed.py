"""Patches: exact inverses, the order of a convolution, and clear words for wrong images."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vit.model.patch_embed import PatchDrop, PatchEmbed, patchify, unpatchify

sizes = st.integers(1, 4)


@settings(max_examples=50, deadline=None)
@given(batch=sizes, chans=sizes, rows=sizes, columns=sizes, patch_size=st.integers(1, 5))
def test_unpatchify_inverts_patchify(batch, chans, rows, columns, patch_size):
    images = torch.randn(batch, chans, rows * patch_size, columns * patch_size)
    patches = patchify(images, patch_size)
    assert patches.shape == (batch, rows * columns, chans * patch_size**2)
    assert torch.equal(unpatchify(patches, (rows, columns), patch_size), images)


def test_patches_come_row_by_row_and_channel_first():
    images = torch.randn(2, 3, 8, 12)
    patches = patchify(images, 4)
    for row in range(2):
        for column in range(3):
            expected = images[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].flatten(1)
            assert torch.equal(patches[:, 3 * row + column], expected)


def test_embedding_equals_the_convolution_that_holds_its_weights():
    embed = PatchEmbed((8, 12), 4, 3, 16).double()
    nn.init.normal_(embed.proj.bias)
    images = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    expected = embed.proj(images).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embed(images), expected, rtol=0, atol=1e-12)
    channels_last = embed.proj(images.transpose(2, 3).contiguous().transpose(2, 3)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embed(images), channels_last, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (np.zeros((1, 3, 8, 8)), TypeError, r"got ndarray; vit.predict\(model, images\) takes arrays"),
        ("cat.png", TypeError, r"got str; vit.predict"),
        ([torch.zeros(3, 8, 8)], TypeError, r"got list; vit.predict"),
        (torch.zeros(3, 8, 8), ValueError, r"must have shape \(batch, 3, 8, 8\), got \(3, 8, 8\): add the batch axis"),
        (torch.zeros(1, 8, 8, 3), ValueError, r"channels come last; use images.permute\(0, 3, 1, 2\)"),
        (torch.zeros(1, 1, 8, 8), ValueError, r"built for in_chans=3; for RGB use image.convert\('RGB'\)"),
        (torch.zeros(1, 4, 8, 8), ValueError, r"got \(1, 4, 8, 8\)"),
        (
            torch.zeros(1, 3, 12, 8),
            ValueError,
            r"12x8 pixels, the model was built for 8x8: .*resized\(\(12, 8\)",
        ),
        (torch.zeros(1, 3, 3, 8), ValueError, r"3x8 pixels are smaller than one patch of patch_size=4"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), TypeError, r"images are uint8; .*vit.data.normalize"),
        (
            torch.zeros(1, 3, 8, 8).double(),
            TypeError,
            r"torch.float64, the model's weights torch.float32: use",
        ),
        (torch.zeros(1, 3, 8, 8).half(), TypeError, r"images are torch.float16"),
        (torch.zeros(1, 3, 8, 8, device="meta"), ValueError, r"images are on meta, the model on cpu"),
    ],
)
def test_wrong_images_are_named(images, error, message):
    with pytest.raises(error, match=message):
        PatchEmbed((8, 8), 4, 3, 16)(images)


def test_patches_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="9x8 pixels cannot be cut into patches of patch_size=4"):
        patchify(torch.zeros(1, 3, 9, 8), 4)
    with pytest.raises(ValueError, match=r"do not fill grid_size=\(2, 2\)"):
        unpatchify(torch.zeros(1, 3, 48), (2, 2), 4)


def test_autocast_takes_float32_images_and_an_empty_batch_passes():
    embed = PatchEmbed((8, 8), 4, 3, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert embed(torch.zeros(2, 3, 8, 8)).dtype == torch.bfloat16
    assert embed(torch.zeros(0, 3, 8, 8)).shape == (0, 4, 16)


def test_patch_drop_keeps_whole_patches_with_their_angles_in_order():
    """Each token and its angles carry their own number, so that what was kept can be read off."""
    B, N, D, d = 5, 12, 4, 6
    x = torch.arange(N, dtype=torch.float32)[None, :, None].expand(B, N, D)
    rope = torch.arange(N)[:, None, None].expand(N, 1, d)
    drop = PatchDrop(0.7)
    torch.manual_seed(0)
    kept, angles = drop(x, rope)
    assert kept.shape == (B, 4, D)
    numbers = kept[:, :, 0].long()
    assert (kept == numbers[..., None]).all()
    assert (numbers.diff(dim=1) > 0).all()
    assert torch.equal(angles, numbers[..., None, None].expand(B, 4, 1, d))
    assert len({tuple(row.tolist()) for row in numbers}) > 1  # each image loses others
    drop.eval()
    assert drop(x, rope)[0] is x


def test_every_patch_is_dropped_equally_often():
    drop, x = PatchDrop(0.5), torch.arange(8.0)[None, :, None].expand(4000, 8, 1)
    torch.manual_seed(0)
    counts = torch.bincount(drop(x)[0].flatten().long(), minlength=8)
    # Kept with probability 1/2: 2000 of 4000, standard deviation 32.
    assert ((counts - 2000).abs() < 160).all()


@pytest.mark.parametrize("in_chans, chans, remedy", [(1, 3, "for gray use .*'L'"), (3, 1, "for RGB use .*'RGB'")])
def test_images_of_another_kind_are_refused_with_the_way_to_this_one(in_chans, chans, remedy):
    embed = PatchEmbed((8, 8), 4, in_chans, 16)
    with pytest.raises(ValueError, match=f"was built for in_chans={in_chans}; {remedy}"):
        embed(torch.zeros(2, chans, 8, 8))
