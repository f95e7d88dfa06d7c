"""A plan on paper for ImageNet scale: memory a GPU, and GPU-hours by the share of its peak that a training reaches.

    python benchmarks/imagenet_plan.py        writes the tables of docs/imagenet.md

Nothing here is measured on a GPU. Memory is what the project's own estimator counts on the networks themselves, hours
are operations divided by assumed speeds, which the tables name as such.
"""

from pathlib import Path

import vit
from vit.analysis.forecast import Forecast, forecast

PAGE = Path(__file__).resolve().parents[1] / "docs" / "imagenet.md"
START, END = "<!-- written by benchmarks/imagenet_plan.py -->", "<!-- end -->"
NETWORKS = {"ViT-B/16": "vit_base_patch16_224", "ViT-L/16": "vit_large_patch16_224"}
NUM_IMAGES, EPOCHS = 1_281_167, 300  # ImageNet-1k's training images; the passes of DeiT (Touvron et al., 2021)
IMAGES, NUM_GPUS = 128, 8  # a GPU and step; how many share the weights
PEAK, SHARES = 1e15, (0.3, 0.4, 0.5)  # assumed: bf16 operations a second of a GPU, and which share of them is reached


def plan(network: str) -> Forecast:
    """Memory of `IMAGES` images a GPU in bf16, and the operations of the whole training."""
    config = vit.TrainConfig(epochs=EPOCHS, batch_size=IMAGES, optimizer="adamw", precision="bf16")
    return forecast(vit.ViTConfig.preset(NETWORKS[network]), config, NUM_IMAGES)


def tables() -> str:
    """Both tables as Markdown."""
    plans = {network: plan(network) for network in NETWORKS}
    memory = [
        f"| network | parameters | weights, gradients, moments | shared by {NUM_GPUS} | activations of {IMAGES} images "
        "| all, a copy a GPU | all, shared |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    hours = [
        f"| network | operations of {EPOCHS} epochs | " + " | ".join(f"at {share:.0%}" for share in SHARES) + " |",
        "| --- | ---: |" + " ---: |" * len(SHARES),
    ]
    for network, p in plans.items():
        copy, held = (p.memory.total - p.memory.activations) / 1e9, p.memory.activations / 1e9
        part = copy / NUM_GPUS
        sizes = " | ".join(f"{size:.1f} GB" for size in (copy, part, held, copy + held, part + held))
        memory.append(f"| {network} | {p.num_parameters / 1e6:.1f} M | {sizes} |")
        times = " | ".join(f"{p.train_flops / PEAK / share / 3600:.0f} h" for share in SHARES)
        hours.append(f"| {network} | {p.train_flops:.2e} | {times} |")
    return "\n".join([*memory, "", *hours])


def main() -> None:
    before, rest = PAGE.read_text().split(START)
    PAGE.write_text(f"{before}{START}\n{tables()}\n{END}{rest.split(END)[1]}")
    print(tables())


if __name__ == "__main__":
    main()
