"""Out of this library: other libraries load our folders and give our logits, graphs give them too, nothing is lost."""

import json
import sys
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import timm
import torch
import transformers
from conftest import randomize
from PIL import Image
from torch import Tensor

import vit
from vit.config import ViTConfig
from vit.model.vision_transformer import VisionTransformer
from vit.pretrained import graphs, load_weights, to_onnx, to_program, to_timm, to_transformers
from vit.tasks import lora, prompts

CONFIG = ViTConfig(image_size=(8, 12), embed_dim=32, depth=2, num_heads=4, num_classes=5, head="linear")
IMAGES = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear", "crop": 0.8}
FACTS = IMAGES | {"class_names": list("abcde")}
FOR_TIMM = {
    "plain": {},
    "registers": {"num_registers": 2, "qk_norm": True, "layer_scale": 0.5, "qkv_bias": False},
    "mean": {"pool": "mean", "act": "gelu_tanh", "mlp_ratio": 2.6875},
    "fc_norm": {"pool": "mean", "fc_norm": True, "num_registers": 1},
    "clip": {"pre_norm": True, "norm_eps": 1e-5, "act": "quick_gelu"},
    "swiglu": {"act": "swiglu", "layer_scale": 0.5},
    "sincos2d": {"pos_embed": "sincos2d"},
    "features": {"num_classes": 0},
}
FOR_TRANSFORMERS = {
    "plain": {},
    "tanh": {"act": "gelu_tanh", "norm_eps": 1e-12, "qkv_bias": False},
    "quick": {"act": "quick_gelu", "mlp_ratio": 2.6875, "drop_rate": 0.1},
    "sincos2d": {"pos_embed": "sincos2d"},
}
FOR_GRAPHS = {
    "rope": {"pos_embed": "rope", "pool": "mean", "fc_norm": True, "num_registers": 1, "qk_norm": True},
    "clip": {"pre_norm": True, "act": "quick_gelu", "pos_embed": "sincos2d", "patch_norm": True},
    "pair": {"pool": "cls_register", "num_registers": 2, "act": "swiglu", "layer_scale": 0.5, "head": "mlp"},
}


def make(changes: dict) -> VisionTransformer:
    model = randomize(VisionTransformer(replace(CONFIG, **changes))).eval()
    model.metadata = dict(FACTS)
    return model


def images_for(model: VisionTransformer, batch: int = 3) -> Tensor:
    return torch.randn(batch, 3, *model.config.image_size, generator=torch.Generator().manual_seed(0))


def assert_same_weights(model: VisionTransformer, other: VisionTransformer) -> None:
    assert other.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


def with_learned_positions(model: VisionTransformer) -> VisionTransformer:
    """Fixed positions go out as a table like any other."""
    if model.config.pos_embed != "sincos2d":
        return model
    learned = VisionTransformer(replace(model.config, pos_embed="learned")).eval()
    learned.load_state_dict(model.state_dict() | {"pos_embed": model.pos_table})
    return learned


@pytest.mark.parametrize("name", FOR_TIMM)
@torch.no_grad()
def test_timm_loads_our_folder_and_gives_our_logits(name, tmp_path):
    model = make(FOR_TIMM[name])
    theirs = timm.create_model(f"local-dir:{to_timm(model, tmp_path)}", pretrained=True).eval()
    images = images_for(model)
    assert model(images).std() > 0.1
    torch.testing.assert_close(theirs(images), model(images), rtol=0, atol=1e-5)
    settings = timm.data.resolve_model_data_config(theirs)
    assert list(settings["mean"]) == FACTS["mean"] and settings["crop_pct"] == 0.8
    back = load_weights(None, tmp_path)
    model = with_learned_positions(model)
    assert_same_weights(model, back)
    same = {"layer_scale": model.config.layer_scale}  # a start value, which no weights hold
    assert replace(back.config, **same) == replace(model.config, **same)
    assert back.metadata == (FACTS if model.config.num_classes else IMAGES)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="model.safetensors is not a readable safetensors file"):
        load_weights(None, tmp_path)


