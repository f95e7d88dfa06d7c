"""Weights before training: those that every network starts with, and two that know more than random ones, of images
(whitened patches) or of trained networks (mimetic), which change a new model in place.

Sources: Zhang et al., "Fixup Initialization", ICLR 2019 (branches that start at zero); Jordan, "94% on CIFAR-10 in 3.29
Seconds on a Single GPU", 2024, arXiv:2404.00498, section 3.2 (whitening, for a convolutional network); Ahmed,
Natarajan & Rao, "Discrete Cosine Transform", IEEE Transactions on Computers 1974 (cosines, almost the principal
components of smooth signals); Trockman & Kolter, "Mimetic Initialization of Self-Attention Layers", ICML 2023
(mimetic).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vit.model.head import MlpHead
from vit.model.patch_embed import patchify
from vit.model.pos_embed import sincos2d_table

if TYPE_CHECKING:
    from vit.model.vision_transformer import VisionTransformer  # which starts with `init_weights`


@torch.no_grad()
def init_weights(model: VisionTransformer) -> None:
    """What every new network starts with.

    Xavier-uniform matrices, with queries, keys and values counted as three, and zero biases, as in the paper's code.
    The last matrix of every residual branch and of the head starts at zero, so each block starts as the identity
    (Zhang et al. 2019) and the first loss is exactly ln(num_classes). With `patch_init="whitened"` the patches' matrix
    is that of `init_whitened_patches`.

    Differs: the paper draws small random positions and starts CLS at zero. Here a learned table starts as the
    fixed sine and cosine table, and CLS and registers as large as a patch token: both save the first epochs the work of
    finding out what is next to what.
    """
    if model.patch_embed.proj.weight.is_meta:
        return  # without memory there are no values, and torch would import a great deal to draw none
    init_linear_layers(model)
    for block in model.encoder.blocks:
        for matrix in block.attn.qkv.weight.chunk(3):
            nn.init.xavier_uniform_(matrix)
        nn.init.zeros_(block.attn.proj.weight)
        nn.init.zeros_(block.mlp.fc2.weight)
    nn.init.xavier_uniform_(model.patch_embed.proj.weight.flatten(1))
    if model.config.patch_init == "whitened":
        init_whitened_patches(model)
    if model.patch_embed.proj.bias is not None:
        nn.init.zeros_(model.patch_embed.proj.bias)
    for token in (model.cls_token, model.reg_token):
        if token is not None:
            nn.init.normal_(token)
    if model.pos_embed is not None:
        if model.config.embed_dim % 4 == 0:
            model.pos_embed.copy_(sincos2d_table(model.config.grid_size, model.config.embed_dim))
        else:
            nn.init.normal_(model.pos_embed, std=0.02)
    _zero_last_layer(model.head)


@torch.no_grad()
def init_head(head: nn.Module) -> None:
    """A head's weights before training, for a new head on a trained model."""
    init_linear_layers(head)
    _zero_last_layer(head)


