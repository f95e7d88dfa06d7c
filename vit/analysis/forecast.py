"""What a training will cost, told from its two configs before anything is built: parameters, work, memory and time.

Time comes from a short measurement of this machine, `measure_speed`: a training step takes a fixed time a block, for
the optimizer and for starting each operation, and then time in proportion to its operations; both depend on the width.
Fast enough to follow a slider. The one module here that knows both configs and the optimizers; see
`vit/analysis/estimate.py` for a model that exists already.
"""

import dataclasses
import functools
import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from vit.analysis.cost import check_num_images, count_parameters, forward_flops, train_flops
from vit.analysis.estimate import TrainingMemory, measure_rate, training_memory
from vit.config import TrainConfig, ViTConfig
from vit.device import autocast, forked_random, resolve_device, resolve_precision
from vit.model.vision_transformer import VisionTransformer
from vit.training.memory import keep_freed_memory
from vit.training.optim import build_optimizers

WIDTHS = (64, 128, 256)  # the numbers of `embed_dim` that are measured
# Patch size and batch size of a step so small that the fixed part weighs, and of one so large that it does not.
_PROBES = ((8, 8), (4, 32))
_PROBE_DEPTH = 2


@dataclass(frozen=True)
class Speed:
    """How fast a machine trains, by width.

    Attributes:
        widths: the `embed_dim` of the other two, ascending.
        overheads: seconds a block and step, whatever the batch.
        rates: floating-point operations a second beyond that.
    """

    widths: tuple[int, ...]
    overheads: tuple[float, ...]
    rates: tuple[float, ...]

    def seconds(self, flops: float, embed_dim: int, blocks: float = 0) -> float:
        """Seconds for `flops` operations at this width, plus the fixed time of `blocks` block passes (depth times
        steps)."""
        place, known = math.log(embed_dim), np.log(self.widths)
        return float(blocks * np.interp(place, known, self.overheads) + flops / np.interp(place, known, self.rates))


@dataclass(frozen=True)
class Forecast:
    """What a training will cost.

    Attributes:
        num_parameters: trained numbers.
        flops_per_image: operations of a forward pass.
        train_flops: operations of the whole training, validation not counted.
        memory: of a training step.
        seconds: of the whole training, with a validation an epoch; None without a `Speed`.
    """

    num_parameters: int
    flops_per_image: int
    train_flops: int
    memory: TrainingMemory
    seconds: float | None


def measure_speed(config: TrainConfig, *, seconds: float = 1.5) -> Speed:
    """Times training steps of small networks with the optimizer, device and precision of `config`; not compiled ones.

    Args:
        seconds: how long to measure, in all; a little is added for the warm-up.
    """
    overheads, rates = [], []
    device = resolve_device(config.device)
    if device.type == "cpu":
        keep_freed_memory()  # as `fit` does
    for width in WIDTHS:
        points = []  # (operations, seconds) of a step
        for patch_size, batch_size in _PROBES:
            sizes = {"embed_dim": width, "num_heads": width // 32, "depth": _PROBE_DEPTH, "patch_size": patch_size}
            model_config = ViTConfig.preset("vit_nano_patch4_32", **sizes)
            with forked_random(torch.device("cpu")):
                model = VisionTransformer(model_config).to(device)
            with autocast(config, device):
                rate = measure_rate(
                    model,
                    batch_size,
                    make_optimizers=lambda model: build_optimizers(model, config),
                    seconds=seconds / len(WIDTHS) / len(_PROBES),
                )
            flops = train_flops(model, batch_size)
            points.append((flops, flops / rate))
        (few, short), (many, long) = points
        # On a busy machine the small step may come out longer than the large one.
        slope = max((long - short) / (many - few), 0.2 * long / many)
        overheads.append(max(0.0, long - slope * many) / _PROBE_DEPTH)
        rates.append(1 / slope)
    return Speed(WIDTHS, tuple(overheads), tuple(rates))


def forecast(
    model_config: ViTConfig,
    train_config: TrainConfig,
    num_images: int,
    *,
    num_val_images: int = 0,
    speed: Speed | None = None,
) -> Forecast:
    """The cost of training a network of `model_config` as `train_config` says.

    Args:
        num_images, num_val_images: of the training and validation splits, 0 or more.
        speed: of this machine, from `measure_speed`; without it no time is told.
    """
    check_num_images(num_images=num_images, num_val_images=num_val_images)
    rate, until = train_config.patch_drop_rate, train_config.patch_drop_until
    held = math.ceil(train_config.batch_size / train_config.accumulation_steps)  # images at a time
    precision = resolve_precision(train_config.precision, resolve_device(train_config.device))
    setting = (held, train_config.optimizer, precision, rate)
    one, two = (_costs_of(replace(model_config, depth=depth), *setting) for depth in (1, 2))
    added = model_config.depth - 1  # blocks, of which each costs as much as the second
    numbers, per_image, with_drop, *memory = (a + added * (b - a) for a, b in zip(one, two, strict=True))
    images = train_config.epochs * num_images
    total = round(3 * images * (until * with_drop + (1 - until) * per_image))
    seconds = None
    if speed is not None:
        steps = train_config.epochs * math.ceil(num_images / train_config.batch_size) * train_config.accumulation_steps
        width = model_config.embed_dim
        seconds = speed.seconds(total, width, steps * model_config.depth)
        seconds += speed.seconds(math.ceil(train_config.epochs) * num_val_images * per_image, width)
    memory = TrainingMemory(*memory)
    if train_config.ema_decay:  # whose averages are a second copy of the weights
        memory = replace(memory, parameters=2 * memory.parameters)
    return Forecast(numbers, per_image, total, memory, seconds)


@functools.lru_cache(maxsize=256)
def _costs_of(
    config: ViTConfig, batch_size: int, optimizer: str, precision: str, patch_drop_rate: float
) -> tuple[int, ...]:
    """Parameters; operations of a forward pass, without and with dropped patches; the parts of `TrainingMemory`.

    Without dropout, whose masks are little and whose random numbers a training running beside may need.
    """
    config = replace(config, drop_rate=0.0, attn_drop_rate=0.0, drop_path_rate=0.0)
    with torch.device("meta"):  # spares the random numbers of the initialization
        model = VisionTransformer(config)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()
    train_config = TrainConfig(optimizer=optimizer, precision=precision)
    with autocast(train_config, torch.device("cpu")):
        memory = training_memory(model, batch_size, make_optimizers=lambda model: build_optimizers(model, train_config))
    whole = forward_flops(model)
    with_drop = forward_flops(model, patch_drop_rate=patch_drop_rate) if patch_drop_rate else whole
    return count_parameters(model), whole, with_drop, *dataclasses.astuple(memory)
