"""What attention heads do on average: how far they look, how widely they spread, and which of them do alike.

All three take the maps (L, B, h, T, T) of `attention_maps`, work layer by layer so that little memory is added, and
average over images and queries. Nothing here runs a model.
Sources: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, section 4.5 and Fig. 7 right (distance); Lin,
"Divergence Measures Based on the Shannon Entropy", 1991 (Jensen-Shannon divergence).
"""

import math

import torch
from torch import Tensor

from vit.analysis.layout import TokenLayout, check_maps


def patch_distances(layout: TokenLayout) -> Tensor:
    """Distance in pixels between the centers of every two patches, (N, N); its mean is that of uniform attention."""
    sizes = zip(layout.grid_size, layout.patch_size, strict=True)
    rows, columns = (torch.arange(n, device="cpu") * p for n, p in sizes)
    centers = torch.cartesian_prod(rows, columns).float()  # (N, 2)
    return (centers[:, None] - centers).norm(dim=-1)  # (N, N)


def mean_attention_distance(maps: Tensor, layout: TokenLayout) -> Tensor:
    """How many pixels away each head looks (L, h): the distance between the centers of the asking patch and of the
    patch it attends to, weighted by attention. A query whose attention all goes to the prefix is not counted.

    Source: Dosovitskiy et al., section 4.5: this is to a head what the size of its receptive field is to a convolution.
    Differs: CLS and registers have no place in the image. They are left out as queries and as keys, and what a patch
    gives to the other patches is scaled to sum to 1; the paper does not say what it does about CLS.
    """
    check_maps(maps, min_images=1)
    if maps.shape[-1] != layout.num_tokens:
        raise ValueError(f"maps have {maps.shape[-1]} tokens, the layout has {layout.num_tokens}: another model's?")
    prefix, distances = layout.num_prefix_tokens, patch_distances(layout)

    def of_layer(layer: Tensor) -> Tensor:
        attn = layer[..., prefix:, prefix:].float().cpu()  # (B, h, N, N)
        mean = (attn * distances).sum(dim=-1) / attn.sum(dim=-1)  # (B, h, N)
        return mean.nanmean(dim=(0, 2))  # (h,)

    return torch.stack([of_layer(layer) for layer in maps])  # (L, h)


def attention_entropy(maps: Tensor) -> Tensor:
    """How widely each head spreads its attention over all tokens (L, h), in bits: 0 for a single token, log2(T) for
    all alike, and 2 to this power is the number of tokens it looks at, so to speak."""
    check_maps(maps, min_images=1)
    return torch.stack([_entropy(layer.float()).mean(dim=(0, 2)) for layer in maps]).cpu()  # (L, h)


def head_similarity(maps: Tensor) -> Tensor:
    """How alike every two heads of all layers attend, (L*h, L*h), in [0, 1]: heads in order, layer after layer.

    It is 1 minus the Jensen-Shannon divergence in bits of two heads' rows, averaged over queries. Rows are probability
    distributions, and this divergence is symmetric, at most 1 bit, and defined where a row is 0. So 1 means equal, and
    0 that no token is attended to by both.

    Differs: maps are averaged over images first, so this compares what heads do anywhere, not in each image.
    """
    check_maps(maps, min_images=1)
    heads = torch.stack([layer.float().mean(dim=0) for layer in maps]).flatten(0, 1).cpu()  # (L*h, T, T)
    entropy = _entropy(heads)  # (L*h, T)
    similarity = torch.eye(len(heads), device="cpu")  # (L*h, L*h)
    for i in range(len(heads) - 1):
        mixture = (heads[i] + heads[i + 1 :]) / 2  # (later heads, T, T)
        divergence = _entropy(mixture) - (entropy[i] + entropy[i + 1 :]) / 2  # (later heads, T)
        similarity[i, i + 1 :] = similarity[i + 1 :, i] = 1 - divergence.mean(dim=-1)
    return similarity.clamp(0, 1)  # rounding alone leaves the range


def _entropy(attn: Tensor) -> Tensor:
    """Entropy in bits of rows (..., T, T), as (..., T)."""
    return torch.special.entr(attn).sum(dim=-1) / math.log(2)
