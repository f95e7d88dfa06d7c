"""What a Vision Transformer holds inside: its filters, its positions, and its tokens after every block.

Tokens are those each block hands on, before the final LayerNorm. Everything is returned on the CPU in float32.
Sources: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, Fig. 7 left and center (filters, positions);
nostalgebraist, "interpreting GPT: the logit lens", 2020; Darcet et al., "Vision Transformers Need Registers", ICLR 2024
(token norms); Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019 (CKA).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn

from vit.analysis.inputs import Images, check_has_classes, prepared_parts
from vit.analysis.layout import blocks_of, layer_indices, token_layout
from vit.analysis.metrics import as_tensor
from vit.arguments import as_integer
from vit.modules import eval_mode, unwrap

MOST_FILTERS = 28  # components that are shown, unless told otherwise


def block_outputs(model: nn.Module, images: Images) -> Tensor:
    """The tokens (L, B, T, D) after every block, the prefix first.

    Args:
        images: anything `prepare_images` takes: a uint8 or normalized batch (B, C, H, W), or pictures.
    """
    return _read_blocks(model, images, lambda tokens: tokens)  # (L, B, T, D)


def token_norms(model: nn.Module, images: Images) -> Tensor:
    """The length (L, B, T) of every token after every block. `token_layout(model).to_grid` makes maps of it, in which
    a few patches far longer than the rest show where a model keeps what it knows of the whole image (Darcet et al.)."""
    return _read_blocks(model, images, lambda tokens: tokens.float().norm(dim=-1))  # (L, B, T)


def logit_lens(model: nn.Module, images: Images) -> Tensor:
    """The logits (L, B, K) if the encoder ended after each block: its tokens, read by the final norm and the head. The
    last layer's are the model's own.

    Differs: nostalgebraist decodes every token; here the head reads what it was trained to read, CLS or the mean.
    """
    check_has_classes(model)
    inner = unwrap(model)
    norm = inner.encoder.norm if hasattr(inner, "encoder") else inner.norm
    return _read_blocks(model, images, lambda tokens: inner.forward_head(norm(tokens)))  # (L, B, K)


def token_pca(model: nn.Module, images: Images, layer: int = -1) -> Tensor:
    """The patch tokens after one block as colors (B, rows, columns, 3) in [0, 1]: their first three principal
    components, over all patches of all images together, so that equal colors mean like tokens in any image.

    Each component runs from its 1 % to its 99 % quantile. Where the head reads CLS, nothing reads the patches after the
    last block; the block before it, layer=-2, is the last whose patches matter.

    Args:
        layer: counted from 0, or from the last as -1.
    """
    layout = token_layout(model)
    [i] = layer_indices(layer, len(blocks_of(model)), "layer")
    tokens = block_outputs(model, images)[i, :, layout.num_prefix_tokens :].double()  # (B, N, D)
    if tokens.shape[0] * tokens.shape[1] < 4:
        raise ValueError(f"images hold {tokens.shape[0] * tokens.shape[1]} patches in all; three components need 4")
    examples = tokens.flatten(0, 1)  # (B*N, D)
    basis, _ = _principal_components(examples, 3)  # (3, D)
    values = examples @ basis.T  # (B*N, 3)
    low, high = values.quantile(values.new_tensor([0.01, 0.99]), dim=0)  # 2 x (3,)
    values = ((values - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    return values.float().unflatten(0, (len(tokens), *layout.grid_size))  # (B, rows, columns, 3)


def pos_embed_similarity(model: nn.Module) -> Tensor:
    """Cosine similarity (rows, columns, rows, columns) between the position vectors of every two patches; the slots
    that a table of timm has for CLS and registers are left out.

    Raises:
        ValueError: a model whose positions are not vectors added to its patches ("rope", "none").
    """
    inner = unwrap(model)
    table = getattr(inner, "pos_embed", None)
    if table is None:
        table = getattr(inner, "pos_table", None)
    if not isinstance(table, Tensor):
        kind = getattr(getattr(inner, "config", None), "pos_embed", None)
        raise ValueError(f"pos_embed={kind!r}: no vector is added to a patch; only 'learned' and 'sincos2d' have them")
    grid = token_layout(inner).to_grid(table[0].detach().cpu().float().T)  # (D, rows, columns)
    unit = F.normalize(grid, dim=0)
    return torch.einsum("dij,dkl->ijkl", unit, unit)  # (rows, columns, rows, columns)


def patch_filters(model: nn.Module, num: int | None = None) -> tuple[Tensor, Tensor]:
    """The first principal components of the D filters of the patch embedding, (num, C, p, p) of length 1, and the
    share (num,) of the filters' variance that each explains.

    The filters are centered, as in any principal component analysis. It is no loss: the mean filter moves all channels
    of a token alike, which the first LayerNorm takes out again. The sign of a component is arbitrary; here its largest
    weight is positive.

    Args:
        num: 1 or more; default 28, or all that there are: one less than filters, and no more than weights in each.
    """
    weight = unwrap(model).patch_embed.proj.weight.detach().cpu().double()  # (D, C, p, p)
    most = min(len(weight) - 1, weight[0].numel())
    num = min(MOST_FILTERS, most) if num is None else num
    num = as_integer("num", num, 1, most, remedy=f": {len(weight)} filters of {weight[0].numel()} weights have no more")
    basis, explained = _principal_components(weight.flatten(1), num)  # (num, C*p*p), (num,)
    return basis.unflatten(1, weight.shape[1:]).float(), explained.float()


def cka(x: ArrayLike, y: ArrayLike) -> Tensor:
    """Linear centered kernel alignment of features (n, p) and (n, q) of the same n examples, a number in [0, 1].

    It is 1 if one is the other turned, mirrored or scaled as a whole, and tells layers of different width apart from
    layers that merely name their axes differently. It is biased upwards where n is not far above p and q.
    Source: Kornblith et al., 2019, section 3, in the form of features (p*q numbers, not n*n).
    """
    x, y = as_tensor(x), as_tensor(y)
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ValueError(f"x and y must be (n, p) and (n, q) of the same n, got {tuple(x.shape)} and {tuple(y.shape)}")
    return _alignment(_standardized(x), _standardized(y)).float()


def layer_similarity(model: nn.Module, images: Images, other: nn.Module | None = None) -> Tensor:
    """Linear CKA (L, L') of the tokens after every two blocks, of one model or of two; every token is an example.

    Args:
        images: for two models uint8 or pictures, since each may normalize them its own way.
        other: the model of the columns, with as many tokens; default the same model.
    """
    if other is not None and token_layout(model).num_tokens != token_layout(other).num_tokens:
        counts = [token_layout(m).num_tokens for m in (model, other)]
        raise ValueError(f"model has {counts[0]} tokens and other {counts[1]}: their tokens are not the same examples")
    layers = [_standardized(tokens.flatten(0, 1)) for tokens in block_outputs(model, images)]  # L x (B*T, D)
    if other is not None:
        others = [_standardized(tokens.flatten(0, 1)) for tokens in block_outputs(other, images)]  # L' x (B*T, D)
        return torch.stack([torch.stack([_alignment(x, y) for y in others]) for x in layers]).float()  # (L, L')
    similarity = torch.eye(len(layers), device="cpu")  # (L, L)
    for i, x in enumerate(layers):
        for j in range(i):
            similarity[i, j] = similarity[j, i] = _alignment(x, layers[j])
    return similarity


@torch.no_grad()
def _read_blocks(model: nn.Module, images: Images, read: Callable[[Tensor], Tensor]) -> Tensor:
    """`read` of the tokens (B, T, D) after every block, in evaluation mode, stacked over layers."""
    model = unwrap(model)
    blocks = blocks_of(model)
    readings, parts = [], []
    with eval_mode(model), ExitStack() as stack:
        for block in blocks:
            hook = block.register_forward_hook(lambda module, args, out: readings.append(read(out).float().cpu()))
            stack.callback(hook.remove)
        for part in prepared_parts(model, images):
            readings.clear()
            # Not forward: with CLS, it computes no other token of the last block.
            model.forward_features(part)
            if len(readings) != len(blocks):
                raise RuntimeError(
                    f"{len(readings)} of the {len(blocks)} blocks were seen at work; no hook can see compiled code: "
                    'put `with torch.compiler.set_stance("force_eager"):` around it'
                )
            parts.append(torch.stack(readings))
    return torch.cat(parts, dim=1)


def _principal_components(x: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """The first directions (num, p) in which the examples x (n, p) vary, of length 1, and their shares (num,) of the
    variance: the right singular vectors of the centered x, as eigenvectors of p*p numbers, since n may be large."""
    x = x - x.mean(dim=0)
    variances, vectors = torch.linalg.eigh(x.T @ x)  # (p,) rising, (p, p)
    variances, basis = variances.clamp_min(0).flip(0), vectors.T.flip(0)[:num]  # (p,), (num, p)
    largest = basis.gather(1, basis.abs().argmax(dim=1, keepdim=True))  # (num, 1)
    return basis * largest.sign(), variances[:num] / variances.sum()


def _standardized(x: Tensor) -> Tensor:
    """Features (n, p) in float64, centered and scaled so that their alignment with themselves is 1."""
    x = x.cpu().double()
    size = x.square().sum()
    x = x - x.mean(dim=0)
    scale = (x.T @ x).norm()
    if scale <= 1e-24 * size:  # float64 leaves this much of a constant
        raise ValueError(f"features of shape {tuple(x.shape)} are the same for all examples: nothing to compare")
    return x / scale.sqrt()


def _alignment(x: Tensor, y: Tensor) -> Tensor:
    return (x.T @ y).square().sum()
