"""What each library calls the parts of a Vision Transformer: its names, and timm's for the same thing.

`#` stands for the number of a block, `*` for weight or bias, and None marks what this library's model has no use for.
`blocks.#.attn.{q,k,v}.*` and `blocks.#.mlp.{gate,value}.*` are halfway names: conversion packs them into `attn.qkv` and
`mlp.fc1`. A table covers whole names, so that what is in no table is noticed and never guessed.
"""

import re

Names = dict[str, str | None]

TIMM: Names = {
    name: name
    for name in (
        "cls_token", "dist_token", "reg_token", "pos_embed", "patch_embed.proj.*", "norm_pre.*",
        "blocks.#.norm1.*", "blocks.#.attn.qkv.*", "blocks.#.attn.q_norm.*", "blocks.#.attn.k_norm.*",
        "blocks.#.attn.proj.*", "blocks.#.ls1.gamma", "blocks.#.norm2.*", "blocks.#.mlp.fc1.*", "blocks.#.mlp.fc2.*",
        "blocks.#.ls2.gamma", "norm.*", "fc_norm.*", "pre_logits.*", "head.*", "head_dist.*",
    )
} | {"pre_logits.fc.*": "pre_logits.*"}  # fmt: skip

DEIT3 = TIMM | {"blocks.#.gamma_1": "blocks.#.ls1.gamma", "blocks.#.gamma_2": "blocks.#.ls2.gamma"}

DINOV2 = TIMM | {
    "register_tokens": "reg_token",
    "mask_token": None,
    "blocks.#.mlp.w12.*": "blocks.#.mlp.fc1.*",
    "blocks.#.mlp.w3.*": "blocks.#.mlp.fc2.*",
}

# This library's own. A head with a hidden layer ("mlp") keeps it inside the head.
OWN: Names = {
    "encoder." + name if name.startswith(("blocks.", "norm.")) else name: name
    for name in TIMM
    if not name.startswith(("dist_token", "pre_logits", "head_dist"))
} | {
    "patch_embed.norm_in.*": "patch_embed.norm_in.*",
    "patch_embed.norm_out.*": "patch_embed.norm_out.*",
    "head.fc1.*": "pre_logits.*",
    "head.fc2.*": "head.*",
}

TORCHVISION: Names = {
    "class_token": "cls_token",
    "encoder.pos_embedding": "pos_embed",
    "conv_proj.*": "patch_embed.proj.*",
    "encoder.layers.encoder_layer_#.ln_1.*": "blocks.#.norm1.*",
    "encoder.layers.encoder_layer_#.self_attention.in_proj_weight": "blocks.#.attn.qkv.weight",
    "encoder.layers.encoder_layer_#.self_attention.in_proj_bias": "blocks.#.attn.qkv.bias",
    "encoder.layers.encoder_layer_#.self_attention.out_proj.*": "blocks.#.attn.proj.*",
    "encoder.layers.encoder_layer_#.ln_2.*": "blocks.#.norm2.*",
    "encoder.layers.encoder_layer_#.mlp.0.*": "blocks.#.mlp.fc1.*",
    "encoder.layers.encoder_layer_#.mlp.3.*": "blocks.#.mlp.fc2.*",
    "encoder.layers.encoder_layer_#.mlp.linear_1.*": "blocks.#.mlp.fc1.*",  # before torchvision 0.14
    "encoder.layers.encoder_layer_#.mlp.linear_2.*": "blocks.#.mlp.fc2.*",
    "encoder.ln.*": "norm.*",
    "heads.pre_logits.*": "pre_logits.*",
    "heads.head.*": "head.*",
}

