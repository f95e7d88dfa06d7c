"""Attention maps: against transformers' and timm's own on the same weights, and what recording must leave as it was."""

import re
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from conftest import randomize
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor, nn

from vit.analysis import attention
from vit.analysis.attention import attention_from, attention_maps, record_attention
from vit.analysis.explain import explain
from vit.analysis.inputs import prepare_images
from vit.analysis.layout import TokenLayout, blocks_of, layer_indices, pooled_row, token_layout
from vit.config import ViTConfig
from vit.model.transformer import Attention
from vit.model.vision_transformer import VisionTransformer

SIZES = {"image_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2, "mlp_ratio": 2.0}
FORMS = {
    "learned": {},
    "sincos2d": {"pos_embed": "sincos2d"},
    "rope": {"pos_embed": "rope"},
    "none": {"pos_embed": "none"},
    "registers": {"num_registers": 3},
    "mean": {"pool": "mean"},
    "mean with registers": {"pool": "mean", "num_registers": 2, "pos_embed": "rope"},
    "non-square": {"image_size": (8, 20)},
    "qk norm and layer scale": {"qk_norm": True, "layer_scale": 0.5, "qkv_bias": False},
}


def our_model(**changes) -> VisionTransformer:
    return randomize(VisionTransformer(ViTConfig(**(SIZES | changes)))).eval()


def timm_model(**options) -> nn.Module:
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2, "mlp_ratio": 2.0}
    return randomize(timm.create_model("vit_tiny_patch16_224", num_classes=10, **(sizes | options))).eval()


def random_images(size: tuple[int, int] = (16, 16), count: int = 2) -> Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(1))


def is_untouched(model: nn.Module) -> bool:
    return not any("forward" in vars(m) or m._forward_pre_hooks or m._forward_hooks for m in model.modules())


# The maps of other libraries


def transformers_weights(model: VisionTransformer) -> dict[str, Tensor]:
    """The weights of our model under the names of transformers' ViTModel; its table has a slot for CLS as well."""
    state, renamed = model.state_dict(), {}
    for name, tensor in state.items():
        name = name.replace("encoder.blocks", "layers").replace("encoder.norm", "layernorm")
        name = name.replace("norm1", "layernorm_before").replace("norm2", "layernorm_after")
        name = name.replace("patch_embed.proj", "embeddings.patch_embeddings.projection")
        if ".attn.qkv." in name:
            for part, values in zip("qkv", tensor.chunk(3), strict=True):
                renamed[name.replace("attn.qkv", f"attention.{part}_proj")] = values
        elif not name.startswith(("head", "pos_embed", "cls_token")):
            renamed[name.replace("attn.proj", "attention.o_proj")] = tensor
    renamed["embeddings.cls_token"] = state["cls_token"]
    renamed["embeddings.position_embeddings"] = nn.functional.pad(state["pos_embed"], (0, 0, 1, 0))
    return renamed


