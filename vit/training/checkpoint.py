"""The resumable state of a run: one file that holds all that the rest of the run depends on.

Weights, averaged weights, optimizers, random numbers, place in the data, history, and what must be equal when the run
goes on: names and shapes, settings, data. Plain tensors and numbers only; state_file.py brings them to disk and back.
Weights to share go into safetensors (`vit.save`), not here.
"""

import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from vit.config import TrainConfig
from vit.device import resolve_precision
from vit.modules import unwrap
from vit.progress import say
from vit.training.distributed import ALONE, World
from vit.training.same_run import check_fits, describe_parts, differences, optimized_names
from vit.training.sharding import is_sharded, part_like, parts_of_state, whole
from vit.training.state_file import read_newest_state, read_state, write_state

# Settings that may change between a stop and a resume: they change no more than the last bits of the run, and which
# random numbers a dropout draws.
FREE_ON_RESUME = ("device", "compile", "test_time_augmentation", "accumulation_steps")


def save_training_state(
    path: Path,
    *,
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    ema: AveragedModel | None,
    config: TrainConfig,
    data: dict[str, Any],
    progress: dict[str, Any],
    has_loss_fn: bool = False,
    is_best: bool = False,
    world: World = ALONE,
) -> None:
    """Writes everything to `path`, replacing it only once the new file is whole; the last one is kept beside it.

    Of several processes the first one writes, but all must call this: each has random numbers of its own, and perhaps
    its part of the weights.

    Args:
        data: what tells the training data from other data, see `describe_data`.
        progress: where the run is: epoch, step, history, running sums; tensors and plain values only.
        has_loss_fn: whether something else than classification is learned.
        is_best: whether this is the best state so far, to be kept as such.
    """
    weights, moments = model.state_dict(), [optimizer.state_dict() for optimizer in optimizers]
    if is_sharded(model):
        weights, moments = whole(weights), whole(moments)
    random_states = world.gather(_random_state())
    if not world.is_first:
        return
    state = {
        "config": asdict(config),
        "surroundings": _surroundings(model, config),
        "data": data,
        "network": describe_parts(model),
        "has_loss_fn": has_loss_fn,
        "parameter_names": [name for name, _ in model.named_parameters()],
        "optimized_names": optimized_names(model, optimizers),
        "model": weights,
        "optimizer_kinds": [type(optimizer).__name__ for optimizer in optimizers],
        "optimizers": moments,
        "ema": None if ema is None else ema.state_dict(),
        "random": random_states[0],
        "progress": progress,
    }
    if world.size > 1:
        state["random_of_others"] = random_states[1:]
    write_state(path, state, is_best=is_best)


