"""Heat lies exactly on the patches it belongs to."""

import matplotlib as mpl
import numpy as np
import pytest
from conftest import is_whole, overlapping, pictures

from vit.plots import blend, plot_attention_heads, plot_attention_view, plot_explanations, plot_queries
from vit.plots.attention import COLORS

BRIGHTEST = np.array(mpl.colormaps[COLORS](1.0)[:3])
DARKEST = np.array(mpl.colormaps[COLORS](0.0)[:3])


@pytest.fixture
def image() -> np.ndarray:
    """A gray picture that is not square, (3, 12, 20)."""
    return np.full((3, 12, 20), 128, dtype=np.uint8)


@pytest.mark.parametrize("patch", [(0, 0), (1, 3), (2, 4)])
def test_heat_covers_its_patch_and_nothing_else(image, patch):
    heat = np.zeros((3, 5))
    heat[patch] = 0.25
    mixed = blend(image, heat, opacity=1)
    inside = np.zeros((12, 20), dtype=bool)
    inside[4 * patch[0] : 4 * patch[0] + 4, 4 * patch[1] : 4 * patch[1] + 4] = True
    np.testing.assert_allclose(mixed[inside], np.broadcast_to(BRIGHTEST, (16, 3)))
    np.testing.assert_allclose(mixed[~inside], np.broadcast_to(DARKEST, (224, 3)))


def test_opacity_goes_from_the_gray_image_to_the_heat(image):
    heat = np.eye(3)
    image = image[:, :, :12]
    image[0, 6:] = 255  # the lower half is brighter: gray 128 above, (255 + 128 + 128) / 3 below, 149.1667 on average
    above, below = 0.5 - 0.35 * 21.166667 / 255, 0.5 + 0.35 * 21.166667 / 255
    only_image = blend(image, heat, opacity=0)
    np.testing.assert_allclose(only_image[:6], np.full((6, 12, 3), above), rtol=1e-6)
    np.testing.assert_allclose(only_image[6:], np.full((6, 12, 3), below), rtol=1e-6)
    half = blend(image, heat, opacity=0.5)
    np.testing.assert_allclose(half[0, 0], (BRIGHTEST + above) / 2, rtol=1e-6)
    np.testing.assert_allclose(half[11, 0], (DARKEST + below) / 2, rtol=1e-6)


@pytest.mark.parametrize("opacity", [0.0, 0.3, 1.0])
def test_the_scale_has_the_colors_of_the_picture(image, opacity):
    heat = np.arange(15.0).reshape(3, 5)
    figure = plot_attention_view(image, heat, opacity=opacity)
    shown = np.asarray(figure.axes[1].images[0].get_array())[::4, ::4]  # a pixel of each patch, (3, 5, 3)
    bar = figure.axes[2].collections[-1]  # what draws the colors of the scale
    np.testing.assert_allclose(shown, bar.cmap(bar.norm(heat))[..., :3], atol=1e-6)


def test_no_heat_at_all_is_cold_everywhere(image):
    np.testing.assert_allclose(blend(image, np.zeros((3, 5)), opacity=1), np.broadcast_to(DARKEST, (12, 20, 3)))


def test_bad_heat_is_refused(image):
    with pytest.raises(ValueError, match=r"heat of shape \(5, 5\) does not divide an image of 12x20"):
        blend(image, np.zeros((5, 5)))
    for value in (-0.5, np.nan, np.inf):
        for draw in (blend, plot_attention_view):
            heat = np.zeros((3, 5))
            heat[1, 2] = value
            with pytest.raises(ValueError, match="heat must be finite and 0 or more, got "):
                draw(image, heat)
    with pytest.raises(ValueError, match=r"opacity=1.5 must be in \[0, 1\]"):
        blend(image, np.zeros((3, 5)), opacity=1.5)
    with pytest.raises(ValueError, match=r"uint8 of shape \(C, H, W\)"):
        blend(image / 255, np.zeros((3, 5)))
    with pytest.raises(ValueError, match="grids must be"):
        plot_attention_heads(image, np.zeros((3, 5)))


