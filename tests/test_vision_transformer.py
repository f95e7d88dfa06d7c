"""The whole model: parity with timm, symmetries it must and must not have, gradients, counts, frozen names."""

import copy
import json
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import randomize
from torch import Tensor, nn

import vit
from vit.config import ViTConfig
from vit.model.pos_embed import rope2d_table
from vit.model.vision_transformer import VisionTransformer, check_plain
from vit.tasks import fine_tuning, lora, mae, prompts

GOLDEN = Path(__file__).parent / "golden"
VARIANTS = {
    "paper": {},
    "mean": {"pool": "mean", "head": "linear"},
    "sincos2d": {"pos_embed": "sincos2d"},
    "rope": {"pos_embed": "rope"},
    "none": {"pos_embed": "none"},
    "modern": {"num_registers": 2, "qk_norm": True, "layer_scale": 0.1, "qkv_bias": False},
    "non_square": {"image_size": (8, 12), "num_registers": 1},
    "clip": {"pre_norm": True, "act": "quick_gelu", "norm_eps": 1e-5, "head": "linear"},
    "norms": {"pool": "mean", "fc_norm": True, "patch_norm": True, "act": "gelu_tanh"},
    "two_tokens": {"pool": "cls_register", "num_registers": 2, "act": "swiglu", "head": "linear"},
    "cls_and_mean": {"pool": "cls_mean", "num_registers": 1, "layer_scale": 0.1},
}


@pytest.fixture(params=VARIANTS)
def config(request, tiny) -> ViTConfig:
    return replace(tiny, **VARIANTS[request.param])


def images_for(config: ViTConfig, batch: int = 3, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, config.in_chans, *config.image_size, generator=generator, dtype=torch.float64).to(dtype)


# --- parity with timm ---------------------------------------------------------------------------------------------

TIMM_CASES = {
    "paper": (
        ViTConfig(image_size=16, embed_dim=24, depth=3, num_heads=3, head="linear"),
        {},
    ),
    "registers_qk_norm_layer_scale": (
        ViTConfig(
            image_size=16, embed_dim=24, depth=3, num_heads=3, head="linear", num_registers=4, qk_norm=True,
            layer_scale=0.5, qkv_bias=False,
        ),
        {"no_embed_class": True, "reg_tokens": 4, "qk_norm": True, "init_values": 0.5, "qkv_bias": False},
    ),
    "mean_pooled_non_square": (
        ViTConfig(image_size=(12, 20), embed_dim=32, depth=2, num_heads=4, head="linear", pool="mean", mlp_ratio=2.0),
        {"class_token": False, "global_pool": "avg", "fc_norm": False, "mlp_ratio": 2.0},
    ),
}  # fmt: skip


def timm_model(config: ViTConfig, options: dict, dtype: torch.dtype) -> nn.Module:
    model = timm.models.VisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.embed_dim,
        depth=config.depth,
        num_heads=config.num_heads,
        num_classes=config.num_classes,
        **options,
    )
    return randomize(model.to(dtype)).eval()


def from_timm(config: ViTConfig, theirs: nn.Module) -> VisionTransformer:
    """timm's weights in our model: the encoder's names get a prefix, the position slot of CLS goes into `cls_token`."""
    state = {}
    for name, tensor in theirs.state_dict().items():
        state["encoder." + name if name.startswith(("blocks.", "norm.")) else name] = tensor.clone()
    if state["pos_embed"].shape[1] == config.num_patches + 1:
        state["cls_token"] += state["pos_embed"][:, :1]
        state["pos_embed"] = state["pos_embed"][:, 1:]
    ours = VisionTransformer(config).to(next(theirs.parameters()).dtype).eval()
    ours.load_state_dict(state)
    return ours


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-8)])
@pytest.mark.parametrize("case", TIMM_CASES)
def test_parity_with_timm(case, dtype, tolerance):
    config, options = TIMM_CASES[case]
    theirs = timm_model(config, options, dtype)
    ours = from_timm(config, theirs)
    x, y = (images_for(config, dtype=dtype).requires_grad_() for _ in range(2))
    expected, logits = theirs(x), ours(y)
    assert expected.std() > 0.1, "the weights must matter"
    torch.testing.assert_close(logits, expected, rtol=0, atol=tolerance)
    expected.square().sum().backward()
    logits.square().sum().backward()
    torch.testing.assert_close(y.grad, x.grad, rtol=0, atol=100 * tolerance)


