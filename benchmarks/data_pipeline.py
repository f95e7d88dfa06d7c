"""How fast batches come: this project's loader beside torchvision's transforms in a DataLoader.

    python benchmarks/data_pipeline.py                    CIFAR-10, a few minutes
    python benchmarks/data_pipeline.py --quick            seconds, on the built-in set; stores nothing

Both crop from the reflected image and mirror, in one case also apply TrivialAugmentWide, and normalize, with a draw for
each image; that what comes out is distributed alike is checked first. On the CPU. A turn is an epoch over a part of
CIFAR-10; in every round everyone has a turn, and a ratio is taken turn by turn. Workers live on between epochs.
"share_of_step" is the time to make a batch beside that of a train step on it: of `cpu_5min`, and while half of its
patches are dropped, the shortest step of the recipes that are named by a time.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).resolve().parent))
import report
from contender import repeats_per_second

import vit
from vit.data import DataSplits, Loader, Split
from vit.training.epoch import set_patch_drop
from vit.training.losses import classification_loss
from vit.training.memory import keep_freed_memory
from vit.training.optim import build_optimizers

NUM_IMAGES = 10_240
PADDING = 4  # pixels
RECIPE = "cpu_5min"  # whose steps are the shortest
BATCHES, WORKERS = (64, 256), (0, 2)
AUGMENTATIONS = {"crop_flip": "none", "trivial": "trivial"}  # each with its TrainConfig.auto_augment
OURS = "vit"


class TransformedImages(Dataset):
    """A split whose images are transformed one by one when asked for, like torchvision's own datasets."""

    def __init__(self, split: Split, transform: Callable[[Tensor], Tensor]) -> None:
        self.images, self.labels, self.transform = split.images, split.labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(self.images[i]), self.labels[i]


def torchvision_loader(data: DataSplits, augmentation: str, batch_size: int, num_workers: int) -> DataLoader:
    transforms = [
        v2.RandomCrop(data.train.images.shape[2:], padding=PADDING, padding_mode="reflect"),
        v2.RandomHorizontalFlip(),
        *([v2.TrivialAugmentWide()] if augmentation == "trivial" else []),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(data.mean, data.std, inplace=True),
    ]
    images = TransformedImages(data.train, v2.Compose(transforms))
    return DataLoader(images, batch_size, shuffle=True, num_workers=num_workers, persistent_workers=num_workers > 0)


def our_loader(data: DataSplits, augmentation: str, batch_size: int) -> Loader:
    config = vit.TrainConfig(
        batch_size=batch_size,
        crop_padding=PADDING,
        flip="random",
        auto_augment=AUGMENTATIONS[augmentation],
        device="cpu",
    )
    return vit.make_loaders(data, config)[0]


def check_alike(ours: Iterable, theirs: Iterable) -> float:
    """The largest difference between two epochs in mean or standard deviation, of a pixel over the images.

    Raises:
        ValueError: it is more than chance gives, or the labels differ.
    """
    statistics_, labels = [], []
    for loader in (ours, theirs):
        images, of_images = (torch.cat(parts) for parts in zip(*loader, strict=True))
        statistics_.append(torch.stack([images.mean(dim=0), images.std(dim=0)]))  # (2, C, H, W)
        labels.append(of_images.bincount())
    if not torch.equal(*labels):
        raise ValueError(f"an epoch's labels differ: {labels[0].tolist()} and {labels[1].tolist()}")
    gap = (statistics_[0] - statistics_[1]).abs().max().item()
    allowed = 8 / len(images) ** 0.5  # normalized pixels: 8 standard errors of their mean
    if gap > allowed:
        raise ValueError(
            f"the two pipelines differ by {gap:.3f} in a pixel's mean or deviation, more than {allowed:.3f}"
        )
    return gap


def train_step_seconds(data: DataSplits, batch_size: int, turn: float) -> Callable[[], float]:
    """A function that measures a train step of the recipe while it drops patches, its batch ready."""
    model_config, config = vit.recipe(RECIPE, batch_size=batch_size, device="cpu", precision="fp32")
    model = vit.VisionTransformer(model_config)
    set_patch_drop(model, config.patch_drop_rate)
    optimizers, loss_fn = build_optimizers(model, config), classification_loss(config.label_smoothing)
    batch = vit.make_loaders(data, config)[0].batch(0, 0)

    def step() -> None:
        loss_fn(model, batch)[0].backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return lambda: 1 / repeats_per_second(step, turn, torch.device("cpu"))


def batches_per_second(epoch: Iterable, num_batches: int) -> float:
    started = time.perf_counter()
    for _ in epoch:
        pass
    return num_batches / (time.perf_counter() - started)


def compare(data: DataSplits, augmentation: str, batch_size: int, *, rounds: int, turn: float) -> list[dict]:
    """The claims of one augmentation and batch size."""
    name = f"{augmentation}.batch{batch_size}"
    ours = our_loader(data, augmentation, batch_size)
    theirs = {f"torchvision_{n}_workers": torchvision_loader(data, augmentation, batch_size, n) for n in WORKERS}
    torch.manual_seed(0)  # of their draws
    gap = check_alike(ours.epoch(0), theirs["torchvision_0_workers"])
    print(f"{name}: pixels differ by at most {gap:.3f} standard deviations in mean or deviation")
    train_step = train_step_seconds(data, batch_size, turn)
    rates, share = {loader: [] for loader in (OURS, *theirs)}, []
    for epoch in range(rounds + 1):  # the first only starts the workers
        rates[OURS].append(batches_per_second(ours.epoch(epoch), len(ours)))
        share.append(100 / (rates[OURS][-1] * train_step()))
        for other, loader in theirs.items():
            rates[other].append(batches_per_second(loader, len(loader)))
    claims = [claim(f"{name}.{loader}", values[1:], "batches/s") for loader, values in rates.items()]
    for other in theirs:
        ratios = [a / b for a, b in zip(rates[OURS][1:], rates[other][1:], strict=True)]
        claims.append(claim(f"{name}.{OURS}/{other}", ratios, "x"))
    return [*claims, claim(f"{name}.share_of_step", share[1:], "%")]


def claim(name: str, values: list[float], unit: str) -> dict:
    """A claim whose value is the median."""
    command = " ".join(["python benchmarks/data_pipeline.py", *sys.argv[1:]])
    return report.claim(name, values, unit, command, is_median=True) | {"threads": torch.get_num_threads()}


def main() -> None:
    report.hide_gpus()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, help="CPU threads; the default is torch's own choice")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    keep_freed_memory()
    few = {"num_train": 256, "num_val": 1, "num_test": 1}
    data = vit.load_data("shapes", **few) if options.quick else vit.load_data("cifar10")
    data = replace(data, train=data.train.subset(slice(NUM_IMAGES)))
    rounds, turn = (1, 0.0) if options.quick else (options.rounds, 0.5)
    claims = []
    for augmentation in AUGMENTATIONS:
        for batch_size in BATCHES[:1] if options.quick else BATCHES:
            claims += compare(data, augmentation, batch_size, rounds=rounds, turn=turn)
    report.publish("data_pipeline", claims, store=not options.quick)


if __name__ == "__main__":
    main()
