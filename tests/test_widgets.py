"""The explorer shows what the public functions say, computes once, and draws once a change."""

import importlib.metadata
import io
import runpy

import matplotlib as mpl
import numpy as np
import pytest
import torch
from conftest import drawn
from PIL import Image

import vit
from vit.analysis import attention_from, attention_maps, explain, token_layout
from vit.plots import plot_attention_view
from vit.widgets import AttentionExplorer
from vit.widgets import attention_explorer as module

pytestmark = pytest.mark.usefixtures("plain_figures")


@pytest.fixture(scope="module")
def model():
    return vit.load("vit_nano_patch4_32.shapes")


@pytest.fixture(scope="module")
def images():
    return vit.load_data("shapes", num_train=10, num_val=10, num_test=3).test.images


@pytest.fixture
def explorer(model, images):
    return AttentionExplorer(model, images)


def shown(explorer) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(explorer.picture.value)).convert("RGB"))


def test_it_shows_the_attention_that_was_asked_for(explorer, model, images):
    explorer.image.value, explorer.layer.value, explorer.head.value = 2, 1, 0
    explorer.opacity.value = 0.4
    explorer.choose_query((3, 5))
    maps = attention_maps(model, images[2:], 1, 0)[0, 0, 0]
    expected = attention_from(maps, token_layout(model), (3, 5))
    torch.testing.assert_close(explorer.heat(), expected)
    verdict = vit.predict(model, images[2:])[0]
    name = model.metadata["class_names"][verdict.argmax()]
    title = f"{name} {100 * verdict.max():.0f} %: layer 1, head 0, patch 3, 5 asks"
    figure = plot_attention_view(images[2], expected, query=(3, 5), opacity=0.4, title=title)
    np.testing.assert_array_equal(shown(explorer), drawn(figure))


def test_names_of_classes_may_be_an_array(model, images):
    names = [f"shape {k}" for k in range(10)]
    explorer = AttentionExplorer(model, images[:1], np.array(names))
    assert explorer.class_names == names
    assert AttentionExplorer(model, images[:1]).class_names == list(model.metadata["class_names"])


def test_heads_are_joined_as_the_menu_says(explorer, model, images):
    row = attention_from(attention_maps(model, images[:1])[-1, 0], token_layout(model), "cls")  # (h, rows, columns)
    torch.testing.assert_close(explorer.heat(), row.mean(dim=0))
    explorer.head.value = "max"
    torch.testing.assert_close(explorer.heat(), row.amax(dim=0))


@pytest.mark.parametrize("method", ["rollout", "gradient_rollout", "relevance"])
def test_a_method_explains_the_chosen_class(explorer, model, images, method):
    explorer.method.value = method
    assert explorer.layer.disabled and explorer.head.disabled
    assert explorer.target.disabled == (method == "rollout")
    explorer.target.value = 7
    torch.testing.assert_close(explorer.heat(), explain(model, images[:1], method, targets=7)[0])


def test_the_model_runs_once_and_a_change_draws_once(explorer, monkeypatch):
    """Moving the controls draws from stored maps; an explanation is computed when it is first asked for."""
    calls, draws = [], []
    monkeypatch.setattr(module, "explain", lambda *args, **options: calls.append(args) or explain(*args, **options))
    monkeypatch.setattr(explorer.model, "forward", lambda *_: pytest.fail("the model ran again"))
    figure = explorer.figure
    monkeypatch.setattr(explorer, "figure", lambda: draws.append(1) or figure())
    for change in (
        lambda: setattr(explorer.layer, "value", 0),
        lambda: setattr(explorer.head, "value", 1),
        lambda: setattr(explorer.image, "value", 1),
        lambda: explorer.patches[2, 2].click(),
        lambda: explorer.ask_head.click(),
    ):
        draws.clear()
        change()
        assert len(draws) == 1
    monkeypatch.undo()
    monkeypatch.setattr(module, "explain", lambda *args, **options: calls.append(args) or explain(*args, **options))
    for method in ("relevance", "rollout", "relevance"):
        explorer.method.value = method
    assert len(calls) == 2


