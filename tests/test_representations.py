"""Representations: the model's own logits, other ways to the same tokens, Gram matrices, and tables made by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from conftest import randomize
from torch import nn

from vit import VisionTransformer, ViTConfig
from vit.analysis.representations import (
    block_outputs,
    cka,
    layer_similarity,
    logit_lens,
    patch_filters,
    pos_embed_similarity,
    token_norms,
    token_pca,
)

CONFIG = ViTConfig(image_size=(8, 12), patch_size=4, embed_dim=16, depth=3, num_heads=2, mlp_ratio=2.0, num_classes=5)
FORMS = {
    "cls": {},
    "mean": {"pool": "mean", "num_registers": 2, "pos_embed": "sincos2d"},
    "rope": {"num_registers": 1, "pos_embed": "rope", "qk_norm": True, "layer_scale": 0.1},
    "none": {"pos_embed": "none", "head": "mlp"},
}
TIMM_FORMS = {
    "token": {},
    "fc_norm": {"global_pool": "avg", "reg_tokens": 2},
    "no_embed_class": {"no_embed_class": True, "reg_tokens": 1, "init_values": 0.1, "qk_norm": True},
    "no_cls": {"class_token": False, "global_pool": "avg", "fc_norm": False, "pre_norm": True},
}


def ours(**changes) -> VisionTransformer:
    return randomize(VisionTransformer(replace(CONFIG, **changes)))


def timms(**changes) -> nn.Module:
    sizes = {"img_size": (8, 12), "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 5}
    return randomize(timm.models.VisionTransformer(**sizes, **changes))


MODELS = [pytest.param(ours, FORMS[name], id=f"ours-{name}") for name in FORMS]
MODELS += [pytest.param(timms, TIMM_FORMS[name], id=f"timm-{name}") for name in TIMM_FORMS]


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(4, 3, 8, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("form", FORMS)
def test_block_outputs_are_the_models_own_intermediate_layers(form, images):
    model = ours(**FORMS[form])
    expected = torch.stack(model.eval().get_intermediate_layers(images, range(3), norm=False)).detach()
    assert torch.equal(block_outputs(model, images), expected)
    assert torch.equal(token_norms(model, images), expected.norm(dim=-1))


@pytest.mark.parametrize("form", TIMM_FORMS)
def test_block_outputs_are_timms_intermediates(form, images):
    model = timms(**TIMM_FORMS[form]).eval()
    outputs = block_outputs(model, images)
    options = {"output_fmt": "NLC", "return_prefix_tokens": True, "intermediates_only": True}
    for output, expected in zip(outputs, model.forward_intermediates(images, **options), strict=True):
        patches, prefix = expected if isinstance(expected, tuple) else (expected, expected[:, :0])
        torch.testing.assert_close(output, torch.cat([prefix, patches], dim=1).detach())


@pytest.mark.parametrize("build, form", MODELS)
def test_the_lens_on_the_last_layer_gives_the_models_logits(build, form, images):
    model = build(**form).eval()
    logits = logit_lens(model, images)
    expected = model(images).detach()
    assert logits.shape == (3, 4, 5)
    torch.testing.assert_close(logits[-1], expected, rtol=0, atol=1e-5)
    assert (logits[0] - expected).abs().max() > 1e-2, "a random block changes what the head reads"


@pytest.mark.parametrize("build, form", MODELS)
def test_the_lens_on_an_early_layer_is_the_model_cut_short(build, form, images):
    model = build(**form).eval()
    first = logit_lens(model, images)[0]
    blocks = model.encoder if hasattr(model, "encoder") else model
    blocks.blocks = blocks.blocks[:1]
    torch.testing.assert_close(first, model(images).detach(), rtol=0, atol=1e-5)


def test_a_look_changes_nothing(images):
    model = ours(drop_rate=0.5).train()
    before = block_outputs(model, images)
    assert model.training and model.encoder.blocks[0].training
    assert torch.equal(before, block_outputs(model, images)), "dropout must be off"
    assert not before.requires_grad
    assert not any(block._forward_hooks for block in model.encoder.blocks)
    with pytest.raises(ValueError, match="8x12"):
        block_outputs(model, images[..., :8])
    assert model.training and not any(block._forward_hooks for block in model.encoder.blocks)
    raw = torch.randint(0, 256, (2, 3, 8, 12), dtype=torch.uint8)
    model.metadata = {"mean": [0.5] * 3, "std": [0.25] * 3}
    torch.testing.assert_close(block_outputs(model, raw), block_outputs(model, (raw / 255 - 0.5) / 0.25))
    half = block_outputs(model.bfloat16(), images)
    assert half.dtype == torch.float32 and half.shape == before.shape


def test_position_similarity_of_a_table_made_by_hand():
    table = torch.zeros(1, 6, 16)
    table[0, :, 0] = torch.tensor([1.0, 2.0, 0.0, 1.0, -3.0, 0.0])
    table[0, :, 1] = torch.tensor([0.0, 0.0, 4.0, 1.0, 0.0, -1.0])
    angles = torch.tensor([0, 0, 90, 45, 180, 270]).deg2rad()
    expected = (angles[:, None] - angles).cos().view(2, 3, 2, 3)
    model = ours()
    model.pos_embed.data = table
    torch.testing.assert_close(pos_embed_similarity(model), expected, rtol=0, atol=1e-6)
    with_slots = timms(reg_tokens=1)
    with_slots.pos_embed.data = torch.cat([torch.randn(1, 2, 16), table], dim=1)
    torch.testing.assert_close(pos_embed_similarity(with_slots), expected, rtol=0, atol=1e-6)
    without_slots = timms(no_embed_class=True)
    without_slots.pos_embed.data = table
    torch.testing.assert_close(pos_embed_similarity(without_slots), expected, rtol=0, atol=1e-6)


def test_position_similarity_of_sines_depends_on_the_offset_alone():
    similarity = pos_embed_similarity(ours(pos_embed="sincos2d", image_size=(16, 20)))
    frequencies = 10_000 ** -torch.linspace(0, 1, 4)
    for row in range(4):
        for column in range(5):
            terms = [(offset * frequencies).cos().mean() for offset in (row - 1, column - 2)]
            assert similarity[1, 2, row, column].item() == pytest.approx(sum(terms).item() / 2, abs=1e-5)


def test_blocks_in_compiled_code_are_not_read_and_it_is_said_why(images):
    model = ours().eval()
    expected = block_outputs(model, images)
    model.encoder.compile(backend="eager")
    with torch.no_grad():
        model.forward_features(images)
    with pytest.raises(RuntimeError, match="0 of the 3 blocks were seen at work; .*compiled.*force_eager"):
        block_outputs(model, images)
    with torch.compiler.set_stance("force_eager"):
        assert torch.equal(block_outputs(model, images), expected)


@pytest.mark.parametrize("model, kind", [(ours(pos_embed="rope"), "'rope'"), (ours(pos_embed="none"), "'none'")])
def test_positions_that_are_no_vectors_are_refused(model, kind):
    with pytest.raises(ValueError, match=f"pos_embed={kind}: no vector is added to a patch"):
        pos_embed_similarity(model)


@pytest.mark.parametrize("build", [ours, timms])
def test_patch_filters_equal_numpys_and_rebuild_the_weights(build):
    model = build()
    weight = model.patch_embed.proj.weight.detach().double().flatten(1).numpy()
    centered = weight - weight.mean(axis=0)
    _, values, directions = np.linalg.svd(centered, full_matrices=False)
    filters, explained = patch_filters(model, 15)
    assert filters.shape == (15, 3, 4, 4) and explained.shape == (15,)
    basis = filters.flatten(1).double().numpy()
    np.testing.assert_allclose(np.abs((basis * directions[:15]).sum(axis=1)), 1, atol=1e-5)
    np.testing.assert_allclose(explained, (values**2 / (values**2).sum())[:15], atol=1e-6)
    # 16 centered filters have 15 components: all of them together give the filters back.
    np.testing.assert_allclose(centered @ basis.T @ basis, centered, atol=1e-5)
    largest = np.abs(basis).argmax(axis=1)
    assert (basis[np.arange(15), largest] > 0).all()
    with pytest.raises(ValueError, match=r"num=16 must be an integer in 1\.\.15"):
        patch_filters(model, 16)
    with pytest.raises(ValueError, match="num=3.0 must be an integer in 1..15"):
        patch_filters(model, 3.0)


def test_as_many_patch_filters_as_there_are_unless_told():
    """28 as in the paper's figure, but 40 gray filters of 2 by 2 pixels vary in four directions only."""
    filters, explained = patch_filters(ours(patch_size=2, in_chans=1, embed_dim=40))
    assert filters.shape == (4, 1, 2, 2) and explained.sum() == pytest.approx(1)
    assert len(patch_filters(ours(embed_dim=40))[0]) == 28 and len(patch_filters(ours())[0]) == 15
    with pytest.raises(ValueError, match=r"num=5 must be an integer in 1\.\.4: 40 filters of 4 weights have no more"):
        patch_filters(ours(patch_size=2, in_chans=1, embed_dim=40), 5)