def break_nothing(model: VisionTransformer) -> None:
    pass


def swap_queries_and_keys(model: VisionTransformer) -> None:
    for block in model.encoder.blocks:
        q, k, v = block.attn.qkv.weight.data.chunk(3)
        block.attn.qkv.weight.data = torch.cat([k, q, v])


def change_norm_eps(model: VisionTransformer) -> None:
    model.encoder.norm.eps = 1e-12


def approximate_gelu(model: VisionTransformer) -> None:
    for block in model.encoder.blocks:
        block.mlp.act = nn.GELU(approximate="tanh")


def transpose_patches(model: VisionTransformer) -> None:
    model.patch_embed.proj.weight.data = model.patch_embed.proj.weight.data.transpose(2, 3).contiguous()


def shift_positions(model: VisionTransformer) -> None:
    model.pos_embed.data = model.pos_embed.data.roll(1, dims=1)


@pytest.mark.parametrize(
    "damage",
    [break_nothing, swap_queries_and_keys, change_norm_eps, approximate_gelu, transpose_patches, shift_positions],
)
def test_the_parity_check_sees_every_mistake(damage):
    """Negative controls: each small mistake must move the float64 logits past the tolerance."""
    config, options = TIMM_CASES["paper"]
    theirs = timm_model(config, options, torch.float64)
    ours = from_timm(config, theirs)
    damage(ours)
    x = images_for(config, dtype=torch.float64)
    difference = (ours(x) - theirs(x)).abs().max()
    assert (difference < 1e-8) == (damage is break_nothing), f"{damage.__name__}: {difference:.1e}"


# --- symmetries ---------------------------------------------------------------------------------------------------


def shuffle_patches(images: Tensor, config: ViTConfig) -> tuple[Tensor, Tensor]:
    from vit.model.patch_embed import patchify, unpatchify

    order = torch.randperm(config.num_patches, generator=torch.Generator().manual_seed(0))
    patches = patchify(images, config.patch_size)[:, order]
    return unpatchify(patches, config.grid_size, config.patch_size), order


def test_positions_decide_whether_the_order_of_patches_matters(config):
    model = randomize(VisionTransformer(config).double()).eval()
    images = images_for(config, dtype=torch.float64)
    shuffled, order = shuffle_patches(images, config)
    same = torch.allclose(model(images), model(shuffled), rtol=0, atol=1e-10)
    assert same == (config.pos_embed == "none")
    if config.pos_embed == "none":
        prefix = config.num_prefix_tokens
        tokens, expected = model.forward_features(shuffled)[:, prefix:], model.forward_features(images)[:, prefix:]
        torch.testing.assert_close(tokens, expected[:, order], rtol=0, atol=1e-10)


def test_each_image_is_judged_alone(config):
    model = randomize(VisionTransformer(config).double()).eval()
    images = images_for(config, dtype=torch.float64)
    together = model(images)
    for i in range(len(images)):
        torch.testing.assert_close(model(images[i : i + 1]), together[i : i + 1], rtol=0, atol=1e-12)
    assert model(images[:0]).shape == (0, config.num_classes)


def test_precision(config):
    single = randomize(VisionTransformer(config)).eval()
    double = randomize(VisionTransformer(config).double()).eval()
    difference = single(images_for(config)) - double(images_for(config, dtype=torch.float64))
    assert difference.abs().max() < 1e-5


