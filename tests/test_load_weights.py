"""The loader's manners: it says what it did, copies all or nothing, and lets differ only what the caller named."""

import argparse
import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import timm
import torch
import transformers
import vit_pytorch
from conftest import randomize, same_weights
from PIL import Image
from safetensors.torch import save_file
from timm.models import vision_transformer as timm_vit
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor, nn

import vit
from vit.config import ViTConfig
from vit.model.pos_embed import RESAMPLINGS
from vit.model.transformer import ACTIVATIONS
from vit.model.vision_transformer import VisionTransformer
from vit.pretrained import facts, load_weights
from vit.pretrained.assembly import num_heads_of
from vit.pretrained.formats import FORMATS
from vit.pretrained.report import Report

UNKNOWN = {"dataset": "unknown", "class_names": ()}  # what a source says of its past that says nothing
CONFIG = ViTConfig(image_size=16, embed_dim=32, depth=2, num_heads=4, num_classes=5, head="linear")


@pytest.fixture
def theirs() -> nn.Module:
    model = timm.models.VisionTransformer(img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=4, num_classes=5)
    return randomize(model).eval()


@pytest.fixture
def state(theirs) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in theirs.state_dict().items()}


@pytest.fixture
def model() -> VisionTransformer:
    return randomize(VisionTransformer(CONFIG), seed=7).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def report_of(model, source, **options) -> tuple[VisionTransformer, Report]:
    reports = []
    model = load_weights(model, source, report=reports.append, **options)
    return model, reports[0]


