"""What a source says about itself, in this library's words.

Two dictionaries come out of every configuration: facts, which are fields of ViTConfig, and metadata, which is how
images were prepared (`mean`, `std`, `interpolation`, `crop`, `squash`; see `vit.pictures`) and the classes' names.
"""

from collections.abc import Mapping
from numbers import Integral
from typing import Any

import torch
from torch import nn

from vit.pretrained.conversions import Facts

_ACTIVATIONS = {
    "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "quick_gelu",
    "GELU": "gelu", "GELUActivation": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu",
    "QuickGELUActivation": "quick_gelu", "SiLU": "swiglu",
}  # fmt: skip
_OTHER_ACTIVATIONS = ("ReLU", "ReLU6", "Mish", "Hardswish", "ELU", "LeakyReLU", "PReLU", "SELU")
_TIMM_POOLS = {"token": "cls", "": "cls", "avg": "mean"}
PIL_INTERPOLATIONS = {1: "lanczos", 2: "bilinear", 3: "bicubic"}

# Processors of transformers to which one number means the shorter side; to the others, both sides.
_BY_SHORTER_SIDE = ("clip", "bit")

# The images of torchvision's weights from SWAG, fine-tuned from end to end; all others of its ViTs take 224 pixels.
_SWAG_SIZES = (384, 512, 518)

Metadata = dict[str, Any]


def of_transformers(config: Mapping[str, Any], processor: Mapping[str, Any] | None = None) -> tuple[Facts, Metadata]:
    """From config.json and preprocessor_config.json of transformers."""
    names = _class_names(config.get("id2label") or {})
    model_type = config.get("model_type", "")
    config = config.get("vision_config") or config
    facts = {}
    if "num_attention_heads" in config:
        facts["num_heads"] = config["num_attention_heads"]
    if "layer_norm_eps" in config:
        facts["norm_eps"] = config["layer_norm_eps"]
    if "hidden_act" in config:
        facts["act"] = _activation(config["hidden_act"])
    if config.get("use_swiglu_ffn"):
        facts["act"] = "swiglu"
    if isinstance(config.get("image_size"), int | list | tuple):
        facts["image_size"] = _pair(config["image_size"])
    metadata = _of_processor(processor or {}, model_type)
    if names and not all(str(name).startswith("LABEL_") for name in names):
        metadata["class_names"] = names
    return facts, metadata


def of_timm(config: Mapping[str, Any]) -> Metadata:
    """Preprocessing, from a `pretrained_cfg` of timm."""
    metadata = {key: list(config[key]) for key in ("mean", "std") if key in config}
    if config.get("interpolation") in PIL_INTERPOLATIONS.values():
        metadata["interpolation"] = config["interpolation"]
    if "crop_pct" in config:
        metadata["crop"] = config["crop_pct"]
    if config.get("crop_mode") == "squash":
        metadata["squash"] = True
    names = config.get("label_names")
    if isinstance(names, list | tuple) and len(names) == config.get("num_classes"):
        metadata["class_names"] = list(names)
    return metadata


def of_module(module: nn.Module) -> tuple[Facts, Metadata]:
    """From a module of transformers, timm, torchvision or vit-pytorch, or of anything that is built like them."""
    config = getattr(module, "config", None)
    if hasattr(config, "to_dict") and "model_type" in config.to_dict():
        return of_transformers(config.to_dict())
    parts = list(module.modules())
    _check_timms(module)
    heads = [getattr(part, name, None) for part in parts for name in ("num_heads", "heads")]
    facts = {
        "norm_eps": _only("LayerNorm's eps", {part.eps for part in parts if isinstance(part, nn.LayerNorm)}),
        # What torchvision has under `heads` is no number, but its classifier.
        "num_heads": _only("number of heads", {number for number in heads if isinstance(number, Integral)}),
        "act": _only("activation", {_activation_of(part) for part in parts} - {None}),
    }
    if isinstance(getattr(module, "global_pool", None), str):
        if module.global_pool not in _TIMM_POOLS:
            raise ValueError(f"global_pool={module.global_pool!r} is not supported; only token and avg are")
        facts["pool"] = _TIMM_POOLS[module.global_pool]
    size = getattr(getattr(module, "patch_embed", None), "img_size", None) or getattr(module, "image_size", None)
    if size is not None:
        facts["image_size"] = _pair(size)
    metadata = dict(getattr(module, "metadata", None) or of_timm(getattr(module, "pretrained_cfg", None) or {}))
    if type(module).__module__.startswith("torchvision.") and facts.get("image_size", (0, 0))[0] in _SWAG_SIZES:
        metadata = {"interpolation": "bicubic", "crop": 1.0}
    if getattr(module, "pool", None) == "mean" and getattr(module, "cls_token", torch.empty(0)).numel():
        raise ValueError('pool="mean" beside a CLS token is not supported: its average takes in CLS')
    return {name: fact for name, fact in facts.items() if fact is not None}, metadata