def load_training_state(
    path: Path,
    *,
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    ema: AveragedModel | None,
    config: TrainConfig,
    data: dict[str, Any],
    has_loss_fn: bool = False,
    world: World = ALONE,
) -> dict[str, Any]:
    """Puts a saved state back into the given objects and returns its `progress`.

    Says what differs and may: settings in FREE_ON_RESUME, versions, threads, the kind of device, the number of
    processes. If the newest state is damaged, says so and takes the one before it. Of several processes the first one
    reads.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no state is whole, or it belongs to another network, recipe or data; nothing has been changed then.
    """
    state = world.share(read_newest_state(path) if world.is_first else None)
    # A setting that did not exist yet had no effect, which is what defaults have.
    differing = differences(asdict(TrainConfig()) | state["config"], asdict(config))
    forbidden = [text for name, text in differing.items() if name not in FREE_ON_RESUME]
    if forbidden:
        raise ValueError(f"{path} was written with other settings; resume with the same ones: {'; '.join(forbidden)}")
    if state.get("has_loss_fn") and not has_loss_fn:  # which states of earlier versions do not say
        raise ValueError(f"{path} was trained with a loss_fn and is resumed without one: give fit the same again")
    saved = state["data"]
    in_both = [name for name in data if data[name] is not None and saved.get(name) is not None]
    if other := differences({name: saved[name] for name in in_both}, {name: data[name] for name in in_both}):
        raise ValueError(f"{path} was written with other training data: {'; '.join(other.values())}")
    check_fits(path, state, model, optimizers)
    surroundings = _surroundings(model, config)
    differing |= differences(surroundings | state["surroundings"], surroundings)  # older states say less
    if "precision" in differing:
        differing["precision"] += " (more than the last bits)"
    random_states = [state["random"], *state.get("random_of_others", [])]
    if len(random_states) != world.size:
        what = f"saved {len(random_states)}, now {world.size}"
        differing["processes"] = f"processes: {what}, so that dropout and dropped patches draw other numbers too"
    if differing and world.is_first:
        say(f"not as when {path} was written, so the last bits may differ: {'; '.join(differing.values())}")
    current = model.state_dict()
    weights = {name: part_like(t, current[name]) if torch.is_tensor(t) else t for name, t in state["model"].items()}
    model.load_state_dict(weights)
    for optimizer, optimizer_state in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(parts_of_state(optimizer_state, optimizer))
    if ema is not None:
        ema.load_state_dict(state["ema"])
    if world.rank < len(random_states):  # a process that is new begins with random numbers of its own
        _restore_random_state(random_states[world.rank])
    return state["progress"]


def load_state_weights(model: nn.Module, path: str | Path) -> dict[str, float]:
    """Puts the weights of a state file into `model`, the averaged ones if the run had them.

    `state.best.pt` in a run folder is the state after the epoch with the best validation accuracy.

    Returns: the row of the history that belongs to the weights; empty if they are of the middle of an epoch.

    Raises:
        TypeError: the arguments are in another order, or of another kind.
        FileNotFoundError, ValueError: there is no such file, or it is damaged or of another network; the model is
            unchanged then.
    """
    if not isinstance(model, nn.Module) or not isinstance(path, (str, Path)):
        kinds = f"{type(model).__name__}, {type(path).__name__}"
        raise TypeError(f"load_state_weights({kinds}) must be called as load_state_weights(model, path)")
    path, model = Path(path).expanduser(), unwrap(model)
    state = read_state(path)
    check_fits(path, state, model, None)
    weights = state["model"]
    if state["ema"] is not None:
        prefix = "module."
        weights = {name.removeprefix(prefix): t for name, t in state["ema"].items() if name.startswith(prefix)}
    model.load_state_dict(weights)
    progress = state["progress"]
    return dict(progress["rows"][-1]) if progress["rows"] and not progress["step"] else {}


def describe_data(loader: Any) -> dict[str, Any]:
    """What tells the data of a train loader from other data: steps an epoch and, where it has them, its fingerprint and
    its mean and std, without last digits that are another machine's."""
    facts = {"steps_per_epoch": len(loader), "fingerprint": getattr(loader, "fingerprint", None)}
    for name in ("mean", "std"):
        values = getattr(loader, name, None)
        facts[name] = [round(float(v), 6) for v in values] if isinstance(values, (tuple, list)) else None
    return facts


def _surroundings(model: nn.Module, config: TrainConfig) -> dict[str, Any]:
    """What decides the last bits of a run beside its settings and data; the precision decides more than those."""
    device = next(model.parameters()).device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    versions = {"torch": str(torch.__version__), "numpy": np.__version__}
    precision = resolve_precision(config.precision, device)
    return {"computed on": name, **versions, "threads": torch.get_num_threads(), "precision": precision}


def _random_state() -> dict[str, Tensor | Any]:
    # numpy's own state holds an array, which weights_only=True refuses.
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": [kind, keys.tolist(), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
    }


def _restore_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])
    if state.get("mps") is not None and torch.backends.mps.is_available():  # which states of earlier versions lack
        torch.mps.set_rng_state(state["mps"])