def refused(model: VisionTransformer, source, match: str, **options) -> str:
    """The message of a loading that must fail and leave the model as it was."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=match) as caught:
        load_weights(model, source, **options)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    return str(caught.value)


# --- what it says -------------------------------------------------------------------------------------------------


def test_the_report_counts_every_tensor(state, capsys):
    state["pos_embed"], names = state["pos_embed"], len(state)
    model = load_weights(None, state, num_heads=4, image_size=24, num_classes=3, report=print)
    printed = capsys.readouterr().out
    assert printed.splitlines()[0] == "the dictionary (format timm)"
    rows = {line[2:18].strip(): line[18:] for line in printed.splitlines()[1:] if not line.startswith("  note")}
    counts = {state: int(row.split()[0]) for state, row in rows.items()}
    assert counts == {
        "matched": names - 4, "reshaped": 1, "resized": 1, "re-initialized": 2,
        "missing": 0, "unexpected": 0, "of another shape": 0, "left out": 2,
    }  # fmt: skip
    assert rows["reshaped"].endswith("cls_token") and rows["resized"].endswith("pos_embed")
    assert rows["re-initialized"].endswith("head.weight, head.bias")
    assert "note: positions resampled from (4, 4) to (6, 6), bicubic_antialias" in printed
    assert model.config.image_size == (24, 24) and not model.training
    assert load_weights(None, state, num_heads=4, report=None) and capsys.readouterr().out == ""


def test_prefixes_and_wrappers_are_taken_off_and_named(state, theirs, images):
    wrapped = {"model": {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}, "epoch": 3}
    model, report = report_of(None, wrapped, num_heads=4)
    torch.testing.assert_close(model(images), theirs(images), rtol=0, atol=1e-5)
    notes = " ".join(report.notes)
    assert "every name began with 'module.'" in notes and "'_orig_mod.'" in notes and "under 'model'" in notes


def test_half_precision_is_reported(state):
    state["head.weight"], state["head.bias"] = state["head.weight"].half(), state["head.bias"].bfloat16()
    model, report = report_of(None, state, num_heads=4)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert any("float16" in note and "bfloat16" in note and "became float32" in note for note in report.notes)
    _, report = report_of(VisionTransformer(CONFIG).double(), state)
    assert any("float32" in note and "became float64" in note for note in report.notes)


def test_a_guessed_number_of_heads_is_named():
    theirs = timm.models.VisionTransformer(img_size=8, patch_size=4, embed_dim=192, depth=1, num_heads=3)
    model, report = report_of(None, theirs.state_dict())
    assert model.config.num_heads == 3
    assert "num_heads=3, as usual at this width; the source does not say" in report.notes


@torch.no_grad()
def test_filling_a_model_with_other_heads_than_usual_must_be_asked_for():
    sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 192, "depth": 1, "num_classes": 5}
    config = replace(CONFIG, image_size=8, embed_dim=192, depth=1)
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for num_heads in (3, 6):
        theirs = randomize(timm.models.VisionTransformer(**sizes, num_heads=num_heads)).eval()
        model = VisionTransformer(replace(config, num_heads=num_heads)).eval()
        if num_heads == 3:
            _, report = report_of(model, theirs.state_dict())
            assert "num_heads=3, as usual at this width; the source does not say" in report.notes
        else:
            refused(model, theirs.state_dict(), "usually 3 at a width of 192, but the model has 6: pass num_heads=6 if")
            _, report = report_of(model, theirs.state_dict(), num_heads=6)
            assert not any("num_heads" in note for note in report.notes)
        torch.testing.assert_close(model(images), theirs(images), rtol=0, atol=1e-5)
        _, report = report_of(VisionTransformer(model.config), theirs)  # a module says it itself
        assert not any("num_heads" in note for note in report.notes)


def test_where_no_number_of_heads_is_usual_the_models_is_taken_and_named(model, state):
    assert "num_heads=4, as the model has; the source does not say" in report_of(model, state)[1].notes


# --- all or nothing -----------------------------------------------------------------------------------------------


def test_a_tensor_under_two_names_becomes_two_parameters(state):
    state["blocks.1.norm1.weight"] = state["blocks.0.norm1.weight"]
    loaded = load_weights(None, state, num_heads=4, report=None)
    first, second = (block.norm1.weight for block in loaded.encoder.blocks[:2])
    assert torch.equal(first, second)
    with torch.no_grad():
        first += 1
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", ["norm.bias", "blocks.1.attn.qkv.bias", "cls_token", "pos_embed", "head.bias"])
def test_a_missing_tensor_is_refused(model, state, name):
    del state[name]
    refused(model, state, "missing +1|another network|no square grid")


@pytest.mark.parametrize("name", ["blocks.2.norm1.weight", "extra", "blocks.0.attn.relative_position", "norm.bias.old"])
def test_an_unexpected_tensor_is_refused(model, state, name):
    state[name] = torch.zeros(32)
    refused(model, state, r"unexpected +1|another network")


def test_a_name_alone_makes_no_blocks(model, state):
    state["blocks.999999999.norm1.weight"] = torch.zeros(32)
    refused(model, state, f"it has a block 999999999, but only {len(state)} tensors")
    with pytest.raises(ValueError, match="it has a block 999999999"):
        load_weights(None, state, num_heads=4)


@pytest.mark.parametrize("name", ["blocks.1.mlp.fc1.weight", "norm.weight", "patch_embed.proj.bias"])
def test_another_shape_is_refused(model, state, name):
    state[name] = state[name][:-1]
    message = refused(model, state, r"nothing was loaded")
    assert f"not {tuple(model.state_dict().get(name, model.encoder.state_dict().get(name)).shape)}" in message


@pytest.mark.parametrize("odd", [Tensor.flatten, lambda x: x[None], lambda x: x[:0], lambda x: torch.cat([x, x])])
def test_odd_shapes_are_refused_whatever_they_break(model, state, odd):
    for name, tensor in state.items():
        changed = odd(tensor)
        if changed.shape != tensor.shape:
            refused(model, state | {name: changed}, r"was not loaded|nothing was loaded")
            with pytest.raises(ValueError, match=r"was not loaded|nothing was loaded"):
                load_weights(None, state | {name: changed}, num_heads=4)


def test_values_that_are_no_weights_are_refused(model, state):
    for value, kind in ((float("nan"), "NaN"), (float("inf"), "infinity"), (-float("inf"), "infinity")):
        damaged = state | {"blocks.1.mlp.fc2.weight": state["blocks.1.mlp.fc2.weight"].clone()}
        damaged["blocks.1.mlp.fc2.weight"][3, 5] = value
        refused(model, damaged, f"blocks.1.mlp.fc2.weight holds {kind}: training diverged")
    quantized = state | {"head.weight": (state["head.weight"] * 10).to(torch.int8)}
    refused(model, quantized, "head.weight is torch.int8 on cpu; weights are floating-point numbers")
    hidden = state | {"head.weight": state["head.weight"].to("meta")}
    refused(model, hidden, "head.weight is torch.float32 on meta")


def test_damage_in_our_own_files_is_found_too(model, tmp_path, monkeypatch):
    monkeypatch.setattr("vit.pretrained.weights.check_values", lambda name, tensor: None)  # as an older version saved
    with torch.no_grad():
        model.encoder.norm.weight[3] = float("nan")
    path = vit.save(model, tmp_path / "own.safetensors")
    with pytest.raises(ValueError, match="own.safetensors .* encoder.norm.weight holds NaN"):
        vit.load(path)


def test_another_network_is_refused_with_a_table(state):
    other = VisionTransformer(replace(CONFIG, act="quick_gelu", num_registers=1, depth=3))
    message = refused(other, {"model": state} | {}, "the model is another network; model=None builds the right one")
    for row in (r"depth            2                    3", "num_registers    0                    1"):
        assert row in message
    clip = {"class_embedding": torch.zeros(32), "ln_pre.weight": torch.zeros(32), **CLIP_REST}
    message = refused(VisionTransformer(CONFIG), clip, "the model is another network")
    for row in ("norm_eps         1e-05                1e-06", "act              quick_gelu           gelu"):
        assert row in message


CLIP_REST = {
    "conv1.weight": torch.zeros(32, 3, 4, 4), "positional_embedding": torch.zeros(17, 32),
    **{f"transformer.resblocks.0.{name}": torch.zeros(shape) for name, shape in {
        "attn.in_proj_weight": (96, 32), "mlp.c_fc.weight": (64, 32), "mlp.c_proj.weight": (32, 64)}.items()},
}  # fmt: skip


@pytest.mark.parametrize("field", ["norm_eps", "act"])
def test_a_convention_that_the_file_does_not_hold_is_compared_unless_named(model, state, field):
    value = {"norm_eps": 1e-5, "act": "gelu_tanh"}[field]
    model = VisionTransformer(replace(CONFIG, **{field: value}))
    refused(model, state, f"{field} .*{value}")
    load_weights(model, state, **{field: value})
    assert load_weights(None, state, num_heads=4, **{field: value}).config == model.config
    with pytest.raises(ValueError, match="norm_eps=0.1 was asked for, but the model has norm_eps="):
        load_weights(model, state, **({field: value} | {"norm_eps": 0.1}))


# --- heads and positions ------------------------------------------------------------------------------------------


def test_a_head_is_replaced_on_request_only(state, theirs, images):
    model = randomize(VisionTransformer(replace(CONFIG, num_classes=7))).eval()
    model.metadata = {"class_names": list("abcdefg")}
    refused(model, state, r"it has 5 classes, the model 7: pass num_classes=7 to give the model a new head")
    head = model.head.weight.clone()
    load_weights(model, state, num_classes=7)
    assert torch.equal(model.head.weight, head)
    assert model.metadata == {"class_names": list("abcdefg"), "pretrained_on": [UNKNOWN]}
    assert torch.equal(model.encoder.norm.weight, theirs.norm.weight)

    fresh = load_weights(None, state, num_heads=4, num_classes=7)
    assert fresh.head.weight.shape == (7, 32) and not fresh(images).any(), "a new head starts at zero"
    headless = load_weights(None, state, num_heads=4, num_classes=0)
    features = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
    torch.testing.assert_close(headless(images), features, rtol=0, atol=1e-5)
    same = load_weights(None, state, num_heads=4, num_classes=5)
    torch.testing.assert_close(same(images), theirs(images), rtol=0, atol=1e-5)


def test_a_new_head_forgets_the_names_of_the_old_classes(tmp_path):
    model = randomize(VisionTransformer(CONFIG))
    model.metadata = {"class_names": list("abcde"), "mean": [0.5] * 3}
    path = vit.save(model, tmp_path / "own.safetensors")
    assert load_weights(None, path).metadata == model.metadata
    assert load_weights(None, path, num_classes=3).metadata == {"mean": [0.5] * 3, "pretrained_on": [UNKNOWN]}


def test_a_new_head_has_no_accuracy_but_a_past(tmp_path):
    model = randomize(VisionTransformer(CONFIG))
    first, second = {"dataset": "a", "class_names": ["x", "y"]}, {"dataset": "b", "class_names": list("abcde")}
    model.metadata = {"mean": [0.5] * 3, "std": [0.2] * 3, "test_accuracy": 86.9, "pretrained_on": [first], **second}
    path = vit.save(model, tmp_path / "own.safetensors")
    metadata = load_weights(None, path, num_classes=3, report=None).metadata
    past = [first, {"dataset": "b", "class_names": tuple("abcde")}]
    assert metadata == {"mean": [0.5] * 3, "std": [0.2] * 3, "pretrained_on": past}


# --- named fields --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes, message", [
    ({"patch_size": 8}, "patch_size=8, the weights have 4"),
    ({"depth": 3, "embed_dim": 64}, "depth=3, the weights have 2; embed_dim=64, the weights have 32"),
    ({"head": "mlp"}, "head='mlp', the weights have 'linear'"),
    ({"pos_embed": "rope"}, "pos_embed='rope', the weights have 'learned'"),
    ({"mlp_ratio": 2.0}, "mlp_ratio=2.0, the weights have 4.0"),
    ({"layer_scale": 0.1}, "layer_scale=0.1, the weights have None"),
    ({"num_registers": 2}, "num_registers=2, the weights have 0"),
    ({"qk_norm": True}, "qk_norm=True, the weights have False"),
    ({"in_chans": 1}, "in_chans=1, the weights have 3"),
])  # fmt: skip
def test_a_named_field_that_the_weights_contradict_is_refused(changes, message, state, model, tmp_path):
    for source in (state, vit.save(model, tmp_path / "own.safetensors")):
        with pytest.raises(ValueError, match=f"asked for {message}"):
            load_weights(None, source, report=None, **{"num_heads": 4, **changes})


def test_a_named_field_that_can_be_had_is_had(model, tmp_path):
    path = vit.save(model, tmp_path / "own.safetensors")
    changes = {"drop_path_rate": 0.1, "image_size": 24, "num_classes": 3, "head": "mlp", "depth": 2}
    expected = replace(CONFIG, drop_path_rate=0.1, image_size=24, num_classes=3, head="mlp")
    assert load_weights(None, path, report=None, **changes).config == expected


def test_of_the_old_facts_only_those_about_a_head_that_is_kept_survive(state, tmp_path):
    old = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "squash": True}
    about_the_head = {"class_names": list("abcde"), "val_accuracy": 74.5}
    source = randomize(VisionTransformer(CONFIG))
    images = {"mean": [0.1] * 3, "std": [0.2] * 3, "crop": 0.9}
    source.metadata = images | {"dataset": "theirs", "class_names": list("uvwxy"), "test_accuracy": 86.9}
    path = vit.save(source, tmp_path / "own.safetensors")

    def filled(source, **options) -> dict:
        model = VisionTransformer(replace(CONFIG, **options))
        model.metadata = old | about_the_head
        model, report = report_of(model, source, **options)
        note = "images are prepared as the model's metadata said before; the source does not say"
        assert (note in report.notes) == (model.metadata.get("mean") == old["mean"])
        [gone] = [text.split(" of the model's")[0] for text in report.notes if "were about its weights" in text] or [""]
        assert set(filter(None, gone.split(", "))) == {*about_the_head} - {*model.metadata}, "what is lost is said"
        return model.metadata

    assert filled(path) == source.metadata
    pretrained_on = [{"dataset": "theirs", "class_names": tuple("uvwxy")}]
    assert filled(path, num_classes=7) == images | about_the_head | {"pretrained_on": pretrained_on}
    assert filled(state) == old, "the source says nothing about its images"
    unknown = {"pretrained_on": [UNKNOWN]}
    assert filled(state, num_classes=7) == old | about_the_head | unknown
    dino = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    imagenet = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "interpolation": "bicubic", "crop": 0.875}
    assert filled(dino, num_classes=7) == imagenet | about_the_head | unknown


def test_a_new_head_is_linear_unless_asked_for():
    source = randomize(VisionTransformer(replace(CONFIG, head="mlp")))
    assert load_weights(None, source).config.head == "mlp"
    assert load_weights(None, source, num_classes=3).config.head == "linear"
    new = load_weights(None, source, num_classes=3, head="mlp")
    assert new.config.head == "mlp" and new.head.fc1.weight.std() > 0.05 and not new.head.fc2.weight.any()


def test_positions_are_resized_on_request_only(state):
    model = VisionTransformer(replace(CONFIG, image_size=24))
    refused(
        model, state, r"it is for images of \(16, 16\) pixels, the model for \(24, 24\): pass image_size=\(24, 24\)"
    )
    load_weights(model, state, image_size=24)
    with pytest.raises(ValueError, match=r"image_size=\(18, 18\) is not a multiple of patch_size=4"):
        load_weights(None, state, num_heads=4, image_size=18)


def test_a_grid_that_is_not_square_must_be_told(theirs, images):
    wide = timm.models.VisionTransformer(
        img_size=(8, 20), patch_size=4, embed_dim=32, depth=2, num_heads=4, num_classes=5
    )
    state = randomize(wide).state_dict()
    with pytest.raises(ValueError, match="a table of 11 positions is of no square grid: pass source_grid="):
        load_weights(None, state, num_heads=4)
    assert load_weights(None, state, num_heads=4, source_grid=(2, 5)).config.image_size == (8, 20)
    assert load_weights(None, wide).config.image_size == (8, 20), "a module knows its grid"
    with pytest.raises(ValueError, match="source_grid=.* does not fit"):
        load_weights(None, theirs.state_dict(), num_heads=4, source_grid=(3, 4))
    even = timm.models.VisionTransformer(
        img_size=(8, 32), patch_size=4, embed_dim=32, depth=2, num_heads=4, num_classes=5
    ).state_dict()
    with pytest.raises(ValueError, match="fits more than one grid"):
        load_weights(None, even, num_heads=4, image_size=(8, 32))
    assert load_weights(None, even, num_heads=4, source_grid=(2, 8)).config.image_size == (8, 32)


# --- memory, own files, metadata ----------------------------------------------------------------------------------


def test_nothing_is_shared_with_the_source(theirs, images):
    model = load_weights(None, theirs)
    expected = theirs(images).clone()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(theirs(images), expected)


@pytest.mark.parametrize("changes", [
    {}, {"pool": "cls_register", "num_registers": 2, "act": "swiglu"}, {"pool": "mean", "fc_norm": True},
    {"pos_embed": "rope", "head": "mlp"}, {"pos_embed": "sincos2d", "patch_norm": True, "image_size": (12, 20)},
    {"pre_norm": True, "norm_eps": 1e-5, "layer_scale": 0.1, "qk_norm": True, "pool": "cls_mean", "mlp_ratio": 2.7},
])  # fmt: skip
def test_our_own_files_dictionaries_and_models_are_a_format_too(changes, tmp_path):
    config = replace(CONFIG, **changes)
    model = randomize(VisionTransformer(config)).eval()
    model.metadata = {"mean": [0.5]}
    images = torch.randn(2, 3, *config.image_size)
    path = vit.save(model, tmp_path / "own.safetensors")
    for source in (path, model):
        loaded = load_weights(None, source)
        assert loaded.config == config and loaded.metadata == model.metadata
        assert torch.equal(loaded(images), model(images))
    again = VisionTransformer(config).eval()
    assert torch.equal(load_weights(again, model.state_dict())(images), model(images))
    assert torch.equal(vit.load(vit.save(loaded, path))(images), model(images)), "memory is not shared within it"


def test_a_loaded_model_trains(state):
    model = load_weights(None, state, num_heads=4, num_classes=3).train()
    model(torch.randn(2, 3, 16, 16)).square().sum().backward()
    assert all(parameter.requires_grad for parameter in model.parameters())
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def test_preprocessing_comes_along(tmp_path):
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1)
    metadata = load_weights(None, theirs).metadata
    cfg = theirs.pretrained_cfg
    images = {"interpolation": cfg["interpolation"], "crop": cfg["crop_pct"]}
    assert metadata == {"mean": list(cfg["mean"]), "std": list(cfg["std"])} | images
    sizes = {"image_size": 16, "patch_size": 4, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = transformers.ViTConfig(**sizes, intermediate_size=64, id2label={0: "cat", 1: "dog"})
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    assert load_weights(None, tmp_path).metadata == {"class_names": ["cat", "dog"]}
    processors = {
        "direct": ({"size": {"height": 16, "width": 16}, "resample": 2}, {"squash": True, "interpolation": "bilinear"}),
        "cut": (
            {"size": {"shortest_edge": 20}, "crop_size": {"height": 16, "width": 16}, "do_center_crop": True},
            {"crop": 0.8, "interpolation": "bilinear"},
        ),
        "old": ({"size": 20, "crop_size": 16, "do_center_crop": True, "resample": 3},
                {"crop": 0.8, "squash": True, "interpolation": "bicubic"}),
    }  # fmt: skip
    for processor, expected in processors.values():
        processor |= {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7], "do_normalize": True}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
        metadata = load_weights(None, tmp_path).metadata
        assert metadata == {"class_names": ["cat", "dog"], "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]} | expected


def test_class_names_are_in_the_order_of_their_numbers(tmp_path):
    sizes = {"image_size": 16, "patch_size": 4, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = transformers.ViTConfig(**sizes, intermediate_size=64, id2label={i: f"class {i}" for i in range(12)})
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings, sort_keys=True))
    assert list(json.loads(path.read_text())["id2label"])[:4] == ["0", "1", "10", "11"]
    theirs = transformers.AutoConfig.from_pretrained(tmp_path).id2label
    assert load_weights(None, tmp_path).metadata["class_names"] == [theirs[i] for i in range(12)]
    path.write_text(json.dumps(settings | {"id2label": {"cat": "0"}}))
    with pytest.raises(ValueError, match="id2label of its config must name the classes by number: .*'cat'"):
        load_weights(None, tmp_path)


@pytest.mark.parametrize(("kind", "size"), [("CLIP", 40), ("ViT", 32), ("DeiT", 40)])
def test_an_old_processors_one_number_means_what_transformers_takes_it_for(kind, size, tmp_path):
    """The shorter side to CLIP's, and both sides to the others."""
    sizes = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    name = "CLIPVision" if kind == "CLIP" else kind
    config = getattr(transformers, f"{name}Config")(**sizes, intermediate_size=64)
    getattr(transformers, f"{name}Model")(config).save_pretrained(tmp_path)
    processor = {
        "feature_extractor_type": f"{kind}FeatureExtractor", "size": size, "do_resize": True, "resample": 3,
        "do_normalize": True, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6],
        **({"do_center_crop": True, "crop_size": 32} if size != 32 else {}),
    }  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    across, down = np.meshgrid(np.linspace(0, 250, 120), np.linspace(0, 200, 80))
    picture = Image.fromarray(np.stack([across, down, 250 - across], axis=2).astype(np.uint8))
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path)(picture, return_tensors="pt")["pixel_values"]
    ours = vit.analysis.inputs.prepare_images(load_weights(None, tmp_path, report=None), picture)
    gray_levels = (theirs - ours).abs() * torch.tensor([0.4, 0.5, 0.6])[:, None, None] * 255
    assert gray_levels[..., 1:-1, 1:-1].max() <= 3


