"""Operation counts against closed forms written out by hand."""

import pytest
import torch

from vit.analysis import count_parameters, forward_flops, train_flops
from vit.config import ViTConfig
from vit.model.vision_transformer import VisionTransformer


def multiply_adds(c: ViTConfig, *, spare_last_block: bool = True) -> int:
    D, N, T = c.embed_dim, c.num_patches, c.num_patches + c.num_prefix_tokens

    block = T * 3 * D * D + 2 * T * T * D + T * (D * D + 2 * D * c.mlp_dim)
    last = block
    if spare_last_block and c.pool == "cls":  # one token alone, whose heads see whole tokens
        last = 4 * D * D + 2 * c.num_heads * T * D + 2 * D * c.mlp_dim
    head = {"mlp": D * D + D * c.num_classes, "linear": D * c.num_classes}[c.head]
    return N * 3 * c.patch_size**2 * D + (c.depth - 1) * block + last + head


@pytest.mark.parametrize("name", [n for n in ViTConfig.list_presets() if n.endswith("_32") or "tiny" in n])
def test_forward_flops_are_twice_the_multiply_adds(name):
    config = ViTConfig.preset(name)
    assert forward_flops(VisionTransformer(config)) == 2 * multiply_adds(config)


def test_the_papers_base_model_costs_what_is_published():
    config = ViTConfig.preset("vit_base_patch16_224")
    assert (
        round(multiply_adds(config, spare_last_block=False) / 1e9, 1) == 17.6
    )  # Touvron et al., "DeiT", ICML 2021, Table 5: 17.6 G


def test_mean_pooling_needs_every_token():
    config = ViTConfig(pool="mean")
    assert forward_flops(VisionTransformer(config)) == 2 * multiply_adds(config, spare_last_block=False)


def test_training_counts_three_forward_passes():
    model = VisionTransformer(ViTConfig(depth=1)).train()
    assert train_flops(model, 7) == 21 * forward_flops(model)
    assert model.training
    assert train_flops(model, 10**12) == 3 * 10**12 * forward_flops(model), "exact where floats are not"
    part = train_flops(model, 2.5)
    assert part == 7.5 * forward_flops(model) and isinstance(part, int)


def test_frozen_parameters_are_not_counted():
    layer = torch.nn.Linear(3, 4)
    layer.bias.requires_grad_(False)
    assert count_parameters(layer) == 12


@pytest.mark.parametrize("pos_embed", ["learned", "rope"])
def test_dropped_patches_are_not_counted_in_the_encoder(pos_embed):
    """All patches are embedded, and then there are as many tokens as in a smaller image."""
    config = ViTConfig(image_size=32, patch_size=4, depth=3, pos_embed=pos_embed)  # 64 patches, of which 16 are kept
    small = ViTConfig(image_size=16, patch_size=4, depth=3, pos_embed=pos_embed)
    unseen = 2 * (64 - 16) * 3 * 4**2 * config.embed_dim
    model = VisionTransformer(config).train()
    state, patch_drop = torch.get_rng_state(), model.patch_drop
    few = forward_flops(model, patch_drop_rate=0.75)
    assert torch.equal(torch.get_rng_state(), state) and model.patch_drop is patch_drop and model.training
    assert few == forward_flops(VisionTransformer(small)) + unseen
    whole = forward_flops(model)
    assert train_flops(model, 10, patch_drop_rate=0.75, patch_drop_until=0.6) == 30 * 0.6 * few + 30 * 0.4 * whole
    assert train_flops(model, 10, patch_drop_rate=0.75) == 30 * few


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_images": -10}, "num_images=-10 must be a number of 0 or more"),
        ({"num_images": float("nan")}, "num_images=nan must be"),
        ({"patch_drop_rate": 3.0}, r"patch_drop_rate=3.0 must be in \[0, 1\)"),
        ({"patch_drop_rate": -0.5}, r"patch_drop_rate=-0.5 must be in \[0, 1\)"),
        ({"patch_drop_rate": 0.5, "patch_drop_until": 5}, r"patch_drop_until=5 must be in \[0, 1\]"),
    ],
)
def test_work_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        train_flops(VisionTransformer(ViTConfig(depth=1)), **{"num_images": 10, **options})


def test_a_model_without_a_config_is_refused():
    for count in (forward_flops, lambda model: train_flops(model, 10)):
        with pytest.raises(TypeError, match="as a VisionTransformer of this library has; Linear has none"):
            count(torch.nn.Linear(2, 2))
