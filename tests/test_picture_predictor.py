"""The panel shows what the public functions say of any picture, and answers a bad file in its place."""

import datetime
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import drawn
from PIL import Image

import vit
from vit.analysis import explain
from vit.pictures import picture_to_tensor
from vit.plots.predictions import plot_top_classes
from vit.widgets.picture_predictor import PicturePredictor

pytestmark = pytest.mark.usefixtures("plain_figures")


@pytest.fixture(scope="module")
def model():
    return vit.load("vit_nano_patch4_32.shapes")


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    images = vit.load_data("shapes", num_train=10, num_val=10, num_test=3, image_size=(60, 90)).test.images
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]


@pytest.fixture
def panel(model) -> PicturePredictor:
    return PicturePredictor(model)


def uploaded(*files: tuple[str, bytes]) -> tuple[dict, ...]:
    """What a browser hands to a FileUpload."""
    facts = {"type": "image/png", "last_modified": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)}
    return tuple({"name": name, "size": len(data), "content": memoryview(data), **facts} for name, data in files)


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def expected(model, picture, name: str, method: str = "relevance") -> np.ndarray:
    probabilities, heat = vit.predict(model, picture)[0], explain(model, picture, method)[0]
    image = picture_to_tensor(picture, (32, 32))
    names, unit = model.metadata["class_names"], method.replace("_", " ")
    return drawn(plot_top_classes(image, heat, probabilities, names, title=name, unit=unit))


def shown(panel) -> np.ndarray:
    assert panel.shown.layout.display is None
    return np.asarray(Image.open(io.BytesIO(panel.shown.value)).convert("RGB"))


def complains(panel) -> bool:
    return panel.shown.layout.display == "none"


def test_an_upload_is_predicted_and_explained(panel, model, pictures):
    panel.upload.value = uploaded(("star.png", png(pictures[0])))
    np.testing.assert_array_equal(shown(panel), expected(model, pictures[0], "star.png"))
    np.testing.assert_array_equal(drawn(panel.figure()), shown(panel))
    assert "names one of the 10 classes it knows for any picture" in panel.message.value
    probabilities = vit.predict(model, pictures[0])[0]
    name = model.metadata["class_names"][probabilities.argmax()]
    assert f"star.png: {name}, {100 * probabilities.max():.0f} %. The model" in panel.message.value
    assert panel.choice.disabled
    panel.method.value = "gradient_rollout"
    np.testing.assert_array_equal(shown(panel), expected(model, pictures[0], "star.png", "gradient_rollout"))


def test_one_of_several_uploads_is_chosen(panel, model, pictures):
    panel.upload.value = uploaded(*((f"{i}.png", png(picture)) for i, picture in enumerate(pictures)))
    assert [name for name, _ in panel.choice.options] == ["0.png", "1.png", "2.png"] and not panel.choice.disabled
    panel.choice.value = 2
    np.testing.assert_array_equal(shown(panel), expected(model, pictures[2], "2.png"))


def test_a_path_may_be_a_file_or_a_folder(panel, model, pictures, tmp_path):
    tmp_path = tmp_path / "mine"
    tmp_path.mkdir()
    for name, picture in zip(("b.png", "a.BMP", ".hidden.png"), pictures, strict=True):
        picture.save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    panel.path.value = f" {tmp_path / 'b.png'} "
    np.testing.assert_array_equal(shown(panel), expected(model, pictures[0], "b.png"))
    panel.path.value = str(tmp_path)
    assert [name for name, _ in panel.choice.options] == ["a.BMP", "b.png"]
    np.testing.assert_array_equal(shown(panel), expected(model, pictures[1], "a.BMP"))
    (tmp_path.parent / ".trash").mkdir()
    (tmp_path.parent / ".trash" / "c.png").write_bytes(b"hidden")
    panel.path.value = str(tmp_path.parent)  # one level up: as in a folder of class folders
    assert [name for name, _ in panel.choice.options] == ["mine/a.BMP", "mine/b.png"]


