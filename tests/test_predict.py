"""From pictures to probabilities, whatever form the pictures come in."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from conftest import randomize
from PIL import Image

import vit
from vit.analysis.inputs import picture_options, prepare_images
from vit.data import normalize
from vit.model.vision_transformer import VisionTransformer
from vit.pictures import picture_to_tensor

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


@pytest.fixture
def model(tiny) -> VisionTransformer:
    model = randomize(VisionTransformer(tiny))
    model.metadata = {"mean": MEAN, "std": STD}
    return model


def test_every_form_of_the_same_picture_gives_the_same_answer(model, tmp_path):
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    expected = model.eval()(normalize(images, MEAN, STD)).softmax(1)
    arrays = [np.ascontiguousarray(image.permute(1, 2, 0).numpy()) for image in images]
    pictures = [Image.fromarray(array) for array in arrays]
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for path, picture in zip(paths, pictures, strict=True):
        picture.save(path)
    for form in (images, normalize(images, MEAN, STD), arrays, pictures, paths, [str(path) for path in paths]):
        torch.testing.assert_close(vit.predict(model, form), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(vit.predict(model, paths[1]), expected[1:], rtol=0, atol=1e-6)


def test_pictures_are_prepared_as_the_metadata_says(model):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 96, 3), dtype=np.uint8))
    options = {"interpolation": "bilinear", "crop": 0.875, "squash": True}
    expected = vit.predict(model, picture_to_tensor(picture, (8, 8), **options)[None])
    assert not torch.allclose(vit.predict(model, picture), expected)
    model.metadata |= options
    torch.testing.assert_close(vit.predict(model, picture), expected)


def test_pictures_are_prepared_as_timms_configuration_says():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=4)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    options = {"interpolation": "bicubic", "crop": model.pretrained_cfg["crop_pct"], "squash": False}
    assert picture_options(model) == options and options["crop"] == 0.9
    with torch.no_grad():
        logits = model.eval()(prepare_images(model, picture))
    mean, std = (model.pretrained_cfg[key] for key in ("mean", "std"))
    images = normalize(picture_to_tensor(picture, (32, 32), **options)[None], mean, std)
    torch.testing.assert_close(logits, model(images))


def test_the_mode_of_the_model_is_put_back_and_other_sizes_are_resized(model):
    model.train()
    assert vit.predict(model, Image.new("RGB", (50, 20))).shape == (1, 10)
    assert model.training


def test_a_model_in_training_mode_answers_as_in_evaluation_mode(tiny):
    model = randomize(VisionTransformer(replace(tiny, drop_rate=0.5, drop_path_rate=0.5, attn_drop_rate=0.5)))
    model.metadata = {"mean": MEAN, "std": STD}
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    expected = model.eval()(normalize(images, MEAN, STD)).softmax(1)
    probabilities = vit.predict(model.train(), images)
    torch.testing.assert_close(probabilities, expected, rtol=0, atol=1e-6)
    assert not probabilities.requires_grad


def test_pictures_are_normalized_as_the_file_of_the_weights_says(model, tmp_path):
    """As in its training, and not as some dataset is by default."""
    image = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    for mean, std in ((MEAN, STD), ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))):
        model.metadata = {"mean": list(mean), "std": list(std)}
        loaded = vit.load(vit.save(model, tmp_path / "model.safetensors"))
        by_hand = (image / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        expected = model.eval()(by_hand).softmax(1)
        torch.testing.assert_close(vit.predict(loaded, image), expected, rtol=0, atol=1e-6)


def test_nothing_in_nothing_out(model):
    assert vit.predict(model, []).shape == (0, 10)
    assert vit.predict(model, torch.zeros(0, 3, 8, 8)).shape == (0, 10)


def test_bad_pixels_are_named(model):
    images = torch.zeros(3, 3, 8, 8)
    for value in (float("nan"), float("inf")):
        images[1, 0, 2, 3] = value
        with pytest.raises(ValueError, match=r"images\[1\] has NaN or infinite pixels \(1 such images"):
            vit.predict(model, images)


def test_floats_that_were_not_normalized_bring_a_warning(model):
    with pytest.warns(UserWarning, match="the largest pixel is 255, far outside normalized images"):
        vit.predict(model, torch.full((1, 3, 8, 8), 255.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vit.predict(model, torch.randn(4, 3, 8, 8))


def test_wrong_kinds_are_refused(model, tmp_path):
    with pytest.raises(TypeError, match="a path, a PIL image or a uint8 array, got int"):
        vit.predict(model, 3)
    with pytest.raises(TypeError, match=r"an array must be uint8 \(H, W, 3\), got float64 \(8, 8, 3\)"):
        vit.predict(model, np.zeros((8, 8, 3)))
    model.metadata = {}
    with pytest.raises(ValueError, match=r"set model.metadata = data.metadata"):
        vit.predict(model, torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
