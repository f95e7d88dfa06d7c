"""Whole numbers that functions take as arguments: Python's or numpy's, checked and brought to Python's."""

from numbers import Integral
from typing import Any


def as_integer(name: str, value: Any, least: int = 0, most: int | None = None, *, remedy: str = "") -> int:
    """The integer; ValueError if it is none, or not in `least`..`most`."""
    is_integer = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_integer or value < least or (most is not None and value > most):
        allowed = f"of {least} or more" if most is None else f"in {least}..{most}"
        raise ValueError(f"{name}={value!r} must be an integer {allowed}{remedy}")
    return int(value)


def as_size(image_size: Any, least: int = 1, *, example: int = 32) -> tuple[int, int]:
    """(height, width) in pixels, from one side of a square or both; ValueError if a side is less than `least`."""
    size = tuple(image_size) if isinstance(image_size, (tuple, list)) else (image_size, image_size)
    are_integers = all(isinstance(side, Integral) and not isinstance(side, bool) for side in size)
    if len(size) != 2 or not are_integers or min(size) < least:
        pixels = "1 pixel" if least == 1 else f"{least} pixels"
        raise ValueError(f"image_size={image_size!r} must be one or two integers of {pixels} or more; try {example}")
    return int(size[0]), int(size[1])
