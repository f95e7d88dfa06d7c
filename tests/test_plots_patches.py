"""Figures of patches, tokens and positions show the numbers they were given, each in its place."""

import numpy as np
import pytest
import torch

from vit.model.patch_embed import patchify
from vit.plots.patches import (
    plot_patch_token,
    plot_patches,
    plot_position_table,
    plot_similarity,
    plot_token_sequence,
)

PIXELS = torch.randint(0, 255, (3, 8, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def drawn(ax) -> np.ndarray:
    return np.asarray(ax.images[0].get_array())


def number_at(ax, text: str) -> np.ndarray:
    """The pixel that lies under the number of a patch."""
    (label,) = [label for label in ax.texts if label.get_text() == text]
    x, y = label.get_position()
    return drawn(ax)[int(y), int(x)]


@pytest.mark.parametrize(("patch_size", "grid_size"), [(4, (2, 3)), (2, (4, 6))])
def test_a_cut_image_holds_every_patch_between_white_gaps(patch_size, grid_size):
    whole, cut = plot_patches(PIXELS, [patch_size]).axes
    np.testing.assert_array_equal(drawn(whole), PIXELS.permute(1, 2, 0).numpy())
    is_gap = (drawn(cut) == 255).all(axis=2)
    gap_rows, gap_columns = is_gap.all(axis=1), is_gap.all(axis=0)
    # Without the gaps and the magnification, the image is left: no pixel is lost, doubled or moved.
    inside = drawn(cut)[~gap_rows][:, ~gap_columns]
    factor = len(inside) // 8
    assert inside.shape == (8 * factor, 12 * factor, 3) and factor * 8 == len(inside)
    np.testing.assert_array_equal(inside, np.kron(PIXELS.permute(1, 2, 0), np.ones((factor, factor, 1))))
    # As many stretches of pixels as there are patches: each gap lies between two of them.
    for is_gap_line, count in ((gap_rows, grid_size[0]), (gap_columns, grid_size[1])):
        assert np.count_nonzero(np.diff(np.concatenate([[True], is_gap_line, [True]]).astype(int)) == -1) == count
    assert f"{grid_size[0] * grid_size[1]} patches" in cut.get_title()


def test_patches_carry_the_numbers_that_patchify_gives_them():
    plain = torch.arange(6, dtype=torch.uint8).view(2, 3)  # every patch one color: its number
    image = (20 * plain).repeat_interleave(4, 0).repeat_interleave(4, 1).expand(3, 8, 12)
    order = patchify(image[None], 4)[0, :, 0] // 20
    _, cut = plot_patches(image, [4]).axes
    assert len(cut.texts) == 6
    for n in range(6):
        assert number_at(cut, str(n)).tolist() == [20 * int(order[n])] * 3
    many = plot_patches(image.repeat(1, 8, 8), [4, 8, 32]).axes
    assert [len(ax.texts) for ax in many] == [0, 0, 0, 6], "numbers that would not fit are left out"


def test_a_patch_and_its_token_are_drawn_number_by_number():
    patch, values, token = PIXELS[:, :4, :4], torch.randn(48), torch.randn(10)
    left, middle, right = plot_patch_token(patch, values, token).axes
    np.testing.assert_array_equal(drawn(left), patch.permute(1, 2, 0).numpy())
    assert [bar.get_height() for bar in middle.patches] == pytest.approx(values.tolist())
    assert [bar.get_x() + bar.get_width() / 2 for bar in middle.patches] == pytest.approx(range(48))
    assert [bar.get_height() for bar in right.patches] == pytest.approx(token.tolist())
    colors = [bar.get_facecolor() for bar in middle.patches]
    assert len(set(colors)) == 3 and all(len(set(colors[i : i + 16])) == 1 for i in (0, 16, 32))
    assert [text.get_text() for text in middle.get_legend().get_texts()] == ["red", "green", "blue"]
    gray = plot_patch_token(patch[:1], values[:16], token).axes[1]
    assert [text.get_text() for text in gray.get_legend().get_texts()] == ["gray"]


def test_a_position_table_is_drawn_channel_by_channel_on_its_grid():
    table, channels = torch.randn(6, 8), torch.tensor([[0, 3], [7, 2]])
    axes = plot_position_table(table, (2, 3), channels, ["first", "second"]).axes[:4]
    for ax, channel in zip(axes, [0, 3, 7, 2], strict=True):
        np.testing.assert_array_equal(drawn(ax), table[:, channel].view(2, 3).numpy())
        assert ax.get_title() == f"channel {channel}"
    assert [axes[0].get_ylabel(), axes[2].get_ylabel()] == ["first", "second"]
    limits = {ax.images[0].get_clim() for ax in axes}
    assert limits == {(-abs(table[:, [0, 3, 7, 2]]).max().item(), abs(table[:, [0, 3, 7, 2]]).max().item())}


def test_similarity_maps_share_a_scale_and_frame_the_query():
    maps = {"one": torch.rand(2, 3), "other": 5 * torch.rand(2, 3)}
    axes = plot_similarity(maps, (1, 2)).axes[:2]
    for ax, (name, values) in zip(axes, maps.items(), strict=True):
        np.testing.assert_array_equal(drawn(ax), values.numpy())
        assert ax.get_title(loc="left") == name
        (frame,) = ax.patches
        assert (frame.get_x() + 0.5, frame.get_y() + 0.5) == (2, 1), "x is the column, y the row"
    both = torch.stack([*maps.values()])
    assert {ax.images[0].get_clim() for ax in axes} == {(both.min().item(), both.max().item())}
    assert len(plot_similarity({"alone": torch.rand(2, 3)}, (0, 0)).axes) == 2


def test_a_sequence_puts_each_patch_above_its_token():
    tokens, patches = torch.randn(8, 5), patchify(PIXELS[None], 4)[0].view(6, 3, 4, 4)
    top, bottom = plot_token_sequence(tokens, patches, ["CLS", "reg"]).axes[:2]
    np.testing.assert_array_equal(drawn(bottom), tokens.T.numpy())
    left, right, _, _ = top.images[0].get_extent()
    assert (left, right) == (1.5, 7.5) and top.get_xlim() == bottom.get_xlim() == (-0.5, 7.5)
    for n in range(6):
        np.testing.assert_array_equal(drawn(top)[:, 4 * n : 4 * n + 4], patches[n].permute(1, 2, 0).numpy())
    assert [(text.get_text(), text.get_position()[0]) for text in top.texts] == [
        ("CLS, reg", -0.5),
        ("6 patches", 7.5),
    ]


def test_gray_images_keep_their_brightness_and_a_patch_may_be_one_pixel():
    dim = PIXELS[:1] // 2
    for ax in plot_patches(dim, [4]).axes:
        assert drawn(ax).ndim == 2 and ax.images[0].get_clim() == (0, 255)
    top = plot_token_sequence(torch.randn(97, 5), PIXELS.flatten(1).T[:, :, None, None], ["CLS"]).axes[0]
    np.testing.assert_array_equal(drawn(top), PIXELS.flatten(1).T[None].numpy())


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (
            lambda: plot_patches(PIXELS.float(), [4]),
            r"image must be uint8 of shape \(C, H, W\) .* got float32 \(3, 8, 12\)",
        ),
        (lambda: plot_patches(PIXELS, [4, 5]), r"patch_sizes: 5 does not divide an image of 8x12 pixels"),
        (
            lambda: plot_patch_token(PIXELS[:, :4, :4], torch.zeros(47), torch.zeros(8)),
            r"values must have shape \(48,\) .* got values \(47,\)",
        ),
        (
            lambda: plot_position_table(torch.zeros(7, 8), (2, 3), torch.zeros(1, 1, dtype=int), ["a"]),
            r"table must have shape \(N, D\) with N of grid_size=\(2, 3\), got \(7, 8\)",
        ),
        (
            lambda: plot_position_table(torch.zeros(6, 8), (2, 3), torch.zeros(1, 1, dtype=int), ["a", "b"]),
            r"channels of shape \(1, 1\) need one of row_names",
        ),
        (lambda: plot_similarity({"a": torch.zeros(2, 3)}, (2, 0)), r"maps\['a'\] of shape \(2, 3\) .* query=\(2, 0\)"),
        (
            lambda: plot_token_sequence(torch.zeros(6, 5), torch.zeros(6, 3, 4, 4, dtype=torch.uint8), ["CLS"]),
            r"tokens must have shape \(T, D\) with T = 1 \+ 6, got \(6, 5\)",
        ),
    ],
)
def test_what_does_not_fit_is_named(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
