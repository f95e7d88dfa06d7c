"""From tensors under timm's names to the fields and the state of this library's model.

The model keeps positions for patches only. Whatever else a table holds is added to the token it belongs to, once and
for all, and tokens that no head reads (DINOv2's registers, a distillation token without its head, CLS beside an
average) are registers here: the same function in fewer kinds of parts.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch

from vit.pretrained.conversions import Facts, Tensors

Grid = tuple[int, int]

# Published widths whose heads do not have 64 channels each (so400m, ViT-H, g, bigG).
_NUM_HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16}
_NEEDED = tuple(f"blocks.0.{part}.weight" for part in ("attn.qkv", "mlp.fc1", "mlp.fc2"))


def join_tokens(tensors: Tensors, facts: Facts, slots: str, own: Grid | None, target: Grid | None) -> Grid | None:
    """Makes CLS and registers of all prefix tokens and their positions; the grid of the table, None if there is none.

    Args:
        slots: as in `Format`.
        own: the grid as the source, or the user, states it.
        target: the grid to come, which tells what no square explains.
    """
    if not all(name in tensors for name in ("patch_embed.proj.weight", *_NEEDED)):
        return None  # reported as missing
    facts["pool"] = _pool(tensors, facts)
    prefix = [tensors.pop(name) for name in ("cls_token", "dist_token", "reg_token") if name in tensors]
    tokens = torch.cat(prefix, dim=1) if prefix else torch.empty(1, 0, 0)
    grid = None
    if "pos_embed" in tensors:
        table = tensors["pos_embed"]
        allowed = {"all": {tokens.shape[1]}, "cls": {1}, "none": {0}, "any": {0, tokens.shape[1]}}[slots]
        num_slots, grid = split_table(table.shape[1], sorted(allowed), own, target)
        if num_slots:
            tokens[:, :num_slots] += table[:, :num_slots]
            tensors["pos_embed"] = table[:, num_slots:]
    num_cls = int(facts["pool"] != "mean")
    if num_cls and tokens.shape[1]:
        tensors["cls_token"] = tokens[:, :1]
    if tokens.shape[1] > num_cls:
        tensors["reg_token"] = tokens[:, num_cls:]
    _join_heads(tensors)
    if facts["pool"] != "mean" and "norm.weight" not in tensors:  # of one token it is the same before or after pooling
        for name in [name for name in tensors if name.startswith("fc_norm.")]:
            tensors[name.removeprefix("fc_")] = tensors.pop(name)
    return grid


def _pool(tensors: Tensors, facts: Facts) -> str:
    if facts.get("pool", "cls") != "cls":
        return facts["pool"]
    if "cls_token" not in tensors or ("pool" not in facts and "fc_norm.weight" in tensors):
        return "mean"
    if "head_dist.weight" in tensors:
        return "cls_register"
    dim = tensors["patch_embed.proj.weight"].shape[0]
    if "head.weight" in tensors and "pre_logits.weight" not in tensors and tensors["head.weight"].shape[1] == 2 * dim:
        return "cls_mean"
    return "cls"


def _join_heads(tensors: Tensors) -> None:
    """DeiT's two heads, whose logits are averaged, are one head that reads both tokens."""
    if "head_dist.weight" in tensors and "head.weight" in tensors:
        weight, bias = tensors.pop("head_dist.weight"), tensors.pop("head_dist.bias")
        tensors["head.weight"] = torch.cat([tensors["head.weight"], weight], dim=1) / 2
        tensors["head.bias"] = (tensors["head.bias"] + bias) / 2


def split_table(length: int, slots: list[int], own: Grid | None, target: Grid | None) -> tuple[int, Grid]:
    """How many of a table's positions belong to prefix tokens, and the grid of the others: the source's own, a square,
    or that of the model to come.

    Raises:
        ValueError: more than one answer fits, or none.
    """
    fitting = [n for n in slots if own and length - n == math.prod(own)]
    if fitting:
        return fitting[0], own
    squares = [(n, (math.isqrt(length - n),) * 2) for n in slots if length > n and _is_square(length - n)]
    others = [(n, target) for n in slots if target and target[0] != target[1] and length - n == math.prod(target)]
    if len(squares) + len(others) == 1:
        return (squares + others)[0]
    problem = "fits more than one grid" if squares else "is of no square grid"
    raise ValueError(f"a table of {length} positions {problem}: pass source_grid=(rows, columns) of the patches")