# transformers has one set of names in files, of all releases, and since release 5 another in memory.
_HF_EMBEDDINGS: Names = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.*": "patch_embed.proj.*",
    "embeddings.mask_token": None,
    "layernorm.*": "norm.*",
    "pooler.dense.*": None,
    "classifier.*": "head.*",
}
HF_VIT_FILE = _HF_EMBEDDINGS | {
    "encoder.layer.#.layernorm_before.*": "blocks.#.norm1.*",
    "encoder.layer.#.attention.attention.query.*": "blocks.#.attn.q.*",
    "encoder.layer.#.attention.attention.key.*": "blocks.#.attn.k.*",
    "encoder.layer.#.attention.attention.value.*": "blocks.#.attn.v.*",
    "encoder.layer.#.attention.output.dense.*": "blocks.#.attn.proj.*",
    "encoder.layer.#.layernorm_after.*": "blocks.#.norm2.*",
    "encoder.layer.#.intermediate.dense.*": "blocks.#.mlp.fc1.*",
    "encoder.layer.#.output.dense.*": "blocks.#.mlp.fc2.*",
}
HF_VIT = HF_VIT_FILE | {
    "layers.#.layernorm_before.*": "blocks.#.norm1.*",
    "layers.#.attention.q_proj.*": "blocks.#.attn.q.*",
    "layers.#.attention.k_proj.*": "blocks.#.attn.k.*",
    "layers.#.attention.v_proj.*": "blocks.#.attn.v.*",
    "layers.#.attention.o_proj.*": "blocks.#.attn.proj.*",
    "layers.#.layernorm_after.*": "blocks.#.norm2.*",
    "layers.#.mlp.fc1.*": "blocks.#.mlp.fc1.*",
    "layers.#.mlp.fc2.*": "blocks.#.mlp.fc2.*",
}
HF_DEIT = HF_VIT | {
    "embeddings.distillation_token": "dist_token",
    "cls_classifier.*": "head.*",
    "distillation_classifier.*": "head_dist.*",
}
_HF_DINOV2_BLOCK: Names = {
    "norm1.*": "norm1.*",
    "attention.attention.query.*": "attn.q.*",
    "attention.attention.key.*": "attn.k.*",
    "attention.attention.value.*": "attn.v.*",
    "attention.output.dense.*": "attn.proj.*",
    "attention.q_proj.*": "attn.q.*",
    "attention.k_proj.*": "attn.k.*",
    "attention.v_proj.*": "attn.v.*",
    "attention.o_proj.*": "attn.proj.*",
    "layer_scale1.lambda1": "ls1.gamma",
    "norm2.*": "norm2.*",
    "mlp.fc1.*": "mlp.fc1.*",
    "mlp.fc2.*": "mlp.fc2.*",
    "mlp.weights_in.*": "mlp.fc1.*",
    "mlp.weights_out.*": "mlp.fc2.*",
    "mlp.gate_proj.*": "mlp.gate.*",
    "mlp.up_proj.*": "mlp.value.*",
    "mlp.down_proj.*": "mlp.fc2.*",
    "layer_scale2.lambda1": "ls2.gamma",
}
HF_DINOV2 = (
    _HF_EMBEDDINGS
    | {"embeddings.register_tokens": "reg_token"}
    | {f"encoder.layer.#.{theirs}": f"blocks.#.{timms}" for theirs, timms in _HF_DINOV2_BLOCK.items()}
)
HF_CLIP: Names = {
    "embeddings.class_embedding": "cls_token",
    "embeddings.patch_embedding.weight": "patch_embed.proj.weight",
    "embeddings.position_embedding.weight": "pos_embed",
    "embeddings.position_ids": None,
    "pre_layrnorm.*": "norm_pre.*",
    "encoder.layers.#.layer_norm1.*": "blocks.#.norm1.*",
    "encoder.layers.#.self_attn.q_proj.*": "blocks.#.attn.q.*",
    "encoder.layers.#.self_attn.k_proj.*": "blocks.#.attn.k.*",
    "encoder.layers.#.self_attn.v_proj.*": "blocks.#.attn.v.*",
    "encoder.layers.#.self_attn.out_proj.*": "blocks.#.attn.proj.*",
    "encoder.layers.#.layer_norm2.*": "blocks.#.norm2.*",
    "encoder.layers.#.mlp.fc1.*": "blocks.#.mlp.fc1.*",
    "encoder.layers.#.mlp.fc2.*": "blocks.#.mlp.fc2.*",
    "post_layernorm.*": "norm.*",
    "visual_projection.weight": "head.weight",
}