def _class_names(id2label: Mapping[Any, str]) -> list[str]:
    """In the order of their numbers, which JSON holds as text, and transformers sorts as text: 0, 1, 10, 2."""
    try:
        return [id2label[key] for key in sorted(id2label, key=int)]
    except (TypeError, ValueError) as error:
        raise ValueError(f"id2label of its config must name the classes by number: {error}") from error


def _check_timms(module: nn.Module) -> None:
    """Refuses what timm computes otherwise than this library, although the tensors have the same names."""
    kinds = {type(block) for block in getattr(module, "blocks", ()) if type(block).__module__.startswith("timm.")}
    others = sorted(kind.__name__ for kind in kinds if kind.__name__ != "Block")
    if others:
        raise ValueError(f"its blocks are timm's {', '.join(others)}, which compute something else; only Block is read")
    for mlp in (getattr(block, "mlp", None) for block in getattr(module, "blocks", ())):
        if isinstance(act := getattr(mlp, "act", None), nn.Module):
            _activation(type(act).__name__)  # which no list of others could name completely
        if getattr(mlp, "gate_last", False):
            raise ValueError("its MLP is gated by its last half (gate_last=True): not supported, only by the first")
    if getattr(module, "pool_include_prefix", False) and getattr(module, "num_prefix_tokens", 0):
        raise ValueError("pool_include_prefix=True is not supported: its average takes in CLS and registers")


def _of_processor(processor: Mapping[str, Any], model_type: str) -> Metadata:
    metadata = {}
    kind = processor.get("image_processor_type") or processor.get("feature_extractor_type") or model_type
    kind = str(kind).lower()
    if processor and kind.startswith("vit"):  # what its class takes where the file is silent
        processor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2} | dict(processor)
    if processor.get("do_normalize", True) is False:
        metadata |= {"mean": [0.0] * 3, "std": [1.0] * 3}
    elif "image_mean" in processor and "image_std" in processor:
        metadata |= {"mean": list(processor["image_mean"]), "std": list(processor["image_std"])}
    if processor.get("resample") in PIL_INTERPOLATIONS:
        metadata["interpolation"] = PIL_INTERPOLATIONS[processor["resample"]]
    size = processor.get("size")
    if isinstance(size, Mapping):
        edges = size
    else:
        is_shorter_side = kind.startswith(_BY_SHORTER_SIDE)
        edges = {} if not size else {"shortest_edge": size} if is_shorter_side else {"height": size, "width": size}
    if "height" in edges:  # resized without regard to its shape
        metadata["squash"] = True
    cut = processor.get("crop_size")
    cut = cut["height"] if isinstance(cut, Mapping) else cut
    if processor.get("do_center_crop") and cut and edges:
        metadata["crop"] = cut / (edges.get("shortest_edge") or edges["height"])
    return metadata


def _activation(name: str) -> str:
    if name not in _ACTIVATIONS:
        raise ValueError(f"the activation {name!r} is not supported; supported: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _activation_of(part: nn.Module) -> str | None:
    name = type(part).__name__
    if name in _OTHER_ACTIVATIONS:
        return _activation(name)  # says that it is not supported
    if name == "GELU" and getattr(part, "approximate", "none") == "tanh":
        return "gelu_tanh"
    return _ACTIVATIONS.get(name)


def _only(what: str, values: set) -> Any:
    if len(values) > 1:
        raise ValueError(f"the module has more than one {what} ({', '.join(map(str, sorted(values)))}): not supported")
    return values.pop() if values else None


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)