def test_maps_equal_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    model = our_model()
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=4,
        layer_norm_eps=1e-6,
        attn_implementation="eager",
    )
    theirs = transformers.ViTModel(config, add_pooling_layer=False).eval()
    theirs.load_state_dict(transformers_weights(model))
    with torch.no_grad():
        output = theirs(random_images(), output_attentions=True)
    torch.testing.assert_close(model.forward_features(random_images()), output.last_hidden_state, rtol=0, atol=1e-5)
    maps = attention_maps(model, random_images())
    assert maps.shape == (3, 2, 2, 17, 17)
    torch.testing.assert_close(maps, torch.stack(output.attentions), rtol=0, atol=1e-5)
    assert (maps[0] - maps[1]).abs().max() > 0.05, "layers too alike to be told apart"
    assert (maps[:, :, 0] - maps[:, :, 1]).abs().max() > 0.05, "heads too alike to be told apart"


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_maps_of_a_timm_model_equal_ours_and_timms_own_softmax(pool):
    """The same weights in both; and timm's plain attention, followed to its softmax from the tokens of each block."""
    options = {} if pool == "cls" else {"global_pool": "avg", "class_token": False, "fc_norm": False}
    theirs = timm_model(no_embed_class=True, **options)
    ours = our_model(pool=pool, head="linear")
    state = {re.sub("^(blocks|norm)", r"encoder.\1", name): tensor for name, tensor in theirs.state_dict().items()}
    ours.load_state_dict(state)
    images = random_images()
    torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=1e-5)
    maps = attention_maps(theirs, images)
    torch.testing.assert_close(maps, attention_maps(ours, images), rtol=0, atol=1e-5)
    tokens = theirs.norm_pre(theirs._pos_embed(theirs.patch_embed(images)))
    for block, found in zip(theirs.blocks, maps, strict=True):
        q, k, _ = block.attn.qkv(block.norm1(tokens)).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        torch.testing.assert_close(found, (q @ k.mT / 8**0.5).softmax(-1), rtol=0, atol=1e-5)
        tokens = block(tokens)


# What holds for all forms


@pytest.mark.parametrize("form", FORMS)
def test_maps_are_what_every_form_computes_with(form):
    """Rows sum to 1, and the maps times the values, through the projection, are what the fused kernel gives."""
    model = our_model(**FORMS[form])
    images = random_images(model.config.image_size)
    layout = token_layout(model)
    maps = attention_maps(model, images)
    assert maps.shape == (3, 2, 2, layout.num_tokens, layout.num_tokens) and (maps >= 0).all()
    torch.testing.assert_close(maps.sum(-1), torch.ones(maps.shape[:-1]))
    tokens, rope = model.embed(images)
    for block, weights in zip(model.encoder.blocks, maps, strict=True):
        x = block.norm1(tokens)
        v = block.attn.qkv(x).unflatten(-1, (3, 2, 8))[:, :, 2].transpose(1, 2)
        explicit = block.attn.proj((weights @ v).transpose(1, 2).flatten(2))
        torch.testing.assert_close(explicit, block.attn(x, rope), rtol=0, atol=1e-5)
        tokens = block(tokens, rope)


@pytest.mark.parametrize("form", FORMS)
def test_recording_changes_no_bit_of_the_forward_pass(form):
    model = our_model(**FORMS[form])
    images = random_images(model.config.image_size)
    plain = model(images)
    with record_attention(model) as maps:
        assert torch.equal(model(images), plain)
    assert list(maps) == [0, 1, 2] and not any(m.requires_grad for m in maps.values())
    with record_attention(model, with_grad=True) as with_grad:
        torch.testing.assert_close(model(images), plain, rtol=0, atol=1e-5)
    for i in range(3):
        assert with_grad[i].requires_grad
        torch.testing.assert_close(with_grad[i], maps[i], rtol=0, atol=1e-5)
    assert is_untouched(model) and torch.equal(model(images), plain)


@pytest.mark.parametrize("with_grad", [False, True])
@pytest.mark.parametrize("is_bool", [True, False])
def test_a_mask_is_honored(is_bool, with_grad):
    model = our_model()
    tokens, rope = model.embed(random_images())
    allowed = torch.ones(17, 17, dtype=torch.bool).tril()
    mask = allowed if is_bool else torch.zeros(17, 17).masked_fill(~allowed, -torch.inf)
    plain = model.encoder(tokens, rope, mask)
    with record_attention(model, with_grad=with_grad) as maps:
        torch.testing.assert_close(model.encoder(tokens, rope, attn_mask=mask), plain, rtol=0, atol=1e-5)
        first = model.encoder(tokens, rope, mask, num_outputs=1)
    torch.testing.assert_close(first, plain[:, :1], rtol=0, atol=1e-5)
    for weights in maps.values():
        assert weights.shape == (2, 2, 17, 17), "all rows, also where the last block computes only one"
        assert (weights[..., ~allowed] == 0).all() and (weights[..., allowed] > 0).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 17))


