"""The explorers of attention and of confusions: what is clicked, moved or chosen is drawn."""

import pytest

pytestmark = pytest.mark.browser


def test_attention_follows_slider_patch_and_method(open_notebook):
    page = open_notebook("04_attention_maps")
    page.screenshot("opened")
    picture = page.picture()
    page.move_slider("image")
    picture = page.wait_for_another_picture(picture)
    patches = page.panel.find_elements("css selector", ".widget-gridbox button")
    assert len(patches) == 64
    page.click(patches[35])
    picture = page.wait_for_another_picture(picture)
    page.wait(lambda: patches[35].text == "●", "the patch is not marked")
    page.screenshot("patch")
    page.choose("method", "relevance")
    page.wait_for_another_picture(picture)
    page.screenshot("relevance")
    assert page.console_errors() == []


def test_a_click_into_the_confusion_matrix_shows_its_images(open_notebook):
    page = open_notebook("03_evaluate")
    page.screenshot("opened")
    picture = page.picture()
    cells = page.panel.find_elements("css selector", ".widget-gridbox button")
    assert len(cells) == 100
    page.click(cells[11])  # rings taken for rings; circles for circles are shown already where there is no error
    page.wait_for_another_picture(picture)
    menus = [page.control(label, "select") for label in ("truth", "guess")]
    assert [menu.get_attribute("value") for menu in menus] == ["ring", "ring"]
    page.screenshot("clicked")
    assert page.console_errors() == []
