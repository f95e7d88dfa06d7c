"""LoRA: fine-tuning a few numbers that are added to frozen matrices, W + (alpha / rank) B A.

B starts at zero, so the first forward is that of the frozen network; `merge` folds the product into W and leaves a
plain network that costs nothing more and that `vit.save` can keep.
Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, Eq. 3.
Differs: queries, keys and values share one matrix here, and so one A and B.
"""

import copy
import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit.arguments import as_integer, is_number
from vit.model import VisionTransformer
from vit.model.vision_transformer import check_own
from vit.modules import unwrap

TARGETS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


class LoRALinear(nn.Module):
    """A frozen linear layer with a trained low-rank matrix beside it."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base = base
        self.scale = alpha / rank
        self.A = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.B = nn.Parameter(base.weight.new_zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + F.linear(F.linear(x, self.A), self.B) * self.scale  # (..., out)

    def merged(self) -> nn.Linear:
        """One linear layer that does the same."""
        base = copy.deepcopy(self.base)
        with torch.no_grad():
            base.weight += self.scale * (self.B @ self.A)  # (out, in)
        return base


def add(
    model: VisionTransformer, rank: int = 4, *, alpha: float | None = None, targets: Iterable[str] = TARGETS
) -> VisionTransformer:
    """A copy of the model in which only the added matrices and the head are to be trained.

    Args:
        rank: columns of B and rows of A, 1 or more.
        alpha: the product is scaled by alpha / rank; above 0; default `rank`, no scaling.
        targets: which linear layers of every block get a pair; some of `TARGETS`.

    Raises:
        TypeError: a model of another class.
        ValueError: an argument that is none of these, or a model that has LoRA already.
    """
    model = check_own(model)
    rank = as_integer("rank", rank, 1, remedy="; try 4")
    if alpha is not None and (not is_number(alpha) or not 0 < alpha < math.inf):
        raise ValueError(f"alpha={alpha!r} must be a number above 0; None takes rank={rank}, no scaling")
    given = list(targets) if isinstance(targets, Iterable) and not isinstance(targets, str) else []
    if not given or any(name not in TARGETS for name in given):
        raise ValueError(f"targets={given or targets!r} must be some of: {', '.join(TARGETS)}")
    if any(isinstance(module, LoRALinear) for module in model.modules()):
        raise ValueError("the model has LoRA matrices already: merge them first")
    model = copy.deepcopy(model).requires_grad_(False)
    for block in model.encoder.blocks:
        for name in dict.fromkeys(given):  # each once
            part, layer = name.split(".")
            parent = getattr(block, part)
            setattr(parent, layer, LoRALinear(getattr(parent, layer), rank, rank if alpha is None else float(alpha)))
    model.head.requires_grad_(True)
    return model


def merge(model: VisionTransformer) -> VisionTransformer:
    """A plain copy that computes the same: every product folded into its matrix, nothing frozen."""
    model = copy.deepcopy(unwrap(model))
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LoRALinear):
                setattr(module, name, child.merged())
    return model.requires_grad_(True)
