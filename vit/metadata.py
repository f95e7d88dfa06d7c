"""What a model says of itself: how its images were prepared, and what its weights have learned from.

`vit.load` brings that along, a model that was just trained gets it by `model.metadata = data.metadata`.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

# The part of a model's metadata that says how its images are prepared; it is true as a whole or not at all.
PREPROCESSING = ("mean", "std", "interpolation", "crop", "squash")


def facts_of(model: nn.Module) -> Mapping[str, Any]:
    """The model's `metadata` or, of one of timm, its `pretrained_cfg`; empty where it has neither."""
    return getattr(model, "metadata", None) or getattr(model, "pretrained_cfg", None) or {}


def normalization_of(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std per channel that a model was trained with.

    Raises:
        ValueError: it does not say.
    """
    facts = facts_of(model)
    if "mean" not in facts or "std" not in facts:
        raise ValueError(
            "the model does not say how its images were normalized: set model.metadata = data.metadata, with the "
            "data that it was trained on"
        )
    return tuple(facts["mean"]), tuple(facts["std"])


def learned_from(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What weights have learned from, first to last, by their metadata: dictionaries with "dataset" and "class_names".
    The last is of the dataset "unknown" where it is not said."""
    newest = {"dataset": "unknown", "class_names": ()}
    if {"dataset", "class_names"} <= metadata.keys():
        newest = {"dataset": metadata["dataset"], "class_names": tuple(metadata["class_names"])}
    return [*metadata.get("pretrained_on", []), newest]
