"""Tiny models of other libraries with random weights: what they compute, and their weights as those libraries give
them.

The references are the libraries' own modules and, for files they do not write, their own readers (timm reads Google's,
OpenAI's and DINOv2's) or a few lines of theirs (the hidden layer of a head). It is long because there are many.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import timm
import torch
import torchvision
import transformers
import vit_pytorch
from conftest import randomize
from timm.models import vision_transformer as timm_vit
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor, nn
from vit_pytorch.simple_vit import SimpleViT

SIZE, WIDE = (16, 16), (12, 20)  # pixels, at patches of 4
SHAPE = {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}


@dataclass
class Reference:
    """Another library's model: what it computes, its weights as that library gives them, and how to load those."""

    logits: Callable[[Tensor], Tensor]
    source: Any
    format: str
    options: dict[str, Any] = field(default_factory=dict)


def images_of(size: tuple[int, int], dtype: torch.dtype, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, *size, generator=generator, dtype=torch.float64).to(dtype)


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


# --- timm, and what has timm's names ------------------------------------------------------------------------------


def make_timm(size, dtype, **options) -> nn.Module:
    model = timm.models.VisionTransformer(img_size=size, **(SHAPE | options))
    return randomize(model.to(dtype)).eval()


def from_timm(size, dtype, **options) -> Reference:
    model = make_timm(size, dtype, **options)
    return Reference(model, model, "timm")


def timm_clip(size, dtype) -> Reference:
    norm = partial(nn.LayerNorm, eps=1e-5)
    return from_timm(size, dtype, pre_norm=True, act_layer="quick_gelu", norm_layer=norm)


def timm_swiglu(size, dtype) -> Reference:
    packed = timm.layers.SwiGLUPacked
    return from_timm(size, dtype, mlp_layer=packed, act_layer=nn.SiLU, mlp_ratio=5.34, init_values=0.5)


def deit_distilled(size, dtype) -> Reference:
    model = randomize(VisionTransformerDistilled(img_size=size, **SHAPE).to(dtype)).eval()
    return Reference(model, {"model": state_of(model)}, "deit_distilled", {"num_heads": 4})


def deit3(size, dtype) -> Reference:
    model = make_timm(size, dtype, no_embed_class=True, init_values=0.5)
    state = {re.sub(r"ls(\d)\.gamma", r"gamma_\1", name): x for name, x in state_of(model).items()}
    return Reference(model, {"model": state}, "deit3", {"num_heads": 4})


def dino(size, dtype) -> Reference:
    model = make_timm(size, dtype, num_classes=0)
    teacher = {f"module.backbone.{name}": x for name, x in state_of(model).items()}
    teacher["module.head.mlp.0.weight"] = torch.zeros(3, 32)
    student = {name: torch.zeros_like(x) for name, x in teacher.items()}
    return Reference(model, {"student": student, "teacher": teacher, "epoch": 3}, "dino", {"num_heads": 4})


