"""What a model costs: parameters and floating-point operations.

One multiply-add counts as two operations, and training as three times the forward pass (once more for the gradient
of the inputs, once for that of the weights). Counted by torch on the real forward pass: matrix products and
attention, not the element-wise rest.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vit.arguments import is_number
from vit.model.patch_embed import PatchDrop
from vit.modules import eval_mode


def count_parameters(model: nn.Module) -> int:
    """Trainable numbers in the model."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@torch.no_grad()
def forward_flops(model: nn.Module, *, patch_drop_rate: float = 0.0) -> int:
    """Operations of the forward pass for one image of the model's own size.

    Args:
        patch_drop_rate: share of the patches that the encoder is not shown, as in training with `PatchDrop`; in [0, 1).

    Raises:
        TypeError: a model without a `config`.
    """
    config = config_of(model)
    if not 0 <= patch_drop_rate < 1:
        raise ValueError(f"patch_drop_rate={patch_drop_rate} must be in [0, 1)")
    reference = next(model.parameters())  # whose new_zeros, of a sharded model, would be sharded too
    image = torch.zeros(1, config.in_chans, *config.image_size, device=reference.device, dtype=reference.dtype)
    # Some releases of torch do not count the fused attention of a CPU. Counting plain attention instead would switch
    # that of the whole process, a training beside included.
    uncounted = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
    counter = FlopCounterMode(display=False, custom_mapping=uncounted)
    with _dropping(model, patch_drop_rate), counter:
        model(image)
    return counter.get_total_flops()


def config_of(model: nn.Module) -> Any:
    """The config that says the size of the model's images; TypeError for a model without one."""
    config = getattr(model, "config", None)
    if not hasattr(config, "in_chans"):
        raise TypeError(
            f"model must have a `config` that says the size of its images, as a VisionTransformer of this library has; "
            f"{type(model).__name__} has none: use torch.utils.flop_counter.FlopCounterMode on its forward pass"
        )
    return config


def _attention_flops(queries: torch.Size, keys: torch.Size, *_: Any, **__: Any) -> int:
    """Two products of every query with every key's width; of shapes (B, h, T, d)."""
    B, h, T, d = queries
    return 4 * B * h * T * keys[2] * d


def train_flops(
    model: nn.Module, num_images: int, *, patch_drop_rate: float = 0.0, patch_drop_until: float = 1.0
) -> int:
    """Operations to train on `num_images` images, repeats counted.

    Args:
        num_images: 0 or more, also of epochs that are no whole ones.
        patch_drop_rate, patch_drop_until: which share of the patches is dropped, for which share of the images; the
            fields of `TrainConfig` of the same names.
    """
    check_num_images(num_images=num_images)
    if not 0 <= patch_drop_until <= 1:
        raise ValueError(f"patch_drop_until={patch_drop_until} must be in [0, 1]")
    per_image = forward_flops(model)
    if patch_drop_rate:
        dropped = forward_flops(model, patch_drop_rate=patch_drop_rate)
        per_image = patch_drop_until * dropped + (1 - patch_drop_until) * per_image
    return round(3 * per_image * num_images)


def check_num_images(**counts: float) -> None:
    """Raises ValueError for a number of images that there cannot be."""
    for name, value in counts.items():
        if not is_number(value) or not 0 <= value < math.inf:
            raise ValueError(f"{name}={value!r} must be a number of 0 or more")


@contextmanager
def _dropping(model: nn.Module, rate: float) -> Iterator[None]:
    """The model in eval mode, but with `rate` of its patches dropped."""
    with eval_mode(model):
        if not rate:
            yield
            return
        patch_drop = model.patch_drop
        model.patch_drop = _KeepFirst(rate)
        try:
            yield
        finally:
            model.patch_drop = patch_drop


class _KeepFirst(PatchDrop):
    """As many patches as `PatchDrop` keeps, but always the first: no random number is drawn that a training running
    beside may need."""

    def forward(self, x: Tensor, rope: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        num_kept = self.num_kept(x.shape[1])
        return x[:, :num_kept], None if rope is None else rope[:num_kept]
