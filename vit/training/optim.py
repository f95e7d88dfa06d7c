"""Optimizers and the learning-rate schedule.

Muon steps every weight matrix of the blocks along the orthogonal factor of its momentum; AdamW takes the rest:
embeddings, positions, CLS, norms, biases and the head. Sources: Jordan et al., "Muon: An optimizer for hidden layers
in neural networks", 2024 (kellerjordan.github.io/posts/muon); Loshchilov & Hutter, "Decoupled Weight Decay
Regularization", ICLR 2019.
"""

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from vit.config import TrainConfig

# Coefficients of the quintic a x + b x^3 + c x^5 chosen by Jordan et al. for the steepest slope at zero: five rounds
# send every singular value in [1e-3, 1] into about [0.7, 1.2].
NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NS_ROUNDS = 5


def orthogonalize(matrices: Tensor, rounds: int = NS_ROUNDS) -> Tensor:
    """The nearest (semi-)orthogonal matrices, roughly: U S V^T (..., m, n) becomes U S' V^T with S' near 1.

    Newton-Schulz iteration, whole batches of equal matrices at once. In bfloat16 on a GPU; in float32 on a CPU, where
    bfloat16 products are slow.
    """
    a, b, c = NS_COEFFICIENTS
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    is_tall = x.shape[-2] > x.shape[-1]
    x = x.mT if is_tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(rounds):
        gram = x @ x.mT  # (..., m, m)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # b G + c G^2
        x = torch.baddbmm(x, polynomial, x, beta=a)  # a X + (b G + c G^2) X
    return (x.mT if is_tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized (Jordan et al., 2024), for 2-D weights.

    Differs from `torch.optim.Muon`: float32 on CPUs, equal shapes stacked into one batch of products, and a group's
    `num_splits` cuts each weight into that many matrices along its rows (3 for a fused qkv), each orthogonalized alone.

    Args:
        params: matrices, or groups of them.
        lr: each update has singular values near lr * sqrt(max(1, rows / columns)).
        momentum: of the Nesterov kind, in [0, 1).
        weight_decay: decoupled.
    """

    def __init__(
        self, params: Iterable, *, lr: float, momentum: float = 0.95, weight_decay: float = 0.0, num_splits: int = 1
    ) -> None:
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "num_splits": num_splits}
        )
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim != 2 or p.shape[0] % group["num_splits"]:
                    raise ValueError(
                        f"Muon takes matrices whose rows divide by num_splits={group['num_splits']}, "
                        f"got {tuple(p.shape)}"
                    )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        same_shape = defaultdict(list)
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for update, p in zip(self._momentum_updates(params, group["momentum"]), params, strict=True):
                for matrix, target in zip(update.chunk(group["num_splits"]), p.chunk(group["num_splits"]), strict=True):
                    same_shape[matrix.shape, group["lr"], group["weight_decay"]].append((matrix, target))
        for (shape, lr, weight_decay), pairs in same_shape.items():
            matrices, targets = zip(*pairs, strict=True)
            updates = orthogonalize(torch.stack(matrices)).unbind(0)
            torch._foreach_mul_(targets, 1 - lr * weight_decay)
            torch._foreach_add_(targets, updates, alpha=-lr * math.sqrt(max(1, shape[0] / shape[1])))

    def _momentum_updates(self, params: list[Tensor], momentum: float) -> list[Tensor]:
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        grads = [p.grad for p in params]
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        return torch._foreach_lerp(grads, buffers, momentum)


def build_optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """One AdamW, or a Muon and an AdamW, holding every parameter of the model exactly once.

    Matrices decay; vectors and tables (biases, norms, CLS, positions) do not. Each group keeps its `peak_lr`, which
    `set_learning_rate` scales.
    """
    muon, muon_qkv, decayed, plain = [], [], [], []
    for name, p in model.named_parameters():
        is_matrix = p.ndim == 2 or (p.ndim == 4 and "patch_embed" in name)
        if config.optimizer == "muon" and "blocks." in name and p.ndim == 2:
            (muon_qkv if "qkv" in name else muon).append(p)
        else:
            (decayed if is_matrix else plain).append(p)
    adam_groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [group for group in adam_groups if group["params"]],
            lr=config.learning_rate,
            betas=config.adam_betas,
            fused=True,
        )
    ]
    muon_groups = [{"params": muon}, {"params": muon_qkv, "num_splits": 3}]
    if muon or muon_qkv:
        optimizers.append(
            Muon(
                [group for group in muon_groups if group["params"]],
                lr=config.muon_learning_rate,
                momentum=config.muon_momentum,
                weight_decay=config.weight_decay,
            )
        )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def learning_rate_factor(step: int, *, total_steps: int, warmup_steps: float, schedule: str) -> float:
    """The share of its peak that the rate has in step 0..total_steps-1: a linear rise, then a fall that would reach
    zero in step total_steps."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    if schedule == "linear":
        return 1 - progress
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1.0


def set_learning_rate(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