def test_averaged_weights_are_taken_where_a_training_kept_them(model, theirs, state, tmp_path):
    """As timm does with `use_ema`, and as this library's own trainings are evaluated."""
    last, kept = (randomize(VisionTransformer(CONFIG), seed=seed) for seed in (1, 2))
    average = torch.optim.swa_utils.AveragedModel(kept)
    torch.save({"config": {}, "model": last.state_dict(), "ema": average.state_dict()}, tmp_path / "state.pt")
    _, report = report_of(model, tmp_path / "state.pt")
    assert same_weights(model, kept) and any("'ema' of 'config', 'model', 'ema'" in note for note in report.notes)
    torch.save({"model": last.state_dict(), "ema": None}, tmp_path / "state.pt")  # of a training without
    assert same_weights(load_weights(model, tmp_path / "state.pt"), last)
    other = {name: tensor + 1 for name, tensor in state.items()}
    torch.save({"state_dict": other, "state_dict_ema": state}, tmp_path / "timm.pt")
    timm.models.load_checkpoint(theirs, tmp_path / "timm.pt", use_ema=True)
    torch.testing.assert_close(load_weights(model, tmp_path / "timm.pt").head.weight, theirs.head.weight)


def test_a_command_line_beside_the_weights_is_no_danger(model, state, tmp_path):
    """As DINO's and DeiT's scripts write it; any other object is still refused."""
    torch.save({"model": state, "args": argparse.Namespace(lr=0.1)}, tmp_path / "checkpoint.pth")
    assert load_weights(model, tmp_path / "checkpoint.pth") is model
    torch.save({"model": state, "args": Report("x", "timm")}, tmp_path / "checkpoint.pth")
    refused(model, tmp_path / "checkpoint.pth", r"holds Python objects \(vit.pretrained.report.Report\)")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embed_dim": 65536, "num_heads": 1024}, "describes a network of [0-9,]{13,} numbers, the file holds"),
        ({"pretrained_strict": False}, "sets pretrained_strict in model_args, which is about loading"),
    ],
)
def test_a_folder_of_timm_says_no_more_than_its_file_holds(model, tmp_path, arguments, message):
    vit.pretrained.to_timm(model, tmp_path)
    assert same_weights(load_weights(None, tmp_path), model)
    path = tmp_path / "config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"model_args": settings["model_args"] | arguments}))
    with pytest.raises(ValueError, match=message):
        load_weights(None, tmp_path)


