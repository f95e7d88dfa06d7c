"""The formats that weights come in: how each is recognized, and what its numbers mean.

Every format is a row of one table: patterns that recognize it, its names (names.py), what must happen to its tensors
(conversions.py), and what no file holds: LayerNorm's eps, the activation, how positions are resampled, the images.
Sources: the modules and published weights of timm, facebookresearch (deit, dino, dinov2), torchvision, transformers,
openai/CLIP, google-research (vision_transformer, big_vision) and vit-pytorch.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vit.pretrained import conversions, names
from vit.pretrained.conversions import Facts, Tensors

_IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
_IMAGENET_CROPPED = {**_IMAGENET, "interpolation": "bicubic", "crop": 0.875}
_CLIP_IMAGES = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
}
_CLIP = {"norm_eps": 1e-5, "act": "quick_gelu"}
# OpenAI's and OpenCLIP's networks have the same names, and differ in this alone.
_CLIP_ASSUMED = {"act": "act='quick_gelu', as OpenAI's networks have; OpenCLIP's files need act='gelu'"}
_HF = {"pos_resampling": "bicubic"}


@dataclass(frozen=True)
class Format:
    """One layout of weights.

    Attributes:
        marks: patterns, each of which some name must match; `lacks`, patterns that none may.
        names: its names to timm's.
        prefix: pattern of what may stand in front of its names.
        ignored: pattern of names that belong to something else, such as a text encoder.
        respell: a change to every name before it is looked up.
        convert: what must happen to the tensors.
        fields: of ViTConfig, what holds unless the source says otherwise; `pos_embed` is for one without a table.
        assumed: some of these that its files differ in without saying so, and what to say of each; said unless the
            source or the caller names the field.
        slots: which prefix tokens have a position in the table: "all", "cls", "none", or "any" where its length must
            tell.
        images: preprocessing in the format's own code, for a source that comes with none.
    """

    marks: tuple[str, ...]
    names: names.Names
    lacks: tuple[str, ...] = ()
    prefix: str = ""
    ignored: str = r"(?!)"
    respell: Callable[[str], str] = str
    convert: Callable[[Tensors, Facts], None] = conversions.nothing
    fields: Mapping[str, Any] = field(default_factory=dict)
    assumed: Mapping[str, str] = field(default_factory=dict)
    slots: str = "all"
    images: Mapping[str, Any] = field(default_factory=dict)

    def matches(self, keys: Iterable[str]) -> bool:
        def is_there(pattern: str) -> bool:
            return any(re.search(pattern, key) for key in keys)

        return all(map(is_there, self.marks)) and not any(map(is_there, self.lacks))

    def translate(self, key: str) -> str | None:
        """timm's name for a key; None for what is not needed; KeyError for what this format does not have."""
        if re.match(self.ignored, key):
            return None
        return names.translate(re.sub(f"^(?:{self.prefix})", "", self.respell(key)), self.names)


def _unchunk(key: str) -> str:
    return re.sub(r"^blocks\.\d+\.(\d+\.)", r"blocks.\1", key)


def _from_flax_spelling(key: str) -> str:
    return re.sub(r"\.(scale|kernel)$", ".weight", key.replace("/", "."))


_OPENAI_CLIP_VISUAL = Format(
    (r"^transformer\.resblocks\.0\.", r"^ln_pre\.weight$"),
    names.OPENAI_CLIP,
    convert=conversions.from_openai_clip,
    fields=_CLIP,
    assumed=_CLIP_ASSUMED,
    images=_CLIP_IMAGES,
)

