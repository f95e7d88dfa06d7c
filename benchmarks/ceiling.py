"""How much of a GPU a train step uses, and what the rest of the time goes into; `record.py --ceiling` runs it, and the
comparison with timm by `record.py --timm`.

The card's own bf16 matrix products are the measure. Epochs are those of `train_one_epoch` on CIFAR-10, compiled, with
all augmentation; the batches alone, and the optimizers alone, are timed beside them. The step against timm is of the
same network with the same fused AdamW, both compiled in bf16, taking turns.
"""

import time
from collections.abc import Callable
from dataclasses import replace

import libraries
import report
import torch
from contender import Contender, matrix_product_rate, repeats_per_second
from libraries import EVERY_TOKEN, OURS

import vit
from vit.analysis.cost import forward_flops
from vit.data import DataSplits
from vit.training.optim import build_optimizers

COMMAND = "python benchmarks/record.py --{}"
# Each with the share of the patches that is dropped.
NETWORKS = {
    "patch4": (vit.ViTConfig.preset("vit_gpu_patch4_32"), 0.0),
    "patch2_half": (vit.ViTConfig.preset("vit_gpu_patch2_32"), 0.5),
    "patch2": (vit.ViTConfig.preset("vit_gpu_patch2_32"), 0.0),
}
QUICK_NETWORKS = {"pico_half": (vit.ViTConfig.preset("vit_pico_patch8_32", depth=1), 0.5)}
# What timm builds too: CLS, learned positions, biases.
AGAINST_TIMM = vit.ViTConfig.preset("vit_small_patch4_32", depth=12, head="linear")


class Epochs:
    """Training as `fit` does it, an epoch at a time, and its parts alone; each in seconds a step."""

    def __init__(self, config: vit.ViTConfig, train: vit.TrainConfig, data: DataSplits, device: torch.device) -> None:
        self.config, self.device = train, device
        model = vit.VisionTransformer(config)
        self.flops = 3 * forward_flops(model, patch_drop_rate=train.patch_drop_rate)  # of an image
        model = model.to(device)
        self.parameters = list(model.parameters())
        self.network = torch.compile(model) if train.compile else model
        self.optimizers = build_optimizers(model, train)
        self.loader = vit.make_loaders(data, train)[0]
        self.images_per_step = len(data.train) / len(self.loader)

    def training(self) -> float:
        began = self._now()
        vit.train_one_epoch(self.network, self.loader, self.optimizers, self.config)
        return (self._now() - began) / len(self.loader)

    def batches(self) -> float:
        began = self._now()
        for _ in self.loader.epoch(0):
            pass
        return (self._now() - began) / len(self.loader)

    def updates(self, turn: float) -> float:
        for p in self.parameters:
            p.grad = torch.randn_like(p)

        def step() -> None:
            for optimizer in self.optimizers:
                optimizer.step()

        return 1 / repeats_per_second(step, turn, self.device)

    def _now(self) -> float:
        if self.device.type != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter()


def measure_epochs(data: DataSplits, device: torch.device, *, quick: bool) -> list[dict]:
    """The claims of every network: seconds an epoch, and shares of the matrix product and of the step."""
    turn, rounds, precision = (0.0, 1, "fp32") if quick else (1.0, 3, "bf16")
    recipe = vit.TrainConfig.preset("gpu_10min", epochs=1, warmup_epochs=0.0, patch_drop_until=1.0, device=device.type)
    recipe = replace(recipe, batch_size=50, compile=False, precision="fp32") if quick else recipe
    claims, products = [], []
    for name, (config, drop) in (QUICK_NETWORKS if quick else NETWORKS).items():
        epochs = Epochs(config, replace(recipe, patch_drop_rate=drop), data, device)
        epochs.training()  # compiles
        found = {key: [] for key in ("seconds_per_epoch", "share_of_matrix_product", "data_share", "optimizer_share")}
        for _ in range(rounds):
            product = matrix_product_rate(device, precision, turn)
            step, batch, update = epochs.training(), epochs.batches(), epochs.updates(turn)
            products.append(product / 1e12)
            found["seconds_per_epoch"].append(step * len(epochs.loader))
            found["share_of_matrix_product"].append(100 * epochs.flops * epochs.images_per_step / step / product)
            found["data_share"].append(100 * batch / step)
            found["optimizer_share"].append(100 * update / step)
        facts = {"images": len(data.train), "batch": recipe.batch_size, "train_gflop_per_image": epochs.flops / 1e9}
        units = {"seconds_per_epoch": "s"}
        claims += [
            claim(f"{name}.{key}", values, units.get(key, "%"), facts, "ceiling") for key, values in found.items()
        ]
    return [claim("matrix_product", products, "TFLOP/s", {"precision": precision}, "ceiling"), *claims]


def measure_against_timm(device: torch.device, *, quick: bool) -> list[dict]:
    """Milliseconds of a step for us, for us with every token computed, and for timm; and the ratios turn by turn."""
    if "timm" not in libraries.installed():
        print("timm is not installed, and the comparison is left out: pip install timm")
        return []
    config = replace(AGAINST_TIMM, embed_dim=32, num_heads=2, depth=1) if quick else AGAINST_TIMM
    batch, turn, rounds, precision = (8, 0.0, 1, "fp32") if quick else (1000, 1.0, 10, "bf16")
    names = (OURS, EVERY_TOKEN, "timm")
    contenders = {name: Contender(name, config, batch, device, precision) for name in names}
    if not quick:
        for contender in contenders.values():
            contender.model.compile(dynamic=False)
    measures = {name: (lambda c=c: 1000 * batch / c.rate("train", turn)) for name, c in contenders.items()}
    milliseconds = in_turns(measures, rounds)
    facts = {"batch": batch, "precision": precision, "compiled": not quick, "network": config.to_dict()}
    claims = [claim(f"step.{name}", values, "ms", facts, "timm") for name, values in milliseconds.items()]
    for name in (OURS, EVERY_TOKEN):
        ratios = [ours / theirs for ours, theirs in zip(milliseconds[name], milliseconds["timm"], strict=True)]
        claims.append(claim(f"step_time.{name}/timm", ratios, "x", facts, "timm"))
    return [c | {"versions": f"{c['versions']}, {libraries.versions()}"} for c in claims]


def in_turns(measures: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """So many values of each, taken A B C, B C A, ..., after a first round that only warms up."""
    names, values = list(measures), {name: [] for name in measures}
    for i in range(rounds + 1):
        start = i % len(names)  # so that nobody always follows the same one
        for name in names[start:] + names[:start]:
            value = measures[name]()
            if i:
                values[name].append(value)
    return values


def claim(name: str, values: list[float], unit: str, facts: dict, flag: str) -> dict:
    """A claim whose value is the median."""
    return report.claim(name, values, unit, COMMAND.format(flag), is_median=True) | facts
