"""What a training learns: a `loss_fn(model, batch) -> (loss, metrics)`, of which a classifier's is the usual one.

The loss is the mean over the batch, each metric one number, a sum over it.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit.training.evaluation import check_num_classes

LossFn = Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, dict[str, Tensor]]]


def classification_loss(label_smoothing: float = 0.0, loader: Any = None) -> LossFn:
    """Cross-entropy on class numbers (B,) or soft labels (B, K), with the number of right answers beside it.

    Args:
        loader: refuses a model whose outputs are not as many as the classes of this loader.
    """

    def loss_fn(model: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        images, labels = batch
        logits = model(images)  # (B, K)
        check_num_classes(logits, loader)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # autocast on a GPU leaves bf16
        loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        hard_labels = labels if labels.ndim == 1 else labels.argmax(dim=1)  # (B,)
        return loss, {"correct": (logits.detach().argmax(dim=1) == hard_labels).sum()}

    return loss_fn


def loss_and_metrics(returned: Any) -> tuple[Tensor, Mapping[str, Any]]:
    """Checks the kinds and shapes of what loss_fn returned, and gives it back."""
    is_pair = isinstance(returned, (tuple, list)) and len(returned) == 2
    if not is_pair or not isinstance(returned[1], Mapping):
        kinds = ", ".join(type(part).__name__ for part in (returned if is_pair else [returned]))
        raise TypeError(f"loss_fn returned {kinds} instead of (loss, metrics): use `return loss, {{}}` without metrics")
    loss, metrics = returned
    if not torch.is_tensor(loss) or loss.numel() != 1:
        raise TypeError(f"loss_fn returned the loss {_form(loss)}: it must be a tensor of one number, a mean")
    if odd := metrics.keys() & {"loss", "samples"}:
        raise ValueError(f"loss_fn names a metric {', '.join(sorted(odd))}, which fit counts itself: rename it")
    return loss, metrics


def one_number(name: str, value: Any, device: torch.device) -> Tensor:
    """What is to be summed, without its graph, which would be kept until the end of the epoch."""
    if torch.is_tensor(value) and value.numel() == 1:
        return value.detach()
    try:
        return torch.tensor(float(value), device=device)  # a plain number, or one of numpy
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"loss_fn returned the metric {name} {_form(value)}: it must be one number, a sum") from None


def _form(value: Any) -> str:
    return f"of shape {tuple(value.shape)}" if hasattr(value, "shape") else f"{value!r}"
