"""The built-in data set: ten kinds of colored shapes on textured ground, drawn from a seed.

For tests, offline demos and a question that CIFAR-10 cannot answer: each image comes with the true mask of
its shape, so what a model attends to can be judged. Neither the color nor the brightness of an image tells its
class, only the outline does. Lengths follow the shorter side, so every image size poses the same task.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from vit.arguments import as_integer, as_size
from vit.data.splits import DataSplits, Split
from vit.normalization import channel_statistics

Floats = NDArray[np.float32]

MIN_SIDE = 8  # pixels; below it the thinnest shapes lose their parts
_CHUNK_PIXELS = 2**19  # drawn at once: more would not fit a processor's cache


def make_shapes(
    num_train: int = 2000,
    num_val: int = 500,
    num_test: int = 500,
    *,
    image_size: int | tuple[int, int] = 32,
    seed: int = 0,
) -> DataSplits:
    """Draw the three splits; each depends on the seed and its own size alone.

    Args:
        num_train, num_val, num_test: images, 1 or more; each split has its classes equally often, within one.
        image_size: pixels, one side of a square or (height, width), each `MIN_SIDE` or more.
        seed: 0 or more.
    Returns: images (N, 3, H, W), labels and masks (N, H, W), true where the shape is.
    """
    sides, seed = as_size(image_size, MIN_SIDE), as_integer("seed", seed)
    counts = {"num_train": num_train, "num_val": num_val, "num_test": num_test}
    splits = []
    for split_idx, (name, count) in enumerate(counts.items()):
        count = as_integer(name, count, 1, remedy=f"; try {10 * len(CLASS_NAMES)}")
        random = np.random.default_rng((seed, split_idx))
        labels = random.permutation(np.arange(count, dtype=np.int64) % len(CLASS_NAMES))
        images, masks, _ = draw(labels, *sides, random)
        splits.append(Split(torch.from_numpy(images), torch.from_numpy(labels), torch.from_numpy(masks)))
    train, val, test = splits
    mean, std = channel_statistics(train.images)
    return DataSplits("shapes", train, val, test, CLASS_NAMES, mean, std)


def draw(
    labels: NDArray[np.int64], height: int, width: int, random: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.uint8]]:
    """Draw one image a label.

    Returns: images (N, 3, H, W), masks (N, H, W), and grounds (N, 3, H, W), which are images without shapes.
    """
    count = len(labels)
    side = min(height, width)
    radius = side * random.uniform(0.3, 0.44, count)
    center_y = random.uniform(radius, height - radius)
    center_x = random.uniform(radius, width - radius)
    angle = np.deg2rad(random.uniform(-15, 15, count))
    ground_color = random.uniform(0, 1, (count, 3))
    # Far from the ground in every channel, yet anywhere in 0..1: a shape differs, but may be darker.
    shape_color = (ground_color + random.uniform(0.35, 0.65, (count, 3))) % 1
    noise = random.normal(0, 1, (count, 3, 4, 4))
    wave_angle = random.uniform(0, np.pi, count)
    wave_number = 2 * np.pi * random.uniform(2, 6, count) / side
    wave_phase = random.uniform(0, 2 * np.pi, count)
    wave_color = random.uniform(-0.1, 0.1, (count, 3))

    images = np.empty((count, 3, height, width), dtype=np.uint8)
    grounds = np.empty_like(images)
    masks = np.empty((count, height, width), dtype=bool)
    y = np.arange(height, dtype=np.float32)[:, None] + 0.5  # (H, 1), pixel centers
    x = np.arange(width, dtype=np.float32) + 0.5  # (W,)
    waves_y, waves_x = _cosines(y[:, 0], height), _cosines(x, width)  # (H, 4), (W, 4)
    chunk = max(1, _CHUNK_PIXELS // (height * width))
    for start in range(0, count, chunk):
        part = slice(start, start + chunk)

        def spread(values: NDArray, part: slice = part) -> Floats:
            return values[part, ..., None, None].astype(np.float32)  # (n, 1, 1) or (n, 3, 1, 1)

        phase = spread(wave_number * np.sin(wave_angle)) * y + spread(wave_number * np.cos(wave_angle)) * x
        wave = np.sin(phase + spread(wave_phase))  # (n, H, W)
        ground = waves_y @ (0.08 * noise[part].astype(np.float32)) @ waves_x.T  # (n, 3, H, W)
        ground += spread(ground_color) + spread(wave_color) * wave[:, None]
        grounds[part] = _to_levels(ground)
        # The place of each pixel seen from the shape: its center at 0, upright, its radius 1.
        dy, dx = (y - spread(center_y)) / spread(radius), (x - spread(center_x)) / spread(radius)
        cos, sin = spread(np.cos(angle)), spread(np.sin(angle))
        masks[part] = _inside(labels[part], cos * dx + sin * dy, cos * dy - sin * dx)
        images[part] = np.where(masks[part][:, None], _to_levels(spread(shape_color)), grounds[part])
    return images, masks, grounds


def _circle(x: Floats, y: Floats) -> NDArray[np.bool_]:
    return x**2 + y**2 < 0.9**2


def _ring(x: Floats, y: Floats) -> NDArray[np.bool_]:
    distance = x**2 + y**2
    return (distance < 1) & (distance > 0.55**2)


def _square(x: Floats, y: Floats) -> NDArray[np.bool_]:
    return np.maximum(abs(x), abs(y)) < 0.7


def _diamond(x: Floats, y: Floats) -> NDArray[np.bool_]:
    return abs(x) / 0.7 + abs(y) < 1


def _triangle(x: Floats, y: Floats) -> NDArray[np.bool_]:
    return (y < 0.6) & (abs(x) < (y + 0.95) * 0.5)


def _cross(x: Floats, y: Floats) -> NDArray[np.bool_]:
    return (np.maximum(abs(x), abs(y)) < 0.9) & (np.minimum(abs(x), abs(y)) < 0.28)


def _star(x: Floats, y: Floats) -> NDArray[np.bool_]:
    """Five spikes: the straight edge from a tip to the notch beside it, folded around the center."""
    spike = 2 * np.pi / 5
    angle = abs((np.arctan2(x, -y) + spike / 2) % spike - spike / 2)  # from the nearest tip, 0 to spike / 2
    tip, notch = 1.0, 0.42
    notch_x, notch_y = notch * np.cos(spike / 2), notch * np.sin(spike / 2)
    distance = np.hypot(x, y)
    along, across = distance * np.cos(angle), distance * np.sin(angle)
    return notch_y * along + (tip - notch_x) * across < notch_y * tip


def _crescent(x: Floats, y: Floats) -> NDArray[np.bool_]:
    return (x**2 + y**2 < 1) & ((x - 0.45) ** 2 + y**2 > 0.8**2)


def _hourglass(x: Floats, y: Floats) -> NDArray[np.bool_]:
    return (abs(y) < 0.75) & (abs(x) < 0.8 * abs(y) + 0.05)


def _stripes(x: Floats, y: Floats) -> NDArray[np.bool_]:
    return (abs(x) < 0.72) & (np.minimum(abs(y), abs(abs(y) - 0.54)) < 0.15)


_SHAPES: dict[str, Callable[[Floats, Floats], NDArray[np.bool_]]] = {
    "circle": _circle,
    "ring": _ring,
    "square": _square,
    "diamond": _diamond,
    "triangle": _triangle,
    "cross": _cross,
    "star": _star,
    "crescent": _crescent,
    "hourglass": _hourglass,
    "stripes": _stripes,
}
CLASS_NAMES = tuple(_SHAPES)


def _inside(labels: NDArray[np.int64], x: Floats, y: Floats) -> NDArray[np.bool_]:
    """Which pixels are in the shape of their image's class; every shape lies in the unit circle."""
    masks = np.empty(x.shape, dtype=bool)
    for label, shape in enumerate(_SHAPES.values()):
        chosen = labels == label
        masks[chosen] = shape(x[chosen], y[chosen])
    return masks


def _cosines(position: Floats, side: int) -> Floats:
    """The first cosine waves of a side but the constant one, (side, 4), fainter the finer they are."""
    order = np.arange(1, 5, dtype=np.float32)
    return np.cos(np.pi * order * position[:, None] / side) / np.sqrt(order)


def _to_levels(values: Floats) -> NDArray[np.uint8]:
    return (values.clip(0, 1) * 255).round().astype(np.uint8)