def test_what_a_processors_file_leaves_out_is_what_its_class_takes(tmp_path):
    sizes = {"image_size": 16, "patch_size": 4, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    transformers.ViTModel(transformers.ViTConfig(**sizes, intermediate_size=64)).save_pretrained(tmp_path)
    names = {1: "lanczos", 2: "bilinear", 3: "bicubic"}
    for processor in ({"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}},
                      {"feature_extractor_type": "ViTFeatureExtractor", "size": 16}):  # fmt: skip
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
        theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path)
        ours = load_weights(None, tmp_path).metadata
        assert (ours["mean"], ours["std"]) == (list(theirs.image_mean), list(theirs.image_std))
        assert ours["interpolation"] == names[int(theirs.resample)]
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor | {"do_normalize": False}))
        ours = load_weights(None, tmp_path).metadata
        assert (ours["mean"], ours["std"]) == ([0.0] * 3, [1.0] * 3)


def test_torchvisions_weights_for_larger_images_are_prepared_without_a_margin():
    """Against the preparation that torchvision names for its weights from SWAG."""
    from torchvision.models import VisionTransformer as Theirs
    from torchvision.models import ViT_B_16_Weights

    for weights, size in ((ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1, 384), (ViT_B_16_Weights.IMAGENET1K_V1, 224)):
        preset = weights.transforms()
        known, metadata = facts.of_module(Theirs(size, 32, 1, 2, 32, 64))
        prepared = FORMATS["torchvision"].images | metadata
        assert known["image_size"] == (size, size) and prepared["interpolation"] == preset.interpolation.value
        assert round(size / prepared["crop"]) == preset.resize_size[0] and preset.crop_size == [size]