# Layers, heads and modes


def test_layers_and_heads_are_chosen_by_number():
    model = our_model()
    images = random_images()
    maps = attention_maps(model, images)
    assert torch.equal(attention_maps(model, images, -1), maps[2:])
    assert torch.equal(attention_maps(model, images, [2, 0], heads=1), maps[[2, 0]][:, :, [1]])
    assert torch.equal(attention_maps(model, images, -3, heads=[1, 0]), maps[:1, :, [1, 0]])
    assert torch.equal(attention_maps(model, images, np.arange(2), np.int64(0)), maps[:2, :, :1])
    with record_attention(model, layers=-2) as recorded:
        model(images)
    assert list(recorded) == [1] and torch.equal(recorded[1], maps[1])


@pytest.mark.parametrize("layers", [3, -4, [0, 7], [], 1.0])
def test_a_layer_or_head_that_is_not_there_is_named(layers):
    model = our_model()
    for attempt in (lambda: attention_maps(model, "no work is done before", layers), lambda: recording(model, layers)):
        with pytest.raises(ValueError, match=rf"layers={re.escape(repr(layers))} must be among 0\.\.2"):
            attempt()
    with pytest.raises(ValueError, match=r"heads=5 must be among 0\.\.1"):
        attention_maps(model, "no work is done before", heads=5)
    assert is_untouched(model)


def recording(model: nn.Module, layers=None, **options) -> None:
    with record_attention(model, layers, **options):
        model(random_images())


@pytest.mark.parametrize("make", [our_model, timm_model])
@pytest.mark.parametrize("with_grad", [False, True])
def test_maps_are_those_before_dropout(make, with_grad):
    """timm's fused kernel drops out of sight, so its plain path must be recorded before its dropout, too."""
    model = make(**({"attn_drop_rate": 0.5} if make is our_model else {"attn_drop_rate": 0.5, "drop_path_rate": 0.1}))
    images = random_images()
    expected = attention_maps(model, images)
    model.train()
    asked_in_training = attention_maps(model, images)
    assert torch.equal(asked_in_training, expected) and model.training
    with record_attention(model, with_grad=with_grad) as maps:
        logits = model(images)
    torch.testing.assert_close(maps[0], expected[0], rtol=0, atol=1e-6)
    assert not torch.allclose(maps[2], expected[2]), "dropout must still reach the tokens of later layers"
    assert not torch.equal(logits, model(images)), "and the forward pass"


def test_dropout_acts_on_the_recorded_probabilities():
    """With maps in the computation, dropout zeroes half of them and doubles the others, as the fused kernel does."""
    model = our_model(attn_drop_rate=0.5, depth=1).train()
    attn = model.encoder.blocks[0].attn
    nn.init.eye_(attn.proj.weight)
    nn.init.zeros_(attn.proj.bias)
    x = torch.randn(1, 17, 16)
    with record_attention(model, with_grad=True) as maps:
        outputs = torch.stack([attn(x) for _ in range(1500)])
    v = attn.qkv(x).unflatten(-1, (3, 2, 8))[:, :, 2].transpose(1, 2)
    mean = (maps[0] @ v).transpose(1, 2).flatten(2)
    variance = (maps[0] ** 2 @ v**2).transpose(1, 2).flatten(2)
    assert ((outputs.mean(0) - mean).abs() < 6 * (variance / 1500).sqrt()).all()
    torch.testing.assert_close(outputs.var(0), variance, rtol=0.35, atol=1e-4)


# Nothing is left behind


