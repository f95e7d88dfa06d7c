"""What is built on the core, one file a task; nothing in the core knows it, and no task knows another.

from vit.tasks import fine_tuning, lora, mae, progressive, prompts
"""

import importlib
from types import ModuleType

__all__ = ["fine_tuning", "lora", "mae", "progressive", "prompts"]


def __getattr__(name: str) -> ModuleType:
    if name not in __all__:
        raise AttributeError(f"module 'vit.tasks' has no attribute {name!r}; it holds {', '.join(__all__)}")
    return importlib.import_module(f"vit.tasks.{name}")


def __dir__() -> list[str]:
    return sorted(__all__)