def test_older_files_of_vit_pytorch_have_a_batch_axis():
    theirs = vit_pytorch.ViT(
        image_size=16, patch_size=4, num_classes=5, dim=32, depth=2, heads=4, dim_head=8, mlp_dim=64
    )
    state = randomize(theirs).state_dict()
    older = state | {name: state[name].reshape(1, -1, 32) for name in ("cls_token", "pos_embedding")}
    assert same_weights(load_weights(None, state, num_heads=4), load_weights(None, older, num_heads=4))
    theirs.pool = "mean"
    with pytest.raises(ValueError, match='pool="mean" beside a CLS token is not supported'):
        load_weights(None, theirs)


# --- what is not supported ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "part"), [
    ("blocks.0.attn.relative_position_bias_table", "relative position biases"),
    ("blocks.0.attn.rel_pos_h", "relative position biases"),
    ("params/img/MAPHead_0/probe", "attention pooling"),
    ("attn_pool.latent", "attention pooling"),
    ("visual.layer1.0.conv1.weight", "a convolutional network"),
    ("patch_embed.backbone.stem.conv.weight", "a convolutional network"),
    ("layers.0.blocks.0.norm1.weight", "stages of windows"),
    ("blocks.0.attn.q_bias", "biases of queries and values"),
    ("decoder_embed.weight", "an autoencoder's decoder"),
])  # fmt: skip
def test_what_the_model_does_not_compute_is_refused_by_name(state, key, part):
    with pytest.raises(ValueError, match=f"the dictionary has {part}.*, which this model does not compute: {key}"):
        load_weights(None, state | {key: torch.zeros(2)})


