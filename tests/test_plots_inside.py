"""Figures of a model's inside: what is drawn, read back from the artists, is what was given."""

import io
from itertools import pairwise

import numpy as np
import pytest
from conftest import is_whole, overlapping, pictures
from matplotlib.figure import Figure

from vit.plots.inside import (
    plot_attention_distance,
    plot_attention_entropy,
    plot_head_similarity,
    plot_layer_similarity,
    plot_logit_lens,
    plot_patch_filters,
    plot_pos_embed_similarity,
    plot_token_norms,
    plot_token_pca,
)

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 3, 8, 12), dtype=np.uint8)
NAMES = ["cat", "dog", "frog", "ship"]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(1)


def is_small_and_readable(figure: Figure) -> None:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    assert len(file.getvalue()) < 150_000
    assert figure.get_figwidth() * figure.dpi <= 800
    width, height = figure.canvas.get_width_height()
    titles = [figure._suptitle] if figure._suptitle else [ax._left_title for ax in figure.axes if ax._left_title]
    assert any(title.get_text() for title in titles)
    for artist in [*titles, *figure.legends]:
        box = artist.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height, f"{artist} is cut off"


def test_patch_filters_are_drawn_around_gray(rng):
    filters = rng.normal(size=(5, 3, 4, 4)).astype(np.float32)
    figure = plot_patch_filters(filters, rng.dirichlet(np.ones(5)))
    is_small_and_readable(figure)
    for drawn, weights in zip(pictures(figure), filters, strict=True):
        assert drawn.min() >= 0 and drawn.max() <= 1
        back = (drawn.transpose(2, 0, 1) - 0.5) * 2 * abs(weights).max()
        np.testing.assert_allclose(back, weights, atol=1e-6)
    titles = [ax.get_title() for ax in plot_patch_filters(filters[:2], [0.625, 0.25]).axes]
    assert titles == ["62.5 %", "25.0 %"]
    assert pictures(plot_patch_filters(filters[:, :1]))[0].shape == (4, 4)
    for wrong in (filters[:, :2], filters[0], filters[:0]):
        with pytest.raises(ValueError, match=r"filters must be \(num, C, p, p\)"):
            plot_patch_filters(wrong)
    with pytest.raises(ValueError, match="explained has 2 shares for 5 filters"):
        plot_patch_filters(filters, [0.5, 0.5])


def test_every_position_has_its_map_in_its_place(rng):
    similarity = rng.uniform(-1, 1, (2, 3, 2, 3))
    figure = plot_pos_embed_similarity(similarity)
    is_small_and_readable(figure)
    mosaic = np.ma.filled(figure.axes[0].images[0].get_array(), np.nan)
    assert mosaic.shape == (5, 11)
    for row in range(2):
        for column in range(3):
            tile = mosaic[3 * row : 3 * row + 2, 4 * column : 4 * column + 3]
            np.testing.assert_array_equal(tile, similarity[row, column])
    assert np.isnan(mosaic[2]).all() and np.isnan(mosaic[:, [3, 7]]).all(), "gaps part the maps"
    np.testing.assert_array_equal(figure.axes[0].get_xticks(), [1, 5, 9])
    with pytest.raises(ValueError, match=r"\(rows, columns, rows, columns\), got \(2, 3, 3, 2\)"):
        plot_pos_embed_similarity(similarity.transpose(0, 1, 3, 2))


@pytest.mark.parametrize("plot, unit", [(plot_attention_distance, "pixels"), (plot_attention_entropy, "bits")])
def test_every_head_is_a_point_in_its_layer(rng, plot, unit):
    sets = {"trained": rng.uniform(1, 20, (4, 3)), "random": rng.uniform(1, 20, (5, 2))}
    figure = plot(sets, uniform=16.5)
    is_small_and_readable(figure)
    ax = figure.axes[0]
    drawn = {line.get_label(): line for line in ax.lines}
    assert set(drawn) == {"trained", "random", "uniform attention"}
    for name, values in sets.items():
        np.testing.assert_array_equal(drawn[name].get_ydata(), values.ravel())
        layers = np.repeat(np.arange(len(values)), values.shape[1])
        np.testing.assert_array_equal(np.round(drawn[name].get_xdata()), layers)
    assert list(drawn["uniform attention"].get_ydata()) == [16.5, 16.5]
    assert f"({unit})" in ax.get_ylabel() and ax.get_xlabel() == "layer"
    bottom, top = ax.get_ylim()
    assert bottom < min(values.min() for values in sets.values()) and top > 16.5
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*sets, "uniform attention"]
    is_small_and_readable(plot({f"a model with a long name {i}": sets["random"] for i in range(4)}, uniform=1.0))
    alone = plot({"trained": sets["trained"]}).axes[0].lines
    assert len(alone) == 1 and set(alone[0].get_xdata()) == {0, 1, 2, 3}
    np.testing.assert_array_equal(plot(sets["trained"]).axes[0].lines[0].get_xydata(), alone[0].get_xydata())
    assert np.isfinite(plot({"one head without a value": [[1.0, np.nan]]}).axes[0].get_ylim()).all()
    with pytest.raises(ValueError, match=r"'flat' must be \(L, h\), one value a head, got shape \(3,\)"):
        plot({"flat": np.ones(3)})
    for count in (0, 5):
        with pytest.raises(ValueError, match=f"1 to 4 named sets can be told apart, got {count}"):
            plot({str(i): np.ones((2, 2)) for i in range(count)})