@pytest.mark.parametrize("name", FOR_TRANSFORMERS)
@torch.no_grad()
def test_transformers_loads_our_folder_and_gives_our_logits(name, tmp_path):
    model = make(FOR_TRANSFORMERS[name])
    to_transformers(model, tmp_path)
    theirs, report = transformers.ViTForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    images = images_for(model)
    torch.testing.assert_close(theirs.eval()(images).logits, model(images), rtol=0, atol=1e-5)
    back = load_weights(None, tmp_path)
    model = with_learned_positions(model)
    assert_same_weights(model, back)
    assert back.config == replace(model.config, drop_rate=0.0, pos_resampling="bicubic")
    assert back.metadata["class_names"] == FACTS["class_names"] and back.metadata["mean"] == FACTS["mean"]


def test_images_of_other_than_three_channels_are_not_made_into_such(tmp_path):
    """By earlier versions of timm, for a `first_conv`, or by a processor of transformers."""
    for channels in (1, 3):
        model = make({"in_chans": channels})
        settings = json.loads((to_timm(model, tmp_path / "timm") / "config.json").read_text())
        assert ("first_conv" in settings["pretrained_cfg"]) == (channels == 3)
        to_transformers(model, tmp_path / "transformers")
        processor = json.loads((tmp_path / "transformers" / "preprocessor_config.json").read_text())
        assert processor["do_convert_rgb"] == (channels == 3)


@pytest.mark.parametrize("squash", [True, False])
def test_transformers_prepares_a_picture_as_we_do(squash, tmp_path):
    model = make({"image_size": 32})
    model.metadata |= {"squash": True, "crop": 1.0} if squash else {"crop": 0.8}
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8))
    processor = transformers.AutoImageProcessor.from_pretrained(to_transformers(model, tmp_path))
    theirs = processor(picture, return_tensors="pt")["pixel_values"]
    ours = vit.analysis.inputs.prepare_images(model, picture)
    # Gray levels, apart from the edge of a cut, where ours also sees what lies beyond.
    difference = ((theirs - ours).abs() * torch.tensor(FACTS["std"])[:, None, None] * 255)[..., 3:-3, 3:-3]
    assert difference.max() <= 2.1


@pytest.mark.parametrize("crop", [1.0, 0.8])
def test_a_picture_that_is_not_square_is_squeezed_and_never_padded(crop, tmp_path):
    """PIL's own resizing of the middle of the picture is what transformers must give."""
    model = make({"image_size": (32, 64)})
    model.metadata |= {"crop": crop}
    across, down = np.meshgrid(np.linspace(50, 250, 96), np.linspace(50, 200, 96))
    picture = Image.fromarray(np.stack([across, down, 300 - across], axis=2).astype(np.uint8))
    processor = transformers.AutoImageProcessor.from_pretrained(to_transformers(model, tmp_path))
    theirs = processor(picture, return_tensors="pt")["pixel_values"][0].permute(1, 2, 0).numpy()
    margin = (1 - crop) / 2 * 96
    box = (margin, margin, 96 - margin, 96 - margin)
    expected = np.asarray(picture.resize((64, 32), Image.Resampling.BILINEAR, box=box)) / 255
    assert np.abs(theirs * FACTS["std"] + FACTS["mean"] - expected)[1:-1, 1:-1].max() <= 3 / 255
    back = load_weights(None, tmp_path, report=None).metadata
    assert back["squash"] and abs(back.get("crop", 1.0) - crop) < 0.01


def test_how_another_models_images_were_prepared_does_not_stay_behind(tmp_path):
    model = make({})
    assert (to_transformers(model, tmp_path) / "preprocessor_config.json").is_file()
    model.metadata = {}
    assert not (to_transformers(model, tmp_path) / "preprocessor_config.json").exists()
    assert "mean" not in load_weights(None, tmp_path, report=None).metadata