def test_what_is_no_vision_transformer_lists_the_known_formats():
    with pytest.raises(ValueError, match=r"is of no known format; known: vit, google, .*timm; its first keys: bias, w"):
        load_weights(None, nn.Linear(2, 2))


def test_modules_with_other_activations_or_pools_are_refused():
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 4, "num_classes": 5}
    with pytest.raises(ValueError, match="the activation 'ReLU' is not supported"):
        load_weights(None, timm.models.VisionTransformer(**sizes, act_layer=nn.ReLU))
    for act in (nn.Tanh, nn.Softplus, nn.Identity, timm.layers.HardMish):
        with pytest.raises(ValueError, match=f"the activation '{act.__name__}' is not supported"):
            load_weights(None, timm.models.VisionTransformer(**sizes, act_layer=act))
    with pytest.raises(ValueError, match="global_pool='max' is not supported"):
        load_weights(None, timm.models.VisionTransformer(**sizes, global_pool="max"))
    by_first_half = partial(timm.layers.GluMlp, gate_last=False)
    for act, mlp, message in (
        (nn.GELU, by_first_half, "its MLP with act='gelu' is gated; only SwiGLU is"),
        (nn.Sigmoid, by_first_half, "the activation 'Sigmoid' is not supported"),
        (nn.SiLU, timm.layers.GluMlp, "its MLP is gated by its last half"),
    ):
        with pytest.raises(ValueError, match=message):
            load_weights(None, timm.models.VisionTransformer(**sizes, act_layer=act, mlp_layer=mlp))
    config = transformers.ViTConfig(
        image_size=16, patch_size=4, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, hidden_act="relu"
    )
    with pytest.raises(ValueError, match="the activation 'relu' is not supported"):
        load_weights(None, transformers.ViTModel(config))


