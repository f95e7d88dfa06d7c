"""The explorer of confusions shows the images of the chosen cell, however it was chosen."""

import io

import matplotlib as mpl
import numpy as np
import pytest
import torch
from conftest import drawn
from PIL import Image

from vit.analysis.metrics import confusion_cell, confusion_matrix, most_confused_pairs
from vit.plots.evaluation import plot_confusion_cell
from vit.widgets import confusion_explorer
from vit.widgets.confusion_explorer import ConfusionExplorer

PAGE = 6  # images shown at once: a row, since drawing takes its time
NAMES = ["cat", "dog", "<b>emu</b>"]
GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (400, 3, 4, 4), dtype=torch.uint8, generator=GENERATOR)
P = torch.randn(400, 3, generator=GENERATOR).softmax(dim=1)
Y = torch.randint(3, (400,), generator=GENERATOR)


@pytest.fixture(autouse=True)
def short_pages(plain_figures, monkeypatch) -> None:
    monkeypatch.setattr(confusion_explorer, "PAGE", PAGE)


@pytest.fixture
def explorer() -> ConfusionExplorer:
    return ConfusionExplorer(IMAGES, P, Y, NAMES)


def shown(explorer) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(explorer.picture.value)).convert("RGB"))


def cell_figure(truth: int, guess: int, page: int = 1):
    cell = confusion_cell(P, Y, truth, guess)
    chosen = cell[PAGE * (page - 1) : PAGE * page]
    return plot_confusion_cell(IMAGES[chosen], P[chosen, guess], NAMES[truth], NAMES[guess], num_images=len(cell))


def test_it_opens_with_the_most_frequent_error(explorer):
    truth, guess, count = most_confused_pairs(P, Y, 1)[0]
    assert (explorer.truth.value, explorer.guess.value, len(explorer.indices)) == (truth, guess, count)
    np.testing.assert_array_equal(shown(explorer), drawn(cell_figure(truth, guess)))


def test_a_click_and_a_choice_by_name_show_the_same(explorer):
    explorer.cells[1, 2].click()
    assert (explorer.truth.value, explorer.guess.value) == (1, 2)
    clicked = shown(explorer)
    np.testing.assert_array_equal(clicked, drawn(cell_figure(1, 2)))
    explorer.truth.value = 2
    np.testing.assert_array_equal(shown(explorer), drawn(cell_figure(2, 2)))
    explorer.truth.value = 1
    np.testing.assert_array_equal(shown(explorer), clicked)
    marked = [cell for cell, button in explorer.cells.items() if "3px" in button.layout.border_top]
    assert marked == [(1, 2)]


def test_pages_go_through_a_cell_once(explorer):
    explorer.choose(0, 0)
    count = len(confusion_cell(P, Y, 0, 0))
    assert count > PAGE and explorer.page.max == -(-count // PAGE) and not explorer.page.disabled
    explorer.page.value = 2
    np.testing.assert_array_equal(shown(explorer), drawn(cell_figure(0, 0, page=2)))
    explorer.choose(np.int64(0), np.int64(1))
    assert explorer.page.value == 1
    np.testing.assert_array_equal(shown(explorer), drawn(cell_figure(0, 1)))


def test_a_change_draws_once(explorer, monkeypatch):
    draws, figure = [], explorer.figure
    monkeypatch.setattr(explorer, "figure", lambda: draws.append(1) or figure())
    for change in (
        lambda: explorer.cells[0, 0].click(),
        lambda: setattr(explorer.page, "value", 2),
        lambda: setattr(explorer.truth, "value", 1),
        lambda: explorer.choose(2, 0),
    ):
        draws.clear()
        change()
        assert len(draws) == 1


def test_buttons_carry_the_counts_and_the_colors_of_errors(explorer):
    counts = confusion_matrix(P, Y)
    assert {cell: int(button.description) for cell, button in explorer.cells.items()} == {
        cell: int(counts[cell]) for cell in np.ndindex(3, 3)
    }
    share = counts / counts.sum(dim=1, keepdim=True)
    errors = {cell: float(share[cell]) for cell in np.ndindex(3, 3) if cell[0] != cell[1]}
    light = {cell: np.mean(mpl.colors.to_rgb(explorer.cells[cell].style.button_color)) for cell in errors}
    assert sorted(errors, key=errors.get) == sorted(light, key=light.get), "cividis grows lighter"
    assert explorer.cells[1, 1].style.button_color == "#ffffff"


def test_names_are_text_and_never_markup(explorer):
    texts = [child.value for child in explorer.children[0].children[0].children[3].children if hasattr(child, "value")]
    assert not any("<b>" in text for text in texts) and sum("&lt;b&gt;emu" in text for text in texts) == 2


def test_a_perfect_model_and_an_empty_cell():
    explorer = ConfusionExplorer(IMAGES[:2], torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([0, 1]), ["a", "b"])
    assert (explorer.truth.value, explorer.guess.value, len(explorer.indices)) == (0, 0, 1)
    explorer.choose(0, 1)
    assert len(explorer.indices) == 0 and explorer.figure().get_suptitle() == "a taken for b: 0 images"


def test_many_classes_are_chosen_by_name():
    p = torch.eye(30)
    explorer = ConfusionExplorer(IMAGES[:30], p, torch.arange(30).roll(1), [f"class {k}" for k in range(30)])
    assert explorer.cells == {} and len(explorer.indices) == 1
    explorer.guess.value = 7
    assert explorer.figure().get_suptitle().startswith("class")


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"images must be a uint8 tensor \(N, C, H, W\)"):
        ConfusionExplorer(IMAGES.float(), P, Y, NAMES)
    with pytest.raises(ValueError, match="399 images and 3 class_names must fit 400 labels of 3 classes"):
        ConfusionExplorer(IMAGES[:399], P, Y, NAMES)
    with pytest.raises(ValueError, match="400 images and 2 class_names must fit"):
        ConfusionExplorer(IMAGES, P, Y, NAMES[:2])