def init_linear_layers(module: nn.Module) -> None:
    """Xavier-uniform weights and biases of 0 for all linear layers of a module, as vit_jax has them."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _zero_last_layer(head: nn.Module) -> None:
    last = head.fc2 if isinstance(head, MlpHead) else head
    if isinstance(last, nn.Linear):
        nn.init.zeros_(last.weight)


@torch.no_grad()
def init_whitened_patches(model: VisionTransformer, images: Tensor | None = None, *, eps: float = 5e-4) -> None:
    """Makes the patch embedding's rows the whitening filters of these images, followed by the filters' negatives.

    The filters are the principal components of the patches, those of most variance first, each scaled so that its
    responses have variance 1: neighboring pixels are much alike, and tokens start without that redundancy. Rows beyond
    two a pixel and channel stay as they are; of a narrower embedding the last filters are left out.

    Args:
        images: normalized as in training, (B, C, H, W); a few thousand. None takes natural images in general, see
            `natural_components`; `ViTConfig(patch_init="whitened")` starts with those.
        eps: added to the variances, so that components of almost none are not blown up; 0 or more.

    Differs: the source's patches overlap, its filters are frozen, and its covariance is about zero, not the mean.
    """
    if not eps >= 0:
        raise ValueError(f"eps={eps} must be 0 or more; the source has 5e-4")
    if images is not None and not (len(images) and images.isfinite().all()):
        raise ValueError(f"images {tuple(images.shape)} must be one or more, and all of their pixels finite")
    embed = model.patch_embed
    if images is None:
        components, variances = natural_components(embed.image_size, embed.patch_size, embed.in_chans)
    else:
        embed.check_images(images)
        patches = embed.norm_in(patchify(images, embed.patch_size)).flatten(0, 1).cpu().double()  # (B*N, C*p*p)
        variances, columns = torch.linalg.eigh(patches.mT.cov(correction=0))  # ascending
        components, variances = columns.mT.flip(0), variances.flip(0)
    filters = components / (variances.clamp(min=0) + eps).sqrt()[:, None]  # (C*p*p, C*p*p)
    if not filters.isfinite().all():
        raise ValueError(f"eps={eps} leaves a component without variance, which cannot be scaled to 1: use 5e-4")
    weight = embed.proj.weight  # (D, C, p, p)
    kept = min(len(filters), len(weight) // 2)
    weight[: 2 * kept] = torch.cat([filters[:kept], -filters[:kept]]).to(weight).unflatten(1, weight.shape[1:])


def natural_components(image_size: tuple[int, int], patch_size: int, in_chans: int) -> tuple[Tensor, Tensor]:
    """Nearly the principal components of natural images' patches, (C*p*p, C*p*p), one a row, and their variances
    (C*p*p,), the largest first.

    The components are cosines over rows, columns and channels; over those of RGB they are brightness, red against blue
    and green against both. The variances are those of images with a variance of 1 whose pixels correlate by
    exp(-(5 d)^1.5) at a distance d, counted in the shorter side of the image, and whose channels correlate by 0.9. The
    three numbers are fit to CIFAR-10: its principal components differ in variance by a factor of 380,000, and those of
    what these filters make of its patches by one of 63, which with filters of its own would be 6.
    """
    side = torch.arange(patch_size, dtype=torch.float64, device="cpu") / min(image_size)
    places = torch.cartesian_prod(side, side)  # (p*p, 2)
    of_pixels = torch.exp(-((5 * torch.cdist(places, places)) ** 1.5))  # (p*p, p*p)
    of_channels = torch.full((in_chans, in_chans), 0.9, dtype=torch.float64, device="cpu").fill_diagonal_(1)
    waves = _cosines(patch_size)
    components = torch.kron(_cosines(in_chans), torch.kron(waves, waves))  # as patchify orders a patch
    variances = (components @ torch.kron(of_channels, of_pixels) * components).sum(dim=1)
    order = variances.round(decimals=9).argsort(descending=True, stable=True)  # ties, of which there are many, in order
    return components[order], variances[order]


def _cosines(n: int) -> Tensor:
    """The orthonormal discrete cosine transform (n, n), one wave a row."""
    k = torch.arange(n, dtype=torch.float64, device="cpu")
    waves = torch.cos(torch.pi / n * k[:, None] * (k + 0.5))
    return waves / waves.norm(dim=1, keepdim=True)


@torch.no_grad()
def init_mimetic(model: VisionTransformer) -> None:
    """Lets every attention start as those of trained networks look: tokens attend to what is like them, and what a
    token gathers is subtracted.

    With weights as `nn.Linear` has them, W_q^T W_k of each head is the best matrix of its rank to 0.7 Z + 0.7 I, and
    W_v^T W_proj^T over all heads is 0.4 Z - 0.4 I, every Z drawn anew from N(0, 1/D). Made for positions that are or
    start as sines and cosines, and for mean pooling; `qk_norm` undoes the sizes of queries and keys. So the blocks no
    longer start as the identity, as `init_weights` has them.
    """
    for block in model.encoder.blocks:
        attn = block.attn
        d, D = attn.head_dim, attn.proj.in_features
        queries, keys, values = attn.qkv.weight.chunk(3)  # 3 x (D, D)
        for q, k in zip(queries.split(d), keys.split(d), strict=True):  # (d, D)
            left, right = _factors(0.7 * _noise(q, D) + 0.7 * torch.eye(D).to(q))
            q.copy_(left[:, :d].mT)
            k.copy_(right[:, :d].mT)
        left, right = _factors(0.4 * _noise(values, D) - 0.4 * torch.eye(D).to(values))
        values.copy_(left.mT)
        attn.proj.weight.copy_(right)


def _noise(like: Tensor, D: int) -> Tensor:
    return torch.randn(D, D, dtype=like.dtype, device=like.device) / D**0.5


def _factors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """A and B, both (D, D), with A B^T the matrix, and the first columns of both its best matrix of that rank."""
    U, S, Vh = torch.linalg.svd(matrix)
    return U * S.sqrt(), Vh.mT * S.sqrt()
