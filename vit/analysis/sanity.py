"""Does a heat map depend on what the model has learned? A map that survives the loss of the weights never showed them.

Source: Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018, section 3.1 (cascading randomization).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from vit.analysis.explain import CLASS_METHODS, explain
from vit.analysis.inputs import Images, Targets, prepare_images, prepared_parts
from vit.analysis.layout import blocks_of
from vit.analysis.metrics import as_tensor
from vit.modules import eval_mode, unwrap


def randomization_curve(
    model: nn.Module, images: Images, method: str = "relevance", *, targets: Targets | None = None, seed: int = 0
) -> Tensor:
    """How alike the heat maps stay (B, L + 3) while a copy of the model loses its weights, the head first: their
    `rank_correlation` with those of the model itself, which come first and are 1.

    Then the head has lost its weights, then each of the L blocks as well, the last one first, then all the rest. A
    method that shows what was learned falls towards 0; one that stays high shows the architecture, or the image.

    Args:
        images: anything `prepare_images` takes.
        method: as for `explain`.
        targets: as for `explain`; by default the class that the model itself predicts, at every stage.
        seed: of the new order of the weights.

    Differs: in the paper a layer gets new initial weights. Here the entries of each of its tensors are shuffled, which
        keeps their size and suits every model.
    """
    model = unwrap(model)
    images = prepare_images(model, images)  # (B, C, H, W)
    if method in CLASS_METHODS and targets is None:
        with torch.no_grad(), eval_mode(model):
            targets = torch.cat([model(part).argmax(dim=1) for part in prepared_parts(model, images)])  # (B,)
    intact = explain(model, images, method, targets=targets)  # (B, rows, columns)
    maps = [explain(damaged, images, method, targets=targets) for damaged in _losing_weights(model, seed)]
    return torch.stack([rank_correlation(intact, heat) for heat in [intact, *maps]], dim=1)  # (B, L + 3)


def rank_correlation(heatmaps: ArrayLike, others: ArrayLike) -> Tensor:
    """Spearman's rank correlation (B,) of each heat map with its counterpart: 1 for the same order of the patches, -1
    for the reverse. Equal values share their mean rank; a map that is even everywhere has no order, and 0.

    Args:
        heatmaps, others: (B, rows, columns).
    """
    heatmaps, others = as_tensor(heatmaps), as_tensor(others)
    if heatmaps.shape != others.shape or heatmaps.ndim != 3:
        raise ValueError(
            f"heatmaps {tuple(heatmaps.shape)} and others {tuple(others.shape)} must both be (B, rows, columns)"
        )
    a, b = _centered_ranks(heatmaps), _centered_ranks(others)  # (B, N)
    norms = (a.norm(dim=1) * b.norm(dim=1)).clamp_min(0.1)  # (B,); 0 or at least 0.5 for whole and half ranks
    return ((a * b).sum(dim=1) / norms).float()


def _centered_ranks(heatmaps: Tensor) -> Tensor:
    """The rank of each patch (B, N), 0 on average; equal values share the mean of theirs."""
    heat = heatmaps.double().flatten(1).contiguous()  # (B, N)
    ordered = heat.sort(dim=1).values
    first, behind = torch.searchsorted(ordered, heat), torch.searchsorted(ordered, heat, right=True)
    return (first + behind).double() / 2 - heat.shape[1] / 2


def _losing_weights(model: nn.Module, seed: int) -> Iterator[nn.Module]:
    """One copy of the model, each time with more of its weights shuffled."""
    with torch.inference_mode(False):  # a caller's own would make a copy that no gradient can pass
        damaged, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    heads = nn.ModuleList(child for name, child in damaged.named_children() if name in ("head", "head_dist"))
    for part in [heads, *reversed(blocks_of(damaged)), damaged]:
        with torch.no_grad():
            for weight in part.parameters():
                order = torch.randperm(weight.numel(), generator=generator, device="cpu").to(weight.device)
                weight.copy_(weight.flatten()[order].view_as(weight))
        yield damaged