def _is_square(number: int) -> bool:
    return math.isqrt(number) ** 2 == number


def describe(tensors: Tensors, facts: Mapping[str, Any], grid: Grid | None) -> dict[str, Any]:
    """The fields of ViTConfig that the tensors have, and those of `facts`; `image_size` only with a grid.

    Raises:
        ValueError: the tensors are of no Vision Transformer that the config can describe.
    """
    missing = [name for name in ("patch_embed.proj.weight", *_NEEDED) if name not in tensors]
    if missing:
        raise ValueError(f"missing: {', '.join(missing)}, without which not even the sizes are known")
    dim, in_chans, patch, width = tensors["patch_embed.proj.weight"].shape
    if patch != width:
        raise ValueError(f"its patches are {patch}x{width} pixels; only square ones are supported")
    hidden = tensors["blocks.0.mlp.fc2.weight"].shape[1]
    is_gated = len(tensors["blocks.0.mlp.fc1.weight"]) == 2 * hidden
    act = facts.get("act", "swiglu" if is_gated else "gelu")
    if is_gated != (act == "swiglu"):
        raise ValueError(f"its MLP with act={act!r} is {'' if is_gated else 'not '}gated; only SwiGLU is, and must be")
    has = {name: f"{name}.weight" in tensors for name in ("fc_norm", "norm_pre", "pre_logits", "head")}
    if has["norm_pre"] and "norm_eps" not in facts:
        raise ValueError("with norm_pre, eps and activation vary, and it does not say which: pass norm_eps= and act=")
    stated = facts.get("mlp_ratio")
    numbers = [int(match[1]) for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name))]
    if max(numbers) >= len(tensors):  # a name costs nothing, and would have that many blocks built
        raise ValueError(f"it has a block {max(numbers)}, but only {len(tensors)} tensors")
    fields = {
        **facts,
        "patch_size": patch,
        "in_chans": in_chans,
        "embed_dim": dim,
        "depth": 1 + max(numbers),
        "mlp_ratio": stated if stated and int(dim * stated) == hidden else mlp_ratio(hidden, dim),
        "act": act,
        "norm_eps": facts.get("norm_eps", 1e-6),
        "pos_resampling": facts.get("pos_resampling", "bicubic_antialias"),
        "num_classes": len(tensors["head.weight"]) if has["head"] else 0,
        "num_registers": tensors["reg_token"].shape[1] if "reg_token" in tensors else 0,
        "pos_embed": "learned" if "pos_embed" in tensors else facts.get("pos_embed", "learned"),
        "pre_norm": has["norm_pre"],
        "fc_norm": has["fc_norm"],
        "patch_norm": "patch_embed.norm_in.weight" in tensors,
        "qkv_bias": "blocks.0.attn.qkv.bias" in tensors,
        "qk_norm": "blocks.0.attn.q_norm.weight" in tensors,
        "layer_scale": (facts.get("layer_scale") or 1e-5) if "blocks.0.ls1.gamma" in tensors else None,
    }
    if has["head"]:
        fields["head"] = "mlp" if has["pre_logits"] else "linear"
    if grid is not None:
        fields["image_size"] = (grid[0] * patch, grid[1] * patch)
    return fields


def mlp_ratio(hidden: int, dim: int) -> float:
    """The ratio from which ViTConfig, or timm, gets `hidden` back, whatever the rounding."""
    ratio = hidden / dim
    return ratio if int(dim * ratio) == hidden else math.nextafter(ratio, math.inf)


def num_heads_of(dim: int) -> int:
    """The heads of published models of this width; most files do not hold the number."""
    if dim not in _NUM_HEADS and dim % 64:
        raise ValueError(f"the number of heads is not in the file and not usual at a width of {dim}: pass num_heads=")
    return _NUM_HEADS.get(dim, dim // 64)


def own_name(name: str, described: Mapping[str, Any]) -> str:
    """This library's name for timm's."""
    if name.startswith(("blocks.", "norm.")):
        return f"encoder.{name}"
    if described.get("head") == "mlp":
        return re.sub("^pre_logits", "head.fc1", re.sub("^head", "head.fc2", name))
    return name
