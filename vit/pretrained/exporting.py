"""This library's models as timm and transformers keep theirs: folders that those libraries load by themselves.

Only what their classes compute can be written; anything else is refused by name. Numbers stay as they are, so a model
that comes back through `load_weights` is the same to the last bit. Neither library is needed to write.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from vit.config import ViTConfig
from vit.files import replacing
from vit.model.vision_transformer import VisionTransformer, check_own, check_plain
from vit.pretrained import names
from vit.pretrained.assembly import mlp_ratio
from vit.pretrained.conversions import Tensors
from vit.pretrained.facts import PIL_INTERPOLATIONS

# timm's configuration can hold an eps or a gated MLP only by the name of an architecture that has it.
_TIMM_ARCHITECTURES = {
    (1e-6, False): "vit_base_patch16_224",
    (1e-5, False): "vit_base_patch16_clip_224",
    (1e-6, True): "vit_giant_patch14_dinov2",
}
_HF_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu"}
_PIL_NUMBERS = {name: number for number, name in PIL_INTERPOLATIONS.items()}


def to_timm(model: VisionTransformer, folder: str | Path) -> Path:
    """Writes a folder for `timm.create_model(f"local-dir:{folder}", pretrained=True)`.

    Raises:
        ValueError: timm's VisionTransformer cannot be this model; the message names the field.
    """
    model = check_own(model)
    check_plain(model)
    c = model.config
    is_gated = c.act == "swiglu"
    _refuse("timm", c, {
        "head": c.head == "linear" or not c.num_classes,
        "pool": c.pool in ("cls", "mean"),
        "pos_embed": c.pos_embed in ("learned", "sincos2d"),
        "patch_norm": not c.patch_norm,
        "norm_eps": (c.norm_eps, is_gated) in _TIMM_ARCHITECTURES,
    })  # fmt: skip
    arguments = {
        "img_size": list(c.image_size),
        "patch_size": c.patch_size,
        "in_chans": c.in_chans,
        "embed_dim": c.embed_dim,
        "depth": c.depth,
        "num_heads": c.num_heads,
        "mlp_ratio": mlp_ratio(c.mlp_dim * (2 if is_gated else 1), c.embed_dim),
        "qkv_bias": c.qkv_bias,
        "qk_norm": c.qk_norm,
        "init_values": c.layer_scale,
        "class_token": c.pool == "cls",
        "reg_tokens": c.num_registers,
        "no_embed_class": c.num_registers > 0,
        "pre_norm": c.pre_norm,
        "global_pool": "token" if c.pool == "cls" else "avg",
        "fc_norm": c.fc_norm,
        **({} if is_gated else {"act_layer": c.act}),
    }
    tensors = _timm_tensors(model, with_slot=c.pool == "cls" and not c.num_registers)
    images = {"input_size": [c.in_chans, *c.image_size], "fixed_input_size": True, "num_classes": c.num_classes}
    facts = model.metadata
    images |= {key: list(facts[key]) for key in ("mean", "std") if key in facts}
    images |= {"interpolation": facts.get("interpolation", "bicubic"), "crop_pct": facts.get("crop", 1.0)}
    images |= {"crop_mode": "squash" if facts.get("squash") else "center", "classifier": "head"}
    folder = Path(folder).expanduser()
    config = {
        "architecture": _TIMM_ARCHITECTURES[c.norm_eps, is_gated],
        "num_classes": c.num_classes,
        "num_features": c.embed_dim,
        # With it, earlier versions of timm make a first layer of their own for images of other than 3 channels.
        "pretrained_cfg": images | ({"first_conv": "patch_embed.proj"} if c.in_chans == 3 else {}),
        "model_args": arguments,
    }
    if "class_names" in facts:
        config["label_names"] = list(facts["class_names"])
    return _write(folder, tensors, {"config.json": config})


def to_transformers(model: VisionTransformer, folder: str | Path) -> Path:
    """Writes a folder for `transformers.ViTForImageClassification.from_pretrained(folder)`.

    Raises:
        ValueError: that class cannot be this model; the message names the field.

    Differs: for images that are not square, the whole picture is squeezed into their shape, since transformers cannot
    cut one to it.
    """
    model, folder = check_own(model), Path(folder).expanduser()
    check_plain(model)
    c = model.config
    _refuse("transformers' ViT", c, {
        "head": c.head == "linear",
        "num_classes": c.num_classes > 0,
        "pool": c.pool == "cls",
        "pos_embed": c.pos_embed in ("learned", "sincos2d"),
        "num_registers": c.num_registers == 0,
        "act": c.act in _HF_ACTIVATIONS,
        "pre_norm": not c.pre_norm,
        "patch_norm": not c.patch_norm,
        "qk_norm": not c.qk_norm,
        "layer_scale": c.layer_scale is None,
    })  # fmt: skip
    tensors = _timm_tensors(model, with_slot=True)
    for name in [name for name in tensors if "attn.qkv." in name]:
        for part, tensor in zip("qkv", tensors.pop(name).chunk(3), strict=True):
            tensors[name.replace("attn.qkv.", f"attn.{part}.")] = tensor
    theirs = {timms: hf for hf, timms in names.HF_VIT_FILE.items() if timms is not None}
    renamed = {names.translate(name, theirs): tensor for name, tensor in tensors.items()}
    renamed = {name if name.startswith("classifier.") else f"vit.{name}": tensor for name, tensor in renamed.items()}
    labels = model.metadata.get("class_names") or [f"LABEL_{i}" for i in range(c.num_classes)]
    config = {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "image_size": list(c.image_size),
        "patch_size": c.patch_size,
        "num_channels": c.in_chans,
        "hidden_size": c.embed_dim,
        "num_hidden_layers": c.depth,
        "num_attention_heads": c.num_heads,
        "intermediate_size": c.mlp_dim,
        "hidden_act": _HF_ACTIVATIONS[c.act],
        "layer_norm_eps": c.norm_eps,
        "qkv_bias": c.qkv_bias,
        "hidden_dropout_prob": c.drop_rate,
        "attention_probs_dropout_prob": c.attn_drop_rate,
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
    }
    files = {"config.json": config}
    if {"mean", "std"} <= set(model.metadata):
        files["preprocessor_config.json"] = _processor(model.metadata, c)
    else:  # that of a model that was there before
        (folder / "preprocessor_config.json").unlink(missing_ok=True)
    return _write(folder, renamed, files)


def _timm_tensors(model: VisionTransformer, *, with_slot: bool) -> Tensors:
    """Copies of the weights under timm's names, with a table of positions; `with_slot`, CLS has one, of zeros."""
    tensors = {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}
    state = {names.translate(name, names.OWN): tensor for name, tensor in tensors.items()}
    if model.config.pos_embed == "sincos2d":
        state["pos_embed"] = model.pos_table.detach().cpu()
    if with_slot:
        table = state["pos_embed"]
        state["pos_embed"] = torch.cat([torch.zeros_like(table[:, :1]), table], dim=1)
    return state


