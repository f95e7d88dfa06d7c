"""Weights on disk: the same logits after a round trip, and nothing loaded from a file that is not what it should be."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import randomize
from safetensors import safe_open
from safetensors.torch import save_file

import vit
from vit.config import ViTConfig
from vit.device import resolve_device
from vit.model.vision_transformer import VisionTransformer
from vit.pretrained import HubModel, to_timm, to_transformers
from vit.tasks import lora, prompts


@pytest.fixture
def saved(tiny, tmp_path):
    model = randomize(VisionTransformer(tiny)).eval()
    model.metadata = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2], "class_names": list("abcdefghij")}
    return model, vit.save(model, tmp_path / "model.safetensors", test_accuracy=74.5)


def test_a_loaded_model_gives_the_same_logits(saved):
    model, path = saved
    loaded = vit.load(path)
    images = torch.randn(4, 3, 8, 8)
    assert torch.equal(loaded(images), model(images))
    assert loaded.config == model.config and not loaded.training
    assert loaded.metadata == model.metadata | {"test_accuracy": 74.5}
    assert next(vit.load(path, device="auto").parameters()).device == resolve_device()
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device='cuda' is .*; use 'auto' or 'cpu'"):
            vit.load(path, device="cuda")


def test_any_reader_of_safetensors_can_read_it(saved):
    model, path = saved
    with safe_open(path, framework="numpy") as file:
        assert set(file.keys()) == set(model.state_dict())
        assert json.loads(file.metadata()["config"])["embed_dim"] == 16


def test_another_network_is_refused_with_a_table_of_what_differs(saved, tiny):
    _, path = saved
    with pytest.raises(
        ValueError, match=r"another network.*nothing was loaded\n.*\n +depth +3 +2\n +pool +'mean' +'cls'"
    ):
        vit.load(path, config=replace(tiny, depth=3, pool="mean"))
    assert vit.load(path, config=tiny).config == tiny
    assert vit.load(path, config=replace(tiny, patch_init="whitened")).config == tiny, "how they began is past"


def test_files_that_are_no_weights_are_refused(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no weights at .*typo.*; in that folder: model.safetensors"):
        vit.load(tmp_path / "typo.safetensors")
    for load in (vit.load, lambda path: vit.pretrained.load_weights(None, path)):
        with pytest.raises(FileNotFoundError, match="no weights at https:/.*addresses are never fetched"):
            load("https://example.org/model.safetensors")
    with pytest.raises(TypeError, match="path=3 must be the path of a file, or one of .*vit_nano_patch4_32"):
        vit.load(3)
    (tmp_path / "page.safetensors").write_text("<!DOCTYPE html><html>503</html>")
    with pytest.raises(ValueError, match="page.safetensors is not a readable safetensors file"):
        vit.load(tmp_path / "page.safetensors")
    save_file({"x": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match="has no 'config' in its metadata"):
        vit.load(tmp_path / "foreign.safetensors")


def test_a_failed_save_leaves_the_old_file(saved, monkeypatch):
    model, path = saved
    before = path.read_bytes()

    def disk_full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vit.pretrained.weights.save_file", disk_full)
    with pytest.raises(OSError, match="No space left"):
        vit.save(model, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"], "no litter"


def test_non_square_and_rotary_models_travel_too(tmp_path):
    config = ViTConfig(image_size=(8, 12), embed_dim=16, depth=1, num_heads=2, pos_embed="rope", pool="mean")
    model = randomize(VisionTransformer(config)).eval()
    images = torch.randn(2, 3, 8, 12)
    assert torch.equal(vit.load(vit.save(model, tmp_path / "m.safetensors"))(images), model(images))


def test_a_model_that_could_not_be_loaded_is_not_written(saved, tmp_path):
    """Hours of training must not end in a file that nobody can read."""
    model, path = saved
    before = path.read_bytes()
    adapted = lora.add(model, rank=2)
    with pytest.raises(
        ValueError, match=r"not what its config says, .*; merge LoRA first: vit.tasks.lora.merge\(model\)"
    ):
        vit.save(adapted, path)
    with pytest.raises(ValueError, match=r"a model with prompts is kept by torch.save\(model.state_dict"):
        vit.save(prompts.add(model, 2), path)
    others = [to_timm, to_transformers, lambda model, _: HubModel.of(model), lambda model, _: model.resized(16)]
    for other in (*others, lambda model, _: prompts.add(model)):
        with pytest.raises(ValueError, match="merge LoRA first"):
            other(adapted, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
    wider = randomize(VisionTransformer(model.config))
    wider.head = torch.nn.Linear(16, 11)
    with pytest.raises(ValueError, match=r"head was changed .* is kept by .* Not as the config says: head.fc1.weight"):
        vit.save(wider, path)
    with torch.no_grad():
        wider = randomize(VisionTransformer(model.config))
        wider.encoder.norm.weight[3] = float("nan")
    with pytest.raises(ValueError, match="encoder.norm.weight holds NaN: training diverged"):
        vit.save(wider, path)
    assert path.read_bytes() == before
    images = torch.randn(2, 3, 8, 8)
    merged = vit.load(vit.save(lora.merge(adapted), tmp_path / "merged.safetensors"))
    torch.testing.assert_close(merged(images), model(images))


@torch.no_grad()
def test_blocks_that_share_their_weights_are_saved_as_blocks_with_equal_ones(tmp_path):
    config = ViTConfig(image_size=8, embed_dim=16, depth=3, num_heads=2, head="linear")
    model = VisionTransformer(config)
    model.encoder.blocks[1], model.encoder.blocks[2].mlp = model.encoder.blocks[0], model.encoder.blocks[0].mlp
    randomize(model).eval()
    images = torch.randn(2, 3, 8, 8)
    written = vit.save(model, tmp_path / "m.safetensors"), to_timm(model, tmp_path / "timm")
    for path in (*written, to_transformers(model, tmp_path / "transformers")):
        loaded = vit.pretrained.load_weights(None, path, report=None)
        assert torch.equal(loaded(images), model(images)), path


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_half_precision_comes_back_as_the_same_numbers_in_float32(saved, tmp_path, dtype):
    model = saved[0].to(dtype)
    loaded = vit.load(vit.save(model, tmp_path / "other.safetensors"))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert {p.dtype for p in loaded.parameters()} == {wide}
    assert all(torch.equal(a, b.to(wide)) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))


def test_metadata_may_hold_single_numbers_of_numpy_and_torch(saved):
    model, path = saved
    facts = {"accuracy": np.float32(0.5), "epochs": np.int64(7), "loss": torch.tensor(0.25), "all": [np.float64(2)]}
    loaded = vit.load(vit.save(model, path, **facts)).metadata
    assert {name: loaded[name] for name in facts} == {"accuracy": 0.5, "epochs": 7, "loss": 0.25, "all": [2.0]}
    with pytest.raises(TypeError, match=r"per_class=array.* .it holds a ndarray; use its .tolist\(\)"):
        vit.save(model, path, per_class=np.zeros(2))
    with pytest.raises(TypeError, match=r"chosen=\{1\} cannot be written as JSON \(it holds a set\)"):
        vit.save(model, path, chosen={1})
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(TypeError, match="deep=.* cannot be written as JSON .*recursion"):
        vit.save(model, path, deep=deep)
    assert vit.load(path).metadata["epochs"] == 7


def test_a_path_as_a_notebook_prints_it_is_found_from_another_folder(saved, tmp_path, monkeypatch):
    model, path = saved
    monkeypatch.setattr("vit.pretrained.weights.REPOSITORY", tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "runs").mkdir()
    path.rename(tmp_path / "runs" / "model.safetensors")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert vit.load("runs/model.safetensors").config == model.config
    with pytest.raises(FileNotFoundError, match="no weights at runs/other.safetensors"):
        vit.load("runs/other.safetensors")


def test_models_of_another_class_are_refused_by_name(tmp_path):
    for write in (vit.save, vit.pretrained.to_onnx, vit.pretrained.to_timm, vit.pretrained.to_transformers):
        with pytest.raises(
            TypeError, match="model must be a VisionTransformer of this library, got torch.nn.*Linear; one of"
        ):
            write(torch.nn.Linear(2, 2), tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_facts_given_to_save_replace_old_ones(tmp_path):
    model = VisionTransformer(ViTConfig(image_size=8, embed_dim=16, depth=1, num_heads=2))
    model.metadata = {"val_accuracy": 10.0, "dataset": "a"}
    loaded = vit.load(vit.save(model, tmp_path / "m.safetensors", val_accuracy=70.0))
    assert loaded.metadata == {"val_accuracy": 70.0, "dataset": "a"}


def test_a_path_that_is_a_folder_or_of_another_format_is_refused_before_anything_is_written(tiny, tmp_path):
    model, folder = VisionTransformer(tiny), tmp_path / "folder"
    folder.mkdir()
    for path in (folder, f"{folder}/", f"{tmp_path}/new/"):
        with pytest.raises(
            ValueError, match=r"is a folder; save to a file in it, '.*/(folder|new)/model\.safetensors'$"
        ):
            vit.save(model, path)
    for name in ("m.pt", "m.PTH"):
        with pytest.raises(ValueError, match=rf"{name}' ends in .*: name it '.*/m\.safetensors'$"):
            vit.save(model, tmp_path / name)
    assert list(tmp_path.iterdir()) == [folder] and list(folder.iterdir()) == []
    assert vit.load(vit.save(model, tmp_path / "epoch.5")).config == tiny
