"""LoRA against its formula, on randomized networks: what it starts as, what it trains, what it leaves behind."""

import numpy as np
import pytest
import torch
from conftest import randomize, same_weights

import vit
from vit.config import TrainConfig, ViTConfig
from vit.model import VisionTransformer
from vit.tasks import lora
from vit.training import build_optimizers


@pytest.fixture
def model(tiny: ViTConfig) -> VisionTransformer:
    return randomize(VisionTransformer(tiny)).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 3, 8, 8)


def filled(model: VisionTransformer, **options) -> VisionTransformer:
    """With LoRA whose B is no longer zero."""
    adapted = lora.add(model, **options)
    for layer in adapted.modules():
        if isinstance(layer, lora.LoRALinear):
            torch.nn.init.normal_(layer.B)
    return adapted


def test_it_starts_as_the_frozen_network(model, images):
    model, images = model.double(), images.double()
    torch.testing.assert_close(lora.add(model)(images), model(images), rtol=0, atol=1e-12)
    assert not torch.allclose(filled(model)(images), model(images), atol=0.1), "and B must matter"


def test_a_layer_is_its_formula(model):
    layer = filled(model, rank=2, alpha=6.0).encoder.blocks[1].mlp.fc1.double()
    x = torch.randn(5, 16, dtype=torch.float64)
    weight = layer.base.weight + 6.0 / 2 * layer.B @ layer.A
    torch.testing.assert_close(layer(x), x @ weight.T + layer.base.bias, rtol=0, atol=1e-12)


def test_merged_is_the_same_function_in_a_plain_network(model, images, tmp_path):
    adapted = filled(model.double(), rank=3, alpha=1.5)
    merged = lora.merge(adapted)
    torch.testing.assert_close(merged(images.double()), adapted(images.double()), rtol=0, atol=1e-12)
    assert merged.state_dict().keys() == model.state_dict().keys()
    assert all(p.requires_grad for p in merged.parameters())
    stored = vit.load(vit.save(merged.float(), tmp_path / "merged.safetensors"))
    assert torch.equal(stored(images), merged(images))


def test_the_model_it_is_made_from_stays(model, images):
    before, trainable = model(images), [p.requires_grad for p in model.parameters()]
    filled(model)
    assert torch.equal(model(images), before) and [p.requires_grad for p in model.parameters()] == trainable


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("targets", [("attn.qkv",), lora.TARGETS])
def test_the_number_of_trained_parameters_is_its_closed_form(model, rank, targets):
    D, hidden, depth = 16, 32, 2
    sizes = {"attn.qkv": 4 * D, "attn.proj": 2 * D, "mlp.fc1": D + hidden, "mlp.fc2": D + hidden}
    adapted = lora.add(model, rank, targets=targets)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    head = sum(p.numel() for p in model.head.parameters())
    assert trained == head + depth * rank * sum(sizes[name] for name in targets)


def test_a_step_changes_only_what_was_added_and_the_head(model, images):
    adapted = filled(model)
    before = {name: p.detach().clone() for name, p in adapted.named_parameters()}
    [optimizer] = build_optimizers(adapted, TrainConfig(optimizer="adamw"))
    adapted(images).square().sum().backward()
    optimizer.step()
    changed = {name for name, p in adapted.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {n for n in before if n.endswith((".A", ".B")) or n.startswith("head.")}


def test_the_added_matrices_are_for_adamw_whatever_the_config(model):
    [optimizer] = build_optimizers(lora.add(model), TrainConfig(optimizer="muon"))
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert isinstance(optimizer, torch.optim.AdamW) and len(held) == 2 * 4 * 2 + 4, "2 blocks, 4 pairs; the head"


def test_attention_maps_are_those_of_the_merged_network(model, images):
    from vit import analysis

    adapted = filled(model)
    maps = analysis.attention_maps(adapted, images)
    torch.testing.assert_close(maps, analysis.attention_maps(lora.merge(adapted), images), rtol=0, atol=1e-5)
    assert not torch.allclose(maps, analysis.attention_maps(model, images), atol=1e-2)


def test_targets_may_be_any_names_and_each_counts_once(model):
    expected = lora.add(model, targets=("attn.qkv", "mlp.fc1")).state_dict().keys()
    assert sum(name.endswith(".A") for name in expected) == 2 * 2, "two blocks, two layers"
    for targets in (["attn.qkv", "mlp.fc1", "attn.qkv"], (name for name in ("attn.qkv", "mlp.fc1"))):
        assert lora.add(model, np.int64(4), targets=targets).state_dict().keys() == expected


def test_a_compiled_model_is_taken_for_what_is_in_it(model):
    torch.manual_seed(0)
    adapted = lora.add(model)
    torch.manual_seed(0)
    again = lora.add(torch.compile(model, backend="eager"))
    merged = lora.merge(torch.compile(again, backend="eager"))
    assert type(again) is type(merged) is VisionTransformer
    assert same_weights(again, adapted) and same_weights(merged, model)


@pytest.mark.parametrize("alpha", [0, -1.0, float("nan"), float("inf"), "4", True])
def test_a_bad_alpha_is_refused(model, alpha):
    with pytest.raises(ValueError, match=rf"alpha={alpha!r} must be a number above 0; None takes rank=2"):
        lora.add(model, 2, alpha=alpha)


def test_bad_input_is_refused(model):
    with pytest.raises(TypeError, match="model must be a VisionTransformer of this library, got torch.nn.*Linear"):
        lora.add(torch.nn.Linear(2, 2))
    for targets in ("attn.qkv", (), None, iter(())):
        with pytest.raises(ValueError, match="targets=.* must be some of: attn.qkv"):
            lora.add(model, targets=targets)
    with pytest.raises(ValueError, match="rank=0 must be an integer of 1 or more"):
        lora.add(model, 0)
    with pytest.raises(ValueError, match=r"targets=\['qkv'\] must be some of: attn.qkv, attn.proj"):
        lora.add(model, targets=["qkv"])
    with pytest.raises(ValueError, match="has LoRA matrices already: merge them first"):
        lora.add(lora.add(model))
