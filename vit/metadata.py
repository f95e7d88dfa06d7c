"""What a model says of itself: how its images were prepared, and what its weights have learned from.

`vit.load` brings that along, a model that was just trained gets it by `model.metadata = data.metadata`, or most
of it from the loader that `fit` has trained it with.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

# The part of a model's metadata that says how its images are prepared; it is true as a whole or not at all.
PREPROCESSING = ("mean", "std", "interpolation", "crop", "squash")


def facts_of(model: nn.Module) -> Mapping[str, Any]:
    """The model's `metadata` or, of one of timm, its `pretrained_cfg`; empty where it has neither."""
    return getattr(model, "metadata", None) or getattr(model, "pretrained_cfg", None) or {}


def holder_of_facts(model: nn.Module) -> nn.Module:
    """The model or, where it has no `metadata` and only one network in it has, that network."""
    if hasattr(model, "metadata") or hasattr(model, "pretrained_cfg"):
        return model
    inner = [module for module in model.modules() if isinstance(getattr(module, "metadata", None), dict)]
    return inner[0] if len(inner) == 1 else model


def normalization_of(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std per channel that a model was trained with.

    Raises:
        ValueError: it does not say, or not channel by channel.
    """
    facts = facts_of(model)
    if "mean" not in facts or "std" not in facts:
        raise ValueError(
            "the model does not say how its images were normalized: set model.metadata = data.metadata, with the "
            "data that it was trained on"
        )
    mean, std = facts["mean"], facts["std"]
    try:
        return tuple(mean), tuple(std)
    except TypeError as error:
        said = f"the model's mean={mean} and std={std}"
        raise ValueError(f"{said} must be sequences, with a number for each channel") from error


def remember_data(model: nn.Module, loader: Any, *, with_classes: bool) -> None:
    """Adds to `model.metadata`, if that is a dict, what it lacks and the loader says: mean and std, and the names of
    the classes. These are not added where a dataset is named, since they would seem to be that dataset's. A network
    within a model that has none is told of mean and std, since its outputs may be no classes.

    A network of timm gets a metadata where its `pretrained_cfg` says of other images how they were normalized.

    Args:
        with_classes: whether the classes of the loader are what the model learns.
    """
    outer, model = model, holder_of_facts(model)
    metadata = getattr(model, "metadata", None)
    if metadata is None and _normalizes_otherwise(loader, getattr(model, "pretrained_cfg", None) or {}):
        metadata = {}
    if not isinstance(metadata, dict):
        return
    wanted = [("mean", "std")] if not metadata.keys() & {"mean", "std"} else []
    if with_classes and model is outer and not metadata.keys() & {"class_names", "dataset"}:
        wanted.append(("class_names",))
    for names in wanted:
        values = [getattr(loader, name, None) for name in names]
        if all(isinstance(value, (tuple, list)) for value in values):
            metadata = metadata | {name: tuple(value) for name, value in zip(names, values, strict=True)}
    model.metadata = metadata


def _normalizes_otherwise(loader: Any, facts: Mapping[str, Any]) -> bool:
    """Whether both say how images are normalized, and not the same."""
    pairs = [(facts.get(name), getattr(loader, name, None)) for name in ("mean", "std")]
    are_known = all(isinstance(value, (tuple, list)) for pair in pairs for value in pair)
    return are_known and any(tuple(ours) != tuple(theirs) for ours, theirs in pairs)


def learned_from(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What weights have learned from, first to last, by their metadata: dictionaries with "dataset" and "class_names".
    The last is of the dataset "unknown" where it is not said."""
    newest = {"dataset": "unknown", "class_names": ()}
    if {"dataset", "class_names"} <= metadata.keys():
        newest = {"dataset": metadata["dataset"], "class_names": tuple(metadata["class_names"])}
    return [*metadata.get("pretrained_on", []), newest]
