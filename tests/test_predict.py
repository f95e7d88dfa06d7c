"""From pictures to probabilities, whatever form the pictures come in."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from conftest import randomize
from PIL import Image
from torch import Tensor, nn

import vit
from vit import analysis
from vit.analysis.inputs import picture_options, prepare_images
from vit.data import normalize
from vit.model import Encoder
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
    options = {"interpolation": "bicubic", "crop": model.pretrained_cfg["crop_pct"], "squash": False, "channels": 3}
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


def test_pixels_are_those_of_a_loader_to_the_last_bit_and_a_mean_for_all_channels_is_refused(model, shapes):
    model.metadata = shapes.metadata
    [(expected, _)] = vit.make_eval_loader(shapes, shapes.val.subset(slice(20)), device="cpu").epoch(0)
    assert torch.equal(prepare_images(model, shapes.val.images[:20]), expected)
    model.metadata = {"mean": (0.5,), "std": (0.5,)}  # would go to all channels, silently
    with pytest.raises(ValueError, match=r"mean=.* need one value for each of the 3 channels"):
        prepare_images(model, shapes.val.images)


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
    with pytest.raises(TypeError, match="model='vit_nano_patch4_32.cifar10' must be a network"):
        vit.predict("vit_nano_patch4_32.cifar10", torch.zeros(1, 3, 8, 8))
    with pytest.raises(TypeError, match="a path, a PIL image or a uint8 array, got int"):
        vit.predict(model, 3)
    with pytest.raises(TypeError, match=r"an array must be uint8 \(H, W, 3\) or \(H, W\), got float64 \(8, 8, 3\)"):
        vit.predict(model, np.zeros((8, 8, 3)))
    batch = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    with pytest.raises(TypeError, match=r"got uint8 \(2, 3, 8, 8\); a batch goes in as torch\.from_numpy\(images\)"):
        vit.predict(model, batch.numpy())
    with pytest.raises(TypeError, match=r"got Tensor; of tensors make a batch by torch\.stack\(images\)"):
        vit.predict(model, list(batch))
    for remedied in (torch.from_numpy(batch.numpy()), torch.stack(list(batch))):
        assert torch.equal(vit.predict(model, remedied), vit.predict(model, batch))
    model.metadata = {}
    with pytest.raises(ValueError, match=r"set model.metadata = data.metadata"):
        vit.predict(model, torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    model.metadata = {"mean": 0.5, "std": 0.5}
    with pytest.raises(ValueError, match=r"mean=0.5 and std=0.5 must be sequences, with a number for each channel"):
        vit.predict(model, torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


def test_floats_between_0_and_1_bring_a_warning_unless_the_model_takes_them_so(model):
    images = torch.rand(4, 3, 8, 8)
    with pytest.warns(
        UserWarning, match=r"all pixels lie in 0.0\d..\d.\d\d, as if .* not normalized.*to\(torch.uint8\)"
    ):
        vit.predict(model, images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vit.predict(model, images - 0.01)  # some are negative
        model.metadata = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
        vit.predict(model, images)


def test_tensors_of_another_type_or_shape_are_refused_with_the_remedy(model):
    for dtype in (torch.int64, torch.bool):
        with pytest.raises(TypeError, match=rf"images are {dtype}: pass uint8 .*, or normalized floats"):
            vit.predict(model, torch.ones(1, 3, 8, 8, dtype=dtype))
    for shape, message in {
        (2, 8, 8, 3): r"the channels come last; use images.permute\(0, 3, 1, 2\)",
        (2, 1, 8, 8): r"takes 3 channels: for RGB of a gray one use images.expand\(-1, 3, -1, -1\)",
        (2, 2, 8, 8): r"images have shape \(2, 2, 8, 8\), the model takes 3 channels",
        (3, 8, 8): r"must have shape \(B, C, H, W\), got \(3, 8, 8\); add the batch axis with images\[None\]",
    }.items():
        with pytest.raises(ValueError, match=message):
            vit.predict(model, torch.ones(shape, dtype=torch.uint8))


def test_a_model_of_gray_images_takes_pictures_of_any_kind(tiny, tmp_path):
    model = randomize(VisionTransformer(replace(tiny, in_chans=1)))
    model.metadata = {"mean": (0.4,), "std": (0.3,)}
    gray = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    expected = model.eval()((torch.from_numpy(gray)[None, None] / 255 - 0.4) / 0.3).softmax(1)
    Image.fromarray(gray).save(tmp_path / "gray.png")
    forms = (gray, gray[..., None], np.stack([gray] * 3, axis=2), Image.fromarray(gray), tmp_path / "gray.png")
    for form in (*forms, torch.from_numpy(gray)[None, None]):
        torch.testing.assert_close(vit.predict(model, form), expected, rtol=0, atol=1e-6)
    assert vit.predict(model, []).shape == (0, 10)
    with pytest.raises(ValueError, match="takes 1 channels: for a gray one of RGB use .*rgb_to_grayscale"):
        vit.predict(model, torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


def test_a_network_without_convolutions_takes_tensors_of_any_channels():
    """As `evaluate` gives them to it, since nothing tells how many channels it takes."""
    for channels in (1, 2, 3):
        model = nn.Sequential(nn.Flatten(), nn.Linear(channels * 16, 4))
        images = torch.randn(5, channels, 4, 4)
        torch.testing.assert_close(vit.predict(model, images), model(images).softmax(1))


class Mine(nn.Module):
    """A network of one's own, whose parts have the names of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 16, 4, stride=4)
        self.encoder = Encoder(16, 2, 2, 32)
        self.head = nn.Linear(16, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.encoder(self.patch_embed(images).flatten(2).mT).mean(dim=1))