def dinov2(size, dtype, *, registers=0, swiglu=False, chunked=False) -> Reference:
    """DINOv2's own names, which timm's reader turns into timm's."""
    options = {"num_classes": 0, "init_values": 0.5, "reg_tokens": registers, "no_embed_class": registers > 0}
    if swiglu:
        options |= {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": nn.SiLU}
    model = make_timm(size, dtype, **options)
    state = state_of(model)
    state["mask_token"] = torch.zeros(1, 32, dtype=dtype)
    if registers:
        state["register_tokens"] = state.pop("reg_token")
        cls_position = torch.linspace(-1, 1, 32, dtype=dtype).sin()[None, None]
        state["pos_embed"] = torch.cat([cls_position, state["pos_embed"]], dim=1)
    if swiglu:
        state = {re.sub(r"fc2", "w3", re.sub(r"fc1", "w12", name)): x for name, x in state.items()}
    model.load_state_dict(timm_vit._convert_dinov2(dict(state), model))
    if chunked:
        state = {re.sub(r"^blocks\.(\d+)", r"blocks.0.\1", name): x for name, x in state.items()}
    return Reference(model, state, "dinov2_with_registers" if registers else "dinov2", {"num_heads": 4})


# --- torchvision, transformers ------------------------------------------------------------------------------------


def make_torchvision(size, dtype, **options) -> nn.Module:
    model = torchvision.models.VisionTransformer(
        size[0], 4, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=128, num_classes=5, **options
    )
    return randomize(model.to(dtype)).eval()


def from_torchvision(size, dtype, **options) -> Reference:
    model = make_torchvision(size, dtype, **options)
    return Reference(model, model, "torchvision")


HF = {"patch_size": 4, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def make_hf(kind: str, size, dtype, config: str = "", **options) -> nn.Module:
    """Its eager attention takes the softmax in float32, which float64 would show."""
    sizes = HF if "Dinov2" in kind else HF | {"intermediate_size": 128}
    settings = getattr(transformers, config or re.sub("(For|Model).*", "Config", kind))(
        image_size=size, attn_implementation="sdpa", **({"num_labels": 5} if "For" in kind else {}), **(sizes | options)
    )
    return randomize(getattr(transformers, kind)(settings).to(dtype)).eval()


def from_hf(kind: str, size, dtype, **options) -> Reference:
    model = make_hf(kind, size, dtype, **options)
    name = re.sub("(For|Model).*", "", kind)
    name = {"Dinov2WithRegisters": "dinov2_with_registers"}.get(name, name.lower())

    def logits(images: Tensor) -> Tensor:
        output = model(images)
        return output.logits if hasattr(output, "logits") else output.last_hidden_state[:, 0]

    return Reference(logits, model, f"transformers_{name}")


def from_hf_file(kind: str, size, dtype, tmp_path, **options) -> Reference:
    reference = from_hf(kind, size, dtype, **options)
    reference.source.save_pretrained(tmp_path)
    reference.source = tmp_path
    return reference


def hf_clip(size, dtype, *, is_whole: bool) -> Reference:
    vision = HF | {"intermediate_size": 128, "image_size": size[0], "attn_implementation": "sdpa"}
    if not is_whole:
        settings = transformers.CLIPVisionConfig(**vision, projection_dim=5)
        model = randomize(transformers.CLIPVisionModelWithProjection(settings).to(dtype)).eval()
        return Reference(lambda images: model(images).image_embeds, model, "transformers_clip")
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    settings = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=5)
    model = randomize(transformers.CLIPModel(settings).to(dtype)).eval()
    return Reference(lambda images: model.get_image_features(images).pooler_output, model, "transformers_clip")


def hf_clip_features(size, dtype) -> Reference:
    model = make_hf("CLIPVisionModel", size[0], dtype, config="CLIPVisionConfig")
    return Reference(lambda images: model(images).pooler_output, model, "transformers_clip")


# --- OpenAI, Google, vit-pytorch ----------------------------------------------------------------------------------


def openai_clip(size, dtype, *, prefix: str) -> Reference:
    """OpenAI's names, which timm's reader turns into timm's."""
    model = timm_clip(size, dtype).source
    theirs = {
        "patch_embed.proj": "conv1", "pos_embed": "positional_embedding", "norm_pre": "ln_pre", "norm1": "ln_1",
        "norm2": "ln_2", "attn.qkv.": "attn.in_proj_", "attn.proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj", "blocks.": "transformer.resblocks.", "cls_token": "class_embedding",
    }  # fmt: skip
    state = {}
    for name, tensor in state_of(model).items():
        for ours, others in theirs.items():
            name = name.replace(ours, others)
        state[prefix + re.sub(r"^norm\.", "ln_post.", name)] = tensor
    state[prefix + "class_embedding"] = state[prefix + "class_embedding"][0, 0]
    state[prefix + "positional_embedding"] = state[prefix + "positional_embedding"][0]
    state[prefix + "proj"] = state.pop(prefix + "head.weight").T.contiguous()
    del state[prefix + "head.bias"]
    options = {"prefix": "visual."}
    if not prefix:  # timm's reader wants it
        options = {"prefix": ""}
    model.load_state_dict(timm_vit._convert_openai_clip(dict(state), model, **options))
    if prefix:  # the text tower beside it
        state |= {"transformer.resblocks.0.ln_1.weight": torch.ones(8), "logit_scale": torch.ones(())}
    return Reference(model, state, "openai_clip" if prefix else "openai_clip_visual", {"num_heads": 4})


def flax_arrays(dtype, *, tokens: int, positions: str, numbering: tuple[int, int, int], head: str) -> dict:
    """Random weights under Google's names, with its shapes: kernels (in, out), attention (D, h, d) and (h, d, D)."""
    generator = np.random.default_rng(0)
    attention, mlp, second_norm = numbering

    def draw(*shape: int) -> np.ndarray:
        values = generator.standard_normal(shape) * (0.2 if len(shape) > 1 else 0.5)
        return values.astype(np.float64 if dtype == torch.float64 else np.float32)

    arrays = {"embedding/kernel": draw(4, 4, 3, 32), "embedding/bias": draw(32), positions: draw(1, tokens, 32)}
    for i in range(2):
        block = f"Transformer/encoderblock_{i}"
        for name in (f"LayerNorm_0/{p}" for p in ("scale", "bias")):
            arrays[f"{block}/{name}"] = draw(32)
        for name in ("query", "key", "value"):
            path = f"{block}/MultiHeadDotProductAttention_{attention}/{name}"
            arrays |= {f"{path}/kernel": draw(32, 4, 8), f"{path}/bias": draw(4, 8)}
        path = f"{block}/MultiHeadDotProductAttention_{attention}/out"
        arrays |= {f"{path}/kernel": draw(4, 8, 32), f"{path}/bias": draw(32)}
        arrays |= {f"{block}/LayerNorm_{second_norm}/{p}": draw(32) for p in ("scale", "bias")}
        for j, shape in enumerate([(32, 128), (128, 32)]):
            path = f"{block}/MlpBlock_{mlp}/Dense_{j}"
            arrays |= {f"{path}/kernel": draw(*shape), f"{path}/bias": draw(shape[1])}
    arrays |= {"Transformer/encoder_norm/scale": draw(32), "Transformer/encoder_norm/bias": draw(32)}
    arrays |= {"head/kernel": draw(32, 5), "head/bias": draw(5)}
    if "cls" in head:
        arrays["cls"] = draw(1, 1, 32)
    if "hidden" in head:
        arrays |= {"pre_logits/kernel": draw(32, 32), "pre_logits/bias": draw(32)}
    return arrays


def from_flax(arrays: dict, size, dtype, path, prefix: str, **options) -> Reference:
    """A file of Google's, and timm's reader of it."""
    np.savez(path, **{prefix + name: array for name, array in arrays.items()})
    model = make_timm(size, dtype, act_layer="gelu_tanh", **options)
    model.load_pretrained(str(path))

    def logits(images: Tensor) -> Tensor:
        pooled = model.forward_head(model.forward_features(images), pre_logits=True)
        if "pre_logits/kernel" in arrays:  # which timm's reader ignores
            kernel, bias = (torch.from_numpy(arrays[f"pre_logits/{p}"]) for p in ("kernel", "bias"))
            pooled = torch.tanh(pooled @ kernel + bias)
        return model.head(pooled)

    num_patches = size[0] * size[1] // 16
    grid = (size[0] // 4, size[1] // 4) if size[0] != size[1] else None
    assert arrays[next(n for n in arrays if "pos_embedding" in n)].shape[1] in (num_patches, num_patches + 1)
    return Reference(logits, path, "google", {"source_grid": grid})


def vit_jax(size, dtype, tmp_path, *, head="cls") -> Reference:
    positions = "Transformer/posembed_input/pos_embedding"
    tokens = size[0] * size[1] // 16 + 1
    arrays = flax_arrays(dtype, tokens=tokens, positions=positions, numbering=(1, 3, 2), head=head)
    return from_flax(arrays, size, dtype, tmp_path / "B.npz", "opt/target/")


def big_vision(size, dtype, tmp_path, *, scanned=False, tok=False, sincos=False) -> Reference:
    tokens = size[0] * size[1] // 16
    head = "cls" if tok else ""
    arrays = flax_arrays(dtype, tokens=tokens, positions="pos_embedding", numbering=(0, 0, 1), head=head)
    if scanned:
        for name in [name for name in arrays if "encoderblock_0" in name]:
            both = [arrays.pop(name.replace("_0/", f"_{i}/", 1)) for i in range(2)]
            arrays[name.replace("encoderblock_0", "encoderblock")] = np.stack(both)
    kind = {"no_embed_class": True} if tok else {"class_token": False, "global_pool": "avg", "fc_norm": False}
    path = tmp_path / "bv.npz"
    if sincos:  # timm's reader needs a table; the file does not have one
        arrays["pos_embedding"] = exact_sincos_table(size).numpy()[None]
    reference = from_flax(arrays, size, dtype, path, "params/img/" if scanned else "params/", **kind)
    if sincos:
        del arrays["pos_embedding"]
        np.savez(path, **{f"params/{name}": array for name, array in arrays.items()})
        reference.options = {"image_size": size}
    if scanned:  # a text encoder beside it
        beside = {"params/txt/embedding": np.ones(3), "params/t": np.ones(1)}
        np.savez(path, **np.load(path), **beside)
    return reference


def vit_pytorch_vit(size, dtype, **options) -> Reference:
    model = vit_pytorch.ViT(
        image_size=size, patch_size=4, num_classes=5, dim=32, depth=2, heads=4, mlp_dim=50, dim_head=8, **options
    )
    model = randomize(model.to(dtype)).eval()
    grid = (size[0] // 4, size[1] // 4)
    return Reference(model, model, "vit_pytorch", {"source_grid": grid})


def exact_sincos_table(size) -> Tensor:
    """vit-pytorch's own function, in float64, and rounded once as a stored table is."""
    torch.set_default_dtype(torch.float64)
    try:
        return vit_pytorch.simple_vit.posemb_sincos_2d(size[0] // 4, size[1] // 4, 32, dtype=torch.float64).float()
    finally:
        torch.set_default_dtype(torch.float32)


def simple_vit(size, dtype) -> Reference:
    model = SimpleViT(image_size=size, patch_size=4, num_classes=5, dim=32, depth=2, heads=4, mlp_dim=64, dim_head=8)
    model = randomize(model.to(dtype)).eval()
    table = exact_sincos_table(size)
    assert (table - model.pos_embedding).abs().max() < 1e-5
    model.pos_embedding = table
    return Reference(model, model, "simple_vit", {"image_size": size})


REFERENCES: dict[str, Callable[..., Reference]] = {
    "timm": from_timm,
    "timm_registers": partial(from_timm, no_embed_class=True, reg_tokens=3, qk_norm=True, init_values=0.5),
    "timm_registers_with_positions": partial(from_timm, reg_tokens=2),
    "timm_average": partial(from_timm, class_token=False, global_pool="avg", qkv_bias=False),
    "timm_average_unread_cls": partial(from_timm, global_pool="avg"),
    "timm_average_norm_first": partial(from_timm, class_token=False, global_pool="avg", fc_norm=False),
    "timm_tanh": partial(from_timm, act_layer="gelu_tanh", mlp_ratio=3.3),
    "timm_clip": timm_clip,
    "timm_swiglu": timm_swiglu,
    "deit_distilled": deit_distilled,
    "deit3": deit3,
    "dino": dino,
    "dinov2": dinov2,
    "dinov2_registers": partial(dinov2, registers=4),
    "dinov2_swiglu_chunked": partial(dinov2, swiglu=True, chunked=True),
    "torchvision": from_torchvision,
    "torchvision_hidden_head": partial(from_torchvision, representation_size=32),
    "hf_vit": partial(from_hf, "ViTForImageClassification"),
    "hf_vit_tanh": partial(from_hf, "ViTForImageClassification", hidden_act="gelu_new", layer_norm_eps=1e-3),
    "hf_vit_features": partial(from_hf, "ViTModel", qkv_bias=False),
    "hf_vit_file": partial(from_hf_file, "ViTForImageClassification"),
    "hf_deit": partial(from_hf, "DeiTForImageClassification"),
    "hf_deit_distilled": partial(from_hf, "DeiTForImageClassificationWithTeacher"),
    "hf_dinov2": partial(from_hf, "Dinov2ForImageClassification"),
    "hf_dinov2_swiglu_file": partial(from_hf_file, "Dinov2Model", use_swiglu_ffn=True),
    "hf_dinov2_swiglu": partial(from_hf, "Dinov2Model", use_swiglu_ffn=True),
    "hf_dinov2_registers": partial(from_hf, "Dinov2WithRegistersForImageClassification", num_register_tokens=3),
    "hf_clip": partial(hf_clip, is_whole=False),
    "hf_clip_whole": partial(hf_clip, is_whole=True),
    "hf_clip_features": hf_clip_features,
    "openai_clip": partial(openai_clip, prefix="visual."),
    "openai_clip_visual": partial(openai_clip, prefix=""),
    "vit_jax": vit_jax,
    "vit_jax_hidden_head": partial(vit_jax, head="cls, hidden"),
    "big_vision": big_vision,
    "big_vision_tok": partial(big_vision, tok=True),
    "big_vision_sincos": partial(big_vision, sincos=True),
    "big_vision_scanned": partial(big_vision, scanned=True),
    "vit_pytorch": vit_pytorch_vit,
    "vit_pytorch_mean": partial(vit_pytorch_vit, pool="mean"),
    "simple_vit": simple_vit,
}


def make_reference(name: str, size, dtype, tmp_path) -> Reference:
    make = REFERENCES[name]
    function = make.func if isinstance(make, partial) else make
    needs_path = "tmp_path" in function.__code__.co_varnames[: function.__code__.co_argcount]
    return make(size=size, dtype=dtype, **({"tmp_path": tmp_path} if needs_path else {}))
