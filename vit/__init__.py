"""A plain Vision Transformer: patch embedding, positions, CLS token, Transformer encoder, MLP head.

Everything a notebook needs is here by name. Names are imported when first used, so `import vit` loads neither
torchvision nor matplotlib.
"""

import importlib
from typing import Any

_HOMES = {
    "ViTConfig": "vit.config",
    "TrainConfig": "vit.config",
    "recipe": "vit.config",
    "VisionTransformer": "vit.model.vision_transformer",
    "load_data": "vit.data",
    "make_loaders": "vit.data",
    "make_eval_loader": "vit.data",
    "fit": "vit.training",
    "for_budget": "vit.training",
    "evaluate": "vit.training",
    "train_one_epoch": "vit.training",
    "new_run_folder": "vit.training",
    "write_summary": "vit.training",
    "predict": "vit.analysis",
    "count_parameters": "vit.analysis",
    "train_flops": "vit.analysis",
    "save": "vit.pretrained",
    "load": "vit.pretrained",
}

_ROOMS = ("analysis", "config", "data", "model", "plots", "pretrained", "training", "widgets")

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"vit.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'vit' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS])