def test_heads_against_heads_are_parted_by_layers(rng):
    similarity = rng.uniform(size=(6, 6))
    figure = plot_head_similarity(similarity, 2)
    is_small_and_readable(figure)
    ax = figure.axes[0]
    np.testing.assert_array_equal(pictures(figure)[0], similarity)
    assert [line.get_xdata()[0] for line in ax.lines[1::2]] == [1.5, 3.5]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0", "1", "2"]
    np.testing.assert_array_equal(ax.get_yticks(), [0.5, 2.5, 4.5])
    for wrong, num_heads in ((similarity, 4), (similarity[:4], 2), (similarity, 0)):
        with pytest.raises(ValueError, match=f"similarity must be .* num_heads={num_heads}"):
            plot_head_similarity(wrong, num_heads)


@pytest.mark.parametrize("count", [1, 3])
def test_token_colors_stand_below_their_images(rng, count):
    rgb = rng.uniform(size=(count, 2, 3, 3))
    figure = plot_token_pca(IMAGES[:count], rgb)
    is_small_and_readable(figure)
    drawn = pictures(figure)
    for i in range(count):
        np.testing.assert_array_equal(drawn[i], IMAGES[i].transpose(1, 2, 0))
        np.testing.assert_array_equal(drawn[count + i], rgb[i])
    with pytest.raises(ValueError, match=rf"rgb must be \({count}, rows, columns, 3\)"):
        plot_token_pca(IMAGES[:count], rgb[..., :2])
    with pytest.raises(ValueError, match=r"images must be uint8 of shape \(B, C, H, W\).*float64"):
        plot_token_pca(IMAGES / 255, rgb)


@pytest.mark.parametrize("count", [1, 3])
def test_the_lens_shows_the_probability_of_each_class_after_each_layer(rng, count):
    probabilities = rng.dirichlet(np.ones(4), size=(5, count))  # (L, B, K)
    labels = np.array([2, 0, 3])[:count]
    figure = plot_logit_lens(IMAGES[:count], probabilities, labels, NAMES)
    is_small_and_readable(figure)
    assert [ax.get_title() for ax in figure.axes[:count]] == [NAMES[label] for label in labels]
    assert [text.get_text() for text in figure.axes[count].get_yticklabels()] == NAMES
    for i, label in enumerate(labels):
        np.testing.assert_array_equal(pictures(figure)[i], IMAGES[i].transpose(1, 2, 0))
        ax = figure.axes[count + i]
        np.testing.assert_array_equal(ax.images[0].get_array(), probabilities[:, i].T)
        assert ax.images[0].get_extent() == [-0.5, 4.5, 3.5, -0.5], "layer 0 is at 0, class 0 at 0"
        [frame] = ax.patches
        assert (frame.get_y(), frame.get_height()) == (label - 0.5, 1)
        assert ax.images[0].get_clim() == (0, 1), "one scale for all images"


@pytest.mark.parametrize("names", [["cat", "dog"], ["wire-haired fox terrier", "German short-haired pointer"]])
def test_the_lens_has_room_for_few_classes_and_long_names(rng, names):
    figure = plot_logit_lens(IMAGES[[0, 1, 2, 0, 1]], rng.dirichlet([1, 1], (5, 5)), np.array([0, 1, 0, 1, 1]), names)
    assert is_whole(figure) and overlapping([ax.title for ax in figure.axes]) == []
    colorbar = figure.axes[-1]
    assert colorbar.yaxis.label.get_window_extent().height < 1.2 * colorbar.get_window_extent().height


