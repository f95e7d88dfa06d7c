"""What a training learns: a `loss_fn(model, batch) -> (loss, metrics)`, of which a classifier's is the usual one.

The loss is the mean over the batch, each metric one number, a sum over it.
"""

from collections.abc import Callable, Mapping
from functools import partial
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
        if len(batch) != 2:
            raise ValueError(f"the loader gives batches of {len(batch)} tensors, not (images, labels): give a loss_fn")
        images, labels = batch
        if images.is_floating_point():
            images = images.to(next(model.parameters()).dtype)  # of a model in float64, for example
        logits = model(images)  # (B, K)
        check_num_classes(logits, loader)
        if labels.shape not in (logits.shape[:1], logits.shape):
            raise ValueError(
                f"the loader gives labels of shape {tuple(labels.shape)} for logits {tuple(logits.shape)}, not class "
                "numbers (B,) or shares of the classes (B, K): to learn something else, give a loss_fn"
            )
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # autocast on a GPU leaves bf16
        loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        hard_labels = labels if labels.ndim == 1 else labels.argmax(dim=1)  # (B,)
        return loss, {"correct": (logits.detach().argmax(dim=1) == hard_labels).sum()}

    return loss_fn


def check_loss_fn(loss_fn: Any) -> None:
    """Raises TypeError for what is not called with a model and a batch, such as the losses of torch; None is right."""
    inner = loss_fn.func if isinstance(loss_fn, partial) else loss_fn
    is_torchs = getattr(inner, "__module__", None) in ("torch.nn.functional", "torch.nn.modules.loss")
    if is_torchs or not (loss_fn is None or callable(loss_fn)):
        what = f"torch's {getattr(inner, '__name__', type(inner).__name__)}" if is_torchs else repr(loss_fn)
        raise TypeError(
            f"loss_fn is {what}, but it is called with the model and a batch: give "
            "`lambda model, batch: (loss(model(batch[0]), batch[1]), {})`, with your loss as `loss`"
        )


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
    if "accuracy" in metrics:
        raise ValueError(
            'loss_fn names a metric accuracy, which fit computes itself: return {"correct": number of right answers}'
        )
    return loss, metrics


def one_number(name: str, value: Any, device: torch.device) -> Tensor:
    """What is to be summed, without its graph, which would be kept until the end of the epoch, and of a kind that holds
    the sum: bfloat16 and small integers do not."""
    if torch.is_tensor(value) and value.numel() == 1:
        value = value.detach()
        return value.to(torch.promote_types(value.dtype, torch.float32)) if value.is_floating_point() else value.long()
    try:
        return torch.tensor(float(value), device=device)  # a plain number, or one of numpy
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"loss_fn returned the metric {name} {_form(value)}: it must be one number, a sum") from None


def _form(value: Any) -> str:
    return f"of shape {tuple(value.shape)}" if hasattr(value, "shape") else f"{value!r}"
