"""Optimizers and the learning-rate schedule.

Muon steps every weight matrix of the blocks along the orthogonal factor of its momentum; AdamW takes the rest:
embeddings, positions, CLS, norms, biases and the head. Sources: Jordan et al., "Muon: An optimizer for hidden layers
in neural networks", 2024 (kellerjordan.github.io/posts/muon); Loshchilov & Hutter, "Decoupled Weight Decay
Regularization", ICLR 2019.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from vit.arguments import as_integer, check_choice
from vit.config import TrainConfig
from vit.device import has_bf16
from vit.training.distributed import current_world

# Coefficients of the quintic a x + b x^3 + c x^5 chosen by Jordan et al. for the steepest slope at zero: five rounds
# send every singular value in [3e-3, 1] into about [0.7, 1.2], and smaller ones part of the way.
NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NS_ROUNDS = 5

_OF_BLOCK = r"(?P<outside>|.*?\.)(encoder\.)?blocks\.(?P<number>\d+)\."


def orthogonalize(matrices: Tensor, rounds: int = NS_ROUNDS) -> Tensor:
    """The nearest (semi-)orthogonal matrices, roughly: U S V^T (B, m, n) becomes U S' V^T with S' near 1.

    Newton-Schulz iteration, whole batches of equal matrices at once. In bfloat16 on a GPU that has it; in float32
    elsewhere, where bfloat16 products are slow.
    """
    a, b, c = NS_COEFFICIENTS
    x = matrices.bfloat16() if has_bf16(matrices.device) else matrices
    is_tall = x.shape[-2] > x.shape[-1]
    x = x.mT if is_tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(rounds):
        gram = x @ x.mT  # (B, m, m)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # b G + c G^2
        x = torch.baddbmm(x, polynomial, x, beta=a)  # a X + (b G + c G^2) X
    return (x.mT if is_tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized (Jordan et al., 2024), for 2-D weights.

    Differs from `torch.optim.Muon`: float32 on CPUs, equal shapes stacked into one batch of products, and a group's
    `num_splits` cuts each weight into that many matrices along its rows (3 for a fused qkv), each orthogonalized alone.
    Processes that train together orthogonalize a part of the matrices each.

    Args:
        params: matrices, or groups of them.
        lr: each update has singular values near lr * sqrt(max(1, rows / columns)).
        momentum: of the Nesterov kind, in [0, 1).
        weight_decay: decoupled.

    Raises:
        ValueError: one of these is not in its range, or a parameter no such matrix.
    """

    def __init__(
        self, params: Iterable, *, lr: float, momentum: float = 0.95, weight_decay: float = 0.0, num_splits: int = 1
    ) -> None:
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "num_splits": num_splits}
        )
        for group in self.param_groups:
            _check_muon(group)
            for p in group["params"]:
                if p.ndim != 2 or p.shape[0] % group["num_splits"]:
                    raise ValueError(
                        f"Muon takes matrices whose rows divide by num_splits={group['num_splits']}, "
                        f"got {tuple(p.shape)}"
                    )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        world, same_shape = current_world(), defaultdict(list)
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for update, p in zip(self._momentum_updates(params, group["momentum"]), params, strict=True):
                for matrix, target in zip(update.chunk(group["num_splits"]), p.chunk(group["num_splits"]), strict=True):
                    same_shape[matrix.shape].append((matrix, target, group["lr"], group["weight_decay"]))
        for shape, members in same_shape.items():
            # Of all rates at once: with a rate for each layer there would be as many small products as layers.
            matrices = torch.stack([matrix for matrix, *_ in members])
            updates = world.joined(orthogonalize(matrices[world.part(len(matrices))]), len(matrices)).unbind(0)
            same_rate = defaultdict(list)
            for update, (_, target, *rates) in zip(updates, members, strict=True):
                same_rate[tuple(rates)].append((update, target))
            for (lr, weight_decay), pairs in same_rate.items():
                of_rate, targets = zip(*pairs, strict=True)
                torch._foreach_mul_(targets, 1 - lr * weight_decay)
                torch._foreach_add_(targets, of_rate, alpha=-lr * math.sqrt(max(1, shape[0] / shape[1])))
        return loss

    def _momentum_updates(self, params: list[Tensor], momentum: float) -> list[Tensor]:
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        grads = [p.grad for p in params]
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        return torch._foreach_lerp(grads, buffers, momentum)


def _check_muon(group: dict[str, Any]) -> None:
    for name, end, rule in (
        ("lr", math.inf, "a number of 0 or more, such as 0.008"),
        ("momentum", 1, "in [0, 1), such as 0.95"),
        ("weight_decay", math.inf, "a number of 0 or more, such as 0.05"),
    ):
        if not 0 <= group[name] < end:
            raise ValueError(f"Muon: {name}={group[name]!r} must be {rule}")
    as_integer("Muon: num_splits", group["num_splits"], 1)


