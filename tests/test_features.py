"""Features are what the head reads; kept ones are the model's own, or made anew."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import randomize

from vit import analysis
from vit.config import ViTConfig
from vit.model import VisionTransformer


def make_model(**changes) -> VisionTransformer:
    options = {"image_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_registers": 1}
    model = randomize(VisionTransformer(ViTConfig(**(options | changes)))).eval()
    model.metadata = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.2)}
    return model


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(256, (7, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("num_classes", [10, 0])
def test_features_are_forward_features_pooled(pool, num_classes, images):
    model = make_model(pool=pool, num_classes=num_classes).double()
    normal = (images.double() / 255 - torch.tensor([0.4, 0.5, 0.6])[:, None, None]) / torch.tensor([0.2, 0.3, 0.2])[
        :, None, None
    ]
    tokens = model.forward_features(normal)
    expected = tokens[:, 0] if pool == "cls" else tokens[:, 1:].mean(dim=1)
    torch.testing.assert_close(analysis.features(model, normal), expected.float(), rtol=0, atol=1e-6)
    torch.testing.assert_close(analysis.features(model, images), expected.float(), rtol=0, atol=1e-5)


def test_a_model_compiled_in_place_is_read_all_the_same(images):
    model = make_model()
    expected, normal = analysis.features(model, images), analysis.prepare_images(model, images)
    model.compile(backend="eager")
    with torch.no_grad():
        model(normal)
    assert torch.equal(analysis.features(model, images), expected)


def test_timms_features_are_its_own_before_the_logits(images):
    timm = pytest.importorskip("timm")
    model = timm.models.VisionTransformer(
        img_size=8, patch_size=4, embed_dim=16, depth=2, num_heads=2, class_token=True
    )
    x = torch.randn(3, 3, 8, 8)
    model.eval()
    expected = model.forward_head(model.forward_features(x), pre_logits=True)
    torch.testing.assert_close(analysis.features(model, x), expected)


def test_a_distilled_models_features_are_both_tokens_that_its_heads_read():
    deit = pytest.importorskip("timm.models.deit")
    model = randomize(
        deit.VisionTransformerDistilled(img_size=8, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=5)
    )
    x = torch.randn(3, 3, 8, 8)
    expected = model.eval().forward_features(x)[:, :2].flatten(1)
    found = analysis.features(model, x)
    torch.testing.assert_close(found, expected)
    heads = [torch.nn.functional.linear(found[:, i : i + 16], h.weight, h.bias) for i, h in
             ((0, model.head), (16, model.head_dist))]  # fmt: skip
    torch.testing.assert_close(sum(heads) / 2, model(x))


def test_a_head_that_reads_all_tokens_has_no_features():
    timm = pytest.importorskip("timm")
    model = timm.models.VisionTransformer(img_size=8, patch_size=4, embed_dim=16, depth=1, num_heads=2, global_pool="")
    with pytest.raises(TypeError, match=r"reads \(5, 16\) numbers an image, not one vector"):
        analysis.features(model, torch.randn(2, 3, 8, 8))


def test_the_model_is_left_as_it_was(images):
    model = make_model(drop_rate=0.5).train()
    first, second = analysis.features(model, images), analysis.features(model, images)
    assert torch.equal(first, second) and model.training
    assert not model.head._forward_pre_hooks and not first.requires_grad


def test_images_of_another_thread_are_not_taken_for_these(images):
    model = make_model()

    def beside(*_: object) -> None:
        hook.remove()
        thread = threading.Thread(target=model, args=(torch.randn(2, 3, 8, 8),))
        thread.start()
        thread.join()

    hook = model.register_forward_pre_hook(beside)
    with pytest.raises(RuntimeError, match=r"has read 9 images in place of 7: .* give it a copy.deepcopy\(model\)"):
        analysis.features(model, images)
    assert analysis.features(model, images).shape == (7, 16)


def test_parts_do_not_show(images, monkeypatch):
    model = make_model()
    whole = analysis.features(model, images)
    monkeypatch.setattr("vit.analysis.inputs.BATCH", 3)
    torch.testing.assert_close(analysis.features(model, images), whole, rtol=0, atol=1e-6)


def test_kept_features_are_read_and_are_the_same(images, tmp_path, monkeypatch):
    model = make_model()
    fresh = analysis.features(model, images)
    assert torch.equal(analysis.features(model, images, cache=tmp_path), fresh)
    [file] = tmp_path.iterdir()
    marked = np.load(file)
    marked[-1] = 7  # beyond the images that are checked
    np.save(file, marked)
    assert analysis.features(model, images, cache=tmp_path)[-1].eq(7).all(), "the file must have been read"


def test_other_weights_other_images_or_another_model_are_not_taken_from_the_file(images, tmp_path):
    model = make_model()
    analysis.features(model, images, cache=tmp_path)
    other = make_model()
    with torch.no_grad():
        other.encoder.blocks[1].mlp.fc1.weight[3, 3] += 1
    assert torch.equal(analysis.features(other, images, cache=tmp_path), analysis.features(other, images))
    turned = images.flip(0)
    assert torch.equal(analysis.features(model, turned, cache=tmp_path), analysis.features(model, turned))
    # The same weights and images in a network of more heads, or behind another normalization: no hash can tell.
    heads = make_model(num_heads=4)
    brighter = make_model()
    brighter.metadata = {"mean": (0.1, 0.1, 0.1), "std": (0.2, 0.3, 0.2)}
    for changed in (heads, brighter):
        assert not torch.allclose(analysis.features(changed, images), analysis.features(model, images), atol=1e-3)
        kept = analysis.features(changed, images, cache=tmp_path)
        assert torch.equal(kept, analysis.features(changed, images))


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b"", lambda b: b"no array", lambda b: b[:200] + b[:9]])
def test_a_damaged_file_is_made_anew(images, tmp_path, damage):
    model = make_model()
    fresh = analysis.features(model, images, cache=tmp_path)
    [file] = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert torch.equal(analysis.features(model, images, cache=tmp_path), fresh)
    assert torch.equal(torch.from_numpy(np.load(file)), fresh)


def test_no_images_have_no_features(images):
    assert analysis.features(make_model(), images[:0]).shape == (0, 16)


def test_what_cannot_be_read_is_refused(images, tmp_path):
    with pytest.raises(TypeError, match="Linear has no module `head`"):
        analysis.features(torch.nn.Linear(2, 2), images)
    with pytest.raises(TypeError, match=r"needs images as a tensor \(B, C, H, W\), got (PosixPath|WindowsPath)"):
        analysis.features(make_model(), Path("a.png"), cache=tmp_path)