OPENAI_CLIP: Names = {
    "class_embedding": "cls_token",
    "positional_embedding": "pos_embed",
    "conv1.weight": "patch_embed.proj.weight",
    "ln_pre.*": "norm_pre.*",
    "transformer.resblocks.#.ln_1.*": "blocks.#.norm1.*",
    "transformer.resblocks.#.attn.in_proj_weight": "blocks.#.attn.qkv.weight",
    "transformer.resblocks.#.attn.in_proj_bias": "blocks.#.attn.qkv.bias",
    "transformer.resblocks.#.attn.out_proj.*": "blocks.#.attn.proj.*",
    "transformer.resblocks.#.ln_2.*": "blocks.#.norm2.*",
    "transformer.resblocks.#.mlp.c_fc.*": "blocks.#.mlp.fc1.*",
    "transformer.resblocks.#.mlp.c_proj.*": "blocks.#.mlp.fc2.*",
    "ln_post.*": "norm.*",
    "proj": "head.weight",
}

# Flax, with "." for "/" and weight for kernel and scale; older files number a block's parts in one row.
_FLAX_BLOCK: Names = {
    "LayerNorm_0.*": "norm1.*",
    **{
        f"MultiHeadDotProductAttention_{i}.{theirs}.*": f"attn.{timms}.*"
        for i in (0, 1)
        for theirs, timms in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "proj"))
    },
    "LayerNorm_1.*": "norm2.*",
    "LayerNorm_2.*": "norm2.*",
    **{f"MlpBlock_{i}.Dense_{j}.*": f"mlp.fc{j + 1}.*" for i in (0, 3) for j in (0, 1)},
}
GOOGLE = {
    "cls": "cls_token",
    "pos_embedding": "pos_embed",
    "Transformer.posembed_input.pos_embedding": "pos_embed",
    "embedding.*": "patch_embed.proj.*",
    "Transformer.encoder_norm.*": "norm.*",
    "pre_logits.*": "pre_logits.*",
    "head.*": "head.*",
} | {f"Transformer.encoderblock_#.{theirs}": f"blocks.#.{timms}" for theirs, timms in _FLAX_BLOCK.items()}

VIT_PYTORCH: Names = {
    "cls_token": "cls_token",
    "pos_embedding": "pos_embed",
    "to_patch_embedding.1.*": "patch_embed.norm_in.*",
    "to_patch_embedding.2.*": "patch_embed.proj.*",
    "to_patch_embedding.3.*": "patch_embed.norm_out.*",
    "transformer.layers.#.0.norm.*": "blocks.#.norm1.*",
    "transformer.layers.#.0.to_qkv.weight": "blocks.#.attn.qkv.weight",
    "transformer.layers.#.0.to_out.0.*": "blocks.#.attn.proj.*",  # ViT
    "transformer.layers.#.0.to_out.weight": "blocks.#.attn.proj.weight",  # SimpleViT
    "transformer.layers.#.1.net.0.*": "blocks.#.norm2.*",
    "transformer.layers.#.1.net.1.*": "blocks.#.mlp.fc1.*",
    "transformer.layers.#.1.net.3.*": "blocks.#.mlp.fc2.*",  # SimpleViT
    "transformer.layers.#.1.net.4.*": "blocks.#.mlp.fc2.*",  # ViT, behind a dropout
    "transformer.norm.*": "norm.*",
    "mlp_head.*": "head.*",
    "linear_head.*": "head.*",
}

_NUMBER = re.compile(r"(?<=[._])\d+(?=\.)")
_LAST = re.compile(r"\.(weight|bias)$")


def translate(name: str, names: Names) -> str | None:
    """A name by a table: the other library's, None for what has no use, KeyError for what is not in the table."""
    number, last = _NUMBER.search(name), _LAST.search(name)
    template = _NUMBER.sub("#", name, count=1)
    for pattern in (name, _LAST.sub(".*", name), template, _LAST.sub(".*", template)):
        if pattern in names:
            found = names[pattern]
            if found is None:
                return None
            return found.replace("#", number[0] if number else "").replace("*", last[1] if last else "")
    raise KeyError(name)
