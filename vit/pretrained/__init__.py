"""Weights: this library's and everyone's, in and out, with all that is known about them."""

import importlib
from typing import Any

from vit.pretrained.exporting import to_timm, to_transformers
from vit.pretrained.graphs import to_onnx, to_program
from vit.pretrained.loading import load_weights
from vit.pretrained.weights import list_weights, load, save

__all__ = [
    "HubModel",
    "list_weights",
    "load",
    "load_weights",
    "save",
    "to_onnx",
    "to_program",
    "to_timm",
    "to_transformers",
]


def __getattr__(name: str) -> Any:
    if name == "HubModel":  # whose base class is in an optional package
        return importlib.import_module("vit.pretrained.hub_model").HubModel
    raise AttributeError(f"module 'vit.pretrained' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
