"""Weights by name, and the Hub's verbs, without a network: what would be fetched or sent is put in its place."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
import transformers
from conftest import randomize

import vit
from vit.model.vision_transformer import VisionTransformer
from vit.pretrained import HubModel, load_weights, to_transformers


@pytest.fixture
def model(tiny) -> VisionTransformer:
    model = randomize(VisionTransformer(tiny)).eval()
    model.metadata = {"mean": [0.5] * 3, "std": [0.2] * 3, "class_names": list("abcdefghij")}
    return model


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


# --- fetching -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_timms_names(monkeypatch):
    asked = []
    theirs = randomize(timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=4)).eval()
    monkeypatch.setattr(timm, "create_model", lambda name, **options: asked.append((name, options)) or theirs)
    model = vit.load("timm/vit_tiny_patch16_224.augreg_in21k")
    assert asked == [("vit_tiny_patch16_224.augreg_in21k", {"pretrained": True})]
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(images), theirs(images), rtol=0, atol=1e-5)
    assert model.metadata["crop"] == 0.9 and model.metadata["mean"] == [0.5] * 3
    assert vit.predict(model, torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).shape == (1, 4)
    model = load_weights(None, "timm/vit_tiny_patch16_224.augreg_in21k", num_classes=2)
    assert model(images).shape == (2, 2) and len(asked) == 2


def test_a_path_is_a_path_even_if_it_begins_like_a_name(monkeypatch, tmp_path, model, images):
    monkeypatch.chdir(tmp_path)
    vit.save(model, "timm/model.safetensors")
    assert torch.equal(vit.load("timm/model.safetensors")(images), model(images))


@torch.no_grad()
def test_repositories_of_the_hub(monkeypatch, tmp_path, images, tiny):
    sizes = {"image_size": 8, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    theirs = transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, intermediate_size=32, num_labels=4))
    theirs = randomize(theirs).eval()
    theirs.save_pretrained(tmp_path)
    asked = []

    def snapshot(repository, *, allow_patterns):
        asked.append(repository)
        assert all(pattern.endswith((".json", ".safetensors")) for pattern in allow_patterns), "nothing that runs code"
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    model = vit.load("hf-hub:google/vit-tiny")
    assert asked == ["google/vit-tiny"] and model.config.norm_eps == 1e-12
    torch.testing.assert_close(model(images), theirs(images).logits, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="another network than asked for; nothing was loaded"):
        vit.load("hf-hub:google/vit-tiny", config=tiny)


@torch.no_grad()
def test_our_own_repositories_and_folders(monkeypatch, tmp_path, model, images):
    HubModel.of(model).save_pretrained(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    for name in ("hf-hub:someone/vit", tmp_path):
        loaded = vit.load(name)
        assert torch.equal(loaded(images), model(images)) and loaded.metadata == model.metadata
        assert loaded.config == model.config


def test_other_forms_than_safetensors_are_not_fetched(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(FileNotFoundError, match="hf-hub:old/vit has no single model.safetensors, and nothing else is"):
        vit.load("hf-hub:old/vit")


def test_a_folder_of_transformers_is_for_load_weights(tmp_path, model, images):
    linear = randomize(VisionTransformer(replace(model.config, head="linear")))
    with pytest.raises(ValueError, match="was not written by vit.save; vit.pretrained.load_weights"):
        vit.load(to_transformers(linear, tmp_path))


def fail(error: Exception):
    def raise_it(*_, **__):
        raise error

    return raise_it


@pytest.mark.parametrize("error", [RuntimeError("Unknown model (vit_timy)"), OSError("No route\nto host"), KeyError()])
def test_what_cannot_be_fetched_says_so(monkeypatch, error):
    monkeypatch.setattr(timm, "create_model", fail(error))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail(error))
    reason = {"RuntimeError": "Unknown model", "OSError": "No route", "KeyError": "KeyError"}[type(error).__name__]
    for name in ("timm/vit_timy", "hf-hub:no/where"):
        with pytest.raises(
            ConnectionError, match=rf"{name} could not be fetched: {reason}.* Check the name and the net"
        ):
            vit.load(name)


def test_a_missing_package_says_how_to_get_it(monkeypatch):
    for package, name in (("timm", "timm/vit_tiny_patch16_224"), ("huggingface_hub", "hf-hub:google/vit")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=rf"needs {package}: pip install 'vit-notebooks\[pretrained\]'"):
            vit.load(name)
    monkeypatch.delitem(sys.modules, "vit.pretrained.hub_model")
    with pytest.raises(ImportError, match=r"HubModel needs huggingface_hub: pip install"):
        vit.pretrained.HubModel  # noqa: B018


# --- the Hub's verbs ----------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("pos_embed", ["learned", "rope", "sincos2d"])
def test_save_pretrained_and_from_pretrained(tmp_path, images, tiny, pos_embed):
    model = randomize(VisionTransformer(replace(tiny, pos_embed=pos_embed, image_size=(8, 12)))).eval()
    model.metadata = {"mean": [0.5], "command": "none"}
    images = torch.randn(2, 3, 8, 12)
    hub_model = HubModel.of(model)
    assert torch.equal(hub_model(images), model(images)) and not hub_model.training
    hub_model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    assert json.loads((tmp_path / "config.json").read_text())["embed_dim"] == 16
    loaded = HubModel.from_pretrained(tmp_path)
    assert torch.equal(loaded(images), model(images))
    assert loaded.config == model.config and loaded.metadata == model.metadata
    assert "library_name: vit-notebooks" in (tmp_path / "README.md").read_text()


def test_a_hub_model_is_frozen_and_in_training_mode_where_its_original_is(model):
    model.train().encoder.blocks[0].eval().requires_grad_(False)
    hub_model = HubModel.of(model)
    assert [p.requires_grad for p in hub_model.parameters()] == [p.requires_grad for p in model.parameters()]
    assert [part.training for part in hub_model.modules()] == [part.training for part in model.modules()]
    assert hub_model.cls_token.data_ptr() == model.cls_token.data_ptr(), "nothing is copied"
    resized = hub_model.resized(8)  # as it is, a plain model for the checks
    assert all(torch.equal(a, b) for a, b in zip(resized.parameters(), model.parameters(), strict=True))


def test_push_to_hub_sends_the_folder(monkeypatch, model, images):
    sent = {}

    class Repository:
        repo_id = "someone/vit"

    def upload(self, *, repo_id, folder_path, **options):
        folder = Path(folder_path)
        sent[repo_id] = {path.name for path in folder.iterdir()}
        assert torch.equal(vit.load(folder / "model.safetensors")(images), model(images))
        return "https://example.invalid/someone/vit"

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda self, **_: Repository())
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    assert HubModel.of(model).push_to_hub("someone/vit").endswith("someone/vit")
    assert sent == {"someone/vit": {"model.safetensors", "config.json", "README.md"}}


def test_from_pretrained_fetches_two_files_of_a_repository(monkeypatch, tmp_path, model, images):
    HubModel.of(model).save_pretrained(tmp_path)
    asked = []

    def download(repo_id=None, filename=None, *args, **options):
        asked.append((repo_id or args[0], filename))
        return str(tmp_path / filename)

    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", download)
    monkeypatch.setattr("vit.pretrained.hub_model.hf_hub_download", download)
    loaded = HubModel.from_pretrained("someone/vit")
    assert torch.equal(loaded(images), model(images))
    assert asked == [("someone/vit", "config.json"), ("someone/vit", "model.safetensors")]