def test_positions_of_a_wide_grid_are_drawn_whole(rng):
    assert is_whole(plot_pos_embed_similarity(rng.random((3, 12, 3, 12))))


def test_the_lens_refuses_what_it_cannot_show():
    probabilities, labels = np.full((5, 3, 4), 0.25), np.zeros(3, dtype=int)
    with pytest.raises(ValueError, match="logits.softmax"):
        plot_logit_lens(IMAGES, probabilities * 8, labels, NAMES)
    with pytest.raises(ValueError, match=r"probabilities \(5, 3, 4\) and labels \(3,\) must be \(L, 3, 3\)"):
        plot_logit_lens(IMAGES, probabilities, labels, NAMES[:3])
    with pytest.raises(ValueError, match=r"labels \(2,\) must be"):
        plot_logit_lens(IMAGES, probabilities, labels[:2], NAMES)
    with pytest.raises(ValueError, match=r"labels must be in 0\.\.3, got 0 to 4"):
        plot_logit_lens(IMAGES, probabilities, np.array([0, 1, 4]), NAMES)
    with pytest.raises(ValueError, match="class_names has 21 names, at most 20"):
        plot_logit_lens(IMAGES, np.zeros((5, 3, 21)), labels, ["x"] * 21)


def test_norms_of_all_layers_share_one_scale(rng):
    norms = rng.uniform(3, 40, (4, 2, 2, 3))
    figure = plot_token_norms(IMAGES[:2], norms)
    is_small_and_readable(figure)
    grid = np.reshape(figure.axes[:10], (2, 5))
    assert [ax.get_title() for ax in grid[0]] == ["image", "layer 0", "layer 1", "layer 2", "layer 3"]
    for i in range(2):
        np.testing.assert_array_equal(grid[i, 0].images[0].get_array(), IMAGES[i].transpose(1, 2, 0))
        for layer in range(4):
            image = grid[i, layer + 1].images[0]
            np.testing.assert_array_equal(image.get_array(), norms[layer, i])
            assert image.get_clim() == (norms.min(), norms.max())
    is_small_and_readable(plot_token_norms(IMAGES[:1], norms[:1, :1]))
    with pytest.raises(ValueError, match=r"norms must be \(L, 3, rows, columns\).* got \(4, 2, 2, 3\)"):
        plot_token_norms(IMAGES, norms)


def test_layers_against_layers_with_the_first_at_the_bottom_left(rng):
    similarity = rng.uniform(size=(4, 3))
    figure = plot_layer_similarity(similarity, ("ours", "theirs"))
    is_small_and_readable(figure)
    image = figure.axes[0].images[0]
    np.testing.assert_array_equal(image.get_array(), similarity)
    assert image.origin == "lower" and image.get_extent() == [-0.5, 2.5, -0.5, 3.5] and image.get_clim() == (0, 1)
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("layer of theirs", "layer of ours")
    assert plot_layer_similarity(similarity).axes[0].get_xlabel() == "layer"
    with pytest.raises(ValueError, match=r"similarity must be \(L, L'\), got \(4,\)"):
        plot_layer_similarity(similarity[:, 0])


def test_large_networks_have_room_for_their_numbers(rng):
    figures = [
        plot_layer_similarity(rng.random((32, 24))),
        plot_head_similarity(rng.random((32 * 2, 32 * 2)), 2),
        plot_pos_embed_similarity(rng.random((37, 37, 37, 37))),
    ]
    for figure in figures:
        figure.canvas.draw()
        for axis in (figure.axes[0].xaxis, figure.axes[0].yaxis):
            ticks = [(text.get_window_extent(), text.get_text()) for text in axis.get_ticklabels()]
            assert 8 <= len(ticks) <= 16 and [int(text) for _, text in ticks][:2] in ([0, 2], [0, 3])
            assert not any(a.overlaps(b) for (a, _), (b, _) in pairwise(ticks))


def test_figures_of_no_images_are_refused():
    images = np.zeros((0, 3, 4, 4), np.uint8)
    for plot in (
        lambda: plot_token_pca(images, np.zeros((0, 2, 2, 3))),
        lambda: plot_token_norms(images, np.ones((2, 0, 2, 2))),
        lambda: plot_logit_lens(images, np.ones((2, 0, 3)), np.zeros(0, int), ["a", "b", "c"]),
    ):
        with pytest.raises(ValueError, match="images is empty: there is nothing to plot"):
            plot()