@pytest.mark.parametrize("with_grad", [False, True])
def test_nothing_is_left_behind_after_an_error(with_grad):
    model = our_model()
    with pytest.raises(KeyError, match="mine"), record_attention(model, with_grad=with_grad):
        raise KeyError("mine")
    with pytest.raises(ValueError, match="images are 8x8 pixels"), record_attention(model, with_grad=with_grad):
        model(random_images((8, 8)))
    assert is_untouched(model)
    model.train()
    with pytest.raises(ValueError, match="images are 8x8 pixels"):
        attention_maps(model, random_images((8, 8)))
    assert is_untouched(model) and model.training


@pytest.mark.parametrize("was_fused", [True, False])
@pytest.mark.parametrize("with_grad", [False, True])
def test_timms_kernel_is_given_back(was_fused, with_grad):
    model = timm_model()
    for block in model.blocks:
        block.attn.fused_attn = was_fused
    images = random_images()
    plain = model(images)
    with record_attention(model, with_grad=with_grad) as maps:
        torch.testing.assert_close(model(images), plain, rtol=0, atol=1e-5)
    assert all(m.requires_grad == with_grad for m in maps.values())
    with pytest.raises(KeyError), record_attention(model, with_grad=with_grad):
        assert not any(block.attn.fused_attn for block in model.blocks)
        raise KeyError
    assert [block.attn.fused_attn for block in model.blocks] == [was_fused] * 3 and is_untouched(model)


def test_recorders_may_be_nested():
    model = our_model()
    images = random_images()
    with record_attention(model, with_grad=True) as outer:
        with record_attention(model, with_grad=True) as inner:
            model(images)
        assert not outer
        model(images)
    with record_attention(model, with_grad=True) as outer, record_attention(model) as also:
        model(images)
    torch.testing.assert_close(inner[2], outer[2])
    torch.testing.assert_close(inner[2], also[2], rtol=0, atol=1e-5)
    assert is_untouched(model)


# torch.compile


def test_compiled_models():
    model = our_model()
    images = random_images()
    expected = attention_maps(model, images)
    wrapped = torch.compile(model, backend="eager")
    with torch.no_grad():
        wrapped(images)
        assert torch.equal(attention_maps(wrapped, images), expected)
        message = r"layers \[0, 1, 2\].*model\._orig_mod.*force_eager"
        with pytest.raises(RuntimeError, match=message), record_attention(wrapped):
            wrapped(images)
        with record_attention(wrapped) as maps:
            wrapped._orig_mod(images)
        assert torch.equal(torch.stack(list(maps.values())), expected)
        model.compile(backend="eager")
        model(images)
        assert torch.equal(attention_maps(model, images), expected)
        with torch.compiler.set_stance("force_eager"), record_attention(model) as maps:
            model(images)
        assert torch.equal(torch.stack(list(maps.values())), expected)
    assert is_untouched(model)


def test_a_block_that_is_compiled_alone_is_named():
    model = our_model()
    images = random_images()
    expected = attention_maps(model, images)
    model.encoder.blocks[1].compile(backend="eager")
    with torch.no_grad():
        model(images)
    with pytest.raises(RuntimeError, match=r"no attention was recorded for layers \[1\].*force_eager"):
        attention_maps(model, images)
    with torch.compiler.set_stance("force_eager"):
        assert torch.equal(attention_maps(model, images), expected)


def test_a_recorder_that_saw_nothing_says_so():
    message = r"layers \[0, 1, 2\]: no forward pass reached them inside the `with`"
    with pytest.raises(RuntimeError, match=message), record_attention(our_model()):
        pass


# Memory