@pytest.mark.parametrize("build, form", MODELS)
def test_pca_colors_are_numpys_components_between_their_quantiles(build, form, images):
    model = build(**form)
    colors = token_pca(model, images, layer=1).double().numpy()
    assert colors.shape == (4, 2, 3, 3) and colors.min() == 0 and colors.max() == 1
    tokens = block_outputs(model, images)[1, :, -6:].flatten(0, 1).double().numpy()
    centered = tokens - tokens.mean(axis=0)
    _, _, directions = np.linalg.svd(centered)
    for k in range(3):
        values = centered @ directions[k] * np.sign(directions[k][np.abs(directions[k]).argmax()])
        low, high = np.quantile(values, [0.01, 0.99])
        expected = np.clip((values - low) / (high - low), 0, 1).reshape(4, 2, 3)
        np.testing.assert_allclose(colors[..., k], expected, atol=1e-5)


def test_pca_needs_four_patches_and_a_layer(images):
    with pytest.raises(ValueError, match="2 patches in all; three components need 4"):
        token_pca(ours(image_size=(4, 8)), images[:1, :, :4, :8])
    with pytest.raises(ValueError, match="layer=3 must be among"):
        token_pca(ours(), images, layer=3)


def features(n: int, p: int, seed: int) -> torch.Tensor:
    return torch.randn(n, p, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kernel_cka(x: torch.Tensor, y: torch.Tensor) -> float:
    """CKA by Gram matrices and the Hilbert-Schmidt independence criterion (Kornblith et al., Eq. 3-4)."""
    n = len(x)
    center = np.eye(n) - 1 / n
    k, m = (features.numpy() @ features.numpy().T for features in (x.double(), y.double()))
    hsic = lambda a, b: np.trace(a @ center @ b @ center) / (n - 1) ** 2  # noqa: E731
    return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


def test_cka_equals_its_kernel_form():
    x = features(40, 6, 0)
    y = x[:, :4].tanh() + 0.5 * features(40, 4, 1) + 3
    assert cka(x, y).item() == pytest.approx(kernel_cka(x, y), abs=1e-6)
    assert cka(x.numpy(), y.numpy()) == cka(x, y)
    assert 0.3 < kernel_cka(x, y) < 0.95, "a value at an end would show little"


def test_cka_sees_turns_and_scales_as_the_same_and_nothing_else():
    x = features(500, 6, 0)
    rotation, _ = torch.linalg.qr(features(6, 6, 1))
    assert cka(x, x).item() == 1
    assert cka(x, -3 * x @ rotation + 7).item() == pytest.approx(1, abs=1e-6)
    assert cka(x.float() * 1e-3 + 100, x).item() == pytest.approx(1, abs=1e-4), "a large mean must not drown the rest"
    stretched = x * torch.tensor([1.0, 1, 1, 1, 1, 10])
    assert cka(x, stretched) < 0.6, "an invertible map that is no rotation does change CKA"
    assert cka(x, features(500, 6, 2)) < 0.05, "independent features are not alike"


def test_cka_refuses_what_has_no_value():
    with pytest.raises(ValueError, match=r"the same n, got \(4, 2\) and \(5, 2\)"):
        cka(torch.zeros(4, 2), torch.zeros(5, 2))
    with pytest.raises(ValueError, match="the same for all examples"):
        cka(torch.full((7, 2), 0.1), features(7, 2, 0))


def test_layer_similarity_is_cka_of_all_tokens(images):
    model, other = ours(), ours(depth=2, embed_dim=8)
    x, y = (block_outputs(m, images).flatten(1, 2) for m in (model, other))
    own, between = layer_similarity(model, images), layer_similarity(model, images, other)
    assert own.shape == (3, 3) and between.shape == (3, 2)
    for i in range(3):
        for j in range(3):
            assert own[i, j].item() == pytest.approx(kernel_cka(x[i], x[j]), abs=1e-5)
        for j in range(2):
            assert between[i, j].item() == pytest.approx(kernel_cka(x[i], y[j]), abs=1e-5)
    assert torch.equal(own.diag(), torch.ones(3))
    assert torch.equal(layer_similarity(model, images, model) > 0.999, own > 0.999)
    with pytest.raises(ValueError, match="model has 7 tokens and other 6"):
        layer_similarity(model, images, ours(pool="mean"))


def test_a_model_without_a_head_has_no_logits(images):
    with pytest.raises(ValueError, match=r"the model has no classes \(num_classes=0\)"):
        logit_lens(VisionTransformer(replace(CONFIG, num_classes=0)), images)
