"""Whether a saved state is of the network and the optimizers that are to go on with it.

What a state holds, and the settings and data it was written with, is the concern of checkpoint.py. States of earlier
versions say less, and what they do not say is not compared.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from vit.config import ViTConfig
from vit.training.optim import Muon

# Fields of a ViTConfig that say nothing of a network whose weights are there already, and those of training alone.
FREE_WITH_WEIGHTS = ("layer_scale", "pos_resampling", "patch_init")
FREE_IN_EVALUATION = ("drop_rate", "attn_drop_rate", "drop_path_rate")


def check_fits(
    path: Path, state: dict[str, Any], model: nn.Module, optimizers: list[torch.optim.Optimizer] | None
) -> None:
    """Raises ValueError unless the state is of this network and these optimizers, and finite.

    Args:
        optimizers: None for a network that is not trained on.
    """
    _check_network(path, state, model, is_trained=optimizers is not None)
    for name, tensor in state["model"].items():
        if torch.is_tensor(tensor) and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{path} holds values in {name} that are not finite: go on from an earlier state")
    if optimizers is not None:
        kinds = [type(optimizer).__name__ for optimizer in optimizers]
        if kinds != state["optimizer_kinds"]:
            raise ValueError(f"{path} holds the state of {state['optimizer_kinds']}, the run has {kinds}")
        saved_groups = _groups([saved["param_groups"] for saved in state["optimizers"]])
        if other := differences(saved_groups, _groups([optimizer.param_groups for optimizer in optimizers])):
            raise ValueError(
                f"{path} has other groups of parameters or other rates for them (another layer_decay?), here as "
                f"(parameters, peak rate): {'; '.join(other.values())}"
            )
        _check_moments(path, state, model, optimizers)


def differences(saved: dict[str, Any], current: dict[str, Any]) -> dict[str, str]:
    """The entries that differ, each in words."""
    return {
        name: f"{name}: saved {saved.get(name)!r}, now {current.get(name)!r}"
        for name in sorted(saved.keys() | current.keys())
        if saved.get(name) != current.get(name)
    }


def describe_network(model: nn.Module) -> dict[str, Any] | None:
    """The config of a network of this library; None of any other."""
    config = getattr(model, "config", None)
    return config.to_dict() if isinstance(config, ViTConfig) else None


def describe_parts(model: nn.Module) -> dict[str, Any] | None:
    """What decides how a network computes and no weight shows: its own config or, of any other module, the configs of
    the networks within and the heads of every attention, by name and place; None if there are none."""
    if (own := describe_network(model)) is not None:
        return own
    found: dict[str, Any] = {}
    for place, module in model.named_modules():
        for name, value in (describe_network(module) or {}).items():
            found[f"{place}.{name}"] = value
        if isinstance(heads := getattr(module, "num_heads", None), int):
            found[f"{place}.num_heads"] = heads
    return found or None


def optimized_names(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> list[list[str | None]]:
    """The names of the parameters of each optimizer, in its order; None for one that is not the model's."""
    names = {p: name for name, p in model.named_parameters()}
    return [[names.get(p) for group in optimizer.param_groups for p in group["params"]] for optimizer in optimizers]


def _check_network(path: Path, state: dict[str, Any], model: nn.Module, *, is_trained: bool) -> None:
    """Raises ValueError unless the state is of a network of these names, shapes and types that computes the same."""
    names = [name for name, _ in model.named_parameters()]
    odd = sorted(set(state["parameter_names"]) ^ set(names))
    # Optimizers know parameters by their place only: in another order the moments would be those of others.
    moved = [f"{a} in the place of {b}" for a, b in zip(names, state["parameter_names"], strict=False) if a != b]
    reshaped = differences(_forms(state["model"]), _forms(model.state_dict()))
    if odd or moved or reshaped:
        examples = ", ".join((odd or moved)[:4]) or "; ".join(list(reshaped.values())[:4])
        raise ValueError(f"{path} belongs to another network: its parameters differ, for example {examples}")
    saved, current = state.get("network"), describe_parts(model)
    if saved is None or current is None:
        return
    # A field that did not exist yet had no effect, which is what defaults have.
    defaults, field = ViTConfig().to_dict(), {name: name.rpartition(".")[2] for name in {**saved, **current}}
    unsaid = {name: defaults[field[name]] for name in current if field[name] in defaults}
    free = FREE_WITH_WEIGHTS if is_trained else FREE_WITH_WEIGHTS + FREE_IN_EVALUATION
    differing = differences(unsaid | saved, current)
    if other := [text for name, text in differing.items() if field[name] not in free]:
        raise ValueError(f"{path} belongs to another network, with weights of the same shapes: {'; '.join(other)}")


def _forms(entries: dict[str, Any]) -> dict[str, str]:
    """Shape and type of each tensor; of an extra state of one's own only what kind it is."""
    return {
        name: f"{tuple(entry.shape)} {entry.dtype}" if torch.is_tensor(entry) else type(entry).__name__
        for name, entry in entries.items()
    }


def _check_moments(
    path: Path, state: dict[str, Any], model: nn.Module, optimizers: list[torch.optim.Optimizer]
) -> None:
    """Raises ValueError unless optimizers with groups of the saved sizes hold the parameters that were saved.

    torch gives each the moments of its place, whatever their shape, and a fused step writes past the end of small ones.
    """
    remedy = "freeze the same parameters as before"
    names = optimized_names(model, optimizers)
    for saved_names, own_names in zip(state.get("optimized_names", names), names, strict=True):
        for saved_name, name in zip(saved_names, own_names, strict=True):
            if saved_name != name:
                raise ValueError(f"{path} has {saved_name} trained in the place of {name}: {remedy}")
    for saved, optimizer, own_names in zip(state["optimizers"], optimizers, names, strict=True):
        if not isinstance(optimizer, (torch.optim.Adam, Muon)):  # others may keep moments of other shapes
            continue
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for number, moments in saved["state"].items():
            for moment, tensor in moments.items():
                if torch.is_tensor(tensor) and tensor.ndim and tensor.shape != parameters[number].shape:
                    shapes = f"{tuple(tensor.shape)} for {own_names[number]} {tuple(parameters[number].shape)}"
                    raise ValueError(f"{path} has {moment} of shape {shapes}: {remedy}")


def _groups(of_optimizers: list[list[dict[str, Any]]]) -> dict[str, list[tuple[int, float | None]]]:
    """How many parameters each group of each optimizer has, and its peak rate."""
    return {
        f"optimizer {number}": [(len(group["params"]), group.get("peak_lr")) for group in groups]
        for number, groups in enumerate(of_optimizers, 1)
    }
