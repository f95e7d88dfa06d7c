"""What test_distributed.py runs in two processes, and alone: small trainings, each a function of (world, folder).

All cases run one after another in the same two processes, since starting those takes longer than any of them. What a
case returns, of tensors and plain values, is kept a process; if it raises, that is its text.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from conftest import randomize
from test_budget import Slow
from torch import nn

from vit.config import TrainConfig, ViTConfig
from vit.data import Loader, make_eval_loader, make_loaders, make_shapes
from vit.model.vision_transformer import VisionTransformer
from vit.training import evaluate, fit, for_budget
from vit.training.distributed import World, processes
from vit.training.sharding import shard_model

NETWORK = ViTConfig(image_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2.0)
# 45 images in 2 steps: of 22 images, and of 23, which two processes cannot share evenly.
RECIPE = TrainConfig(
    epochs=2, batch_size=23, optimizer="adamw", warmup_epochs=0.5, clip_grad_norm=0.5, device="cpu", seed=4
)
# Every draw that is made for the whole batch, and nothing that a process draws by itself.
AUGMENTED = {"cutmix_alpha": 1.0, "mixup_alpha": 0.5, "auto_augment": "trivial", "erase_size": 4, "flip": "random"}
MUON = {"optimizer": "muon", "ema_decay": 0.8, "clip_grad_norm": 0.0}
RANDOM = {"drop_rate": 0.2, "drop_path_rate": 0.2}  # what each process draws for itself
SHARDED, SHARDED_RECIPE = {"depth": 1}, replace(RECIPE, epochs=1)  # small: every tensor travels at every save
# `fit` asks whether to stop after two steps, before the val batch, after the epoch, and after the third step.
STOP = 5


class Doubles:
    """A loader whose batches are in float64."""

    def __init__(self, loader: Loader) -> None:
        self.loader, self.num_classes, self.fingerprint = loader, loader.num_classes, loader.fingerprint

    def __len__(self) -> int:
        return len(self.loader)

    def epoch(self, epoch: int, start_step: int = 0):
        for images, labels in self.loader.epoch(epoch, start_step):
            yield images.double(), labels.double() if labels.is_floating_point() else labels


def data():
    return make_shapes(num_train=45, num_val=21, num_test=1, image_size=16, seed=5)


def loaders(config: TrainConfig) -> tuple[Doubles, Doubles]:
    return tuple(map(Doubles, make_loaders(data(), config)))


def network(seed: int = 0, **changes: Any) -> nn.Module:
    return randomize(VisionTransformer(replace(NETWORK, **changes)).double(), seed)


def result(model: nn.Module, history: Any) -> dict[str, Any]:
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in history.rows]
    return {"weights": dict(model.state_dict()), "rows": rows, "is_complete": history.is_complete}


def train(config: TrainConfig, model: nn.Module | None = None, **options: Any) -> dict[str, Any]:
    # Other start weights in each process: those of the first one count.
    model = network(seed=int(os.environ.get("RANK", 0))) if model is None else model
    return result(model, fit(model, *loaders(config), config, **options))


def adamw(world: World, folder: Path) -> dict[str, Any]:
    return train(RECIPE)


def augmented_muon_ema(world: World, folder: Path) -> dict[str, Any]:
    return train(replace(RECIPE, **AUGMENTED, **MUON))


def accumulated(world: World, folder: Path) -> dict[str, Any]:
    return train(replace(RECIPE, accumulation_steps=4))


def one_process_too_late(world: World, folder: Path) -> dict[str, Any]:
    """A control: parts that overlap by a sample."""
    part = World.part
    World.part = lambda self, count: slice(max(0, part(self, count).start - 1), part(self, count).stop)
    try:
        return train(RECIPE)
    finally:
        World.part = part


def mean_of_means(world: World, folder: Path) -> dict[str, Any]:
    """A control: parts that count alike, whatever their size."""
    count = iter([22, 23] * 9)

    def loss_fn(model, batch):
        images, labels = batch
        share = 2 * len(images) / next(count)  # by which the training is about to multiply
        return F.cross_entropy(model(images), labels, label_smoothing=RECIPE.label_smoothing) / share, {}

    return train(RECIPE, loss_fn=loss_fn)


def random_draws(world: World, folder: Path) -> dict[str, Any]:
    """What dropout would draw: not the same in all processes."""
    drawn = []

    def loss_fn(model, batch):
        drawn.append(torch.rand(()).item())
        return model(batch[0]).square().mean(), {}

    train(replace(RECIPE, epochs=1), loss_fn=loss_fn)
    return {"drawn": drawn}


def stopped_by(rank: int, question: int = STOP) -> Callable[[], bool]:
    """Says yes from that question on, by default in the middle of the second epoch, in one process only."""
    count = 0

    def should_stop() -> bool:
        nonlocal count
        count += 1
        return count >= question and int(os.environ.get("RANK", 0)) == rank

    return should_stop


def stopped_and_resumed(world: World, folder: Path) -> dict[str, Any]:
    """The second process stops; both go on. It has a folder of its own, in which nothing must appear."""
    config = replace(RECIPE, **AUGMENTED, **MUON, patch_drop_rate=0.5, patch_drop_until=1.0)
    own = folder if world.is_first else folder / "elsewhere"
    whole = train(config, network(**RANDOM), run_dir=own / "whole")
    first = train(config, network(**RANDOM), run_dir=own / "run", resume="auto", should_stop=stopped_by(1))
    world.any(True)
    if world.is_first:
        shutil.copy(own / "run" / "state.pt", folder / "stopped.pt")
    torch.rand(5 + world.rank)
    return {
        "whole": whole,
        "first": first,
        "second": train(config, network(9, **RANDOM), run_dir=own / "run", resume="auto"),
    }


def begun_for_one(world: World, folder: Path) -> dict[str, Any]:
    """Stopped in two processes; the test goes on alone."""
    return train(RECIPE, run_dir=folder / "run", should_stop=stopped_by(0))


def resumed_from_one(world: World, folder: Path) -> dict[str, Any]:
    """Begun by the test alone; goes on in two processes."""
    return train(RECIPE, network(9), run_dir=folder / "run", resume=True)


def different_settings(world: World, folder: Path) -> dict[str, Any]:
    return train(replace(RECIPE, learning_rate=1e-3 * (1 + world.rank)))


def not_finite_in_one(world: World, folder: Path) -> dict[str, Any]:
    """A loss of which one process's part is not a number, though its gradient is."""

    def loss_fn(model, batch):
        loss = model(batch[0]).square().mean()
        return loss + (loss.detach() * float("nan") if world.rank == 1 else 0), {}

    return train(RECIPE, loss_fn=loss_fn)


