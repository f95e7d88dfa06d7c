"""Arguments that every room checks in the same words: names out of a few, and numbers, brought to Python's."""

import difflib
from collections.abc import Collection
from numbers import Integral, Real
from typing import Any

# What other libraries and people call some of our fields and choices.
_OTHER_NAMES = {
    "lr": "learning_rate",
    "wd": "weight_decay",
    "dim": "embed_dim",
    "hidden_size": "embed_dim",
    "layers": "depth",
    "num_layers": "depth",
    "num_hidden_layers": "depth",
    "heads": "num_heads",
    "num_attention_heads": "num_heads",
    "img_size": "image_size",
    "channels": "in_chans",
    "num_channels": "in_chans",
    "dropout": "drop_rate",
    "global_pool": "pool",
    "avg": "mean",
    "token": "cls",
    "gpu": "cuda",
    "betas": "adam_betas",
}


def nearest(name: Any, known: Collection[str]) -> str:
    """The known name that is probably meant; "" if none is near."""
    close = difflib.get_close_matches(_OTHER_NAMES.get(str(name), str(name).lower()), known, n=1)
    return close[0] if close else ""


def did_you_mean(name: Any, known: Collection[str]) -> str:
    """Part of an error message: a question, if a known name is near, with a space behind it."""
    meant = nearest(name, known)
    return f"did you mean {meant!r}? " if meant else ""


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """Raises ValueError for a value that is not among the choices."""
    if value not in tuple(choices):  # a dict would hash it, whatever it is
        hint = did_you_mean(value, choices)
        raise ValueError(f"{name}={value!r} is not a choice; {hint}allowed: {', '.join(choices)}")


def is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def as_integer(name: str, value: Any, least: int = 0, most: int | None = None, *, remedy: str = "") -> int:
    """The integer; ValueError if it is none, or not in `least`..`most`."""
    if not is_integer(value) or value < least or (most is not None and value > most):
        allowed = f"of {least} or more" if most is None else f"in {least}..{most}"
        raise ValueError(f"{name}={value!r} must be an integer {allowed}{remedy}")
    return int(value)


def as_size(image_size: Any, least: int = 1, *, example: int = 32) -> tuple[int, int]:
    """(height, width) in pixels, from one side of a square or both; ValueError if a side is less than `least`."""
    size = tuple(image_size) if isinstance(image_size, (tuple, list)) else (image_size, image_size)
    if len(size) != 2 or not all(map(is_integer, size)) or min(size) < least:
        pixels = "1 pixel" if least == 1 else f"{least} pixels"
        raise ValueError(f"image_size={image_size!r} must be one or two integers of {pixels} or more; try {example}")
    return int(size[0]), int(size[1])
