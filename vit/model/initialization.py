"""Start weights that know more than random ones: of the data (whitened patches) or of trained networks (mimetic).

Both change a new model in place, before it is trained; the usual start is `init_weights` in vision_transformer.py.
Sources: Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024, arXiv:2404.00498, section 3.2 (whitening, for
a convolutional network); Trockman & Kolter, "Mimetic Initialization of Self-Attention Layers", ICML 2023 (mimetic).
"""

import torch
from torch import Tensor

from vit.model.patch_embed import patchify
from vit.model.vision_transformer import VisionTransformer


@torch.no_grad()
def init_whitened_patches(model: VisionTransformer, images: Tensor, *, eps: float = 5e-4) -> None:
    """Makes the patch embedding's rows the whitening filters of these images, followed by the filters' negatives.

    The filters are the principal components of the patches, those of most variance first, each scaled so that its
    responses have variance 1: neighboring pixels are much alike, and tokens start without that redundancy. Rows beyond
    two a pixel and channel stay as they are; of a narrower embedding the last filters are left out.

    Args:
        images: normalized as in training, (B, C, H, W); a few thousand.
        eps: added to the variances, so that components of almost none are not blown up; 0 or more.

    Differs: the source's patches overlap, its filters are frozen, and its covariance is about zero, not the mean.
    """
    if not eps >= 0:
        raise ValueError(f"eps={eps} must be 0 or more; the source has 5e-4")
    embed = model.patch_embed
    embed.check_images(images)
    patches = embed.norm_in(patchify(images, embed.patch_size)).flatten(0, 1).cpu().double()  # (B*N, C*p*p)
    variances, components = torch.linalg.eigh(patches.mT.cov(correction=0))  # ascending
    filters = (components / (variances + eps).sqrt()).mT.flip(0)  # (C*p*p, C*p*p)
    weight = embed.proj.weight.flatten(1)  # (D, C*p*p)
    kept = min(len(filters), len(weight) // 2)
    weight[: 2 * kept] = torch.cat([filters[:kept], -filters[:kept]]).to(weight)


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