def too_small_a_batch(world: World, folder: Path) -> dict[str, Any]:
    return train(replace(RECIPE, batch_size=1))


def batch_normalization(world: World, folder: Path) -> dict[str, Any]:
    return train(RECIPE, nn.Sequential(nn.Flatten(), nn.BatchNorm1d(768), nn.Linear(768, 10)).double())


def evaluation(world: World, folder: Path) -> dict[str, Any]:
    """Over batches of which the last holds a single image."""
    splits, model = data(), network().float()
    found = evaluate(model, make_eval_loader(splits, splits.val, device="cpu", batch_size=5), world=world)
    return {"probabilities": found.probabilities, "labels": found.labels, "loss": found.loss}


def sharded(world: World, folder: Path) -> dict[str, Any]:
    """Stopped by the second process after one step of two; both go on."""
    begun = shard_model(network(seed=world.rank, **SHARDED))
    train(SHARDED_RECIPE, begun, run_dir=folder / "run", should_stop=stopped_by(1, question=1))
    model = shard_model(network(9, **SHARDED))
    held = sum(p.to_local().numel() for p in model.parameters())
    history = fit(model, *loaders(SHARDED_RECIPE), SHARDED_RECIPE, run_dir=folder / "run", resume=True)
    weights = {name: tensor.full_tensor() for name, tensor in model.state_dict().items()}
    return {"held": held, **result(model, history), "weights": weights}


def sharded_with_muon(world: World, folder: Path) -> dict[str, Any]:
    return train(replace(RECIPE, **MUON), shard_model(network()))


def sharded_with_ema(world: World, folder: Path) -> dict[str, Any]:
    return train(replace(RECIPE, ema_decay=0.9), shard_model(network()))


def budget(world: World, folder: Path) -> dict[str, Any]:
    """What fits into three seconds if one process is slow."""
    loader, _ = make_loaders(data(), RECIPE)
    loader = Slow(Doubles(loader), 0.1) if world.rank == 1 else Doubles(loader)
    found = for_budget(network(), loader, None, replace(RECIPE, **MUON), minutes=3 / 60, probe_seconds=0.1)
    return {"epochs": found.epochs}


def open_addresses(world: World, folder: Path) -> dict[str, Any]:
    """Where this process listens, as Linux tells it: addresses in hexadecimal digits."""
    own = {os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink() and path.exists()}
    found = []
    for kind in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{kind}").read_text().splitlines()[1:]:
            columns = line.split()
            if columns[3] == "0A" and f"socket:[{columns[9]}]" in own:
                found.append(columns[1].split(":")[0])
    return {"addresses": found}


CASES = [
    adamw,
    augmented_muon_ema,
    accumulated,
    one_process_too_late,
    mean_of_means,
    random_draws,
    stopped_and_resumed,
    begun_for_one,
    resumed_from_one,
    different_settings,
    not_finite_in_one,
    too_small_a_batch,
    batch_normalization,
    evaluation,
    sharded,
    sharded_with_muon,
    sharded_with_ema,
    budget,
    open_addresses,
]


def run_cases(rank: int, size: int, port: int, folder: Path, names: list[str]) -> None:
    """One of the processes: meets the other and runs the cases."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "VIT_PROGRESS": "none"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": ""}
    torch.set_num_threads(1)
    with processes() as world:
        for case in CASES:
            if case.__name__ in names:
                torch.save(run_case(case, world, folder), folder / f"{case.__name__}.{rank}.pt")


def run_case(case: Callable[..., dict], world: World, folder: Path) -> Any:
    own = folder / case.__name__
    own.mkdir(exist_ok=True)
    try:
        return case(world, own)
    except (ValueError, ArithmeticError) as error:
        return f"{type(error).__name__}: {error}"
