"""What training a model will need, before it starts: memory, and how fast this machine is at it.

Memory is measured on a forward pass of one image and one of two, so it holds for any attention kernel, precision,
dropout or share of dropped patches; speed on a few steps at the batch size itself. `vit/analysis/cost.py` counts
parameters and operations; `vit/analysis/forecast.py` puts all of it together before there is a model.
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit.analysis.cost import config_of, train_flops
from vit.analysis.layout import token_layout
from vit.arguments import as_integer
from vit.device import forked_random, wait_for_device
from vit.modules import keeping_modes, unwrap

# A model to the optimizers that train it, such as `lambda model: build_optimizers(model, config)`.
MakeOptimizers = Callable[[nn.Module], Sequence[torch.optim.Optimizer]]

WARM_UP_STEPS = 2


@dataclass(frozen=True)
class TrainingMemory:
    """What a training step holds, in bytes.

    Attributes:
        parameters: the weights, tables that are not trained, and in a `Forecast` with `ema_decay` their averaged copy.
        gradients: one number for each trained weight.
        optimizer_state: moments or momentum, after the first step.
        activations: what the forward pass keeps for the backward pass.
    """

    parameters: int
    gradients: int
    optimizer_state: int
    activations: int

    @property
    def total(self) -> int:
        """All of it, which is near the most that is held at once: gradients come while activations go, and the passing
        results of single layers come on top."""
        return self.parameters + self.gradients + self.optimizer_state + self.activations


def training_memory(
    model: nn.Module, batch_size: int, *, make_optimizers: MakeOptimizers | None = None
) -> TrainingMemory:
    """The memory that training a Vision Transformer of this library or of timm needs.

    The model stays as it is. For mixed precision call this inside `torch.autocast`.

    Args:
        batch_size: images per step.
        make_optimizers: default AdamW on everything. Counted as two numbers a weight where there are `betas`, one
            where there is a momentum, none elsewhere.
    """
    batch_size = _checked_batch_size(batch_size, model)
    one, two = (_saved_bytes(model, count) for count in (1, 2))
    tensors = [*model.parameters(), *model.buffers()]
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizers = make_optimizers(model) if make_optimizers else [torch.optim.AdamW(model.parameters())]
    return TrainingMemory(
        parameters=sum(t.numel() * t.element_size() for t in tensors),
        gradients=sum(p.numel() * p.element_size() for p in trained),
        optimizer_state=sum(_state_bytes(group) for optimizer in optimizers for group in optimizer.param_groups),
        activations=one + (batch_size - 1) * (two - one),
    )


def _saved_bytes(model: nn.Module, batch_size: int) -> int:
    """What autograd keeps of a training forward pass, loss included: every block of memory once, weights not."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        tensor = tensor.detach()  # a graph that keeps its own results alive is never freed
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with _training_mode(model), torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        _loss(model, _images(model, batch_size))
    return sum(t.untyped_storage().nbytes() for address, t in saved.items() if address not in own)


def _state_bytes(group: dict) -> int:
    buffers = 2 if "betas" in group else int(bool(group.get("momentum")))
    return buffers * sum(p.numel() * p.element_size() for p in group["params"] if p.requires_grad)


def measure_rate(
    model: nn.Module, batch_size: int, *, make_optimizers: MakeOptimizers | None = None, seconds: float = 1.0
) -> float:
    """Floating-point operations per second in training steps of a copy of the model, on the model's device.

    Large products run nearer to what a machine can do, so a rate holds for models and batches of about this size. For
    mixed precision call this inside `torch.autocast`.

    Args:
        batch_size: images per step; random ones, so that loading and augmenting are not in it.
        make_optimizers: what makes the step after the backward pass; default nothing.
        seconds: how long to measure; at least one step, after a short warm-up.

    Raises:
        TypeError: a model without a `config`, such as one of timm, whose operations `train_flops` cannot count.
    """
    batch_size = _checked_batch_size(batch_size, model)
    if not seconds > 0:
        raise ValueError(f"seconds={seconds} must be more than 0")
    config_of(unwrap(model))  # before a measurement that nothing could be said of
    probe = copy.deepcopy(unwrap(model))
    optimizers = [] if make_optimizers is None else make_optimizers(probe)
    images = _images(probe, batch_size)

    def step() -> None:
        probe.zero_grad(set_to_none=True)
        _loss(probe, images).backward()
        for optimizer in optimizers:
            optimizer.step()
        wait_for_device()

    with _training_mode(probe), torch.enable_grad():
        for _ in range(WARM_UP_STEPS):
            step()
        count, started = 0, time.perf_counter()
        while count < 1 or time.perf_counter() - started < seconds:
            step()
            count += 1
    elapsed = time.perf_counter() - started
    return count * train_flops(probe, batch_size) / elapsed


def _checked_batch_size(batch_size: int, model: nn.Module) -> int:
    batch_size = as_integer("batch_size", batch_size, 1)
    if any(p.is_meta for p in model.parameters()):
        raise ValueError('model is on "meta", where nothing is kept or timed: use model.to_empty(device="cpu")')
    return batch_size


@contextmanager
def _training_mode(model: nn.Module) -> Iterator[None]:
    """In training mode, and then as it was; so are torch's random numbers, if the model draws any.

    Only then: putting them back would make a training that runs beside in a thread draw the same ones twice.
    """
    device = next(model.parameters()).device
    draws = any(getattr(m, name, 0) for m in model.modules() for name in ("p", "attn_drop", "drop_prob", "rate"))
    with keeping_modes(model), forked_random(device, enabled=draws):
        model.train()
        yield


def _images(model: nn.Module, batch_size: int) -> Tensor:
    """Random images (B, C, H, W) such as the model takes."""
    image_size = token_layout(model).image_size
    weight = unwrap(model).patch_embed.proj.weight
    shape = (batch_size, weight.shape[1], *image_size)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator, device="cpu").to(weight)


def _loss(model: nn.Module, images: Tensor) -> Tensor:
    logits = model(images)  # (B, K)
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))