@pytest.mark.parametrize(
    ("given", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_maps_are_of_a_type_that_arrays_have(given, expected):
    model = our_model().to(given)
    maps = attention_maps(model, random_images())
    with record_attention(model) as recorded:
        model(random_images().to(given))
    assert maps.dtype == expected and torch.equal(maps[0], recorded[0].to(expected))
    assert maps.numpy().shape == maps.shape


def test_the_warning_of_large_maps_names_their_size_before_any_work(monkeypatch):
    model = our_model()
    images = random_images(count=100)
    size = 3 * 100 * 2 * 17 * 17 * 4
    forward = model.forward

    def counted(*args):
        calls.append(args)
        return forward(*args)

    monkeypatch.setattr(model, "forward", counted)
    calls = []
    monkeypatch.setattr(attention, "LARGE_MAPS", size)
    attention_maps(model, images)
    assert len(calls) == 1
    monkeypatch.setattr(attention, "LARGE_MAPS", size - 1)
    # Warnings are errors in these tests, so the call ends where it warns.
    with pytest.raises(UserWarning, match=r"3 layers x 100 images x 2 heads of 17x17 tokens take 1 MB; choose fewer"):
        attention_maps(model, images)
    assert len(calls) == 1, "warned too late"
    attention_maps(model, images, layers=-1)


def test_the_device_that_keeps_the_maps_is_chosen():
    model, images = our_model(), random_images()
    assert attention_maps(model, images).device.type == "cpu"
    kept = attention_maps(model, images, to="meta")
    assert kept.device.type == "meta" and kept.shape == (3, len(images), 2, 17, 17)


def test_only_the_layers_asked_for_are_kept():
    model = our_model()
    with record_attention(model, [1]) as maps:
        model(random_images())
        assert set(maps) == {1}
    assert attention_maps(model, random_images(), 1).shape == (1, 2, 2, 17, 17)


# The layout of tokens


def test_a_layout_says_where_patches_are():
    layout = token_layout(our_model(image_size=(8, 20), num_registers=2))
    assert layout == TokenLayout((8, 20), (2, 5), (4, 4), 3, True, "cls")
    assert (layout.num_patches, layout.num_tokens) == (10, 13)
    values = torch.arange(13.0)  # each token's own number
    grid = layout.to_grid(values)
    for row in range(2):
        for column in range(5):
            assert layout.token_idx((row, column)) == grid[row, column] == 3 + 5 * row + column
    assert torch.equal(layout.to_grid(values[3:]), grid)
    assert layout.to_grid(torch.zeros(7, 2, 13)).shape == (7, 2, 2, 5)
    assert layout.token_idx("cls") == 0 and layout.token_idx(12) == layout.token_idx(np.int64(12)) == 12
    place = np.unravel_index(7, layout.grid_size)
    assert layout.token_idx(place) == 10 and type(layout.token_idx(place)) is int


def test_layouts_of_timm_models():
    cls = token_layout(timm_model(img_size=(8, 20)))
    assert cls == TokenLayout((8, 20), (2, 5), (4, 4), 1, True, "cls")
    registers = token_layout(timm_model(reg_tokens=4, global_pool="avg"))
    assert registers == TokenLayout((16, 16), (4, 4), (4, 4), 5, True, "mean")
    mean = token_layout(timm_model(global_pool="avg", class_token=False))
    assert mean == TokenLayout((16, 16), (4, 4), (4, 4), 0, False, "mean")
    ours = token_layout(our_model(pool="mean", num_registers=2))
    assert ours == TokenLayout((16, 16), (4, 4), (4, 4), 2, False, "mean")


def test_heads_of_timm_that_read_something_else_are_not_called_a_mean():
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 3}
    distilled = randomize(VisionTransformerDistilled(**sizes)).eval()
    layout = token_layout(distilled)
    assert layout == TokenLayout((16, 16), (4, 4), (4, 4), 2, True, "cls_register")
    maps = attention_maps(distilled, random_images())[0]  # (B, h, T, T)
    both = maps[..., :2, 2:].mean(dim=-2).unflatten(-1, (4, 4))
    torch.testing.assert_close(attention_from(maps, layout), both)
    whole = {"pool_include_prefix": True, "global_pool": "avg"}
    for options in ({"global_pool": "max"}, {"global_pool": "avgmax"}, {"global_pool": "map"}, whole):
        model = randomize(timm.models.VisionTransformer(**(sizes | {"fc_norm": False} | options))).eval()
        maps, layout = attention_maps(model, random_images())[0], token_layout(model)
        with pytest.raises(TypeError, match=f"reads global_pool='{options['global_pool']}.* is not supported here"):
            attention_from(maps, layout)
        assert attention_from(maps, layout, (0, 0)).shape == (2, 2, 4, 4), "what one patch attends to is always known"


def test_a_token_that_is_not_there_is_named():
    layout = TokenLayout((8, 20), (2, 5), (4, 4), 2, False, "mean")
    with pytest.raises(ValueError, match='query="cls": this model has no CLS token'):
        layout.token_idx("cls")
    for query in ((2, 0), (0, 5), (-1, 0), (0.5, 1), (1,), (1, 2, 3)):
        with pytest.raises(ValueError, match=rf"query={re.escape(str(query))} is outside the 2x5 patches"):
            layout.token_idx(query)
    for query in (12, -1, 1.0, "first", [0, 1], None):
        with pytest.raises(ValueError, match=rf"query={re.escape(repr(query))} must be .* 0..11"):
            layout.token_idx(query)
    with pytest.raises(ValueError, match=r"shape \(3, 11\) are neither 12 tokens nor 10 patches"):
        layout.to_grid(torch.zeros(3, 11))


def test_the_pooled_row_is_what_the_head_reads():
    maps = torch.rand(2, 7, 7)
    cls = TokenLayout((8, 8), (2, 2), (4, 4), 3, True, "cls")
    mean = TokenLayout((8, 8), (2, 2), (4, 4), 3, True, "mean")
    assert torch.equal(pooled_row(maps, cls), maps[:, 0])
    of_patches = (maps[:, 3] + maps[:, 4] + maps[:, 5] + maps[:, 6]) / 4
    torch.testing.assert_close(pooled_row(maps, mean), of_patches)
    torch.testing.assert_close(pooled_row(maps, replace(cls, pool="cls_mean")), maps[:, 0] / 2 + of_patches / 2)
    torch.testing.assert_close(pooled_row(maps, replace(cls, pool="cls_register")), maps[:, 0] / 2 + maps[:, 1] / 2)


def test_attention_from_one_token_is_its_row_without_the_prefix():
    layout = TokenLayout((8, 8), (2, 2), (4, 4), 3, True, "mean")
    maps = torch.arange(2 * 49.0).view(2, 7, 7)  # entry (i, j) of the first map is 7 i + j
    assert attention_from(maps, layout, "cls")[0].tolist() == [[3, 4], [5, 6]]
    assert attention_from(maps, layout, (1, 0))[0].tolist() == [[38, 39], [40, 41]]
    assert attention_from(maps, layout, 2)[1].tolist() == [[66, 67], [68, 69]]
    assert attention_from(maps, layout)[0].tolist() == [[34.5, 35.5], [36.5, 37.5]]


def test_layer_indices_count_from_either_end():
    assert layer_indices(None, 3) == [0, 1, 2]
    assert layer_indices(-1, 3) == [2]
    assert layer_indices((0, -3, 2), 3) == [0, 0, 2]


def test_other_models_are_refused():
    with pytest.raises(TypeError, match="Linear has no patch_embed"):
        token_layout(nn.Linear(2, 2))
    swin = timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1))
    with pytest.raises(TypeError, match="SwinTransformer has no num_prefix_tokens: no plain Vision Transformer"):
        token_layout(swin)
    with pytest.raises(ValueError, match=r"images are 8x8 pixels, .* for 16x16: .* vit.data.resize\(data, \(16, 16"):
        attention_maps(timm_model(), random_images((8, 8)))
    with pytest.raises(TypeError, match="Linear has no blocks with an attention"):
        blocks_of(nn.Linear(2, 2))
    model = our_model()
    model.encoder.blocks[1].attn = nn.MultiheadAttention(16, 2)
    with pytest.raises(TypeError, match=r"layer 1: torch\.nn.*MultiheadAttention is neither"):
        recording(model)
    assert is_untouched(model)


