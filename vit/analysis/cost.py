"""What a model costs: parameters and floating-point operations.

One multiply-add counts as two operations, and training as three times the forward pass (once more for the gradient
of the inputs, once for that of the weights). Counted by torch on the real forward pass: matrix products and
attention, not the element-wise rest.
"""

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vit.analysis.eval_mode import eval_mode


def count_parameters(model: nn.Module) -> int:
    """Trainable numbers in the model."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@torch.no_grad()
def forward_flops(model: nn.Module) -> int:
    """Operations of the forward pass for one image of the model's own size."""
    config = model.config
    reference = next(model.parameters())
    image = torch.zeros(1, config.in_chans, *config.image_size, device=reference.device, dtype=reference.dtype)
    # Plain attention: some releases of torch do not count the fused kernel of a CPU.
    with eval_mode(model), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops()


def train_flops(model: nn.Module, num_images: int) -> int:
    """Operations to train on `num_images` images, repeats counted."""
    return 3 * forward_flops(model) * num_images