@pytest.mark.parametrize("kind", [
    "ResPostBlock", "ParallelScalingBlock", "ParallelThingsBlock", "DiffParallelScalingBlock",
])  # fmt: skip
def test_timms_other_blocks_are_refused_by_name(kind):
    theirs = timm.models.VisionTransformer(
        img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=4, block_fn=getattr(timm_vit, kind)
    )
    with pytest.raises(ValueError, match=f"its blocks are timm's {kind}, which compute something else; only Block is"):
        load_weights(None, theirs)


@torch.no_grad()
def test_timms_other_models_of_the_same_block_are_read(images):
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}
    theirs = randomize(VisionTransformerDistilled(**sizes)).eval()
    torch.testing.assert_close(load_weights(None, theirs)(images), theirs(images), rtol=0, atol=1e-5)
    theirs = timm.models.VisionTransformer(**sizes, global_pool="avg", pool_include_prefix=True)
    with pytest.raises(ValueError, match="pool_include_prefix=True is not supported"):
        load_weights(None, theirs)


def test_arguments_are_checked_before_anything_is_read():
    with pytest.raises(ValueError, match="no argument 'num_clases'; did you mean 'num_classes'. fields"):
        load_weights(None, "nowhere", num_clases=3)
    with pytest.raises(ValueError, match="format='tim' is not a choice; did you mean 'timm'. allowed: vit, google"):
        load_weights(None, "nowhere", format="tim")
    with pytest.raises(ValueError, match="image_size='384' must be a positive integer"):
        load_weights(None, "nowhere", image_size="384")
    with pytest.raises(TypeError, match="model must be a VisionTransformer of this library or None, got Linear"):
        load_weights(nn.Linear(2, 2), "nowhere")


