"""One contender of a speed comparison at work: train steps, inference, their rates, and memory.

Small on purpose: a fresh process that measures its own memory imports this module and one library.
"""

import math
import time
from collections.abc import Callable
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from libraries import LIBRARIES, forward_operations
from report import peak_memory
from torch import Tensor

from vit.config import ViTConfig
from vit.training.memory import keep_freed_memory


class Contender:
    """A library's network with an optimizer and one batch of noise, the same for all.

    Args:
        precision: "fp32", or "bf16" for autocast.
    """

    def __init__(self, library: str, config: ViTConfig, batch: int, device: torch.device, precision: str) -> None:
        self.model = LIBRARIES[library](config).to(device)
        self.config, self.batch, self.device = config, batch, device
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(batch, config.in_chans, *config.image_size, generator=generator).to(device)
        self.labels = torch.randint(config.num_classes, (batch,), generator=generator).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)

    @cached_property
    def operations(self) -> int:
        """Of the forward pass for one image."""
        return forward_operations(self.model, self.config)

    def train(self) -> None:
        """One step."""
        with self.autocast:
            loss = F.cross_entropy(self.model(self.images), self.labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @torch.inference_mode()
    def inference(self) -> Tensor:
        with self.autocast:
            return self.model(self.images)

    def rate(self, mode: str, turn: float) -> float:
        """Images per second in "train" or "inference", over about `turn` seconds."""
        self.model.train(mode == "train")
        return self.batch * repeats_per_second(getattr(self, mode), turn, self.device)


def repeats_per_second(work: Callable[[], object], turn: float, device: torch.device) -> float:
    """Measured over about `turn` seconds, or over one repeat if that is longer, after one that brings everything into
    the caches and says how many fit. A GPU is waited for."""
    wait = (lambda: None) if device.type == "cpu" else torch.accelerator.synchronize

    def seconds(repeats: int) -> float:
        wait()
        started = time.perf_counter()
        for _ in range(repeats):
            work()
        wait()
        return time.perf_counter() - started

    repeats = max(1, math.ceil(turn / seconds(1)))
    return repeats / seconds(repeats)


def matrix_product_rate(device: torch.device, precision: str, turn: float) -> float:
    """Operations per second of the machine's own square matrix products, the best of several sizes."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    best = 0.0
    for side in (2048, 4096, 8192) if device.type == "cuda" else (512, 1024, 2048):
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        product = partial(torch.mm, a, b, out=torch.empty_like(a))
        best = max(best, 2 * side**3 * repeats_per_second(product, turn / 5, device))
    return best


def train_alone(
    library: str, config: dict, batch: int, *, device: str, precision: str, allocator: str, threads: int, turn: float
) -> dict[str, float]:
    """Train steps in a process that does nothing else: images per second, and peak memory in bytes."""
    torch.set_num_threads(threads)
    if allocator == "keep":
        keep_freed_memory()
    contender = Contender(library, ViTConfig.from_dict(config), batch, torch.device(device), precision)
    contender.rate("train", turn=0)  # first steps are slow
    return {"images_per_second": contender.rate("train", turn), "peak_memory": peak_memory(contender.device)}