def test_training_mode_differs_through_dropout_alone(tiny):
    images = images_for(tiny)
    plain = randomize(VisionTransformer(tiny))
    assert torch.equal(plain.train()(images), plain.eval()(images))
    for rate in ("drop_rate", "attn_drop_rate", "drop_path_rate"):
        model = randomize(VisionTransformer(replace(tiny, **{rate: 0.5})))
        assert not torch.allclose(model.train()(images), model.eval()(images)), f"{rate} does nothing"
        assert torch.equal(model.eval()(images), model(images))
        torch.testing.assert_close(model(images), plain.eval()(images))


def test_dropout_stands_behind_every_projection_and_paths_in_both_branches(tiny):
    class Named(nn.Identity):
        """Takes the place of a dropout and writes down when it is called."""

        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, x: Tensor) -> Tensor:
            called.append(self.name)
            return x

    called = []
    model = VisionTransformer(replace(tiny, drop_rate=0.1, drop_path_rate=0.2))
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Dropout):
            assert module.p == 0.1, name
            model.set_submodule(name, Named(name))
    model.train()(images_for(tiny))
    of_block = ("attn.proj_drop", "mlp.drop", "mlp.drop")
    assert called == ["pos_drop", *(f"encoder.blocks.{i}.{part}" for i in range(2) for part in of_block)]
    paths = [path for block in model.encoder.blocks for path in (block.drop_path1, block.drop_path2)]
    assert [getattr(path, "drop_prob", 0) for path in paths] == [0, 0, 0.2, 0.2], "rising with depth"


# --- learning -----------------------------------------------------------------------------------------------------


def test_the_first_loss_is_that_of_a_guess(config):
    logits = VisionTransformer(config)(images_for(config))
    loss = F.cross_entropy(logits, torch.arange(3)).item()
    assert loss == pytest.approx(math.log(10), abs=1e-6)