@pytest.mark.parametrize(("write", "changes", "named"), [
    (to_timm, {"head": "mlp"}, "timm cannot be written with head='mlp'"),
    (to_timm, {"pool": "cls_mean"}, "timm cannot be written with pool='cls_mean'"),
    (to_timm, {"pos_embed": "rope", "patch_norm": True}, "with pos_embed='rope', patch_norm=True"),
    (to_timm, {"norm_eps": 1e-12}, "with norm_eps=1e-12"),
    (to_timm, {"norm_eps": 1e-5, "act": "swiglu"}, "with norm_eps=1e-05"),
    (to_transformers, {"num_registers": 1, "layer_scale": 0.1}, "ViT cannot be written with num_registers=1, layer_sc"),
    (to_transformers, {"pool": "mean", "act": "swiglu"}, "pool='mean', act='swiglu'"),
    (to_transformers, {"pre_norm": True, "qk_norm": True, "num_classes": 0}, "num_classes=0, pre_norm=True, qk_norm"),
])  # fmt: skip
def test_what_their_class_does_not_compute_is_refused_by_name(write, changes, named, tmp_path):
    with pytest.raises(ValueError, match=named):
        write(make(changes), tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_onnx_is_of_float32_and_facts_that_can_be_written(tmp_path):
    with pytest.raises(ValueError, match=r"the model is in torch.float64, .*: use model.float\(\)"):
        to_onnx(make({}).double(), tmp_path / "model.onnx")
    model = make({})
    model.metadata["mean"] = np.array([0.5] * 3)
    with pytest.raises(TypeError, match=r"mean=.* cannot be written as JSON .*tolist"):
        to_onnx(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", FOR_GRAPHS)
@torch.no_grad()
def test_graphs_give_our_logits_at_any_batch_size(name, tmp_path, monkeypatch):
    model, programs = make(FOR_GRAPHS[name]).train(), []
    model.encoder.eval()
    monkeypatch.setattr(graphs, "to_program", lambda model: programs.append(to_program(model)) or programs[-1])
    path = to_onnx(model, tmp_path / "model.onnx")
    program = programs[0].module()  # the one that the ONNX is made of
    assert model.training and not model.encoder.training
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    props = session.get_modelmeta().custom_metadata_map
    assert {name: json.loads(text) for name, text in props.items() if name in FACTS} == {
        name: FACTS[name] for name in ("mean", "std", "class_names")
    }
    model.eval()
    for batch in (1, 2, 5):
        images = images_for(model, batch)
        expected = model(images)
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(program(images), expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_program_has_the_parts_that_no_graph_above_has():
    model = make({"pool": "cls_mean", "pos_embed": "none", "act": "gelu_tanh", "qkv_bias": False})
    images = images_for(model)
    torch.testing.assert_close(to_program(model).module()(images), model(images))


@pytest.mark.parametrize("add", [prompts.add, lora.add])
def test_onnx_takes_what_fine_tuning_leaves(add, tmp_path):
    """As it is after a training: its own parts wait for gradients, also those of the prompts' mask."""
    model = randomize(add(make({"depth": 1})))
    images = images_for(model)
    session = onnxruntime.InferenceSession(to_onnx(model, tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), model(images).detach(), rtol=0, atol=1e-4)
    assert any(p.requires_grad for p in model.parameters())


def test_onnx_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    class Wrong(onnxruntime.InferenceSession):
        def run(self, *args):
            return [logits + 0.1 for logits in super().run(*args)]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Wrong)
    with pytest.raises(RuntimeError, match="with 1 images, the logits of ONNX differ from the model's by 1.0e-01"):
        to_onnx(make({"depth": 1}), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"to_onnx needs onnxruntime: pip install 'vit-notebooks\[export\]'"):
        to_onnx(make({}), tmp_path / "model.onnx")


def test_timm_is_told_to_squash(tmp_path):
    model = make({})
    model.metadata |= {"squash": True, "crop": 1.0}
    theirs = timm.create_model(f"local-dir:{to_timm(model, tmp_path)}", pretrained=True)
    settings = timm.data.resolve_model_data_config(theirs)
    assert (settings["crop_mode"], settings["interpolation"]) == ("squash", "bilinear")
    assert theirs.pretrained_cfg["label_names"] == FACTS["class_names"]
    assert load_weights(None, tmp_path, report=None).metadata["squash"]