def test_an_open_explorer_does_not_hold_the_dataset_its_images_were_cut_from(model, images):
    dataset = images.repeat(100, 1, 1, 1)
    explorer = AttentionExplorer(model, dataset[:2])
    assert explorer.images.untyped_storage().nbytes() == images[:2].numel()


def test_clicking_a_patch_asks_from_it_and_returns_to_attention(explorer):
    explorer.method.value = "relevance"
    explorer.patches[4, 6].click()
    assert explorer.query == (4, 6) and explorer.method.value == "attention"
    assert [patch for patch, button in explorer.patches.items() if button.description] == [(4, 6)]
    explorer.ask_head.click()
    assert explorer.query == "head" and not any(button.description for button in explorer.patches.values())
    with pytest.raises(ValueError, match=r"query=\(9, 0\) is outside the 8x8 patches"):
        explorer.choose_query((9, 0))


def test_buttons_carry_the_colors_of_their_patches(explorer, images):
    explorer.image.value = 1
    patch = images[1, :, 8:12, 20:24].float().mean(dim=(1, 2))  # row 2, column 5
    color = explorer.patches[2, 5].style.button_color
    np.testing.assert_allclose(255 * np.array(mpl.colors.to_rgb(color)), patch.numpy(), atol=1)


def test_mean_pooling_and_many_patches():
    config = vit.ViTConfig.preset("vit_pico_patch8_32", image_size=(176, 168), pool="mean", head="linear")
    model = vit.VisionTransformer(config).eval()
    model.metadata = {"mean": [0.5] * 3, "std": [0.25] * 3}
    images = torch.zeros(1, 3, 176, 168, dtype=torch.uint8)
    explorer = AttentionExplorer(model, images)
    assert explorer.patches == {} and explorer.class_names[3] == "class 3"
    with pytest.raises(ValueError, match="class_names has 2 names, the model 10 classes"):
        AttentionExplorer(model, images, ["a", "b"])
    assert not any("Click" in str(child.value) for child in explorer._controls() if hasattr(child, "value"))
    assert explorer.ask_head.description == "the mean of all patches asks"
    explorer.choose_query((21, 20))
    assert explorer.heat().shape == (22, 21)


@pytest.mark.parametrize("found", ["7.8.5", None])
def test_ipywidgets_that_is_missing_or_too_old_is_named(found, monkeypatch):
    def version(name):
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr("importlib.metadata.version", version)
    with pytest.raises(ImportError, match=f"needs ipywidgets 8 or newer, found {found or 'none'}; python -m pip"):
        runpy.run_path(vit.widgets.__file__)


def test_only_uint8_batches_are_taken(model, images):
    for wrong in (images.float(), images[0], images[:0], None):
        with pytest.raises(ValueError, match=r"uint8 tensor \(B, C, H, W\)"):
            AttentionExplorer(model, wrong)


def test_another_image_is_explained_for_its_own_class(model):
    images = vit.load_data("shapes", num_train=10, num_val=10, num_test=8).test.images
    guesses = vit.predict(model, images).argmax(dim=1).tolist()
    assert len(set(guesses)) > 1
    explorer = AttentionExplorer(model, images)
    for i, guess in enumerate(guesses):
        explorer.image.value = i
        assert explorer.target.value == guess


def test_an_explanation_is_titled_by_its_class(explorer, model):
    explorer.method.value = "relevance"
    explorer.target.value = 7
    figure = explorer.figure()
    assert figure.get_suptitle().endswith(f"relevance for {model.metadata['class_names'][7]}")
    explorer.method.value = "rollout"
    assert explorer.figure().get_suptitle().endswith(": rollout"), "which is of no class"
    assert figure.axes[2].get_ylabel() == "relevance"