def test_sources_that_do_not_say_enough_ask(state):
    with pytest.raises(ValueError, match="not usual at a width of 32: pass num_heads="):
        load_weights(None, state)
    simple = {name: tensor for name, tensor in state.items() if name != "pos_embed"}
    with pytest.raises(ValueError, match="no position table"):
        load_weights(None, simple, num_heads=4, pos_embed="sincos2d")
    state["norm_pre.weight"], state["norm_pre.bias"] = torch.ones(32), torch.zeros(32)
    with pytest.raises(ValueError, match="pass norm_eps= and act="):
        load_weights(None, state, num_heads=4)


def test_the_config_knows_the_names_that_the_model_does():
    for rule in RESAMPLINGS:
        assert replace(CONFIG, pos_resampling=rule)
    for act in ACTIVATIONS:
        assert replace(CONFIG, act=act)
    for field, known in (("pos_resampling", RESAMPLINGS), ("act", ACTIVATIONS)):
        with pytest.raises(ValueError, match=", ".join(known)):
            replace(CONFIG, **{field: "no"})


def test_files_in_another_format_than_safetensors_are_not_trusted_by_load(tmp_path):
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="was not written by vit.save; vit.pretrained.load_weights"):
        vit.load(tmp_path / "other.safetensors")


@pytest.mark.parametrize("size", ["large_patch16", "huge_patch14", "giant_patch14", "gigantic_patch14"])
def test_usual_heads_are_those_of_timms_published_models(size):
    theirs = timm.create_model(f"vit_{size}_224", device="meta")
    assert num_heads_of(theirs.embed_dim) == theirs.blocks[0].attn.num_heads


def test_so400m_has_sixteen_heads():
    theirs = timm.create_model("vit_so400m_patch14_siglip_gap_224", device="meta")
    assert num_heads_of(theirs.embed_dim) == theirs.blocks[0].attn.num_heads
