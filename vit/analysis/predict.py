"""From pictures to class probabilities, in one call that prepares whatever it is given."""

import torch
from torch import Tensor, nn

from vit.analysis.inputs import Images, check_has_classes, prepared_parts, probabilities_of
from vit.modules import check_is_model, eval_mode


@torch.no_grad()
def predict(model: nn.Module, images: Images) -> Tensor:
    """Class probabilities (B, num_classes), on the CPU, whatever mode the model is in; computed in its own precision,
    without the bfloat16 that `evaluate` takes on a GPU.

    They are the softmax of the logits, which suits images of exactly one class each. For a network that gives an image
    several labels: `torch.sigmoid(model(prepare_images(model, images)))`.

    Args:
        images: a picture or a list of them (paths, PIL images, uint8 arrays (H, W, 3)), which are resized as the model
            needs it; or a batch (B, C, H, W), uint8 or normalized floats. Errors as for `prepare_images`.

    Raises:
        TypeError: `model` is no network.
        ValueError: the model has no classes, or a single logit.
    """
    check_is_model(model)
    check_has_classes(model)
    with eval_mode(model):
        parts = [probabilities_of(model(part)).cpu() for part in prepared_parts(model, images)]
    return torch.cat(parts)  # (B, num_classes)
