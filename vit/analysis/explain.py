"""Which patches a classification rests on, read from the attention maps of a Vision Transformer.

Four methods, from plain to class-specific: where the head looks in the last layer, how attention mixes tokens through
all layers (rollout), and two that keep only the attention which raises the target's logit. No method is the
truth; deletion and insertion curves compare them.
Sources: Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020, section 3; Chefer, Gur and Wolf,
"Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder Transformers", ICCV 2021, Eq. 5-6.
"""

import torch
from torch import Tensor, nn

from vit.analysis.attention import maps_of_prepared, record_attention
from vit.analysis.inputs import (
    Images,
    Targets,
    as_targets,
    check_classes,
    check_has_classes,
    images_at_once,
    num_images,
    prepare_images,
    prepared_parts,
)
from vit.analysis.layout import blocks_of, check_maps, pooled_row, token_layout
from vit.arguments import check_choice
from vit.modules import eval_mode, unwrap

CLASS_METHODS = ("gradient_rollout", "relevance")  # which ask for a class
METHODS = ("attention", "rollout", *CLASS_METHODS)
CHUNK_ENTRIES = 2**23  # of all maps of the images that `explain` looks at together; it bounds the memory
HEAD_FUSIONS = {"mean": torch.mean, "max": torch.amax, "min": torch.amin}