def _processor(facts: Mapping[str, Any], config: ViTConfig) -> dict[str, Any]:
    height, width = config.image_size
    processor = {
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "rescale_factor": 1 / 255,
        "image_mean": list(facts["mean"]),
        "image_std": list(facts["std"]),
        "resample": _PIL_NUMBERS[facts.get("interpolation", "bicubic")],
    }
    crop = facts.get("crop", 1)
    size = {"height": round(height / crop), "width": round(width / crop)}
    if not facts.get("squash") and height == width:  # else cutting to shape would pad some pictures
        size = {"shortest_edge": size["height"]}
    elif crop == 1:
        return processor | {"image_processor_type": "ViTImageProcessor", "size": size}
    return processor | {
        "image_processor_type": "CLIPImageProcessor",
        "size": size,
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_convert_rgb": config.in_chans == 3,
    }


def _refuse(library: str, config: ViTConfig, allowed: Mapping[str, bool]) -> None:
    wrong = [f"{name}={getattr(config, name)!r}" for name, is_allowed in allowed.items() if not is_allowed]
    if wrong:
        raise ValueError(
            f"{library} cannot be written with {', '.join(wrong)}: its own class does not compute that; to_onnx takes "
            "any model"
        )


def _write(folder: Path, tensors: Tensors, files: Mapping[str, dict]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "model.safetensors") as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata={"format": "pt"})
    for name, content in files.items():
        with replacing(folder / name) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n")
    return folder
