"""The resumable state of a run: one file that holds all that the rest of the run depends on.

Plain tensors and numbers only, so it loads with `weights_only=True` and can run no code. Weights to share go into
safetensors (`vit.save`), not here.
"""

import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from vit.config import TrainConfig
from vit.files import replacing

# Settings that may change between a stop and a resume without changing what the run computes.
FREE_ON_RESUME = ("device", "compile", "test_time_augmentation")


def save_training_state(
    path: str | Path,
    *,
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    ema: AveragedModel | None,
    config: TrainConfig,
    progress: dict[str, Any],
) -> None:
    """Writes everything to `path`, replacing it only once the new file is whole.

    Args:
        progress: where the run is: epoch, step, history, running sums; tensors and plain values only.
    """
    state = {
        "config": asdict(config),
        "parameter_names": [name for name, _ in model.named_parameters()],
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "ema": None if ema is None else ema.state_dict(),
        "random": _random_state(),
        "progress": progress,
    }
    with replacing(path) as temporary:
        torch.save(state, temporary)


def load_training_state(
    path: str | Path,
    *,
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    ema: AveragedModel | None,
    config: TrainConfig,
) -> dict[str, Any]:
    """Puts a saved state back into the given objects and returns its `progress`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the state belongs to another network or another recipe; nothing has been changed then.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no training state at {path}: start the run without resume=True")
    state = torch.load(path, map_location="cpu", weights_only=True)
    # A setting that did not exist yet had no effect, which is what defaults have.
    saved, current = asdict(TrainConfig()) | state["config"], asdict(config)
    differing = [
        f"{name}: saved {saved.get(name)!r}, now {current.get(name)!r}"
        for name in sorted(saved.keys() | current.keys())
        if saved.get(name) != current.get(name) and name not in FREE_ON_RESUME
    ]
    if differing:
        raise ValueError(f"{path} was written with other settings; resume with the same ones: {'; '.join(differing)}")
    names = [name for name, _ in model.named_parameters()]
    if state["parameter_names"] != names:
        odd = sorted(set(state["parameter_names"]) ^ set(names))[:4]
        raise ValueError(f"{path} belongs to another network: its parameters differ, for example {', '.join(odd)}")
    model.load_state_dict(state["model"])
    for optimizer, optimizer_state in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(optimizer_state)
    if ema is not None:
        ema.load_state_dict(state["ema"])
    _restore_random_state(state["random"])
    return state["progress"]


def _random_state() -> dict[str, Any]:
    # numpy's own state holds an array, which weights_only=True refuses.
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": [kind, keys.tolist(), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _restore_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
