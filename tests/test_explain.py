"""Explanations, against float64 references written from the formulas, a second model written from its matrices, and
finite differences of single attention entries."""

import math
import sys

import numpy as np
import pytest
import timm
import torch
from conftest import randomize
from torch import Tensor, nn

from vit.analysis.attention import attention_maps
from vit.analysis.explain import (
    METHODS,
    attention_gradients,
    attention_rollout,
    explain,
    gradient_rollout,
    relevance,
)
from vit.config import ViTConfig
from vit.model.vision_transformer import VisionTransformer

SIZES = {"image_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0}
FORMS = {
    "cls": {},
    "mean": {"pool": "mean"},
    "registers": {"num_registers": 2},
    "mean with registers": {"pool": "mean", "num_registers": 2},
    "rope": {"pos_embed": "rope"},
    "fixed positions": {"pos_embed": "sincos2d", "head": "linear"},
    "no positions, non-square": {"pos_embed": "none", "image_size": (8, 16)},
    "qk norm and layer scale": {"qk_norm": True, "layer_scale": 0.5, "pool": "mean"},
}


def our_model(depth: int = 2, **changes) -> VisionTransformer:
    return randomize(VisionTransformer(ViTConfig(**(SIZES | {"depth": depth} | changes)))).eval()


def timm_model(**options) -> nn.Module:
    sizes = {"img_size": 32, "patch_size": 8, "depth": 2, "num_classes": 5}
    return randomize(timm.create_model("vit_tiny_patch16_224", **sizes, **options)).eval()


def random_images(model: nn.Module, count: int = 3, seed: int = 1) -> Tensor:
    size = model.config.image_size if hasattr(model, "config") else model.patch_embed.img_size
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, *size, generator=generator, dtype=torch.float64).to(next(model.parameters()).dtype)


def random_maps(layers: int = 4, batch: int = 3, heads: int = 2, tokens: int = 7) -> Tensor:
    return torch.randn(layers, batch, heads, tokens, tokens).mul(2).softmax(dim=-1)


def from_scratch(model: VisionTransformer, images: Tensor, bump: dict | None = None) -> tuple[Tensor, list[Tensor]]:
    """Logits and attention maps, computed from the matrices of `model` alone. `bump` adds to the map of a layer."""
    matrices = dict(model.named_parameters())
    config = model.config

    def linear(x, name):
        return x @ matrices[name + ".weight"].flatten(1).T + matrices[name + ".bias"]

    def norm(x, name):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()
        return x * matrices[name + ".weight"] + matrices[name + ".bias"]

    patches = nn.functional.unfold(images, config.patch_size, stride=config.patch_size).mT
    x = linear(patches, "patch_embed.proj") + matrices["pos_embed"]
    if config.pool == "cls":
        x = torch.cat([matrices["cls_token"].expand(len(x), 1, -1), x], dim=1)
    maps = []
    for i in range(config.depth):
        block = f"encoder.blocks.{i}"
        heads = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv").unflatten(-1, (3, config.num_heads, -1))
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        weights = (torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(config.head_dim)).exp()
        attn = weights / weights.sum(-1, keepdim=True)
        maps.append(attn if bump is None or i not in bump else attn + bump[i])
        x = x + linear(torch.einsum("bhij,bhjd->bihd", maps[i], v).flatten(2), f"{block}.attn.proj")
        y = linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")
        x = x + linear(y * (1 + torch.erf(y / math.sqrt(2))) / 2, f"{block}.mlp.fc2")
    x = norm(x, "encoder.norm")
    pooled = x[:, 0] if config.pool == "cls" else x.mean(dim=1)
    return linear(linear(pooled, "head.fc1").tanh(), "head.fc2"), maps


def by_loop(fused: np.ndarray, *, normalize: bool) -> np.ndarray:
    """The product over layers of I + fused[layer], one image and row at a time, in float64."""
    layers, batch, tokens, _ = fused.shape
    result = np.empty((batch, tokens, tokens))
    for b in range(batch):
        product = np.eye(tokens)
        for layer in range(layers):
            step = np.eye(tokens) + fused[layer, b].astype(np.float64)
            if normalize:
                for row in step:
                    row /= row.sum()
            product = step @ product
        result[b] = product
    return result