def test_the_view_shows_the_blend_and_frames_the_query(image):
    heat = np.random.default_rng(0).random((3, 5))
    figure = plot_attention_view(image, heat, query=(2, 4), opacity=0.3, title="t", unit="share")
    left, right = figure.axes[:2]
    np.testing.assert_allclose(np.asarray(right.images[0].get_array()), blend(image, heat, opacity=0.3))
    for ax in (left, right):
        # The pixels of patch (2, 4) are rows 8 to 11 and columns 16 to 19; each spans half a pixel around its center.
        assert ax.patches[0].get_bbox().bounds == (15.5, 7.5, 4, 4)
    assert figure.axes[2].get_ylim()[1] == pytest.approx(heat.max())


def test_the_grid_of_heads_holds_every_map_in_its_place(image):
    grids = np.random.default_rng(0).random((4, 2, 3, 5))
    figure = plot_attention_heads(image, grids)
    drawn = [ax for ax in figure.axes if ax.images and ax.get_visible()]
    assert len(drawn) == 1 + 4 * 2
    by_place = {(ax.get_subplotspec().rowspan.start, ax.get_subplotspec().colspan.start): ax for ax in drawn}
    for layer in range(4):
        for head in range(2):
            ax = by_place[head, layer + 1]
            np.testing.assert_allclose(np.asarray(ax.images[0].get_array()), blend(image, grids[layer, head]))
            assert ax.get_xlabel() == f"max {grids[layer, head].max():.2f}"


@pytest.mark.parametrize("num_layers", [6, 17, 32])
def test_heads_of_deep_networks_have_room_for_their_numbers(image, num_layers):
    figure = plot_attention_heads(image, np.random.default_rng(0).random((num_layers, 2, 3, 5)))
    figure.draw_without_rendering()
    assert overlapping([text for ax in figure.axes for text in (ax.title, ax.xaxis.label)]) == []


def test_queries_and_explanations_show_what_they_are_given(image):
    heats = np.random.default_rng(0).random((2, 3, 5))
    figure = plot_queries(image, heats, [(0, 0), (1, 2)])
    np.testing.assert_allclose(pictures(figure)[2], blend(image, heats[1]))
    figure = plot_explanations(np.stack([image, image]), {"a_b": heats, "c": heats[::-1]}, ["one", "two"])
    assert [ax.get_title() for ax in figure.axes[:3]] == ["image", "a b", "c"]
    shown = pictures(figure)
    np.testing.assert_allclose(shown[4], blend(image, heats[1]))
    np.testing.assert_allclose(shown[5], blend(image, heats[0]))
    with pytest.raises(ValueError, match="grids has 2 entries for 1 queries; one for each is needed"):
        plot_queries(image, heats, [(0, 0)])
    with pytest.raises(ValueError, match="titles has 1 entries for 2 images"):
        plot_explanations(np.stack([image, image]), {"c": heats}, ["one"])
    with pytest.raises(ValueError, match="heatmaps of 'c' has 2 entries for 1 images"):
        plot_explanations(image[None], {"c": heats})


def test_long_names_stay_in_the_figure_and_apart(image):
    name, heats = "wire-haired fox terrier, or $5$ of them", np.random.default_rng(0).random((2, 3, 5))
    figure = plot_explanations(np.stack([image, image]), {f"for {name}": heats, name: heats}, [name, name])
    assert is_whole(figure)
    texts = [text for ax in figure.axes for text in (ax.title, ax.yaxis.label)]
    assert overlapping(texts) == [] and not any(text.get_parse_math() for text in texts if text.get_text())
    assert is_whole(plot_attention_view(image, heats[0], title=f"{name} 87 %: layer 11, mean of heads, {name} asks"))


def test_every_panel_says_what_it_shows(image):
    heats = np.random.default_rng(0).random((2, 3, 5))
    right = plot_queries(image, heats, [(0, 0), (1, 2)]).axes[2]
    assert right.get_title() == "from patch 1, 2" and right.patches[0].get_bbox().bounds == (7.5, 3.5, 4, 4)
    axes = plot_explanations(np.stack([image, image]), {"a": heats}, ["one", "two"]).axes
    assert [axes[0].get_ylabel(), axes[2].get_ylabel()] == ["one", "two"]
    axes = plot_attention_heads(image, np.random.default_rng(0).random((4, 2, 3, 5))).axes
    assert [ax.get_title() for ax in axes[1:5]] == [f"layer {i}" for i in range(4)]
    assert [axes[i].get_ylabel() for i in (1, 6)] == ["head 0", "head 1"]
    assert plot_attention_view(image, heats[0], unit="share").axes[2].get_ylabel() == "share"
