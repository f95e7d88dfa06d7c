"""A plain Vision Transformer: patch embedding, positions, CLS token, Transformer encoder, MLP head.

    data = vit.load_data("cifar10")
    model_config, config = vit.recipe("cpu_5min")
    model = vit.VisionTransformer(model_config)
    history = vit.fit(model, *vit.make_loaders(data, config), config)
    vit.evaluate(model, vit.make_eval_loader(data, data.test)).accuracy

    model = vit.load("vit_nano_patch4_32.cifar10")  # trained, and comes with the library
    vit.predict(model, "cat.jpg")
    maps = vit.analysis.attention_maps(model, data.test.images[:16])  # (layers, images, heads, tokens, tokens)
    vit.widgets.AttentionExplorer(model, data.test.images[:16])

What is not here by name is in a room: `vit.analysis` (attention, explanations, metrics, features), `vit.plots`,
`vit.data`, `vit.training` (search, runs, learning-rate finder), `vit.pretrained` (weights of other libraries),
`vit.tasks` (fine-tuning, LoRA, masked autoencoders), `vit.widgets`. Names are imported when first used, so `import vit`
loads neither torchvision nor matplotlib.
"""

import importlib
from pathlib import Path
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

_ROOMS = ("analysis", "config", "data", "model", "plots", "pretrained", "tasks", "training", "widgets")

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"vit.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'vit' has no attribute {name!r}{_where(name)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def _where(name: str) -> str:
    """In which room a name is, for whoever asks for it here; read from the text, since importing takes seconds."""
    for path in Path(__file__).parent.glob("*/__init__.py"):
        _, _, public = path.read_text(encoding="utf-8").partition("__all__")
        if f'"{name}"' in public:
            return f"; it is vit.{path.parent.name}.{name}"
    return ""


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS])