# The first whose marks are all there, so the more special come first.
FORMATS: dict[str, Format] = {
    "vit": Format((r"^encoder\.blocks\.0\.",), names.OWN, slots="none"),
    "google": Format(
        (r"(^|/)embedding/kernel$", r"Transformer/encoderblock"),
        names.GOOGLE,
        prefix=r"opt\.target\.|params\.img\.|params\.",
        ignored=r"opt/state/|params/(txt/|t$|b$)",
        respell=_from_flax_spelling,
        convert=conversions.from_flax,
        fields={"act": "gelu_tanh", "pos_resampling": "bilinear_corners", "pos_embed": "sincos2d"},
        slots="any",
        images={"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "squash": True},
    ),
    "torchvision": Format(
        (r"^encoder\.layers\.encoder_layer_0\.",),
        names.TORCHVISION,
        fields={"pos_resampling": "bicubic_corners"},
        images={**_IMAGENET, "interpolation": "bilinear", "crop": 0.875},
    ),
    "openai_clip": replace(
        _OPENAI_CLIP_VISUAL, marks=(r"^visual\.ln_pre\.weight$",), prefix=r"visual\.", ignored=r"(?!visual\.)"
    ),
    "openai_clip_visual": _OPENAI_CLIP_VISUAL,
    "transformers_clip": Format(
        (r"(^|\.)pre_layrnorm\.weight$",),
        names.HF_CLIP,
        prefix=r"vision_model\.",
        ignored=r"text_model\.|text_projection\.|logit_scale$",
        convert=conversions.from_clip,
        fields=_CLIP | _HF,
        assumed=_CLIP_ASSUMED,
        images=_CLIP_IMAGES,
    ),
    "transformers_dinov2_with_registers": Format(
        (r"\.layer_scale1\.lambda1$", r"embeddings\.register_tokens$"),
        names.HF_DINOV2,
        prefix=r"dinov2_with_registers\.",
        convert=conversions.pack,
        slots="cls",
    ),
    "transformers_dinov2": Format(
        (r"\.layer_scale1\.lambda1$", r"embeddings\.cls_token$"),
        names.HF_DINOV2,
        prefix=r"dinov2\.",
        convert=conversions.pack,
        fields=_HF,
    ),
    "transformers_deit": Format(
        (r"embeddings\.distillation_token$",),
        names.HF_DEIT,
        prefix=r"deit\.",
        convert=conversions.pack,
        fields=_HF | {"norm_eps": 1e-12},
    ),
    "transformers_vit": Format(
        (r"embeddings\.patch_embeddings\.projection\.weight$", r"layer\w*\.0\.layernorm_before\.weight$"),
        names.HF_VIT,
        prefix=r"vit\.",
        convert=conversions.pack,
        fields=_HF | {"norm_eps": 1e-12},
    ),
    "vit_pytorch": Format(
        (r"^to_patch_embedding\.2\.weight$", r"^pos_embedding$"),
        names.VIT_PYTORCH,
        convert=conversions.from_vit_pytorch,
        fields={"norm_eps": 1e-5},
    ),
    "simple_vit": Format(
        (r"^to_patch_embedding\.2\.weight$", r"^linear_head\.weight$"),
        names.VIT_PYTORCH,
        convert=conversions.from_vit_pytorch,
        fields={"norm_eps": 1e-5, "pos_embed": "sincos2d"},
    ),
    "dinov2_with_registers": Format(
        (r"^blocks\.(\d+\.)?0\.ls1\.gamma$", r"^register_tokens$"),
        names.DINOV2,
        respell=_unchunk,
        slots="cls",
        images=_IMAGENET_CROPPED,
    ),
    "dinov2": Format(
        (r"^blocks\.(\d+\.)?0\.ls1\.gamma$", r"^mask_token$"),
        names.DINOV2,
        respell=_unchunk,
        fields={"pos_resampling": "bicubic_offset"},
        images=_IMAGENET_CROPPED,
    ),
    "deit3": Format(
        (r"^blocks\.0\.gamma_1$",),
        names.DEIT3,
        fields={"pos_resampling": "bicubic"},
        slots="none",
        images=_IMAGENET_CROPPED,
    ),
    "deit_distilled": Format(
        (r"^dist_token$",), names.TIMM, fields={"pos_resampling": "bicubic"}, images=_IMAGENET_CROPPED
    ),
    "dino": Format(
        (r"^patch_embed\.proj\.weight$", r"^blocks\.0\.attn\.qkv\.weight$", r"^cls_token$", r"^norm\.weight$"),
        names.TIMM,
        lacks=(r"^(head|pre_logits|fc_norm|reg_token|norm_pre)\b", r"\.ls1\.|q_norm"),
        fields={"pos_resampling": "bicubic_offset"},
        images=_IMAGENET_CROPPED,
    ),
    "timm": Format((r"^patch_embed\.proj\.weight$", r"^blocks\.0\.attn\.qkv\.weight$"), names.TIMM, slots="any"),
}

# What is a Vision Transformer in name, yet computes something this library's model does not.
_REFUSED = {
    r"relative_position_(bias_table|index)|rel_pos_(h|w|bias)": "relative position biases (BEiT, Swin, SAM)",
    r"MAPHead_0|^attn_pool\.|vision_model\.head\.probe": "attention pooling (the MAP head of big_vision and SigLIP)",
    r"^(visual\.)?(layer1\.0|conv_root)|patch_embed\.backbone|embedder\.": "a convolutional network, in front or alone",
    r"^layers\.0\.blocks\.": "stages of windows (Swin)",
    r"attn\.(q_bias|v_bias)$": "biases of queries and values, but none of keys (BEiT, EVA)",
    r"\.fc1_g\.|\.w1\.weight$": "a gated MLP with its halves apart (EVA)",
    r"^decoder_": "an autoencoder's decoder (MAE); save its encoder alone",
}


def recognize(keys: Iterable[str], name: str) -> str:
    """The name of the format that has these keys.

    Raises:
        ValueError: none has them; the message names the part that is not supported, or shows the first keys.
    """
    keys = list(keys)
    for pattern, part in _REFUSED.items():
        found = next((key for key in keys if re.search(pattern, key)), None)
        if found:
            raise ValueError(f"{name} has {part}, which this model does not compute: {found}")
    for format_name, candidate in FORMATS.items():
        if candidate.matches(keys):
            return format_name
    shown = ", ".join(sorted(keys)[:4]) or "none"
    raise ValueError(f"{name} is of no known format; known: {', '.join(FORMATS)}; its first keys: {shown}")
