"""Every format against the library it comes from: fully random weights, the same logits, and mistakes that must show.

`other_libraries.py` makes the references. Float64 sees what float32 cannot, such as a wrong eps of LayerNorm.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
import torchvision
from other_libraries import (
    REFERENCES,
    SIZE,
    WIDE,
    Reference,
    deit_distilled,
    dino,
    dinov2,
    from_flax,
    from_hf,
    from_timm,
    from_torchvision,
    images_of,
    make_reference,
    make_torchvision,
    openai_clip,
    state_of,
    vit_jax,
)
from torch import Tensor, nn

from vit.model.vision_transformer import VisionTransformer
from vit.pretrained import load_weights
from vit.pretrained.formats import FORMATS

PRECISIONS = [(torch.float32, 1e-5), (torch.float64, 1e-8)]


def load(reference: Reference, **options) -> VisionTransformer:
    reports = []
    model = load_weights(None, reference.source, report=reports.append, **(reference.options | options))
    assert reports[0].format == reference.format
    return model


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("name", REFERENCES)
@torch.no_grad()
def test_the_logits_are_the_librarys_own(name, dtype, tolerance, tmp_path):
    reference = make_reference(name, SIZE, dtype, tmp_path)
    images = images_of(SIZE, dtype)
    expected, model = reference.logits(images), load(reference)
    assert next(model.parameters()).dtype == dtype
    assert expected.std() > 0.1, "the weights must matter"
    torch.testing.assert_close(model(images), expected, rtol=0, atol=tolerance)


# --- other grids --------------------------------------------------------------------------------------------------


NON_SQUARE = [
    "timm", "timm_registers", "timm_average", "timm_clip", "hf_vit", "hf_deit_distilled",
    "vit_jax", "big_vision", "vit_pytorch", "vit_pytorch_mean", "simple_vit",
]  # fmt: skip


@pytest.mark.parametrize("name", NON_SQUARE)
@torch.no_grad()
def test_a_grid_that_is_not_square(name, tmp_path):
    reference = make_reference(name, WIDE, torch.float64, tmp_path)
    images = images_of(WIDE, torch.float64)
    model = load(reference)
    assert model.config.grid_size == (3, 5)
    torch.testing.assert_close(model(images), reference.logits(images), rtol=0, atol=1e-8)


def resized_timm(size, dtype) -> tuple[Reference, Callable]:
    reference, other = from_timm(SIZE, dtype), from_timm(SIZE, dtype)
    other.source.set_input_size(img_size=size)
    return reference, other.source


def resized_hf(kind: str, size, dtype) -> tuple[Reference, Callable]:
    reference = from_hf(kind, SIZE, dtype)
    options = {} if "Dinov2" in kind else {"interpolate_pos_encoding": True}
    return reference, lambda images: reference.source(images, **options).logits


def resized_torchvision(size, dtype) -> tuple[Reference, Callable]:
    reference = from_torchvision(SIZE, dtype)
    larger = make_torchvision(size, dtype)
    state = torchvision.models.vision_transformer.interpolate_embeddings(size[0], 4, state_of(reference.source))
    larger.load_state_dict(state)
    return reference, larger


def resized_google(size, dtype, tmp_path) -> tuple[Reference, Callable]:
    """scipy's zoom, by which Google's code resizes."""
    reference = vit_jax(SIZE, dtype, tmp_path)
    arrays = dict(np.load(reference.source))
    name = "opt/target/Transformer/posembed_input/pos_embedding"
    cls, table = arrays[name][:, :1], arrays[name][0, 1:].reshape(4, 4, 32)
    table = scipy.ndimage.zoom(table, (size[0] / 16, size[1] / 16, 1), order=1)
    arrays[name] = np.concatenate([cls, table.reshape(1, -1, 32)], axis=1).astype(table.dtype)
    stripped = {key.removeprefix("opt/target/"): array for key, array in arrays.items()}
    return reference, from_flax(stripped, size, dtype, tmp_path / "larger.npz", "opt/target/").logits


def dinos_table(table: Tensor, rows: int, columns: int) -> Tensor:
    """DINO's resize, which enlarges by a factor with a tenth of a patch too much."""
    grid = table.reshape(1, 4, 4, 32).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=((rows + 0.1) / 4, (columns + 0.1) / 4), mode="bicubic")
    return grid.permute(0, 2, 3, 1).reshape(1, rows * columns, 32)