def explain(model: nn.Module, images: Images, method: str = "relevance", *, targets: Targets | None = None) -> Tensor:
    """How much each patch matters for the target class, (B, rows, columns), zero or more, in arbitrary units: compare
    patches of one image, not images or methods.

    Reads the row of CLS where the head does, else the mean of the patches' rows, or of both. For patches the methods
    with gradients leave out what every patch hands to itself through the residual connections alone: no attention takes
    part in it, and its share, near 1, would drown the rest. A row of CLS holds no such share for a patch.

    Args:
        images: anything `prepare_images` takes.
        method: "attention" is the last layer's, mean of the heads, and "rollout" `attention_rollout`: both the same for
            every class; "gradient_rollout" and "relevance" are the functions of those names.
        targets: as for `attention_gradients`; the first two methods ignore it.
    """
    check_choice("method", method, METHODS)
    model = unwrap(model)
    layout, blocks = token_layout(model), blocks_of(model)
    if method in CLASS_METHODS:
        check_has_classes(model)
    else:
        targets = None
    entries = len(blocks) * blocks[0].attn.num_heads * layout.num_tokens**2  # of the maps of one image
    at_once = max(1, min(images_at_once(model), CHUNK_ENTRIES // entries))
    heat, classes, done = [], None, 0
    for part in prepared_parts(model, images, at_once):
        if targets is not None and classes is None:  # the images are checked by now, so they can be counted
            classes = as_targets(targets, num_images(images))  # (B,)
        chosen = None if classes is None else classes[done : done + len(part)]  # (b,)
        matrix = _matrix(model, part, method, chosen)  # (b, T, T)
        heat.append(layout.to_grid(pooled_row(matrix, layout)))  # (b, rows, columns)
        done += len(part)
    return torch.cat(heat)  # (B, rows, columns)


def _matrix(model: nn.Module, images: Tensor, method: str, targets: Tensor | None) -> Tensor:
    """What every token holds of every other (B, T, T) by one of the methods, for images that are prepared."""
    if method in CLASS_METHODS:
        raising = _raising(*_gradients(model, images, targets))  # (L, B, T, T)
        return _flow(raising, normalize=method == "gradient_rollout")[0]
    depth = len(blocks_of(model))
    layers = range(depth) if method == "rollout" else [depth - 1]
    maps = maps_of_prepared(model, images, layers)
    maps = torch.stack([maps[i].cpu() for i in layers])  # (L, B, h, T, T)
    return attention_rollout(maps) if method == "rollout" else _float(maps)[0].mean(dim=1)


def attention_rollout(maps: Tensor, *, head_fusion: str = "mean", discard_ratio: float = 0.0) -> Tensor:
    """What every token holds of every input token, (B, T, T), if attention and residual connections only mixed tokens,
    half and half; rows sum to 1.

    Args:
        maps: attention probabilities (L, B, h, T, T), first layer first.
        head_fusion: "mean", "max" or "min" over the heads.
        discard_ratio: share of entries, the smallest of each row, that are set to 0, in [0, 1).

    Source: Abnar and Zuidema, Eq. 1.
    Differs: `head_fusion` and `discard_ratio` are not in the paper, which takes the mean of all; each row loses the
        same number of entries, so a token with flat attention is not erased.
    """
    check_maps(maps)
    check_choice("head_fusion", head_fusion, HEAD_FUSIONS)
    if not 0 <= discard_ratio < 1:
        raise ValueError(f"discard_ratio={discard_ratio} must be in [0, 1)")
    fused = HEAD_FUSIONS[head_fusion](_float(maps), dim=2)  # (L, B, T, T)
    num_discarded = int(discard_ratio * maps.shape[-1])
    smallest = fused.topk(num_discarded, dim=-1, largest=False).indices  # (L, B, T, num_discarded)
    return _whole(*_flow(fused.scatter(-1, smallest, 0.0), normalize=True))


def attention_gradients(model: nn.Module, images: Images, targets: Targets | None = None) -> tuple[Tensor, Tensor]:
    """The attention maps and how the target's logit changes with each entry: two tensors (L, B, h, T, T).

    The model is in evaluation mode meanwhile, its parameters get no gradient, and it may be frozen. An image's gradient
    does not depend on the others in the batch, so many images may be asked about in parts, which takes less memory.

    Args:
        images: anything `prepare_images` takes.
        targets: the class, one for all or (B,), one an image; default the predicted class of each.
    """
    model = unwrap(model)
    check_has_classes(model)
    images = prepare_images(model, images)  # (B, C, H, W)
    return _gradients(model, images, None if targets is None else as_targets(targets, len(images)))


def _gradients(model: nn.Module, images: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
    """`attention_gradients` for images that are prepared."""
    depth = len(blocks_of(model))
    # The caller's own no_grad or inference_mode must not reach in here.
    with torch.inference_mode(False), torch.enable_grad(), eval_mode(model):
        # Gradients pass through the images, so that frozen parameters do not cut the graph.
        images = images.detach().clone().requires_grad_()
        targets = None if targets is None else targets.clone()  # they may be of the caller's inference_mode
        with record_attention(model, with_grad=True) as recorded:
            # Not model(images): a module compiled in place would run code that no hook can see.
            logits = model.forward(images)  # (B, K)
        chosen = _target_logits(logits, targets)  # (B,)
        maps = [recorded[i] for i in range(depth)]
        gradients = torch.autograd.grad(chosen.sum(), maps)
    return tuple(torch.stack([_float(x).cpu() for x in xs]) for xs in (maps, gradients))


def gradient_rollout(maps: Tensor, gradients: Tensor) -> Tensor:
    """`attention_rollout` of the attention that raises the target: (B, T, T), rows sum to 1.

    Heads are joined as the mean of max(gradient * attention, 0) instead of their attention.

    Args:
        maps, gradients: the two results (L, B, h, T, T) of `attention_gradients`.
    """
    return _whole(*_flow(_raising(maps, gradients), normalize=True))


def relevance(maps: Tensor, gradients: Tensor) -> Tensor:
    """The relevance (B, T, T) of every input token to every output token, zero or more.

    It starts as the identity; each layer adds what its attention carries: R + mean over heads of
    max(gradient * attention, 0) @ R.

    Args:
        maps, gradients: the two results (L, B, h, T, T) of `attention_gradients`.

    Source: Chefer, Gur and Wolf, Eq. 5-6, the rule for self-attention; it needs no relevance of single neurons (LRP).
    """
    return _whole(*_flow(_raising(maps, gradients), normalize=False))


def _raising(maps: Tensor, gradients: Tensor) -> Tensor:
    """The part of the attention that raises the target, mean of the heads: (L, B, T, T)."""
    check_maps(maps)
    if gradients.shape != maps.shape:
        raise ValueError(f"gradients have shape {tuple(gradients.shape)}, maps {tuple(maps.shape)}: they must agree")
    return (_float(gradients) * _float(maps)).clamp(min=0).mean(dim=2)


def _flow(carried: Tensor, *, normalize: bool) -> tuple[Tensor, Tensor]:
    """The product of I + carried[i], later layers on the left, with or without rows that sum to 1.

    In two parts: what attention moved (B, T, T), and the diagonal (B, T) that residual connections alone kept. Held
    apart, since beside a 1 on the diagonal small contributions would be rounded away.
    """
    moved = torch.zeros_like(carried[0])  # (B, T, T)
    kept = torch.ones_like(carried[0, ..., 0])  # (B, T)
    for layer in carried:
        moved = moved + layer @ moved + layer * kept[:, None, :]  # (B, T, T)
        if normalize:
            total = 1 + layer.sum(dim=-1)  # (B, T)
            moved, kept = moved / total[..., None], kept / total
    return moved, kept


def _whole(moved: Tensor, kept: Tensor) -> Tensor:
    return moved + kept.diag_embed()  # (B, T, T)


def _float(values: Tensor) -> Tensor:
    return values.detach().float()


def _target_logits(logits: Tensor, targets: Tensor | None) -> Tensor:
    targets = logits.argmax(dim=1) if targets is None else targets.to(logits.device)  # (B,)
    check_classes(targets, logits.shape[1])
    return logits.gather(1, targets[:, None])[:, 0]  # (B,)