def test_every_parameter_gets_a_gradient(config):
    model = randomize(VisionTransformer(config))
    F.cross_entropy(model(images_for(config)), torch.arange(3)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, f"{name} has no effect"


def test_gradients_equal_finite_differences():
    config = ViTConfig(image_size=4, patch_size=2, embed_dim=8, depth=2, num_heads=2, num_classes=3, mlp_ratio=1.0)
    model = randomize(VisionTransformer(config).double())
    names = [name for name, _ in model.named_parameters()]

    def logits(images: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(model, dict(zip(names, parameters, strict=True)), (images,))

    inputs = (images_for(config, 1, torch.float64).requires_grad_(), *model.parameters())
    assert torch.autograd.gradcheck(logits, inputs, fast_mode=True)


@pytest.mark.parametrize("labels", ["true", "shuffled"])
def test_32_images_are_learned_by_heart(shapes, labels):
    from vit.data import normalize

    images = normalize(shapes.train.images[:32], shapes.mean, shapes.std)
    targets = shapes.train.labels[:32]
    if labels == "shuffled":
        targets = targets[torch.randperm(32, generator=torch.Generator().manual_seed(1))]
    torch.manual_seed(0)
    model = VisionTransformer(ViTConfig(image_size=16, embed_dim=48, depth=2, num_heads=3, mlp_ratio=2.0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(250):
        loss = F.cross_entropy(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.005:
            break
    logits = model(images)
    assert F.cross_entropy(logits, targets) < 0.01
    assert (logits.argmax(1) == targets).all()


# --- counts, names and stored outputs -----------------------------------------------------------------------------


def hand_count(c: ViTConfig) -> int:
    D, mlp_dim = c.embed_dim, c.mlp_dim
    embedding = 3 * c.patch_size**2 * D + D  # kernel, bias
    embedding += c.num_patches * D if c.pos_embed == "learned" else 0
    embedding += D if c.pool == "cls" else 0
    block = 2 * D + (3 * D * D + 3 * D) + (D * D + D) + 2 * D + (D * mlp_dim + mlp_dim) + (mlp_dim * D + D)
    block += (4 * D // c.num_heads if c.qk_norm else 0) - (0 if c.qkv_bias else 3 * D)
    hidden = D * D + D if c.head == "mlp" else 0
    return embedding + c.depth * block + 2 * D + hidden + D * c.num_classes + c.num_classes


@pytest.mark.parametrize("name", ViTConfig.list_presets())
def test_parameters_of_the_presets_are_as_counted_by_hand(name):
    c = ViTConfig.preset(name)
    with torch.device("meta"):
        model = VisionTransformer(c)
    assert sum(p.numel() for p in model.parameters()) == hand_count(c)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("vit_base_patch16_224", 86.6), ("vit_large_patch16_224", 304.3), ("vit_huge_patch14_224", 632)],
)
def test_the_papers_models_have_the_papers_size(name, millions):
    with torch.device("meta"):
        model = VisionTransformer(ViTConfig.preset(name))
    count = sum(p.numel() for p in model.parameters())
    assert round(count / 1e6, 0 if millions == 632 else 1) == millions
    theirs = timm.create_model(name, num_classes=1000, device="meta")
    cls_position = model.config.embed_dim  # timm's table has a slot for CLS, ours is folded into the token
    assert count == sum(p.numel() for p in theirs.parameters()) - cls_position


def test_names_and_shapes_are_the_frozen_ones(config, request):
    names = {name: list(tensor.shape) for name, tensor in VisionTransformer(config).state_dict().items()}
    check_golden("state_dict.json", request.node.callspec.params["config"], names)


def test_outputs_are_the_stored_ones(config, request):
    """Catches any change of the function computed, wherever it comes from."""
    check_golden("logits.json", request.node.callspec.params["config"], logits_of_fixed_weights(config))


@pytest.mark.parametrize("name", [name for name in ViTConfig.list_presets() if name.endswith("_32")])
def test_outputs_of_the_small_presets_are_the_stored_ones(name):
    check_golden("logits.json", name, logits_of_fixed_weights(ViTConfig.preset(name)))


def logits_of_fixed_weights(config: ViTConfig) -> list[float]:
    """Weights and images from a formula, so that no random generator has a say."""
    model = VisionTransformer(config).double().eval()
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            ramp = torch.arange(parameter.numel(), dtype=torch.float64).reshape(parameter.shape)
            parameter.copy_((ramp * 0.7 + i).sin() * 0.3)
    ramp = torch.arange(2 * 3 * math.prod(config.image_size), dtype=torch.float64)
    logits = model(ramp.sin().reshape(2, 3, *config.image_size))
    return logits.flatten().tolist()


def check_golden(file: str, key: str, value) -> None:
    """Compares with the stored value; VIT_ACCEPT=1 stores a new one instead, on purpose."""
    path = GOLDEN / file
    stored = json.loads(path.read_text()) if path.exists() else {}
    if os.environ.get("VIT_ACCEPT") == "1":
        path.write_text(json.dumps(stored | {key: value}, indent=1) + "\n")
    elif file == "logits.json":
        assert value == pytest.approx(stored[key], abs=1e-9)
    else:
        assert value == stored[key]


# --- other ways in and out ----------------------------------------------------------------------------------------


def test_forward_is_features_then_head(config):
    """`forward` spares the last block what the head does not read; the logits must be those of the whole."""
    model = randomize(VisionTransformer(config).double()).eval()
    images = images_for(config, dtype=torch.float64)
    expected = model.forward_head(model.forward_features(images))
    torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-12)


def test_intermediate_layers(config):
    model = randomize(VisionTransformer(config)).eval()
    images = images_for(config)
    last = model.get_intermediate_layers(images)[0]
    torch.testing.assert_close(last, model.forward_features(images))
    both = model.get_intermediate_layers(images, layers=[0, 1], norm=False)
    torch.testing.assert_close(model.encoder.norm(both[1]), last)
    (maps,) = model.get_intermediate_layers(images, reshape=True)
    assert maps.shape == (3, config.embed_dim, *config.grid_size)
    row, column = config.grid_size[0] - 1, 1
    token = config.num_prefix_tokens + row * config.grid_size[1] + column
    assert torch.equal(maps[:, :, row, column], last[:, token])
    assert torch.equal(model.get_intermediate_layers(images, layers=[-1])[0], last)
    assert torch.equal(model.get_intermediate_layers(images, np.int64(1))[0], last)
    for layers in (0, 3, 4, -1, np.int64(3), [2], [-3], [], None, 1.0, "1", [0.0], ["0"]):
        with pytest.raises(ValueError, match=r"must be a count in 1..2, or indices in 0..1, -1 being the last"):
            model.get_intermediate_layers(images, layers)


def test_dropped_patches_make_no_map(tiny):
    model = randomize(VisionTransformer(tiny))
    model.patch_drop.rate = 0.5
    images, num_patches = images_for(tiny), tiny.num_patches
    assert model.get_intermediate_layers(images)[0].shape[1] == tiny.num_prefix_tokens + num_patches // 2
    with pytest.raises(ValueError, match=r"reshape=True needs all patches, and patch_drop.rate=0.5 .*model.eval\(\)"):
        model.get_intermediate_layers(images, reshape=True)
    assert model.eval().get_intermediate_layers(images, reshape=True)[0].shape[2:] == tiny.grid_size


def test_resized_keeps_the_function_at_the_native_size_and_runs_at_others(config):
    model = randomize(VisionTransformer(config)).eval()
    model.metadata = {"mean": [0.5]}
    images = images_for(config)
    assert torch.equal(model.resized(config.image_size)(images), model(images))
    larger = model.resized((16, 24))
    assert larger.config.grid_size == (4, 6) and larger.metadata == model.metadata and not larger.training
    assert larger(torch.randn(2, 3, 16, 24)).shape == (2, 10)
    with pytest.raises(ValueError, match="not a multiple of patch_size=4"):
        model.resized(18)


def test_no_classes_means_features(tiny):
    model = randomize(VisionTransformer(replace(tiny, num_classes=0)).double()).eval()
    images = images_for(tiny, dtype=torch.float64)
    torch.testing.assert_close(model(images), model.forward_features(images)[:, 0], rtol=0, atol=1e-12)


# A compiler takes seconds, so that each of these has as many of the parts above as go together.
COMPILED = {
    "paper": {},
    "outputs": {
        "pool": "cls_register", "pos_embed": "rope", "num_registers": 2, "qk_norm": True, "qkv_bias": False,
        "layer_scale": 0.1, "act": "swiglu", "head": "linear",
    },
    "mean": {
        "pool": "mean", "pos_embed": "sincos2d", "fc_norm": True, "patch_norm": True, "act": "gelu_tanh",
        "image_size": (8, 12),
    },
    "cls_and_mean": {
        "pool": "cls_mean", "pos_embed": "none", "num_registers": 1, "pre_norm": True, "act": "quick_gelu",
        "norm_eps": 1e-5,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", COMPILED)
def test_a_compiled_model_computes_the_same(tiny, name):  # one that was exported: test_export.py
    model = randomize(VisionTransformer(replace(tiny, **COMPILED[name]))).eval()
    images = images_for(model.config)
    expected = model(images)
    # aot_eager traces and differentiates as the default backend does, and needs no C++ compiler.
    torch.testing.assert_close(torch.compile(model, backend="aot_eager")(images), expected)


def test_every_part_is_compiled():
    parts, compiled = ({(k, v) for c in kinds.values() for k, v in c.items()} for kinds in (VARIANTS, COMPILED))
    assert parts <= compiled


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("pos_embed", ["learned", "sincos2d", "rope", "none"])
def test_what_the_blocks_add_up_keeps_the_precision_of_the_weights(tiny, pos_embed, pool):
    """Autocast is for products: sums over all blocks lose more in bfloat16 than one product does."""
    model = VisionTransformer(replace(tiny, pos_embed=pos_embed, pool=pool)).eval()
    with torch.autocast("cpu", torch.bfloat16):
        tokens, rope = model.embed(images_for(model.config))
        assert model.patch_embed(images_for(model.config)).dtype == torch.bfloat16, "a product"
        assert {x.dtype for x in (tokens, *model.encoder.block_outputs(tokens, rope))} == {torch.float32}


def test_a_resized_copy_is_frozen_and_in_training_mode_where_its_original_is(tiny):
    model = VisionTransformer(tiny)
    model.patch_embed.eval().requires_grad_(False)
    learned = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    copy = model.resized(24)
    assert [name for name, parameter in copy.named_parameters() if parameter.requires_grad] == learned
    assert [name for name, part in copy.named_modules() if not part.training] == [
        "patch_embed", "patch_embed.proj", "patch_embed.norm_in", "patch_embed.norm_out"
    ]  # fmt: skip


@pytest.mark.parametrize("is_within", [False, True])
@pytest.mark.parametrize("pos_embed", ["learned", "sincos2d", "rope"])
def test_a_model_without_memory_computes_the_same_once_it_has_weights(tiny, pos_embed, is_within, monkeypatch):
    original = randomize(VisionTransformer(replace(tiny, pos_embed=pos_embed))).eval()
    with torch.device("meta"):
        model = VisionTransformer(original.config).eval()
        outer = nn.Sequential(model) if is_within else model
    # What memory holds that nobody has written to.
    monkeypatch.setattr(torch, "empty_like", lambda tensor, **options: torch.full_like(tensor, math.nan, **options))
    outer.to_empty(device="cpu")
    assert all(parameter.isnan().all() for parameter in model.parameters()), "what is learned comes from the state"
    model.load_state_dict(original.state_dict())
    images = images_for(tiny)
    assert torch.equal(model(images), original(images))


class Negated(VisionTransformer):
    def forward_head(self, tokens: Tensor) -> Tensor:
        return -super().forward_head(tokens)


class WithMethod(VisionTransformer):
    def num_weights(self) -> int:
        return sum(p.numel() for p in self.parameters())


def other_activation(model: VisionTransformer) -> None:
    model.encoder.blocks[0].mlp.act = nn.ReLU()


def other_heads(model: VisionTransformer) -> None:
    attn = model.encoder.blocks[-1].attn
    attn.num_heads, attn.head_dim = 2 * attn.num_heads, attn.head_dim // 2


def other_temperature(model: VisionTransformer) -> None:
    model.rope.copy_(rope2d_table((4, 4), 8, temperature=1e4))


class Slower(VisionTransformer):
    def _fixed_tables(self) -> dict[str, Tensor]:
        return {"rope": rope2d_table((4, 4), 8, temperature=1e4)}


class Later(VisionTransformer):
    def build_positions(self) -> None:
        super().build_positions()
        other_temperature(self)


def one_activation_for_all(model: VisionTransformer) -> None:
    for block in model.encoder.blocks:
        block.mlp.act = model.encoder.blocks[0].mlp.act


def without_dropout(model: VisionTransformer) -> None:
    for name, part in list(model.named_modules()):
        if isinstance(part, nn.Dropout):
            model.set_submodule(name, nn.Identity())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (other_activation, "encoder.blocks.0.mlp.act"),
        (approximate_gelu, "encoder.blocks.0.mlp.act, encoder.blocks.1.mlp.act"),
        (change_norm_eps, "encoder.norm"),
        (Negated, "Negated.forward_head"),
        (other_heads, "encoder.blocks.1.attn"),
    ],
)
def test_a_network_that_its_config_does_not_describe_is_refused(tiny, shapes, change, named):
    kind = change if isinstance(change, type) else VisionTransformer
    plain, model = randomize(VisionTransformer(tiny)).eval(), randomize(kind(tiny)).eval()
    if kind is VisionTransformer:
        change(model)
    images = images_for(tiny)
    assert not torch.equal(model(images), plain(images)), "or it would do no harm"
    remedies = "a model with methods of its own is kept by|its layers were changed after it was built"
    for build in (check_plain, lambda m: m.resized(16), prompts.add, lambda m: fine_tuning.with_new_head(m, shapes)):
        with pytest.raises(ValueError, match=rf"({remedies}).* Not as the config says: {named}$"):
            build(model)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (other_temperature, "rope"),
        (Slower, "Slower._fixed_tables"),
        (Later, "Later.build_positions"),
    ],
)
def test_positions_that_no_file_would_keep_are_refused(tiny, change, named, tmp_path):
    tiny = replace(tiny, pos_embed="rope", image_size=4 * tiny.patch_size)
    kind = change if isinstance(change, type) else VisionTransformer
    plain, model = randomize(VisionTransformer(tiny)).eval(), randomize(kind(tiny)).eval()
    if kind is VisionTransformer:
        change(model)
    assert not torch.equal(model(images_for(tiny)), plain(images_for(tiny))), "or it would do no harm"
    for build in (lambda m: m.resized(16), lambda m: vit.save(m, tmp_path / "m.safetensors")):
        with pytest.raises(ValueError, match=rf"not what its config says, .* Not as the config says: {named}$"):
            build(model)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("pos_embed", ["sincos2d", "rope"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_positions_may_have_been_in_any_precision(tiny, pos_embed, dtype, tmp_path):
    model = randomize(VisionTransformer(replace(tiny, pos_embed=pos_embed))).to(dtype).eval()
    for m in (model, model.resized(24), model.resized(24).resized(tiny.image_size), copy.deepcopy(model).float()):
        loaded = vit.load(vit.save(m, tmp_path / "m.safetensors"))
        images = images_for(m.config).to(loaded.cls_token)
        torch.testing.assert_close(loaded(images), m.to(loaded.cls_token)(images), rtol=0.02, atol=0.02)
    check_plain(VisionTransformer(model.config).to("meta"))


@pytest.mark.parametrize("change", [one_activation_for_all, without_dropout, WithMethod])
def test_what_computes_the_same_is_taken(tiny, change):
    config = replace(tiny, drop_rate=0.1, drop_path_rate=0.2)
    model = randomize((change if isinstance(change, type) else VisionTransformer)(config)).eval()
    if not isinstance(change, type):
        change(model)
    images = images_for(config)
    assert torch.equal(model.resized(config.image_size)(images), model(images))


def test_a_head_of_any_kind_is_taken_where_the_head_is_left_out(tiny, shapes):
    model = VisionTransformer(tiny)
    model.head = nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 3))
    assert fine_tuning.with_new_head(model, shapes).config.num_classes == 10
    with pytest.raises(ValueError, match=r"head was changed .*with_new_head\(model, data\).* says: head"):
        check_plain(model)
    check_plain(fine_tuning.with_new_head(model, shapes))


def test_a_network_around_a_vision_transformer_names_it(tiny):
    model = VisionTransformer(tiny)
    around = nn.ModuleDict({"encoder": nn.ModuleDict({"vit": model}), "head": nn.Linear(16, 4)})
    for whole, found in (
        (nn.Sequential(model, nn.Softmax(dim=1)), r"pass model\.get_submodule\('0'\)"),
        (around, r"pass its \.encoder\.vit"),
        (nn.Sequential(nn.Linear(2, 2)), r"load_weights\(None, model\)"),
        ("a path", r"builtins.str; .*load_weights\(None, model\)"),
    ):
        with pytest.raises(TypeError, match=rf"must be a VisionTransformer of this library, got .*{found}"):
            lora.add(whole)


def test_copies_have_the_precision_and_mode_of_their_original(tiny, shapes):
    for model in (VisionTransformer(tiny).double(), VisionTransformer(tiny).double().eval()):
        model.metadata = shapes.metadata
        copies = model.resized(24), prompts.add(model), fine_tuning.with_new_head(model, shapes)
        assert {p.dtype for copy in copies for p in copy.parameters()} == {torch.float64}
        assert [copy.training for copy in copies[:2]] == [model.training] * 2
    coder = mae.MaskedAutoencoder(tiny, decoder_dim=8, decoder_depth=1, decoder_heads=2).double()
    assert {p.dtype for p in mae.to_classifier(coder, tiny).parameters()} == {torch.float64}
