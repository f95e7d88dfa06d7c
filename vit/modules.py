"""Any network, out of what wraps it, and in evaluation mode for as long as somebody looks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel


def check_is_model(model: Any) -> None:
    """Raises TypeError for what is no network, such as a name or a path of weights."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={model!r} must be a network, such as vit.VisionTransformer(vit.ViTConfig())")


def unwrap(model: nn.Module) -> nn.Module:
    """The network inside the wrappers of `torch.compile` and `DistributedDataParallel`; one without them is returned as
    it is."""
    model = getattr(model, "_orig_mod", model)  # torch.compile's name
    return model.module if isinstance(model, DistributedDataParallel) else model


@contextmanager
def keeping_modes(model: nn.Module) -> Iterator[None]:
    """Puts every part of the model back into the mode that it had, whatever happens in between."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Puts every part of the model in evaluation mode, and back into the mode that each had.

    The mode belongs to the model and not to a thread: let one thread at a time use a model, here and in all that looks
    at one, and give each of several a `copy.deepcopy` of its own.
    """
    with keeping_modes(model):
        model.eval()
        yield