def build_optimizers(model: nn.Module, config: TrainConfig, *, layer_decay: float = 1.0) -> list[torch.optim.Optimizer]:
    """One AdamW, or a Muon and an AdamW, holding every parameter that is to be trained exactly once.

    Matrices and kernels of convolutions decay; vectors and tables (biases, norms, CLS, positions) do not. Each group
    keeps its `peak_lr`, which `set_learning_rate` scales. Frozen parameters (`requires_grad=False`) are left out.

    Args:
        layer_decay: for fine-tuning: the rates of each layer are this share of those of the layer above, in (0, 1], so
            that what is near the pixels, and most general, changes least; see `layer_of`. 1 gives all the same rates.

    Raises:
        ValueError: `layer_decay` is out of its range, or the model's names do not say which layer is above which; or
            all its parameters are frozen.
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay={layer_decay} must be in (0, 1]; 1 for the same rates everywhere, 0.65 to 0.9")
    layer_decay = float(layer_decay)  # and no number of numpy, which no state would hold
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise ValueError("all parameters of the model are frozen (requires_grad=False): there is nothing to train")
    layers = layer_of([name for name, _ in model.named_parameters()])
    if layer_decay < 1 and (0 not in layers.values() or not any(re.match(_OF_BLOCK, name) for name in layers)):
        raise ValueError(
            f"layer_decay={layer_decay} goes by names such as patch_embed, blocks.0 and blocks.1, and "
            f"{type(model).__name__} has others: use 1, or give vit.fit a make_optimizers of your own"
        )
    top = max(layers.values())
    # Known by their layers, since a table of positions may have as many axes as a kernel.
    convolutions = [module for module in model.modules() if isinstance(module, nn.modules.conv._ConvNd)]
    kernels = {p for module in convolutions for p in module.parameters(recurse=False) if p.ndim > 2}
    tables = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    muon, adam = defaultdict(list), defaultdict(list)
    for name, p in named:
        scale = layer_decay ** (top - layers[name])
        is_matrix = p.ndim == 2 or p in kernels
        # Whole weights: the thin factors of a LoRA gain nothing from equal singular values.
        is_weight = "blocks." in name and p.ndim == 2 and name.endswith("weight") and p not in tables
        if config.optimizer == "muon" and is_weight:
            muon["qkv" in name and p.shape[0] % 3 == 0, scale].append(p)
        else:
            adam[not is_matrix, scale].append(p)
    optimizers: list[torch.optim.Optimizer] = []
    if adam:
        groups = [
            {
                "params": adam[is_plain, scale],
                "lr": config.learning_rate * scale,
                "weight_decay": 0.0 if is_plain else config.weight_decay,
            }
            for is_plain, scale in sorted(adam, key=_top_first)
        ]
        optimizers.append(torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.adam_betas, fused=True))
    if muon:
        groups = [
            {
                "params": muon[is_qkv, scale],
                "lr": config.muon_learning_rate * scale,
                "num_splits": 3 if is_qkv else 1,
            }
            for is_qkv, scale in sorted(muon, key=_top_first)
        ]
        decay = {"momentum": config.muon_momentum, "weight_decay": config.weight_decay}
        optimizers.append(Muon(groups, lr=config.muon_learning_rate, **decay))
    note_peak_rates(optimizers)
    return optimizers


def _top_first(group: tuple[bool, float]) -> tuple[bool, float]:
    """Sorts groups so that the first one has the full rate, which a history shows."""
    kind, scale = group
    return kind, -scale


def layer_of(names: Iterable[str]) -> dict[str, int]:
    """The layer of each parameter, by its name: 0 for what turns pixels into tokens, 1 for the first block, and so on;
    the final norm is of the last block, and whatever else there is, such as the head, comes on top. The network may be
    within another module, such as `self.backbone`.

    Source: Bao et al., "BEiT", ICLR 2022, as timm's `param_groups_layer_decay` counts them.
    """
    names = list(names)
    found = {name: match for name in names if (match := re.match(_OF_BLOCK, name))}
    blocks = {name: int(match["number"]) + 1 for name, match in found.items()}
    last = max(blocks.values(), default=0)
    # Put before the names by what holds the network, or by `torch.compile`.
    outside = "|".join({re.escape(match["outside"]) for match in found.values()}) or r"(_orig_mod\.)?"
    layers = {}
    for name in names:
        if name in blocks:
            layers[name] = blocks[name]
        elif re.match(rf"({outside})(encoder\.)?(cls_token|dist_token|reg_token|pos_embed|patch_embed|norm_pre)", name):
            layers[name] = 0
        else:
            layers[name] = last if re.match(rf"({outside})(encoder\.)?norm\b", name) else last + 1
    return layers


def learning_rate_factor(
    step: int, *, total_steps: int, warmup_steps: float, schedule: str, flat_steps: float = 0.0
) -> float:
    """The share of its peak that the rate has in step 0..total_steps-1: a linear rise, the peak until step
    `flat_steps`, then a fall that would reach zero in step total_steps."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    start = max(warmup_steps, flat_steps)
    progress = max(0.0, (step - start) / (total_steps - start))
    if schedule == "linear":
        return 1 - progress
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    check_choice("schedule", schedule, TrainConfig.CHOICES["schedule"])
    return 1.0  # constant


def note_peak_rates(optimizers: list[torch.optim.Optimizer]) -> None:
    """Takes the rate of each group for its peak, which `set_learning_rate` scales, unless it has noted one already."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group.setdefault("peak_lr", group["lr"])


def set_learning_rate(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