def test_what_comes_last_is_shown_and_the_other_source_forgotten(panel, pictures, tmp_path):
    pictures[0].save(tmp_path / "a.png")
    upload = uploaded(("b.png", png(pictures[1])))
    for _ in range(2):  # the same upload again is shown again
        panel.upload.value = upload
        assert panel.choice.label == "b.png" and panel.path.value == ""
        panel.path.value = str(tmp_path / "a.png")
        assert panel.choice.label == "a.png" and panel.upload.value == ()


def test_a_path_may_be_in_quotes(panel, pictures, tmp_path):
    """As Windows copies it."""
    pictures[0].save(tmp_path / "a.png")
    panel.path.value = f'"{tmp_path / "a.png"}"'
    assert not complains(panel)


def test_names_of_other_classes_are_answered_in_the_panel(model, pictures, tmp_path):
    pictures[0].save(tmp_path / "a.png")
    panel = PicturePredictor(model, ["one", "two"])
    panel.path.value = str(tmp_path / "a.png")
    assert complains(panel) and "one a class, got (10,)" in panel.message.value


def test_bad_files_are_answered_in_the_panel(panel, pictures, tmp_path):
    assert complains(panel) and "choose a picture" in panel.message.value
    panel.upload.value = uploaded(("<b>.gif", b"GIF89a" + bytes(20)), ("good.png", png(pictures[0])))
    message = "&lt;b&gt;.gif cannot be read: it is a GIF file; allowed: PNG, JPEG, WEBP, BMP"
    assert complains(panel) and message in panel.message.value
    panel.choice.value = 1
    assert not complains(panel) and "cannot be read" not in panel.message.value
    for path, message in {
        tmp_path / "missing.png": "there is no file at ",
        tmp_path: "holds no picture; the endings looked for are .png",
        Path("~nobody-has-this-name/x.png"): "home",
        Path("x" * 5000): "too long",
        "": "choose a picture",
    }.items():
        panel.path.value = str(path) if path else ""
        assert complains(panel) and message in panel.message.value, path


def test_a_model_that_cannot_normalize_says_so(tiny, pictures):
    panel = PicturePredictor(vit.VisionTransformer(tiny))
    panel.upload.value = uploaded(("a.png", png(pictures[0])))
    assert complains(panel) and "set model.metadata = data.metadata" in panel.message.value


def test_a_change_draws_once_and_the_model_keeps_its_mode(panel, pictures, tmp_path, monkeypatch):
    draws, figure = [], panel.figure
    monkeypatch.setattr(panel, "figure", lambda: draws.append(1) or figure())
    data = [png(picture) for picture in pictures]
    panel.model.train()
    (tmp_path / "d.png").write_bytes(data[0])
    for change in (
        lambda: setattr(panel.upload, "value", uploaded(("a.png", data[0]), ("b.png", data[1]))),
        lambda: setattr(panel.choice, "value", 1),
        lambda: setattr(panel.path, "value", str(tmp_path / "d.png")),
        lambda: setattr(panel.upload, "value", uploaded(("c.png", data[2]))),
        lambda: setattr(panel.method, "value", "rollout"),
    ):
        draws.clear()
        change()
        assert len(draws) == 1
    assert panel.model.training
    panel.model.eval()


def test_models_of_timm_and_models_without_names(pictures):
    import timm

    model = timm.create_model("vit_tiny_patch16_224", img_size=(64, 96), depth=2, num_classes=7).eval()
    torch.nn.init.normal_(model.head.weight)
    panel = PicturePredictor(model)
    panel.upload.value = uploaded(("a.png", png(pictures[0])))
    names = [label.get_text() for label in panel.figure().axes[2].get_yticklabels()]
    order = vit.predict(model, pictures[0])[0].argsort(descending=True)[:5]
    assert names == [f"class {k}" for k in order]
    panel = PicturePredictor(model, class_names=list("abcdefg"))
    panel.upload.value = uploaded(("a.png", png(pictures[0])))
    assert [label.get_text() for label in panel.figure().axes[2].get_yticklabels()] == ["abcdefg"[k] for k in order]