def raising(maps: Tensor, gradients: Tensor) -> np.ndarray:
    product = gradients.double().numpy() * maps.double().numpy()
    return np.where(product > 0, product, 0).mean(axis=2)


# Rollout


@pytest.mark.parametrize("discard_ratio", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("head_fusion", ["mean", "max", "min"])
def test_rollout_equals_a_plain_loop_and_its_rows_sum_to_1(head_fusion, discard_ratio):
    maps = random_maps()
    fused = getattr(np, head_fusion)(maps.double().numpy(), axis=2)
    for row in fused.reshape(-1, 7):
        row[np.argsort(row)[: int(discard_ratio * 7)]] = 0
    rollout = attention_rollout(maps, head_fusion=head_fusion, discard_ratio=discard_ratio)
    np.testing.assert_allclose(rollout, by_loop(fused, normalize=True), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(rollout.sum(-1), torch.ones(3, 7))
    others = {"mean", "max", "min"} - {head_fusion}
    assert all(not torch.allclose(rollout, attention_rollout(maps, head_fusion=f)) for f in others)


def test_rollout_of_uniform_attention_has_a_closed_form():
    """Each layer keeps one half where it is and spreads the other half evenly."""
    expected = (1 - 0.5**4) / 7 + 0.5**4 * torch.eye(7)
    torch.testing.assert_close(attention_rollout(torch.full((4, 2, 3, 7, 7), 1 / 7)), expected.expand(2, 7, 7))


def test_the_order_of_layers_matters():
    maps = random_maps()
    gradients = torch.randn_like(maps)
    assert (attention_rollout(maps) - attention_rollout(maps.flip(0))).abs().max() > 1e-2
    for method in (relevance, gradient_rollout):
        assert (method(maps, gradients) - method(maps.flip(0), gradients.flip(0))).abs().max() > 1e-2
        assert (method(maps, gradients) - method(maps, gradients.flip(0))).abs().max() > 1e-2, "pairs were mixed up"


def test_half_precision_maps_do_not_make_a_half_precision_rollout():
    rollout = attention_rollout(random_maps(tokens=65).bfloat16())
    assert rollout.dtype == torch.float32
    torch.testing.assert_close(rollout.sum(-1), torch.ones(3, 65))


# Gradients and what is made of them


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_gradients_are_the_change_of_the_logit_with_one_entry_of_one_layer(pool):
    model = our_model(depth=3, pool=pool).double()
    model.encoder.blocks[1].attn.proj.weight.data *= 8  # so that no two layers are alike
    images, targets = random_images(model), torch.tensor([3, 0, 7])
    maps, gradients = attention_gradients(model, images, targets)
    assert maps.shape == gradients.shape and len(maps) == 3
    with torch.no_grad():
        for layer, *place in np.random.default_rng(0).integers(0, maps.shape, size=(30, 5)):
            bump = torch.zeros(maps.shape[1:], dtype=torch.float64)
            bump[tuple(place)] = 1e-4
            up, down = (from_scratch(model, images, {layer: sign * bump})[0] for sign in (1, -1))
            slope = (up - down)[range(3), targets].sum() / 2e-4
            assert gradients[(layer, *place)].item() == pytest.approx(slope.item(), rel=1e-4, abs=1e-6)
    sizes = gradients.abs().amax(dim=(1, 2, 3, 4))
    assert (sizes > 1e-3).all() and (sizes.max() / sizes.min()) > 2


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_relevance_equals_a_reference_from_the_matrices(pool):
    model = our_model(pool=pool).double()
    images = random_images(model)
    logits, maps = from_scratch(model, images)
    torch.testing.assert_close(logits, model(images), rtol=0, atol=1e-12)
    gradients = torch.autograd.grad(logits.amax(dim=1).sum(), maps)
    maps = torch.stack(maps).detach()
    fused = raising(maps, torch.stack(gradients))
    found = attention_gradients(model, images)
    np.testing.assert_allclose(found[0], maps, rtol=1e-5)
    np.testing.assert_allclose(relevance(*found), by_loop(fused, normalize=False), rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(gradient_rollout(*found), by_loop(fused, normalize=True), rtol=1e-5, atol=1e-9)
    shuffled = by_loop(fused[::-1], normalize=False)
    assert np.abs(relevance(*found).numpy() - shuffled).max() > 1e-3 * np.abs(shuffled - np.eye(len(shuffled[0]))).max()


def test_gradients_leave_no_trace_and_need_nothing_of_the_caller():
    model = our_model(drop_rate=0.3, attn_drop_rate=0.3)
    images = random_images(model)
    expected = attention_gradients(model, images)
    model.train()
    with torch.no_grad():
        found = attention_gradients(model, images)
    with torch.inference_mode():
        from_inference = attention_gradients(model, images.clone())
        predicted = model.eval()(images).argmax(dim=1)
    of_predicted = attention_gradients(model, images, predicted)
    frozen = attention_gradients(model.train().requires_grad_(False), images)
    for other in (found, from_inference, of_predicted, frozen):
        assert all(torch.equal(a, b) for a, b in zip(expected, other, strict=True)), "a mode of the caller got in"
    assert all(p.grad is None for p in model.parameters())
    assert images.grad is None and not images.requires_grad
    assert not any(x.requires_grad for x in (*found, *from_inference))
    assert model.training and torch.is_grad_enabled()
    assert all("forward" not in vars(module) for module in model.modules())


def test_targets_default_to_the_predicted_class():
    model = our_model()
    images = random_images(model)
    predicted = model(images).argmax(dim=1)
    for a, b in zip(attention_gradients(model, images), attention_gradients(model, images, predicted), strict=True):
        assert torch.equal(a, b)
    for method in METHODS:
        one, same, other = (explain(model, images, method, targets=t) for t in (4, torch.full((3,), 4), 5))
        assert torch.equal(one, same)
        assert torch.equal(one, other) == (method in ("attention", "rollout")), "which methods know the class"


# explain


def expected_heat(model: nn.Module, images: Tensor, method: str, num_prefix: int, pools_cls: bool) -> np.ndarray:
    maps, gradients = attention_gradients(model, images)
    fused = maps.double().numpy().mean(axis=2)
    identity = 0
    if method == "attention":
        matrix = fused[-1]
    elif method == "rollout":
        matrix = by_loop(fused, normalize=True)
    else:
        fused, normalize = raising(maps, gradients), method == "gradient_rollout"
        matrix = by_loop(fused, normalize=normalize)
        kept = (1 / (1 + fused.sum(-1))).prod(axis=0) if normalize else np.ones(matrix.shape[:2])
        identity = 0 if pools_cls else np.stack([np.diag(row) for row in kept])
    matrix = matrix - identity
    row = matrix[:, 0] if pools_cls else matrix[:, num_prefix:].mean(axis=1)
    return row[:, num_prefix:]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("form", [*FORMS, "timm", "timm mean"])
def test_every_method_explains_every_form(form, method):
    if form.startswith("timm"):
        mean = form == "timm mean"
        model = timm_model(global_pool="avg", class_token=False) if mean else timm_model()
        grid, num_prefix, pools_cls = (4, 4), 0 if mean else 1, not mean
    else:
        model = our_model(**FORMS[form])
        grid = model.config.grid_size
        num_prefix, pools_cls = model.config.num_prefix_tokens, model.config.pool == "cls"
    images = random_images(model)
    heat = explain(model, images, method)
    assert heat.shape == (3, *grid) and heat.dtype == torch.float32 and (heat >= 0).all()
    expected = expected_heat(model, images, method, num_prefix, pools_cls)
    np.testing.assert_allclose(heat.flatten(1), expected, rtol=1e-4, atol=1e-5 * expected.max())
    assert (heat.amax(dim=(1, 2)) > 1.01 * heat.amin(dim=(1, 2))).all(), "an explanation must not be flat"
    assert all(p.grad is None for p in model.parameters()) and not model.training


@pytest.mark.parametrize("method", ["gradient_rollout", "relevance"])
def test_small_gradients_beside_the_residual_connection_are_not_rounded_away(method):
    model = our_model(pool="mean")
    model.head.fc2.weight.data *= 1e-5
    images = random_images(model)
    expected = expected_heat(model, images, "relevance", 0, False)
    assert expected.max() < 1e-4
    np.testing.assert_allclose(explain(model, images, method).flatten(1), expected, rtol=1e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [our_model, timm_model])
def test_an_image_is_explained_alone_as_in_a_batch(make, method):
    model = make().double()
    images = random_images(model)
    together = explain(model, images, method)
    alone = torch.cat([explain(model, images[i : i + 1], method) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=0)
    assert not torch.allclose(together[0], together[1], rtol=1e-2), "different images, different explanations"


@pytest.mark.parametrize("method", METHODS)
def test_many_images_are_explained_in_parts_that_do_not_show(method, monkeypatch):
    model = our_model().double()
    images, targets, sizes = random_images(model, count=5), torch.tensor([3, 1, 4, 1, 5]), []
    wholes = [explain(model, images, method, targets=asked) for asked in (None, 2, targets)]
    entries = 2 * 2 * attention_maps(model, images).shape[-1] ** 2  # of an image: layers, heads and pairs of tokens
    monkeypatch.setattr(sys.modules[explain.__module__], "CHUNK_ENTRIES", 2 * entries + 1)
    hook = model.patch_embed.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    for asked, whole in zip((None, 2, targets), wholes, strict=True):
        torch.testing.assert_close(explain(model, images, method, targets=asked), whole, rtol=1e-5, atol=0)
    hook.remove()
    assert sizes == [2, 2, 1] * 3


def test_a_patch_that_alone_decides_is_found():
    """Two patches stand out; the target reads the channel of one of them, which rollout cannot know."""
    model = our_model(pool="mean", head="linear", pos_embed="none", depth=1, image_size=16, embed_dim=8)
    nn.init.zeros_(model.encoder.blocks[0].mlp.fc2.weight)
    nn.init.zeros_(model.encoder.blocks[0].mlp.fc2.bias)
    attn = model.encoder.blocks[0].attn
    for tensor in (*model.patch_embed.parameters(), *attn.parameters(), *model.head.parameters()):
        nn.init.zeros_(tensor)
    for norm in (model.encoder.blocks[0].norm1, model.encoder.norm):
        nn.init.ones_(norm.weight)
        nn.init.zeros_(norm.bias)
    with torch.no_grad():
        for channel in range(3):  # token channel c holds image channel c, and attention copies it to channel 3 + c
            model.patch_embed.proj.weight[channel, channel] = 1.0
            attn.qkv.weight[16 + channel, channel] = 1.0
            attn.proj.weight[3 + channel, channel] = 1.0
            model.head.weight[channel, 3 + channel] = 1.0
    images = torch.zeros(1, 3, 16, 16)
    images[0, 0, 4:8, 8:12] = 1.0  # red at patch (1, 2)
    images[0, 1, 12:16, 0:4] = 1.0  # green at patch (3, 0)
    for method in ("gradient_rollout", "relevance"):
        for target, (row, column) in ((0, (1, 2)), (1, (3, 0))):
            heat = explain(model, images, method, targets=target)[0]
            assert divmod(heat.argmax().item(), 4) == (row, column)
            assert heat[row, column] > 2 * heat.flatten().kthvalue(15).values
    torch.testing.assert_close(explain(model, images, "rollout"), torch.full((1, 4, 4), 1 / 16))


def test_compiled_code_is_passed_by():
    model = our_model()
    images = random_images(model)
    expected = [explain(model, images, method) for method in METHODS]

    def compiled(*args):
        raise AssertionError("no hook can see compiled code")

    model._compiled_call_impl = compiled
    for method, heat in zip(METHODS, expected, strict=True):
        assert torch.equal(explain(model, images, method), heat)


def test_pictures_are_explained_too():
    model = our_model()
    model.metadata = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.3)}
    pictures = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    mean, std = (torch.tensor(model.metadata[key])[:, None, None] for key in ("mean", "std"))
    torch.testing.assert_close(explain(model, pictures), explain(model, (pictures / 255 - mean) / std))


# Errors


def test_wrong_choices_are_named():
    model = our_model()
    images = random_images(model)
    with pytest.raises(ValueError, match="method='rolout' is not a choice; did you mean 'rollout'.*relevance"):
        explain(model, images, "rolout")
    with pytest.raises(ValueError, match="head_fusion='median' is not a choice; .*mean, max, min"):
        attention_rollout(random_maps(), head_fusion="median")
    for ratio in (1.0, -0.1, math.nan):
        with pytest.raises(ValueError, match=rf"discard_ratio={ratio} must be in \[0, 1\)"):
            attention_rollout(random_maps(), discard_ratio=ratio)
    maps = random_maps()
    with pytest.raises(ValueError, match=r"maps must be a tensor \(L, B, h, T, T\).*got \(3, 2, 7, 7\)"):
        attention_rollout(maps[0])
    with pytest.raises(ValueError, match="maps must be a tensor .*got dict"):
        attention_rollout({0: maps[0]})
    with pytest.raises(ValueError, match=r"gradients have shape \(3, 3, 2, 7, 7\), maps \(4, 3, 2, 7, 7\)"):
        relevance(maps, maps[:3])


def test_wrong_targets_are_named():
    model = our_model().train()
    images = random_images(model)
    for targets, listed in ((10, r"10, 10, 10"), (torch.tensor([0, -1, 9]), "-1")):
        with pytest.raises(ValueError, match=rf"targets=\[{listed}\] must be among the classes 0..9"):
            explain(model, images, targets=targets)
    with pytest.raises(ValueError, match=r"targets have shape \(2,\), the images are 3"):
        explain(model, images, targets=torch.tensor([0, 1]))
    assert explain(model, images, targets=[1, 2, 3]).equal(explain(model, images, targets=torch.tensor([1, 2, 3])))
    for targets in ("cat", ["cat"], True, torch.tensor([0.0, 1.0, 2.0])):
        with pytest.raises(TypeError, match="targets=.* must be the number of a class"):
            explain(model, images, targets=targets)
    assert model.training and all("forward" not in vars(m) for m in model.modules()), "an error must leave no trace"


@pytest.mark.parametrize("method", METHODS)
def test_no_images_have_no_maps(method):
    model = our_model()
    for none in (model, our_model(pos_embed="rope")):
        assert explain(none, torch.zeros(0, 3, 8, 8), method).shape == (0, 2, 2)
    assert attention_rollout(attention_maps(model, torch.zeros(0, 3, 8, 8))).shape == (0, 5, 5)


def test_a_model_without_classes_is_refused():
    for model in (our_model(num_classes=0), timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=0)):
        with pytest.raises(ValueError, match="the model has no classes"):
            attention_gradients(model, torch.zeros(1, 3, 8, 8))
    assert attention_maps(our_model(num_classes=0), torch.zeros(1, 3, 8, 8)).shape == (2, 1, 2, 5, 5)


@pytest.mark.parametrize(("pool", "num_registers"), [("cls_mean", 0), ("cls_register", 1)])
@pytest.mark.parametrize("method", METHODS)
def test_both_parts_that_a_head_reads_are_explained(pool, num_registers, method):
    model = our_model(pool=pool, num_registers=num_registers, head="linear")
    images = random_images(model)
    with torch.no_grad():
        model.head.weight[:, : model.config.embed_dim] = 0  # it could as well not read CLS
    heat = explain(model, images, method)
    assert heat.shape == (3, 2, 2) and (heat.sum(dim=(1, 2)) > 0).all()