def resized_dino(make: Callable, size, dtype) -> tuple[Reference, Callable]:
    reference = make(SIZE, dtype)
    table = make(SIZE, dtype).logits.pos_embed.detach()
    larger = make(size, dtype).logits
    state = state_of(make(SIZE, dtype).logits)
    state["pos_embed"] = torch.cat([table[:, :1], dinos_table(table[:, 1:], size[0] // 4, size[1] // 4)], dim=1)
    larger.load_state_dict(state)
    return reference, larger


RESIZED = {
    "hf_vit": partial(resized_hf, "ViTForImageClassification"),
    "hf_deit": partial(resized_hf, "DeiTForImageClassification"),
    "torchvision": resized_torchvision,
    "google": resized_google,
    "dino": partial(resized_dino, dino),
    "dinov2": partial(resized_dino, dinov2),
    # These two compute the table in float32, in a float64 model too.
    "timm": resized_timm,
    "hf_dinov2": partial(resized_hf, "Dinov2ForImageClassification"),
    "hf_dinov2_registers": partial(resized_hf, "Dinov2WithRegistersForImageClassification"),
}
RESIZINGS = [(name, size) for name in RESIZED for size in ((24, 24), (8, 8), (20, 28))]
RESIZINGS.remove(("torchvision", (20, 28)))  # whose images are square


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize(("name", "size"), RESIZINGS, ids=str)
@torch.no_grad()
def test_positions_are_resized_as_the_source_does(name, size, dtype, tolerance, tmp_path):
    make = RESIZED[name]
    reference, theirs = make(size, dtype, tmp_path) if name == "google" else make(size, dtype)
    if dtype == torch.float64 and name in ("timm", "hf_dinov2", "hf_dinov2_registers"):
        tolerance = 1e-6
    images = images_of(size, dtype)
    model = load(reference, image_size=size)
    torch.testing.assert_close(model(images), theirs(images), rtol=0, atol=tolerance)
    # The rule stays with the model.
    native = load(make(size, dtype, tmp_path)[0] if name == "google" else make(size, dtype)[0])
    torch.testing.assert_close(native.resized(size)(images), theirs(images), rtol=0, atol=tolerance)


# --- what a file does not say, or says in few digits ---------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["visual.", ""])
@torch.no_grad()
def test_openclip_has_openais_names_and_another_activation(prefix):
    reference = openai_clip(SIZE, torch.float64, prefix=prefix)
    for block in reference.logits.blocks:
        block.mlp.act = nn.GELU()
    images, reports = images_of(SIZE, torch.float64), []
    expected = reference.logits(images)
    assumed = load_weights(None, reference.source, num_heads=4, report=reports.append)
    assert (assumed(images) - expected).abs().max() > 1e-4
    named = load_weights(None, reference.source, num_heads=4, act="gelu", report=reports.append)
    torch.testing.assert_close(named(images), expected, rtol=0, atol=1e-8)
    note = "act='quick_gelu', as OpenAI's networks have; OpenCLIP's files need act='gelu'"
    assert [note in report.notes for report in reports] == [True, False]


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["timm", "deit_distilled", "resized"])
@torch.no_grad()
def test_sums_of_half_precision_numbers_are_not_rounded(name, half):
    """CLS and its position, a mean of two heads, a resized table: each as timm has it in float32."""
    theirs = (deit_distilled if name == "deit_distilled" else from_timm)(SIZE, torch.float32).logits.to(half)
    state, size = state_of(theirs), (24, 24) if name == "resized" else SIZE
    theirs.float()
    if name == "resized":
        theirs.set_input_size(img_size=size)
    images, reports = images_of(size, torch.float32), []
    model = load_weights(None, state, num_heads=4, image_size=size, report=reports.append)
    torch.testing.assert_close(model(images), theirs(images), rtol=0, atol=1e-5)
    assert f"{str(half)[6:]} became float32" in reports[0].notes
    filled = load_weights(VisionTransformer(model.config).eval(), state, image_size=size, report=reports.append)
    torch.testing.assert_close(filled(images), theirs(images), rtol=0, atol=1e-5)
    assert f"{str(half)[6:]} became float32" in reports[1].notes


# --- mistakes that must show --------------------------------------------------------------------------------------


def nothing_wrong(model: VisionTransformer) -> None:
    pass


def swap_queries_and_keys(model: VisionTransformer) -> None:
    for block in model.encoder.blocks:
        q, k, v = block.attn.qkv.weight.data.chunk(3)
        block.attn.qkv.weight.data = torch.cat([k, q, v])


def other_eps(model: VisionTransformer) -> None:
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-12 if module.eps > 1e-7 else 1e-6


def other_gelu(model: VisionTransformer) -> None:
    for block in model.encoder.blocks:
        is_exact = isinstance(block.mlp.act, nn.GELU) and block.mlp.act.approximate == "none"
        block.mlp.act = nn.GELU(approximate="tanh") if is_exact else nn.GELU()


def other_gate(model: VisionTransformer) -> None:
    for block in model.encoder.blocks:
        block.mlp.fc1.weight.data = block.mlp.fc1.weight.data.roll(len(block.mlp.fc1.weight) // 2, dims=0)


def other_flatten_order(model: VisionTransformer) -> None:
    weight = model.patch_embed.proj.weight  # as if (C, p, p) were (p, p, C)
    weight.data = weight.data.flatten(1).reshape(-1, 4, 4, 3).permute(0, 3, 1, 2).contiguous()


def other_order_of_the_patch_norm(model: VisionTransformer) -> None:
    weight = model.patch_embed.norm_in.weight
    weight.data = weight.data.reshape(4, 4, 3).permute(2, 0, 1).flatten()


def columns_first(model: VisionTransformer) -> None:
    model.patch_embed.proj.weight.data = model.patch_embed.proj.weight.data.transpose(2, 3).contiguous()


def cls_with_another_position(model: VisionTransformer) -> None:
    model.cls_token.data += model.pos_embed.data[:, :1]


def shifted_positions(model: VisionTransformer) -> None:
    model.pos_embed.data = model.pos_embed.data.roll(1, dims=1)


def more_heads(model: VisionTransformer) -> None:
    for block in model.encoder.blocks:
        block.attn.num_heads, block.attn.head_dim = 8, 4


def no_layer_scale(model: VisionTransformer) -> None:
    for block in model.encoder.blocks:
        block.ls2.gamma.data.fill_(1)


def no_tanh(model: VisionTransformer) -> None:
    model.head.act = nn.Identity()


def registers_in_another_order(model: VisionTransformer) -> None:
    tokens = torch.cat([model.cls_token.data, model.reg_token.data], dim=1).roll(1, dims=1)
    model.cls_token.data, model.reg_token.data = tokens[:, :1], tokens[:, 1:]


def norm_before_pooling(model: VisionTransformer) -> None:
    model.encoder.norm, model.fc_norm = model.fc_norm, nn.Identity()


def untransposed_projection(model: VisionTransformer) -> None:
    model.encoder.blocks[0].attn.proj.weight.data = model.encoder.blocks[0].attn.proj.weight.data.T


MISTAKES = [
    *[(name, nothing_wrong) for name in ("timm", "vit_jax", "vit_pytorch", "openai_clip")],
    ("timm", swap_queries_and_keys), ("hf_vit", swap_queries_and_keys), ("timm", other_eps), ("hf_vit", other_eps),
    ("openai_clip", other_gelu), ("vit_jax", other_gelu), ("torchvision", other_gelu),
    ("dinov2_swiglu_chunked", other_gate),
    ("vit_pytorch", other_flatten_order), ("simple_vit", other_order_of_the_patch_norm), ("vit_jax", columns_first),
    ("timm", cls_with_another_position), ("big_vision", shifted_positions), ("simple_vit", more_heads),
    ("dinov2", no_layer_scale), ("vit_jax_hidden_head", no_tanh), ("deit_distilled", registers_in_another_order),
    ("timm_average", norm_before_pooling), ("vit_jax", untransposed_projection),
]  # fmt: skip


@pytest.mark.parametrize(("name", "damage"), MISTAKES, ids=lambda x: x if isinstance(x, str) else x.__name__)
@torch.no_grad()
def test_a_mistake_would_show(name, damage, tmp_path):
    """Negative controls: each mistake that a loader may make moves the float64 logits past the tolerance."""
    reference = make_reference(name, SIZE, torch.float64, tmp_path)
    model, images = load(reference), images_of(SIZE, torch.float64)
    damage(model)
    difference = (model(images) - reference.logits(images)).abs().max()
    assert (difference < 1e-8) == (damage is nothing_wrong), f"{damage.__name__}: {difference:.1e}"


@pytest.mark.parametrize("rule", ["bicubic", "bicubic_offset", "bicubic_corners", "bilinear_corners"])
@torch.no_grad()
def test_another_rule_of_resizing_would_show(rule):
    reference, theirs = resized_timm((8, 8), torch.float64)
    images = images_of((8, 8), torch.float64)
    difference = (load(reference, image_size=8, pos_resampling=rule)(images) - theirs(images)).abs().max()
    assert difference > 1e-4


def test_every_format_is_compared(tmp_path):
    compared = {make_reference(name, SIZE, torch.float32, tmp_path).format for name in REFERENCES}
    assert compared == set(FORMATS) - {"vit"}  # which is this library's own


def test_files_of_torchvisions_first_releases_are_read():
    """Its published weights have the older names, which its own network renames as it loads them."""
    theirs = make_torchvision(SIZE, torch.float32)
    old = {
        name.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): tensor
        for name, tensor in theirs.state_dict().items()
    }
    assert old.keys() != theirs.state_dict().keys()
    images = images_of(SIZE, torch.float32)
    model = load_weights(None, {"state_dict": old}, num_heads=4, report=None)
    torch.testing.assert_close(model(images), theirs(images), rtol=0, atol=1e-5)
