"""What must happen to the tensors of a format, beyond their names, before they mean what timm's mean.

Each function changes `tensors` (under timm's names, see names.py) and `facts` (fields of ViTConfig) in place. A tensor
that is missing is left for the loader to report.
"""

import math
import re
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
Facts = dict[str, Any]
_PACKED = {"attn.qkv.": ("attn.q.", "attn.k.", "attn.v."), "mlp.fc1.": ("mlp.gate.", "mlp.value.")}
MAX_DEPTH = 1000  # blocks; a shape in a file costs nothing, and may claim any number


def nothing(tensors: Tensors, facts: Facts) -> None:
    """The tensors mean what timm's do."""


def pack(tensors: Tensors, facts: Facts) -> None:
    """Queries, keys and values into one matrix, and the two halves of a gated MLP into another."""
    for whole, parts in _PACKED.items():
        for first in [name for name in tensors if parts[0] in name]:
            names = [first.replace(parts[0], part) for part in parts]
            if all(name in tensors for name in names):
                tensors[first.replace(parts[0], whole)] = torch.cat([tensors.pop(name) for name in names])


def from_clip(tensors: Tensors, facts: Facts) -> None:
    """Tables get a batch axis, and the projection, a head without a bias, a bias of zeros."""
    pack(tensors, facts)
    for name, shape in (("cls_token", (1, 1, -1)), ("pos_embed", (1, -1, tensors["patch_embed.proj.weight"].shape[0]))):
        if name in tensors:
            tensors[name] = tensors[name].reshape(shape)
    if "head.weight" in tensors:
        tensors["head.bias"] = tensors["head.weight"].new_zeros(len(tensors["head.weight"]))


def from_openai_clip(tensors: Tensors, facts: Facts) -> None:
    """As `from_clip`; the projection stands on the right of the features, so it is transposed."""
    if "head.weight" in tensors:
        tensors["head.weight"] = tensors["head.weight"].T.contiguous()
    from_clip(tensors, facts)


def from_flax(tensors: Tensors, facts: Facts) -> None:
    """Kernels have their outputs last, and attention's keep the heads (D, h, d) apart."""
    for name, x in tensors.items():
        if re.search(r"attn\.[qkv]\.weight", name):
            facts["num_heads"] = x.shape[1]
            x = x.flatten(1).T  # (h*d, D)
        elif re.search(r"attn\.[qkv]\.bias", name):
            x = x.flatten()
        elif name.endswith("attn.proj.weight"):
            x = x.flatten(0, 1).T  # (D, h*d)
        elif name == "patch_embed.proj.weight":
            x = x.permute(3, 2, 0, 1)  # (D, C, p, p)
        elif name.endswith(".weight") and x.ndim == 2:
            x = x.T
        tensors[name] = x.contiguous()
    pack(tensors, facts)


def unstack(tensors: Tensors) -> Tensors:
    """Flax's scanned blocks, stored as one tensor for all, as one for each. Takes and gives Flax's names."""
    separate = {}
    for name, x in tensors.items():
        if "/encoderblock/" in name and x.layout == torch.strided and x.ndim and len(x) <= MAX_DEPTH:
            separate |= {name.replace("/encoderblock/", f"/encoderblock_{i}/"): part for i, part in enumerate(x)}
        else:
            separate[name] = x
    return separate


def from_vit_pytorch(tensors: Tensors, facts: Facts) -> None:
    """Patches are flattened row, column, channel; here channel, row, column. Tables get a batch axis."""
    matrix = tensors["patch_embed.proj.weight"]  # (D, p*p*C)
    dim, length = matrix.shape[0], matrix.shape[1]
    channels = facts.get("in_chans") or (3 if math.isqrt(length // 3) ** 2 * 3 == length else 1)
    side = math.isqrt(length // channels)
    if side * side * channels != length:
        raise ValueError(f"patches of {length} numbers are not square at in_chans={channels}: pass in_chans=")
    tensors["patch_embed.proj.weight"] = matrix.reshape(-1, side, side, channels).permute(0, 3, 1, 2).contiguous()
    for name in ("patch_embed.norm_in.weight", "patch_embed.norm_in.bias"):
        if name in tensors:
            tensors[name] = tensors[name].reshape(side, side, channels).permute(2, 0, 1).flatten()
    for name in ("cls_token", "pos_embed"):
        if name in tensors:
            tensors[name] = tensors[name].reshape(1, -1, dim)  # earlier versions have the batch axis
    if "cls_token" in tensors and not tensors["cls_token"].numel():
        del tensors["cls_token"]  # with pool="mean" there are none, in a table of none
    for name in [name for name in tensors if name.endswith("attn.qkv.weight")]:
        inner = tensors[name].shape[0] // 3
        if inner != dim:
            raise ValueError(
                f"its heads are {inner} wide together, its tokens {dim}: only heads * dim_head = dim is read"
            )
        if name.replace("qkv.weight", "proj.weight") in tensors:  # SimpleViT's output has no bias
            tensors.setdefault(name.replace("qkv.weight", "proj.bias"), tensors[name].new_zeros(dim))