@pytest.mark.parametrize("config", [None, {"grid": 2}])
def test_a_network_whose_parts_have_our_names_is_taken_as_any_other(config, tmp_path):
    model, images = randomize(Mine()).eval(), torch.randn(3, 3, 8, 8)
    if config is not None:
        model.config = config
    torch.testing.assert_close(vit.predict(model, images), model(images).softmax(1))
    tokens = model.encoder(model.patch_embed(images).flatten(2).mT)
    torch.testing.assert_close(analysis.features(model, images), tokens.mean(dim=1))
    for look in (analysis.attention_maps, analysis.explain):
        with pytest.raises(TypeError, match="Mine has no num_prefix_tokens: no plain Vision Transformer"):
            look(model, images)
    with pytest.raises(TypeError, match=r"got .*Mine; .*; one of your own is kept by torch\.save\(model\.state_dict"):
        vit.save(model, tmp_path / "mine.safetensors")
    path = tmp_path / "model.pt"  # torch.load would read the other ending as safetensors
    torch.save(model.state_dict(), path)
    again = Mine().eval()
    again.load_state_dict(torch.load(path, weights_only=True))
    assert torch.equal(again(images), model(images))


def test_a_network_without_parameters_is_refused():
    with pytest.raises(ValueError, match="Flatten has no parameters, whose device and type"):
        vit.predict(nn.Flatten(), torch.zeros(2, 3, 8, 8))


def test_many_images_are_given_to_the_model_in_parts_that_do_not_show(model, monkeypatch):
    images = torch.randint(0, 256, (7, 3, 8, 8), dtype=torch.uint8)
    pictures = [image.permute(1, 2, 0).numpy() for image in images]
    functions = (vit.predict, vit.analysis.block_outputs, vit.analysis.token_norms)
    wholes = [function(model, images) for function in functions]
    monkeypatch.setattr("vit.analysis.inputs.BATCH", 3)
    sizes = []
    hook = model.patch_embed.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    for function, whole in zip(functions, wholes, strict=True):
        for form in (images, pictures):
            torch.testing.assert_close(function(model, form), whole, rtol=0, atol=1e-5)
    hook.remove()
    assert sizes == [3, 3, 1] * 6
    with pytest.raises(ValueError, match=r"images\[5\] has NaN"):
        vit.predict(model, torch.randn(7, 3, 8, 8).index_fill(0, torch.tensor([5]), float("nan")))


def test_probabilities_can_be_worked_with(model):
    probabilities = vit.predict(model, torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    probabilities[:, 3] = 0  # as who rules out a class does
    weight = torch.ones(10, requires_grad=True)
    (probabilities * weight).sum().backward()
    assert torch.equal(weight.grad, probabilities[0])


def test_a_model_without_classes_predicts_none():
    with pytest.raises(ValueError, match=r"no classes \(num_classes=0\).* see analysis.features"):
        vit.predict(vit.VisionTransformer(vit.ViTConfig(num_classes=0)), torch.zeros(1, 3, 32, 32))


def test_a_single_logit_has_no_softmax(tiny):
    model, images = VisionTransformer(replace(tiny, num_classes=1)), torch.randn(2, 3, 8, 8)
    for call in (vit.predict, lambda *given: vit.analysis.deletion_curve(*given, torch.ones(2, 2, 2), 0)):
        with pytest.raises(ValueError, match=r"one logit.* use torch.sigmoid\(model\(images\)\)"):
            call(model, images)
    assert vit.analysis.prepare_images(model, images).equal(images), "as the message says"
    assert vit.analysis.randomization_curve(model, images).shape == (2, tiny.depth + 3)


def test_an_address_is_not_fetched(model):
    with pytest.raises(FileNotFoundError, match="addresses are never fetched: save the file and pass its path"):
        vit.predict(model, "https://example.org/cat.png")