class Biased(Attention):
    """Adds the same to the scores of every image, as relative positions do."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__(dim, num_heads)
        self.register_buffer("bias", 3 * torch.randn(17, 17, generator=torch.Generator().manual_seed(2)))

    def forward(self, x, rope=None, attn_mask=None, num_outputs=None) -> Tensor:
        return super().forward(x, rope, self.bias, num_outputs)


class BiasedWithWeights(Biased):
    def weights(self, x, rope=None, attn_mask=None) -> Tensor:
        return super().weights(x, rope, self.bias)


class Renamed(Attention):
    """What sharding and parametrizations make of a class: another, with the same methods."""


@pytest.mark.parametrize("kind", [Biased, BiasedWithWeights])
def test_an_attention_that_computes_otherwise_is_refused_unless_it_gives_its_own_maps(kind):
    model, images = our_model(), random_images()
    model.encoder.blocks[1].attn = own = randomize(kind(16, 2)).eval()
    named = rf"layer 1: .*\.{kind.__name__} has a `forward` of its own"
    for look in (explain, lambda *_: recording(model, with_grad=True)):
        with pytest.raises(TypeError, match=f"{named}, which with_grad=True would replace"):
            look(model, images)
    assert is_untouched(model)
    if kind is Biased:
        with pytest.raises(TypeError, match=f"{named}.*give it a method `weights`"):
            attention_maps(model, images)
        assert attention_maps(model, images, [0, 2]).shape == (2, 2, 2, 17, 17), "the others compute as ever"
        return
    tokens, _ = model.embed(images)
    x = model.encoder.blocks[1].norm1(model.encoder.blocks[0](tokens))
    v = own.qkv(x).unflatten(-1, (3, 2, 8))[:, :, 2].transpose(1, 2)
    weights = attention_maps(model, images, 1)[0]
    torch.testing.assert_close(own.proj((weights @ v).transpose(1, 2).flatten(2)), own(x), rtol=0, atol=1e-5)


def test_a_subclass_with_the_same_forward_is_recorded():
    model, images = our_model(), random_images()
    maps, logits = attention_maps(model, images), model(images)
    model.encoder.blocks[1].attn.__class__ = Renamed
    assert torch.equal(attention_maps(model, images), maps)
    with record_attention(model, with_grad=True):
        torch.testing.assert_close(model(images), logits, rtol=0, atol=1e-5)


# Images


def test_uint8_images_are_normalized_as_the_model_says():
    pictures = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    ours, theirs = our_model(), timm_model()
    ours.metadata = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}
    facts = theirs.pretrained_cfg
    assert len(facts["mean"]) == len(facts["std"]) == 3
    theirs.pretrained_cfg = {**facts, "mean": (0.1, 0.2, 0.3), "std": (0.3, 0.2, 0.1), "crop_pct": 1.0}
    for model, known in ((ours, ours.metadata), (theirs, theirs.pretrained_cfg)):
        mean, std = (np.array(known[key])[:, None, None] for key in ("mean", "std"))
        normalized = torch.from_numpy((pictures.numpy() / 255 - mean) / std).float()
        torch.testing.assert_close(prepare_images(model, pictures), normalized)
        maps = attention_maps(model, pictures)
        torch.testing.assert_close(maps, attention_maps(model, normalized), rtol=0, atol=1e-5)
        arrays = [picture.permute(1, 2, 0).numpy() for picture in pictures]
        torch.testing.assert_close(maps, attention_maps(model, arrays), rtol=0, atol=1e-5)
    ours.metadata = {}
    with pytest.raises(ValueError, match=r"set model\.metadata = data\.metadata"):
        attention_maps(ours, pictures)
