"""The model: images in, logits out. It knows nothing of data, training or plots."""

from vit.model.initialization import init_mimetic, init_whitened_patches
from vit.model.patch_embed import PatchEmbed, patchify, unpatchify
from vit.model.transformer import Attention, Block, Encoder, Mlp
from vit.model.vision_transformer import VisionTransformer

__all__ = [
    "Attention",
    "Block",
    "Encoder",
    "Mlp",
    "PatchEmbed",
    "VisionTransformer",
    "init_mimetic",
    "init_whitened_patches",
    "patchify",
    "unpatchify",
]
